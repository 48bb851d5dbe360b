"""The audit log: rows are added, never changed, and removed only by age."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TENANT = "current_setting('whence.tenant', true)"
BEFORE = "nullif(current_setting('whence.audit_before', true), '')"
"""Set by who removes old rows, for one transaction."""
KEPT = "interval '7 days'"


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("current_setting('whence.tenant')"), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("status", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("object", sa.JSON(), nullable=False),
        sa.Column("key_id", sa.Uuid(), nullable=True),
        sa.Column("key_name", sa.Text(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "id", "status", name="audit_pkey"),
    )
    op.create_index("audit_newest_idx", "audit", ["tenant_id", sa.text("created_at DESC"), sa.text("id DESC")])
    op.execute("ALTER TABLE audit ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE audit FORCE ROW LEVEL SECURITY")
    op.execute("REVOKE ALL ON audit FROM PUBLIC")
    op.execute(f"CREATE POLICY own_read ON audit FOR SELECT USING (tenant_id = {TENANT})")
    op.execute(f"CREATE POLICY own_added ON audit FOR INSERT WITH CHECK (tenant_id = {TENANT})")
    op.execute(
        f"CREATE POLICY own_old ON audit FOR DELETE USING (tenant_id = {TENANT} "
        f"AND created_at < {BEFORE}::timestamptz AND created_at < now() - {KEPT})"
    )
    # A statement that changes rows is refused, also where no row would be changed: silence would look like success.
    op.execute(
        "CREATE FUNCTION audit_is_kept() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF TG_OP = 'DELETE' AND {BEFORE} IS NOT NULL THEN RETURN NULL; END IF; "
        "RAISE EXCEPTION 'the audit log is only added to' USING ERRCODE = 'insufficient_privilege'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_is_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_is_kept()"
    )


def downgrade() -> None:
    op.drop_table("audit")
    op.execute("DROP FUNCTION audit_is_kept()")
