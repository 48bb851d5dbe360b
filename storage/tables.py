"""The tables. `tenant_id` is part of every primary and foreign key, and row-level security compares it with the
setting `whence.tenant` of the transaction (policies: see the migrations), so no query needs to filter by tenant.

`tenant_id` of a new row comes from that same setting.
"""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from storage.values import PlainText


class Table(DeclarativeBase):
    """What all tables have in common."""

    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        }
    )
    # JSON, not JSONB: JSONB refuses NUL characters and lone surrogates, which prompts may have.
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: PlainText(),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSON(),
        list[str]: ARRAY(Text()),
        list[str | None]: ARRAY(Text()),
        list[float | None]: ARRAY(Double()),
        list[float]: ARRAY(Double()),
        list[int]: ARRAY(Integer()),
    }


def _tenant_id() -> Mapped[str]:
    return mapped_column(primary_key=True, server_default=text("current_setting('whence.tenant')"))


def _created_at() -> Mapped[datetime]:
    return mapped_column(server_default=func.now())


def _of_tenant() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE")


def _of_monitored_model() -> ForeignKeyConstraint:
    parent = ["monitored_models.tenant_id", "monitored_models.id"]
    return ForeignKeyConstraint(["tenant_id", "model_id"], parent, ondelete="CASCADE")


def _seq() -> Mapped[int]:
    return mapped_column(BigInteger(), Identity(), primary_key=True)


class Tenant(Table):
    """A group of users who share keys, models and results, and see nobody else's. Every tenant may list the names."""

    __tablename__ = "tenants"
    __table_args__ = (CheckConstraint("id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'", name="slug"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = _created_at()


class ApiKey(Table):
    """A bearer key; only the sha256 of its secret is stored. Readable by its tenant and by whoever has the secret.

    Its own limits go before the server's: null leaves it to the server, 0 is none at all.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        _of_tenant(),
        CheckConstraint(
            "request_seconds >= 0 AND requests_per_minute >= 0 AND seconds_per_minute >= 0 AND concurrency >= 0",
            name="limits",
        ),
    )

    tenant_id: Mapped[str] = _tenant_id()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    key_hash: Mapped[bytes] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = _created_at()
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    request_seconds: Mapped[float | None]
    requests_per_minute: Mapped[int | None]
    seconds_per_minute: Mapped[float | None]
    concurrency: Mapped[int | None]


class EndedSession(Table):
    """A sign-in to the pages that was ended before `until`, when it would have expired; `id` is that of its token."""

    __tablename__ = "ended_sessions"
    __table_args__ = (_of_tenant(),)

    tenant_id: Mapped[str] = _tenant_id()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    until: Mapped[datetime]


class LimitCounter(Table):
    """What was counted in a window of so many `seconds` and in the one before; `at` is the time of the last hit, or of
    the first one where the window begins with it, in seconds since 1970. A crash of Postgres empties it.
    """

    __tablename__ = "limit_counters"
    __table_args__ = (_of_tenant(), {"prefixes": ["UNLOGGED"]})

    tenant_id: Mapped[str] = _tenant_id()
    name: Mapped[str] = mapped_column(primary_key=True)
    seconds: Mapped[int]
    at: Mapped[float]
    current: Mapped[int] = mapped_column(BigInteger())
    previous: Mapped[int] = mapped_column(BigInteger(), server_default="0")


class LimitPlaces(Table):
    """Who holds one of a limited number of places: for each holder the time at which its place is free again, in
    seconds since 1970; `until` is the last of them. A crash of Postgres empties it.
    """

    __tablename__ = "limit_places"
    __table_args__ = (_of_tenant(), {"prefixes": ["UNLOGGED"]})

    tenant_id: Mapped[str] = _tenant_id()
    name: Mapped[str] = mapped_column(primary_key=True)
    holders: Mapped[dict[str, Any]] = mapped_column(JSONB())
    until: Mapped[float]


class Model(Table):
    """A registered model: where its files lie and how to load them. A fine-tune names its base model.

    `base_path` is that of the base, which stays as it is for as long as the fine-tune is registered.
    """

    __tablename__ = "models"
    __table_args__ = (
        _of_tenant(),
        ForeignKeyConstraint(["tenant_id", "base"], ["models.tenant_id", "models.name"]),
    )

    tenant_id: Mapped[str] = _tenant_id()
    name: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    path: Mapped[str]
    base: Mapped[str | None]
    base_path: Mapped[str | None]
    digest: Mapped[str | None]
    dtype: Mapped[str | None]
    device: Mapped[str | None]
    description: Mapped[str]
    facts: Mapped[dict[str, Any]]
    scaling: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = _created_at()


class Explanation(Table):
    """A finished explanation. Outlives its model, so `model` refers to no row.

    `id` is a time-ordered UUID; `request_key` the digest of the canonical request; `seconds` wall-clock. `prompt` and
    `target` are how these begin, and `words` what a search compares with (see `wording`).
    """

    __tablename__ = "explanations"
    __table_args__ = (_of_tenant(),)

    tenant_id: Mapped[str] = _tenant_id()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    model: Mapped[str]
    model_digest: Mapped[str]
    request_key: Mapped[bytes]
    request: Mapped[dict[str, Any]]
    attribution: Mapped[dict[str, Any]]
    seconds: Mapped[float]
    forwards: Mapped[int]
    prompt: Mapped[str] = mapped_column(server_default="")
    target: Mapped[str] = mapped_column(server_default="")
    words: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = _created_at()


def _newest_first(name: str, *leading: str) -> Index:
    """For pages of explanations, newest first, with the leading columns fixed."""
    columns = [Explanation.__table__.c[column] for column in ("tenant_id", *leading)]
    return Index(f"explanations_{name}_idx", *columns, Explanation.created_at.desc(), Explanation.id.desc())


_newest_first("newest")
_newest_first("model", "model")
_newest_first("kind", "kind")
_newest_first("request_key", "request_key")


class Job(Table):
    """Work that goes on when its request has been answered. `result` is the id of what came out, by kind.

    `done` of `total` steps of the current attempt, which began at `started_at` and was last heard of at `heartbeat_at`.
    `version` grows with every change but a mere heartbeat: it numbers what followers of the job are told.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        _of_tenant(),
        CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="state"),
    )

    tenant_id: Mapped[str] = _tenant_id()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    model: Mapped[str]
    request: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(server_default="queued")
    done: Mapped[int] = mapped_column(server_default="0")
    total: Mapped[int] = mapped_column(server_default="1")
    result: Mapped[UUID | None]
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    attempts: Mapped[int] = mapped_column(server_default="0")
    version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = _created_at()
    started_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class JobShard(Table):
    """A piece of a job that explains inferences: those whose `seq` is from `first` to `last`, so many `rows` when it
    was cut. One worker computes it, under a lease until `leased_until`.

    `leases` counts them, and names the one that holds: what was computed under an earlier one is not stored.
    """

    __tablename__ = "job_shards"
    __table_args__ = (ForeignKeyConstraint(["tenant_id", "job_id"], ["jobs.tenant_id", "jobs.id"], ondelete="CASCADE"),)

    tenant_id: Mapped[str] = _tenant_id()
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    first: Mapped[int] = mapped_column(BigInteger())
    last: Mapped[int] = mapped_column(BigInteger())
    rows: Mapped[int]
    leases: Mapped[int] = mapped_column(server_default="0")
    leased_until: Mapped[datetime | None]
    done: Mapped[bool] = mapped_column(server_default="false")


Index("jobs_newest_idx", Job.__table__.c.tenant_id, Job.created_at.desc(), Job.id.desc())
Index("jobs_of_model_idx", *(Job.__table__.c[column] for column in ("tenant_id", "kind", "model", "state")))


class MonitoredModel(Table):
    """A model whose inferences are kept and explained. `definition` is the body it was registered with, plus the
    attributes that follow from it; `archived_at` ends its use, not its rows.
    """

    __tablename__ = "monitored_models"
    __table_args__ = (_of_tenant(),)

    tenant_id: Mapped[str] = _tenant_id()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    partner_model_id: Mapped[str]
    input_type: Mapped[str]
    output_type: Mapped[str]
    status: Mapped[str]
    is_batch: Mapped[bool]
    definition: Mapped[dict[str, Any]]
    reference_closed_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = _created_at()
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

    tenant_id: Mapped[str] = _tenant_id()
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

    tenant_id: Mapped[str] = _tenant_id()
    model_id: Mapped[UUID] = mapped_column(primary_key=True)
    seq: Mapped[int] = _seq()
    id: Mapped[UUID]
    partner_inference_id: Mapped[str]
    inference_timestamp: Mapped[datetime]
    received_timestamp: Mapped[datetime] = _created_at()
    batch_id: Mapped[str | None]
    ground_truth_timestamp: Mapped[datetime | None]
    numbers: Mapped[list[float | None]]
    texts: Mapped[list[str | None]]


class ReferenceRow(Table):
    """A row of the set that a model's inferences are compared with and explained against; arrays as in inferences."""

    __tablename__ = "reference_rows"
    __table_args__ = (_of_monitored_model(),)

    tenant_id: Mapped[str] = _tenant_id()
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

    tenant_id: Mapped[str] = _tenant_id()
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

    tenant_id: Mapped[str] = _tenant_id()
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

    tenant_id: Mapped[str] = _tenant_id()
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


class TrainingFile(Table):
    """A file of training examples. Its content lies on disk, under its id (see `content`).

    `digest` is the sha256 of the content, `bytes` its size, `lines` the number of its examples.
    """

    __tablename__ = "training_files"
    __table_args__ = (_of_tenant(),)

    tenant_id: Mapped[str] = _tenant_id()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    type: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger())
    digest: Mapped[builtins.bytes]
    lines: Mapped[int]
    created_at: Mapped[datetime] = _created_at()


class InfluenceIndex(Table):
    """What a model's training pairs are compared with a question by: its files lie in a folder of its id.

    Made for exactly `model_digest` and `base_digest`. `config` is what was asked for, `facts` what came out; `job`
    builds it. The newest ready one of a model answers; an index dies with its model.
    """

    __tablename__ = "influence_indexes"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "model"], ["models.tenant_id", "models.name"], ondelete="CASCADE"),
        CheckConstraint("state IN ('building', 'ready', 'failed')", name="state"),
    )

    tenant_id: Mapped[str] = _tenant_id()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    model: Mapped[str]
    model_digest: Mapped[str]
    base_digest: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="building")
    job: Mapped[UUID]
    config: Mapped[dict[str, Any]]
    facts: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = _created_at()
    published_at: Mapped[datetime | None]


Index("influence_indexes_model_idx", *(InfluenceIndex.__table__.c[name] for name in ("tenant_id", "model")))


def _of_influence_index() -> ForeignKeyConstraint:
    parent = ["influence_indexes.tenant_id", "influence_indexes.id"]
    return ForeignKeyConstraint(["tenant_id", "index_id"], parent, ondelete="CASCADE")


class InfluenceFile(Table):
    """A training file of an index, which cannot be deleted meanwhile; `place` is its position among them, from 0."""

    __tablename__ = "influence_files"
    __table_args__ = (
        _of_influence_index(),
        ForeignKeyConstraint(["tenant_id", "file_id"], ["training_files.tenant_id", "training_files.id"]),
        Index("influence_files_file_idx", "tenant_id", "file_id"),
    )

    tenant_id: Mapped[str] = _tenant_id()
    index_id: Mapped[UUID] = mapped_column(primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    file_id: Mapped[UUID]


class InfluenceShard(Table):
    """A piece of an index: one worker computes it, under a lease until `leased_until`; done once it has a digest.
    `leases` counts them, and names the one that holds: what was computed under an earlier one is not kept.

    `key` is equal where shards have the same content, but for the numbers of their records; `first` is that of the
    first record, `digest` the sha256 of the file.
    """

    __tablename__ = "influence_shards"
    __table_args__ = (_of_influence_index(), Index("influence_shards_key_idx", "tenant_id", "key"))

    tenant_id: Mapped[str] = _tenant_id()
    index_id: Mapped[UUID] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    key: Mapped[bytes]
    first: Mapped[int]
    tokens: Mapped[int] = mapped_column(BigInteger())
    leases: Mapped[int] = mapped_column(server_default="0")
    leased_until: Mapped[datetime | None]
    digest: Mapped[str | None]


class Deployment(Table):
    """What was said of serving a model, and the tokens that it has read and written. A model without a row is served,
    under its own name; `name` and `description` are those of a deployment that was asked for.
    """

    __tablename__ = "deployments"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "model"], ["models.tenant_id", "models.name"], ondelete="CASCADE"),
    )

    tenant_id: Mapped[str] = _tenant_id()
    model: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    description: Mapped[str | None]
    active: Mapped[bool] = mapped_column(server_default="true")
    input_tokens: Mapped[int] = mapped_column(BigInteger(), server_default="0")
    output_tokens: Mapped[int] = mapped_column(BigInteger(), server_default="0")
    changed_at: Mapped[datetime | None]


class AuditEntry(Table):
    """Who did what, and what came of it. Only added to (see the migration), and refers to no row: it outlives them all.

    `status` is that of the answer, and 0 in the row that is added before a change begins; the two have one `id`.
    `object` has what the route's path names, and the address of what was made.
    """

    __tablename__ = "audit"

    tenant_id: Mapped[str] = _tenant_id()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    created_at: Mapped[datetime] = _created_at()
    kind: Mapped[str]
    method: Mapped[str]
    route: Mapped[str]
    object: Mapped[dict[str, Any]]
    key_id: Mapped[UUID | None]
    key_name: Mapped[str | None]
    request_id: Mapped[str | None]


Index(
    "audit_newest_idx",
    AuditEntry.__table__.c.tenant_id,
    AuditEntry.created_at.desc(),
    AuditEntry.id.desc(),
)
