"""How a model is spread over a cluster, where its registration says so."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("models", sa.Column("scaling", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("models", "scaling")
