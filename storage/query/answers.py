"""Runs a compiled query, in bounded time and with a bounded number of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Result, Select, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from storage.errors import InvalidQuery
from storage.query.compiler import Compiled

PAGE_SIZE = 100
TIMEOUT_S = 60.0
MOST_ROWS = 200_000
CANCELLED, UNTRANSLATABLE, MALFORMED, TOO_LONG = "57014", "22P05", "22P02", "54000"
LAST = 2**53


async def run(
    session: AsyncSession,
    compiled: Compiled,
    *,
    page: int | None = None,
    page_size: int | None = None,
    timeout_s: float = TIMEOUT_S,
    most_rows: int = MOST_ROWS,
) -> list[dict[str, Any]]:
    """The rows of one page (from 1; 100 rows unless said otherwise), of all pages where none is asked for.

    Raises InvalidQuery for a page that cannot be, for more than `most_rows` rows and for a statement that takes longer
    than `timeout_s`; the session's transaction is then lost.
    """
    limit, offset = window(compiled, page, page_size)
    if limit == 0:
        return []
    most = most_rows + 1 if limit is None else min(limit, most_rows + 1)
    statement = compiled.statement.limit(most).offset(offset or None)
    found = await fetch(session, statement, timeout_s)
    if len(found) > most_rows:
        raise InvalidQuery(f"the answer has more than {most_rows} rows: set 'limit', or ask page by page", "/limit")
    return [compiled.row(values) for values in found]


async def fetch(session: AsyncSession, statement: Select[Any], timeout_s: float) -> Sequence[Any]:
    """All rows of a statement. Raises InvalidQuery for what the caller can help; the transaction is then lost."""
    await session.execute(select(func.set_config("statement_timeout", f"{max(1, int(timeout_s * 1000))}ms", True)))
    try:
        result: Result[Any] = await session.execute(statement)
        return result.all()
    except DBAPIError as error:
        refusal = _refusal(getattr(error.orig, "sqlstate", None), timeout_s)
        if refusal is None:
            raise
        raise InvalidQuery(refusal) from None


def _refusal(state: str | None, timeout_s: float) -> str | None:
    """What the caller can do about an error of the database; None for ours."""
    if state == CANCELLED:
        return f"the query took longer than {timeout_s:g} s: filter more, or ask for less"
    if state == TOO_LONG:
        return "the lists of these rows are too long together: filter more"
    if state in {UNTRANSLATABLE, MALFORMED}:
        return "a list among these rows has a NUL character or half a surrogate pair: filter its row out"
    return None


def window(compiled: Compiled, page: int | None, page_size: int | None) -> tuple[int | None, int]:
    """Limit and offset of a page of what the query's own limit and offset leave."""
    if page is None and page_size is None:
        return compiled.limit, compiled.offset
    number, size = 1 if page is None else page, PAGE_SIZE if page_size is None else page_size
    if number < 1 or size < 1:
        raise InvalidQuery("page and page_size are whole numbers from 1")
    skipped = (number - 1) * size
    if skipped + compiled.offset > LAST:
        return 0, 0
    left = size if compiled.limit is None else max(0, min(size, compiled.limit - skipped))
    return left, compiled.offset + skipped
