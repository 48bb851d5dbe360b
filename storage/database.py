"""The connection to Postgres: one pool, and transactions that belong to one tenant.

A transaction costs two round trips beside its own statements: `BEGIN` travels together with the settings that row-level
security reads, and `COMMIT`. The first of them also shows whether the pooled connection still lives, so a Postgres that
was restarted costs no request and no extra ping.

The few statements that every request makes take a shorter way, `Database.ask`: settings and statement in one message,
past SQLAlchemy's sessions, whose bookkeeping costs several times what Postgres and the driver do.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import namedtuple
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Self

import psycopg
from psycopg import generators
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.sql import quote
from sqlalchemy import URL, ClauseElement, event, make_url, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from storage.errors import DatabaseRefused, DatabaseUnavailable, InvalidValue, OutOfSpace, StorageError
from storage.values import json_text, plain

CONNECT_TIMEOUT_S = 5
POOL_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0
DIALECT = PGDialect_psycopg(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
AS_IT_IS = {"no_parameters": True}  # otherwise a percent sign would mean something
SOON = "set_config('synchronous_commit', 'off', true)"
# 08: connection lost or refused; 53: out of memory or connections; 57P: being shut down or started.
UNAVAILABLE = ("08", "53", "57P")
DISK_FULL = "53100"


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that each connection plans once, and then only runs."""

    name: str
    text: str  # with $1, $2, ... for the values
    values: tuple[str, ...]  # their names, in order


@dataclass(frozen=True, slots=True)
class Learnt:
    """What a connection keeps from one question to the next: found out anew, it costs as much as the statement."""

    adapter: Any  # a Transformer, which the driver types as nothing
    planned: set[str] = field(default_factory=set)
    """The names of the statements that it has planned."""
    rows: dict[str, Any] = field(default_factory=dict)
    """By those names, what makes the rows."""


@dataclass(frozen=True, slots=True)
class Database:
    """A pool of connections; opens the first one when it is needed."""

    engine: AsyncEngine
    pool_size: int
    kept: list[Any] = field(default_factory=list)
    """Connections that stay out of the pool between two questions, a quarter of all at most: the way in and out costs
    more than the statement."""

    @classmethod
    def connect(cls, url: str, *, pool_size: int = 10) -> Self:
        """A database for `postgresql://user:password@host/name`; at most `pool_size` connections at once."""
        engine = create_async_engine(
            postgres_url(url),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            hide_parameters=True,
            json_serializer=json_text,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "whence"},
        )
        # The driver would send BEGIN in a round trip of its own.
        event.listen(engine.sync_engine, "connect", _leave_begin_to_us)
        return cls(engine, pool_size)

    @asynccontextmanager
    async def transaction(
        self, tenant: str | None = None, key_hash: bytes | None = None
    ) -> AsyncIterator[AsyncSession]:
        """One session in one transaction: committed at the end, rolled back when the block raises.

        Only rows of `tenant` can be read or written, beside the API key with `key_hash`; without either, none but the
        list of tenants. Raises DatabaseUnavailable without a connection, StorageError for unforeseen refusals.
        """
        session = AsyncSession(self.engine, expire_on_commit=False)
        with translated_errors():
            async with AsyncExitStack() as stack:
                stack.push_async_exit(session)  # closes it, also when the task is cancelled
                await session.run_sync(_begin, _opening(tenant, key_hash))
                yield session
                await session.commit()
                stack.pop_all()  # the commit has given the connection back: nothing is left to close

    async def ask(
        self,
        statement: Statement,
        values: Mapping[str, Any],
        *,
        tenant: str | None = None,
        key_hash: bytes | None = None,
        durable: bool = True,
    ) -> Any | None:
        """The first row (a named tuple), or None, of one statement in a transaction of its own.

        When its connection turns out dead the statement is sent again, so it must bear being run twice. Rows and
        errors are those of `transaction`. What is not `durable` reaches the disk a moment after this returns.
        """
        settings = ", ".join(filter(None, (_settings(tenant, key_hash), "" if durable else SOON)))
        opening = f"SELECT {settings}; ".encode() if settings else b""
        with translated_errors():
            for _ in range(self.pool_size):  # after a restart of Postgres all that wait in the pool are dead
                with suppress(_LostConnectionError):
                    return await self._send(opening, statement, values)
            return await self._send(opening, statement, values)

    async def _send(self, opening: bytes, statement: Statement, values: Mapping[str, Any]) -> Any | None:
        pooled = self.kept.pop() if self.kept else await self.engine.raw_connection()
        connection: Any = pooled.driver_connection
        try:
            learnt = pooled.info.get(Learnt) or pooled.info.setdefault(Learnt, Learnt(Transformer(connection)))
            # Values are quoted on this side: only so can one message, which is one transaction, hold two statements.
            quoted = b", ".join(learnt.adapter.as_literal(values[name]) for name in statement.values)
            given = b"(%b)" % quoted if quoted else b""
            message = b"%bEXECUTE %b%b" % (opening, statement.name.encode(), given)
            return _first_row(await _execute(connection, statement, message, learnt.planned), statement, learnt)
        except psycopg.OperationalError as error:
            if connection.closed:
                raise _LostConnectionError from error
            raise
        finally:
            idle = connection.info.transaction_status == TransactionStatus.IDLE
            if idle and len(self.kept) < self.pool_size // 4:
                self.kept.append(pooled)
            else:
                await greenlet_spawn(pooled.close if idle else pooled.invalidate)

    async def ping(self) -> None:
        """Raises DatabaseUnavailable unless the database answers."""
        async with self.transaction():
            pass

    async def close(self) -> None:
        """Closes all connections; call it in the event loop that used them.

        Those still in use have a moment to come back, as what was cancelled gives them back a little later: the pool
        forgets them otherwise, open as they are.
        """
        pool: Any = self.engine.pool
        while self.kept:
            await greenlet_spawn(self.kept.pop().close)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while pool.checkedout():  # noqa: ASYNC110 - the pool has no event for it
                    await asyncio.sleep(0.01)
        await self.engine.dispose()


async def home(database: Database) -> str:
    """A name that no other database has."""
    statement = "SELECT system_identifier::text || '/' || current_database() FROM pg_control_system()"
    async with database.transaction() as session:
        return str(await session.scalar(text(statement)))


def postgres_url(url: str) -> URL:
    """The URL with our driver; other databases are refused."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        # The text itself may hold a password.
        raise DatabaseRefused("the database URL cannot be read: write postgresql://user:password@host/name") from None
    if parsed.drivername.partition("+")[0] not in {"postgresql", "postgres"}:
        raise DatabaseRefused(f"a {parsed.drivername} database cannot be used: whence needs postgresql://")
    return parsed.set(drivername="postgresql+psycopg")


def with_password(url: str, password: str | None) -> str:
    """The URL with this password in place of its own; unchanged without one."""
    if password is None:
        return url
    return postgres_url(url).set(password=password).render_as_string(hide_password=False)


def _leave_begin_to_us(connection: Any, _record: object) -> None:
    connection.autocommit = True


def _begin(session: Session, statements: str) -> None:
    """Opens the transaction; a pooled connection that died meanwhile is replaced, once."""
    try:
        session.connection().exec_driver_sql(statements, execution_options=AS_IT_IS)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        session.rollback()
        session.connection().exec_driver_sql(statements, execution_options=AS_IT_IS)


def _opening(tenant: str | None, key_hash: bytes | None) -> str:
    """BEGIN with settings that end with the transaction, so that none is left on a pooled connection.

    Literals, since several statements in one message take no parameters.
    """
    settings = _settings(tenant, key_hash)
    return f"BEGIN; SELECT {settings}" if settings else "BEGIN"


@lru_cache(maxsize=1024)
def _settings(tenant: str | None, key_hash: bytes | None) -> str:
    settings = {"whence.tenant": tenant, "whence.key_hash": key_hash and key_hash.hex()}
    return ", ".join(f"set_config('{name}', {quote(plain(value))}, true)" for name, value in settings.items() if value)


def compiled(statement: ClauseElement, columns: Collection[str] | None = None) -> Statement:
    """A statement for `Database.ask`; of an insert, for values of these columns."""
    done: Any = statement.compile(dialect=DIALECT, column_keys=columns and list(columns))
    told = str(done)
    return Statement(f"whence_{hashlib.sha256(told.encode()).hexdigest()[:16]}", told, tuple(done.positiontup or ()))


async def _execute(connection: Any, statement: Statement, message: bytes, planned: set[str]) -> Any:
    """The result of a message that executes the statement, which is planned first where it has to be."""
    if statement.name in planned:
        with suppress(psycopg.errors.InvalidSqlStatementName):
            return await _exchange(connection, message)
        planned.clear()  # a rollback may have the driver forget all that a connection has planned, ours too
    with suppress(psycopg.errors.DuplicatePreparedStatement):  # by a question that was cancelled just then
        await _exchange(connection, f"PREPARE {statement.name} AS {statement.text}".encode())
    planned.add(statement.name)
    return await _exchange(connection, message)


async def _exchange(connection: Any, message: bytes) -> Any:
    """Sends statements in one message; the result of the last one. Raises the driver's errors.

    A cursor would do the same in ten times as much Python.
    """
    connection.pgconn.send_query(message)
    result = (await connection.wait(generators.execute(connection.pgconn)))[-1]
    if result.status == ExecStatus.FATAL_ERROR:  # after which Postgres skips what else the message holds
        raise psycopg.errors.error_from_result(result)
    return result


def _first_row(result: Any, statement: Statement, learnt: Learnt) -> Any | None:
    """As a named tuple, or None."""
    if not result.ntuples:
        return None
    make = learnt.rows.get(statement.name)
    if make is None:
        names = tuple(result.fname(column).decode() for column in range(result.nfields))
        make = learnt.rows[statement.name] = _row_type(names)._make
    learnt.adapter.set_pgresult(result)
    row = learnt.adapter.load_row(0, make)
    learnt.adapter.set_pgresult(None)  # which can be large
    return row


@cache
def _row_type(names: tuple[str, ...]) -> Any:
    return namedtuple("Row", names)


class _LostConnectionError(psycopg.OperationalError):
    """The connection turned out dead."""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turns the driver's errors into ours; drops their text, in which Postgres quotes values and whole rows."""
    try:
        yield
    except PoolTimeout:
        raise DatabaseUnavailable("all database connections are in use") from None
    except DBAPIError as error:
        raise _translated(error.orig, lost=error.connection_invalidated) from None
    except psycopg.Error as error:
        raise _translated(error, lost=isinstance(error, _LostConnectionError)) from None


def _translated(error: BaseException | None, *, lost: bool) -> StorageError:
    state = getattr(error, "sqlstate", None)
    kind = type(error).__name__
    if lost or (state is None and kind == "OperationalError"):
        return DatabaseUnavailable("the database cannot be reached")
    if state == DISK_FULL:
        return OutOfSpace("the disk of the database is full")
    if kind == "ConnectionTimeout" or (state or "").startswith(UNAVAILABLE):
        return DatabaseUnavailable(f"the database cannot serve now ({kind})")
    if (state or "").startswith("22"):
        return InvalidValue(f"the database cannot hold or read a value ({kind})")
    place = getattr(error, "diag", None)
    names = (getattr(place, part, None) for part in ("table_name", "constraint_name"))
    return StorageError(" ".join(["the database refused a statement:", kind, *filter(None, names)]))
