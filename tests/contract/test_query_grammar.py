"""Queries made at random from the grammar of the language: right ones have the answer that a plain evaluation gives.

Wrong ones are told their place. WHENCE_FUZZ_EXAMPLES makes more of them.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from app.dialects.arthur.model_routes import CHURN, MODELS
from app.settings import Settings
from tests.contract.plain_queries import answer
from tests.contract.queries import CITIES, Body, at, mistakes, queries
from tests.contract.served import KEY, served
from tests.postgres import Server

EXAMPLES = int(os.environ.get("WHENCE_FUZZ_EXAMPLES", "120"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
START = datetime(2026, 2, 28, 22, tzinfo=UTC)
SECRETS = ("SELECT ", "select(", "psycopg", "sqlalchemy", "FROM ", "$1", "%(", "Traceback", ".py")


def attribute(name: str, value_type: str, stage: str = "PIPELINE_INPUT", **more: Any) -> dict[str, Any]:
    return {"name": name, "value_type": value_type, "stage": stage} | more


ATTRIBUTES = [
    attribute("income", "FLOAT", position=0),
    attribute("tenure", "INTEGER", position=1),
    attribute("city", "STRING", "NON_INPUT_DATA", position=0),
    attribute("member", "BOOLEAN", "NON_INPUT_DATA", position=1),
    attribute("since", "TIMESTAMP", "NON_INPUT_DATA", position=2),
    attribute("churn_yes", "FLOAT", "PREDICTED_VALUE", position=0, gt_class_link="1"),
    attribute("churn_no", "FLOAT", "PREDICTED_VALUE", position=1, gt_class_link="0"),
    attribute("churned", "INTEGER", "GROUND_TRUTH_CLASS", position=0),
]


def made(count: int = 40) -> list[dict[str, Any]]:
    """Rows with nulls; numbers are quarters, so that sums are exact."""
    source = random.Random(6)  # noqa: S311 - the same rows each time

    def perhaps(value: Any) -> Any:
        return None if source.random() < 0.2 else value

    return [
        {
            "income": perhaps(source.randint(-8, 40) / 4),
            "tenure": perhaps(float(source.randint(0, 5))),
            "churn_yes": source.randint(0, 8) / 8,
            "churned": perhaps(float(source.randint(0, 1))),
            "city": perhaps(source.choice(CITIES)),
            "member": perhaps(source.random() < 0.5),
            "since": perhaps(START + timedelta(hours=source.randint(0, 900))),
            "batch_id": perhaps(source.choice(["b-1", "b-2"])),
            "partner_inference_id": f"u-{place}",
            "inference_timestamp": START + timedelta(minutes=37 * source.randint(0, 90)),
        }
        for place in range(count)
    ]


def sent(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it is ingested."""
    inputs = {name: row[name] for name in ("income", "tenure", "city", "member", "churn_yes")}
    inputs |= {"churn_no": 1 - row["churn_yes"], "since": None if row["since"] is None else row["since"].isoformat()}
    record = {"inference_data": inputs, "inference_timestamp": row["inference_timestamp"].isoformat()}
    record |= {name: row[name] for name in ("partner_inference_id", "batch_id") if row[name] is not None}
    truth = {"ground_truth_timestamp": START.isoformat(), "ground_truth_data": {"churned": row["churned"]}}
    return record | (truth if row["churned"] is not None else {})


@pytest.fixture(scope="module")
def client(postgres: Server) -> Iterator[httpx.Client]:
    """Of queries to one model with these rows."""
    chosen = {"data_dir": postgres.data_dir, "api_key": KEY, "worker": False, "log_level": "warning"}
    with served(Settings.model_validate(chosen)) as url:
        headers = {"Authorization": f"Bearer {KEY}"}
        body = CHURN | {"partner_model_id": "grammar", "attributes": ATTRIBUTES}
        model = httpx.post(f"{url}{MODELS}", json=body, headers=headers, timeout=60).json()
        path = f"{url}{MODELS}/{model['id']}/inferences"
        told = httpx.post(path, json=[sent(row) for row in made()], headers=headers, timeout=60)
        assert told.json()["counts"]["failure"] == 0, told.text
        with httpx.Client(base_url=path, headers=headers, timeout=60) as client:
            yield client


@FUZZ
@given(asked=queries())
def test_a_right_query_has_the_plain_answer(client: httpx.Client, asked: tuple[Body, Any]) -> None:
    response = client.post("/query", json=asked[0])
    assert response.status_code == 200, (asked[0], response.text)
    found = json.loads(response.text, parse_constant=pytest.fail)["query_result"]
    expected = [{key: shown(value) for key, value in row.items()} for row in answer(asked[0], made())]
    assert len(found) == len(expected), (asked[0], found, expected)
    for row, like in zip(found, expected, strict=True):
        assert list(row) == list(like), asked[0]
        assert all(same(row[key], like[key]) for key in like), (asked[0], row, like)


def shown(value: Any) -> Any:
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z") if isinstance(value, datetime) else value


def same(value: Any, like: Any) -> bool:
    if isinstance(like, float) and not isinstance(value, bool) and isinstance(value, int | float):
        return math.isclose(value, like, rel_tol=1e-9, abs_tol=1e-9)
    return type(value) is type(like) and bool(value == like)


@FUZZ
@given(asked=queries())
def test_a_mistake_is_told_with_its_place(client: httpx.Client, asked: tuple[Body, Any]) -> None:
    wrong = list(mistakes(asked[0]))
    for pointer, body in random.Random(len(wrong)).sample(wrong, min(3, len(wrong))):  # noqa: S311 - the same each time
        response = client.post("/query", json=body)
        assert response.status_code == 400, (pointer, body, response.text)
        told = response.json()
        assert told["code"] == "INVALID_REQUEST" and not any(word in told["detail"] for word in SECRETS), told
        place = told["errors"][0]["pointer"] if "errors" in told else ""
        at(body, place)  # leads somewhere
        inside = pointer.rpartition("/")[0]
        assert f"{place}/".startswith(f"{inside}/") or f"{inside}/".startswith(f"{place}/"), (pointer, place, body)
