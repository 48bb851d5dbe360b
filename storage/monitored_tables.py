"""The tables of monitored models: their inferences and reference sets, and the scores that explain them."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKeyConstraint, Identity, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from storage.tables import CreatedAt, Table, TenantId, of_tenant


def _of_monitored_model() -> ForeignKeyConstraint:
    parent = ["monitored_models.tenant_id", "monitored_models.id"]
    return ForeignKeyConstraint(["tenant_id", "model_id"], parent, ondelete="CASCADE")


def _seq() -> Mapped[int]:
    return mapped_column(BigInteger(), Identity(), primary_key=True)


class MonitoredModel(Table):
    """A model whose inferences are kept and explained. `definition` is the body it was registered with, plus the
    attributes that follow from it; `archived_at` ends its use, not its rows.
    """

    __tablename__ = "monitored_models"
    __table_args__ = (of_tenant(),)

    tenant_id: Mapped[TenantId]
    id: Mapped[UUID] = mapped_column(primary_key=True)
    partner_model_id: Mapped[str]
    input_type: Mapped[str]
    output_type: Mapped[str]
    status: Mapped[str]
    is_batch: Mapped[bool]
    definition: Mapped[dict[str, Any]]
    reference_closed_at: Mapped[datetime | None]
    created_at: Mapped[CreatedAt]
    archived_at: Mapped[datetime | None]


Index(
    "monitored_models_active_idx",
    MonitoredModel.__table__.c.tenant_id,
    MonitoredModel.partner_model_id,
    unique=True,
    postgresql_where=MonitoredModel.archived_at.is_(None),
)


class MonitoredAttribute(Table):
    """An attribute of a model and where the rows keep its values: `numbers[slot]` or `texts[slot]`, counted from 1.

    `place` is its place among all attributes as they were declared, `position` the one given to it inside its stage.

    Numbers are floats, integers, booleans as 0 and 1, and times as microseconds since 1970; everything else is text,
    what is not text as JSON.
    """

    __tablename__ = "monitored_attributes"
    __table_args__ = (
        _of_monitored_model(),
        UniqueConstraint("tenant_id", "model_id", "slot_kind", "slot"),
        CheckConstraint("slot_kind IN ('number', 'text')", name="slot_kind"),
    )

    tenant_id: Mapped[TenantId]
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    place: Mapped[int]
    stage: Mapped[str]
    value_type: Mapped[str]
    position: Mapped[int]
    slot_kind: Mapped[str]
    slot: Mapped[int]
    implicit: Mapped[bool]
    attribute_link: Mapped[str | None]
    definition: Mapped[dict[str, Any]]


class Inference(Table):
    """One prediction with its inputs and, later, its ground truth; `seq` grows in the order of ingestion.

    Arrays have one place for each slot of the model, null where there is no value.
    """

    __tablename__ = "inferences"
    __table_args__ = (
        _of_monitored_model(),
        UniqueConstraint("tenant_id", "model_id", "partner_inference_id"),
        Index("inferences_id_idx", "tenant_id", "id"),
    )

    tenant_id: Mapped[TenantId]
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = _seq()
    id: Mapped[UUID]
    partner_inference_id: Mapped[str]
    inference_timestamp: Mapped[datetime]
    received_timestamp: Mapped[CreatedAt]
    batch_id: Mapped[str | None]
    ground_truth_timestamp: Mapped[datetime | None]
    numbers: Mapped[list[float | None]]
    texts: Mapped[list[str | None]]


class ReferenceRow(Table):
    """A row of the set that a model's inferences are compared with and explained against; arrays as in inferences."""

    __tablename__ = "reference_rows"
    __table_args__ = (_of_monitored_model(),)

    tenant_id: Mapped[TenantId]
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = _seq()
    numbers: Mapped[list[float | None]]
    texts: Mapped[list[str | None]]


class Explainability(Table):
    """How the inferences of a model are explained. `config` is what its owner said, `uploads` the digests of files that
    came along and are never opened.

    `fingerprint` names all that decides a score but the algorithm: model, background, samples, seed. Scores with
    another one are of former days. `background` is the summary of the reference set that it counts with.
    """

    __tablename__ = "explainability"
    __table_args__ = (_of_monitored_model(),)

    tenant_id: Mapped[TenantId]
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    enabled: Mapped[bool]
    status: Mapped[str]
    detail: Mapped[str | None]
    config: Mapped[dict[str, Any]]
    uploads: Mapped[dict[str, Any]]
    fingerprint: Mapped[int | None] = mapped_column(BigInteger())
    background: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class InferenceScores(Table):
    """The scores of the inputs of an inference, of K predicted attributes x M inputs, by one algorithm.

    `scores` and `errors` (standard errors) have K * M places: predicted attributes by position, inside each the inputs
    by position; null where there is no score, of which `reason` tells. `base_values` and `fit` (R²) have K. Of texts,
    whose scores lie in `inference_tokens`, `scores` is empty. `fingerprint` names all that decided them (see
    `explainability`).
    """

    __tablename__ = "inference_scores"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "model_id", "seq"],
            ["inferences.tenant_id", "inferences.model_id", "inferences.seq"],
            ondelete="CASCADE",
        ),
    )

    tenant_id: Mapped[TenantId]
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    algorithm: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger(), primary_key=True, autoincrement=False)
    fingerprint: Mapped[int] = mapped_column(BigInteger())
    scores: Mapped[list[float | None]]
    errors: Mapped[list[float | None] | None]
    base_values: Mapped[list[float | None] | None]
    fit: Mapped[list[float | None] | None]
    facts: Mapped[dict[str, Any]]
    reason: Mapped[str | None]


class InferenceTokens(Table):
    """The scores of the T tokens of a text attribute; belongs to a row of `inference_scores`.

    `scores` and `errors` have K * T places, predicted attributes by position, inside each the tokens as in `tokens`.
    `positions` count the tokens of the whole text from 0.
    """

    __tablename__ = "inference_tokens"
    __table_args__ = (
        ForeignKeyConstraint(
            ["tenant_id", "model_id", "algorithm", "seq"],
            [f"inference_scores.{column}" for column in ("tenant_id", "model_id", "algorithm", "seq")],
            ondelete="CASCADE",
        ),
    )

    tenant_id: Mapped[TenantId]
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    algorithm: Mapped[str] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger(), primary_key=True, autoincrement=False)
    attribute: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[int] = mapped_column(BigInteger())
    tokens: Mapped[list[str]]
    positions: Mapped[list[int]]
    scores: Mapped[list[float | None]]
    errors: Mapped[list[float | None] | None]
    facts: Mapped[dict[str, Any]]
