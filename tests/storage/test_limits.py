"""Counters and places that many hold at once: never more than the limit, and free again in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import RateLimitItemPerMinute, RateLimitItemPerYear
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter, SlidingWindowCounterRateLimiter
from sqlalchemy import text

from storage import limits, tenants
from storage.database import Database
from storage.ids import time_ordered
from storage.limits import Counters, NoPlace, place, sweep, take
from storage.tables import LimitCounter, LimitPlaces
from tests.postgres import Server

pytestmark = pytest.mark.anyio

YEAR = RateLimitItemPerYear(20, 3, "test")
"""A window so long that none of its counts moves while a test runs."""


@pytest.fixture
async def second(postgres: Server) -> AsyncIterator[Database]:
    """Another process' pool."""
    database = Database.connect(postgres.url, pool_size=4)
    yield database
    await database.close()


async def later(database: Database, tenant: str, seconds: float) -> None:
    """As if so much time had passed for all counters of the tenant."""
    async with database.transaction(tenant) as session:
        await session.execute(text("UPDATE limit_counters SET at = at - :seconds"), {"seconds": seconds})


@given(amounts=st.lists(st.integers(1, 25), max_size=12), most=st.integers(1, 40))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_sliding_windows_count_as_the_librarys_own(
    database: Database, tenant: str, amounts: list[int], most: int
) -> None:
    item, name = RateLimitItemPerYear(most, 3, "own"), str(time_ordered())
    ours = SlidingWindowCounterRateLimiter(Counters(database, tenant))
    theirs = SlidingWindowCounterRateLimiter(MemoryStorage())
    for amount in amounts:
        assert await ours.test(item, name, cost=amount) == await theirs.test(item, name, cost=amount)
        assert await ours.hit(item, name, cost=amount) == await theirs.hit(item, name, cost=amount)
    mine, other = await ours.get_window_stats(item, name), await theirs.get_window_stats(item, name)
    assert mine.remaining == other.remaining


@given(
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 30), st.integers(0, 30)), max_size=10),
    most=st.integers(1, 60),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_windows_slide_as_a_plain_model_says(
    database: Database, tenant: str, steps: list[tuple[int, int, int]], most: int
) -> None:
    """Each step: so many windows pass, so much is asked for, and what was too much of it is taken back."""
    counters, name = Counters(database, tenant), str(time_ordered())
    expiry = YEAR.get_expiry()
    before = current = 0
    for passed, amount, returned in steps:
        await later(database, tenant, passed * expiry)
        before, current = [(before, current), (current, 0), (0, 0), (0, 0)][passed]
        _, left, _, _ = await counters.get_sliding_window(name, expiry)
        fits = int(before * left / expiry) + current + amount <= most
        assert await counters.acquire_sliding_window_entry(name, most, expiry, amount) == fits
        if fits:
            current += amount
            await counters.correct(name, expiry, min(returned, amount), 0.0)
            current -= min(returned, amount)
        known = await counters.get_sliding_window(name, expiry)
        assert (known[0], known[2]) == (before, current)


async def test_what_was_counted_is_corrected_where_it_counts(database: Database, tenant: str) -> None:
    counters, expiry = Counters(database, tenant), YEAR.get_expiry()
    await counters.acquire_sliding_window_entry("k", 20, expiry, 10)
    await later(database, tenant, expiry)
    await counters.acquire_sliding_window_entry("k", 20, expiry, 5)
    await counters.correct("k", expiry, 4, float(expiry))
    assert (await counters.get_sliding_window("k", expiry))[::2] == (6, 5)
    await counters.correct("k", expiry, -3, float(expiry))
    await counters.correct("k", expiry, 100, 0.0)
    assert (await counters.get_sliding_window("k", expiry))[::2] == (9, 0)
    await counters.correct("k", expiry, 5, 3.0 * expiry)
    await counters.correct("nothing", expiry, 5, 0.0)
    assert (await counters.get_sliding_window("k", expiry))[::2] == (9, 0)


async def test_fixed_windows_count_and_end(database: Database, tenant: str) -> None:
    counters, item = Counters(database, tenant), RateLimitItemPerMinute(3)
    limiter = FixedWindowRateLimiter(counters)
    assert await limiter.get_window_stats(item, "k") is not None
    assert [await limiter.hit(item, "k", cost=2) for _ in range(2)] == [True, False]
    assert await limiter.hit(item, "other", cost=3)
    assert not await limiter.test(item, "k")
    await later(database, tenant, 61)
    assert await limiter.test(item, "k") and await limiter.hit(item, "k", cost=3)
    await limiter.clear(item, "k")
    assert await limiter.test(item, "k", cost=3)
    assert await counters.check() and await counters.reset() == 1


async def test_never_more_than_the_limit_in_all(database: Database, second: Database, tenant: str) -> None:
    """Four hundred hits at once, from two pools."""
    limiters = [SlidingWindowCounterRateLimiter(Counters(pool, tenant)) for pool in (database, second)]
    hits = await asyncio.gather(*(limiters[n % 2].hit(YEAR, "k", cost=1 + n % 3) for n in range(400)))
    admitted = sum(1 + n % 3 for n, hit in enumerate(hits) if hit)
    assert admitted == YEAR.amount


async def test_never_more_than_the_places(database: Database, second: Database, tenant: str) -> None:
    held = most_held = refused = 0

    async def visit(pool: Database) -> None:
        nonlocal held, most_held, refused
        try:
            async with place(pool, tenant, "k", 3):
                held += 1
                most_held = max(most_held, held)
                while most_held < 3 or not refused:  # noqa: ASYNC110 - of all who come, some while it is full
                    await asyncio.sleep(0.01)
                held -= 1
        except NoPlace:
            refused += 1

    async with asyncio.timeout(60):
        await asyncio.gather(*(visit(pool) for pool in [database, second] * 20))
    assert (most_held, held) == (3, 0) and refused > 0
    async with place(database, tenant, "k", 1):
        pass


async def test_a_killed_holders_place_is_free_again(database: Database, tenant: str) -> None:
    gone, other = time_ordered(), time_ordered()
    assert await take(database, tenant, "k", gone, 1, 60)
    assert await take(database, tenant, "k", gone, 1, 60)  # its own
    assert not await take(database, tenant, "k", other, 1, 60)
    assert await take(database, tenant, "k", gone, 1, 0.2)  # the last that is heard of it
    await asyncio.sleep(0.25)
    assert await take(database, tenant, "k", other, 1, 60)


async def test_a_place_is_kept_for_as_long_as_its_holder_works(database: Database, tenant: str) -> None:
    async def end() -> float:
        async with database.transaction(tenant) as session:
            found: float = await session.scalar(text("SELECT until FROM limit_places WHERE name = 'k'"))
            return found

    async with place(database, tenant, "k", 1, seconds=3.0):
        first = await end()
        async with asyncio.timeout(60):
            while await end() == first:  # noqa: ASYNC110 - until its holder puts it off
                await asyncio.sleep(0.1)
        with pytest.raises(NoPlace):
            async with place(database, tenant, "k", 1):
                pass
    async with place(database, tenant, "k", 1):
        pass


async def test_tenants_count_apart(database: Database, tenant: str, other_tenant: str) -> None:
    for name in (tenant, other_tenant):
        assert await Counters(database, name).acquire_sliding_window_entry("k", 1, 60, 1)
        assert await take(database, name, "k", time_ordered(), 1, 60)
    assert await Counters(database, tenant).reset() == 1
    assert (await Counters(database, other_tenant).get_sliding_window("k", 60))[::2] in ((0, 1), (1, 0))


async def test_what_counts_no_more_is_swept(database: Database, tenant: str) -> None:
    await Counters(database, tenant).incr("old", 60)
    await later(database, tenant, 121)
    await Counters(database, tenant).incr("new", 60)
    await take(database, tenant, "old", time_ordered(), 1, -1)
    await take(database, tenant, "new", time_ordered(), 1, 60)
    await sweep(database)
    async with database.transaction(tenant) as session:
        for table in (LimitCounter, LimitPlaces):
            assert list(await session.scalars(text(f"SELECT name FROM {table.__tablename__}"))) == ["new"]  # noqa: S608
    assert limits.PLACE_SECONDS < 60
    async with database.transaction(tenant) as session:
        await tenants.ensure(session, tenant)
