"""Monitored models, their inferences, reference rows and scores, each tenant's rows for that tenant alone."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TENANT = "current_setting('whence.tenant', true)"
TABLES = (
    "monitored_models",
    "monitored_attributes",
    "inferences",
    "reference_rows",
    "inference_scores",
    "inference_tokens",
)
MODEL = ["tenant_id", "model_id"]
INFERENCE = [*MODEL, "seq"]
SCORES = [*MODEL, "algorithm", "seq"]


def upgrade() -> None:
    make_models()
    make_rows()
    make_scores()
    # A statement that names the elements of an array would fetch one that lies outside the row once for each of them:
    # scores stay in the row while a page can hold them; what does not fit goes, errors first. Floats do not shrink.
    op.execute("ALTER TABLE inference_scores SET (toast_tuple_target = 8160)")
    op.execute("ALTER TABLE inference_scores ALTER COLUMN scores SET STORAGE MAIN")
    op.execute("ALTER TABLE inference_scores ALTER COLUMN errors SET STORAGE EXTERNAL")
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
        op.execute(f"REVOKE ALL ON {table} FROM PUBLIC")
        op.execute(f"CREATE POLICY own ON {table} USING (tenant_id = {TENANT}) WITH CHECK (tenant_id = {TENANT})")


def make_models() -> None:
    op.create_table(
        "monitored_models",
        tenant_id(),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("partner_model_id", sa.Text(), nullable=False),
        sa.Column("input_type", sa.Text(), nullable=False),
        sa.Column("output_type", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("is_batch", sa.Boolean(), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        moment("reference_closed_at"),
        moment("created_at", server_default=sa.text("now()"), nullable=False),
        moment("archived_at"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="monitored_models_pkey"),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name="monitored_models_tenant_id_fkey", ondelete="CASCADE"
        ),
    )
    op.create_index(
        "monitored_models_active_idx",
        "monitored_models",
        ["tenant_id", "partner_model_id"],
        unique=True,
        postgresql_where=sa.text("archived_at IS NULL"),
    )
    op.create_table(
        "monitored_attributes",
        *of_model(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("value_type", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("slot_kind", sa.Text(), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("implicit", sa.Boolean(), nullable=False),
        sa.Column("attribute_link", sa.Text(), nullable=True),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint(*MODEL, "name", name="monitored_attributes_pkey"),
        sa.UniqueConstraint(
            *MODEL, "slot_kind", "slot", name="monitored_attributes_tenant_id_model_id_slot_kind_slot_key"
        ),
        sa.CheckConstraint("slot_kind IN ('number', 'text')", name=op.f("monitored_attributes_slot_kind_check")),
        model_key("monitored_attributes"),
    )


def make_rows() -> None:
    op.create_table(
        "inferences",
        *of_model(),
        sa.Column("seq", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("partner_inference_id", sa.Text(), nullable=False),
        moment("inference_timestamp", nullable=False),
        moment("received_timestamp", server_default=sa.text("now()"), nullable=False),
        sa.Column("batch_id", sa.Text(), nullable=True),
        moment("ground_truth_timestamp"),
        *cells(),
        sa.PrimaryKeyConstraint(*INFERENCE, name="inferences_pkey"),
        sa.UniqueConstraint(
            *MODEL, "partner_inference_id", name="inferences_tenant_id_model_id_partner_inference_id_key"
        ),
        model_key("inferences"),
    )
    op.create_index("inferences_id_idx", "inferences", ["tenant_id", "id"])
    op.create_table(
        "reference_rows",
        *of_model(),
        sa.Column("seq", sa.BigInteger(), sa.Identity(), nullable=False),
        *cells(),
        sa.PrimaryKeyConstraint(*INFERENCE, name="reference_rows_pkey"),
        model_key("reference_rows"),
    )


def make_scores() -> None:
    op.create_table(
        "inference_scores",
        *of_model(),
        sa.Column("algorithm", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        floats("scores", nullable=False),
        floats("errors"),
        floats("base_values"),
        floats("fit"),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint(*SCORES, name="inference_scores_pkey"),
        sa.ForeignKeyConstraint(
            INFERENCE,
            [f"inferences.{column}" for column in INFERENCE],
            name="inference_scores_tenant_id_model_id_seq_fkey",
            ondelete="CASCADE",
        ),
    )
    op.create_table(
        "inference_tokens",
        *of_model(),
        sa.Column("algorithm", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("attribute", sa.Text(), nullable=False),
        sa.Column("tokens", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("positions", postgresql.ARRAY(sa.Integer()), nullable=False),
        floats("scores", nullable=False),
        floats("errors"),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint(*SCORES, "attribute", name="inference_tokens_pkey"),
        sa.ForeignKeyConstraint(
            SCORES,
            [f"inference_scores.{column}" for column in SCORES],
            name="inference_tokens_tenant_id_model_id_algorithm_seq_fkey",
            ondelete="CASCADE",
        ),
    )


def downgrade() -> None:
    for table in reversed(TABLES):
        op.drop_table(table)


def tenant_id() -> "sa.Column[str]":
    return sa.Column("tenant_id", sa.Text(), server_default=sa.text("current_setting('whence.tenant')"), nullable=False)


def of_model() -> "tuple[sa.Column[str], sa.Column[object]]":
    return tenant_id(), sa.Column("model_id", sa.Uuid(), nullable=False)


def model_key(table: str) -> sa.ForeignKeyConstraint:
    parent = ["monitored_models.tenant_id", "monitored_models.id"]
    return sa.ForeignKeyConstraint(MODEL, parent, name=f"{table}_tenant_id_model_id_fkey", ondelete="CASCADE")


def cells() -> "tuple[sa.Column[object], sa.Column[object]]":
    return floats("numbers", nullable=False), sa.Column("texts", postgresql.ARRAY(sa.Text()), nullable=False)


def floats(name: str, *, nullable: bool = True) -> "sa.Column[object]":
    return sa.Column(name, postgresql.ARRAY(sa.Double()), nullable=nullable)


def moment(name: str, **options: object) -> "sa.Column[object]":
    return sa.Column(name, sa.DateTime(timezone=True), **{"nullable": True, **options})
