"""Limits of each key, and the counters and places in use that they are held against.

Counters and places are unlogged: they are worth a minute, and a crash of Postgres empties them.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TENANT = "current_setting('whence.tenant', true)"
TABLES = ("limit_counters", "limit_places")
COLUMNS = {
    "request_seconds": sa.Double(),
    "requests_per_minute": sa.Integer(),
    "seconds_per_minute": sa.Double(),
    "concurrency": sa.Integer(),
}


def upgrade() -> None:
    for name, kind in COLUMNS.items():
        op.add_column("api_keys", sa.Column(name, kind, nullable=True))
    op.create_check_constraint(
        op.f("api_keys_limits_check"), "api_keys", " AND ".join(f"{name} >= 0" for name in COLUMNS)
    )
    op.create_table(
        "limit_counters",
        tenant_id(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("current", sa.BigInteger(), nullable=False),
        sa.Column("previous", sa.BigInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "name", name="limit_counters_pkey"),
        of_tenant("limit_counters"),
        prefixes=["UNLOGGED"],
    )
    op.create_table(
        "limit_places",
        tenant_id(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holders", postgresql.JSONB(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "name", name="limit_places_pkey"),
        of_tenant("limit_places"),
        prefixes=["UNLOGGED"],
    )
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"REVOKE ALL ON {table} FROM PUBLIC")
        op.execute(f"CREATE POLICY own ON {table} USING (tenant_id = {TENANT}) WITH CHECK (tenant_id = {TENANT})")


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)
    op.drop_constraint(op.f("api_keys_limits_check"), "api_keys")
    for name in reversed(COLUMNS):
        op.drop_column("api_keys", name)


def tenant_id() -> "sa.Column[str]":
    return sa.Column("tenant_id", sa.Text(), server_default=sa.text("current_setting('whence.tenant')"), nullable=False)


def of_tenant(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=f"{table}_tenant_id_fkey", ondelete="CASCADE")
