"""What an ONNX file holds, read from its protobuf bytes without a library: only what decides whether it is safe.

Messages and field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from explainers.errors import UnreadableModel

INNER: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
"""Message -> number of a field that is a message -> which."""
EXTERNAL_DATA, DATA_LOCATION, OPERATOR, ATTRIBUTE_NAME, ATTRIBUTE_TEXTS, ATTRIBUTE_INTEGERS = 13, 14, 4, 1, 9, 8
LABELS = (b"classlabels_strings", b"classlabels_ints", b"classlabels_int64s")
MAX_NESTING = 64
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


@dataclass(slots=True)
class Survey:
    """`labels` are the different lists of class labels of the file's classifiers."""

    external: bool = False
    operators: set[str] = field(default_factory=set)
    labels: set[tuple[str, ...]] = field(default_factory=set)


def survey(data: bytes) -> Survey:
    """Raises UnreadableModel for bytes that are no ONNX model."""
    found = Survey()
    _message(memoryview(data), "Model", found, MAX_NESTING)
    if not found.operators:
        raise UnreadableModel("the file holds no ONNX graph")
    return found


def _message(data: memoryview, kind: str, found: Survey, nesting: int) -> None:
    if not nesting:
        raise UnreadableModel("the ONNX graph is nested too deep")
    fields = list(_fields(data))
    for number, value in fields:
        inner = INNER[kind].get(number)
        if inner and not isinstance(value, memoryview):
            raise UnreadableModel("an ONNX message has a field of another kind")
        if inner and isinstance(value, memoryview):
            _message(value, inner, found, nesting - 1)
        elif kind == "Tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value != 0)):
            found.external = True
        elif kind == "Node" and number == OPERATOR and isinstance(value, memoryview):
            found.operators.add(bytes(value).decode(errors="replace"))
    if kind == "Attribute":
        _attribute(fields, found)


def _attribute(fields: list[tuple[int, int | memoryview]], found: Survey) -> None:
    names = [bytes(value) for number, value in fields if number == ATTRIBUTE_NAME and isinstance(value, memoryview)]
    if names[-1:] and names[-1] in LABELS:
        labels: list[str] = []
        for number, value in fields:
            if number == ATTRIBUTE_TEXTS and isinstance(value, memoryview):
                labels.append(bytes(value).decode(errors="replace"))
            elif number == ATTRIBUTE_INTEGERS:
                labels += [str(_signed(item)) for item in ([value] if isinstance(value, int) else _varints(value))]
        if labels:
            found.labels.add(tuple(labels))


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == VARINT:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, place = _varint(data, place)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise UnreadableModel("the file is no ONNX model")
        if size > len(data) - place:
            raise UnreadableModel("the ONNX model claims more bytes than it has")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise UnreadableModel("the file is no ONNX model: a number does not end")


def _varints(data: memoryview) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
