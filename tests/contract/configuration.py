"""What schemathesis is told: the rules beside this file, and the ids that exist in this run.

The document is the server's own, with examples that exist: most requests of the coverage phase are made of examples,
and would otherwise end at a 404.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.contract.served import KEY, Stored

RULES = Path(__file__).parent / "schemathesis.toml"
MONITORED = r"/api/v3/models/{model_id}"

PLACES: tuple[tuple[str, str, str], ...] = (
    (r"DELETE /jobs/{id}", "id", "spare-jobs"),
    (r"DELETE (/v1/flow)?/files/{id}", "id", "spare-files"),
    (r"DELETE /models/{name}", "name", "spare-models"),
    (rf"DELETE {MONITORED}(/explainability)?", "model_id", "spare-monitored"),
    (r".* /jobs/{id}.*", "id", "jobs"),
    (r".*/files/{id}.*", "id", "files"),
    (r".* /explanations/{id}", "id", "explanations"),
    (r".*/deployments/{id}.*", "id", "deployments"),
    (r".* /v1/flow/explain/.*", "model_id", "tuned"),
    (r".* /models/{name}/influence-index", "name", "tuned"),
    (r".* /models/{name}", "name", "models"),
    (r".*/tokenizer", "model", "models"),
    (r".*/enrichments/{name}", "name", "enrichments"),
    (rf".* {MONITORED}.*", "model_id", "monitored"),
    (r".*", "inference", "inferences"),
    (r".*", "partner_inference_id", "inferences"),
    (r".*", "batch_id", "batches"),
)
"""Operation and path parameter -> whose ids fit; the first one that matches."""


def configuration(document: dict[str, Any], stored: Stored) -> str:
    """The text of a configuration file: half of the ids that are made up are replaced by ones that exist."""
    return "\n".join([RULES.read_text(encoding="utf-8"), *bindings(document), *dictionaries(stored), ""])


def dictionaries(stored: Stored) -> Iterator[str]:
    for name, values in stored.ids.items():
        yield f"[dictionaries.{name}]"
        yield f"values = {json.dumps(values)}"


def bindings(document: dict[str, Any]) -> Iterator[str]:
    for name, operation in operations(document):
        found = [(each["name"], place(name, each["name"])) for each in of_path(operation)]
        bound = [f'"path.{each}" = {{ dictionary = "{kind}", probability = 0.5 }}' for each, kind in found if kind]
        if bound:
            yield f'[[operations]]\ninclude-name = "{name}"\nparameters = {{ {", ".join(bound)} }}'


def prepared(document: dict[str, Any], stored: Stored) -> dict[str, Any]:
    """The document with examples that exist."""
    document = json.loads(
        json.dumps(document).replace("whence_u1Zr8yX0c", KEY).replace('"analyst"', '"WHENCE_API_KEY"')
    )
    document = json.loads(re.sub(r"file-9b1f3a52[-0-9a-f]*", stored.ids["files"][0], json.dumps(document)))
    document = copy.deepcopy(document)
    for name, operation in operations(document):
        for each in of_path(operation):
            kind = place(name, each["name"])
            if kind:
                each["schema"]["examples"] = [stored.ids[kind][0]]
                each.pop("examples", None)
                each["example"] = stored.ids[kind][0]
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def of_path(operation: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for each in operation.get("parameters", ()) if each["in"] == "path"]


def place(operation: str, parameter: str) -> str | None:
    return next((kind for like, name, kind in PLACES if name == parameter and re.fullmatch(like, operation)), None)
