"""The process of an ONNX graph: a graph without an end, or without a bound on its memory, ends there and not here."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from explainers.confined.child_process import Limits
from explainers.errors import ExplainerError, PredictorFailed, UnreadableModel
from explainers.predictors import onnx_graph
from explainers.predictors.binding import TablePredictor
from explainers.predictors.contents import Content
from explainers.table import Column, Table
from tests.explainers.predictors.makers import Made

Make = Callable[[str], Made]
Bind = Callable[[str], TablePredictor]
ROWS = Table((Column("a"), Column("b")), np.ones((3, 2)))
SOON = Limits(memory_bytes=2**30, load_seconds=20.0, call_seconds=3.0)


def graph(*nodes: onnx.NodeProto, **more: Any) -> bytes:
    """A model from x, a matrix of two columns, to y."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])
    whole = helper.make_graph(list(nodes), "g", [x], [y], **more)
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("odd", 1)]
    return helper.make_model(whole, opset_imports=opset, ir_version=8).SerializeToString()


def endless() -> bytes:
    """A loop over a condition that stays true."""
    kept = helper.make_tensor_value_info("kept", TensorProto.FLOAT, [None, 2])
    told = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", TensorProto.INT64),)]
    go = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    on = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 2])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Sin", ["kept"], ["out"])],
        "body",
        [*told, go, kept],
        [on, out],
    )
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    return graph(
        helper.make_node("Constant", [], ["yes"], value=true),
        helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body),
    )


def huge(*shape: int) -> bytes:
    """A constant of any size, said in a few bytes and made when the graph runs."""
    dims = helper.make_tensor("dims", TensorProto.INT64, [len(shape)], list(shape))
    return graph(
        helper.make_node("Constant", [], ["shape"], value=dims),
        helper.make_node("ConstantOfShape", ["shape"], ["much"]),
        helper.make_node("ReduceSum", ["much"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    )


def load(data: bytes, limits: Limits = SOON) -> onnx_graph.OnnxGraph:
    return onnx_graph.load(Content(data, "", "m.onnx"), limits)


def resident() -> int:
    """KiB of this process at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_graph_without_an_end_is_ended() -> None:
    model = load(endless())
    pid, started = model.session.process.pid, time.monotonic()
    with pytest.raises(PredictorFailed, match="in time"):
        model.predict(ROWS)
    assert time.monotonic() - started < 30
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("shape", [(2**31,), (2**20, 2**20), (2**62,)], ids=["8 GB", "4 TB", "too many"])
def test_a_graph_that_wants_all_memory_gets_none(shape: tuple[int, ...]) -> None:
    before = resident()
    with pytest.raises(ExplainerError):
        load(huge(*shape)).predict(ROWS)
    assert resident() - before < 2**17


def test_a_tensor_that_claims_more_than_it_holds() -> None:
    claims = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**40, 2], raw_data=b"\0" * 8)
    with pytest.raises(UnreadableModel, match=r"refused by ONNX Runtime|ended"):
        load(graph(helper.make_node("Add", ["x", "w"], ["y"]), initializer=[claims]))


def test_operators_that_nobody_knows_are_refused() -> None:
    with pytest.raises(UnreadableModel, match="refused by ONNX Runtime"):
        load(graph(helper.make_node("Shell", ["x"], ["y"], domain="odd", command="touch /tmp/canary")))


def test_after_a_process_is_killed_the_next_call_starts_another(made: Make, bound: Bind) -> None:
    predictor, file = bound("onnx_matrix"), made("onnx_matrix")
    artifact: Any = predictor.artifact
    pid = artifact.session.process.pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    np.testing.assert_allclose(predictor.predict(file.table), file.expected, atol=1e-5)
    assert artifact.session.process.pid != pid


def test_what_the_process_may_not_do(made: Make) -> None:
    """Its limits, its environment and, on x86-64, the filter of its system calls."""
    model = load(made("onnx_matrix").path.read_bytes())
    about = f"/proc/{model.session.process.pid}"
    with open(f"{about}/environ", encoding="utf-8") as file:  # noqa: PTH123
        told = {line.partition("=")[0] for line in file.read().split("\0") if line}
    assert told <= {
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "MALLOC_ARENA_MAX",
        "LC_CTYPE",
    }
    assert os.readlink(f"{about}/cwd") == "/"  # noqa: PTH115
    with open(f"{about}/status", encoding="utf-8") as file:  # noqa: PTH123
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    if os.uname().machine == "x86_64":
        assert (status["Seccomp"].strip(), status["NoNewPrivs"].strip()) == ("2", "1")
