"""Applications of Ray Serve: one for each set of weights and scaling, made by whoever needs it first.

Several servers do this at once. An application is named for what it serves, and says the same whoever makes it: the
second one changes nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from app.cluster.replica import Replica
from app.device import NICE_PLACES, PLACES
from app.refusals import Unreachable
from app.runtime import Weights
from app.scaling import DEFAULT, Scaling

log = logging.getLogger(__name__)

DEPLOYMENT = "replica"
LOOK_SECONDS = 0.25
START_SECONDS = 900.0
"""For the first replica: the cluster may have to get a machine first."""
YOUNG_SECONDS = 600.0
"""Younger applications may be of a model that another server is about to register."""
STOP_SECONDS = 300.0
"""For what is under way in a replica that is told to end."""
SERVE = threading.RLock()
"""Of whoever makes or reads a configuration of Serve, which pickles a part of it with a switch of the whole process:
two threads would turn it off under each other.
"""


@dataclass(frozen=True)
class Applications:
    """Those of one installation, whose name begins theirs; `queue_limit` is that of each replica's device."""

    home: str
    queue_limit: int
    log_level: str

    def name_of(self, weights: Weights, scaling: Scaling | None) -> str:
        """Names all that decides what the application is."""
        told = [version("whence"), weights, None if scaling is None else asdict(scaling)]
        return f"{self.prefix}{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:20]}"

    @property
    def prefix(self) -> str:
        return f"whence-{hashlib.sha256(self.home.encode()).hexdigest()[:8]}-"

    async def ensure(self, weights: Weights, scaling: Scaling | None) -> Any:
        """The handle of the application, once it has a replica. Raises `Unreachable`."""
        name, end = self.name_of(weights, scaling), time.monotonic() + START_SECONDS
        with told_plainly():
            await asyncio.to_thread(self._deploy, name, weights, scaling or DEFAULT)
            while (state := (await self.states()).get(name)) != "RUNNING":
                if state in ("DEPLOY_FAILED", None) or time.monotonic() > end:
                    await self.delete([name])
                    raise Unreachable("the cluster has not started a replica of this model: its logs say why")
                await asyncio.sleep(LOOK_SECONDS)
            return await asyncio.to_thread(serve.get_app_handle, name)

    async def states(self) -> Mapping[str, str]:
        """Of all applications, in Serve's words."""
        return {name: str(each.status.value) for name, each in (await asyncio.to_thread(known)).items()}

    async def delete(self, names: Collection[str]) -> None:
        for name in names:
            await asyncio.to_thread(serve.delete, name)

    async def sweep(self, needed: Collection[str], gone: Collection[str]) -> frozenset[str]:
        """Deletes ours that nobody needs: those that are `gone`, and old ones. Returns those that are there."""
        there = {name: each for name, each in (await asyncio.to_thread(known)).items() if name.startswith(self.prefix)}
        now = time.time()
        stray = {name for name, each in there.items() if now - each.last_deployed_time_s > YOUNG_SECONDS} | set(gone)
        await self.delete([name for name in stray - set(needed) if name in there])
        return frozenset(there)

    def _deploy(self, name: str, weights: Weights, scaling: Scaling) -> None:
        """Blocks until Serve knows what is wanted, not until it is there."""
        there = known().get(name)
        if there is not None and there.status.value in ("DEPLOYING", "RUNNING", "UNHEALTHY"):
            return
        with SERVE:
            serve.run_many(
                [self.target(name, weights, scaling)],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )

    def target(self, name: str, weights: Weights, scaling: Scaling) -> serve.RunTarget:
        """The application as Serve is told of it."""
        gpus = default_gpus(weights) if scaling.gpus is None else scaling.gpus
        cores = max(1, int(scaling.cpus))
        with SERVE:
            deployment = serve.deployment(Replica, name=DEPLOYMENT).options(
                ray_actor_options={"num_cpus": scaling.cpus, "num_gpus": gpus},
                max_ongoing_requests=self.queue_limit + 2 * (PLACES + NICE_PLACES),
                max_queued_requests=self.queue_limit,
                graceful_shutdown_timeout_s=STOP_SECONDS,
                logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"),
                **replicas(scaling),
            )
        # Else Serve takes the same deployment for a new one, and starts its replicas anew; its options take none.
        deployment._version = name
        device = None if gpus else "cpu"  # a replica without a GPU of its own leaves those of others alone
        bound = deployment.bind(weights, device, self.queue_limit, cores, self.log_level)
        return serve.RunTarget(target=bound, name=name, route_prefix=None)


def start() -> None:
    """Starts Serve where it does not run yet, without a port of its own: replicas are called by handles alone."""
    serve.start(proxy_location="Disabled", logging_config=LoggingConfig(enable_access_log=False, log_level="WARNING"))


@contextmanager
def told_plainly() -> Iterator[None]:
    """Inside, what Ray raises of itself is `Unreachable`."""
    try:
        yield
    except (RayError, RayServeException, TimeoutError) as error:
        log.warning("the cluster cannot be asked: %s", type(error).__name__)
        raise Unreachable("the replicas of this model cannot be reached: try again later") from None


def known() -> dict[str, Any]:
    with SERVE:
        return dict(serve.status().applications)


def replicas(scaling: Scaling) -> dict[str, Any]:
    if scaling.min_replicas == scaling.max_replicas:
        return {"num_replicas": scaling.min_replicas}
    between = {"min_replicas": scaling.min_replicas, "max_replicas": scaling.max_replicas}
    return {"autoscaling_config": {**between, "target_ongoing_requests": scaling.target_requests}}


def default_gpus(weights: Weights) -> float:
    """One where the cluster has any, unless the model is to run on a CPU."""
    if weights.device == "cpu":
        return 0.0
    return 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
