"""The real `arthurai`, unmodified, on its user's journey through explanations: of rows, of texts, and of no predictor.

The client runs twice against one server, and between the two runs the predictors are registered beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import numpy as np
import pandas as pd
import pytest
import xgboost
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.app import predictors
from tests.clients.conftest import SECRET
from tests.clients.server import Server, objects, running, whence
from tests.postgres import reachable_folder

SCRIPT = "drive_arthur_explanations.py"
MODELS = "/api/v3/models"
COUNT, SENT = 60, 12
INPUTS, REGIONS = ("income", "tenure", "region"), ("west", "north", "south", "east")
OUTPUTS, LABELS = ("stays", "leaves"), ("routine", "urgent")
ACCEPTED = {"success": SENT, "failure": 0, "total": SENT}
OFF = {"enabled": False, "status": "Disabled", "config": {}}
WORDS = ("Anna", "lives in", "Oslo", "Ben", "the key", "red box", "Norway", "Rome")

Found: TypeAlias = dict[str, Any]


def boosted(folder: Path) -> Path:
    """Trees over a real number, a whole one of few values, and a category, which the file keeps sorted."""
    frame = frame_of(rows(300))
    noise = np.random.default_rng(0).normal(size=len(frame)) / 4
    labels = (frame.income * (frame.tenure - 1.5) + (frame.region == "north") + noise > 0.3).astype(int)
    model = xgboost.XGBClassifier(n_estimators=20, max_depth=3, enable_categorical=True, random_state=0, n_jobs=1)
    path = folder / "churn.json"
    model.fit(frame, labels).save_model(path)
    return path


def rows(count: int = COUNT) -> list[list[Any]]:
    incomes = predictors.rows(count, seed=3)[:, 0].tolist()
    return [[income, place % 5, REGIONS[place % 11 % 4]] for place, income in enumerate(incomes)]


def frame_of(given: list[list[Any]]) -> pd.DataFrame:
    return pd.DataFrame(given, columns=INPUTS).astype({"region": pd.CategoricalDtype(sorted(REGIONS))})


def of_rows(name: str, artifact: Path, outputs: Sequence[str] = OUTPUTS) -> Found:
    """A model of rows; it may declare the probability of one class alone."""
    model = xgboost.XGBClassifier(enable_categorical=True)
    model.load_model(artifact)
    predictions = model.predict_proba(frame_of(rows())).astype(float)[:, -len(outputs) :].tolist()
    types = {"income": "float", "tenure": "int", "region": "str"}
    about = {"name": name, "project": f"{name}_project", "inputs": INPUTS, "types": types}
    return about | {"outputs": outputs, "rows": rows(), "predictions": predictions}


def of_texts(name: str, folder: Path) -> Found:
    texts = [f"{WORDS[place % 8]}, {WORDS[place // 8]} {WORDS[place * 3 % 8]}." for place in range(COUNT)]
    about: Found = {"name": name, "project": f"{name}_project", "inputs": ["note"], "types": {}}
    predictions = texts_predicted(folder, texts)
    return about | {"outputs": LABELS, "rows": [[text] for text in texts], "predictions": predictions}


def texts_predicted(folder: Path, texts: list[str]) -> list[list[float]]:
    """By the classifier itself, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
    return [each.double().softmax(dim=0).tolist() for each in logits]


def told_to_client(folder: Path) -> Found:
    """Two models of rows with the same trees, and one of texts."""
    artifact, texts = boosted(folder), predictors.text_classifier(folder / "notes")
    return {
        "tabular": of_rows("churn", artifact),
        "without": of_rows("late", artifact, OUTPUTS[1:]),
        "text": of_texts("notes", texts),
    }


def our_answers(server: Server, id: str) -> Found:
    """To what the client asked about one inference, over plain HTTP."""
    headers = {"Authorization": f"Bearer {SECRET}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as client:
        path = f"{MODELS}/{id}/inferences/late/3/explanation"
        known = {name: client.get(path, params={"algorithm": name}).json() for name in ("lime", "shap")}
        condition = {"property": "partner_inference_id", "comparator": "eq", "value": "late/3"}
        select = [{"property": f"explainer_{name}"} for name in ("algo", "predicted_attribute", "attribute", "score")]
        body = {"model_id": "churn", "select": select, "from": "enriched", "filter": [condition]}
        return known | {"query": client.post("/query", json=body).json()["query_result"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("predictors")


@pytest.fixture(scope="module")
def told(folder: Path) -> Found:
    return told_to_client(folder)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[Server, Path]]:
    with (
        reachable_folder() as data_dir,
        running(data_dir, WHENCE_API_KEY=SECRET, WHENCE_MODELS_DIR=str(folder)) as server,
    ):
        yield server, data_dir


@pytest.fixture(scope="module")
def found(server: tuple[Server, Path], arthur: Callable[..., Any], folder: Path, told: Found) -> Found:
    """What both runs of the client found, and our own answers afterwards."""
    file = folder / "told.json"
    file.write_text(json.dumps(told), encoding="utf-8")
    started, data_dir = server
    begun: Found = arthur(SCRIPT, "begin", started.url, SECRET, str(file))
    with ThreadPoolExecutor() as threads:
        list(threads.map(lambda name: add_beside(data_dir, name, folder / "churn.json"), ("churn", "late")))
    add_texts(started)
    found: Found = begun | arthur(SCRIPT, "end", started.url, SECRET, str(file))
    return found | {"ours": our_answers(started, found["tabular"]["id"])}


def add_beside(data_dir: Path, name: str, path: Path) -> None:
    """Registers a predictor while the server runs."""
    added = whence(data_dir, "models", "add", name, str(path), "--kind", "tabular", "--json")
    assert objects(added)[0]["name"] == name


def add_texts(server: Server) -> None:
    """Registers the classifier of texts by a request."""
    new = {"name": "notes", "kind": "text-classifier", "path": "notes"}
    added = httpx.post(f"{server.url}/models", json=new, headers={"Authorization": SECRET}, timeout=60)
    assert added.status_code == 201, added.text


def cells(explanation: Found) -> dict[tuple[str, str], float]:
    """The scores of an answer by output and input."""
    return {
        (entry["predicted_attribute_name"], score["attribute_name"]): score["explanation_value"]
        for entry in explanation["explanation"]
        for score in entry["importance_scores"]
    }


def cells_of_rows(given: Sequence[Found]) -> dict[tuple[str, str], float]:
    """The same of the rows of a query."""
    return {(row["explainer_predicted_attribute"], row["explainer_attribute"]): row["explainer_score"] for row in given}


def tokens(entry: Found) -> list[tuple[str, int, float]]:
    """Of an entry about a text."""
    (scores,) = entry["importance_scores"]
    assert scores["attribute_name"] == "note"
    assert all(token["value"] == token["explanation_value"] for token in scores["tokens"])
    return [(token["token"], token["position"], token["value"]) for token in scores["tokens"]]


def expected(explanation: Found) -> dict[str, float]:
    return {each["predicted_attribute_name"]: each["expected_value"] for each in explanation["expected_value"]}


def test_data_is_sent(found: Found) -> None:
    tabular = found["tabular"]
    counts = [tabular[part] for part in ("sent", "waited", "file", "truths")]
    assert [*counts, found["text"]["sent"], found["without"]["sent"]] == [ACCEPTED] * 6


def test_the_client_has_categories_in_an_order_of_its_own(found: Found) -> None:
    categories = found["tabular"]["categories"]
    assert categories != sorted(REGIONS) == sorted(categories)
    scores = [row["explainer_score"] for row in found["tabular"]["shap"] if row["explainer_attribute"] == "region"]
    assert max(scores) > 0.01


def test_enabling(found: Found) -> None:
    tabular = found["tabular"]
    before = tabular["before"]
    assert before.pop("explainability")["status"] == "Disabled"
    assert before == dict.fromkeys(("anomaly_detection", "hotspots", "bias_mitigation"), OFF)
    assert "not enabled" in tabular["too early"] and tabular["enabled"] == tabular["changed"] == "ok"
    status, config = tabular["status"], tabular["status"]["config"]
    assert (status["enabled"], status["status"]) == (True, "Ready")
    assert (config["explanation_algo"], config["explanation_nsamples"], config["seed"]) == ("lime", 300, 7)
    assert (config["python_version"], config["user_predict_function_import_path"]) == ("3.8", "churn_project")
    assert (config["background"]["source"], config["background"]["rows"]) == ("reference", COUNT)
    assert set(config["files"]) == {"user_project.zip", "user_requirements_file.txt", "explainer.pkl"}


@pytest.mark.parametrize("algorithm", ["lime", "shap"])
def test_on_demand_and_by_query(found: Found, algorithm: str) -> None:
    asked, ours = found["tabular"]["asked"][algorithm], found["ours"]
    assert asked["on demand"] == ours[algorithm]
    scores = cells_of_rows(asked["query"])
    assert len(scores) == 6 and cells(asked["on demand"]) == scores
    assert {row["explainer_algo"] for row in asked["query"]} == {algorithm}
    assert scores == cells_of_rows([row for row in ours["query"] if row["explainer_algo"] == algorithm])
    assert all(scores["stays", name] == -scores["leaves", name] for name in INPUTS)


@pytest.mark.parametrize("algorithm", ["lime", "shap"])
def test_regions(found: Found, algorithm: str) -> None:
    everything = found["tabular"][algorithm]
    assert len(everything) == 3 * SENT * 6
    means = {
        name: np.mean([
            abs(row["explainer_score"])
            for row in everything
            if (row["explainer_attribute"], row["explainer_predicted_attribute"]) == (name, "leaves")
        ])
        for name in INPUTS
    }  # fmt: skip
    region = found["tabular"]["asked"][algorithm]["region"]
    values = {row["explainer_attribute"]: row["regionalFeatureImportance"] for row in region}
    assert values == pytest.approx(means) and list(values.values()) == sorted(values.values(), reverse=True)


def test_shap_adds_up(found: Found, told: Found) -> None:
    explanation = found["tabular"]["asked"]["shap"]["on demand"]
    scores, base = cells(explanation), expected(explanation)
    prediction = dict(zip(OUTPUTS, told["tabular"]["predictions"][SENT + 3], strict=True))
    for output in OUTPUTS:
        total = sum(scores[output, name] for name in INPUTS) + base[output]
        assert total == pytest.approx(prediction[output], abs=1e-6)
    assert found["tabular"]["asked"]["lime"]["on demand"]["expected_value"] == []


def test_listing(found: Found) -> None:
    asked = found["tabular"]["asked"]
    whole = cells(asked["shap"]["on demand"])
    for entry in asked["sorted"]["explanation"]:
        values = [score["value"] for score in entry["importance_scores"]]
        of_output = [value for (output, _), value in whole.items() if output == entry["predicted_attribute_name"]]
        assert values == sorted(of_output, reverse=True)[:2]
    assert cells({"explanation": asked["samples"]}) != cells(asked["lime"]["on demand"])
    assert found["tabular"]["unknown"].startswith("ResponseClientError: 404 Not Found")


def test_enabling_without_a_predictor(found: Found) -> None:
    without = found["without"]
    assert without["enabled"] == "ok"
    assert (without["status"]["enabled"], without["status"]["status"]) == (True, "Failed")
    remedy = "register one as 'late' (whence models add, or POST /models)"
    assert remedy in without["status"]["status_detail"]
    assert without["no files"].startswith("ResponseClientError: 400") and remedy in without["no files"]
    assert without["waits"].startswith("UserValueError: The following enrichments failed to provision: explainability.")
    assert without["asked"].startswith("ResponseClientError: 400") and remedy in without["asked"]


def test_a_predictor_that_comes_later(found: Found, told: Found) -> None:
    after = found["after"]
    assert (after["status"]["status"], after["rows"]) == ("Ready", SENT * 6) and "status_detail" not in after["status"]
    scores, base = cells(after["asked"]), expected(after["asked"])
    ((leaves,), *_) = told["without"]["predictions"]
    for output, prediction in (("leaves", leaves), ("not_leaves", 1 - leaves)):
        total = sum(scores[output, name] for name in INPUTS) + base[output]
        assert total == pytest.approx(prediction, abs=1e-6)


def test_the_end(found: Found) -> None:
    ended = found["ended"]
    accepted, enrichments = ended["documented"]
    config = enrichments["explainability"]["config"]
    assert accepted == "ok" and enrichments["explainability"]["status"] == "Ready"
    assert (config["explanation_nsamples"], config["streaming_explainability_enabled"]) == (1000, False)
    status, words = ended["deleted"]
    assert (status["enabled"], status["status"]) == (False, "Disabled") and "not enabled" in words
    assert ended["lime"] == ended["kept"] == SENT * 6
    assert ended["archived"].startswith("ResponseClientError: 404") and "UNKNOWN_MODEL" in ended["archived"]


def test_texts(found: Found, told: Found) -> None:
    asked, (text,) = found["text"], told["text"]["rows"][1]
    assert asked["enabled"] == "ok" and asked["status"]["config"]["explanation_algo"] == "lime"
    stored = {row["partner_inference_id"]: row["nlp_explanation"] for row in asked["query"]}
    assert list(stored) == [f"n/{place}" for place in range(SENT)]
    (entry,) = stored["n/1"]
    no, yes = (tokens(each) for each in asked["lime"]["explanation"])
    assert (entry["algorithm"], entry["predicted_attribute_name"], tokens(entry)) == ("lime", "urgent", yes)
    assert [token for token, _, _ in yes] == re.findall(r"\w+", text)
    assert [value for _, _, value in yes] == [-value for _, _, value in no]
    ((positive,),) = (row["nlp_explanation"] for row in asked["positive"])
    greater = [token for token in yes if token[2] > 0]
    assert tokens(positive) == sorted(greater, key=lambda token: -token[2])


def test_shap_of_texts_adds_up(found: Found, told: Found) -> None:
    explanation = found["text"]["shap"]
    base = expected(explanation)
    for entry, prediction in zip(explanation["explanation"], told["text"]["predictions"][1], strict=True):
        total = sum(value for _, _, value in tokens(entry)) + base[entry["predicted_attribute_name"]]
        assert total == pytest.approx(prediction, abs=1e-5)


def test_every_status_is_the_one_the_client_wants(server: tuple[Server, Path], found: Found) -> None:
    assert found
    path = MODELS + "/{model_id}"
    assert set(server[0].statuses(path + "/enrichments")) <= {200, 202, 400, 404}
    assert server[0].statuses(path + "/explainability") == [204]
