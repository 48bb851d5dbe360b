"""How the prompt and the target of an explanation begin, for lists, and their words, for searches.

They cannot be read from the request at every list: that can hold images of megabytes, and NUL characters, which
Postgres reads out of no JSON. What is stored already is read here once.
"""

import json
import re
from collections.abc import Iterator
from typing import Any
from unicodedata import normalize

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

NAMES = ("prompt", "target", "words")
UNSTORABLE = re.compile("[\0\ud800-\udfff]")
ROWS = 100
TENANT = sa.text("SELECT set_config('whence.tenant', :tenant, true)")
# As text: reading members would fail on the first NUL character.
NEXT = sa.text(
    "SELECT id, request::text AS request, attribution::text AS attribution FROM explanations "
    "WHERE id > :after ORDER BY id LIMIT :rows"
)
SET = sa.text("UPDATE explanations SET prompt = :prompt, target = :target, words = :words WHERE id = :id")


def upgrade() -> None:
    for name in NAMES:
        op.add_column("explanations", sa.Column(name, sa.Text(), server_default="", nullable=False))
    # As it is: what a search reads is bounded by its size, and read faster.
    op.execute("ALTER TABLE explanations ALTER COLUMN words SET STORAGE EXTERNAL")
    connection = op.get_bind()
    for tenant in connection.scalars(sa.text("SELECT id FROM tenants")).all():
        connection.execute(TENANT, {"tenant": tenant})
        for rows in batches(connection):
            connection.execute(SET, rows)
    connection.execute(TENANT, {"tenant": ""})


def downgrade() -> None:
    for name in NAMES:
        op.drop_column("explanations", name)


def batches(connection: sa.Connection) -> Iterator[list[dict[str, Any]]]:
    after = "00000000-0000-0000-0000-000000000000"
    while rows := connection.execute(NEXT, {"after": after, "rows": ROWS}).all():
        yield [{"id": row.id} | read(json.loads(row.request), json.loads(row.attribution)) for row in rows]
        after = rows[-1].id


def read(request: dict[str, Any], attribution: dict[str, Any]) -> dict[str, str]:
    """What has none of the forms that were ever stored is listed without words: a server must start."""
    if "question" in request:  # of training data
        prompt = f"{request['question']}\n{request.get('system_prompt') or ''}".strip()
        target = attribution.get("answer", "")
    else:
        items = request.get("prompt", [])
        prompt = "\n".join(item["data"] for item in items if isinstance(item, dict) and item.get("type") == "text")
        target = request.get("target") or "".join(each["text"] for each in attribution.get("targets", []))
    words = f"{folded(target[:4_000])}\n{folded(prompt[:16_000])}"
    return {"prompt": stored(prompt[:200]), "target": stored(target[:200]), "words": words}


def folded(text: str) -> str:
    return " ".join(stored(normalize("NFC", normalize("NFC", text).casefold())).split())


def stored(text: str) -> str:
    return UNSTORABLE.sub("\ufffd", text)
