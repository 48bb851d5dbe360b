"""Joining a Ray cluster, and making sure that it lets nobody in without its token.

Ray reads its own settings when it is imported: they are set here first, and it is imported here first. Whoever may send
work to a Ray cluster may run any program on all of its machines.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import Any

from app.refusals import Refusal
from app.settings import Settings

NAMESPACE = "whence"
PROBE_SECONDS = 10.0
QUESTION = "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo"
"""With an empty message: a list of nodes."""
OWN_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
"""No figures to Ray's makers; lines of Serve in the files of Ray alone."""


@asynccontextmanager
async def joined(settings: Settings) -> AsyncIterator[None]:
    """Inside, this process belongs to the cluster that the settings name, if they do. Raises a refusal."""
    if settings.ray_address is None or is_joined():
        yield
        return
    token = None if settings.ray_token is None else settings.ray_token.get_secret_value()
    # In a thread: in the main one Ray would take the signals that end the server.
    await asyncio.to_thread(connect, settings.ray_address, token, without_token=settings.ray_without_token)
    try:
        yield
    finally:
        await asyncio.to_thread(disconnect)


def is_joined() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def connect(address: str, token: str | None, *, without_token: bool) -> None:
    """Joins the cluster, one of whose nodes this machine is; blocks. Raises a refusal.

    A cluster that asks for no token is refused unless `without_token` allows it, and is told none.
    """
    if find_spec("ray") is None:
        raise Refusal("WHENCE_RAY_ADDRESS is set and Ray is not installed: pip install -c constraints.txt -e '.[ray]'")
    os.environ.update(OWN_SETTINGS)
    if not without_token:
        check_guarded(address, token or "")
    if token is not None:
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token})
    try:
        join(address)
    finally:
        os.environ.pop("RAY_AUTH_TOKEN", None)  # which processes that this one starts would inherit


def check_guarded(address: str, token: str) -> None:
    """Raises a refusal for a cluster that cannot be reached, asks for no token, or for another one."""
    import grpc  # noqa: PLC0415 - of the extra

    closed = grpc.StatusCode.UNAUTHENTICATED
    with grpc.insecure_channel(address) as channel:
        found = status(channel, ())
        if found == grpc.StatusCode.OK:
            raise Refusal("the Ray cluster lets anybody in: start its nodes with RAY_AUTH_MODE=token")
        if found == closed and status(channel, (("authorization", f"Bearer {token}"),)) == closed:
            raise Refusal("the Ray cluster asks for another token than that of WHENCE_RAY_TOKEN")
    if found != closed:
        raise Refusal(f"the Ray cluster at WHENCE_RAY_ADDRESS cannot be reached ({found.name})")


def status(channel: Any, metadata: tuple[tuple[str, str], ...]) -> Any:
    """Of a question to the cluster's head that only its own may ask."""
    import grpc  # noqa: PLC0415 - of the extra

    ask = channel.unary_unary(QUESTION)
    try:
        ask(b"", timeout=PROBE_SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def join(address: str) -> None:
    import ray  # noqa: PLC0415 - an extra, which reads its settings now
    from ray.exceptions import RayError  # noqa: PLC0415 - an extra

    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    except (OSError, RuntimeError, ValueError, RayError) as error:  # whose texts may hold settings
        raise Refusal(f"the Ray cluster at WHENCE_RAY_ADDRESS cannot be joined ({type(error).__name__})") from None


def disconnect() -> None:
    import ray  # noqa: PLC0415 - an extra

    ray.shutdown()
