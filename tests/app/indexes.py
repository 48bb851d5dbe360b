"""Training files and influence indexes, as a client makes them."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.app.conftest import Running


async def sent(server: Running, content: bytes, name: str = "facts.jsonl") -> str:
    answer = await server.client.post("/files", files={"file": (name, content)}, data={"purpose": "fine-tune"})
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])


async def built(server: Running, model: str, *files: str, **options: Any) -> dict[str, Any]:
    """The job, once it has succeeded."""
    answer = await server.client.post(f"/models/{model}/influence-index", json={"training_files": files, **options})
    assert answer.status_code == 202, answer.text
    job = await ended(server, answer.headers["Location"])
    assert job["state"] == "succeeded", job
    return job


async def ended(server: Running, place: str) -> dict[str, Any]:
    for _ in range(1200):
        job: dict[str, Any] = (await server.client.get(place)).json()
        if job["state"] in ("succeeded", "failed", "cancelled"):
            return job
        await asyncio.sleep(0.1)
    raise AssertionError("the job did not end")
