"""What queries mean, said once more over rows in Python, as plainly as can be; and nothing of how SQL says it."""

from __future__ import annotations

import math
import re
import statistics
from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cmp_to_key
from typing import Any

import numpy as np

Row = dict[str, Any]

AGGREGATES = frozenset(
    ("count", "sum", "avg", "avgAbs", "min", "max", "variance", "stdDev", "countIf", "rate", "categoriesCount")
) | {"quantile"}


def answer(body: Row, rows: Sequence[Row]) -> list[Row]:
    """The rows that answer a query; values are None, bool, float, str or datetime."""
    source = answer(body["subquery"], rows) if "subquery" in body else rows
    items = {key_of(item): item for item in body["select"]}
    tests = body.get("filter", body.get("where", []))
    kept = [row for row in source if all(holds(row[each["property"]], each) for each in tests if "property" in each)]
    grouped = bool(body.get("group_by")) or any(item.get("function") in AGGREGATES for item in items.values())
    found = of_groups(body, items, kept) if grouped else [of_row(items, row) for row in kept]
    found = [each for each in found if all(holds(each[1][test["alias"]], test) for test in tests if "alias" in test)]
    for order in reversed(body.get("order_by", [])):
        found = ordered(found, order)
    shown = [values for _, values in found][body.get("offset", 0) :]
    return shown if body.get("limit") is None else shown[: body["limit"]]


def key_of(item: Row) -> str:
    return str(item.get("alias") or item.get("property") or item["function"])


def of_row(items: dict[str, Row], row: Row) -> tuple[Row, Row]:
    """What can be sorted by beside the values: the row itself."""
    return row, {key: value_of(item, row, items) for key, item in items.items()}


def of_groups(body: Row, items: dict[str, Row], rows: list[Row]) -> list[tuple[Row, Row]]:
    keys = body.get("group_by", [])
    groups: dict[tuple[Any, ...], list[Row]] = {} if keys else {(): []}
    for row in rows:
        values = [
            row[key["property"]] if "property" in key else value_of(items[key["alias"]], row, items) for key in keys
        ]
        groups.setdefault(tuple(values), []).append(row)
    names = [key.get("property") or key["alias"] for key in keys]
    answers = []
    for place, members in groups.items():
        known = dict(zip(names, place, strict=True))
        values = {
            key: aggregate(item, members, items) if item.get("function") in AGGREGATES else known[key]
            for key, item in items.items()
        }
        answers.append((known, values))
    return answers


def ordered(found: list[tuple[Row, Row]], order: Row) -> list[tuple[Row, Row]]:
    """Nulls last, whichever the direction; equal ones stay as they were."""

    def value(each: tuple[Row, Row]) -> Any:
        beside, values = each
        return values[order["alias"]] if "alias" in order else {**values, **beside}[order["property"]]

    sign = -1 if order.get("direction") == "desc" else 1
    present = [each for each in found if value(each) is not None]
    present.sort(key=cmp_to_key(lambda a, b: sign * ((value(a) > value(b)) - (value(a) < value(b)))))
    return present + [each for each in found if value(each) is None]


# -- rows --------------------------------------------------------------------------------------------------------------


def value_of(item: Row, row: Row, items: dict[str, Row]) -> Any:
    if "property" in item:
        return row[item["property"]]
    return ROW_FUNCTIONS[item["function"]](item["parameters"], lambda operand: operand_of(operand, row, items))


def operand_of(operand: Any, row: Row, items: dict[str, Row]) -> Any:
    if isinstance(operand, str):
        return row[operand]
    if not isinstance(operand, dict):
        return float(operand)
    if "alias_ref" in operand:
        return value_of(items[operand["alias_ref"]], row, items)
    return value_of(operand["nested_function"], row, items)


Read = Callable[[Any], Any]


def both(compute: Callable[[float, float], float | None]) -> Callable[[Row, Read], Any]:
    def computed(given: Row, read: Read) -> Any:
        left, right = read(given["left"]), read(given["right"])
        return None if left is None or right is None else compute(left, right)

    return computed


def bins(given: Row, read: Read) -> Any:
    value = read(given["property"])
    return None if value is None else float(bisect_right(given["bin_thresholds"], value) + 1)


def if_(given: Row, read: Read) -> Any:
    chosen = given["then"] if holds(read(given["property"]), given) else given["else"]
    return None if chosen is None else float(chosen)


def round_timestamp(given: Row, read: Read) -> Any:
    value = read(given["property"])
    if value is None:
        return None
    units = ("year", "month", "day", "hour", "minute", "second")
    first = {"month": 1, "day": 1, "hour": 0, "minute": 0, "second": 0}
    dropped = units[units.index(given["time_interval"]) + 1 :]
    return value.replace(microsecond=0, **{unit: first[unit] for unit in dropped})


def label(given: Row, read: Read) -> Any:
    known = [(read(name), name) for name in given["properties"] if read(name) is not None]
    largest = max((value for value, _ in known), default=None)
    return next((name for value, name in known if value == largest), None)


def truthy(value: float | None) -> bool:
    return value is not None and value != 0


ROW_FUNCTIONS: dict[str, Callable[[Row, Read], Any]] = {
    "add": both(lambda left, right: left + right),
    "subtract": both(lambda left, right: left - right),
    "multiply": both(lambda left, right: left * right),
    "divide": both(lambda left, right: left / right if right else None),
    "abs": lambda given, read: None if read(given["property"]) is None else abs(read(given["property"])),
    "equals": lambda given, read: both(lambda left, right: float(left == right))(given, read) or 0.0,
    "and": lambda given, read: float(truthy(read(given["left"])) and truthy(read(given["right"]))),
    "or": lambda given, read: float(truthy(read(given["left"])) or truthy(read(given["right"]))),
    "binContinuous": bins,
    "if": if_,
    "roundTimestamp": round_timestamp,
    "labelByMaxColumn": label,
}

# -- conditions --------------------------------------------------------------------------------------------------------


def holds(value: Any, test: Row) -> bool:
    comparator, given = test["comparator"], test.get("value")
    if comparator in ("IsNull", "NotNull"):
        return (value is None) == (comparator == "IsNull")
    if comparator == "in":
        return None in given if value is None else any(value == like(value, each) for each in given if each is not None)
    if value is None:
        return False
    if comparator == "like":
        pattern = "".join({"%": ".*", "_": "."}.get(sign, re.escape(sign)) for sign in given)
        return re.fullmatch(pattern, value, re.DOTALL) is not None
    return COMPARED[comparator](value, like(value, given))


COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "gt": lambda a, b: a > b,
    "lte": lambda a, b: a <= b,
    "gte": lambda a, b: a >= b,
}


def like(value: Any, given: Any) -> Any:
    """The value of a request as one of the kind of a column's."""
    if isinstance(value, datetime):
        moment = datetime.fromisoformat(given)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    if isinstance(value, bool):
        return bool(given)
    return given if isinstance(value, str) else float(given)


# -- groups ------------------------------------------------------------------------------------------------------------


def aggregate(item: Row, rows: list[Row], items: dict[str, Row]) -> Any:
    name, given = item["function"], item.get("parameters", {})
    if name == "count":
        return float(len(rows))
    everything = [operand_of(given["property"], row, items) for row in rows]
    if name in ("countIf", "rate"):
        matching = [float(holds(value, given)) for value in everything]
        return sum(matching) if name == "countIf" else sum(matching) / len(matching) if matching else None
    values = [value for value in everything if value is not None]
    if name == "categoriesCount":
        return float(len(set(values)))
    return OF_VALUES[name](values, given) if values else None


OF_VALUES: dict[str, Callable[[list[Any], Row], Any]] = {
    "sum": lambda values, _: math.fsum(values),
    "avg": lambda values, _: math.fsum(values) / len(values),
    "avgAbs": lambda values, _: math.fsum(map(abs, values)) / len(values),
    "min": lambda values, _: min(values),
    "max": lambda values, _: max(values),
    "variance": lambda values, _: statistics.variance(values) if len(values) > 1 else None,
    "stdDev": lambda values, _: statistics.stdev(values) if len(values) > 1 else None,
    "quantile": lambda values, given: float(np.quantile(values, given["level"])),
}
