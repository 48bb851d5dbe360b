"""Whatever a body holds, it is a query or refused as one, in bounded work; no text of it reaches SQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, text

from storage.database import postgres_url
from storage.errors import InvalidQuery
from storage.query import body as reading
from storage.query import grammar
from storage.query.ast import Query
from storage.query.compiler import compile_query
from storage.query.functions import FUNCTIONS
from storage.query.grammar import parse
from storage.query.schema import QueryModel
from storage.query.signature import Operand
from tests.storage.query.bodies import COUNT, INCOME, call, eq, select, where
from tests.storage.query.conftest import Ask
from tests.storage.query.rows import tabular


def nest(levels: int) -> dict[str, Any]:
    inner = call("abs", property=1)
    for _ in range(levels):
        inner = call("abs", property={"nested_function": inner})
    return inner


def subqueries(levels: int) -> dict[str, Any]:
    body = select(COUNT)
    for _ in range(levels):
        body = select({"property": "*"}, subquery=body)
    return body


DOUBLING = [call("add", f"x{n}", left={"alias_ref": f"x{n + 1}"}, right={"alias_ref": f"x{n + 1}"}) for n in range(100)]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (select(nest(100)), "nested more than"),
        (subqueries(100), "nested more than"),
        (select(*([INCOME] * 100_000)), f"at most {reading.MOST_ENTRIES} entries"),
        (select(INCOME, filter=[{}] * 100_000), f"at most {reading.MOST_ENTRIES} entries"),
        (where(property="age", comparator="in", value=list(range(100_000))), f"at most {reading.MOST_VALUES} entries"),
        (where(property="x" * 10**6, comparator="IsNull"), f"at most {reading.LONGEST_NAME} characters"),
        (eq("x" * 10**6, "city"), f"at most {reading.LONGEST_TEXT} characters"),
        (dict.fromkeys(map(str, range(10**5))), f"more than {reading.MOST_ENTRIES} members"),
        (select(call("distribution", property="age", bin_thresholds=list(range(10**5)))), "at most"),
        (select(*DOUBLING, call("add", "x100", left=1, right=1)), "have more than"),
        (select(*({"alias": str(n), **nest(9)} for n in range(190))), f"more than {grammar.MOST_PARTS} parts"),
    ],
)
def test_hostile_bodies_are_refused_before_they_cost(body: Any, message: str) -> None:
    """The bounds are counts, so the work is bounded whatever stands beyond them."""
    with pytest.raises(InvalidQuery, match=message):
        compile_query(parse(body), tabular().model)


def test_an_entry_beyond_a_bound_is_never_looked_at() -> None:
    class Untouchable(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("was read")

    with pytest.raises(InvalidQuery, match="at most"):
        parse({"select": Untouchable([INCOME] * (reading.MOST_ENTRIES + 1))})


NAMES = st.sampled_from(
    [
        "income",
        "age",
        "city",
        "since",
        "tags",
        "a",
        "gt_a",
        "x",
        "*",
        "count",
        "lime_importance",
        "explainer_score",
        "nlp_explanation.value",
        "",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | NAMES
KEYS = st.sampled_from(
    [
        "select",
        "from",
        "filter",
        "subquery",
        "property",
        "function",
        "alias",
        "parameters",
        "value",
        "comparator",
        "alias_ref",
        "nested_function",
        "group_by",
        "order_by",
        "limit",
        "left",
        "right",
    ]
)
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4))


@st.composite
def calls(draw: st.DrawFn, operand: st.SearchStrategy[Any]) -> dict[str, Any]:
    """A function with about the right parameters."""
    name = draw(st.sampled_from(sorted(FUNCTIONS)))
    function = FUNCTIONS[name]
    parameters = {}
    for key, each in function.parameters.items():
        if draw(st.integers(0, 9)):
            values = (
                operand
                if isinstance(each, Operand)
                else st.sampled_from([1, 0.5, [1, 2], "day", "lime", "a", "age", ["a", "b"], "avg", "list"])
            )
            parameters[key] = draw(values)
    if function.comparators:
        parameters |= {"comparator": draw(st.sampled_from(["gt", "eq", "in", "IsNull"])), "value": draw(SCALARS)}
    return {"function": name, "parameters": parameters}


OPERANDS = st.recursive(
    NAMES | st.integers(-5, 5) | st.builds(lambda name: {"alias_ref": name}, st.sampled_from("xyz")),
    lambda inner: st.builds(lambda made: {"nested_function": made}, calls(inner)),
    max_leaves=3,
)
ITEMS = st.builds(
    lambda item, alias: item | ({"alias": alias} if alias else {}),
    calls(OPERANDS) | st.builds(lambda name: {"property": name}, NAMES),
    st.sampled_from(["x", "y", ""]),
)
TARGETS = st.builds(lambda kind, name: {kind: name}, st.sampled_from(["property", "alias"]), NAMES)
CONDITIONS = st.builds(
    lambda target, comparator, value: target | {"comparator": comparator, "value": value},
    TARGETS,
    st.sampled_from(["eq", "in", "gt", "like", "IsNull", "x"]),
    SCALARS | st.lists(SCALARS),
)
QUERIES = st.fixed_dictionaries(
    {"select": st.lists(ITEMS, max_size=4)},
    optional={
        "from": st.sampled_from(["inference", "enriched", "reference", "ground_truth", "x"]),
        "filter": st.lists(CONDITIONS, max_size=2),
        "group_by": st.lists(TARGETS, max_size=2),
        "order_by": st.lists(TARGETS, max_size=2),
        "limit": st.integers(-1, 5),
        "subquery": st.fixed_dictionaries({"select": st.lists(ITEMS, max_size=3)}),
    },
)


@settings(max_examples=200, deadline=None)
@given(ANYTHING | st.dictionaries(KEYS, ANYTHING) | QUERIES)
def test_a_body_is_a_query_or_refused_as_one(body: Any) -> None:
    try:
        assert isinstance(parse(body), Query)
    except InvalidQuery as error:
        assert resolves(body, error.pointer)


def resolves(body: Any, pointer: str) -> bool:
    """Whether the pointer leads somewhere in the body."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        body = body[int(key)] if isinstance(body, list) else body[key]
    return True


@settings(max_examples=200, deadline=None)
@given(QUERIES)
def test_a_compiled_query_is_a_statement_or_refused(body: Any) -> None:
    try:
        compiled = compile_query(parse(body), tabular().model)
    except InvalidQuery:
        return
    assert str(compiled.statement)


RIGHT: dict[str, Any] = {
    "level": 0.3,
    "num_bins": 3,
    "bin_thresholds": [1, 25],
    "time_interval": "day",
    "unit": "month",
    "offset": 1,
    "default": None,
    "start": 1,
    "length": 2,
    "threshold": 0.5,
    "aggregation": "max",
    "normalizationMin": 0,
    "normalizationMax": 2,
    "properties": ["a", "b"],
    "predicted_property": "a",
    "ground_truth_property": "gt_a",
    "predicted_attribute_name": "b",
    "attribute_name": "age",
    "explanation_algorithm": "shap",
}
"""Values that parameters can have."""
NUMBERS = st.sampled_from(["income", "age", "member", "truth", 1, 0.5, {"alias_ref": "y0"}, {"alias_ref": "y1"}])
TIMES_OR_NUMBERS = st.sampled_from(["since", "inference_timestamp", "income"])


@st.composite
def plausible(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    """A function with parameters of mostly the right kind."""
    name = draw(st.sampled_from(sorted(set(FUNCTIONS) - {"nlp_explanation"})))
    function, parameters = FUNCTIONS[name], {}
    inner = st.deferred(lambda: plausible(depth - 1)).map(lambda made: {"nested_function": made})
    for key, each in function.parameters.items():
        if key in function.either and key != function.either[0]:
            continue
        if key in RIGHT:
            parameters[key] = RIGHT[key]
        elif isinstance(each, Operand) and each.accepts >= {"text"}:
            parameters[key] = draw(NUMBERS | st.sampled_from(["city", "batch_id", "inference_timestamp"]))
        elif isinstance(each, Operand) and "timestamp" in each.accepts:
            parameters[key] = draw(TIMES_OR_NUMBERS)
        elif isinstance(each, Operand):
            parameters[key] = draw(NUMBERS | inner if depth else NUMBERS) if "list" not in each.accepts else "tags"
    if function.comparators:
        parameters |= {"comparator": draw(st.sampled_from(["gt", "eq", "ne", "lte"])), "value": 25}
    return {"function": name, "parameters": parameters}


@st.composite
def sound(draw: st.DrawFn) -> dict[str, Any]:
    """A query that is mostly one, of rows or of groups."""
    keys = draw(st.lists(st.sampled_from(["city", "age", "batch_id", "explainer_attribute"]), max_size=2, unique=True))
    items: list[dict[str, Any]] = [{"property": key} for key in keys]
    items += [draw(plausible()) | {"alias": f"y{place}"} for place in range(draw(st.integers(1, 3)))]
    targets = st.sampled_from([*({"property": key} for key in keys), {"alias": "y0"}])
    body = {"select": items, "from": draw(st.sampled_from(["enriched", "inference", "ground_truth"]))}
    if keys and draw(st.booleans()):
        body["group_by"] = [{"property": key} for key in keys]
    body["order_by"] = [draw(targets) | {"direction": draw(st.sampled_from(["asc", "desc"]))}]
    if draw(st.booleans()):
        body["filter"] = [draw(targets) | {"comparator": draw(st.sampled_from(["eq", "NotNull"])), "value": ""}]
    if draw(st.booleans()):
        counted = call("countIf", property="y0", comparator="NotNull")
        body = {"select": draw(st.sampled_from([[{"property": "*"}], [counted]])), "subquery": body}
    return body


@pytest.fixture(scope="module")
def opened(queried: str) -> Iterator[Connection]:
    engine = create_engine(postgres_url(queried))
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@settings(max_examples=150, deadline=None)
@given(sound())
def test_postgres_takes_every_compiled_statement(opened: Connection, body: Any) -> None:
    """Whatever the compiler lets pass, it has judged kinds, groups and windows as Postgres does."""
    try:
        compiled = compile_query(parse(body), tabular().model)
    except InvalidQuery:
        return
    with opened.begin():
        opened.execute(text("SELECT set_config('whence.tenant', 't', true)"))
        for row in opened.execute(compiled.statement.limit(5)):
            json.dumps(compiled.row(row), allow_nan=False)


INJECTIONS = [
    "'; DROP TABLE inferences; --",
    '"; DROP TABLE inferences; --',
    "income) FROM api_keys --",
    "$1",
    "%(x)s",
    ":x",
    "\\'",
    "c0",
    "i.numbers",
    'income"',
    "{}",
    "%s%d",
]


@pytest.mark.parametrize("hostile", INJECTIONS)
async def test_no_text_of_a_request_reaches_sql(ask: Ask, hostile: str) -> None:
    everywhere = [
        select({"property": hostile}),
        select(call(hostile)),
        select(INCOME, **{"from": hostile}),
        select(INCOME, **{hostile: 1}),
        select(INCOME, group_by=[{"property": hostile}]),
        select(INCOME, group_by=[{"alias": hostile}]),
        select(INCOME, order_by=[{"property": hostile}]),
        select(INCOME, order_by=[INCOME | {"direction": hostile}]),
        where(property=hostile, comparator="eq", value=1),
        where(property="income", comparator=hostile, value=1),
        where(property="income", comparator="eq", value=hostile),
        where(property="since", comparator="gt", value=hostile),
        select(call("avg", property=hostile)),
        select(call("avg", property={"alias_ref": hostile})),
        select(call("avg", **{hostile: 1})),
        select(call("roundTimestamp", property="since", time_interval=hostile)),
        select(call("mae", predicted_property="a", aggregation=hostile)),
        select(call("dateDiff", start_date="since", end_date="since", unit=hostile)),
        select(call("regionalFeatureImportance", attribute_name=hostile, predicted_attribute_name="a")),
    ]
    for body in everywhere:
        with pytest.raises(InvalidQuery):
            await ask(body)
    for body in (
        where(property="city", comparator="eq", value=hostile),
        where(property="city", comparator="like", value=hostile),
        where(property="city", comparator="in", value=[hostile]),
        where(property="inference_id", comparator="eq", value=hostile),
    ):
        assert await ask(body) == []
        statement = compile_query(parse(body), tabular().model).statement
        assert hostile not in str(statement.compile()) or hostile in {"c0", "i.numbers", "$1", ":x", "{}"}
    (row,) = await ask(select(INCOME | {"alias": hostile}, order_by=[{"alias": hostile}], limit=1))
    assert list(row) == [hostile]
    chosen = call("if", hostile, property="age", comparator="eq", value=-1, then="", **{"else": hostile})
    assert await ask(select(chosen, limit=1)) == [{hostile: hostile}]
    assert len(await ask(select(COUNT | {"alias": hostile}, subquery=select(INCOME | {"alias": hostile})))) == 1
    assert len(await ask({"select": [{"property": "*"}]})) == 300


def test_the_text_of_a_statement_does_not_depend_on_values() -> None:
    model: QueryModel = tabular().model
    first, second = (
        str(compile_query(parse(where(property="city", comparator="in", value=values)), model).statement)
        for values in (["a"], ["x'", "b", "c"])
    )
    assert first == second
