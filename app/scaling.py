"""How a model is spread over a cluster: what its registration says of it. In one process it has no meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from explainers.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Scaling:
    """Replicas, each with cores and GPUs of its own (None: one GPU where the cluster has any, else none).

    Between `min_replicas` and `max_replicas` there are as many as keep `target_requests` under way in each. Raises
    InvalidRequest for numbers that cannot be.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    target_requests: float = 2.0
    cpus: float = 1.0
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.max_replicas < self.min_replicas:
            raise InvalidRequest("must be >= min_replicas", "/scaling/max_replicas")


DEFAULT = Scaling()
"""Of a model whose registration says nothing."""


def scaling_from(record: Mapping[str, Any] | None) -> Scaling | None:
    return None if record is None else Scaling(**record)


def scaling_record(scaling: Scaling | None) -> dict[str, Any] | None:
    return None if scaling is None else asdict(scaling)
