"""A background as a plain JSON value, and back without loss: kept beside the scores that were counted with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from app.records import Record
from explainers.answers import array, numbers
from explainers.background import Background
from explainers.table import Column, Table

ARRAYS = ("weights", "means", "deviations", "nulls", "typical")


def background_record(background: Background) -> Record:
    record: Record = {name: numbers(getattr(background, name)) for name in ARRAYS}
    return record | {
        "columns": [asdict(column) for column in background.table.columns],
        "cells": [numbers(row) for row in background.table.cells],
        "levels": [numbers(values) for values in background.levels],
        "shares": [numbers(values) for values in background.shares],
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
