"""Scores are to be had as pictures: of one row, of a row that never was, and of the rows of a query."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4
from xml.etree.ElementTree import fromstring

import httpx
import numpy as np
import pytest

from app.dialects.arthur.model_routes import MODELS
from app.media_types import SVG
from app.pictures import NO_PICTURE, query_plot
from app.runtime import Weights
from explainers.errors import InvalidRequest
from tests.app import predictors
from tests.app.conftest import ADMIN_KEY, Running
from tests.app.predictors import INPUTS, definition, records, rows
from tests.app.test_explainability import created, enabled, referenced, registered, sent, settled
from tests.app.test_explorer_pages import browsing

PICTURE = {"Accept": SVG}
LEAVES = [
    {"property": "explainer_predicted_attribute", "comparator": "eq", "value": "leaves"},
    {"property": "explainer_algo", "comparator": "eq", "value": "shap"},
]
ONE = {"property": "partner_inference_id", "comparator": "eq", "value": "u-0"}
SCORES = [{"property": "explainer_attribute"}, {"property": "explainer_score"}]
MEAN = {"function": "avgAbs", "alias": "size", "parameters": {"property": "explainer_score"}}
DAY = {
    "function": "roundTimestamp", "alias": "day",
    "parameters": {"property": "inference_timestamp", "time_interval": "day"},
}  # fmt: skip
REGION = {"function": "regionalFeatureImportances", "parameters": {"predicted_attribute_name": "leaves"}}
TOKENS = {"function": "nlp_explanation", "parameters": {"nlp_predicted_attribute": "urgent"}}


@pytest.fixture(scope="module")
async def table(running: Running, models_dir: Path) -> str:
    """Twelve explained inferences over three days."""
    name, artifact = f"drawn-{uuid4()}", predictors.boosted(models_dir, "drawn")
    await registered(running, artifact, name)
    id = await created(running, definition(name))
    await referenced(running, id, rows(60, seed=1))
    given = records(artifact, rows(12))
    for place, record in enumerate(given):
        day = datetime(2026, 3, 1, 8, tzinfo=UTC) + timedelta(days=place % 3)
        record["inference_timestamp"] = day.isoformat()
    await sent(running, id, given)
    await enabled(running, id, explanation_algo="shap")
    await settled(running, name)
    return id


def drawn(response: httpx.Response) -> str:
    """The picture, which is well formed."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith(SVG) and response.headers["vary"] == "Accept"
    assert response.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    fromstring(response.content)  # noqa: S314 - our own
    return response.text


async def queried(running: Running, id: str, **body: Any) -> httpx.Response:
    return await running.client.post(f"{MODELS}/{id}/inferences/query", json=body, headers=PICTURE)


@pytest.mark.anyio
async def test_an_inference_as_a_waterfall(running: Running, table: str) -> None:
    path, asked = f"{MODELS}/{table}/inferences/u-0/explanation", {"algorithm": "shap"}
    answer = (await running.client.get(path, params=asked)).json()
    picture = drawn(await running.client.get(path, params=asked, headers=PICTURE))
    for score in answer["explanation"][0]["importance_scores"]:
        assert f"{score['attribute_name']} = {rows(12)[0][INPUTS.index(score['attribute_name'])]:.4g}: " in picture
        assert f"{score['value']:+.3g}" in picture
    other = drawn(
        await running.client.get(path, params=asked | {"predicted_attribute_name": "leaves"}, headers=PICTURE)
    )
    assert "leaves of u-0, shap" in other and other != picture
    bars = drawn(await running.client.get(path, params=asked | {"plot": "bars"}, headers=PICTURE))
    assert "score for output stays" in bars
    lines = drawn(await running.client.get(path, params={"algorithm": "lime"}, headers=PICTURE))
    assert "± " in lines and "score for output stays" in lines  # its scores add up to nothing


@pytest.mark.anyio
@pytest.mark.parametrize(
    "wrong",
    [
        {"plot": "pie"},
        {"plot": "tokens"},
        {"plot": "waterfall", "algorithm": "lime"},
        {"predicted_attribute_name": "x"},
    ],
    ids=["unknown", "tokens of numbers", "lime adds up to nothing", "unknown output"],
)
async def test_a_wrong_picture_is_refused(running: Running, table: str, wrong: dict[str, str]) -> None:
    path = f"{MODELS}/{table}/inferences/u-0/explanation"
    refused = await running.client.get(path, params={"algorithm": "shap"} | wrong, headers=PICTURE)
    assert refused.status_code == 400 and "must be one of" in refused.json()["detail"]


@pytest.mark.anyio
async def test_a_row_that_never_was(running: Running, table: str) -> None:
    given = dict(zip(INPUTS, (0.5, -0.25, 0.125), strict=True))
    body = {"model_pipeline_input": [{"attribute_name": k, "attribute_value": v} for k, v in given.items()]}
    path, asked = f"{MODELS}/{table}/what_if", {"predicted_attribute_name": "leaves"}
    answer = (await running.client.post(path, json=body)).json()
    picture = drawn(await running.client.post(path, json=body, params=asked, headers=PICTURE))
    assert "leaves of this row, shap" in picture and "tenure = -0.25" in picture
    assert f"output: {answer['predicted_values'][1]['attribute_value']:.6g}" in picture


@pytest.mark.anyio
async def test_many_scores(running: Running, table: str) -> None:
    select = [*SCORES, *({"property": name} for name in INPUTS)]
    swarm = drawn(await queried(running, table, select=select, **{"from": "enriched"}, filter=LEAVES))
    assert "Scores for leaves, shap" in swarm and "12 rows." in swarm
    assert sum(d.count("h0") for d in re.findall(r'd="([^"]*)" class="dots v\d"', swarm)) == 12 * 3 + 5
    bars = drawn(await queried(running, table, select=SCORES, **{"from": "enriched"}, filter=[*LEAVES, ONE]))
    assert "Strongest first" in bars
    region = drawn(await queried(running, table, select=[REGION]))
    assert "Mean size of scores for leaves" in region
    grouped = {"select": [SCORES[0], MEAN], "from": "enriched", "group_by": [SCORES[0]], "filter": LEAVES}
    means = drawn(await queried(running, table, **grouped))
    heights = [re.findall(r"<title>(\w+): ([\d.e-]+)</title>", picture) for picture in (region, means)]
    assert sorted(heights[0]) == sorted(heights[1]) and len(heights[0]) == 3


@pytest.mark.anyio
async def test_importance_over_time(running: Running, table: str) -> None:
    body: dict[str, Any] = {"select": [DAY, SCORES[0], MEAN], "from": "enriched", "filter": LEAVES}
    body |= {"group_by": [{"alias": "day"}, SCORES[0]], "order_by": [{"alias": "day", "direction": "asc"}]}
    picture = drawn(await queried(running, table, **body))
    answer = (await running.client.post(f"{MODELS}/{table}/inferences/query", json=body)).json()["query_result"]
    assert len(answer) == 9
    for row in answer:
        assert f"{row['explainer_attribute']}, {row['day'][:10]}: {row['size']:.4g}" in picture


def named_rows(*means: float, **more: Any) -> list[dict[str, Any]]:
    return [{"explainer_attribute": name, "mean": mean, **more} for name, mean in zip(INPUTS, means, strict=True)]


def test_means_of_scores_keep_their_signs() -> None:
    """Unlike their sizes: a mean may be below zero, on its own and over time."""
    mean = MEAN | {"function": "avg", "alias": "mean"}
    body: dict[str, Any] = {"select": [SCORES[0], mean], "filter": LEAVES}
    plot = query_plot(body, named_rows(0.25, -0.5, 0.125))
    assert plot.title == "Mean score for leaves, shap" and "|score|" not in plot.body and "mean score" in plot.body
    assert [row[1] for row in plot.rows] == ["-0.5", "+0.25", "+0.125"]
    bars = {kind: float(width) for width, kind in re.findall(r'width="([\d.]+)" height="18" class="(\w+)"', plot.body)}
    assert bars["down"] == pytest.approx(4 * bars["up"], abs=0.5)  # the last one that is up is a quarter
    days = [{"day": f"2026-03-0{day}T00:00:00Z"} for day in (1, 2)]
    rows = [row for day in days for row in named_rows(0.25, -0.5, 0.125, **day)]
    lines = query_plot(body | {"select": [DAY, SCORES[0], mean]}, rows)
    assert lines.title == "Mean score over time for leaves, shap" and "|score|" not in lines.body
    listed = [f"{INPUTS[place]} {mean} on average" for place, mean in ((1, -0.5), (0, 0.25), (2, 0.125))]
    assert "; ".join(listed) in lines.description  # what matters most comes first
    sizes = query_plot(body | {"select": [SCORES[0], MEAN | {"alias": "mean"}]}, named_rows(0.25, 0.5, 0.125))
    assert sizes.title == "Mean size of scores for leaves, shap" and "mean |score|" in sizes.body


@pytest.mark.anyio
async def test_what_is_no_picture(running: Running, table: str) -> None:
    count = {"function": "count"}
    for body, words in (
        ({"select": [count]}, NO_PICTURE),
        ({"select": SCORES, "from": "enriched", "filter": [ONE]}, "filter by one explainer_predicted_attribute"),
        ({"select": SCORES, "from": "enriched", "filter": LEAVES[:1]}, "filter by one explainer_algo"),
        ({"select": SCORES, "from": "enriched", "filter": [*LEAVES, ONE | {"value": "nobody"}]}, "no rows"),
        ({"select": [REGION], "filter": [ONE | {"value": "nobody"}]}, "no score"),
    ):
        refused = await queried(running, table, **body)
        assert refused.status_code == 400 and words in refused.json()["detail"], refused.text


@pytest.mark.anyio
async def test_a_text_as_a_heat_map(running: Running, models_dir: Path) -> None:
    name, folder = f"notes-{uuid4()}", predictors.text_classifier(models_dir / "drawn-notes")
    await registered(running, folder, name, "text-classifier")
    id = await created(running, predictors.text_definition(name))
    model = await running.server.explainer.runtime.read(Weights("text-classifier", str(folder), device="cpu"))
    (output,) = model.predict_texts(["Anna <b>lives</b> in Oslo"]).tolist()  # type: ignore[union-attr]
    given = {"note": "Anna <b>lives</b> in Oslo", "routine": output[0], "urgent": output[1]}
    record = {"partner_inference_id": "n/0", "inference_timestamp": predictors.WHEN, "inference_data": given}
    await sent(running, id, [record])
    await enabled(running, id, explanation_algo="lime", explanation_nsamples=100)
    await settled(running, name)
    picture = drawn(await queried(running, id, select=[TOKENS]))
    asked = {"algorithm": "lime", "predicted_attribute_name": "urgent"}
    same = drawn(await running.client.get(f"{MODELS}/{id}/inferences/n/0/explanation", params=asked, headers=PICTURE))
    tips = [re.findall(r"<title>(\w+, position \d: [^<]+)</title>", each) for each in (picture, same)]
    assert tips[0] == tips[1] and len(set(tips[0])) == 6  # Anna, b, lives, b, in, Oslo
    both = await queried(running, id, select=[{"function": "nlp_explanation"}])
    assert both.status_code == 400 and "nlp_predicted_attribute" in both.json()["detail"]
    words = {"select": [{"property": "explainer_token"}, MEAN], "from": "enriched"}
    words |= {"group_by": [{"property": "explainer_token"}]}
    of_urgent = [LEAVES[0] | {"value": "urgent"}, LEAVES[1] | {"value": "lime"}]
    assert "Oslo" in drawn(await queried(running, id, **words, filter=of_urgent))


@pytest.mark.anyio
async def test_a_key_that_may_only_read_computes_nothing(running: Running, table: str) -> None:
    """In the pages it sees what is stored, and is offered no more."""
    reader, both = await running.key("read"), await running.key("read", "explain")
    asked, path = {"model": table, "inference": "u-1"}, "/explorer/predictions"
    for key, computes in ((reader, False), (both, True)):
        whole = await running.client.get(f"{path}/one", params=asked, headers=key)
        assert whole.status_code == 200 and ("what-if" in whole.text) is computes is ("/explained" in whole.text)
        assert "Explanations are" not in whole.text
        stored = await running.client.get(f"{path}/scores", params=asked, headers=key)
        assert "Scores for leaves, shap" in stored.text
        missing = await running.client.get(f"{path}/scores", params=asked | {"algorithm": "tree_shap"}, headers=key)
        assert "nothing to draw" in missing.text and ("/explained" in missing.text) is computes
    computed = await running.client.post(f"{path}/explained", data=asked, headers=reader)
    tried = await running.client.post(f"{path}/what-if", data=asked, headers=reader)
    assert (computed.status_code, tried.status_code) == (403, 403)


@pytest.mark.anyio
async def test_scores_are_computed_for_a_form_of_the_page_alone(running: Running, table: str) -> None:
    """They are stored and take the model's time, so that an address alone must not have them computed."""
    asked, path = {"model": table, "inference": "u-2", "algorithm": "lime"}, "/explorer/predictions"
    async with browsing(running, ADMIN_KEY) as browser:
        form = asked | {"csrf": await browser.csrf()}
        for data, headers in (
            (asked, {}),
            (asked | {"csrf": "wrong"}, {}),
            (form, {"Sec-Fetch-Site": "same-site"}),
            (form, {"Sec-Fetch-Site": "cross-site"}),
            (form, {"Origin": "http://evil"}),
        ):
            assert (await browser.post(f"{path}/explained", data=data, headers=headers)).status_code == 403, headers
        assert (await browser.get(f"{path}/explained", params=asked)).status_code == 405
        missing = (await browser.get(f"{path}/scores", params=asked)).text
        assert "nothing to draw" in missing
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', missing[missing.index("/explained") :]))
        assert fields == form | {"output": "leaves"}
        done = await browser.post(f"{path}/explained", data=fields, headers={"Sec-Fetch-Site": "same-origin"})
        assert done.status_code == 200 and "leaves of u-2, lime" in done.text
        assert "nothing to draw" not in (await browser.get(f"{path}/scores", params=asked)).text


@pytest.mark.anyio
async def test_a_model_that_is_not_explained_offers_no_computing(running: Running) -> None:
    id = await created(running, definition(f"plain-{uuid4()}"))
    values = dict.fromkeys(INPUTS, 0.5) | {"stays": 0.5, "leaves": 0.5}
    record = {"partner_inference_id": "p", "inference_timestamp": predictors.WHEN, "inference_data": values}
    await sent(running, id, [record])
    path, asked = "/explorer/predictions", {"model": id, "inference": "p"}
    for place in ("one", "scores"):
        page = await running.client.get(f"{path}/{place}", params=asked)
        assert page.status_code == 200 and "/explained" not in page.text and "what-if" not in page.text, place
        assert ("Explanations are disabled for this model" in page.text) is (place == "one")


@pytest.mark.anyio
async def test_looking_counts_as_a_request_of_the_key(running: Running, table: str) -> None:
    key = await running.key("read", requests_per_minute=2)
    asked = [await running.client.get("/explorer/predictions", params={"model": table}, headers=key) for _ in range(3)]
    assert [answer.status_code for answer in asked] == [200, 200, 429]


def many_rows() -> Iterator[dict[str, Any]]:
    for place, score in enumerate(np.linspace(-1, 1, 200_001).tolist()):
        yield {"explainer_attribute": "x", "explainer_score": score, "x": place}


def test_too_many_rows_are_refused() -> None:
    found = list(many_rows())
    with pytest.raises(InvalidRequest, match="at most 200000 are drawn"):
        query_plot({"select": SCORES, "filter": LEAVES}, found)
    assert "One in 10 of 200000 rows" in query_plot({"select": SCORES, "filter": LEAVES}, found[1:]).description
