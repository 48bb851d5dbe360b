"""Sign-ins to the pages that were ended before their time.

Their cookies are signed and kept nowhere; one that somebody has copied would open the pages until it expires.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TENANT = "current_setting('whence.tenant', true)"
NAME = "ended_sessions"


def upgrade() -> None:
    op.create_table(
        NAME,
        sa.Column("tenant_id", sa.Text(), server_default=sa.text("current_setting('whence.tenant')"), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=f"{NAME}_pkey"),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=f"{NAME}_tenant_id_fkey", ondelete="CASCADE"),
    )
    op.execute(f"ALTER TABLE {NAME} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {NAME} FORCE ROW LEVEL SECURITY")
    op.execute(f"REVOKE ALL ON {NAME} FROM PUBLIC")
    op.execute(f"CREATE POLICY own ON {NAME} USING (tenant_id = {TENANT}) WITH CHECK (tenant_id = {TENANT})")


def downgrade() -> None:
    op.drop_table(NAME)
