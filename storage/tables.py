"""The tables, and what all of them have in common; those of monitored models and of training data have files beside
this one.

`tenant_id` is part of every primary and foreign key, and row-level security compares it with the setting
`whence.tenant` of the transaction (policies: see the migrations), so no query needs to filter by tenant. `tenant_id`
of a new row comes from that same setting.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Text,
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


TenantId = Annotated[str, mapped_column(primary_key=True, server_default=text("current_setting('whence.tenant')"))]
CreatedAt = Annotated[datetime, mapped_column(server_default=func.now())]


def of_tenant() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE")


class Tenant(Table):
    """A group of users who share keys, models and results, and see nobody else's. Every tenant may list the names."""

    __tablename__ = "tenants"
    __table_args__ = (CheckConstraint("id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'", name="slug"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[CreatedAt]


class ApiKey(Table):
    """A bearer key; only the sha256 of its secret is stored. Readable by its tenant and by whoever has the secret.

    Its own limits go before the server's: null leaves it to the server, 0 is none at all.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        of_tenant(),
        CheckConstraint(
            "request_seconds >= 0 AND requests_per_minute >= 0 AND seconds_per_minute >= 0 AND concurrency >= 0",
            name="limits",
        ),
    )

    tenant_id: Mapped[TenantId]
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    key_hash: Mapped[bytes] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[CreatedAt]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    request_seconds: Mapped[float | None]
    requests_per_minute: Mapped[int | None]
    seconds_per_minute: Mapped[float | None]
    concurrency: Mapped[int | None]


class EndedSession(Table):
    """A sign-in to the pages that was ended before `until`, when it would have expired; `id` is that of its token."""

    __tablename__ = "ended_sessions"
    __table_args__ = (of_tenant(),)

    tenant_id: Mapped[TenantId]
    id: Mapped[UUID] = mapped_column(primary_key=True)
    until: Mapped[datetime]


class LimitCounter(Table):
    """What was counted in a window of so many `seconds` and in the one before; `at` is the time of the last hit, or of
    the first one where the window begins with it, in seconds since 1970. A crash of Postgres empties it.
    """

    __tablename__ = "limit_counters"
    __table_args__ = (of_tenant(), {"prefixes": ["UNLOGGED"]})

    tenant_id: Mapped[TenantId]
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
    __table_args__ = (of_tenant(), {"prefixes": ["UNLOGGED"]})

    tenant_id: Mapped[TenantId]
    name: Mapped[str] = mapped_column(primary_key=True)
    holders: Mapped[dict[str, Any]] = mapped_column(JSONB())
    until: Mapped[float]


class Model(Table):
    """A registered model: where its files lie and how to load them. A fine-tune names its base model.

    `base_path` is that of the base, which stays as it is for as long as the fine-tune is registered.
    """

    __tablename__ = "models"
    __table_args__ = (
        of_tenant(),
        ForeignKeyConstraint(["tenant_id", "base"], ["models.tenant_id", "models.name"]),
    )

    tenant_id: Mapped[TenantId]
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
    created_at: Mapped[CreatedAt]


class Explanation(Table):
    """A finished explanation. Outlives its model, so `model` refers to no row.

    `id` is a time-ordered UUID; `request_key` the digest of the canonical request; `seconds` wall-clock. `prompt` and
    `target` are how these begin, and `words` what a search compares with (see `wording`).
    """

    __tablename__ = "explanations"
    __table_args__ = (of_tenant(),)

    tenant_id: Mapped[TenantId]
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
    created_at: Mapped[CreatedAt]


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
        of_tenant(),
        CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="state"),
    )

    tenant_id: Mapped[TenantId]
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
    created_at: Mapped[CreatedAt]
    started_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Leased:
    """What a table of shards has for the leases of its rows: one worker computes a shard, under a lease until
    `leased_until`. `leases` counts them, and names the one that holds: what was computed under an earlier one is not
    stored.
    """

    # Behind the columns of each table: keys begin with the tenant.
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, sort_order=1)
    leases: Mapped[int] = mapped_column(server_default="0", sort_order=1)
    leased_until: Mapped[datetime | None] = mapped_column(sort_order=1)


class JobShard(Leased, Table):
    """A piece of a job that explains inferences: those whose `seq` is from `first` to `last`, so many `rows` when it
    was cut.
    """

    __tablename__ = "job_shards"
    __table_args__ = (ForeignKeyConstraint(["tenant_id", "job_id"], ["jobs.tenant_id", "jobs.id"], ondelete="CASCADE"),)

    tenant_id: Mapped[TenantId]
    job_id: Mapped[UUID] = mapped_column(primary_key=True)
    first: Mapped[int] = mapped_column(BigInteger())
    last: Mapped[int] = mapped_column(BigInteger())
    rows: Mapped[int]
    done: Mapped[bool] = mapped_column(server_default="false")


Index("jobs_newest_idx", Job.__table__.c.tenant_id, Job.created_at.desc(), Job.id.desc())
Index("jobs_of_model_idx", *(Job.__table__.c[column] for column in ("tenant_id", "kind", "model", "state")))


class Deployment(Table):
    """What was said of serving a model, and the tokens that it has read and written. A model without a row is served,
    under its own name; `name` and `description` are those of a deployment that was asked for.
    """

    __tablename__ = "deployments"
    __table_args__ = (
        ForeignKeyConstraint(["tenant_id", "model"], ["models.tenant_id", "models.name"], ondelete="CASCADE"),
    )

    tenant_id: Mapped[TenantId]
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

    tenant_id: Mapped[TenantId]
    id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    created_at: Mapped[CreatedAt]
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
