"""Scores of the inputs of stored inferences: added in bulk, replaced when computed anew, read alone or on average.

Context: explanations are looked up one inference at a time, and averaged over all of them or over those that pass a
filter. Decision: one row per inference and algorithm, with the scores of all predicted attributes and inputs in one
array; averages name the elements one by one (`storage.query.regional`). Consequences: a twelfth of the space and an
eighth to a fifth of the time of a row per score (benchmarks/query.py, which measured the alternatives too).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Select, and_, exists, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from storage.errors import InvalidValue
from storage.monitored_tables import Inference, InferenceScores, InferenceTokens
from storage.staging import BIGINT, FLOATS, INTEGERS, JSON, RAGGED_FLOATS, TEXT, TEXTS, Column, stage


@dataclass(frozen=True, slots=True)
class Scores:
    """Of n inferences: K predicted attributes x M inputs, NaN where there is no score."""

    fingerprint: int
    seqs: NDArray[np.int64]  # (n,)
    scores: NDArray[np.float64]  # (n, K * M), predicted attributes by position, inside each the inputs by position
    facts: Sequence[Mapping[str, Any]]  # n
    errors: NDArray[np.float64] | None = None  # (n, K * M), standard errors
    base_values: NDArray[np.float64] | None = None  # (n, K)
    fit: NDArray[np.float64] | None = None  # (n, K), R² of the local model
    reasons: Sequence[str | None] | None = None  # n: why scores are missing


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of one text attribute of n inferences, each with T tokens of its own: K predicted attributes x T tokens."""

    fingerprint: int
    seqs: NDArray[np.int64]  # (n,)
    attribute: str
    tokens: Sequence[Sequence[str]]  # n, T each
    positions: Sequence[Sequence[int]]  # n, T each
    scores: Sequence[NDArray[np.float64]]  # n, (K, T) each; NaN where there is no score
    facts: Sequence[Mapping[str, Any]]  # n
    errors: Sequence[NDArray[np.float64]] | None = None  # n, (K, T) each


async def add(session: AsyncSession, model_id: UUID, algorithm: str, scores: Scores) -> None:
    """Stores scores in the place of earlier ones, whose tokens go too.

    Raises InvalidValue for an inference named twice and for what Postgres cannot hold, StorageError for one that the
    model lacks.
    """
    if len(np.unique(scores.seqs)) < len(scores.seqs):
        raise InvalidValue("an inference has scores twice")
    columns = {
        "seq": Column(BIGINT, scores.seqs),
        "scores": Column(FLOATS, scores.scores),
        "errors": Column(FLOATS, scores.errors),
        "base_values": Column(FLOATS, scores.base_values),
        "fit": Column(FLOATS, scores.fit),
        "facts": Column(JSON, scores.facts),
        "reason": Column(TEXT, scores.reasons),
    }
    source, staged = await stage(session, "new_scores", columns, len(scores.seqs))
    names = ", ".join(columns)
    added = text(f"""
        WITH new AS MATERIALIZED (
            SELECT * FROM {source}
        ), forgotten AS (
            DELETE FROM inference_tokens AS old USING new
            WHERE old.model_id = :model_id AND old.algorithm = :algorithm AND old.seq = new.seq
        )
        INSERT INTO inference_scores (model_id, algorithm, fingerprint, {names})
        SELECT :model_id, :algorithm, :fingerprint, {names} FROM new ORDER BY seq
        ON CONFLICT (tenant_id, model_id, algorithm, seq)
        DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in ("fingerprint", *columns) if name != "seq")}
    """)  # noqa: S608 - names of ours
    given = {"model_id": model_id, "algorithm": algorithm, "fingerprint": scores.fingerprint}
    await session.execute(added, {**given, **staged})


async def add_tokens(session: AsyncSession, model_id: UUID, algorithm: str, scores: TokenScores) -> None:
    """Stores the scores of tokens, after those of the same inferences were added. Raises as `add`.

    In the place of earlier ones: those that another transaction stored meanwhile were not there yet for `add`.
    """
    columns = {
        "seq": Column(BIGINT, scores.seqs),
        "tokens": Column(TEXTS, scores.tokens),
        "positions": Column(INTEGERS, scores.positions),
        "scores": Column(RAGGED_FLOATS, scores.scores),
        "errors": Column(RAGGED_FLOATS, scores.errors),
        "facts": Column(JSON, scores.facts),
    }
    source, staged = await stage(session, "new_tokens", columns, len(scores.seqs))
    names = ", ".join(columns)
    added = text(f"""
        INSERT INTO inference_tokens (model_id, algorithm, attribute, fingerprint, {names})
        SELECT :model_id, :algorithm, :attribute, :fingerprint, {names} FROM {source} ORDER BY seq
        ON CONFLICT (tenant_id, model_id, algorithm, seq, attribute)
        DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in ("fingerprint", *columns) if name != "seq")}
    """)  # noqa: S608 - names of ours
    given = {"model_id": model_id, "algorithm": algorithm, "attribute": scores.attribute}
    given |= {"fingerprint": scores.fingerprint}
    await session.execute(added, {**given, **staged})


async def exist(session: AsyncSession, model_id: UUID) -> bool:
    """Whether any inference of a model has scores, by whatever algorithm."""
    return bool(await session.scalar(select(exists().where(InferenceScores.model_id == model_id))))


async def find(session: AsyncSession, model_id: UUID, algorithm: str, seq: int) -> InferenceScores | None:
    """The scores of one inference; None before they were computed."""
    row = InferenceScores
    return await session.scalar(select(row).where(row.model_id == model_id, row.algorithm == algorithm, row.seq == seq))


async def find_by_partner_id(
    session: AsyncSession, model_id: UUID, algorithm: str, partner_inference_id: str
) -> InferenceScores | None:
    """The scores of the inference to which its owner gave that id; None before they were computed."""
    row = InferenceScores
    query = select(row).join(Inference, _same).where(row.model_id == model_id, row.algorithm == algorithm)
    return await session.scalar(query.where(Inference.partner_inference_id == partner_inference_id))


async def find_tokens(session: AsyncSession, model_id: UUID, algorithm: str, seq: int) -> list[InferenceTokens]:
    """The scores of the tokens of one inference, by name of the text attribute."""
    row = InferenceTokens
    query = select(row).where(row.model_id == model_id, row.algorithm == algorithm, row.seq == seq)
    return list(await session.scalars(query.order_by(row.attribute)))


@dataclass(frozen=True, slots=True)
class Wanted:
    """The inferences that are to be explained: those after `after`, and of them about the `share` (0 to 1).

    Which ones depends on their ids alone.
    """

    model_id: UUID
    algorithm: str
    fingerprint: int
    share: float = 1.0
    after: int = 0

    @property
    def conditions(self) -> list[ColumnElement[bool]]:
        chosen = [Inference.model_id == self.model_id, Inference.seq > self.after]
        return chosen if self.share >= 1 else [*chosen, _chance < self.share]

    @property
    def done(self) -> ColumnElement[bool]:
        return exists().where(
            _same, InferenceScores.algorithm == self.algorithm, InferenceScores.fingerprint == self.fingerprint
        )


async def lacking(
    session: AsyncSession, wanted: Wanted, *, limit: int = 1_000, last: int | None = None
) -> list[Inference]:
    """Those of the wanted inferences, up to the `last` one, that nothing was computed for yet, in order of `seq`."""
    query = select(Inference).where(*wanted.conditions, ~wanted.done)
    if last is not None:
        query = query.where(Inference.seq <= last)
    return list(await session.scalars(query.order_by(Inference.seq).limit(limit)))


def numbered(wanted: Wanted, most: int) -> Select[tuple[int, int]]:
    """The first `most` of the same: each `seq`, and its `place` among them, from 1."""
    place = func.row_number().over(order_by=Inference.seq).label("place")
    return select(Inference.seq, place).where(*wanted.conditions, ~wanted.done).order_by(Inference.seq).limit(most)


async def progress(session: AsyncSession, wanted: Wanted) -> tuple[int, int]:
    """How many of the wanted inferences were explained, and how many there are."""
    done = func.count().filter(wanted.done)
    row = (await session.execute(select(done, func.count()).select_from(Inference).where(*wanted.conditions))).one()
    return int(row[0]), int(row[1])


_random = func.uuid_send(Inference.id)
_chance = (
    func.get_byte(_random, 13) * 65536 + func.get_byte(_random, 14) * 256 + func.get_byte(_random, 15)
) / 16777216.0
"""The last three bytes of an id, which are random, as a number from 0 to 1."""

_same = and_(
    InferenceScores.tenant_id == Inference.tenant_id,
    InferenceScores.model_id == Inference.model_id,
    InferenceScores.seq == Inference.seq,
)
