"""A background as a plain JSON value, and back without loss: kept beside the scores that were counted with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.records import Record
from explainers.background import Background
from explainers.table import Column, Table

ARRAYS = ("weights", "means", "deviations", "nulls", "typical")


def background_record(background: Background) -> Record:
    record: Record = {name: plain(getattr(background, name)) for name in ARRAYS}
    return record | {
        "columns": [asdict(column) for column in background.table.columns],
        "cells": [plain(row) for row in background.table.cells],
        "levels": [plain(values) for values in background.levels],
        "shares": [plain(values) for values in background.shares],
        "id": background.id,
    }


def background_from(record: Mapping[str, Any]) -> Background:
    """The inverse of `background_record`."""
    columns = tuple(Column(each["name"], each["kind"], tuple(each["levels"])) for each in record["columns"])
    cells = np.array([array(row) for row in record["cells"]]).reshape(-1, len(columns))
    return Background(
        table=Table(columns, cells),
        levels=tuple(array(values) for values in record["levels"]),
        shares=tuple(array(values) for values in record["shares"]),
        id=record["id"],
        **{name: array(record[name]) for name in ARRAYS},
    )


def plain(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def array(values: list[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
