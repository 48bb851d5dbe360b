"""Shards of jobs that explain inferences, which workers lease; leases are numbered, those of influence indexes too."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

TENANT = "current_setting('whence.tenant', true)"


def upgrade() -> None:
    op.create_table(
        "job_shards",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("current_setting('whence.tenant')"), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("first", sa.BigInteger(), nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("leases", sa.Integer(), server_default="0", nullable=False),
        sa.Column("leased_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("done", sa.Boolean(), server_default="false", nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "job_id", "number", name="job_shards_pkey"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "job_id"],
            ["jobs.tenant_id", "jobs.id"],
            name="job_shards_tenant_id_job_id_fkey",
            ondelete="CASCADE",
        ),
    )
    op.execute("ALTER TABLE job_shards ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE job_shards FORCE ROW LEVEL SECURITY")
    op.execute("REVOKE ALL ON job_shards FROM PUBLIC")
    op.execute(f"CREATE POLICY own ON job_shards USING (tenant_id = {TENANT}) WITH CHECK (tenant_id = {TENANT})")
    op.add_column("influence_shards", sa.Column("leases", sa.Integer(), server_default="0", nullable=False))
    op.drop_column("influence_shards", "worker")


def downgrade() -> None:
    op.add_column("influence_shards", sa.Column("worker", sa.Uuid(), nullable=True))
    op.drop_column("influence_shards", "leases")
    op.drop_table("job_shards")
