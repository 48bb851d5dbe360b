"""What is written for COPY is what Postgres reads."""

from __future__ import annotations

import struct
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from storage import copying
from storage.copying import packed, stage
from storage.database import Database
from storage.errors import InvalidValue

KINDS = {
    "place": "bigint",
    "id": "uuid",
    "moment": "timestamptz",
    "label": "text",
    "numbers": "float8[]",
    "labels": "text[]",
    "places": "int4[]",
    "facts": "json",
}
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
odd_floats = st.floats(allow_nan=False, allow_infinity=False) | st.none()
moments = st.none() | st.integers(-(10**15), 4 * 10**15).map(lambda at: np.datetime64(at, "us"))


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[Any]]:
    count, width = draw(st.integers(0, 6)), draw(st.integers(0, 4))

    def column(values: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(values, min_size=count, max_size=count))

    return {
        "place": list(range(count)),
        "id": column(st.uuids()),
        "moment": column(moments),
        "label": column(st.none() | plain),
        "numbers": column(st.lists(odd_floats, min_size=width, max_size=width)),
        "labels": column(st.lists(st.none() | plain, max_size=3)),
        "places": column(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3)),
        "facts": column(st.dictionaries(st.text(), st.integers() | st.text())),
    }


def fields_of(table: dict[str, list[Any]]) -> list[copying.Fields]:
    count = len(table["place"])
    width = len(table["numbers"][0]) if count else 0
    return [
        copying.integers(np.arange(count)),
        copying.uuids(table["id"]),
        copying.times(np.array([np.datetime64("NaT") if at is None else at for at in table["moment"]], "M8[us]")),
        copying.texts(table["label"]),
        copying.float_arrays(np.array(table["numbers"], dtype=float).reshape(count, width), count),
        copying.text_arrays(table["labels"]),
        copying.integer_arrays(table["places"]),
        copying.jsons(table["facts"]),
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=tables())
async def test_values_come_back_exactly(database: Database, table: dict[str, list[Any]]) -> None:
    async with database.transaction() as session:
        await stage(session, "exact", KINDS, fields_of(table))
        query = (
            "SELECT place, id, (extract(epoch FROM moment) * 1000000)::bigint, label, "
            "numbers, labels, places, facts FROM pg_temp.exact ORDER BY place"
        )
        found = [tuple(row) for row in await session.execute(text(query))]
    at = [None if moment is None else int(moment.astype(np.int64)) for moment in table["moment"]]
    expected = list(zip(*(table | {"moment": at}).values(), strict=True))
    assert [bits(row) for row in found] == [bits(row) for row in expected]


def bits(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The row with its floats as bytes: 0.0 and -0.0 differ."""
    numbers = [None if value is None else struct.pack("d", value) for value in row[4]]
    return (*row[:4], numbers, *row[5:])


async def test_what_lay_there_before_is_gone(database: Database) -> None:
    for ids in (["a", "b"], ["c"]):
        async with database.transaction() as session:
            for _ in range(2):
                await stage(session, "twice", {"id": "text"}, [copying.texts(ids)])
            assert list(await session.scalars(text("SELECT id FROM pg_temp.twice"))) == ids
    async with database.transaction() as session:
        assert list(await session.scalars(text("SELECT id FROM pg_temp.twice"))) == []


async def test_absent_arrays_are_null(database: Database) -> None:
    fields = [copying.float_arrays(None, 2), copying.uuids([UUID(int=1), UUID(int=2)])]
    async with database.transaction() as session:
        await stage(session, "absent", {"numbers": "float8[]", "id": "uuid"}, fields)
        assert list(await session.scalars(text("SELECT numbers IS NULL FROM pg_temp.absent"))) == [True, True]


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
def test_infinities_are_refused(value: float) -> None:
    with pytest.raises(InvalidValue):
        copying.float_arrays(np.array([[1.0, value]]), 1)


@pytest.mark.parametrize("value", ["a\0", "\ud800"])
def test_texts_that_postgres_cannot_hold_are_refused(value: str) -> None:
    with pytest.raises(InvalidValue):
        copying.texts([value])
    with pytest.raises(InvalidValue):
        copying.text_arrays([["a", value]])


def test_columns_are_equally_long() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        packed([copying.texts(["a"]), copying.texts([])])
