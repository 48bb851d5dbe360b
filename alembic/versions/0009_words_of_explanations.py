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
ROWS, BYTES = 1_000, 16 * 2**20
"""Of rows that are in memory together: at most so many, and so many bytes unless a single one has more."""
TENANT = sa.text("SELECT set_config('whence.tenant', :tenant, true)")
SIZES = sa.text(
    "SELECT id, octet_length(request::text) + octet_length(attribution::text) AS size FROM explanations "
    "WHERE id > :after ORDER BY id LIMIT :rows"
)
# As text: reading members would fail on the first NUL character.
BETWEEN = sa.text(
    "SELECT id, request::text AS request, attribution::text AS attribution FROM explanations "
    "WHERE id >= :first AND id <= :last ORDER BY id"
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
        for first, last in ranges(connection, BYTES):
            rows = connection.execute(BETWEEN, {"first": first, "last": last}).all()
            connection.execute(SET, [words_of(row) for row in rows])
            del rows  # before the next ones come
    connection.execute(TENANT, {"tenant": ""})


def downgrade() -> None:
    for name in NAMES:
        op.drop_column("explanations", name)


def ranges(connection: sa.Connection, most: int) -> Iterator[tuple[Any, Any]]:
    """First and last id of rows that have at most so many bytes together, or are one alone."""
    after: Any = "00000000-0000-0000-0000-000000000000"
    while rows := connection.execute(SIZES, {"after": after, "rows": ROWS}).all():
        first, last, size = rows[0].id, rows[0].id, rows[0].size
        for row in rows[1:]:
            if size + row.size > most:
                yield first, last
                first, size = row.id, 0
            last, size = row.id, size + row.size
        yield first, last
        after = last


def words_of(row: Any) -> dict[str, Any]:
    return {"id": row.id} | read(json.loads(row.request), json.loads(row.attribution))


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
