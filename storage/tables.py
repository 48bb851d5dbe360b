"""The tables. `tenant_id` is part of every primary and foreign key, and row-level security compares it with the
setting `whence.tenant` of the transaction (policies: see the migrations), so no query needs to filter by tenant.

`tenant_id` of a new row comes from that same setting.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    ForeignKeyConstraint,
    Index,
    MetaData,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
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
    }


def _tenant_id() -> Mapped[str]:
    return mapped_column(primary_key=True, server_default=text("current_setting('whence.tenant')"))


def _created_at() -> Mapped[datetime]:
    return mapped_column(server_default=func.now())


def _of_tenant() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id"], ["tenants.id"], ondelete="CASCADE")


class Tenant(Table):
    """A group of users who share keys, models and results, and see nobody else's. Every tenant may list the names."""

    __tablename__ = "tenants"
    __table_args__ = (CheckConstraint("id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'", name="slug"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[datetime] = _created_at()


class ApiKey(Table):
    """A bearer key; only the sha256 of its secret is stored. Readable by its tenant and by whoever has the secret."""

    __tablename__ = "api_keys"
    __table_args__ = (_of_tenant(),)

    tenant_id: Mapped[str] = _tenant_id()
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    key_hash: Mapped[bytes] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = _created_at()
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Model(Table):
    """A registered model: where its files lie and how to load them. An adapter names its base model."""

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
    digest: Mapped[str | None]
    dtype: Mapped[str | None]
    device: Mapped[str | None]
    description: Mapped[str]
    facts: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = _created_at()


class Explanation(Table):
    """A finished explanation. Outlives its model, so `model` refers to no row.

    `id` is a time-ordered UUID; `request_key` the digest of the canonical request; `seconds` wall-clock.
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


Index("jobs_newest_idx", Job.__table__.c.tenant_id, Job.created_at.desc(), Job.id.desc())
