"""Lists inside a value: their parts as columns, and ranked lists against what was relevant, beside plain Python."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn import metrics

from storage.errors import InvalidQuery
from tests.storage.query.bodies import call, select
from tests.storage.query.conftest import Ask, Keep
from tests.storage.query.rows import given, listed

ROWS = listed()
MODEL, FRAME = ROWS.model, ROWS.frame
Metric = Callable[[list[Any], set[str], int], float | None]


def ids(text: Any) -> list[Any] | None:
    """The ids of a stored list; None where there is none."""
    if given(text) is None:
        return None
    entries = json.loads(text)
    entries = entries if isinstance(entries, list) else []
    return [entry.get("item_id") if isinstance(entry, dict) else None for entry in entries]


def hits(ranked: list[Any], liked: set[str]) -> list[int]:
    """By place; an item listed again is a miss."""
    return [int(each in liked and each not in ranked[:place]) for place, each in enumerate(ranked)]


def precision(ranked: list[Any], liked: set[str], k: int) -> float | None:
    return sum(hits(ranked, liked)[:k]) / k


def recall(ranked: list[Any], liked: set[str], k: int) -> float | None:
    return sum(hits(ranked, liked)[:k]) / len(liked) if liked else None


def average_precision(ranked: list[Any], liked: set[str], k: int) -> float | None:
    found = hits(ranked, liked)[:k]
    at_hits = [sum(found[: place + 1]) / (place + 1) for place, hit in enumerate(found) if hit]
    return sum(at_hits) / min(len(liked), k) if liked else None


def ndcg(ranked: list[Any], liked: set[str], k: int) -> float | None:
    gains = [hit / math.log2(place + 2) for place, hit in enumerate(hits(ranked, liked)[:k])]
    return sum(gains) / sum(1 / math.log2(place + 2) for place in range(min(len(liked), k))) if liked else None


def auc(ranked: list[Any], liked: set[str], _: int) -> float | None:
    once = [each for place, each in enumerate(ranked) if each is not None and each not in ranked[:place]]
    found = [int(each in liked) for each in once]
    return metrics.roc_auc_score(found, -np.arange(len(found))) if 0 < sum(found) < len(found) else None


def reciprocal(ranked: list[Any], liked: set[str], _: int) -> float | None:
    found = hits(ranked, liked)
    return (1 / (found.index(1) + 1) if any(found) else 0.0) if liked else None


RANKED: list[tuple[str, Metric | None, int]] = [
    ("precisionAtK", precision, 1),
    ("precisionAtK", precision, 5),
    ("recallAtK", recall, 3),
    ("mapAtK", average_precision, 4),
    ("mapAtK", average_precision, 100),
    ("nDCGAtK", ndcg, 3),
    ("nDCGAtK", ndcg, 100),
    ("rankedListAUC", auc, 0),
    ("meanReciprocalRank", reciprocal, 0),
    ("rankedItemMaxK", None, 0),
]


@pytest.mark.parametrize(("function", "metric", "k"), [each for each in RANKED if each[1]])
async def test_ranked_lists(ask: Ask, function: str, metric: Metric, k: int) -> None:
    def expected(rows: Any) -> Any:
        pairs = [(ids(best), ids_of(liked)) for best, liked in zip(rows["best"], rows["liked"], strict=True)]
        values = [metric(best, liked, k) for best, liked in pairs if best is not None and liked is not None]
        return pytest.approx(np.mean([value for value in values if value is not None]), rel=1e-12)

    at = {"k": k} if k else {}
    assert await ask(select(call(function, "x", **at)), MODEL) == [{"x": expected(FRAME)}]
    plain = {"predicted_property": "best_item_id", "ground_truth_property": "liked"}
    assert await ask(select(call(function, "x", **at, **plain)), MODEL) == [{"x": expected(FRAME)}]
    grouped = select({"property": "user"}, call(function, "x", **at), group_by=[{"property": "user"}])
    for row in await ask(grouped, MODEL):
        user = row["user"]
        assert row["x"] == expected(FRAME[FRAME["user"].isna() if user is None else FRAME["user"] == user])
    nobody = {"property": "user", "comparator": "eq", "value": "nobody"}
    assert await ask(select(call(function, "x", **at), filter=[nobody]), MODEL) == [{"x": None}]


def ids_of(text: Any) -> set[str] | None:
    return None if given(text) is None else set(json.loads(text))


@pytest.mark.parametrize("wanted", ["item c", ["item c", 'é"\\'], ["nothing"], []])
async def test_the_worst_rank_of_some_items(ask: Ask, wanted: Any) -> None:
    body = select(call("rankedItemMaxK", "x", property="best_item_id", item_filter=wanted))
    among = {wanted} if isinstance(wanted, str) else set(wanted)
    places = [place for text in FRAME["best"] for place, each in enumerate(ids(text) or []) if each in among]
    assert await ask(body, MODEL) == [{"x": max(places, default=None)}]


async def test_parts_of_lists(ask: Ask) -> None:
    names = ("best_item_id", "words_tokens", "chances_tokens", "chances_likelihoods")
    found = await ask(select(*({"property": name} for name in names)), MODEL)
    assert [row["best_item_id"] for row in found] == [ids(each) for each in FRAME["best"]]
    words = [None if given(each) is None else json.loads(each) for each in FRAME["words"]]
    assert [row["words_tokens"] for row in found] == words
    for row, each in zip(found, FRAME["chances"], strict=True):
        positions = None if given(each) is None else json.loads(each)
        pairs = [pair for position in positions for pair in position.items()] if isinstance(positions, list) else []
        assert row["chances_tokens"] == (None if positions is None else [token for token, _ in pairs])
        assert row["chances_likelihoods"] == (None if positions is None else [chance for _, chance in pairs])
    assert "best_item_id" not in (await ask(select({"property": "*"}, limit=1), MODEL))[0]
    cut = call("arraySlice", "x", property="best_item_id", start=2, length=1)
    known = {"property": "best_item_id", "comparator": "NotNull"}
    found = await ask(select(cut, filter=[known]), MODEL)
    assert [row["x"] for row in found] == [ids(each)[1:2] for each in FRAME["best"] if given(each) is not None]


async def test_a_slice_of_what_is_no_list_is_empty(ask: Ask) -> None:
    body = select(call("arraySlice", "x", property="best", start=1, length=2), limit=5)
    assert (await ask(body, MODEL))[4] == {"x": []}


@pytest.mark.parametrize("item", ["a\0b", "\ud800"], ids=["NUL", "surrogate"])
async def test_items_that_the_database_cannot_read(ask: Ask, keep: Keep, item: str) -> None:
    keep("odd", MODEL, ["u", json.dumps([{"item_id": item}])])
    with pytest.raises(InvalidQuery, match="NUL character or half a surrogate"):
        await ask(select({"property": "best_item_id"}), MODEL, tenant="odd")


@pytest.mark.parametrize("name", ["user_item_id", "words_likelihoods", "best_tokens", "liked_item_id"])
async def test_other_types_have_no_such_parts(ask: Ask, name: str) -> None:
    with pytest.raises(InvalidQuery, match="unknown property"):
        await ask(select({"property": name}), MODEL)


@pytest.mark.parametrize(
    ("item", "pointer"),
    [
        (call("precisionAtK"), "/select/0/function"),
        (call("precisionAtK", k=0), "/select/0/parameters/k"),
        (call("precisionAtK", k=3, predicted_property="user"), "/select/0/parameters/predicted_property"),
        (call("rankedItemMaxK", property="best_item_id", item_filter=[3]), "/select/0/parameters/item_filter/0"),
        (call("rankedItemMaxK", property="best_item_id"), "/select/0/parameters"),
    ],
)
async def test_mistakes_are_named(ask: Ask, item: Any, pointer: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        await ask(select(item), MODEL)
    assert caught.value.pointer in {pointer, "/select/0/parameters"}


BIAS = "biasMitigatedPredictions"
EQ = {"property": "user", "comparator": "eq", "value": "x"}


@pytest.mark.parametrize(
    ("thresholds", "pointer"),
    [
        ([], ""),
        ([{"conditions": [EQ]}], "/0"),
        ({"threshold": 0.5}, ""),
        ([{"conditions": [], "threshold": 0.5}], "/0/conditions"),
        ([{"conditions": [EQ], "threshold": "0.5"}], "/0/threshold"),
        ([{"conditions": [{"alias": "x", "comparator": "eq", "value": 1}], "threshold": 1}], "/0/conditions/0/alias"),
        ([{"conditions": [EQ | {"property": "usr"}], "threshold": 1}], "/0/conditions/0/property"),
        ([{"conditions": [EQ], "threshold": 1, "more": 1}], "/0/more"),
    ],
)
async def test_thresholds_of_groups_are_checked(ask: Ask, rows: Any, thresholds: Any, pointer: str) -> None:
    names = {"user": "city"}
    text = json.dumps(thresholds)
    for old, new in names.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    with pytest.raises(InvalidQuery) as caught:
        await ask(select(call(BIAS, predicted_property="a", thresholds=json.loads(text))), rows.model)
    assert caught.value.pointer == f"/select/0/parameters/thresholds{pointer}"


async def test_thresholds_of_groups_beside_aggregates(ask: Ask) -> None:
    groups = [{"conditions": [{"property": "city", "comparator": "ne", "value": "Zug"}], "threshold": 0.5}]
    mitigated = call(BIAS, predicted_property="a", thresholds=groups)
    share = call("avg", "x", property={"nested_function": mitigated})
    assert 0 < (await ask(select(share)))[0]["x"] < 1
    with pytest.raises(InvalidQuery, match="stands beside an aggregate"):
        await ask(select(mitigated, {"function": "count"}))
