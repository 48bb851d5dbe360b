"""Tasks by which the nodes of the cluster help with a job that this process leads: one on each node that can.

What a task does is `app.shard_tasks`; it takes shards by leases in the database, so that nothing depends on a task's
end. A node that cannot help is not asked again for this job, a lost one is as soon as it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app.meters import Meters
from app.runtime import SharedJob
from storage.errors import StorageError

log = logging.getLogger(__name__)

FIRST_SECONDS = 10.0
"""A job that is done sooner asks nobody: about as long takes a task to begin."""
LOOK_SECONDS = 2.0
END_SECONDS = 10.0
MOST_FAILURES = 3
"""Of tasks on one node, for one job."""

TakePart: TypeAlias = Callable[[SharedJob, str, int], tuple[str, str]]
"""Runs on a node, for a job of the database with that name, on so many cores: how it has ended, and why."""


@asynccontextmanager
async def helped(tasks: NodeTasks, free: Callable[[], Awaitable[int]]) -> AsyncIterator[None]:
    """Inside, nodes are asked to help as long as there are `free` shards; at its end their tasks end."""
    stopped = asyncio.Event()
    keeping = asyncio.create_task(keep(tasks, free, stopped))
    try:
        yield
    finally:
        stopped.set()
        await asyncio.wait({keeping}, timeout=END_SECONDS)


async def keep(tasks: NodeTasks, free: Callable[[], Awaitable[int]], stopped: asyncio.Event) -> None:
    """What goes wrong here costs help, and the job nothing."""
    pause = FIRST_SECONDS
    try:
        while not stopped.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), pause)
                return
            pause = LOOK_SECONDS
            try:
                await asyncio.to_thread(tasks.look, await free())
            except (RayError, StorageError, OSError) as error:
                log.warning("nodes of the cluster cannot be asked for help: %s", type(error).__name__)
    finally:
        await asyncio.to_thread(tasks.end)


@dataclass
class NodeTasks:
    """Of one job. A task is given as many cores as models have here, and a GPU where the job's model is on one."""

    take_part: TakePart
    shared: SharedJob
    home: str
    cores: int
    meters: Meters
    running: dict[str, Any] = field(default_factory=dict)
    """By node, also those that wait there for cores."""
    failures: Counter[str] = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)

    @cached_property
    def function(self) -> Any:
        gpus = 0 if self.shared.device == "cpu" else 1
        # Neither a second time elsewhere, where there is a task already, nor two in one process, which keeps memory.
        return ray.remote(num_cpus=self.cores, num_gpus=gpus, max_retries=0, max_calls=1)(self.take_part)

    def look(self, free: int) -> None:
        """Blocks: what has ended is noted, and nodes without a task are asked, as many as there are free shards."""
        self.settle()
        able = [node for node in ray.nodes() if node["Alive"] and self.can(node)]
        for node in able[: max(0, free)]:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = self.function.options(scheduling_strategy=place)
            self.running[node["NodeID"]] = task.remote(self.shared, self.home, self.cores)
            log.info("node %s is asked to help with job %s", node["NodeManagerAddress"], self.shared.job)

    def can(self, node: dict[str, Any]) -> bool:
        id, has = node["NodeID"], node["Resources"]
        if id in self.running or id in self.refused or not has.get("CPU") or self.failures[id] >= MOST_FAILURES:
            return False
        if self.shared.device != "cpu" and not has.get("GPU"):
            return False
        if has["CPU"] < self.cores:
            self.refuse(id, f"it has fewer cores than models have here ({self.cores}): see WHENCE_THREADS")
        return id not in self.refused

    def settle(self) -> None:
        if not self.running:
            return
        ended, _ = ray.wait(list(self.running.values()), num_returns=len(self.running), timeout=0)
        for node in [node for node, task in self.running.items() if task in ended]:
            self.ended(node, self.running.pop(node))

    def ended(self, node: str, task: Any) -> None:
        try:
            how, why = ray.get(task)
        except RayError as error:
            how, why = "lost", type(error).__name__
        if how == "refused":
            self.refuse(node, why)
            return
        self.meters.shard_tasks.labels(how).inc()
        if how != "done":
            self.failures[node] += 1
            log.warning("help of node %s with job %s has ended: %s", node, self.shared.job, why)

    def refuse(self, node: str, why: str) -> None:
        self.refused.add(node)
        self.meters.shard_tasks.labels("refused").inc()
        log.warning("node %s cannot help with job %s: %s", node, self.shared.job, why)

    def end(self) -> None:
        """Blocks: ends all tasks, without waiting for it. Those of a process that dies are ended by Ray."""
        with suppress(RayError):
            self.settle()
            for task in self.running.values():
                ray.cancel(task)
                self.meters.shard_tasks.labels("ended").inc()
