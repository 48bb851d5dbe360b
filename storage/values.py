"""How Python values become values that Postgres holds exactly."""

from __future__ import annotations

import json
import re
from typing import Any

from sqlalchemy import Dialect, Text, TypeDecorator

from storage.errors import InvalidValue

ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def plain(value: str) -> str:
    """The text itself if Postgres can hold it: no NUL character and no lone surrogate. Raises InvalidValue."""
    if UNSTORABLE.search(value):
        raise InvalidValue("a name or text has a NUL character or half a surrogate pair")
    return value


def json_text(value: Any) -> str:
    """JSON in ASCII, which Postgres keeps as it is, with any text that JSON can carry and every bit of a float.

    Raises InvalidValue for what JSON cannot carry.
    """
    try:
        return ENCODER.encode(value)
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"not a JSON value: {error}") from None


class PlainText(TypeDecorator[str]):
    """Text for names and labels; see `plain`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else plain(value)
