"""The description in the repository is the server's, and is OpenAPI 3.1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from app.main import create_app
from app.settings import Settings

FILE = Path(__file__).parents[2] / "docs" / "openapi.json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(create_app(Settings()).openapi()))
    return found


def test_the_file_is_what_the_server_says(document: dict[str, Any]) -> None:
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    changed = sorted(set(parts(kept).items()) ^ set(parts(document).items()))
    places = sorted({name for name, _ in changed})
    assert kept == document, f"differs in {places}: if that is meant, run `make openapi` and read the difference"
    assert json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n" == FILE.read_text(encoding="utf-8")


def parts(document: dict[str, Any]) -> dict[str, str]:
    """Operations and schemas by name, as text."""
    found = {
        f"{method.upper()} {path}": about for path, of in document["paths"].items() for method, about in of.items()
    }
    found |= document["components"]["schemas"]
    return {name: json.dumps(about, sort_keys=True) for name, about in found.items()}


def test_the_document_is_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert [error.message for error in OPENAPI_31_VALIDATOR.iter_errors(document)] == []


def test_every_operation_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    names = [about["operationId"] for of in document["paths"].values() for about in of.values()]
    assert len(names) == len(set(names))
