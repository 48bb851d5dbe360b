"""Staged rows are exactly what was given, by COPY as well as in JSON."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from storage import copying, staging
from storage.copying import packed
from storage.database import Database
from storage.errors import InvalidValue
from storage.staging import Column, stage

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
        "ragged": column(st.lists(odd_floats, max_size=4)),
        "labels": column(st.lists(st.none() | plain, max_size=3)),
        "places": column(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3)),
        "facts": column(st.dictionaries(st.text(), st.integers() | st.text())),
    }


def columns_of(table: dict[str, list[Any]]) -> dict[str, Column]:
    count = len(table["place"])
    width = len(table["numbers"][0]) if count else 0
    moments = np.array([np.datetime64("NaT") if at is None else at for at in table["moment"]], "M8[us]")
    ragged = [np.array(row, dtype=float) for row in table["ragged"]]
    return {
        "place": Column(staging.BIGINT, np.arange(count)),
        "id": Column(staging.UUID, table["id"]),
        "moment": Column(staging.TIMESTAMPTZ, moments),
        "label": Column(staging.TEXT, table["label"]),
        "numbers": Column(staging.FLOATS, np.array(table["numbers"], dtype=float).reshape(count, width)),
        "ragged": Column(staging.RAGGED_FLOATS, ragged),
        "labels": Column(staging.TEXTS, table["labels"]),
        "places": Column(staging.INTEGERS, table["places"]),
        "facts": Column(staging.JSON, table["facts"]),
        "absent": Column(staging.FLOATS),
    }


@pytest.mark.parametrize("few", [0, 100], ids=["by COPY", "as JSON"])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=tables())
async def test_values_come_back_exactly(
    database: Database, monkeypatch: pytest.MonkeyPatch, few: int, table: dict[str, list[Any]]
) -> None:
    monkeypatch.setattr(staging, "FEW", few)
    async with database.transaction() as session:
        source, staged = await stage(session, "exact", columns_of(table), len(table["place"]))
        query = text(
            "SELECT place, id, CAST(extract(epoch FROM moment) * 1000000 AS bigint), label, numbers, ragged, labels, "  # noqa: S608
            f"places, facts, absent FROM {source} ORDER BY place"
        )
        found = [tuple(row) for row in await session.execute(query, staged)]
    at = [None if moment is None else int(moment.astype(np.int64)) for moment in table["moment"]]
    absent = [None] * len(at)
    expected = list(zip(*(table | {"moment": at, "absent": absent}).values(), strict=True))
    assert [bits(row) for row in found] == [bits(row) for row in expected]


def bits(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The row with its floats as bytes: 0.0 and -0.0 differ."""
    numbers = [[None if value is None else struct.pack("d", value) for value in part] for part in row[4:6]]
    return (*row[:4], *numbers, *row[6:])


async def test_what_lay_there_before_is_gone(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "FEW", 0)
    for ids in (["a", "b"], ["c"]):
        async with database.transaction() as session:
            for _ in range(2):
                await stage(session, "twice", {"id": Column(staging.TEXT, ids)}, len(ids))
            assert list(await session.scalars(text("SELECT id FROM pg_temp.twice"))) == ids
    async with database.transaction() as session:
        assert list(await session.scalars(text("SELECT id FROM pg_temp.twice"))) == []


@pytest.mark.parametrize("few", [0, 100], ids=["by COPY", "as JSON"])
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (staging.FLOATS, np.array([[1.0, np.inf]])),
        (staging.RAGGED_FLOATS, [np.array([-np.inf])]),
        (staging.TEXT, ["a\0"]),
        (staging.TEXTS, [["a", "\ud800"]]),
        (staging.JSON, [{"x": float("nan")}]),
    ],
    ids=["floats", "ragged floats", "text", "texts", "JSON"],
)
async def test_what_postgres_cannot_hold_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch, few: int, kind: staging.Kind, values: Any
) -> None:
    monkeypatch.setattr(staging, "FEW", few)
    async with database.transaction() as session:
        with pytest.raises(InvalidValue):
            await stage(session, "wrong", {"value": Column(kind, values)}, 1)


def test_columns_are_equally_long() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        packed([copying.texts(["a"]), copying.texts([])])
