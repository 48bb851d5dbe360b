"""Files as they come: read whole, within a limit, and refused when their content could run code."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from explainers.errors import UnreadableModel

MAX_BYTES = 512 * 2**20
MOST_UNPACKED, MOST_MEMBERS = 2 * 2**30, 100_000
REMEDY = "it could run code; save the model as ONNX, XGBoost .json or .ubj, LightGBM .txt, or .skops"
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"\x78": "zlib",
}
"""First bytes of what joblib writes around a pickle, among others."""


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes; `digest` is their sha256."""

    data: bytes
    digest: str
    name: str


def read(path: Path, limit: int = MAX_BYTES) -> Content:
    """The whole file. Raises UnreadableModel for one that is missing, empty, too large, or of a kind that runs code."""
    if path.is_dir():
        raise UnreadableModel(f"{path.name} is a folder: models of tables are one file, folders are of other kinds")
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnreadableModel(f"{path.name} is no plain file")
            data = file.read(limit + 1)
    except OSError as error:
        raise UnreadableModel(f"{path.name} cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise UnreadableModel(f"{path.name} is larger than the limit of {limit} bytes")
    if not data:
        raise UnreadableModel(f"{path.name} is empty")
    refuse_code(data, path.name)
    return Content(data, f"sha256:{hashlib.sha256(data).hexdigest()}", path.name)


def _without_waiting(path: str, flags: int) -> int:
    """To open a pipe takes until somebody writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def refuse_code(data: bytes, name: str) -> None:
    """Raises UnreadableModel for pickles, PyTorch archives and whatever else hides its content."""
    kind = _kind_that_runs(data)
    if kind:
        raise UnreadableModel(f"{name} is {kind}: {REMEDY}")


def _kind_that_runs(data: bytes) -> str | None:
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle"
    if data[:1] in (b"(", b"c", b"]", b"}", b"I", b"S", b"V") and data.rstrip()[-1:] == b"." and b"\n" in data[:4096]:
        return "a pickle of the oldest kind"
    if data.startswith(b"PK"):
        return _archive_that_runs(data)
    if data.startswith((b"\x7fELF", b"MZ", b"#!")):
        return "a program"
    found = next((kind for start, kind in COMPRESSED.items() if data.startswith(start)), None)
    return f"compressed ({found}, as joblib writes pickles)" if found else None


def _archive_that_runs(data: bytes) -> str | None:
    """Archives of `torch.save` hold a data.pkl; numpy's hold arrays that may be pickles."""
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            names, sizes = archive.namelist(), [member.file_size for member in archive.infolist()]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return "a broken archive"
    if any(name.endswith((".pkl", ".pickle", ".joblib")) for name in names):
        return "an archive with a pickle in it (as torch.save writes)"
    if any(name.startswith("/") or ".." in name.split("/") for name in names):
        return "an archive with paths in it"
    if sum(sizes) > MOST_UNPACKED or len(sizes) > MOST_MEMBERS:
        return f"an archive of more than {MOST_UNPACKED} bytes or {MOST_MEMBERS} files"
    return None
