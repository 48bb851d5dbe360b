"""Stored scores against the library's own, for every format of predictors and every kind of input and output."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from app.dialects.arthur.model_routes import MODELS
from tests.app.conftest import Running
from tests.app.model_cases import CASES, SAMPLES, Case, case
from tests.app.test_explainability import asked, created, enabled, explanation, sent, settled, told

SELECT = [
    {"property": name}
    for name in ("partner_inference_id", "explainer_predicted_attribute", "explainer_attribute", "explainer_score")
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    def make(name: str) -> Case:
        return case(name, tmp_path_factory.mktemp(name))

    return make


async def uploaded(running: Running, name: str, path: Path) -> None:
    files = {"file": (path.name, await asyncio.to_thread(path.read_bytes))}
    response = await running.client.post("/models", data={"name": name, "kind": "tabular"}, files=files)
    assert response.status_code == 201, response.text


async def served(running: Running, found: Case) -> tuple[str, str]:
    """Name and id of a model with its file, reference set and inferences."""
    name = f"case-{uuid4()}"
    id = await created(running, found.definition(name))
    await uploaded(running, name, found.path)
    files = {"reference_data": ("rows.json", json.dumps(found.given(found.reference)))}
    answer = await running.client.post(f"{MODELS}/{id}/reference_data", files=files)
    assert answer.json()["counts"]["failure"] == 0, answer.text
    await sent(running, id, found.records())
    return name, id


@pytest.mark.parametrize("name", CASES)
async def test_stored_scores_are_those_of_the_library(running: Running, made: Callable[[str], Case], name: str) -> None:
    found = await asyncio.to_thread(made, name)
    model, id = await served(running, found)
    for algorithm in ("lime", "shap"):
        await enabled(running, id, explanation_algo=algorithm, explanation_nsamples=SAMPLES)
        await settled(running, model)
        kept = await asked(running, id, select=SELECT, filter=of_algorithm(algorithm))
        stored = {tuple(row[each["property"]] for each in SELECT[:3]): row["explainer_score"] for row in kept}
        direct = expected(found, algorithm)
        assert stored.keys() == direct.keys()
        for place, value in direct.items():
            assert stored[place] == (None if np.isnan(value) else pytest.approx(value, abs=1e-12)), place
    answer = await explanation(running, id, "u-5", algorithm="shap")
    assert told(answer) == {key[1:]: value for key, value in stored.items() if key[0] == "u-5"}


def of_algorithm(name: str) -> list[dict[str, Any]]:
    return [{"property": "explainer_algo", "comparator": "eq", "value": name}]


def expected(found: Case, algorithm: str) -> dict[tuple[str, str, str], float]:
    return {
        (id, output, name): answer.values[place, column]
        for id, answer in zip(found.ids, found.direct(algorithm), strict=True)
        for place, output in enumerate(found.outputs)
        for column, name in enumerate(found.names)
    }
