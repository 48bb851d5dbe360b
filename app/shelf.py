"""Files that are written once, below the data directory: training files, indexes, uploaded models.

Without a store that folder is all there is, and whoever works on the same data sees the same folder. With one
(`WHENCE_STORE_URL`), the store is what is shared: a file is put there before any row speaks of it, and the folder is
this machine's own copy of what it has put and fetched. A folder of files is put file by file, each under its sha256, so
that two who write it cannot spoil each other's; last comes a manifest, and a folder without one is not there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

from app.settings import Settings
from app.store import PARTS, Damaged, Store, open_store
from explainers.errors import UnreadableModel
from storage.content import PART, STRAY_SECONDS
from storage.database import Database, home

AT_ONCE = 8
"""Transfers of one process; their threads are their own, so that storage that hangs holds up nothing else."""
FRESH_SECONDS, LOOK_SECONDS = 10.0, 3.0
"""Between two looks at whether the store answers, and the longest that one may take."""
MANIFEST = "manifest.json"
MODELS = "models"
MODEL = re.compile(r"([0-9a-f]{64})\.[a-z]+")
FILE = re.compile(r"([a-z]+/)?[A-Za-z0-9][A-Za-z0-9_.-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Sum:
    """What a manifest says of a file."""

    bytes: int
    sha256: str


async def open_shelf(settings: Settings, database: Database) -> Shelf:
    """That of these settings. Raises Refusal for a store that cannot be used, or is another database's."""
    if settings.store_url is None:
        return Shelf(settings.data_dir)
    store = await asyncio.to_thread(open_store, settings.store_url.get_secret_value())
    await asyncio.to_thread(store.claim, await home(database))
    return Shelf(settings.data_dir, store)


class Shelf:
    """The data directory, and the store behind it if there is one; without one nothing here does anything."""

    def __init__(self, folder: Path, store: Store | None = None) -> None:
        self.folder, self.store = folder, store
        self._threads = None if store is None else ThreadPoolExecutor(AT_ONCE, "store")
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._look: asyncio.Task[None] | None = None
        self._looked = 0.0

    @property
    def name(self) -> str:
        """The same for all who share a store, told without naming it; empty without one."""
        return "" if self.store is None else hashlib.sha256(self.store.place.encode()).hexdigest()

    async def put(self, path: Path, name: str) -> None:
        """Raises `StoreAway`, as all that follow."""
        if self.store is not None:
            await self._run(self.store.put, path, name)

    async def bring(self, name: str, path: Path, digest: str) -> None:
        """Makes sure that a file is at its path here. Raises FileNotFoundError, Damaged."""
        if not await asyncio.to_thread(path.is_file):
            await self.fetch(name, path, digest)

    async def fetch(self, name: str, path: Path, digest: str) -> None:
        """The same, whether there is one or not."""
        if self.store is None:
            raise FileNotFoundError(name)
        await self._run(self.store.fetch, name, path, digest)

    async def remove(self, name: str) -> None:
        if self.store is not None:
            await self._run(self.store.remove, name)

    async def names(self, folder: str) -> Collection[str]:
        """What the store has in a folder."""
        return () if self.store is None else await self._run(self.store.sizes, folder)

    async def put_folder(self, folder: Path, name: str, digest: str = "", manifest: str = MANIFEST) -> None:
        """All files of a folder, then the manifest, which also says the `digest` that stands for all."""
        if self.store is None:
            return
        sums = await asyncio.to_thread(summed, folder)
        there = await self._run(self.store.sizes, name)
        new = {file: each for file, each in sums.items() if there.get(each.sha256) != each.bytes}
        put = partial(self._run, self.store.put)
        await self._all(partial(put, folder / file, f"{name}/{each.sha256}") for file, each in new.items())
        told = {"digest": digest, "files": {file: asdict(each) for file, each in sums.items()}}
        await self._run(self.store.write, f"{name}/{manifest}", json.dumps(told, sort_keys=True).encode())

    async def bring_folder(self, name: str, folder: Path, digest: str | None = None, manifest: str = MANIFEST) -> None:
        """Makes sure that a folder is here, whole, with that `digest`. Raises FileNotFoundError, Damaged."""
        if self.store is None:
            raise FileNotFoundError(name)
        async with self._turns[name]:
            if await asyncio.to_thread(folder.exists):
                return
            sums = sums_of(await self._run(manifest_in, self.store, f"{name}/{manifest}"), digest)
            passing = (self.folder / name).with_name(f".passing-{uuid4().hex}{PART}")
            fetch = partial(self._run, self.store.fetch)
            try:
                await self._all(
                    partial(fetch, f"{name}/{each.sha256}", passing / file, each.sha256) for file, each in sums.items()
                )
                await asyncio.to_thread(settle, passing, folder)
            finally:
                await asyncio.to_thread(shutil.rmtree, passing, ignore_errors=True)

    async def sweep(self, folder: str, known: Collection[UUID], *, folders: bool = False) -> None:
        """Removes from the store what no row knows and nobody can still be writing, by the times in the ids."""
        if self.store is None:
            return
        remove = self.store.remove_folder if folders else self.store.remove
        for name in await self.names(folder):
            if old(name) and UUID(name) not in known:
                await self._run(remove, f"{folder}/{name}")

    async def sweep_parts(self) -> None:
        await self.sweep(PARTS, ())

    async def put_models(self) -> None:
        """The uploaded models that are here and not in the store."""
        if self.store is not None:
            here = await asyncio.to_thread(lambda: list((self.folder / MODELS).glob("*")))
            there = await self.names(MODELS)
            for path in here:
                if MODEL.fullmatch(path.name) and path.name not in there:
                    await self.put(path, f"{MODELS}/{path.name}")

    async def bring_models(self) -> None:
        """The uploaded models that are in the store and not here. Raises FileNotFoundError, Damaged."""
        for name in await self.names(MODELS):
            if found := MODEL.fullmatch(name):
                await self.bring(f"{MODELS}/{name}", self.folder / MODELS / name, found[1])

    async def model_path(self, path: str) -> str:
        """Where the files of a model lie here: an uploaded one of another machine is fetched.

        Raises UnreadableModel."""
        found, place = MODEL.fullmatch(Path(path).name), Path(path)
        if self.store is None or found is None or place.parent.name != MODELS or await asyncio.to_thread(place.exists):
            return path
        mine = await asyncio.to_thread(self.folder.resolve) / MODELS / found[0]
        try:
            await self.bring(f"{MODELS}/{found[0]}", mine, found[1])
        except OSError:
            raise UnreadableModel("the model's file is not in the store as it was sent: send it again") from None
        return str(mine)

    async def reachable(self) -> bool | None:
        """Whether the store answers; None without one. One that hangs is asked once at a time."""
        if self.store is None:
            return None
        if self._look is None or (self._look.done() and time.monotonic() - self._looked > FRESH_SECONDS):
            self._look, self._looked = asyncio.create_task(self._run(self.store.look)), time.monotonic()
        await asyncio.wait({self._look}, timeout=LOOK_SECONDS)
        return self._look.done() and self._look.exception() is None

    async def _run(self, work: Callable[..., Result], *given: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *given))

    async def _all(self, works: Iterable[Callable[[], Any]]) -> None:
        """All of them are over before the first error is raised."""
        for ended in await asyncio.gather(*(work() for work in works), return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended


def manifest_in(store: Store, name: str) -> bytes:
    """Raises FileNotFoundError, but for a store that is not there itself."""
    try:
        return store.read(name)
    except FileNotFoundError:
        store.look()
        raise


def summed(folder: Path) -> dict[str, Sum]:
    """The files of a folder and of those in it, but for what is being written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): sum_of(path) for path in files}


def sum_of(path: Path) -> Sum:
    with path.open("rb") as file:
        return Sum(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def sums_of(manifest: bytes, digest: str | None) -> Mapping[str, Sum]:
    """Raises Damaged for what is no manifest, or one of something else than `digest`."""
    try:
        told = json.loads(manifest)
        sums = {str(name): Sum(int(each["bytes"]), str(each["sha256"])) for name, each in told["files"].items()}
        named = all(FILE.fullmatch(name) and SHA256.fullmatch(each.sha256) for name, each in sums.items())
        sound = named and digest in (None, told["digest"])
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise Damaged("a manifest of the store is damaged")
    return sums


def settle(passing: Path, folder: Path) -> None:
    """Gives a folder its name, unless another process was faster."""
    try:
        passing.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def old(name: str) -> bool:
    """Whether a name is an id, and was made long ago."""
    try:
        milliseconds = UUID(name).int >> 80
    except ValueError:
        return False
    return time.time() - milliseconds / 1000 > STRAY_SECONDS
