"""Fine-tunes in the registry: an adapter or a whole model beside the base that it was trained from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.models import find_model, registration_of
from app.runtime import Runtime
from tests.app.conftest import CHAT_TEMPLATE, Running, Start, empty
from tests.tiny_models import save, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def folders(models_dir: Path) -> Path:
    base = save(models_dir / "tune-base")
    (base / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    save_adapter(models_dir / "tune-adapter", base)
    save(models_dir / "tune-other", hidden_size=48)
    save_adapter(models_dir / "tune-foreign", models_dir / "tune-other")
    return models_dir


@pytest.fixture
async def server(start: Start, folders: Path) -> AsyncIterator[Running]:
    async with start(worker=False) as running:
        await empty(running)
        await running.add(folders / "tune-base", "base")
        yield running


def body(**changes: object) -> dict[str, object]:
    return {"name": "tuned", "kind": "causal-lm", "path": "tune-adapter", "base": "base", **changes}


async def test_an_adapter_is_served_as_a_model_of_its_own(server: Running) -> None:
    made = await server.client.post("/models", json=body())
    assert made.status_code == 201, made.text
    assert (made.json()["base"], made.json()["state"]) == ("base", "loaded")
    shown = (await server.client.get("/models/tuned")).json()
    base = (await server.client.get("/models/base")).json()
    assert (shown["base"], base["base"]) == ("base", None) and shown["digest"] != base["digest"]
    asked = {"prompt": "Anna lives in", "target": " Oslo"}
    answers = [await server.client.post("/explain", json={"model": name, **asked}) for name in ("base", "tuned")]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["explanations"] != answers[1].json()["explanations"]


async def test_a_base_stays_as_long_as_its_fine_tunes(server: Running) -> None:
    assert (await server.client.post("/models", json=body())).status_code == 201
    refused = await server.client.delete("/models/base")
    assert (refused.status_code, refused.json()["code"]) == (409, "CONFLICT")
    assert (await server.client.delete("/models/tuned")).status_code == 204
    assert (await server.client.delete("/models/base")).status_code == 204


async def test_a_whole_model_may_name_its_base(server: Running) -> None:
    made = await server.client.post("/models", json=body(path="tune-base"))
    assert made.status_code == 201 and made.json()["base"] == "base"


@pytest.mark.parametrize(
    ("changes", "status", "code", "says"),
    [
        ({"base": "nobody"}, 404, "UNKNOWN_MODEL", "nobody"),
        ({"base": None}, 400, "MISSING_CAPABILITY", "name the base model"),
        ({"kind": "image-text-lm"}, 400, "INVALID_REQUEST", "is for models of kind causal-lm"),
        ({"path": "tune-foreign"}, 400, "MISSING_CAPABILITY", "has the shape [4, 48], the base model needs [4, 32]"),
    ],
    ids=["unknown", "missing", "kind", "foreign"],
)
async def test_what_is_no_fine_tune_of_that_base_is_refused(
    server: Running, folders: Path, changes: dict[str, object], status: int, code: str, says: str
) -> None:
    answer = await server.client.post("/models", json=body(**changes))
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert says in answer.json()["detail"] and str(folders) not in answer.text


async def test_another_process_merges_it_anew_and_notices_a_changed_base(server: Running, folders: Path) -> None:
    assert (await server.client.post("/models", json=body())).status_code == 201
    database = server.server.explainer.database
    registration = registration_of(await find_model(database, "default", "tuned"))
    runtime = Runtime(queue_limit=4, device="cpu")
    try:
        assert (await runtime.model(registration)).digest == registration.digest
        settings = folders / "tune-base" / "generation_config.json"
        kept = settings.read_text()
        settings.write_text(kept.replace("{", '{"a": 1,', 1))
        try:
            runtime.forget(*registration.key)
            with pytest.raises(Exception, match="or of its base 'base', have changed"):
                await runtime.model(registration)
        finally:
            settings.write_text(kept)
        assert (await runtime.model(registration)).digest == registration.digest  # files are as they were
    finally:
        await runtime.close()
