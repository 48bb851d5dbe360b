"""ONNX models: one float matrix, or one named input per attribute; class probabilities or values come out.

Texts of a text classifier are one string input.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.errors import InvalidRequest, MissingCapability, PredictorFailed, UnreadableModel
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
ENDLESS = frozenset({"Loop", "Scan"})
"""Operators that can run for ever."""
MOST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    type: str
    rank: int
    width: int | None


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """A model of tables. An integer input gets the nearest integer of a cell."""

    session: Any
    inputs: tuple[Input, ...]
    output: str
    signature: Signature
    digest: str
    endless: bool
    format: str = "onnx"

    def predict(self, table: Table) -> NDArray[np.float64]:  # (n, M) -> (n, K)
        if len(self.inputs) == 1 and self.inputs[0].type != TEXT:
            fed = {self.inputs[0].name: _matrix(table, self.inputs[0])}
        else:
            places = {column.name: place for place, column in enumerate(table.columns)}
            fed = {entry.name: _column(table, places[entry.name], entry) for entry in self.inputs}
        return as_columns(_run(self.session, self.output, fed, self.endless))


@dataclass(frozen=True, slots=True)
class OnnxTexts:
    """A model of texts."""

    session: Any
    input: Input
    output: str
    signature: Signature
    digest: str
    endless: bool
    format: str = "onnx"

    def predict_texts(self, texts: list[str]) -> NDArray[np.float64]:  # n -> (n, K)
        array = np.array(texts, dtype=np.object_)
        shaped = array[:, None] if self.input.rank == 2 else array
        return as_columns(_run(self.session, self.output, {self.input.name: shaped}, self.endless))


def load(content: Content) -> OnnxGraph:
    """Raises UnreadableModel, MissingCapability without the library."""
    found, session = _session(content)
    inputs, output = tuple(_input(entry) for entry in session.get_inputs()), _output(session)
    if len(inputs) > 1 and any(entry.width not in (1, None) for entry in inputs):
        raise UnreadableModel("the ONNX model has several inputs, and one of them is more than a column")
    if len(inputs) == 1 and inputs[0].type not in (*FLOATS, TEXT):
        raise UnreadableModel(f"the ONNX model's only input is {inputs[0].type}, not a matrix of floats")
    named = len(inputs) > 1 or inputs[0].type == TEXT
    signature = _signature(inputs, named, found, session)
    return OnnxGraph(session, inputs, output, signature, content.digest, _loops(found))


def load_texts(content: Content) -> OnnxTexts:
    """A model with one input of strings. Errors as for `load`."""
    found, session = _session(content)
    inputs, output = [_input(entry) for entry in session.get_inputs()], _output(session)
    if len(inputs) != 1 or inputs[0].type != TEXT:
        raise UnreadableModel("a text classifier in ONNX has one input of strings, (n,) or (n, 1)")
    signature = Signature(width=1, outputs=_last(session), classes=_classes(found))
    return OnnxTexts(session, inputs[0], output, signature, content.digest, _loops(found))


def _session(content: Content) -> tuple[Survey, Any]:
    found = survey(content.data)
    if found.external:
        raise UnreadableModel(f"{content.name} keeps weights in other files: save it as one file")
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = max(1, len(os.sched_getaffinity(0)) - 1)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = runtime.InferenceSession(
            content.data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
        )
    except Exception as error:  # the library's errors have no common class
        raise UnreadableModel(f"{content.name} is refused by ONNX Runtime: {_reason(error)}") from error
    return found, session


def _input(entry: Any) -> Input:
    if entry.type not in DTYPES:
        raise UnreadableModel(f"ONNX input {entry.name!r} is {entry.type}, which no column can be")
    rank = len(entry.shape)
    if rank not in (1, 2):
        raise UnreadableModel(f"ONNX input {entry.name!r} has {rank} axes; rows of a table have (n, F), (n, 1) or (n,)")
    if isinstance(entry.shape[0], int):
        raise UnreadableModel(f"ONNX input {entry.name!r} takes {entry.shape[0]} rows only: leave its first axis open")
    width = 1 if rank == 1 else entry.shape[1]
    return Input(entry.name, entry.type, rank, width if isinstance(width, int) else None)


def _output(session: Any) -> str:
    """The only output of floats; labels beside it are left alone."""
    found = {entry.name: entry.type for entry in session.get_outputs()}
    if any(kind.startswith("seq(map") for kind in found.values()):
        raise UnreadableModel(
            "the ONNX model gives probabilities as a list of maps: convert it with options={'zipmap': False}"
        )
    floats: list[str] = [name for name, kind in found.items() if kind in FLOATS]
    if len(floats) != 1:
        raise UnreadableModel(f"the ONNX model has {len(floats)} outputs of floats; one is needed: {list(found)[:8]}")
    return floats[0]


def _signature(inputs: tuple[Input, ...], named: bool, found: Survey, session: Any) -> Signature:
    return Signature(
        width=len(inputs) if named else inputs[0].width,
        inputs=tuple(entry.name for entry in inputs) if named else None,
        by_name=named,
        categories={place: None for place, entry in enumerate(inputs) if named and entry.type == TEXT},
        strings=True,
        outputs=_last(session),
        classes=_classes(found),
        accepts_nulls=None if all(entry.type in FLOATS for entry in inputs) else False,
    )


def _last(session: Any) -> int | None:
    shape = next(entry.shape for entry in session.get_outputs() if entry.name == _output(session))
    if len(shape) == 1:
        return 1
    if len(shape) == 2 and isinstance(shape[1], int):
        return shape[1]
    return None


def _classes(found: Survey) -> tuple[str, ...] | None:
    return next(iter(found.labels)) if len(found.labels) == 1 else None


def _loops(found: Survey) -> bool:
    return bool(found.operators & ENDLESS)


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


def _run(session: Any, output: str, fed: Mapping[str, NDArray[Any]], endless: bool) -> NDArray[Any]:
    options = library("onnxruntime").RunOptions()
    options.log_severity_level = 4
    try:
        with _bounded(options) if endless else _unbounded():
            found = session.run([output], fed, options)[0]
    except Exception as error:  # as above
        if options.terminate:
            raise PredictorFailed(f"the ONNX model did not answer within {MOST_SECONDS:g} s") from error
        raise PredictorFailed(f"ONNX Runtime fails on the rows: {_reason(error)}") from error
    rows = len(next(iter(fed.values())))
    if not isinstance(found, np.ndarray) or found.ndim not in (1, 2) or len(found) != rows:
        raise MissingCapability("the ONNX model's output is not one row per row of input")
    return found


@contextmanager
def _bounded(options: Any) -> Iterator[None]:
    def stop() -> None:
        options.terminate = True

    timer = threading.Timer(MOST_SECONDS, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _unbounded() -> Iterator[None]:
    yield


def _reason(error: Exception) -> str:
    """The end of the library's message: it begins with places in its own source."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[-240:]
