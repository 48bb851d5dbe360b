"""Influence indexes: which exist for which weights, and how far their shards are.

Shards are leased (see `leases`); computing one twice gives the same file, so that nothing but time is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from storage import leases
from storage.errors import NotFound
from storage.ids import time_ordered
from storage.tables import Model
from storage.training_tables import InfluenceFile, InfluenceIndex, InfluenceShard, TrainingFile

new_id = time_ordered
INSERTED = 1_000
"""Shards of one statement."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A shard to come; see the table."""

    number: int
    key: bytes
    first: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Progress:
    """In tokens, and in shards that are not done, those among them that nobody has leased."""

    done: int
    total: int
    missing: int
    free: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Of the shard with that number: the so-and-so-many-th one."""

    number: int
    count: int


@dataclass(frozen=True, slots=True)
class Twin:
    """A shard of another index whose content is the same, but for the numbers of its records."""

    index_id: UUID
    number: int
    first: int
    digest: str


async def add(
    session: AsyncSession,
    *,
    id: UUID,
    model: str,
    model_digest: str,
    base_digest: str | None,
    job: UUID,
    config: dict[str, Any],
    files: Sequence[UUID],
) -> InfluenceIndex:
    """A new index that is being built from those files, which must be the tenant's. Raises NotFound."""
    for file in files:
        if (
            await session.scalar(select(TrainingFile.id).where(TrainingFile.id == file).with_for_update(read=True))
            is None
        ):
            raise NotFound("no such file")
    values = {
        "id": id,
        "model": model,
        "model_digest": model_digest,
        "base_digest": base_digest,
        "job": job,
        "config": config,
    }
    added = await session.execute(insert(InfluenceIndex).values(values).returning(InfluenceIndex))
    row = added.scalar_one()
    places = [{"index_id": id, "place": place, "file_id": file} for place, file in enumerate(files)]
    await session.execute(insert(InfluenceFile).values(places))
    return row


async def lock_model(session: AsyncSession, model: str) -> None:
    """Until the end of the transaction nobody else begins an index of this model."""
    await session.execute(select(Model.name).where(Model.name == model).with_for_update(key_share=True))


async def get(session: AsyncSession, id: UUID) -> InfluenceIndex:
    """Raises NotFound."""
    row: InfluenceIndex | None = await session.scalar(select(InfluenceIndex).where(InfluenceIndex.id == id))
    if row is None:
        raise NotFound("no such influence index")
    return row


async def list_of(session: AsyncSession, model: str) -> list[InfluenceIndex]:
    """The indexes of a model, newest first."""
    order = (InfluenceIndex.created_at.desc(), InfluenceIndex.id.desc())
    return list(await session.scalars(select(InfluenceIndex).where(InfluenceIndex.model == model).order_by(*order)))


async def list_ids(session: AsyncSession, state: str | None = None) -> set[UUID]:
    """Of all indexes of the tenant whose files are needed, or of those in one state.

    One that was given up is needed for its finished shards alone.
    """
    done = select(InfluenceShard.index_id).where(InfluenceShard.digest.is_not(None))
    needed = or_(InfluenceIndex.state != "failed", InfluenceIndex.id.in_(done))
    chosen = needed if state is None else InfluenceIndex.state == state
    return set(await session.scalars(select(InfluenceIndex.id).where(chosen)))


async def ready_digests(session: AsyncSession) -> dict[UUID, str]:
    """What the facts of the tenant's ready indexes say of all their files."""
    found = select(InfluenceIndex.id, InfluenceIndex.facts).where(InfluenceIndex.state == "ready")
    return {row.id: str((row.facts or {}).get("digest")) for row in await session.execute(found)}


async def files_of(session: AsyncSession, id: UUID) -> list[TrainingFile]:
    """The training files of an index, in their order."""
    mine = (InfluenceFile.file_id == TrainingFile.id, InfluenceFile.index_id == id)
    return list(
        await session.scalars(select(TrainingFile).join(InfluenceFile, and_(*mine)).order_by(InfluenceFile.place))
    )


async def publish(session: AsyncSession, id: UUID, facts: dict[str, Any]) -> None:
    """Makes an index the one that answers, and forgets the model's other ones that were ready or have failed.

    Raises NotFound, also for one that was given up.
    """
    values = {"state": "ready", "facts": facts, "published_at": func.now()}
    where = (InfluenceIndex.id == id, InfluenceIndex.state != "failed")
    model = await session.scalar(update(InfluenceIndex).where(*where).values(values).returning(InfluenceIndex.model))
    if model is None:
        raise NotFound("no such influence index")
    others = (InfluenceIndex.model == model, InfluenceIndex.id != id, InfluenceIndex.state != "building")
    await session.execute(delete(InfluenceIndex).where(*others))


async def fail(session: AsyncSession, id: UUID) -> None:
    """Gives up an index that was being built; its training files may be deleted then.

    Of the model's indexes that were given up one keeps its shards: that with most of what this one was to have, of
    equal ones the newest. The others are forgotten, but for this one's row.
    """
    where = (InfluenceIndex.id == id, InfluenceIndex.state == "building")
    given_up = update(InfluenceIndex).where(*where).values(state="failed").returning(InfluenceIndex.model)
    model = await session.scalar(given_up)
    await session.execute(delete(InfluenceFile).where(InfluenceFile.index_id == id, _failed(id)))
    if model is None:
        return
    best = await _most_of(session, id, model)
    others = (InfluenceIndex.model == model, InfluenceIndex.state == "failed", InfluenceIndex.id.not_in([id, best]))
    await session.execute(delete(InfluenceIndex).where(*others))
    if best != id:
        await lose(session, id, list(await digests(session, id)))


async def _most_of(session: AsyncSession, id: UUID, model: str) -> UUID:
    """Of the model's indexes that were given up the one that has done most of the shards of this one.

    Of any shards, where this one was given up before it was known which they are.
    """
    own = aliased(InfluenceShard)
    wanted = select(own.key).where(own.index_id == id)
    mine = and_(InfluenceShard.index_id == InfluenceIndex.id, InfluenceShard.digest.is_not(None))
    counts = or_(InfluenceShard.key.in_(wanted), ~wanted.exists())
    done = func.coalesce(func.sum(InfluenceShard.tokens).filter(counts), 0)
    found = await session.scalars(
        select(InfluenceIndex.id)
        .outerjoin(InfluenceShard, mine)
        .where(InfluenceIndex.model == model, InfluenceIndex.state == "failed")
        .group_by(InfluenceIndex.id)
        .order_by(done.desc(), (InfluenceIndex.id == id).desc())
    )
    return found.first() or id


async def abandon(session: AsyncSession, job: UUID) -> None:
    """Gives up the index that this job was building, if it was."""
    mine = (InfluenceIndex.job == job, InfluenceIndex.state == "building")
    for id in list(await session.scalars(select(InfluenceIndex.id).where(*mine))):
        await fail(session, id)


def _failed(id: UUID) -> ColumnElement[bool]:
    return select(InfluenceIndex.id).where(InfluenceIndex.id == id, InfluenceIndex.state == "failed").exists()


# -- shards ------------------------------------------------------------------------------------------------------------


async def plan(session: AsyncSession, id: UUID, pieces: Sequence[Piece]) -> None:
    """The shards of an index; those that it has already stay as they are."""
    for start in range(0, len(pieces), INSERTED):
        rows = [
            {"index_id": id, "number": each.number, "key": each.key, "first": each.first, "tokens": each.tokens}
            for each in pieces[start : start + INSERTED]
        ]
        await session.execute(insert(InfluenceShard).values(rows).on_conflict_do_nothing())


async def lease(session: AsyncSession, id: UUID, seconds: float) -> Lease | None:
    """A shard that nobody computes, now the caller's for so long; None: there is none, or the build was given up."""
    wanted = select(InfluenceIndex.id).where(InfluenceIndex.id == id, InfluenceIndex.state == "building").exists()
    taken = leases.first(InfluenceShard, and_(_left(id), wanted), seconds)
    shard = taken.returning(InfluenceShard.number, InfluenceShard.leases)
    row = (await session.execute(shard)).one_or_none()
    return None if row is None else Lease(*row)


async def renew(session: AsyncSession, id: UUID, lease: Lease, seconds: float) -> bool:
    """Lets a lease go on; False when the shard is another's."""
    return await _changed(session, id, lease, leased_until=leases.until(seconds))


async def release(session: AsyncSession, id: UUID, lease: Lease) -> bool:
    """Ends a lease whose shard is not done."""
    return await _changed(session, id, lease, leased_until=None)


async def keep(session: AsyncSession, id: UUID, lease: Lease, digest: str) -> bool:
    """A shard is done: its file is whole and has this sha256. False, and nothing is said, when it is another's."""
    return await _changed(session, id, lease, digest=digest, leased_until=None)


async def lose(session: AsyncSession, id: UUID, numbers: Sequence[int]) -> None:
    """Files of shards are gone or damaged: they are to be computed again."""
    here = (InfluenceShard.index_id == id, InfluenceShard.number.in_(numbers))
    await session.execute(update(InfluenceShard).where(*here).values(digest=None, leased_until=None))


async def digests(session: AsyncSession, id: UUID) -> dict[int, str]:
    """Of the shards that are done."""
    done = select(InfluenceShard.number, InfluenceShard.digest).where(
        InfluenceShard.index_id == id, InfluenceShard.digest.is_not(None)
    )
    return {number: digest for number, digest in (await session.execute(done)) if digest is not None}


async def twin(session: AsyncSession, id: UUID, key: bytes) -> Twin | None:
    """A finished shard of another index with the same content; of one that was given up, if no ready one has it."""
    columns = (InfluenceShard.index_id, InfluenceShard.number, InfluenceShard.first, InfluenceShard.digest)
    found = await session.execute(
        select(*columns)
        .join(InfluenceIndex, InfluenceIndex.id == InfluenceShard.index_id)
        .where(InfluenceShard.key == key, InfluenceShard.index_id != id, InfluenceShard.digest.is_not(None))
        .where(InfluenceIndex.state != "building")
        .order_by((InfluenceIndex.state == "ready").desc())
        .limit(1)
    )
    row = found.one_or_none()
    return None if row is None else Twin(row.index_id, row.number, row.first, row.digest)


async def keys(session: AsyncSession, id: UUID) -> dict[int, bytes]:
    """Of all shards: what decides their contents."""
    columns = select(InfluenceShard.number, InfluenceShard.key).where(InfluenceShard.index_id == id)
    return {row.number: row.key for row in await session.execute(columns)}


async def progress(session: AsyncSession, id: UUID) -> Progress:
    done = InfluenceShard.digest.is_not(None)
    sums = select(
        func.coalesce(func.sum(InfluenceShard.tokens).filter(done), 0),
        func.coalesce(func.sum(InfluenceShard.tokens), 0),
        func.count().filter(~done),
        func.count().filter(~done, leases.nobodys(InfluenceShard)),
    ).where(InfluenceShard.index_id == id)
    return Progress(*map(int, (await session.execute(sums)).one()))


def _left(id: UUID) -> ColumnElement[bool]:
    return and_(InfluenceShard.index_id == id, InfluenceShard.digest.is_(None))


async def _changed(session: AsyncSession, id: UUID, lease: Lease, **values: object) -> bool:
    return await leases.change(session, InfluenceShard, _left(id), lease.number, lease.count, **values)
