"""What `whence demo` serves: five models of its own, their inferences, a key that works, and requests to paste.

The influence index of the fine-tune is built before the server answers, so that every request works when pasted; it
takes about half a minute, once.
"""

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
from storage.tables import Model

if TYPE_CHECKING:
    from app.explain import Explainer

FOLDER = Path(__file__).resolve().parent.parent / "demo" / "models"
PICTURE = FOLDER.parent / "data" / "shapes_example.png"
DESCRIPTION = "Whence's own demo model"
CONTEXT_MODEL = "demo-lm"
"""Whose responses are attributed to a context where a request names no model."""


@dataclass(frozen=True, slots=True)
class Demo:
    """A model below FOLDER. One that predicts has its rows beside it, and a `config` by which they are explained.

    A fine-tune has the demo model it was trained from, its `base`, and the file it was trained on.
    """

    kind: str
    file: str = ""
    config: Mapping[str, Any] | None = None
    base: str | None = None
    training_data: Path | None = None


MODELS: Mapping[str, Demo] = {
    "demo-lm": Demo("causal-lm"),
    "demo-qa": Demo("causal-lm", base="demo-lm", training_data=FOLDER.parent / "data" / "facts.jsonl"),
    "demo-vision": Demo("image-text-lm"),
    "demo-text": Demo("text-classifier", "", {"explanation_algo": "lime", "explanation_nsamples": 500}),
    "demo-tabular": Demo("tabular", "model.ubj", {"explanation_algo": "shap"}),
}
"""In this order: what is explained in a moment does not wait for what takes a minute."""


async def prepare_demo(database: Database, settings: Settings, url: str, rows: int | None = None) -> str:
    """The models with their first `rows` inferences, or all, a key that works, and what to paste."""
    secret = await demo_key(database, settings)
    for name, demo in MODELS.items():
        await offer(database, settings, name, demo, rows)
        if demo.training_data is not None:
            await trace(database, settings, name, demo.training_data)
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


async def offer(database: Database, settings: Settings, name: str, demo: Demo, rows: int | None = None) -> None:
    """Registers a demo model with its rows, unless exactly these weights are registered from this place."""
    from app.models import NewModel  # noqa: PLC0415 - brings PyTorch

    path = FOLDER / name / demo.file
    row = await row_of(database, name)
    if row is not None:
        if await unchanged(row, path, settings):
            return
        await withdraw(database, name)
    if demo.config is not None:
        async with explainer_of(database, settings) as explainer:
            await retire(explainer, name)
    schema = FOLDER / name / "schema.json" if demo.config is not None else None
    new = NewModel(name, demo.kind, path.name, description=DESCRIPTION, base=demo.base)
    await register(database, settings, DEFAULT_TENANT, new, path.parent, schema)
    if demo.config is not None:
        async with explainer_of(database, settings) as explainer:
            await fill(explainer, name, demo.config, rows)


async def row_of(database: Database, name: str) -> Model | None:
    async with database.transaction(tenant=DEFAULT_TENANT) as session:
        return next((row for row in await models.list_all(session) if row.name == name), None)


async def unchanged(row: Model, path: Path, settings: Settings) -> bool:
    """Whether the weights at that path, with those of the base, are the registered ones."""
    from app.runtime import Weights, loader_of  # noqa: PLC0415 - brings PyTorch

    if row.path != str(path):
        return False
    load = loader_of(Weights(row.kind, row.path, row.base_path, dtype=row.dtype))
    found = await asyncio.to_thread(load, settings.device)
    return bool(row.digest == found.digest)


async def withdraw(database: Database, name: str) -> None:
    """Forgets a demo model, and before it those that were trained from it."""
    async with database.transaction(tenant=DEFAULT_TENANT) as session:
        for row in await models.list_all(session):
            if row.base == name and row.name in MODELS:
                await models.remove(session, row.name)
        await models.remove(session, name)


async def trace(database: Database, settings: Settings, name: str, training_data: Path) -> None:
    """Waits for the influence index of a fine-tune; a bar shows how far it is."""
    from app.indexing import ensure_index  # noqa: PLC0415 - brings PyTorch

    async with explainer_of(database, settings) as explainer:
        await ensure_index(explainer, DEFAULT_TENANT, name, training_data)


async def retire(explainer: Explainer, name: str) -> None:
    """Archives the rows of a predictor that is no more."""
    from app.explainability import archive  # noqa: PLC0415 - brings PyTorch
    from app.monitored import find_named  # noqa: PLC0415 - brings PyTorch

    model = await find_named(explainer.database, DEFAULT_TENANT, name)
    if model is not None:
        await archive(explainer, DEFAULT_TENANT, str(model.id))


async def fill(explainer: Explainer, name: str, config: Mapping[str, Any], rows: int | None) -> None:
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
    await add_inferences(database, DEFAULT_TENANT, id, lines_of(name, "inferences")[:rows])
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
        curl(f"{url}/influence", secret, {"model_id": "demo-qa", "question": "Who keeps the mill?"}),
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
