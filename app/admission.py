"""Who may have how much of this server, decided by the cost of a request before any of its work is done.

Context: one device serves everybody, one request may want hours of it, and several servers may share one database.
Decision: a request that would take longer than allowed is refused for good (413); one whose key has used what it may
have for now is refused for a while (429). Used is what was predicted, and once the work has ended what it took; a
request that is refused, answered from the store, or joins the same work under way is not charged. Counters and places
in use are rows of Postgres (`storage.limits`), so all servers of a database hold one limit together. Consequence:
without limits per key no statement is sent; each limit that is set costs a small one, and another where a prediction
is put right. Places of a killed server are free after half a minute.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from app.costs import Cost, Estimating
from app.refusals import LimitReached, Numbers, QueueFull, TooLarge
from explainers.errors import InvalidRequest
from storage.api_keys import LIMITS
from storage.database import Database
from storage.errors import StorageError
from storage.limits import Counters, NoPlace, place

MINUTE = 60
REQUESTS, SECONDS, CONCURRENCY = "requests", "seconds", "concurrency"
"""Limits by their names on the wire; device seconds are counted in thousandths."""

UNSPENT = (InvalidRequest, QueueFull)
"""What ends a request before it has had anything of the device."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one key; None: none. Seconds are those of the device: of one request, of one job, and of all in a minute."""

    request_seconds: float | None = None
    job_seconds: float | None = None
    requests_per_minute: int | None = None
    seconds_per_minute: float | None = None
    concurrency: int | None = None

    def of(self, row: Any) -> Limits:
        """Those of a key's row before these: null leaves it to the server, 0 is no limit.

        Whoever may ask for anything at once may ask for it as a job.
        """
        own = {name: getattr(row, name) or None for name in LIMITS if getattr(row, name) is not None}
        if own.get("request_seconds", 1) is None:
            own["job_seconds"] = None
        return replace(self, **own) if own else self


def limits_of(source: Any) -> Limits:
    """Those of the server's settings, of the same names; 0 is no limit."""
    return Limits(**{name: getattr(source, name) or None for name in (*LIMITS, "job_seconds")})


@dataclass(slots=True)
class Charge:
    """What an admitted request has used: the `seconds` that were predicted, unless somebody knows better before it
    ends; nothing at all when it is `free`.
    """

    seconds: float
    free: bool = False
    taken: dict[str, int] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Gate:
    """Where the requests of one key come in; without a database there is no key, and all may."""

    limits: Limits = Limits()
    database: Database | None = None
    tenant: str = ""
    key: str = ""
    patience: Callable[[], int] = lambda: 1  # whole seconds until a place is likely to be free

    @asynccontextmanager
    async def admitted(self, estimate: Estimating, *, job: bool = False) -> AsyncIterator[Charge]:
        """The block runs when the key may have what it takes; raises `TooLarge`, `LimitReached`.

        A job is not waited for: it takes no place, and may be larger.
        """
        charge = Charge((await self.priced(estimate, job=job)).seconds)
        async with AsyncExitStack() as held:
            if self.database is not None and self.limits.concurrency is not None and not job:
                await self.enter(held, self.database, self.limits.concurrency)
            if self.database is not None and self.rates():
                await held.enter_async_context(self.charged(self.database, charge))
            yield charge

    def for_requests(self) -> Gate:
        """Of work that the device has no part in."""
        return replace(self, limits=replace(self.limits, seconds_per_minute=None))

    async def check_job(self, estimate: Estimating) -> None:
        """For work that is done later by somebody else, and paid for now; raises as `admitted`."""
        async with self.admitted(estimate, job=True):
            pass

    async def priced(self, estimating: Estimating, *, job: bool) -> Cost:
        """The cost, counted only where a limit asks for it; raises `TooLarge` above what one request may take."""
        allowed = self.limits.job_seconds if job else self.limits.request_seconds
        per_minute = self.limits.seconds_per_minute
        if per_minute is None and allowed is None:
            return Cost()
        estimate = await estimating()
        if per_minute is None and estimate.most is not None and allowed is not None and estimate.most() <= allowed:
            return Cost()
        try:
            cost = await estimate.cost()
        except InvalidRequest:  # whoever does the work says it in the words of the request
            return Cost()
        if allowed is not None and cost.seconds > allowed:
            later = not job and (self.limits.job_seconds is None or cost.seconds <= self.limits.job_seconds)
            raise too_large("job_seconds" if job else "request_seconds", cost, allowed, self.key, later=later)
        if per_minute is not None and cost.seconds > per_minute:
            raise too_large("seconds_per_minute", cost, per_minute, self.key, later=False)
        return cost

    async def enter(self, held: AsyncExitStack, database: Database, most: int) -> None:
        """Takes one of the key's places; raises `LimitReached` at once when there is none."""
        try:
            await held.enter_async_context(place(database, self.tenant, self.key, most))
        except NoPlace:
            wait = self.patience()
            told = f"this key may have {most} requests under way at a time: try again when one has been answered"
            raise LimitReached(told, Numbers(CONCURRENCY, 1, most, most, None, wait), self.key) from None

    def rates(self) -> dict[str, RateLimitItem]:
        """The limits of a minute that are set."""
        requests, seconds = self.limits.requests_per_minute, self.limits.seconds_per_minute
        found = {REQUESTS: requests, SECONDS: None if seconds is None else thousandths(seconds)}
        return {name: RateLimitItemPerMinute(most, namespace=name) for name, most in found.items() if most is not None}

    @asynccontextmanager
    async def charged(self, database: Database, charge: Charge) -> AsyncIterator[None]:
        """Charges all limits of a minute before the block, and puts that right behind it; raises `LimitReached`."""
        counters, rates, charge.began = Counters(database, self.tenant), self.rates(), time.monotonic()
        limiter, asked = SlidingWindowCounterRateLimiter(counters), wanted(charge.seconds)
        for name, item in rates.items():
            if not await limiter.hit(item, self.key, cost=asked[name]):
                await self.settle(counters, charge, {})
                raise await self.reached(counters, name, item, asked[name])
            charge.taken[name] = asked[name]
        try:
            yield
        except UNSPENT:
            charge.free = True
            raise
        finally:
            await self.settle(counters, charge, {} if charge.free else wanted(charge.seconds))

    async def settle(self, counters: Counters, charge: Charge, used: Mapping[str, int]) -> None:
        """Puts right what was charged. An answer that is there is given, whatever becomes of its price."""
        rates, age = self.rates(), time.monotonic() - charge.began
        for name, amount in charge.taken.items():
            if excess := amount - used.get(name, 0):
                with suppress(StorageError):
                    await counters.correct(rates[name].key_for(self.key), MINUTE, excess, age)

    async def reached(self, counters: Counters, name: str, item: RateLimitItem, asked: int) -> LimitReached:
        """The refusal with its numbers."""
        before, left, current, end = await counters.get_sliding_window(item.key_for(self.key), MINUTE)
        used = math.floor(before * left / MINUTE) + current
        wait = waiting(before, current, end - MINUTE, item.amount, asked)
        unit, size = ("requests", 1) if name == REQUESTS else ("seconds of the device", 1000)
        told = (
            f"this key may have {item.amount / size:,g} {unit} a minute; it has had {used / size:,g} and asks for "
            f"{asked / size:,g}: try again in {wait} seconds"
        )
        return LimitReached(told, Numbers(name, asked / size, item.amount / size, used / size, MINUTE, wait), self.key)


def waiting(before: int, current: int, left: float, most: int, asked: int) -> int:
    """Whole seconds until `asked` fits under `most`, if nobody else asks: of the window before counts what still lies
    in the last minute, and this one ends in `left` seconds.
    """
    room = most - asked - current
    if room >= 0:
        wait = left - MINUTE * (room + 1) / before if before else 0.0
    else:
        wait = left + max(0.0, MINUTE * (1 - (most - asked + 1) / current))
    return max(1, math.floor(wait) + 1)


def wanted(seconds: float) -> dict[str, int]:
    """What a request of so many device seconds is in each limit of a minute."""
    return {REQUESTS: 1, SECONDS: thousandths(seconds)}


def thousandths(seconds: float) -> int:
    return math.ceil(seconds * 1000)


def too_large(name: str, cost: Cost, allowed: float, key: str, *, later: bool) -> TooLarge:
    least = "" if cost.measured else "at least "
    counts = [f"{count:,} {what}" for what, count in counted(cost) if count]
    way_out = "ask for fewer or coarser pieces or a shorter text"
    if later:
        way_out += ", or for a job (Prefer: respond-async)"
    where = {"seconds_per_minute": "a minute of this key", "job_seconds": "one job"}.get(name, "one request")
    seconds = f"{cost.seconds:,.0f}" if cost.seconds >= 100 else f"{cost.seconds:.3g}"
    told = (
        f"this takes {least}{seconds} seconds of the device ({', '.join(counts)}); {where} may take "
        f"{allowed:,g}: {way_out}"
    )
    return TooLarge(told, Numbers(name, round(cost.seconds, 3), allowed), key)


def counted(cost: Cost) -> tuple[tuple[str, int], ...]:
    return ("tokens", cost.tokens), ("pieces", cost.chunks), ("passes", cost.forwards), ("bytes", cost.bytes)
