"""Jobs, and the queue that says which of them to look at.

The queue is the job library's own schema, as release 3.10 brings it. When the library is upgraded, its own migration
scripts need a migration here, and this one must not bring what they bring: `tests/storage/test_jobs.py` notices.
"""

import sqlalchemy as sa
from alembic import op
from procrastinate.schema import SchemaManager

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TENANT = "current_setting('whence.tenant', true)"
STATES = "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')"

DROP_QUEUE = """
DROP TABLE procrastinate_events, procrastinate_periodic_defers, procrastinate_jobs, procrastinate_workers CASCADE;
DO $$
DECLARE found text;
BEGIN
    FOR found IN SELECT oid::regprocedure FROM pg_proc WHERE proname LIKE 'procrastinate\\_%'
        AND pronamespace = current_schema()::regnamespace
    LOOP
        EXECUTE 'DROP FUNCTION ' || found;
    END LOOP;
END $$;
DROP TYPE procrastinate_job_to_defer_v1, procrastinate_job_event_type, procrastinate_job_status;
"""


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("current_setting('whence.tenant')"), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("done", sa.Integer(), server_default="0", nullable=False),
        sa.Column("total", sa.Integer(), server_default="1", nullable=False),
        sa.Column("result", sa.Uuid(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("version", sa.Integer(), server_default="1", nullable=False),
        moment("created_at", server_default=sa.text("now()"), nullable=False),
        moment("started_at"),
        moment("heartbeat_at"),
        moment("finished_at"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="jobs_pkey"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name="jobs_tenant_id_fkey", ondelete="CASCADE"),
        sa.CheckConstraint(STATES, name=op.f("jobs_state_check")),
    )
    newest = [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")]
    op.create_index("jobs_newest_idx", "jobs", ["tenant_id", *newest])
    op.execute("ALTER TABLE jobs ENABLE ROW LEVEL SECURITY")
    op.execute("ALTER TABLE jobs FORCE ROW LEVEL SECURITY")
    op.execute("REVOKE ALL ON jobs FROM PUBLIC")
    op.execute(f"CREATE POLICY own ON jobs USING (tenant_id = {TENANT}) WITH CHECK (tenant_id = {TENANT})")
    run_script(SchemaManager.get_schema())


def downgrade() -> None:
    run_script(DROP_QUEUE)
    op.drop_table("jobs")


def run_script(script: str) -> None:
    """Several statements in which a percent sign means nothing."""
    op.get_bind().exec_driver_sql(script, execution_options={"no_parameters": True})


def moment(name: str, **options: object) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), **{"nullable": True, **options})
