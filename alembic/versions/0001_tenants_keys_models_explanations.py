"""Tenants, API keys, models and explanations, each tenant's rows for that tenant alone."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TENANT = "current_setting('whence.tenant', true)"
# After a transaction that set it, a setting is not absent but empty.
KEY_HASH = "decode(nullif(current_setting('whence.key_hash', true), ''), 'hex')"


def upgrade() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.Text(), nullable=False),
        created_at(),
        sa.PrimaryKeyConstraint("id", name="tenants_pkey"),
        sa.CheckConstraint("id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'", name=op.f("tenants_slug_check")),
    )
    op.create_table(
        "api_keys",
        tenant_id(),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        created_at(),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="api_keys_pkey"),
        of_tenant("api_keys"),
        sa.UniqueConstraint("key_hash", name="api_keys_key_hash_key"),
    )
    op.create_table(
        "models",
        tenant_id(),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("base", sa.Text(), nullable=True),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("dtype", sa.Text(), nullable=True),
        sa.Column("device", sa.Text(), nullable=True),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        created_at(),
        sa.PrimaryKeyConstraint("tenant_id", "name", name="models_pkey"),
        of_tenant("models"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "base"], ["models.tenant_id", "models.name"], name="models_tenant_id_base_fkey"
        ),
    )
    op.create_table(
        "explanations",
        tenant_id(),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("model_digest", sa.Text(), nullable=False),
        sa.Column("request_key", sa.LargeBinary(), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("attribution", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("forwards", sa.Integer(), nullable=False),
        created_at(),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="explanations_pkey"),
        of_tenant("explanations"),
    )
    newest = [sa.literal_column("created_at DESC"), sa.literal_column("id DESC")]
    for name, *leading in (["newest"], ["model", "model"], ["kind", "kind"], ["request_key", "request_key"]):
        op.create_index(f"explanations_{name}_idx", "explanations", ["tenant_id", *leading, *newest])

    protect("tenants")
    op.execute("CREATE POLICY everyone_lists ON tenants FOR SELECT USING (true)")
    op.execute(f"CREATE POLICY own_insert ON tenants FOR INSERT WITH CHECK (id = {TENANT})")
    op.execute(f"CREATE POLICY own_delete ON tenants FOR DELETE USING (id = {TENANT})")
    for table in ("api_keys", "models", "explanations"):
        protect(table)
        op.execute(f"CREATE POLICY own ON {table} USING (tenant_id = {TENANT}) WITH CHECK (tenant_id = {TENANT})")
    op.execute(f"CREATE POLICY by_secret ON api_keys FOR SELECT USING (key_hash = {KEY_HASH})")


def downgrade() -> None:
    for table in ("explanations", "models", "api_keys", "tenants"):
        op.drop_table(table)


def protect(table: str) -> None:
    """Row-level security, for the tables' owner too: Whence connects as the owner. Nobody else gets at them."""
    op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    op.execute(f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")
    op.execute(f"REVOKE ALL ON {table} FROM PUBLIC")


def tenant_id() -> "sa.Column[str]":
    return sa.Column("tenant_id", sa.Text(), server_default=sa.text("current_setting('whence.tenant')"), nullable=False)


def created_at() -> "sa.Column[object]":
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)


def of_tenant(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=f"{table}_tenant_id_fkey", ondelete="CASCADE")
