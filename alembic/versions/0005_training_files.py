"""Training files: what each is called and what it holds; the contents lie on disk."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TENANT = "current_setting('whence.tenant', true)"


def upgrade() -> None:
    op.create_table(
        "training_files",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("current_setting('whence.tenant')"), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("lines", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="training_files_pkey"),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="training_files_tenant_id_fkey", ondelete="CASCADE"
        ),
    )
    op.execute("ALTER TABLE training_files ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE training_files FORCE ROW LEVEL SECURITY")
    op.execute("REVOKE ALL ON training_files FROM PUBLIC")
    op.execute(f"CREATE POLICY own ON training_files USING (tenant_id = {TENANT}) WITH CHECK (tenant_id = {TENANT})")


def downgrade() -> None:
    op.drop_table("training_files")
