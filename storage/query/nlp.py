"""Explanations of texts: for each inference the scores of its tokens, per predicted attribute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ARRAY, JSON, Integer, Text, bindparam, case, column, func, literal, null, select, true
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import aggregate_order_by

from storage.errors import InvalidQuery
from storage.query.ast import Call, Condition, Order
from storage.query.body import nearest, shown
from storage.query.comparators import matches
from storage.query.regional import configured, named
from storage.query.schema import Attribute
from storage.query.sources import Source, Stored
from storage.query.typed import Kind, Sql, Typed

FUNCTION = "nlp_explanation"
PREFIX = f"{FUNCTION}."
FIELDS: dict[str, tuple[str, Kind]] = {
    "token": ("token", "text"),
    "location": ("position", "integer"),
    "value": ("value", "number"),
}
TOKEN_COMPARATORS = ("eq", "ne", "in", "like")


@dataclass(frozen=True, slots=True)
class TokenView:
    """What a query says about tokens rather than inferences."""

    conditions: tuple[Condition, ...] = ()
    orders: tuple[Order, ...] = ()


def explanation(source: Source, call: Call, view: TokenView) -> Typed:
    """The list of entries; null where tokens are asked for and none matches."""
    if not isinstance(source, Stored):
        raise InvalidQuery(f"'{FUNCTION}' explains inferences, not the rows of a subquery", call.pointer)
    source.require_explanations()
    attribute = _attribute(source, call)
    algorithm = call.arguments.get("nlp_explainer") or configured(source)
    predicted = source.model.predicted
    chosen = (named(call, "nlp_predicted_attribute", predicted),) if _given(call) else predicted
    tokens = source.tokens(algorithm, attribute.name)
    places = [predicted.index(each) for each in chosen]
    names = [each.name for each in chosen]
    whole = call.arguments.get("shape") == "object"

    def shape(entries: Sequence[Sequence[Any]]) -> Any:
        shaped = [_entry(algorithm, name, attribute.name, of) for name, of in zip(names, entries, strict=True)]
        return shaped[0] if whole and len(shaped) == 1 else shaped

    if whole and len(names) != 1:
        raise InvalidQuery("the object form has one predicted attribute: name it", call.pointer)
    return Typed(_entries(tokens, places, view), "json", plain=FUNCTION, shape=shape)


def _given(call: Call) -> bool:
    return call.arguments.get("nlp_predicted_attribute") is not None


def _attribute(source: Stored, call: Call) -> Attribute:
    texts = source.model.texts
    if call.arguments.get("attribute_name") is not None:
        return named(call, "attribute_name", texts)
    if len(texts) != 1:
        raise InvalidQuery("attribute_name is needed: the model has not one text attribute", call.pointer)
    return texts[0]


def _entries(tokens: Any, places: Sequence[int], view: TokenView) -> Sql:
    """A JSON list with, for each class, a list of [token, position, score]."""
    classes = func.unnest(bindparam(None, list(places), ARRAY(Integer))).table_valued(
        column("place", Integer), with_ordinality="rank", name="classes"
    )
    classes = classes.render_derived()
    words = func.unnest(tokens.c.tokens, tokens.c.positions).table_valued(
        column("token", Text), column("position", Integer), with_ordinality="rank", name="words"
    )
    words = words.render_derived()
    score = tokens.c.scores[classes.c.place * func.cardinality(tokens.c.tokens) + words.c.rank]
    fields = {"token": words.c.token, "position": words.c.position, "value": score}
    wanted = [matches(_field(each, fields), each.test) for each in view.conditions]
    triple: Any = func.json_build_array(words.c.token, words.c.position, score)
    ordered = aggregate_order_by(triple, *_order(view, fields), words.c.rank)
    listed = select(func.json_agg(ordered)).select_from(words).where(*wanted)
    filled = func.coalesce(listed.correlate(tokens, classes).scalar_subquery(), sql_cast(literal("[]", Text), JSON))
    together = func.json_agg(aggregate_order_by(filled, classes.c.rank), type_=JSON)
    entries = select(together).select_from(classes).correlate(tokens).scalar_subquery()
    if not view.conditions:
        return entries
    among = (
        select(func.count()).select_from(classes.join(words, true())).where(*wanted).correlate(tokens).scalar_subquery()
    )
    return case((among > 0, entries), else_=null())


def _field(condition: Condition, fields: dict[str, Sql]) -> Typed:
    column, kind = _known(condition.target.name, condition.target.pointer)
    if kind == "text" and condition.test.comparator not in TOKEN_COMPARATORS:
        allowed = ", ".join(TOKEN_COMPARATORS)
        raise InvalidQuery(f"tokens are compared by {allowed}", condition.test.pointer)
    return Typed(fields[column], kind)


def _order(view: TokenView, fields: dict[str, Sql]) -> list[Any]:
    keys = []
    for order in view.orders:
        column, kind = _known(order.target.name, order.target.pointer)
        key = Typed(fields[column], kind).sortable
        keys.append((key.desc() if order.descending else key.asc()).nulls_last())
    return keys


def _known(name: str, pointer: str) -> tuple[str, Kind]:
    field = name.removeprefix(PREFIX)
    if field not in FIELDS:
        near = nearest(field, FIELDS)
        raise InvalidQuery(f"unknown property {shown(name)}", pointer, near and PREFIX + near)
    return FIELDS[field]


def _entry(algorithm: str, predicted: str, attribute: str, tokens: Sequence[Sequence[Any]]) -> dict[str, Any]:
    shaped = [
        {"token": token, "position": position, "value": value, "explanation_value": value}
        for token, position, value in tokens
    ]
    scores = [{"attribute_name": attribute, "tokens": shaped}]
    return {"algorithm": algorithm, "predicted_attribute_name": predicted, "importance_scores": scores}
