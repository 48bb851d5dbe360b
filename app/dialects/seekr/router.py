"""Routes of this dialect: a full queue is told with a 4xx, since the client drops the body of a 5xx."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.dependencies import CountedRoute, KeyedRoute
from app.errors import ProblemResponse, headers_for
from app.refusals import QueueFull

TAG = "Seekr's wire"


class FlowRoute(KeyedRoute):
    """A route that needs a key; a full queue is 429."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await answer(request)
            except QueueFull as error:
                return ProblemResponse(429, "QUEUE_FULL", str(error), headers=headers_for(error))

        return handle


class CountedFlowRoute(FlowRoute, CountedRoute):
    """One whose work is the database's."""


def flow_router(*, counted: bool = False) -> APIRouter:
    return APIRouter(route_class=CountedFlowRoute if counted else FlowRoute, tags=[TAG])
