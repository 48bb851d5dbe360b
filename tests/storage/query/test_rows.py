"""Plain queries: columns, filters, order, pages."""

from __future__ import annotations

from tests.storage.query.conftest import Ask
from tests.storage.query.rows import Rows


async def test_everything(ask: Ask, rows: Rows) -> None:
    found = await ask({"select": [{"property": "*"}]})
    assert len(found) == len(rows.frame)
    print(found[0])
