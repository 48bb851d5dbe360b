"""Boxes as rows, and the mean average precision of detections, beside a slow and plain Python."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from storage.errors import InvalidQuery
from storage.query import average_precision, boxes
from storage.query.average_precision import Boxes, mean_average_precision
from tests.storage.query.bodies import COUNT, call, select
from tests.storage.query.conftest import Ask, Keep
from tests.storage.query.rows import boxed, given

ROWS = boxed()
MODEL, FRAME = ROWS.model, ROWS.frame
CAMERA, NAME = {"property": "camera"}, {"property": "partner_inference_id"}
PRECISION = call("meanAveragePrecision", "x")
PARTS = ("class_id", "confidence", "top_left_x", "top_left_y", "width", "height")
Row = tuple[list[list[float]], list[list[float]]]


def listed(text: Any) -> list[list[Any]]:
    return [] if given(text) is None else json.loads(text)


def exploded(frame: pd.DataFrame = FRAME) -> list[dict[str, Any]]:
    """A row for each box, with the name of its inference."""
    pairs = zip(frame["partner_inference_id"], frame["found"], strict=True)
    return [{"name": name} | dict(zip(PARTS, box, strict=True)) for name, found in pairs for box in listed(found)]


def of(part: str, name: str = "objects_detected") -> dict[str, Any]:
    return {"property": f"{name}.{part}"}


def overlap(one: list[float], other: list[float]) -> float:
    """Of two boxes, each [left, top, width, height]."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    union = one[2] * one[3] + other[2] * other[3] - shared
    return shared / union if union else 0.0


def average(rows: list[Row], kind: float, threshold: float) -> float:
    """Average precision of a class: the mean, over its boxes, of the best precision at that recall or more."""
    free = [[box[-4:] for box in true if box[0] == kind] for _, true in rows]
    count = sum(map(len, free))
    detections = [(-box[1], place, box[2:]) for place, (found, _) in enumerate(rows) for box in found if box[0] == kind]
    hits = []
    for _, place, box in sorted(detections, key=lambda each: each[:2]):
        near = [each for each in free[place] if overlap(box, each) >= threshold]
        best = max(near, key=lambda each: overlap(box, each), default=None)
        hits.append(best is not None)
        if best is not None:
            free[place].remove(best)
    precisions = [sum(hits[: length + 1]) / (length + 1) for length in range(len(hits))]
    return sum(max(precisions[place:]) for place, hit in enumerate(hits) if hit) / count


def expected(frame: pd.DataFrame, threshold: float = 0.5) -> Any:
    known = frame[frame["drawn"].notna()]
    rows = [(listed(found), listed(drawn)) for found, drawn in zip(known["found"], known["drawn"], strict=True)]
    kinds = sorted({box[0] for _, true in rows for box in true})
    if not kinds:
        return None
    return pytest.approx(float(np.mean([average(rows, kind, threshold) for kind in kinds])), abs=1e-12)


@pytest.mark.parametrize("name", ["objects_detected", "found"])
async def test_a_row_for_each_box(ask: Ask, name: str) -> None:
    items = [NAME | {"alias": "name"}, *(of(part, name) | {"alias": part} for part in PARTS)]
    found = await ask(select(*items), MODEL)
    assert found == exploded()
    assert {type(row["class_id"]) for row in found} == {int} and {type(row["width"]) for row in found} == {float}
    pages = [row for page in range(1, 99) for row in await ask(select(*items), MODEL, page=page, page_size=7)]
    assert pages == found


async def test_the_names_are_those_of_the_request(ask: Ask) -> None:
    (row,) = await ask(select(of("class_id"), of("height", "found"), limit=1), MODEL)
    assert list(row) == ["objects_detected.class_id", "found.height"]


async def test_rows_multiply_only_for_what_is_named(ask: Ask) -> None:
    assert await ask(select(COUNT), MODEL) == [{"count": len(FRAME)}]
    everything = await ask(select({"property": "*"}), MODEL)
    assert len(everything) == len(FRAME) and not any("." in name for name in everything[0])
    assert everything[0]["found"] == listed(FRAME["found"][0])
    counted = {"property": "found.width", "comparator": "NotNull"}
    assert await ask(select(COUNT, filter=[counted]), MODEL) == [{"count": len(exploded())}]
    reference = select(COUNT, call("sum", property="found.width"), **{"from": "reference"})
    boxes_of_reference = [box for each in ROWS.reference["found"] for box in listed(each)]
    wanted = {"count": len(boxes_of_reference), "sum": sum(box[4] for box in boxes_of_reference)}
    assert await ask(reference, MODEL) == [wanted]


async def test_boxes_are_filtered_grouped_and_sorted(ask: Ask) -> None:
    sure = {"property": "objects_detected.confidence", "comparator": "gte", "value": 0.5}
    mean = call("avg", "width", property="objects_detected.width")
    grouped = select(of("class_id") | {"alias": "kind"}, COUNT, mean, filter=[sure], group_by=[{"alias": "kind"}])
    frame = pd.DataFrame(exploded())
    groups = frame[frame["confidence"] >= 0.5].groupby("class_id")["width"]
    wanted = {kind: (len(each), pytest.approx(each.mean())) for kind, each in groups}
    assert {row["kind"]: (row["count"], row["width"]) for row in await ask(grouped, MODEL)} == wanted
    order = [of("confidence") | {"direction": "desc"}]
    found = await ask(select(NAME | {"alias": "name"}, order_by=order), MODEL)
    ordered = frame.sort_values("confidence", ascending=False, kind="stable")
    assert [row["name"] for row in found] == list(ordered["name"])


@pytest.mark.parametrize("threshold", [0.01, 0.3, 0.5, 0.75, 1])
async def test_mean_average_precision(ask: Ask, threshold: float) -> None:
    asked = call("meanAveragePrecision", "x", threshold=threshold)
    assert await ask(select(asked), MODEL) == [{"x": expected(FRAME, threshold)}]
    grouped = await ask(select(CAMERA, asked, COUNT, group_by=[CAMERA]), MODEL)
    frames = {camera: FRAME[FRAME["camera"] == camera] for camera in ("north", "south")}
    frames[None] = FRAME[FRAME["camera"].isna()]
    assert {row["camera"]: row["x"] for row in grouped} == {
        camera: expected(frame, threshold) for camera, frame in frames.items()
    }
    assert len(grouped) == 3


async def test_the_usual_threshold_and_names(ask: Ask) -> None:
    named = {"predicted_property": "found", "ground_truth_property": "drawn", "threshold": 0.5}
    for asked in (PRECISION, call("meanAveragePrecision", "x", **named)):
        assert await ask(select(asked), MODEL) == [{"x": expected(FRAME)}]


async def test_an_inference_counts_once_however_many_boxes_are_shown(ask: Ask) -> None:
    kind = of("class_id") | {"alias": "kind"}
    found = await ask(select(kind, PRECISION, group_by=[{"alias": "kind"}]), MODEL)
    for row in found:
        having = [any(box[0] == row["kind"] for box in listed(each)) for each in FRAME["found"]]
        assert row["x"] == expected(FRAME[having])
    assert len(found) == 4


async def test_precision_of_a_subquery(ask: Ask) -> None:
    inner = select({"property": "found"}, {"property": "drawn"}, order_by=[NAME | {"direction": "asc"}], limit=60)
    named = {"predicted_property": "found", "ground_truth_property": "drawn"}
    asked = select(call("meanAveragePrecision", "x", **named), subquery=inner)
    assert await ask(asked, MODEL) == [{"x": expected(FRAME.sort_values("partner_inference_id")[:60])}]
    grouped = select(CAMERA, PRECISION, group_by=[CAMERA])
    rows = await ask(grouped, MODEL)
    assert await ask(select({"property": "x"}, subquery=grouped), MODEL) == [{"x": row["x"]} for row in rows]


@pytest.mark.parametrize(
    ("name", "value"), [("partner_inference_id", "nobody"), ("drawn", None)], ids=["no row", "no truth"]
)
async def test_without_ground_truth_there_is_no_precision(ask: Ask, name: str, value: Any) -> None:
    test = {"comparator": "IsNull"} if value is None else {"comparator": "eq", "value": value}
    assert await ask(select(PRECISION, filter=[{"property": name, **test}]), MODEL) == [{"x": None}]


async def test_more_boxes_than_are_held(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    known = FRAME[FRAME["drawn"].notna()]
    count = sum(len(listed(each)) for name in ("found", "drawn") for each in known[name])
    grouped = select(CAMERA, PRECISION, group_by=[CAMERA])
    monkeypatch.setattr(boxes, "MOST_BOXES", count)
    assert len(await ask(grouped, MODEL)) == 3
    monkeypatch.setattr(boxes, "MOST_BOXES", count - 1)
    with pytest.raises(InvalidQuery, match="filter more"):
        await ask(grouped, MODEL)
    monkeypatch.undo()
    monkeypatch.setattr(average_precision, "MOST_PAIRS", 10)
    with pytest.raises(InvalidQuery, match="more than 10 pairs"):
        await ask(grouped, MODEL)


@pytest.mark.parametrize("stored", ["5", "[7]", "[[0,1]]", '[["a",1,2,3,4,5]]', "[[true,1,2,3,4,5]]", "[null]"])
async def test_what_is_no_box(ask: Ask, keep: Keep, stored: str) -> None:
    keep("odd-boxes", MODEL, ["x.png", None, stored, "[]"])
    found = await ask(select(of("height")), MODEL, tenant="odd-boxes")
    assert [row for row in found if row["objects_detected.height"] not in (None, 5.0)] == []
    assert len(found) == (stored != "5")
    if stored == "5":
        assert await ask(select(PRECISION), MODEL, tenant="odd-boxes") == [{"x": None}]
    else:
        with pytest.raises(InvalidQuery, match="no list of boxes"):
            await ask(select(PRECISION), MODEL, tenant="odd-boxes")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (select(call("meanAveragePrecision", threshold=0)), "/select/0/parameters/threshold"),
        (select(call("meanAveragePrecision", threshold=1.5)), "/select/0/parameters/threshold"),
        (select(call("meanAveragePrecision", threshold="0.5")), "/select/0/parameters/threshold"),
        (select(call("meanAveragePrecision", predicted_property="camera")), "/select/0/parameters"),
        (select(of("area")), "/select/0/property"),
        (select(of("width", "drawn")), "/select/0/property"),
        (select(of("width"), COUNT), "/select/0"),
    ],
    ids=["no overlap", "too much", "a word", "no boxes", "no such part", "ground truth", "ungrouped"],
)
async def test_mistakes_are_named(ask: Ask, body: Any, pointer: str) -> None:
    with pytest.raises(InvalidQuery) as caught:
        await ask(body, MODEL)
    assert caught.value.pointer.startswith(pointer)


@pytest.mark.parametrize(
    "more",
    [
        {"order_by": [{"alias": "x"}]},
        {"filter": [{"alias": "x", "comparator": "gt", "value": 0.5}]},
        {"select": [PRECISION, call("abs", property={"alias_ref": "x"})]},
    ],
    ids=["sorted", "filtered", "computed with"],
)
async def test_what_a_precision_is_not_fit_for_is_refused(ask: Ask, more: dict[str, Any]) -> None:
    with pytest.raises(InvalidQuery, match="object"):
        await ask(select(CAMERA, PRECISION, group_by=[CAMERA]) | more, MODEL)


async def test_scores_and_boxes_do_not_multiply_each_other(ask: Ask) -> None:
    score = {"property": "explainer_score"}
    means = [call("avg", each["property"], property=each["property"]) for each in (of("width"), score)]
    for items in ([of("width"), score], [score, of("width")], means, means[::-1]):
        with pytest.raises(InvalidQuery, match="not for both"):
            await ask(select(*items, **{"from": "enriched"}), MODEL)
    assert len(await ask(select(of("width"), **{"from": "enriched"}), MODEL)) == len(exploded())


def table(*boxes: list[float]) -> Boxes:
    """Of [row, class, confidence, left, top, width, height]."""
    numbers = np.array(boxes, np.float64).reshape(-1, 7)
    corners = np.hstack([numbers[:, 3:5], numbers[:, 3:5] + numbers[:, 5:]])
    return Boxes(numbers[:, 0].astype(np.int64), numbers[:, 1], numbers[:, 2], corners)


def test_by_hand() -> None:
    """Two boxes; hit, miss, hit: precision 1 at recall 1/2, 2/3 at recall 1."""
    true = table([0, 0, 1, 0, 0, 10, 10], [1, 0, 1, 0, 0, 10, 10])
    hits = [[0, 0, 0.9, 0, 0, 10, 10], [1, 0, 0.8, 20, 20, 10, 10], [1, 0, 0.7, 1, 0, 10, 10]]
    assert mean_average_precision(table(*hits), true, 0.5) == pytest.approx((1 + 2 / 3) / 2)
    assert mean_average_precision(table(*hits), true, 0.9) == pytest.approx(1 / 2)
    assert mean_average_precision(table(*hits), table(), 0.5) is None
    assert mean_average_precision(table(), true, 0.5) == 0.0


def test_a_box_is_claimed_once() -> None:
    """The second detection of the same box is a miss, though it fits better."""
    true = table([0, 0, 1, 0, 0, 10, 10])
    twice = table([0, 0, 0.9, 1, 0, 10, 10], [0, 0, 0.8, 0, 0, 10, 10])
    assert list(average_precision.matched(twice, true, 0.5)) == [True, False]
    other = table([0, 0, 1, 0, 0, 10, 10], [0, 0, 1, 2, 0, 10, 10])
    assert list(average_precision.matched(twice, other, 0.5)) == [True, True]
