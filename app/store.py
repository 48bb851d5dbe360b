"""The store of files that machines share without a common folder: any place that fsspec has a URL for.

Context: training files and indexes are written once and read on other machines, and a folder that all of them see is
not to be had everywhere. Decision: what is put has its name only when it is whole, and is checked against the sha256
that a row or a manifest says whenever it is fetched; a mark names the one database whose files lie there. Consequences:
whoever is killed leaves parts without a name, damage is an error and never a number, and no server sweeps away the
files of another installation. Credentials come from the machine, never from the URL.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from app.refusals import Refusal, StoreAway
from storage.content import PART, sync_folder
from storage.ids import time_ordered

MARK = "whence-store.json"
PARTS = "parts"
"""The folder of what is being written, where the storage can rename."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


class Damaged(OSError):
    """A file of the store is not the one that was put there."""


def open_store(url: str) -> Store:
    """The store at a URL, of which nothing is asked yet. Raises Refusal for a URL that nothing here can read."""
    from fsspec.core import url_to_fs  # noqa: PLC0415 - only where a store is set

    scheme = url.partition("://")[0]
    try:
        files, root = url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        package = (getattr(error.__cause__, "name", None) or f"for {scheme}").partition(".")[0]
        raise Refusal(
            f"WHENCE_STORE_URL: {scheme}:// needs the Python package {package}, which is not installed: "
            f"pip install -c constraints.txt {package}"
        ) from None
    except Exception as error:  # noqa: BLE001 - of any kind of storage; its text may hold a secret
        raise Refusal(
            f"WHENCE_STORE_URL: no storage can be opened as {scheme}:// ({type(error).__name__}): write such as "
            "s3://bucket/prefix, gs://bucket/prefix or file:///folder"
        ) from None
    return Store(files, root, scheme)


class Store:
    """Files by names such as `files/<tenant>/<id>`. Every method blocks, and raises `StoreAway`."""

    def __init__(self, files: Any, root: str, scheme: str) -> None:
        from fsspec import AbstractFileSystem  # noqa: PLC0415 - only where a store is set
        from fsspec.implementations.local import LocalFileSystem  # noqa: PLC0415 - the same

        self.place = f"{scheme}://{root.rstrip('/')}"
        self._files, self._root = files, root.rstrip("/")
        self._local, self._claimed = isinstance(files, LocalFileSystem), False
        # Others copy to rename; what they write appears when it is whole.
        self._renames = type(files).mv is not AbstractFileSystem.mv

    def claim(self, home: str) -> None:
        """Marks the store as that of the database `home`, once it has been written, read and cleared.

        Raises Refusal where one of these is impossible, or the store is another's.
        """
        probe, mine = f"{PARTS}/{time_ordered()}", json.dumps({"database": home}).encode()
        try:
            self.write(probe, mine)
            sound = self.read(probe) == mine
            self.remove(probe)
            found = self._mark()
            if found is None:
                self.write(MARK, mine)
        except StoreAway as away:
            raise Refusal(
                f"WHENCE_STORE_URL: {self.place} cannot be written, read and cleared ({away.why}): does it exist, and "
                "has this machine the credentials for it?"
            ) from None
        if not sound:
            raise Refusal(f"WHENCE_STORE_URL: {self.place} gives back other bytes than it was given")
        if found not in (None, mine):
            raise Refusal(
                f"WHENCE_STORE_URL: {self.place} holds the files of another database: name an empty place, or remove "
                f"{MARK} there if that database was moved to where this one is"
            )

        self._claimed = True

    def look(self) -> None:
        """Raises `StoreAway` where the mark is gone, too: a folder that is not mounted is empty, and lacks nothing."""
        if self._mark() is None:
            raise StoreAway("its mark is gone")

    def _mark(self) -> bytes | None:
        with suppress(FileNotFoundError):
            return self.read(MARK)
        return None

    def put(self, path: Path, name: str) -> None:
        """Keeps a file from here, whole or not at all."""
        self._keep(name, lambda place: self._files.put_file(str(path), place))

    def write(self, name: str, content: bytes) -> None:
        """The same of a few bytes."""
        self._keep(name, lambda place: self._files.pipe_file(place, content))

    def read(self, name: str) -> bytes:
        """A few bytes. Raises FileNotFoundError."""
        place = self._at(name)
        with speaking():
            return bytes(self._files.cat_file(place))

    def fetch(self, name: str, path: Path, digest: str) -> None:
        """Brings a file here, which has its path when it is whole. Raises FileNotFoundError, Damaged."""
        place = self._at(name)
        make_folder(path.parent)
        part = path.with_name(f".{path.name}.{uuid4().hex}{PART}")
        try:
            os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            with speaking():
                self._files.get_file(place, str(part))
            with part.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise Damaged(f"{name} of the store is damaged")
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        except FileNotFoundError:
            self.look()
            raise
        finally:
            part.unlink(missing_ok=True)

    def sizes(self, folder: str) -> dict[str, int]:
        """What lies in a folder, by its last name; nothing where there is none."""
        place = self._at(folder)
        with suppress(FileNotFoundError), speaking():
            found = self._files.ls(place, detail=True)
            named = [(str(each["name"]).rstrip("/").rpartition("/")[2], each) for each in found]
            own = folder.rpartition("/")[2]
            return {name: int(each["size"] or 0) for name, each in named if name not in ("", own)}
        return {}

    def remove(self, name: str) -> None:
        """Nothing where there is none."""
        place = self._at(name)
        with suppress(FileNotFoundError), speaking():
            self._files.rm_file(place)

    def remove_folder(self, name: str) -> None:
        place = self._at(name)
        with suppress(FileNotFoundError), speaking():
            self._files.rm(place, recursive=True)

    def _at(self, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("no name of a file in the store")
        return f"{self._root}/{name}"

    def _keep(self, name: str, write: Callable[[str], object]) -> None:
        place = self._at(name)
        if self._local and self._claimed:
            self.look()
        try:
            with speaking():
                if not self._renames:
                    write(place)
                    return
                part = self._at(f"{PARTS}/{time_ordered()}")
                for each in (part, place):
                    self._make_folders(each)
                write(part)
                self._settle(part)
                self._files.mv(part, place)
                if self._local:
                    sync_folder(Path(place).parent)
        except FileNotFoundError:  # a bucket that is not there, for one
            raise StoreAway("there is no such place") from None

    def _make_folders(self, place: str) -> None:
        """Those above a file; on a disk for nobody else to read."""
        if self._local:
            make_folder(Path(place).parent)
        else:
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)

    def _settle(self, part: str) -> None:
        """On a disk a file survives a loss of power once it has been flushed."""
        if self._local:
            with Path(part).open("rb") as file:
                os.fchmod(file.fileno(), 0o600)
                os.fsync(file.fileno())


@contextmanager
def speaking() -> Iterator[None]:
    """Errors of whatever storage it is are `StoreAway`; what is not there, and a full disk here, stay what they are."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreAway(type(error).__name__) from None


def make_folder(folder: Path) -> None:
    """And those above it that are not there, for nobody else to read."""
    for each in (*reversed(folder.parents), folder):
        if not each.is_dir():
            each.mkdir(mode=0o700, exist_ok=True)
