"""Fine-tunes keep where their base lies; influence indexes with their files, and shards that workers lease."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TENANT = "current_setting('whence.tenant', true)"
TABLES = ("influence_indexes", "influence_files", "influence_shards")


def upgrade() -> None:
    op.add_column("models", sa.Column("base_path", sa.Text(), nullable=True))
    op.create_table(
        "influence_indexes",
        tenant_id(),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("model_digest", sa.Text(), nullable=False),
        sa.Column("base_digest", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default="building", nullable=False),
        sa.Column("job", sa.Uuid(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="influence_indexes_pkey"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "model"],
            ["models.tenant_id", "models.name"],
            name="influence_indexes_tenant_id_model_fkey",
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("state IN ('building', 'ready', 'failed')", name=op.f("influence_indexes_state_check")),
    )
    op.create_index("influence_indexes_model_idx", "influence_indexes", ["tenant_id", "model"])
    make_parts()
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"REVOKE ALL ON {table} FROM PUBLIC")
        op.execute(f"CREATE POLICY own ON {table} USING (tenant_id = {TENANT}) WITH CHECK (tenant_id = {TENANT})")


def make_parts() -> None:
    op.create_table(
        "influence_files",
        tenant_id(),
        sa.Column("index_id", sa.Uuid(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "index_id", "place", name="influence_files_pkey"),
        of_index("influence_files"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "file_id"],
            ["training_files.tenant_id", "training_files.id"],
            name="influence_files_tenant_id_file_id_fkey",
        ),
    )
    op.create_index("influence_files_file_idx", "influence_files", ["tenant_id", "file_id"])
    op.create_table(
        "influence_shards",
        tenant_id(),
        sa.Column("index_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("first", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("worker", sa.Uuid(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "index_id", "number", name="influence_shards_pkey"),
        of_index("influence_shards"),
    )
    op.create_index("influence_shards_key_idx", "influence_shards", ["tenant_id", "key"])


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
    op.drop_column("models", "base_path")


def tenant_id() -> "sa.Column[str]":
    return sa.Column("tenant_id", sa.Text(), server_default=sa.text("current_setting('whence.tenant')"), nullable=False)


def of_index(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["tenant_id", "index_id"],
        ["influence_indexes.tenant_id", "influence_indexes.id"],
        name=f"{table}_tenant_id_index_id_fkey",
        ondelete="CASCADE",
    )
