"""Inferences: each stored once, in order, exactly; ground truth replaces; reference sets end."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from storage import inferences, reference, staging
from storage.cells import Cells, cells_of
from storage.database import Database
from storage.errors import AlreadyExists, InvalidValue, NotFound, StorageError
from storage.ids import time_ordered
from storage.inferences import BLOCK, MOST_NAMED, Rows, Truths
from storage.monitored_tables import MonitoredAttribute
from tests.storage.monitored import HOUR, START, filled, registered, rows_of, stored


@pytest.fixture(autouse=True, params=[0, staging.FEW], ids=["by COPY", "as JSON"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How rows that are not too many travel."""
    monkeypatch.setattr(staging, "FEW", request.param)


async def test_values_lie_in_the_slots_of_their_attributes(database: Database, tenant: str) -> None:
    model_id, attributes = await registered(database, tenant)
    columns = {
        "income": [2100, None],
        "note": ['Grüße \U0001f642 {,} "\\', None],
        "member": [True, False],
        "since": [datetime(2026, 3, 1, 8, 0, 0, 250_001), None],  # noqa: DTZ001 - UTC
        "tags": [["a", "b"], None],
        "yes": np.array([0.1 + 0.2, -0.0]),
    }
    rows = Rows(
        ["u/1", "u-2"],
        START + np.arange(2) * HOUR,
        cells_of(attributes, columns, 2),
        ["b1", None],
        np.array([START, "NaT"], "M8[us]"),
    )
    before = datetime.now(UTC)
    async with database.transaction(tenant) as session:
        assert await inferences.add(session, model_id, rows) == []
    first, second = await stored(database, tenant, model_id)
    assert first.numbers == [2100.0, 1.0, 1772352000250001.0, 0.1 + 0.2, None, None]
    assert second.numbers == [None, 0.0, None, -0.0, None, None]
    assert (first.texts, second.texts) == (['Grüße \U0001f642 {,} "\\', '["a","b"]'], [None, None])
    assert (first.inference_timestamp, second.inference_timestamp) == (
        datetime(2026, 3, 1, 8, tzinfo=UTC),
        datetime(2026, 3, 1, 9, tzinfo=UTC),
    )
    assert (first.batch_id, second.batch_id) == ("b1", None)
    assert (first.ground_truth_timestamp, second.ground_truth_timestamp) == (first.inference_timestamp, None)
    assert abs((first.received_timestamp - before).total_seconds()) < 60
    async with database.transaction(tenant) as session:
        found = await inferences.find(session, model_id, "u/1")
        assert found is not None and found.seq == first.seq
        found = await inferences.find_by_id(session, model_id, second.id)
        assert found is not None and found.partner_inference_id == "u-2"
        assert await inferences.find(session, model_id, "u-3") is None
        assert await inferences.find_by_id(session, time_ordered(), second.id) is None


async def test_an_inference_is_stored_once(database: Database, tenant: str) -> None:
    model_id, attributes = await registered(database, tenant)
    async with database.transaction(tenant) as session:
        rows = rows_of(attributes, ["a", "b", "a", "c"], income=[1, 2, 3, 4])
        assert await inferences.add(session, model_id, rows) == [2]
    async with database.transaction(tenant) as session:
        assert await inferences.add(session, model_id, rows_of(attributes, ["d", "b"], income=[5, 6])) == [1]
        assert await inferences.add(session, model_id, rows_of(attributes, [])) == []
    kept = await stored(database, tenant, model_id)
    assert [(row.partner_inference_id, row.numbers[0]) for row in kept] == [("a", 1), ("b", 2), ("c", 4), ("d", 5)]
    assert [row.seq for row in kept] == sorted(row.seq for row in kept)
    async with database.transaction(tenant) as session:
        later = await inferences.read(session, model_id, after=kept[1].seq, limit=1)
    assert [row.partner_inference_id for row in later] == ["c"]


async def test_many_rows_are_stored_in_order_and_again_without_effect(database: Database, tenant: str) -> None:
    model_id, attributes = await registered(database, tenant)
    count = BLOCK + 1_500

    def blocks() -> Iterator[Rows]:
        for start in range(0, count, 6_000):
            places = range(start, min(start + 6_000, count))
            yield rows_of(attributes, [f"u-{place}" for place in places], income=list(places))

    for done, failed in ((count, 0), (0, count)):
        async with database.transaction(tenant) as session:
            outcome = await inferences.add_all(session, model_id, blocks())
        assert (outcome.done, outcome.failed) == (done, failed)
        assert outcome.named == tuple(f"u-{place}" for place in range(min(failed, MOST_NAMED)))
    found: list[Any] = []
    async with database.transaction(tenant) as session:
        while page := await inferences.read(session, model_id, after=found[-1].seq if found else 0):
            found += page
    assert [row.numbers[0] for row in found] == list(range(count))


async def test_a_set_that_fails_leaves_nothing(database: Database, tenant: str) -> None:
    model_id, attributes = await registered(database, tenant)

    def blocks() -> Iterator[Rows]:
        yield rows_of(attributes, ["a"])
        yield rows_of(attributes, ["b"], note=["\0"])

    with pytest.raises(InvalidValue):
        async with database.transaction(tenant) as session:
            await inferences.add_all(session, model_id, blocks())
    assert await stored(database, tenant, model_id) == []


async def test_memory_stays_bounded(database: Database, tenant: str) -> None:
    model_id, attributes = await registered(database, tenant)
    note = ["x" * 2_000] * 1_000

    def blocks() -> Iterator[Rows]:
        for start in range(0, 20_000, 1_000):
            yield rows_of(attributes, [f"u-{start + place}" for place in range(1_000)], note=note)

    tracemalloc.start()
    try:
        async with database.transaction(tenant) as session:
            outcome = await inferences.add_all(session, model_id, blocks())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcome.done == 20_000
    assert peak < 16 * 2**20  # of 40 MB


async def test_rows_of_an_unknown_model_are_refused(database: Database, tenant: str) -> None:
    _, attributes = await registered(database, tenant)
    with pytest.raises(StorageError, match="ForeignKeyViolation"):
        async with database.transaction(tenant) as session:
            await inferences.add(session, time_ordered(), rows_of(attributes, ["a"]))


async def test_a_time_is_needed(database: Database, tenant: str) -> None:
    model_id, attributes = await registered(database, tenant)
    rows = Rows(["a"], np.array(["NaT"], "M8[us]"), cells_of(attributes, {}, 1))
    async with database.transaction(tenant) as session:
        with pytest.raises(InvalidValue):
            await inferences.add(session, model_id, rows)


async def test_ground_truth_replaces_only_what_is_given(database: Database, tenant: str) -> None:
    model_id, attributes, _ = await filled(
        database, tenant, ["a", "b", "c"], income=[1, 2, 3], note=["x", "y", "z"], gt_yes=[9, 9, 9]
    )
    other, *_ = await registered(database, tenant, partner_model_id="other")
    async with database.transaction(tenant) as session:
        await inferences.add(session, other, rows_of(attributes, ["a"], gt_yes=[7]))
    given = [attribute for attribute in attributes if attribute.name in {"gt_yes", "tags"}]
    columns = {"gt_yes": [1, 0, None, 1], "tags": [["t"], None, ["u"], ["v"]]}
    truths = Truths(["a", "none", "b", "a"], START + np.arange(4) * HOUR, cells_of(attributes, columns, 4))
    async with database.transaction(tenant) as session:
        assert await inferences.set_truths(session, model_id, truths, given) == [1]
    rows = await stored(database, tenant, model_id)
    assert [(row.numbers[0], row.numbers[5], row.texts) for row in rows] == [
        (1, 1, ["x", '["v"]']),
        (2, None, ["y", '["u"]']),
        (3, 9, ["z", None]),
    ]
    assert [row.ground_truth_timestamp and row.ground_truth_timestamp.hour for row in rows] == [11, 10, None]
    assert (await stored(database, tenant, other))[0].numbers[5] == 7


@pytest.mark.parametrize(
    "columns",
    [
        {"unknown": [1]},
        {"income": [1, 2]},
        {"income": ["1"]},
        {"income": np.array(["1"])},
        {"income": ["x"]},
        {"income": [float("inf")]},
        {"since": ["no time"]},
        {"tags": [{1}]},
        {"note": ["\ud800"]},
    ],
    ids=str,
)
async def test_values_of_another_kind_are_refused(database: Database, tenant: str, columns: dict[str, Any]) -> None:
    model_id, attributes = await registered(database, tenant)
    async with database.transaction(tenant) as session:
        with pytest.raises(InvalidValue):
            await inferences.add(session, model_id, rows_of(attributes, ["a"], **columns))


def some_cells(attributes: list[MonitoredAttribute], first: int, count: int) -> Cells:
    places = range(first, first + count)
    return cells_of(attributes, {"income": list(places), "note": [f"n{place}" for place in places]}, count)


async def test_a_reference_set_grows_until_it_is_closed(database: Database, tenant: str) -> None:
    model_id, attributes = await registered(database, tenant)
    async with database.transaction(tenant) as session:
        first = await reference.append(session, model_id, iter([some_cells(attributes, 0, 5_001)]))
        second = await reference.append(session, model_id, iter([some_cells(attributes, 5_001, 2)]))
        assert (first, second, await reference.count(session, model_id)) == (5_001, 2, 5_003)
        with pytest.raises(InvalidValue, match="has 5003 rows"):
            await reference.close(session, model_id, 30)
    async with database.transaction(tenant) as session:
        assert await reference.append(session, model_id, iter([])) == 0
        for _ in range(2):
            await reference.close(session, model_id, 5_003)
    async with database.transaction(tenant) as session:
        with pytest.raises(AlreadyExists):
            await reference.append(session, model_id, iter([some_cells(attributes, 0, 1)]))
        whole = await reference.read(session, model_id)
        part = await reference.read(session, model_id, most=3)
    assert whole.numbers[:, 0].tolist() == list(range(5_003))
    assert np.isnan(whole.numbers[:, 1:]).all()
    assert list(whole.texts[0]) == [f"n{place}" for place in range(5_003)]
    assert (part.numbers.shape, part.texts) == ((3, 6), (["n0", "n1", "n2"], [None, None, None]))


async def test_reference_sets_of_unknown_models(database: Database, tenant: str) -> None:
    async with database.transaction(tenant) as session:
        for missing in (
            reference.append(session, time_ordered(), iter([])),
            reference.close(session, time_ordered(), 0),
        ):
            with pytest.raises(NotFound):
                await missing
        assert len(await reference.read(session, time_ordered())) == 0


async def test_a_set_that_fails_to_close_stays_open(database: Database, tenant: str) -> None:
    model_id, attributes = await registered(database, tenant)
    with pytest.raises(InvalidValue):
        async with database.transaction(tenant) as session:
            await reference.close(session, model_id, 1)
    async with database.transaction(tenant) as session:
        assert await reference.append(session, model_id, iter([some_cells(attributes, 0, 1)])) == 1
