"""Routes of this dialect: what passes is told with a 4xx, since the client drops the body of a 5xx."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.dependencies import CountedRoute, KeyedRoute
from app.errors import exhaustion, refusal_response
from app.refusals import QueueFull, ShortOfMemory
from storage.errors import DatabaseUnavailable, OutOfSpace

TAG = "Seekr's wire"


PASSING = (QueueFull, ShortOfMemory, DatabaseUnavailable, OutOfSpace)
"""What another attempt may not meet."""


class FlowRoute(KeyedRoute):
    """A route that needs a key; a full queue, a full disk, too little memory and an absent database are 429."""

    passing = 429

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await answer(request)
            except (*PASSING, OSError, MemoryError, RuntimeError) as error:
                told = exhaustion(error)
                if not isinstance(told, PASSING):
                    raise
                return refusal_response(told, status=self.passing)

        return handle


class CountedFlowRoute(FlowRoute, CountedRoute):
    """One whose work is the database's."""


def flow_router(*, counted: bool = False) -> APIRouter:
    return APIRouter(route_class=CountedFlowRoute if counted else FlowRoute, tags=[TAG])
