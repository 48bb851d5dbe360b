"""A detector of objects over HTTP: registered, fed and asked; what is no box is refused as it comes in."""

from __future__ import annotations

import io
import json
from typing import Any
from uuid import uuid4

import pandas as pd
import pytest

from app.definitions import Attribute
from app.dialects.arthur.model_routes import MODELS
from app.rows import reader_of
from tests.app.conftest import Running

WHEN = "2026-03-01T08:00:00Z"
CAT, DOG = [0, 0.9, 10, 10, 100, 50], [1, 0.6, 0, 0, 20, 20]
DETECTOR = {
    "input_type": "IMAGE",
    "output_type": "OBJECT_DETECTION",
    "pixel_height": 480,
    "pixel_width": 640,
    "attributes": [
        {"name": "image_attr", "value_type": "IMAGE", "stage": "PIPELINE_INPUT"},
        {
            "name": "objects_detected",
            "value_type": "BOUNDING_BOX",
            "stage": "PREDICTED_VALUE",
            "attribute_link": "label",
        },
        {
            "name": "label",
            "value_type": "BOUNDING_BOX",
            "stage": "GROUND_TRUTH",
            "attribute_link": "objects_detected",
        },
    ],
}


def seen(name: str, boxes: Any, truth: Any = None) -> dict[str, Any]:
    found = {"inference_data": {"image_attr": f"{name}.png", "objects_detected": boxes}}
    known = {} if truth is None else {"ground_truth_timestamp": WHEN, "ground_truth_data": {"label": truth}}
    return {"partner_inference_id": name, "inference_timestamp": WHEN, **found, **known}


@pytest.fixture
async def detector(running: Running) -> str:
    response = await running.client.post(MODELS, json=DETECTOR | {"partner_model_id": f"eyes/{uuid4()}"})
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


async def sent(running: Running, model: str, *records: Any, method: str = "POST") -> list[tuple[int, str]]:
    response = await running.client.request(method, f"{MODELS}/{model}/inferences", json=list(records))
    assert response.status_code == 207, response.text
    return [(each["status"], each["message"]) for each in response.json()["results"]]


async def answer(running: Running, model: str, **body: Any) -> Any:
    response = await running.client.post(f"{MODELS}/{model}/inferences/query", json=body)
    assert response.status_code == 200, response.text
    return response.json()["query_result"]


async def test_boxes_in_and_out(running: Running, detector: str) -> None:
    records = [seen("a", [CAT, DOG], [[0, 1, 10, 10, 100, 50]]), seen("b", [], [[1, 5, 5, 10, 10]]), seen("c", None)]
    assert await sent(running, detector, *records) == [(200, "success")] * 3
    assert await sent(running, detector, *records[:1]) != [(200, "success")]
    select = [{"property": "partner_inference_id"}, {"property": "objects_detected.class_id"}]
    rows = await answer(running, detector, select=[*select, {"property": "objects_detected.width"}])
    named = [{"partner_inference_id": "a", "objects_detected.class_id": box[0]} for box in (CAT, DOG)]
    assert rows == [row | {"objects_detected.width": width} for row, width in zip(named, (100.0, 20.0), strict=True)]
    sure = {"property": "objects_detected.confidence", "comparator": "gt", "value": 0.7}
    assert await answer(running, detector, select=select, filter=[sure]) == named[:1]
    # The cat is found, the dog of the second picture is not: (1 + 0) / 2.
    precision = {"function": "meanAveragePrecision", "parameters": {"threshold": 0.5}}
    assert await answer(running, detector, select=[precision]) == [{"meanAveragePrecision": 0.5}]
    truth = {"partner_inference_id": "c", "ground_truth_timestamp": WHEN, "ground_truth_data": {"label": [DOG]}}
    assert await sent(running, detector, truth, method="PATCH") == [(200, "success")]
    counted = [{"function": "count"}, precision]
    rows = await answer(running, detector, select=counted, **{"from": "ground_truth"})
    assert rows == [{"count": 3, "meanAveragePrecision": 0.5}]
    wrong = {"select": [precision | {"parameters": {"threshold": 2}}]}
    refused = await running.client.post(f"{MODELS}/{detector}/inferences/query", json=wrong)
    assert refused.json()["errors"][0]["pointer"] == "/select/0/parameters/threshold"


async def test_boxes_of_files(running: Running, detector: str) -> None:
    frame = pd.DataFrame({"image_attr": ["x.png", "y.png"], "objects_detected": [[CAT, DOG], []]})
    frame["label"] = [[CAT], []]
    content = io.BytesIO()
    frame.to_parquet(content)
    files = {"reference_data": ("reference.parquet", content.getvalue())}
    response = await running.client.post(f"{MODELS}/{detector}/reference_data", files=files)
    assert (response.status_code, response.json()["counts"]["success"]) == (207, 2), response.text
    select = [{"property": "objects_detected.confidence"}, {"property": "label"}]
    rows = await answer(running, detector, select=select, **{"from": "reference"})
    assert rows == [{"objects_detected.confidence": box[1], "label": [CAT]} for box in (CAT, DOG)]


WRONG: dict[str, Any] = {
    "a flat box": CAT,
    "without a confidence": [[0, 10, 10, 100, 50]],
    "too long": [[*CAT, 1]],
    "empty": [[]],
    "half a class": [[0.5, *CAT[1:]]],
    "a named class": [["cat", *CAT[1:]]],
    "too confident": [[0, 90, *CAT[2:]]],
    "a negative width": [[*CAT[:4], -1, 5]],
    "a negative height": [[*CAT[:4], 5, -1]],
    "a null": [[*CAT[:5], None]],
    "a truth value": [[*CAT[:5], True]],
    "an object": [{"class_id": 0}],
    "a number": 7,
    "a string": json.dumps([CAT]),
}


async def test_what_is_no_box_is_refused_by_name(running: Running, detector: str) -> None:
    results = await sent(running, detector, *(seen(name, boxes) for name, boxes in WRONG.items()))
    for name, (status, message) in zip(WRONG, results, strict=True):
        assert status == 400 and message.startswith("'objects_detected' must be an array of [class_id"), name
    assert await answer(running, detector, select=[{"function": "count"}]) == [{"count": 0}]


async def test_ground_truth_may_do_without_confidence(running: Running, detector: str) -> None:
    truths = WRONG | {"without a confidence": [[0, 10, 10, 100, 50, 1, 1]]}
    results = await sent(running, detector, *(seen(name, [], boxes) for name, boxes in truths.items()))
    assert {status for status, _ in results} == {400}


@pytest.mark.parametrize("size", [1e400, 10**400, -(10**400), float("nan")], ids=["inf", "huge", "small", "nan"])
def test_numbers_that_no_double_holds(size: Any) -> None:
    for stage in ("PREDICTED_VALUE", "GROUND_TRUTH"):
        read = reader_of(Attribute("found", "BOUNDING_BOX", stage, 0))  # type: ignore[arg-type]
        assert read([CAT]) == json.dumps([CAT], separators=(",", ":"))
        with pytest.raises((ValueError, OverflowError)):
            read([[*CAT[:4], size, 1]])
