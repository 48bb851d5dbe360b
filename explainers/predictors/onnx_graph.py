"""ONNX models: one float matrix, or one named input per attribute; class probabilities or values come out.

Texts of a text classifier are one string input. A graph is a program: it runs in a process with hard limits.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.confined.child_process import ChildProcess, Limits
from explainers.errors import InvalidRequest, PredictorFailed, UnreadableModel
from explainers.predictors.artifact import Signature, as_columns, check_no_nulls, library
from explainers.predictors.contents import Content
from explainers.predictors.onnx_wire import Survey, survey
from explainers.table import Table

DTYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(string)": np.object_,
}
FLOATS = ("tensor(float)", "tensor(double)")
TEXT = "tensor(string)"
CHILD = "explainers.predictors.onnx_child"
MOST_THREADS = 16
"""Each takes address space, which is limited."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An input or output as the graph declares it; axes without a number are names or None."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Session:
    """A graph that waits in its process. Any thread may call; calls take turns, each with all cores."""

    process: ChildProcess
    survey: Survey
    inputs: tuple[Entry, ...]
    outputs: tuple[Entry, ...]

    def run(self, output: str, fed: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:  # (n,) or (n, K)
        """Raises PredictorFailed for a graph that fails, ends or takes too long; MissingCapability for odd answers."""
        parts = {name: _bytes_of(array) for name, array in fed.items()}
        inputs = [
            {"name": name, "dtype": str(array.dtype), "shape": array.shape, "bytes": len(parts[name])}
            for name, array in fed.items()
        ]
        header = {"ask": "predict", "output": output, "inputs": inputs}
        answer, numbers = self.process.call(header, b"".join(parts.values()))
        shape = answer.get("shape", [])
        if len(shape) not in (1, 2) or math.prod(shape) * 8 != len(numbers):
            raise PredictorFailed("the model's process answered another size than it said")
        return np.frombuffer(numbers, dtype="<f8").reshape(shape)


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    type: str
    rank: int
    width: int | None


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """A model of tables. An integer input gets the nearest integer of a cell."""

    session: Session
    inputs: tuple[Input, ...]
    output: str
    signature: Signature
    digest: str
    format: str = "onnx"

    def predict(self, table: Table) -> NDArray[np.float64]:  # (n, M) -> (n, K)
        if len(self.inputs) == 1 and self.inputs[0].type != TEXT:
            fed = {self.inputs[0].name: _matrix(table, self.inputs[0])}
        else:
            places = {column.name: place for place, column in enumerate(table.columns)}
            fed = {entry.name: _column(table, places[entry.name], entry) for entry in self.inputs}
        return as_columns(self.session.run(self.output, fed))


@dataclass(frozen=True, slots=True)
class OnnxTexts:
    """A model of texts."""

    session: Session
    input: Input
    output: str
    signature: Signature
    digest: str
    format: str = "onnx"

    def predict_texts(self, texts: list[str]) -> NDArray[np.float64]:  # n -> (n, K)
        array = np.array(texts, dtype=np.object_)
        shaped = array[:, None] if self.input.rank == 2 else array
        return as_columns(self.session.run(self.output, {self.input.name: shaped}))


def load(content: Content, limits: Limits | None = None) -> OnnxGraph:
    """Raises UnreadableModel, MissingCapability without the library."""
    session = _session(content, limits)
    inputs, output = tuple(_input(entry) for entry in session.inputs), _output(session)
    if len(inputs) > 1 and any(entry.width not in (1, None) for entry in inputs):
        raise UnreadableModel("the ONNX model has several inputs, and one of them is more than a column")
    if len(inputs) == 1 and inputs[0].type not in (*FLOATS, TEXT):
        raise UnreadableModel(f"the ONNX model's only input is {inputs[0].type}, not a matrix of floats")
    named = len(inputs) > 1 or inputs[0].type == TEXT
    signature = _signature(inputs, named, session)
    return OnnxGraph(session, inputs, output, signature, content.digest)


def load_texts(content: Content, limits: Limits | None = None) -> OnnxTexts:
    """A model with one input of strings. Errors as for `load`."""
    session = _session(content, limits)
    inputs, output = [_input(entry) for entry in session.inputs], _output(session)
    if len(inputs) != 1 or inputs[0].type != TEXT:
        raise UnreadableModel("a text classifier in ONNX has one input of strings, (n,) or (n, 1)")
    signature = Signature(width=1, outputs=_last(session), classes=_classes(session.survey))
    return OnnxTexts(session, inputs[0], output, signature, content.digest)


def _session(content: Content, limits: Limits | None) -> Session:
    found = survey(content.data)
    if found.external:
        raise UnreadableModel(f"{content.name} keeps weights in other files: save it as one file")
    library("onnxruntime")
    threads = min(MOST_THREADS, max(1, len(os.sched_getaffinity(0)) - 1))
    limits = limits or Limits(call_seconds=60.0, cores=threads)
    process = ChildProcess(CHILD, content.data, limits, "the ONNX model", {"threads": threads})
    facts = process.start()
    inputs, outputs = (
        tuple(Entry(name, kind, tuple(shape)) for name, kind, shape in facts[side]) for side in ("inputs", "outputs")
    )
    return Session(process, found, inputs, outputs)


def _input(entry: Entry) -> Input:
    if entry.type not in DTYPES:
        raise UnreadableModel(f"ONNX input {entry.name!r} is {entry.type}, which no column can be")
    rank = len(entry.shape)
    if rank not in (1, 2):
        raise UnreadableModel(f"ONNX input {entry.name!r} has {rank} axes; rows of a table have (n, F), (n, 1) or (n,)")
    if isinstance(entry.shape[0], int):
        raise UnreadableModel(f"ONNX input {entry.name!r} takes {entry.shape[0]} rows only: leave its first axis open")
    width = 1 if rank == 1 else entry.shape[1]
    return Input(entry.name, entry.type, rank, width if isinstance(width, int) else None)


def _output(session: Session) -> str:
    """The only output of floats; labels beside it are left alone."""
    found = {entry.name: entry.type for entry in session.outputs}
    if any(kind.startswith("seq(map") for kind in found.values()):
        raise UnreadableModel(
            "the ONNX model gives probabilities as a list of maps: convert it with options={'zipmap': False}"
        )
    floats = [name for name, kind in found.items() if kind in FLOATS]
    if len(floats) != 1:
        raise UnreadableModel(f"the ONNX model has {len(floats)} outputs of floats; one is needed: {list(found)[:8]}")
    return floats[0]


def _signature(inputs: tuple[Input, ...], named: bool, session: Session) -> Signature:
    return Signature(
        width=len(inputs) if named else inputs[0].width,
        inputs=tuple(entry.name for entry in inputs) if named else None,
        by_name=named,
        categories={place: None for place, entry in enumerate(inputs) if named and entry.type == TEXT},
        strings=True,
        outputs=_last(session),
        classes=_classes(session.survey),
        accepts_nulls=None if all(entry.type in FLOATS for entry in inputs) else False,
    )


def _last(session: Session) -> int | None:
    shape = next(entry.shape for entry in session.outputs if entry.name == _output(session))
    if len(shape) == 1:
        return 1
    if len(shape) == 2 and isinstance(shape[1], int):
        return shape[1]
    return None


def _classes(found: Survey) -> tuple[str, ...] | None:
    return next(iter(found.labels)) if len(found.labels) == 1 else None


def _matrix(table: Table, entry: Input) -> NDArray[Any]:
    cells = _as_dtype(table.cells, entry.type)
    return cells if entry.rank == 2 else cells[:, 0]


def _column(table: Table, place: int, entry: Input) -> NDArray[Any]:
    if entry.type not in FLOATS:
        check_no_nulls(table, [place])
    if entry.type == TEXT:
        values = np.array(table.values(place), dtype=np.object_)
    else:
        values = _as_dtype(table.cells[:, place], entry.type)
    return values[:, None] if entry.rank == 2 else values


def _as_dtype(cells: NDArray[np.float64], kind: str) -> NDArray[Any]:
    """Raises InvalidRequest for a number that the type cannot hold."""
    dtype = DTYPES[kind]
    if np.issubdtype(dtype, np.floating):
        fits = ~(np.abs(cells) > np.finfo(dtype).max)
    elif dtype is np.bool_:
        fits = (cells == 0) | (cells == 1)
    else:
        cells = np.rint(cells)
        fits = (cells >= np.iinfo(dtype).min) & (cells < float(np.iinfo(dtype).max))
    if not fits.all():
        raise InvalidRequest(f"the ONNX model reads {kind}, and a number does not fit into it")
    return cells.astype(dtype)


def _bytes_of(array: NDArray[Any]) -> bytes:
    return json.dumps(array.ravel().tolist()).encode() if array.dtype == np.object_ else array.tobytes()
