"""Boxes around objects, stored as lists of numbers: one row for each, and how well a model finds them.

A detection is [class_id, confidence, top_left_x, top_left_y, width, height]; a box of the ground truth may do without
its confidence. Context: detections choose their boxes one after the other, which SQL says only by recursion for each
row. Decision: one aggregate collects the boxes, numpy matches them. Consequence: the figure is shown but not filtered,
sorted or computed with, and there is a limit to the boxes of a query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import JSON, Double, case, func, literal, null, select
from sqlalchemy import cast as sql_cast

from storage.errors import InvalidQuery
from storage.query.average_precision import Boxes
from storage.query.average_precision import mean_average_precision as measured
from storage.query.body import Place
from storage.query.lists import array_of, entries
from storage.query.schema import Attribute
from storage.query.typed import Kind, Sql, Typed

VALUE_TYPE = "BOUNDING_BOX"
USUAL_NAME = "objects_detected"
"""Stands for the predicted boxes, whatever their attribute is called."""
PARTS: dict[str, Kind] = {
    "class_id": "integer",
    "confidence": "number",
    "top_left_x": "number",
    "top_left_y": "number",
    "width": "number",
    "height": "number",
}
"""In the order in which they stand in a box."""
MOST_BOXES = 100_000
"""That one query evaluates, in all its groups: about a second on one core, and 10 MB of JSON."""


def properties(predicted: Sequence[Attribute]) -> Mapping[str, tuple[Attribute, str]]:
    """The attribute and the part that each property stands for, of the predicted attributes that hold boxes."""
    named = {each.name: each for each in predicted if each.value_type == VALUE_TYPE}
    if len(named) == 1:
        named.setdefault(USUAL_NAME, *named.values())
    return {f"{name}.{part}": (each, part) for name, each in named.items() for part in PARTS}


def rows(of: Sql, main: Any) -> Any:
    """Beside a row: its boxes with their parts, null where one is no number, and their `place` from 1."""
    each = entries(of)
    parts = [_number(each.c.entry, place).label(part) for place, part in enumerate(PARTS)]
    return select(*parts, each.c.place).select_from(each).correlate(main).lateral("boxes")


def _number(entry: Sql, place: int) -> Sql:
    kind = func.json_typeof(entry.op("->")(place))
    return case((kind == "number", sql_cast(entry.op("->>")(place), Double)), else_=null())


def overlap_from(place: Place) -> float:
    """An overlap from which on boxes match; with 0, any two would."""
    found = place.number()
    if not 0 < found <= 1:
        raise InvalidQuery("must be more than 0 and at most 1", place.pointer)
    return float(found)


def mean_average_precision(
    predicted_property: Typed, ground_truth_property: Typed, threshold: float, ties: Sequence[Sql]
) -> Typed:
    """Over the rows with ground truth, which are known by their number: a query that shows boxes repeats rows."""
    known = ground_truth_property.sql.is_not(None)
    sides = [array_of(each.sql) for each in (predicted_property, ground_truth_property)]
    count = func.sum(func.json_array_length(sides[0]) + func.json_array_length(sides[1])).filter(known)
    all_groups = func.sum(count).over()
    lists = func.json_agg(func.json_build_array(ties[0], *sides)).filter(known)
    held = case((all_groups <= literal(MOST_BOXES), lists), else_=null())
    found = func.json_build_array(all_groups, held, type_=JSON)
    return Typed(found, "json", window=True, shape=lambda values: _measured(values[0], values[1], threshold))


def _measured(count: int | None, lists: Sequence[Any] | None, threshold: float) -> float | None:
    if (count or 0) > MOST_BOXES:
        raise InvalidQuery(f"the rows of this query have more than {MOST_BOXES} boxes: filter more")
    once = {number: sides for number, *sides in lists or ()}
    detected, true = (_read([once[number][side] for number in sorted(once)], side) for side in (0, 1))
    return measured(detected, true, threshold)


def _read(lists: Sequence[Sequence[Any]], side: int) -> Boxes:
    """The boxes of all rows; those of the ground truth (side 1) need no confidence."""
    flat = [_filled(box, side) for boxes in lists for box in boxes]
    table = np.array(flat, np.float64).reshape(-1, len(PARTS))  # (B, 6)
    numbers = np.repeat(np.arange(len(lists)), [len(boxes) for boxes in lists])
    start, size = table[:, 2:4], table[:, 4:]
    return Boxes(numbers, table[:, 0], table[:, 1], np.hstack([start, start + size]))


def _filled(box: Any, side: int) -> list[Any]:
    numbers = isinstance(box, list) and all(type(each) in (int, float) for each in box)
    if numbers and len(box) == len(PARTS):
        return list(box)
    if numbers and side and len(box) == len(PARTS) - 1:
        return [box[0], 1.0, *box[1:]]
    raise InvalidQuery("a value among these rows is no list of boxes: filter its row out")
