"""Is the process alive, and is every part of it ready?"""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import JsonResponse, ServerState
from app.dialects.native.schemas import Health, Readiness
from app.errors import Responses
from app.explain import Explainer
from app.models import all_registrations
from storage.errors import StorageError
from storage.migrations import migrated


def health_routes() -> list[BaseRoute]:
    opened = APIRouter(tags=["Health"])
    opened.get("/healthz", summary="Liveness", response_model=Health)(healthz)
    unready: Responses = {503: {"model": Readiness, "description": "Some part is not ready; the body says which."}}
    opened.get("/readyz", summary="Readiness", response_model=Readiness, responses=unready)(readyz)
    return opened.routes


async def healthz() -> Response:
    """The process answers.

    Says nothing about the database or models: see `/readyz`.
    """
    return JsonResponse({"status": "ok"})


async def readyz(server: ServerState) -> Response:
    """Database, migrations and models are ready.

    Status 503 while some part is not; the body says which. A model that cannot be loaded does not keep the server
    unready: it is counted as refused.
    """
    parts = await readiness(server.explainer)
    return JsonResponse(parts, 200 if parts["ready"] else 503)


async def readiness(explainer: Explainer) -> dict[str, object]:
    database = tables = models = False
    counts: Counter[str] = Counter()
    try:
        await explainer.database.ping()
        database = True
        tables = await migrated(explainer.database)
        registrations = await all_registrations(explainer.database) if tables else []
        counts.update(explainer.runtime.state(registration)[0] for registration in registrations)
        pending = counts["registered"] + counts["loading"]
        models = tables and pending == 0
    except StorageError:
        pending = 0
    return {
        "ready": database and tables and models,
        "database": database,
        "migrations": tables,
        "models": models,
        "model_counts": {"loaded": counts["loaded"], "loading": pending, "refused": counts["refused"]},
    }
