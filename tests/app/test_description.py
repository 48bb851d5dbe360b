"""The API's description alone teaches the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from app.main import create_app
from app.settings import Settings
from tests.app.conftest import Running, Start

pytestmark = pytest.mark.anyio

UNREADY = ("/api/v3", "/v1/flow", "/models/")
"""Routes that ask for what a fresh server has not."""

METHODS = {"get", "post", "put", "patch", "delete"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(create_app(Settings()).openapi()))
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            yield f"{method.upper()} {path}", operation


def test_operations(document: dict[str, Any]) -> None:
    names = [name for name, _ in operations(document)]
    assert {"POST /explain", "GET /explanations/{id}", "POST /models", "GET /readyz"} <= set(names)
    for name, operation in operations(document):
        assert operation["summary"] and len(operation.get("description", "")) > 15, name
        assert operation["tags"], name
        assert "422" not in operation["responses"], name
        for status, response in operation["responses"].items():
            assert response["description"], (name, status)


def test_keyed_operations_document_their_errors(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        if "security" not in operation:
            assert name in ("GET /healthz", "GET /readyz", "GET /version", "POST /api/v3/login")
            continue
        assert {"401", "403"} <= set(operation["responses"]), name
        if "requestBody" in operation:
            assert {"400", "413", "415"} <= set(operation["responses"]), name
        for status in set(operation["responses"]) & {"400", "401", "403", "404", "409", "413", "415"}:
            (media_type, content), = operation["responses"][status]["content"].items()  # fmt: skip
            assert media_type == "application/problem+json" and content["schema"]["$ref"].endswith("/Problem")


def test_names_are_for_users(document: dict[str, Any]) -> None:
    """Of two classes of one name, the names of their modules would be shown."""
    assert [name for name in document["components"]["schemas"] if "__" in name] == []


def test_parameters(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for parameter in operation.get("parameters", []):
            described = parameter.get("description")
            shown = parameter.get("example", parameter.get("examples", parameter["schema"].get("examples")))
            assert described and shown is not None, (name, parameter["name"])


def test_fields(document: dict[str, Any]) -> None:
    """Every field has a description, and an example unless it refers to a schema that has them."""
    for name, schema in document["components"]["schemas"].items():
        for field, about in schema.get("properties", {}).items():
            assert about.get("description"), (name, field)
            nested = "$ref" in json.dumps(about) or "properties" in json.dumps(about)
            assert nested or name == "Problem" or "examples" in about, (name, field)


def test_bodies_have_whole_examples(document: dict[str, Any]) -> None:
    for name, operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert content.get("examples"), name


def test_references_resolve(document: dict[str, Any]) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
            value = list(value.values())
        if isinstance(value, list):
            for entry in value:
                yield from references(entry)

    for reference in set(references(document)):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


async def test_examples_work(running: Running, document: dict[str, Any]) -> None:
    """What the page shows can be pasted."""
    for name, operation in operations(document):
        method, path = name.split()
        for content in operation.get("requestBody", {}).get("content", {}).values():
            for example in content["examples"].values():
                if path in ("/models", "/query", "/files", "/influence") or path.startswith(UNREADY):  # need more
                    continue
                if path.endswith(("/influence", "/influence-index")):  # these need a fine-tune
                    continue
                body = {**example["value"], "model": "tiny-lm"}
                if "token_ids" in body and path == "/detokenize":
                    body["token_ids"] = [70, 71]
                response = await running.client.request(method, path, json=body)
                assert response.status_code == 200, (name, response.text)


async def test_docs_need_a_key_unless_opened(start: Start) -> None:
    async with start() as running:
        for path in ("/docs", "/openapi.json"):
            assert (await running.client.get(path)).status_code == 200
            assert (await running.client.get(path, headers={"Authorization": ""})).status_code == 401
    async with start(open_docs=True) as running:
        for path in ("/docs", "/openapi.json"):
            assert (await running.client.get(path, headers={"Authorization": ""})).status_code == 200


async def test_docs_page_stands_alone(running: Running) -> None:
    response = await running.client.get("/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "src=" not in response.text and "http://" not in response.text and "https://" not in response.text
    for path in ("/explain", "/explanations/{id}", "/models"):
        assert path in response.text
    assert "control_factor" in response.text and "PAYLOAD_TOO_LARGE" not in response.text
    assert "number, default 0.1" in response.text and "<em>whence this output?</em>" in response.text
    assert "<code>Authorization: Bearer &lt;key&gt;</code>" in response.text
