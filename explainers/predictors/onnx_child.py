"""An ONNX graph in a process of its own: a graph can compute for ever, or ask for more memory than there is.

Runs inside `sandbox`; asked by `onnx_graph`. Inputs come one behind the other, numbers in the graph's own types and
texts as a JSON array; its one output goes back as float64.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from explainers.confined.sandbox import Refusal


class Served:
    """The session, once loaded."""

    def __init__(self) -> None:
        self.session: Any = None

    def answer(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        if header["ask"] == "load":
            self.session = session_of(payload, header["threads"])
            return {"inputs": said(self.session.get_inputs()), "outputs": said(self.session.get_outputs())}, b""
        found = run(self.session, header["output"], fed(header["inputs"], payload))
        numbers = np.ascontiguousarray(found, dtype="<f8")
        return {"shape": list(numbers.shape)}, numbers.tobytes()


def session_of(data: bytes, threads: int) -> Any:
    """Nothing of the graph is computed in advance: constants that it folds may be of any size."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
        )
    except Exception as error:  # the library's errors have no common class
        raise Refusal("unreadable", f"is refused by ONNX Runtime: {reason(error)}") from error


def said(entries: Any) -> list[tuple[str, str, list[Any]]]:
    """Name, type and shape of inputs or outputs."""
    return [(entry.name, entry.type, list(entry.shape)) for entry in entries]


def fed(inputs: list[dict[str, Any]], payload: bytes) -> dict[str, NDArray[Any]]:
    found, place = {}, 0
    for entry in inputs:
        part = payload[place : place + entry["bytes"]]
        place += len(part)
        texts = entry["dtype"] == "object"
        array = np.array(json.loads(part), np.object_) if texts else np.frombuffer(part, entry["dtype"])
        found[entry["name"]] = array.reshape(entry["shape"])
    return found


def run(session: Any, output: str, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    try:
        found = session.run([output], inputs, options)[0]
    except Exception as error:  # as above
        raise Refusal("failed", f"ONNX Runtime fails on the rows: {reason(error)}") from error
    rows = len(next(iter(inputs.values())))
    if not isinstance(found, np.ndarray) or found.ndim not in (1, 2) or len(found) != rows:
        raise Refusal("capability", "its output is not one row per row of input")
    return found


def reason(error: Exception) -> str:
    """The end of the library's message: it begins with places in its own source."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[-240:]
