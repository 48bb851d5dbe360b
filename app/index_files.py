"""The files of one influence index: in a folder of this machine and, where there is a store, shared by it.

A shard is in the store before its row says that it is done, a finished index before its row says that it is ready; what
comes from there is held against what the row says. Without a store all of this is the folder alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from app.influence_indexes import building_folder_of, folder_of, stored_as
from app.shelf import MANIFEST, Shelf
from app.store import Damaged
from explainers.errors import UnreadableModel
from explainers.influence.finishing import FACTS, Generic, read_finished, read_generic
from explainers.influence.index import ARRAYS
from explainers.influence.pairs import LINES
from explainers.influence.shards import Shard, digest_of, read_shard, shard_path
from storage import influence, tenants
from storage.content import PART
from storage.database import Database

GENERIC = "generic"
"""The folder of the calibration prompts' own shard."""
GENERIC_MANIFEST = "generic.json"


@dataclass(frozen=True, slots=True)
class IndexFiles:
    shelf: Shelf
    tenant: str
    id: UUID

    @property
    def name(self) -> str:
        return stored_as(self.tenant, self.id)

    @property
    def folder(self) -> Path:
        """While it is built."""
        return building_folder_of(self.shelf.folder, self.tenant, self.id)

    @property
    def final(self) -> Path:
        """Once it is finished."""
        return folder_of(self.shelf.folder, self.tenant, self.id)

    async def keep_shard(self, number: int, digest: str) -> str:
        """Shares a shard that was computed here; its digest. Raises `StoreAway`, as all that follow."""
        await self.shelf.put(shard_path(self.folder, number), f"{self.name}/{digest}")
        return digest

    async def lost(self, known: Mapping[int, str]) -> list[int]:
        """Numbers of finished shards that are whole neither here nor in the store; those in the store are fetched."""
        paths = {number: shard_path(self.folder, number) for number in known}
        wrong = await asyncio.to_thread(lambda: [n for n in known if not whole(paths[n], known[n])])
        if self.shelf.store is None:
            return wrong
        found = await asyncio.gather(*(self.fetched(known[n], paths[n]) for n in wrong), return_exceptions=True)
        for away in found:
            if isinstance(away, BaseException):
                raise away
        return [number for number, came in zip(wrong, found, strict=True) if not came]

    async def fetched(self, digest: str, path: Path) -> bool:
        """Whether this file of the index is in the store, whole, and now here."""
        with suppress(FileNotFoundError, Damaged):
            await self.shelf.fetch(f"{self.name}/{digest}", path, digest)
            return True
        return False

    async def shard(self, number: int, digest: str) -> Shard | None:
        """Of an index that is finished or was given up; None where it is not whole, or gone."""
        for folder in (self.final, self.folder):
            with suppress(UnreadableModel):  # its index may be replaced meanwhile
                if await asyncio.to_thread(whole, shard_path(folder, number), digest):
                    return await asyncio.to_thread(read_shard, folder, number)
        if self.shelf.store is None:
            return None
        passing = self.final.with_name(f".passing-{uuid4().hex}{PART}")
        try:
            if await self.fetched(digest, shard_path(passing, number)):
                return await asyncio.to_thread(read_shard, passing, number)
        finally:
            await asyncio.to_thread(partial(shutil.rmtree, passing, ignore_errors=True))
        return None

    async def finished(self) -> bool:
        """Whether the whole index is there already, here or in the store: all but its row was done."""
        if not await asyncio.to_thread(self.final.exists):
            with suppress(FileNotFoundError, Damaged):
                await self.shelf.bring_folder(self.name, self.final)
        return await asyncio.to_thread(self.final.exists)

    async def finish(self) -> dict[str, Any]:
        """Shares what has been built, then gives it its place here; its facts.

        Killed between the two, a machine has no index that others could finish in other bits meanwhile.
        """
        facts = await self.share(self.folder)
        await asyncio.to_thread(put_in_place, self.folder, self.final)
        return facts

    async def publish(self) -> dict[str, Any]:
        """Shares the finished index; its facts."""
        return await self.share(self.final)

    async def share(self, folder: Path) -> dict[str, Any]:
        facts = await asyncio.to_thread(facts_of, folder)
        await self.shelf.put_folder(folder, self.name, facts["digest"])
        return facts

    async def bring(self, digest: str) -> Path:
        """The folder of the ready index with this digest. Raises UnreadableModel where the store has it not whole."""
        if self.shelf.store is not None:
            try:
                await self.shelf.bring_folder(self.name, self.final, digest)
            except FileNotFoundError:
                raise UnreadableModel("the influence index is not in the store: build it again") from None
            except Damaged:
                raise UnreadableModel("the influence index in the store is damaged: build it again") from None
        return self.final

    async def keep_generic(self) -> None:
        """Shares the calibration prompts of the build, so that whoever goes on with it has them."""
        await self.shelf.put_folder(self.folder / GENERIC, self.name, manifest=GENERIC_MANIFEST)

    async def generic(self, name: str) -> Generic | None:
        """Those of the build, or of the finished index; None where they have another name, or are not whole."""
        for folder in (self.folder, self.final):
            with suppress(UnreadableModel):
                return await asyncio.to_thread(read_generic, folder / GENERIC, name)
        if self.shelf.store is None:
            return None
        passing = self.final.with_name(f".passing-{uuid4().hex}{PART}")
        try:
            with suppress(FileNotFoundError, Damaged, UnreadableModel):
                await self.shelf.bring_folder(self.name, passing, manifest=GENERIC_MANIFEST)
                return await asyncio.to_thread(read_generic, passing, name)
        finally:
            await asyncio.to_thread(partial(shutil.rmtree, passing, ignore_errors=True))
        return None


async def fill_store(database: Database, shelf: Shelf) -> None:
    """Puts ready indexes into the store that this machine has and the store lacks: it was set, or emptied, later."""
    if shelf.store is None:
        return
    for tenant in await tenants.names(database):
        async with database.transaction(tenant=tenant) as session:
            digests = await influence.ready_digests(session)
        for id, digest in digests.items():
            files = IndexFiles(shelf, tenant, id)
            if MANIFEST in await shelf.names(files.name) or not await asyncio.to_thread(files.final.is_dir):
                continue
            with suppress(UnreadableModel, OSError):
                if (await asyncio.to_thread(facts_of, files.final))["digest"] == digest:
                    await files.publish()


def put_in_place(folder: Path, final: Path) -> None:
    """Gives a built index its place, without what killed writers have left beside its files."""
    for stray in folder.rglob(".*"):
        stray.unlink(missing_ok=True)
    folder.rename(final)


def whole(path: Path, digest: str) -> bool:
    try:
        return digest_of(path) == digest
    except OSError:
        return False


def facts_of(folder: Path) -> dict[str, Any]:
    """Of a finished index, with a digest over all that decides its answers."""
    facts = {name: value for name, value in read_finished(folder).facts.items() if name not in ("generic", "made")}
    parts = [shard_path(folder, number) for number in range(facts["shards"])]
    parts += [shard_path(folder / GENERIC, 0), folder / ARRAYS, folder / LINES, folder / FACTS]
    digest = hashlib.sha256("".join(digest_of(part) for part in parts).encode()).hexdigest()
    return {**facts, "digest": f"sha256:{digest}"}
