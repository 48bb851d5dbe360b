"""A runtime on the cluster that the settings name, for as long as a server lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from app import logs
from app.cluster.connection import joined
from app.meters import Meters
from app.runtime import Runtime, SharedJob
from app.settings import Settings
from app.tracing import Traces


@asynccontextmanager
async def open_cluster(
    settings: Settings, home: str, meters: Meters, traces: Traces, take_part: Callable[[SharedJob, str, int], Any]
) -> AsyncIterator[Runtime]:
    """Replicas outlive the server; `home` names what they belong to. Nodes `take_part` in jobs. Raises a refusal."""
    async with joined(settings):
        from app.cluster.applications import Applications, start  # noqa: PLC0415 - Ray has its settings only now
        from app.cluster.runtime import ClusterRuntime  # noqa: PLC0415 - the same

        await asyncio.to_thread(start)
        logs.take_over()  # Ray's own loggers write to stderr in words of theirs
        applications = Applications(home, settings.queue_limit, settings.log_level)
        limit, device = settings.queue_limit, settings.device
        runtime = ClusterRuntime(
            applications, take_part, queue_limit=limit, device=device, meters=meters, traces=traces
        )
        try:
            yield runtime
        finally:
            await runtime.close()
