"""Training files as their owners see them: kept whole or not at all, listed, read, renamed, removed.

Compute first, then write: a file is read as training examples before anything is stored, its content is on the disk
before its row is committed, and the row of a removed file goes before its content.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args
from uuid import UUID

from app.refusals import NotFound
from app.shelf import Shelf, sum_of
from app.store import Damaged
from explainers.errors import InvalidRequest, MissingCapability
from explainers.influence.records import file_type, records_of
from storage import tenants, training_files
from storage.content import content_path, read_content, remove_content, sweep_contents, sweep_parts, write_content
from storage.database import Database
from storage.training_files import Sort
from storage.training_tables import TrainingFile

Purpose: TypeAlias = Literal["fine-tune", "preference-fine-tune", "reinforcement-fine-tune", "pre-train", "alignment"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
DOCUMENTS = "alignment"
"""The purpose of files that hold no training examples."""
LONGEST_NAME = 255
ID = re.compile(r"file-([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})")


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file as it came. Its name is for people, and never a path."""

    filename: str
    purpose: str
    content: bytes


def wire_id(id: UUID) -> str:
    """What clients call a file."""
    return f"file-{id}"


def id_of(file: str) -> UUID:
    """The inverse of `wire_id`. Raises `NotFound` for what cannot be one."""
    found = ID.fullmatch(file)
    if found is None:
        raise NotFound("no such file")
    return UUID(found[1])


async def add_files(database: Database, shelf: Shelf, tenant: str, new: Sequence[NewFile]) -> list[TrainingFile]:
    """Keeps all of these files, or none. Raises BadLines and InvalidRequest for what is wrong with one of them.

    What stops after the contents were written leaves some that no row knows: they are swept up at the next start.
    """
    lines = [await asyncio.to_thread(checked, file) for file in new]
    ids = [training_files.new_id() for _ in new]
    for id, file in zip(ids, new, strict=True):
        await asyncio.to_thread(write_content, shelf.folder, tenant, id, file.content)
        await shelf.put(content_path(shelf.folder, tenant, id), stored_as(tenant, id))
    async with database.transaction(tenant=tenant) as session:
        return [
            await training_files.add(
                session,
                id=id,
                filename=file.filename,
                purpose=file.purpose,
                type=file_type(file.content),
                bytes=len(file.content),
                digest=hashlib.sha256(file.content).digest(),
                lines=count,
            )
            for id, file, count in zip(ids, new, lines, strict=True)
        ]


def checked(file: NewFile) -> int:
    """The number of a file's training examples; raises what is wrong with it, with its name, or its purpose."""
    check_name(file.filename, "/filename")
    if file.purpose not in PURPOSES:
        raise InvalidRequest(f"must be one of {', '.join(PURPOSES)}", "/purpose")
    if file.purpose == DOCUMENTS:
        raise MissingCapability("documents for alignment are not served: files hold training examples", "/purpose")
    return len(records_of(file.content, file.filename))


def check_name(filename: str, pointer: str) -> None:
    if not filename.strip() or not filename.isprintable() or len(filename) > LONGEST_NAME:
        raise InvalidRequest(f"must be 1 to {LONGEST_NAME} printable characters", pointer)


def stored_as(tenant: str, id: UUID) -> str:
    """The name of a content in the store."""
    return f"files/{tenant}/{id}"


async def fetch_file(database: Database, tenant: str, file: str) -> TrainingFile:
    async with database.transaction(tenant=tenant) as session:
        return await training_files.get(session, id_of(file))


async def locate_content(database: Database, shelf: Shelf, tenant: str, file: str) -> tuple[TrainingFile, Path]:
    """A file and where its content lies. Raises NotFound, also where this machine and the store have none."""
    row = await fetch_file(database, tenant, file)
    path = content_path(shelf.folder, tenant, row.id)
    try:
        await shelf.bring(stored_as(tenant, row.id), path, row.digest.hex())
    except FileNotFoundError:
        where = "on this machine" if shelf.store is None else "in the store"
        raise NotFound(f"the content of this file is not {where}") from None
    except Damaged:
        raise NotFound("the content of this file in the store is not the one that was sent: send it again") from None
    return row, path


async def read_file(database: Database, shelf: Shelf, tenant: str, file: str) -> tuple[TrainingFile, bytes]:
    """A file and its content, which is the one that came: raises `NotFound`, and OSError for one that has changed."""
    row, _ = await locate_content(database, shelf, tenant, file)
    content = await asyncio.to_thread(read_content, shelf.folder, tenant, row.id)
    if await asyncio.to_thread(lambda: hashlib.sha256(content).digest()) != row.digest:
        raise OSError("the content of a training file has changed on the disk")
    return row, content


async def list_files(
    database: Database,
    tenant: str,
    *,
    purpose: str | None,
    sort: Sort,
    descending: bool,
    offset: int,
    limit: int,
) -> list[TrainingFile]:
    async with database.transaction(tenant=tenant) as session:
        return await training_files.page(
            session, purpose=purpose, sort=sort, descending=descending, offset=offset, limit=limit
        )


async def rename_file(database: Database, tenant: str, file: str, filename: str) -> TrainingFile:
    check_name(filename, "/new_filename")
    async with database.transaction(tenant=tenant) as session:
        return await training_files.rename(session, id_of(file), filename)


async def remove_file(database: Database, shelf: Shelf, tenant: str, file: str) -> None:
    """Raises NotFound, or InUse as long as an index was made from it."""
    id = id_of(file)
    async with database.transaction(tenant=tenant) as session:
        await training_files.remove(session, id)
    await asyncio.to_thread(remove_content, shelf.folder, tenant, id)
    await shelf.remove(stored_as(tenant, id))


async def sweep_files(database: Database, shelf: Shelf) -> int:
    """Removes the contents of all tenants that no row knows; how many those were here. And halves of uploads."""
    await asyncio.to_thread(sweep_parts, shelf.folder / "models")
    await shelf.sweep_parts()
    swept = 0
    for tenant in await tenants.names(database):
        async with database.transaction(tenant=tenant) as session:
            known = await training_files.list_ids(session)
        swept += await asyncio.to_thread(sweep_contents, shelf.folder, tenant, known)
        await shelf.sweep(f"files/{tenant}", known)
    return swept


def is_sound(path: Path, digest: bytes) -> bool:
    return path.is_file() and sum_of(path).sha256 == digest.hex()


async def fill_store(database: Database, shelf: Shelf) -> None:
    """Puts into the store what rows know, this machine has and the store lacks: it was set, or emptied, later."""
    if shelf.store is None:
        return
    for tenant in await tenants.names(database):
        there = await shelf.names(f"files/{tenant}")
        async with database.transaction(tenant=tenant) as session:
            digests = await training_files.digests(session)
        for id, digest in digests.items():
            path = content_path(shelf.folder, tenant, id)
            if str(id) not in there and await asyncio.to_thread(is_sound, path, digest):
                await shelf.put(path, stored_as(tenant, id))
    await shelf.put_models()
