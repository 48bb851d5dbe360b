"""Which nodes are asked to help with a job, told from what Ray says of them."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from app.meters import Meters
from app.runtime import SharedJob
from app.shard_tasks import take_part


def tasks(device: str, cores: int) -> Any:
    from app.cluster.node_tasks import NodeTasks

    shared = SharedJob("influence-index", "default", uuid4(), 1, uuid4(), device)
    return NodeTasks(take_part, shared, "1/whence", cores, Meters())


def node(**resources: float) -> dict[str, Any]:
    return {"NodeID": "a", "Alive": True, "Resources": resources}


def refused(asked: Any) -> float:
    return float(asked.meters.registry.get_sample_value("whence_shard_tasks_total", {"outcome": "refused"}) or 0)


def test_a_node_without_cores_is_not_asked_and_nothing_is_said_of_it(ray: None) -> None:
    asked = tasks("cpu", 2)
    assert not asked.can(node()) and not asked.can(node(CPU=0, GPU=1))
    assert not refused(asked) and asked.can(node(CPU=2))


def test_a_node_with_fewer_cores_than_models_have_here_is_refused_once(
    ray: None, caplog: pytest.LogCaptureFixture
) -> None:
    asked = tasks("cpu", 4)
    with caplog.at_level("WARNING"):
        assert [asked.can(node(CPU=2)) for _ in range(3)] == [False] * 3
    assert refused(asked) == 1 and caplog.text.count("WHENCE_THREADS") == 1


def test_a_model_on_a_gpu_is_computed_on_gpus_alone(ray: None) -> None:
    asked = tasks("cuda", 1)
    assert not asked.can(node(CPU=8)) and asked.can(node(CPU=8, GPU=1))


def test_a_node_whose_tasks_fail_again_and_again_is_left_alone(ray: None) -> None:
    from app.cluster.node_tasks import MOST_FAILURES

    asked = tasks("cpu", 1)
    asked.failures["a"] = MOST_FAILURES - 1
    assert asked.can(node(CPU=1))
    asked.failures["a"] += 1
    assert not asked.can(node(CPU=1))
