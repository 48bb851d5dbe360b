"""What becomes of shards, written down by the database itself: each lease, and each result that is stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

LEASED, STORED = "leased", "stored"
SCRIPT = """
CREATE TABLE IF NOT EXISTS shard_log (
    work uuid, number int, first bigint, event text, at timestamptz DEFAULT clock_timestamp()
);
TRUNCATE shard_log;
CREATE OR REPLACE FUNCTION log_shard() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    old_row jsonb := to_jsonb(OLD);
    row jsonb := to_jsonb(NEW);
    what text := CASE
        WHEN row -> 'leases' <> old_row -> 'leases' THEN 'leased'
        WHEN coalesce(row ->> 'digest', row ->> 'done', 'false') <> coalesce(old_row ->> 'digest',
             old_row ->> 'done', 'false') THEN 'stored' END;
BEGIN
    IF what IS NOT NULL THEN
        INSERT INTO public.shard_log (work, number, first, event)
        VALUES (coalesce(row ->> 'job_id', row ->> 'index_id')::uuid, NEW.number, NEW.first, what);
    END IF;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER log AFTER UPDATE ON job_shards FOR EACH ROW EXECUTE FUNCTION log_shard();
CREATE OR REPLACE TRIGGER log AFTER UPDATE ON influence_shards FOR EACH ROW EXECUTE FUNCTION log_shard();
"""


@dataclass(frozen=True, slots=True)
class Event:
    """A shard of the job or index `work` was leased, or its result stored."""

    work: UUID
    number: int
    first: int
    event: str
    at: datetime


@contextmanager
def database(data_dir: Path) -> Iterator[psycopg.Connection[Any]]:
    """The running embedded database, past row-level security."""
    password = (data_dir / "postgres.superuser-password").read_text().strip()
    place: dict[str, Any] = {"host": str(data_dir / "postgres"), "port": 5432, "user": "postgres", "dbname": "whence"}
    with psycopg.connect(**place, password=password, autocommit=True) as connection:
        yield connection


def begin(data_dir: Path) -> None:
    """Writes down from here on, and forgets what was before."""
    with database(data_dir) as connection:
        connection.execute(SCRIPT)


def read(data_dir: Path) -> list[Event]:
    with database(data_dir) as connection:
        found = connection.execute("SELECT work, number, first, event, at FROM shard_log ORDER BY at").fetchall()
    return [Event(*row) for row in found]


def stored(events: list[Event]) -> list[tuple[UUID, int, int]]:
    """The shards whose results were stored, as often as they were."""
    return [(each.work, each.number, each.first) for each in events if each.event == STORED]
