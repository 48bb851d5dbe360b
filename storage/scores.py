"""Scores of the inputs of stored inferences: added in bulk, replaced when computed anew, read alone or on average.

Context: explanations are looked up one inference at a time, and averaged over all of them or over those that pass a
filter. Decision: one row per inference and algorithm, with the scores of all predicted attributes and inputs in one
array; averages name the elements one by one. Consequences: a twelfth of the space and an eighth to a fifth of the time
of a row per score; for one predicted attribute one and a half times the time of a column store, for several one after
another up to two and a half (benchmarks/query_layouts.py, which measured the alternatives too). Very long arrays, which
Postgres keeps outside the row, are unnested instead, as naming an element would fetch all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Select, and_, exists, func, literal_column, select, text, true
from sqlalchemy.ext.asyncio import AsyncSession

from storage.errors import InvalidValue
from storage.staging import BIGINT, FLOATS, INTEGERS, JSON, RAGGED_FLOATS, TEXT, TEXTS, Column, stage
from storage.tables import Inference, InferenceScores, InferenceTokens

INLINE = 900
"""So many scores surely lie in the row itself: eight bytes each, in a page of eight thousand."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Of n inferences: K predicted attributes x M inputs, NaN where there is no score."""

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
        INSERT INTO inference_scores (model_id, algorithm, {names})
        SELECT :model_id, :algorithm, {names} FROM new ORDER BY seq
        ON CONFLICT (tenant_id, model_id, algorithm, seq)
        DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in columns if name != "seq")}
    """)  # noqa: S608 - names of ours
    await session.execute(added, {"model_id": model_id, "algorithm": algorithm, **staged})


async def add_tokens(session: AsyncSession, model_id: UUID, algorithm: str, scores: TokenScores) -> None:
    """Stores the scores of tokens, after those of the same inferences were added. Raises as `add`."""
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
        INSERT INTO inference_tokens (model_id, algorithm, attribute, {names})
        SELECT :model_id, :algorithm, :attribute, {names} FROM {source} ORDER BY seq
    """)  # noqa: S608 - names of ours
    given = {"model_id": model_id, "algorithm": algorithm, "attribute": scores.attribute}
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


async def lacking(
    session: AsyncSession, model_id: UUID, algorithm: str, *, after: int = 0, limit: int = 1_000
) -> list[Inference]:
    """Inferences for which nothing was computed yet, whose `seq` is greater than `after`, in that order."""
    done = exists().where(_same, InferenceScores.algorithm == algorithm)
    query = select(Inference).where(Inference.model_id == model_id, Inference.seq > after, ~done)
    return list(await session.scalars(query.order_by(Inference.seq).limit(limit)))


_same = and_(
    InferenceScores.tenant_id == Inference.tenant_id,
    InferenceScores.model_id == Inference.model_id,
    InferenceScores.seq == Inference.seq,
)


async def regional_importances(
    session: AsyncSession,
    model_id: UUID,
    algorithm: str,
    *,
    output: int,
    outputs: int,
    inputs: int,
    where: Sequence[ColumnElement[bool]] = (),
) -> list[float | None]:
    """For each of the M inputs the mean of |score| for one predicted attribute, whose place `output` counts from 0.

    Over all inferences with a score for that input that pass `where`, conditions on `Inference`; None over none.
    """
    if outputs * inputs > INLINE:
        found = await session.execute(_unnested(output, inputs).where(*_region(model_id, algorithm, where)))
        means = dict(found.all())
        return [means.get(place) for place in range(1, inputs + 1)]
    found = await session.execute(_named(output, inputs).where(*_region(model_id, algorithm, where)))
    return list(found.one())


def _region(model_id: UUID, algorithm: str, where: Sequence[ColumnElement[bool]]) -> list[ColumnElement[bool]]:
    explained = [InferenceScores.model_id == model_id, InferenceScores.algorithm == algorithm]
    return [*explained, _same, Inference.model_id == model_id, *where] if where else explained


def _named(output: int, inputs: int) -> Select[Any]:
    places = range(output * inputs + 1, (output + 1) * inputs + 1)
    return select(*(func.avg(func.abs(InferenceScores.scores[literal_column(str(place))])) for place in places))


def _unnested(output: int, inputs: int) -> Select[Any]:
    part = InferenceScores.scores[slice(output * inputs + 1, (output + 1) * inputs)]
    each = func.unnest(part).table_valued("score", with_ordinality="place").render_derived().lateral()
    means = select(each.c.place, func.avg(func.abs(each.c.score))).group_by(each.c.place)
    return means.select_from(InferenceScores).join(each, true())
