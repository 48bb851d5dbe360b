"""The tables of training data, and of the influence indexes that are made of it."""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKeyConstraint, Index
from sqlalchemy.orm import Mapped, mapped_column

from storage.tables import CreatedAt, Leased, Table, TenantId, of_tenant


class TrainingFile(Table):
    """A file of training examples. Its content lies on disk, under its id (see `content`).

    `digest` is the sha256 of the content, `bytes` its size, `lines` the number of its examples.
    """

    __tablename__ = "training_files"
    __table_args__ = (of_tenant(),)

    tenant_id: Mapped[TenantId]
    id: Mapped[UUID] = mapped_column(primary_key=True)
    filename: Mapped[str]
    purpose: Mapped[str]
    type: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger())
    digest: Mapped[builtins.bytes]
    lines: Mapped[int]
    created_at: Mapped[CreatedAt]


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

    tenant_id: Mapped[TenantId]
    id: Mapped[UUID] = mapped_column(primary_key=True)
    model: Mapped[str]
    model_digest: Mapped[str]
    base_digest: Mapped[str | None]
    state: Mapped[str] = mapped_column(server_default="building")
    job: Mapped[UUID]
    config: Mapped[dict[str, Any]]
    facts: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[CreatedAt]
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

    tenant_id: Mapped[TenantId]
    index_id: Mapped[UUID] = mapped_column(primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    file_id: Mapped[UUID]


class InfluenceShard(Leased, Table):
    """A piece of an index; done once it has a digest.

    `key` is equal where shards have the same content, but for the numbers of their records; `first` is that of the
    first record, `digest` the sha256 of the file.
    """

    __tablename__ = "influence_shards"
    __table_args__ = (_of_influence_index(), Index("influence_shards_key_idx", "tenant_id", "key"))

    tenant_id: Mapped[TenantId]
    index_id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[bytes]
    first: Mapped[int]
    tokens: Mapped[int] = mapped_column(BigInteger())
    digest: Mapped[str | None]
