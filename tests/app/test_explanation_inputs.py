"""Hostile and unlucky input to explanations: told in words, at once, and to that row or request alone."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import pandas as pd
import pytest
import xgboost
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from app.dialects.arthur.model_routes import MODELS
from app.refusals import Refusal
from app.registry import definition_in
from explainers.errors import UnreadableModel
from explainers.predictors.formats import load_artifact
from storage import inferences, scores
from storage.scores import Scores, TokenScores
from tests.app import predictors
from tests.app.conftest import Running
from tests.app.model_cases import SAMPLES, Case, case
from tests.app.test_explainability import asked, created, enabled, explained, registered, sent, settled
from tests.app.test_explanation_cases import SELECT, expected, of_algorithm, served


@pytest.fixture(scope="module")
def artifact(models_dir: Path) -> Path:
    return predictors.boosted(models_dir, "inputs")


@pytest.fixture(scope="module")
async def id(running: Running, artifact: Path) -> str:
    """A model that all share."""
    return (await explained(running, artifact, count=1, explanation_nsamples=60))[1]


HUGE = "9" * 400
BODIES = {
    "nul": '{"model_pipeline_input": [], "compare_to": "a\\u0000b"}',
    "half": '{"model_pipeline_input": [], "compare_to": "\\ud800"}',
    "long": json.dumps({"model_pipeline_input": [], "compare_to": "a" * 100_000}),
    "huge": f'{{"model_pipeline_input": [{{"attribute_name": "income", "attribute_value": {HUGE}}}]}}',
    "nan": '{"model_pipeline_input": [{"attribute_name": "income", "attribute_value": NaN}]}',
    "list": '{"model_pipeline_input": [{"attribute_name": "income", "attribute_value": [[[]]]}]}',
    "text": '{"model_pipeline_input": [{"attribute_name": "income", "attribute_value": "secret"}]}',
    "name": '{"model_pipeline_input": [{"attribute_name": "\\u0000", "attribute_value": 1}]}',
    "algorithm": '{"model_pipeline_input": [], "algorithm": {"a": 1}}',
    "yes": '{"model_pipeline_input": [], "dry_run": "yes"}',
    "deep": '{"model_pipeline_input": ' + "[" * 5_000 + "]" * 5_000 + "}",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_a_hostile_what_if(running: Running, id: str, body: str) -> None:
    started = time.process_time()  # of all threads, but for what other processes take away
    json_type = {"Content-Type": "application/json"}
    answer = await running.client.post(f"{MODELS}/{id}/what_if", content=body, headers=json_type)
    assert answer.status_code in (400, 404), answer.text
    assert time.process_time() - started < 1 and "secret" not in answer.text


PARAMETERS = {
    "samples": {"n_samples": HUGE},
    "few": {"n_samples": "-1"},
    "float": {"n_samples": "1.5"},
    "page": {"page": "0"},
    "pages": {"page_size": "100000000"},
    "sort": {"sort": "+" * 5_000},
    "empty sort": {"sort": ""},
    "algorithm": {"algorithm": "\x00"},
}


@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)
async def test_hostile_parameters(running: Running, id: str, parameters: dict[str, str]) -> None:
    path = f"{MODELS}/{id}/inferences/u-0/explanation"
    assert (await running.client.get(path, params=parameters)).status_code == 400


@pytest.mark.parametrize("inference", ["%00", "a%00b", "%ED%A0%80", "x" * 5000, "%27%3B--"])
async def test_hostile_inferences(running: Running, id: str, inference: str) -> None:
    answer = await running.client.get(f"{MODELS}/{id}/inferences/{inference}/explanation")
    assert answer.status_code in (400, 404), answer.text


CONFIGS = {
    "half": '{"enabled": true, "config": {"sdk_version": "\\ud800"}}',
    "deep": '{"enabled": true, "config": {"a": ' + "[" * 900 + "]" * 900 + "}}",
    "large": json.dumps({"enabled": True, "config": {"a": "x" * 2_000_000}}),
    "many": json.dumps({"enabled": True, "config": {f"a{place}": place for place in range(10_000)}}),
    "algorithm": '{"enabled": true, "config": {"explanation_algo": ["lime"]}}',
    "share": f'{{"enabled": true, "config": {{"inference_consumer_score_percent": {HUGE}}}}}',
}


@pytest.mark.parametrize("body", CONFIGS.values(), ids=CONFIGS)
async def test_a_hostile_configuration(running: Running, id: str, body: str) -> None:
    path, json_type = f"{MODELS}/{id}/enrichments/explainability", {"Content-Type": "application/json"}
    answer = await running.client.patch(path, content=body, headers=json_type)
    assert answer.status_code == 400, answer.text
    assert (await running.client.get(path)).json()["status"] == "Ready"


async def test_what_does_not_act_is_kept_as_it_was_given(running: Running, id: str) -> None:
    path, config = f"{MODELS}/{id}/enrichments/explainability", {"python_version": "a\x00b", "a\x00": 10**30}
    assert (await running.client.patch(path, json={"config": config})).status_code == 202
    assert (await running.client.get(path)).json()["config"].items() >= config.items()


def strict(folder: Path) -> Case:
    """An encoder that refuses categories it has not seen."""
    found = case("onnx_named", folder)
    rows = [dict(zip(found.names, row, strict=True)) for row in found.reference]
    frame = pd.DataFrame(rows).astype({"colour": object})
    words = ColumnTransformer([("words", OneHotEncoder(), ["colour"])], remainder="passthrough")
    model = make_pipeline(words, LogisticRegression()).fit(frame, [place % 2 for place in range(len(frame))])
    single = {"age": FloatTensorType([None, 1]), "income": FloatTensorType([None, 1])}
    declared = [*single.items(), ("colour", StringTensorType([None, 1]))]
    onnx = convert_sklearn(model, initial_types=declared, options={"zipmap": False}, target_opset=17)
    (path := folder / "strict.onnx").write_bytes(onnx.SerializeToString())
    return replace(found, path=path)


async def test_a_row_that_the_model_refuses_stops_no_other(
    running: Running, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = await asyncio.to_thread(strict, tmp_path_factory.mktemp("strict"))
    name, id = await served(running, found)
    (record, *_) = found.records()
    record |= {"partner_inference_id": "odd"}
    record["inference_data"] |= {"colour": "ultraviolet"}
    await sent(running, id, [record])
    for algorithm in ("lime", "shap"):
        await enabled(running, id, explanation_algo=algorithm, explanation_nsamples=60)
        await settled(running, name)
        kept = await asked(running, id, select=SELECT, filter=of_algorithm(algorithm))
        assert {row["partner_inference_id"] for row in kept if row["explainer_score"] is None} == {"odd"}
        assert len(kept) == 13 * 6
        refused = await running.client.get(f"{MODELS}/{id}/inferences/odd/explanation", params={"algorithm": algorithm})
        assert refused.status_code == 400 and "ultraviolet" not in refused.text, refused.text


async def test_categories_that_were_declared_wrong(running: Running, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A booster that keeps no names numbers its categories: once their order is put right, so are all scores."""
    found = await asyncio.to_thread(numbered, tmp_path_factory.mktemp("numbered"))
    name, id = await served(running, found)
    body = {"attributes": [each for each in found.definition(name)["attributes"] if each["name"] == "colour"]}
    (colour,) = body["attributes"]
    right = colour["categories"]
    colour["categories"] = right[::-1]
    assert (await running.client.put(f"{MODELS}/{id}", json=body)).status_code == 200
    await enabled(running, id, explanation_algo="shap", explanation_nsamples=SAMPLES)
    await settled(running, name)
    assert any(row["explainer_score"] is None for row in await asked(running, id))
    colour["categories"] = right
    assert (await running.client.put(f"{MODELS}/{id}", json=body)).status_code == 200
    await settled(running, name)
    kept = await asked(running, id, select=SELECT)
    stored = {tuple(row[each["property"]] for each in SELECT[:3]): row["explainer_score"] for row in kept}
    assert stored == pytest.approx(expected(found, "shap"), abs=1e-12)


def numbered(folder: Path) -> Case:
    found = case("xgboost_categories", folder)
    random = np.random.default_rng(2)
    cells = np.stack([random.normal(size=200), random.normal(size=200), random.integers(0, 3, 200)], axis=1)
    matrix = xgboost.DMatrix(
        cells, (cells[:, 0] + 3 * (cells[:, 2] == 0) - (cells[:, 2] == 2) > 0.5), feature_types=["q", "q", "c"],
        feature_names=list(found.names), enable_categorical=True,
    )  # fmt: skip
    settings = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1, "max_cat_to_onehot": 1}
    xgboost.train(settings, matrix, 12).save_model(path := folder / "numbered.json")
    return replace(found, path=path)


async def test_categories_that_nobody_declared(running: Running, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = await asyncio.to_thread(numbered, tmp_path_factory.mktemp("numbered"))
    name = f"inputs-{uuid4()}"
    body = found.definition(name)
    for attribute in body["attributes"]:
        attribute.pop("categories", None)
    await created(running, body)
    files = {"file": ("m.json", await asyncio.to_thread(found.path.read_bytes))}
    refused = await running.client.post("/models", data={"name": name, "kind": "tabular"}, files=files)
    assert refused.status_code == 400 and "declare its categories" in refused.json()["message"], refused.text


async def test_a_text_that_two_explain_at_once(running: Running, models_dir: Path) -> None:
    """Whoever stores tokens second replaces those that the first one stored meanwhile."""
    folder = await asyncio.to_thread(predictors.text_classifier, models_dir / "twice")
    name = f"inputs-{uuid4()}"
    await registered(running, folder, name, "text-classifier")
    id = await created(running, predictors.text_definition(name))
    data = {"note": "Anna lives", "routine": 0.5, "urgent": 0.5}
    record = {"partner_inference_id": "n-1", "inference_timestamp": predictors.WHEN, "inference_data": data}
    await sent(running, id, [record])
    database = running.server.explainer.database
    async with database.transaction(tenant="default") as session:
        (row,) = await inferences.read(session, UUID(id))
    stored = asyncio.Event()

    async def keep(score: float, *, first: bool) -> None:
        seqs, values = np.array([row.seq]), np.array([[score], [-score]])
        async with database.transaction(tenant="default") as session:
            if first:
                await scores.add(session, UUID(id), "lime", Scores(1, seqs, np.zeros((1, 0)), [{}]))
                stored.set()
                await asyncio.sleep(0.5)  # the other one waits for this row
                tokens = TokenScores(1, seqs, "note", [["Anna"]], [[0]], [values], [{}])
            else:
                await stored.wait()
                await scores.add(session, UUID(id), "lime", Scores(1, seqs, np.zeros((1, 0)), [{}]))
                tokens = TokenScores(1, seqs, "note", [["lives"]], [[1]], [values], [{}])
            await scores.add_tokens(session, UUID(id), "lime", tokens)

    await asyncio.gather(keep(0.1, first=True), keep(0.2, first=False))
    async with database.transaction(tenant="default") as session:
        (tokens,) = await scores.find_tokens(session, UUID(id), "lime", row.seq)
    assert (list(tokens.tokens), list(tokens.scores)) == (["lives"], [0.2, -0.2])


SCHEMAS = {
    "missing": (None, "there is no file"),
    "broken": ("{", "Invalid JSON"),
    "empty": ("{}", "Field required"),
    "type": (json.dumps(predictors.definition("a")).replace("FLOAT", "FLOT", 1), "/attributes/0/value_type"),
}


@pytest.mark.parametrize(("content", "words"), SCHEMAS.values(), ids=SCHEMAS)
def test_a_schema_that_is_none(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "schema.json").write_text(content)
    with pytest.raises(Refusal) as raised:
        definition_in(tmp_path / "schema.json")
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_is_no_model_of_tables(tmp_path: Path) -> None:
    with pytest.raises(UnreadableModel, match="is a folder"):
        load_artifact(tmp_path)
