"""What `whence demo` serves: five models of its own, their inferences, a key that works, and requests to paste."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.console import Row
from app.registry import explainer_of, register
from app.settings import Settings
from app.start import DEFAULT_TENANT, first_key, make_key
from storage import api_keys, models
from storage.database import Database

if TYPE_CHECKING:
    from app.explain import Explainer

FOLDER = Path(__file__).resolve().parent.parent / "demo" / "models"
PICTURE = FOLDER.parent / "data" / "shapes_example.png"
DESCRIPTION = "Whence's own demo model"
CONTEXT_MODEL = "demo-lm"
"""Whose responses are attributed to a context where a request names no model."""


@dataclass(frozen=True, slots=True)
class Demo:
    """A model below FOLDER. One that predicts has its rows beside it, and a `config` by which they are explained."""

    kind: str
    file: str = ""
    config: Mapping[str, Any] | None = None


MODELS: Mapping[str, Demo] = {
    "demo-lm": Demo("causal-lm"),
    "demo-vision": Demo("image-text-lm"),
    "demo-text": Demo("text-classifier", "", {"explanation_algo": "lime", "explanation_nsamples": 500}),
    "demo-tabular": Demo("tabular", "model.ubj", {"explanation_algo": "shap"}),
}
"""In this order: what is explained in a moment does not wait for what takes a minute."""


async def prepare_demo(database: Database, settings: Settings, url: str) -> str:
    """The models, a key that works, and what to paste."""
    secret = await demo_key(database, settings)
    for name, demo in MODELS.items():
        await offer(database, settings, name, demo)
    return greeting(url, secret)


async def demo_key(database: Database, settings: Settings) -> str:
    """WHENCE_API_KEY, or else the key kept in the data directory while it is valid, or else a new one."""
    first = await first_key(database, settings)
    if settings.api_key is not None:
        return settings.api_key.get_secret_value()
    path = settings.data_dir / "demo-key"
    kept = path.read_text().strip() if path.exists() else ""
    if first is None and kept and await api_keys.find_by_secret(database, kept) is not None:
        return kept
    secret = first or await make_key(database, "demo", None)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret + "\n")
    return secret


async def offer(database: Database, settings: Settings, name: str, demo: Demo) -> None:
    """Registers a demo model with its rows, unless exactly these weights are registered from this place."""
    from app.models import NewModel  # noqa: PLC0415 - brings PyTorch
    from explainers.loaders import LOADERS  # noqa: PLC0415 - brings PyTorch

    path = FOLDER / name / demo.file
    async with database.transaction(tenant=DEFAULT_TENANT) as session:
        row = next((row for row in await models.list_all(session) if row.name == name), None)
    if row is not None:
        found = await asyncio.to_thread(LOADERS[demo.kind], path, row.dtype, settings.device)
        if (row.path, row.digest) == (str(path), found.digest):
            return
        async with database.transaction(tenant=DEFAULT_TENANT) as session:
            await models.remove(session, name)
    if demo.config is not None:
        async with explainer_of(database, settings) as explainer:
            await retire(explainer, name)
    schema = FOLDER / name / "schema.json" if demo.config is not None else None
    new = NewModel(name, demo.kind, path.name, description=DESCRIPTION)
    await register(database, settings, DEFAULT_TENANT, new, path.parent, schema)
    if demo.config is not None:
        async with explainer_of(database, settings) as explainer:
            await fill(explainer, name, demo.config)


async def retire(explainer: Explainer, name: str) -> None:
    """Archives the rows of a predictor that is no more."""
    from app.explainability import archive  # noqa: PLC0415 - brings PyTorch
    from app.monitored import find_named  # noqa: PLC0415 - brings PyTorch

    model = await find_named(explainer.database, DEFAULT_TENANT, name)
    if model is not None:
        await archive(explainer, DEFAULT_TENANT, str(model.id))


async def fill(explainer: Explainer, name: str, config: Mapping[str, Any]) -> None:
    """Reference set, inferences with their truth, and explanations, which a job computes once the server is up."""
    from app.explainability import configure  # noqa: PLC0415 - brings PyTorch
    from app.ingest import add_inferences, close_reference  # noqa: PLC0415 - brings PyTorch
    from app.monitored import find_named  # noqa: PLC0415 - brings PyTorch
    from app.uploads import add_reference_file  # noqa: PLC0415 - brings PyTorch

    database, model = explainer.database, await find_named(explainer.database, DEFAULT_TENANT, name)
    assert model is not None  # noqa: S101 - it came with its schema
    reference, id = lines_of(name, "reference"), str(model.id)
    if reference:
        content = io.BytesIO(json.dumps(reference).encode())
        await add_reference_file(database, DEFAULT_TENANT, id, content)
        await close_reference(explainer, DEFAULT_TENANT, id, len(reference))
    await add_inferences(database, DEFAULT_TENANT, id, lines_of(name, "inferences"))
    await configure(explainer, DEFAULT_TENANT, id, enabled=True, config=config)


def lines_of(name: str, what: str) -> list[Any]:
    path = FOLDER / name / f"{what}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def greeting(url: str, secret: str) -> str:
    question = {
        "model": "demo-lm",
        "prompt": "Anna lives in Oslo. Ben lives in Rome. Anna lives in",
        "target": " Oslo.",
    }
    requests = [
        curl(f"{url}/explain", secret, question | {"prompt_granularity": {"type": "sentence"}}),
        curl(f"{url}/explain", secret, question | {"target_granularity": "token"}),
        curl_with_picture(f"{url}/explain", secret),
        curl(f"{url}/explanations?limit=1", secret),
        curl(f"{url}/query", secret, features_of("malignant")),
        curl(f"{url}/query", secret, words_of("message-003")),
    ]
    heading = f"\nWhence is ready at {url} (documentation: {url}/docs)\nAPI key: {secret}"
    return "\n\n".join([heading, "Try it, in another terminal:", *requests, "Ctrl-C stops the server."])


def features_of(output: str) -> Row:
    """Which features move an output of demo-tabular most, where it is likely."""
    importances = {"function": "regionalFeatureImportances", "parameters": {"predicted_attribute_name": output}}
    region = [{"property": output, "comparator": "gte", "value": 0.5}]
    return {"model_id": "demo-tabular", "select": [importances], "filter": region}


def words_of(inference: str) -> Row:
    """Which words made demo-text say what it says of a message."""
    call = {"function": "nlp_explanation", "parameters": {"nlp_predicted_attribute": "urgent"}}
    chosen = [
        {"property": "partner_inference_id", "comparator": "eq", "value": inference},
        {"property": "nlp_explanation.value", "comparator": "gt", "value": 0.1},
    ]
    return {"model_id": "demo-text", "select": [call], "filter": chosen}


def curl(url: str, secret: str, body: Row | None = None) -> str:
    parts = ["curl", "-s", url, "-H", f"Authorization: Bearer {secret}"]
    if body is not None:
        parts += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return shlex.join(parts)


def curl_with_picture(url: str, secret: str) -> str:
    """A question about the demo's picture, which the shell puts into the body."""
    items = [{"type": "image", "data": "%s"}, {"type": "text", "data": "What colour is the circle?"}]
    granularity = {"type": "word"}
    body = {"model": "demo-vision", "prompt": items, "target": " yellow", "prompt_granularity": granularity}
    filled = f'"$(printf {shlex.quote(json.dumps(body))} "$(base64 -w0 {shlex.quote(str(PICTURE))})")"'
    return f"{curl(url, secret)} -H 'Content-Type: application/json' -d {filled}"
