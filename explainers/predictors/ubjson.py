"""Universal Binary JSON, as XGBoost writes it: https://ubjson.org, the types and containers of its model files.

Every claimed length is held against the bytes that are left before anything is allocated.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from explainers.errors import UnreadableModel

NUMBERS = {b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
FORMATS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q", b"d": ">f", b"D": ">d"}
CONSTANTS: dict[bytes, bool | None] = {b"T": True, b"F": False, b"Z": None}
MAX_NESTING = 32


def decode(data: bytes) -> Any:
    """The value of the whole document; typed lists are numpy arrays. Raises UnreadableModel."""
    reader = _Reader(data)
    value = reader.value(reader.take(1), MAX_NESTING)
    if reader.place != len(data):
        raise UnreadableModel("bytes follow the end of the UBJSON document")
    return value


@dataclass(slots=True)
class _Reader:
    data: bytes
    place: int = 0

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.place:
            raise UnreadableModel("the UBJSON document claims more bytes than it has")
        self.place += count
        return self.data[self.place - count : self.place]

    def peek(self) -> bytes:
        return self.data[self.place : self.place + 1]

    def number(self, kind: bytes) -> Any:
        form = FORMATS.get(kind)
        if form is None:
            raise UnreadableModel(f"UBJSON type {kind!r} is not a number")
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def length(self) -> int:
        count = self.number(self.take(1))
        if not isinstance(count, int) or not 0 <= count <= len(self.data) - self.place:
            raise UnreadableModel("the UBJSON document claims more than it holds")
        return count

    def text(self) -> str:
        try:
            return self.take(self.length()).decode()
        except UnicodeDecodeError as error:
            raise UnreadableModel("a UBJSON string is not UTF-8") from error

    def value(self, kind: bytes, nesting: int) -> Any:
        if kind in CONSTANTS:
            return CONSTANTS[kind]
        if kind == b"S":
            return self.text()
        if kind not in b"[{":
            return self.number(kind)
        if not nesting:
            raise UnreadableModel("the UBJSON document is nested too deep")
        return self.array(nesting - 1) if kind == b"[" else self.object(nesting - 1)

    def array(self, nesting: int) -> Any:
        if self.peek() == b"$":
            return self.typed()
        if self.peek() == b"#":
            self.take(1)
            return [self.value(self.take(1), nesting) for _ in range(self.length())]
        found = []
        while (kind := self.take(1)) != b"]":
            found.append(self.value(kind, nesting))
        return found

    def typed(self) -> Any:
        self.take(1)
        kind = self.take(1)
        if kind not in NUMBERS or self.take(1) != b"#":
            raise UnreadableModel("a typed UBJSON list is not of numbers")
        dtype = np.dtype(NUMBERS[kind])
        values = np.frombuffer(self.take(self.length() * dtype.itemsize), dtype)
        return values.astype(dtype.newbyteorder("="))

    def object(self, nesting: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.peek() != b"}":
            name = self.text()
            if name in found:
                raise UnreadableModel("a UBJSON object has a name twice")
            found[name] = self.value(self.take(1), nesting)
        self.take(1)
        return found
