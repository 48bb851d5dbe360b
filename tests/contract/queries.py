"""Queries as the language has them, made at random: right ones, and ones with one mistake."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from hypothesis import strategies as st

Columns: TypeAlias = dict[str, str]
"""Name -> `number`, `text`, `time`, `boolean`, or `inexact` for what was summed: that is compared to some digits."""
Body: TypeAlias = dict[str, Any]

STORED: Columns = {
    "income": "number",
    "tenure": "number",
    "churn_yes": "number",
    "churned": "number",
    "city": "text",
    "batch_id": "text",
    "partner_inference_id": "text",
    "member": "boolean",
    "since": "time",
    "inference_timestamp": "time",
}
CITIES = ("Oslo", "oslo", "Älta", "100%", "a_b", "'; DROP TABLE x; --", "")
NUMBERS = st.integers(-4, 12) | st.sampled_from([0.5, -1.5, 2.25])
TIMES = st.sampled_from(["2026-03-01T08:00:00Z", "2026-03-02", "2026-02-28T23:59:59.999+01:00"])
MEASURES = ("eq", "ne", "lt", "gt", "lte", "gte")
INTERVALS = ("second", "minute", "hour", "day", "month", "year")
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "number": NUMBERS | NUMBERS.map(str),
    "text": st.sampled_from([*CITIES, "b-1", "u-3"]),
    "time": TIMES,
    "boolean": st.sampled_from([True, False, 0, 1]),
}


def named(columns: Columns, *kinds: str) -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(name for name, kind in columns.items() if kind in kinds))


@st.composite
def tests(draw: st.DrawFn, kind: str, allowed: tuple[str, ...] = ()) -> Body:
    """A comparator and its value, for a column of that kind."""
    fitting = {"number": MEASURES, "time": MEASURES, "text": ("eq", "ne", "like"), "boolean": ("eq", "ne")}[kind]
    comparator = draw(st.sampled_from(allowed or (*fitting, "in", "IsNull", "NotNull")))
    if comparator in ("IsNull", "NotNull"):
        return {"comparator": comparator} | draw(st.sampled_from([{}, {"value": ""}]))
    if comparator == "in":
        return {"comparator": "in", "value": draw(st.lists(VALUES[kind] | st.none(), max_size=3))}
    if comparator == "like":
        return {"comparator": "like", "value": draw(st.sampled_from(["%o", "_slo", "%", "O%o", "a_b", "100%", "\\%"]))}
    return {"comparator": comparator, "value": draw(VALUES[kind])}


@st.composite
def conditions(draw: st.DrawFn, columns: Columns, word: str = "property") -> Body:
    name = draw(named(columns, "number", "text", "time", "boolean"))
    return {word: name} | draw(tests(columns[name]))


@st.composite
def operands(draw: st.DrawFn, columns: Columns, depth: int) -> Any:
    """Of numbers: a column, a constant, or a function of such."""
    if depth and draw(st.integers(0, 2)) == 0:
        return {"nested_function": draw(numeric(columns, depth - 1))}
    return draw(named(columns, "number") | NUMBERS)


@st.composite
def numeric(draw: st.DrawFn, columns: Columns, depth: int = 2) -> Body:
    """A row function whose result is a number."""
    operand = operands(columns, depth)
    name = draw(st.sampled_from(["add", "subtract", "multiply", "divide", "equals", "and", "or", "abs", "bins", "if"]))
    if name == "abs":
        return {"function": "abs", "parameters": {"property": draw(operand)}}
    if name == "bins":
        given = {"property": draw(operand), "bin_thresholds": sorted(draw(st.sets(st.integers(-9, 9), min_size=1)))}
        return {"function": "binContinuous", "parameters": given}
    if name == "if":
        kind = draw(st.sampled_from(["number", "text"]))
        chosen = {"then": draw(NUMBERS), "else": draw(NUMBERS | st.none())}
        test = draw(tests(kind, MEASURES if kind == "number" else ("eq", "ne")))
        return {"function": "if", "parameters": {"property": draw(named(columns, kind)), **test, **chosen}}
    return {"function": name, "parameters": {"left": draw(operand), "right": draw(operand)}}


@st.composite
def computed(draw: st.DrawFn, columns: Columns) -> tuple[Body, str]:
    """A row function, and the kind of its result."""
    choice = draw(st.integers(0, 5))
    if choice == 0 and "time" in columns.values():
        given = {"property": draw(named(columns, "time")), "time_interval": draw(st.sampled_from(INTERVALS))}
        return {"function": "roundTimestamp", "parameters": given}, "time"
    if choice == 1:
        given = {"properties": draw(st.lists(named(columns, "number"), min_size=1, max_size=3, unique=True))}
        return {"function": "labelByMaxColumn", "parameters": given}, "text"
    return draw(numeric(columns)), "number"


@st.composite
def aggregates(draw: st.DrawFn, columns: Columns) -> tuple[Body, str]:
    name = draw(st.sampled_from(["count", "sum", "avg", "min", "max", "countIf", "rate", "kinds", "quantile", "other"]))
    if name == "count":
        return {"function": "count"}, "number"
    if name in ("countIf", "rate"):
        column = draw(named(columns, "number", "text", "time", "boolean"))
        given = {"property": column} | draw(tests(columns[column]))
        return {"function": name, "parameters": given}, "number" if name == "countIf" else "inexact"
    if name == "kinds":
        given = {"property": draw(named(columns, "number", "text", "time", "boolean"))}
        return {"function": "categoriesCount", "parameters": given}, "number"
    if name in ("min", "max"):
        column = draw(named(columns, "number", "text", "time"))
        return {"function": name, "parameters": {"property": column}}, columns[column]
    given = {"property": draw(named(columns, "number", "inexact") | operands(columns, 2))}
    if name == "quantile":
        return {"function": name, "parameters": given | {"level": draw(st.sampled_from([0, 0.1, 0.5, 1]))}}, "inexact"
    name = draw(st.sampled_from(["avgAbs", "variance", "stdDev"])) if name == "other" else name
    return {"function": name, "parameters": given}, "inexact"


@st.composite
def by_rows(draw: st.DrawFn, columns: Columns, mark: str) -> tuple[Body, Columns]:
    """Columns and row functions."""
    select: list[Body] = []
    found: Columns = {}
    for name in draw(st.lists(st.sampled_from(sorted(columns)), max_size=3, unique=True)):
        select.append({"property": name})
        found[name] = columns[name]
    for place in range(draw(st.integers(0 if select else 1, 3))):
        item, kind = draw(computed(columns))
        select.append(item | {"alias": f"{mark}x{place}"})
        found[f"{mark}x{place}"] = kind
    earlier = [name for name, kind in found.items() if name not in columns and kind == "number"]
    if earlier and draw(st.booleans()):
        given = {"left": {"alias_ref": draw(st.sampled_from(earlier))}, "right": draw(operands(columns, 1))}
        select.append({"function": "add", "alias": f"{mark}y", "parameters": given})
        found[f"{mark}y"] = "number"
    return {"select": draw(st.permutations(select))}, found


@st.composite
def by_groups(draw: st.DrawFn, columns: Columns, mark: str) -> tuple[Body, Columns]:
    """Aggregates, of all rows or of groups by columns and row functions."""
    keys: list[Body] = []
    select: list[Body] = []
    found: Columns = {}
    exact = sorted(name for name, kind in columns.items() if kind != "inexact")
    for name in draw(st.lists(st.sampled_from(exact), max_size=2, unique=True)):
        keys.append({"property": name})
        if draw(st.booleans()):
            select.append({"property": name})
            found[name] = columns[name]
    if draw(st.booleans()):
        item, found[f"{mark}k"] = draw(computed(columns))
        select.append(item | {"alias": f"{mark}k"})
        keys.append({"alias": f"{mark}k"})
    for place in range(draw(st.integers(0 if select else 1, 3))):
        item, found[f"{mark}a{place}"] = draw(aggregates(columns))
        select.append(item | {"alias": f"{mark}a{place}"})
    return {"select": draw(st.permutations(select)), "group_by": keys}, found


@st.composite
def queries(draw: st.DrawFn, columns: Columns = STORED, depth: int = 1) -> tuple[Body, Columns]:
    """A right query and the columns of its answer."""
    inner: Body = {}
    if depth and draw(st.integers(0, 2)) == 0:
        inner["subquery"], columns = draw(queries(columns, depth - 1).filter(lambda made: usable(made[1])))
    mark = "" if depth else "i"
    body, found = draw(by_rows(columns, mark) | by_groups(columns, mark))
    filtered = draw(st.lists(conditions(columns), max_size=2))
    aliases = {name: kind for name, kind in found.items() if name not in columns}
    if any(kind != "inexact" for kind in aliases.values()) and draw(st.booleans()):
        filtered.append(draw(conditions(aliases, "alias")))
    if filtered:
        body[draw(st.sampled_from(["filter", "where"]))] = filtered
    order = draw(st.lists(st.sampled_from(sorted(found)), max_size=2, unique=True))
    directions = st.sampled_from([{}, {"direction": "asc"}, {"direction": "desc"}])
    words = {name: "alias" if name in aliases else "property" for name in order if found[name] != "inexact"}
    body["order_by"] = [{word: name} | draw(directions) for name, word in words.items()]
    body |= draw(st.fixed_dictionaries({}, optional={"limit": st.integers(0, 30), "offset": st.integers(0, 5)}))
    return body | inner, found


def usable(columns: Columns) -> bool:
    """Whether an outer query finds columns of each kind that it asks for."""
    return "number" in columns.values() and "text" in columns.values()


# -- mistakes ----------------------------------------------------------------------------------------------------------

Edit: TypeAlias = Callable[[], None]


def mistakes(body: Body) -> Iterator[tuple[str, Body]]:
    """Copies of a right query, each with one mistake, and where it is."""
    for pointer, part in parts(body, ""):
        for name, change in edits(part):
            wrong = copy.deepcopy(body)
            change(at(wrong, pointer))
            yield f"{pointer}/{name}", wrong


def parts(value: Any, pointer: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield pointer, value
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in members:
        yield from parts(member, f"{pointer}/{name}")


def at(value: Any, pointer: str) -> Any:
    for name in pointer.split("/")[1:]:
        value = value[int(name)] if isinstance(value, list) else value[name]
    return value


WRONG: dict[str, tuple[Any, ...]] = {
    "function": ("nosuch", "Count", 3, "pg_sleep"),
    "property": ("nosuch", "", None, "income; DROP TABLE inferences", "a" * 300, "nul\0"),
    "comparator": ("nosuch", "=", None, "OR"),
    "direction": ("up", "desc; --", 1),
    "select": ([], None, {}, [1]),
    "limit": (-1, 1.5, "1", True, 2**70),
    "offset": (-1, "x"),
    "group_by": ("city", [{}], [{"property": "city", "alias": "city"}]),
    "order_by": ([{"property": "nosuch"}], [{"alias": "nosuch"}], 3),
    "time_interval": ("week", "fortnight", 0),
    "bin_thresholds": ([], [2, 1], ["a"], [float(10**300) * 10] * 0 or [None]),
    "level": (1.5, "0.5", -1),
    "subquery": (None.__class__.__name__, [], 7, {"select": []}),
    "alias_ref": ("nosuch", None),
    "nested_function": ({"property": "income"}, {}, "add"),
    "left": ([], {"nested_function": 1}, {"alias_ref": "x", "nested_function": {}}, None, True),
    "properties": ([], "income", ["nosuch"]),
}
"""By member: values that are wrong wherever it stands."""


def edits(part: Body) -> Iterator[tuple[str, Callable[[Any], None]]]:
    yield "unknown", lambda place: place.update(unknown=1)
    for name in part:
        for value in WRONG.get(name, ()):
            yield name, lambda place, name=name, value=value: place.update({name: value})
        if name in ("select", "function", "comparator", "left", "bin_thresholds"):
            yield name, lambda place, name=name: place.pop(name)
