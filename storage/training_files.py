"""Training files: their rows. The contents lie on disk, under the same ids: see `content`.

A content is on disk before its row is committed, and goes after its row has gone: every row has its content, whatever
ends in between. The contents without a row that this may leave are swept up when a server starts.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, TypeAlias
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from storage.errors import InUse, InvalidValue, NotFound
from storage.ids import time_ordered
from storage.training_tables import TrainingFile

MAX_PAGE = 10_000

Sort: TypeAlias = Literal["created_at", "filename", "type", "size"]
SORTED = {
    "created_at": TrainingFile.created_at,
    "filename": TrainingFile.filename,
    "type": TrainingFile.type,
    "size": TrainingFile.bytes,
}
"""What pages may be sorted by; equal files come in the order of their ids, which is that of their creation."""

new_id = time_ordered


async def add(
    session: AsyncSession, *, id: UUID, filename: str, purpose: str, type: str, bytes: int, digest: bytes, lines: int
) -> TrainingFile:
    """A new file, whose content is on disk already. Raises InvalidValue for a name that cannot be stored."""
    values = {
        "id": id,
        "filename": filename,
        "purpose": purpose,
        "type": type,
        "bytes": bytes,
        "digest": digest,
        "lines": lines,
    }
    added = await session.execute(insert(TrainingFile).values(values).returning(TrainingFile))
    return added.scalar_one()


async def get(session: AsyncSession, id: UUID) -> TrainingFile:
    """The tenant's file with that id. Raises NotFound."""
    file: TrainingFile | None = await session.scalar(select(TrainingFile).where(TrainingFile.id == id))
    if file is None:
        raise NotFound("no such file")
    return file


async def page(
    session: AsyncSession,
    *,
    purpose: str | None = None,
    sort: Sort = "created_at",
    descending: bool = True,
    offset: int = 0,
    limit: int = 100,
) -> list[TrainingFile]:
    """At most `limit` (1 to 10,000) files after the first `offset`. Raises InvalidValue."""
    if not 1 <= limit <= MAX_PAGE or not 0 <= offset < 2**63:
        raise InvalidValue(f"a page has 1 to {MAX_PAGE} rows, and begins at 0 or later")
    column, id = SORTED[sort], TrainingFile.id
    order = (column.desc(), id.desc()) if descending else (column.asc(), id.asc())
    query = select(TrainingFile).order_by(*order).offset(offset).limit(limit)
    if purpose is not None:
        query = query.where(TrainingFile.purpose == purpose)
    return list(await session.scalars(query))


async def sizes(session: AsyncSession, ids: Collection[UUID]) -> tuple[int, int]:
    """Examples and bytes of these files together; those that do not exist have none."""
    found = select(func.sum(TrainingFile.lines), func.sum(TrainingFile.bytes)).where(TrainingFile.id.in_(ids))
    lines, size = (await session.execute(found)).one()
    return int(lines or 0), int(size or 0)


async def list_ids(session: AsyncSession) -> set[UUID]:
    """The ids of all of the tenant's files."""
    return set(await session.scalars(select(TrainingFile.id)))


async def digests(session: AsyncSession) -> dict[UUID, bytes]:
    """The sha256 of each of the tenant's contents."""
    columns = select(TrainingFile.id, TrainingFile.digest)
    return {row.id: row.digest for row in await session.execute(columns)}


async def rename(session: AsyncSession, id: UUID, filename: str) -> TrainingFile:
    """Raises NotFound, and InvalidValue for a name that cannot be stored."""
    changed = update(TrainingFile).where(TrainingFile.id == id).values(filename=filename).returning(TrainingFile)
    file: TrainingFile | None = await session.scalar(changed)
    if file is None:
        raise NotFound("no such file")
    return file


async def remove(session: AsyncSession, id: UUID) -> None:
    """Forgets a file. Raises NotFound, or InUse while another row refers to it; the transaction is over then."""
    try:
        gone = await session.scalar(delete(TrainingFile).where(TrainingFile.id == id).returning(TrainingFile.id))
    except IntegrityError:
        raise InUse("the file is in use by an influence index: remove the model or its index first") from None
    if gone is None:
        raise NotFound("no such file")
