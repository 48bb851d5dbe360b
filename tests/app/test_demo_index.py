"""The demo's fine-tune has an index before anything is asked, once for the same weights and data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app import demo
from app.start import DEFAULT_TENANT
from storage import influence, training_files
from storage.database import Database
from tests import tiny_models
from tests.app.conftest import Running, Start
from tests.fine_tunes import save_base, save_fine_tune, training_file
from tests.postgres import running_server


async def state_of(database: Database, name: str) -> tuple[list[Any], int]:
    """The ids of the model's indexes, and how many training files there are."""
    async with database.transaction(tenant=DEFAULT_TENANT) as session:
        indexes = [row.id for row in await influence.list_of(session, name) if row.state == "ready"]
        return indexes, len(await training_files.page(session))


async def offered(running: Running, folder: Path) -> tuple[list[Any], int]:
    """What there is after a start of the demo with these models."""
    settings, database = running.server.settings, running.server.explainer.database
    for name, model in demo.MODELS.items():
        await demo.offer(database, settings, name, model)
    await demo.trace(database, settings, "tuned", folder / "facts.jsonl")
    return await state_of(database, "tuned")


async def test_the_index_is_built_once_for_the_same_weights(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_fine_tune(tmp_path / "tuned", save_base(tmp_path / "base"))
    (tmp_path / "facts.jsonl").write_bytes(training_file())
    models = {"base": demo.Demo("causal-lm"), "tuned": demo.Demo("causal-lm", base="base")}
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    monkeypatch.setattr(demo, "MODELS", models)
    with running_server() as server:
        async with start(data_dir=server.data_dir) as running:
            first = await offered(running, tmp_path)
            assert (len(first[0]), first[1]) == (1, 1)
            assert await offered(running, tmp_path) == first
            save_fine_tune(tmp_path / "tuned", tmp_path / "base", steps=70)
            second = await offered(running, tmp_path)
            assert (len(second[0]), second[1]) == (1, 1) and second[0] != first[0]
            tiny_models.save(tmp_path / "base", initializer_range=0.12, bos_token_id=0, eos_token_id=1)
            await offered(running, tmp_path)
            listed = (await running.client.get("/models")).json()
            assert {model["name"] for model in listed["models"]} == {"base", "tuned"}
