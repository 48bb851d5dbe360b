"""Is the process alive, and is every part of it ready?"""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute

from app.dependencies import Admin, JsonResponse, ServerState, keyed_router
from app.dialects.native.schemas import Health, Readiness
from app.errors import Responses, problems
from app.readiness import PARTS

PAGE = {"schema": {"type": "string", "description": "Lines of figures.", "examples": ["whence_device_waiting 0.0"]}}


def health_routes() -> list[BaseRoute]:
    opened = APIRouter(tags=["Health"])
    opened.get("/healthz", summary="Liveness", response_model=Health)(healthz)
    unready: Responses = {503: {"model": Readiness, "description": "Some part is not ready; the body says which."}}
    opened.get("/readyz", summary="Readiness", response_model=Readiness, responses=unready)(readyz)
    keyed = keyed_router("Health")
    told: Responses = {200: {"content": {"text/plain": PAGE}, "description": "The figures."}}
    keyed.get("/metrics", summary="Metrics", response_class=PlainTextResponse, responses=told | problems(401, 403))(
        metrics
    )
    return [*opened.routes, *keyed.routes]


async def healthz() -> Response:
    """The process answers.

    Says nothing about the database or models: see `/readyz`.
    """
    return JsonResponse({"status": "ok"})


async def readyz(server: ServerState) -> Response:
    """Every part is ready: database, migrations, models, disk, store, worker, and the server, which is not ending.

    Status 503 while some part is not; `not_ready` says which. A model that cannot be loaded does not keep the server
    unready: it is counted as refused.
    """
    ready = await server.readiness.now()
    parts = {part: getattr(ready, part) for part in PARTS}
    body = {"ready": not ready.missing, "not_ready": ready.missing, **parts, "model_counts": ready.counts}
    return JsonResponse(body, 503 if ready.missing else 200)


async def metrics(server: ServerState, _: Admin) -> Response:
    """Figures of the whole server, of all tenants together, in the text format of Prometheus.

    They name no tenant, no key and no model. Needs the scope `admin`; the tenant may be one that has nothing else.
    """
    return Response(await server.metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})
