"""The contents of training files: one file each, `files/<tenant>/<id>` below the folder of the server's data.

On disk and not in a row: a content may have half a gigabyte, is read front to back and never queried, and a row of that
size costs several times its memory on both sides of the connection. So workers on other machines need that folder to be
shared, or a store behind it (`app/shelf.py`), and a backup of the database goes with one of the folder.

Nobody but the server may read them (0600 below 0700). A content is written under another name, brought to the disk and
only then renamed: what has its name is whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

from storage.errors import NotFound

PART = ".part"
STRAY_SECONDS = 3600.0
"""What is younger may be waiting for its row to be committed."""


def content_path(data_dir: Path, tenant: str, id: UUID) -> Path:
    """Where a content lies. The name of a tenant is a plain word: see the table's check."""
    return data_dir / "files" / tenant / str(id)


def write_content(data_dir: Path, tenant: str, id: UUID, content: bytes) -> None:
    """Keeps a content: when this returns it is on the disk, whole. Raises OSError."""
    write_whole(content_path(data_dir, tenant, id), content)


def write_whole(path: Path, content: bytes) -> None:
    """Keeps a file and its folders: it is on the disk when it has its name. Raises OSError, and leaves nothing then."""
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid4().hex}{PART}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
        sync_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_content(data_dir: Path, tenant: str, id: UUID) -> bytes:
    """The content, as it came. Raises NotFound where it is gone: removed meanwhile, or kept on another machine."""
    try:
        return content_path(data_dir, tenant, id).read_bytes()
    except FileNotFoundError:
        raise NotFound("the content of this file is not on this machine") from None


def remove_content(data_dir: Path, tenant: str, id: UUID) -> None:
    """Once its row is gone; nothing where there is none."""
    content_path(data_dir, tenant, id).unlink(missing_ok=True)


def sweep_contents(data_dir: Path, tenant: str, known: Collection[UUID]) -> int:
    """Removes what no row knows and no request can still be writing; how many those were."""
    names, swept = {str(id) for id in known}, 0
    folder = data_dir / "files" / tenant
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        with suppress(FileNotFoundError):  # another server sweeps too
            if path.name not in names and time.time() - path.stat().st_mtime > STRAY_SECONDS:
                path.unlink()
                swept += 1
    return swept


def sweep_parts(folder: Path) -> None:
    """Removes what writers that were killed have left in a folder."""
    for path in folder.glob(f"*{PART}"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STRAY_SECONDS:
                path.unlink()


def sync_folder(folder: Path) -> None:
    """The new name survives a loss of power only once its folder is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
