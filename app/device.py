"""The device, whose turn goes round among pieces of work, and the bounded queue in front of it.

Context: one thread that ran one piece after the other was simple and safe, but a piece of a minute kept everybody
waiting for a minute. Decision: each piece has a thread while it is under way, and only the one that has the turn runs;
at a checkpoint, between two passes through a model, it may have to pass the turn on and wait until it comes round
again (`app.schedule` says to whom). Nothing else runs meanwhile, so models need no locks; where a method has changed a
shared model (`explainers.undivided`), the turn stays. What torch keeps for a thread - whether it records gradients -
stays with the piece.

A paused piece holds memory. So only as many are under way as there are places, some of them for nice pieces alone. A
small piece needs none; one that has used up its first turn, and finds none, goes back into the queue and begins anew
once there is one: work must be repeatable. Of pieces that are known to be long in advance, by their cost, none begins
without a place. What found too little memory beside paused pieces is given another go without them.

Consequence: a small piece waits for no giant, whoever sent it. A piece whose caller has gone is dropped from the queue,
or stopped at its next checkpoint. Threads live as long as the device, and so does what a model keeps for each.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import Any, TypeVar

from app.refusals import QueueFull, ShuttingDown
from app.schedule import FAIR_SHARE, QUANTUM, Owner, Piece, Schedule
from explainers import clock
from explainers.errors import OutOfMemory
from explainers.types import Checkpoint
from explainers.undivided import is_undivided

Outcome = TypeVar("Outcome")
Work = Callable[[Checkpoint], Outcome]

FIRST_GUESS_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 60
PLACES, NICE_PLACES = 8, 2
"""Pieces that may be under way at a time, the running one included, besides a small one."""

ASKED_BY: ContextVar[Owner] = ContextVar("asked_by", default=())
"""Whose request or job is being worked on: set where it is let in, read where its work is queued."""


class Stopped(BaseException):
    """Raised out of a checkpoint: nobody waits for this work. No `Exception`, so that no method swallows it."""


class BegunTooSoon(BaseException):
    """Raised out of a checkpoint: the work is long, and has to begin again when there is a place for it."""


class Broken(Exception):
    """What a library raised past `Exception`, such as a panic of its Rust code: the caller sees a plain defect."""


class Priority:
    """Whether a piece of work waits behind all normal ones, and its predicted seconds; both may change meanwhile."""

    def __init__(self, *, nice: bool = False, cost: float | None = None) -> None:
        self.nice = nice
        self.cost = cost


class Steps:
    """How far a piece of work is: `done` of `total` passes through a model, written by whoever does it."""

    def __init__(self) -> None:
        self.done, self.total = 0, 1

    def counting(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same checkpoint, which counts; the last step is made by the end of the work alone."""

        def count() -> None:
            checkpoint()
            self.done = min(self.done + 1, self.total - 1)

        self.done = 0  # work that begins again counts anew
        return count


class Ticket(Piece):
    """One piece of work and the future its caller awaits."""

    def __init__(self, device: Device, work: Work[Any], priority: Priority, owner: Owner, number: int) -> None:
        super().__init__(priority, owner, number, time.monotonic())
        self.device = device
        self.work = work
        self.submitted = self.since
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.stopped = threading.Event()
        self.turn = shut()
        self.place = False  # which it has when it has one: a nice one or another
        self.alone = False  # others are not to be under way beside it

    @property
    def is_plain(self) -> bool:
        """Whether it is like most: new, normal, and nothing is known of how long it takes."""
        return not (self.attained or self.priority.nice or self.priority.cost)

    def checkpoint(self) -> None:
        if self.stopped.is_set():
            raise Stopped
        if self.device.crowded and not is_undivided():
            self.device.pass_on(self)

    def settle(self, outcome: Any, error: BaseException | None) -> None:
        """Hands the outcome to the caller's event loop, if the loop still runs."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self._resolve, outcome, error)

    def _resolve(self, outcome: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if isinstance(error, Stopped | BegunTooSoon):
            self.future.cancel()
        elif error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(outcome)


def shut() -> threading.Lock:
    """What one thread waits at until another releases it: a semaphore of threading takes ten times as long."""
    lock = threading.Lock()
    lock.acquire()
    return lock


class Worker:
    """A thread that runs pieces of work when it is called."""

    def __init__(self, device: Device, name: str) -> None:
        self.device = device
        self.ticket: Ticket | None = None  # to begin with when called; none: to end
        self.called = shut()
        self.thread = threading.Thread(target=self.serve, name=name, daemon=True)
        self.thread.start()

    def call(self, ticket: Ticket | None) -> None:
        self.ticket = ticket
        self.called.release()

    def serve(self) -> None:
        while True:
            self.called.acquire()
            ticket, self.ticket = self.ticket, None
            if ticket is None:
                return
            while ticket is not None:
                # Nothing of a finished piece may stay referenced while the thread waits for the next one.
                ticket = self.device.end(self, ticket, *attempt(ticket))
            if self.device.closed:
                return


class Device:
    """The turn, the queue, and the threads. `limit` bounds the pieces in the queue, not those under way."""

    def __init__(self, limit: int, places: int = PLACES, nice_places: int = NICE_PLACES) -> None:
        self.limit = limit
        self.service_seconds = FIRST_GUESS_SECONDS  # of a piece's first turn
        self.begun_again = self.passed_on = 0
        self.closed = False
        self._queue: list[Ticket] = []
        self._paused: list[Ticket] = []
        self._running: Ticket | None = None
        self._granted, self._turn_ends, self._charged = False, 0.0, 0.0
        self._news = False  # somebody has come, or gone, since the running piece last looked
        self._places = {False: places, True: nice_places}
        self._placed: set[Ticket] = set()
        self._lonely = 0  # pieces that are there and want to be alone
        self._submitted = 0
        self._schedule = Schedule()
        self._changed = threading.Lock()
        numbers = range(2, places + nice_places + 2)
        self._workers = [Worker(self, name) for name in ["device", *(f"device-{number}" for number in numbers)]]
        self._idle = self._workers[::-1]

    def submit(self, work: Work[Outcome], priority: Priority, *, bounded: bool = True) -> Ticket:
        """Puts work into the queue; raises `QueueFull` when too many pieces wait and `bounded` is set."""
        with self._changed:
            if self.closed:
                raise ShuttingDown
            if bounded and len(self._queue) >= self.limit:
                raise QueueFull(self.retry_after())
            self._submitted += 1
            ticket = Ticket(self, work, priority, ASKED_BY.get(), self._submitted)
            self._queue.append(ticket)
            self._schedule.arrive(ticket)
            self._news = True
            if self._running is None:
                self._begin_turn(self._next(), None)
        return ticket

    async def result(self, ticket: Ticket) -> Any:
        """What the work returns or raises; being cancelled here stops the work."""
        try:
            return await ticket.future
        except asyncio.CancelledError:
            self.drop(ticket)
            raise

    def drop(self, ticket: Ticket) -> None:
        """Takes work that waits out of the queue, and tells work under way to stop at its next checkpoint."""
        ticket.stopped.set()
        with self._changed:
            self._news = True
            if ticket in self._queue:
                self._queue.remove(ticket)
                self._leave(ticket)

    def close(self, seconds: float) -> bool:
        """Takes no new work, refuses what waits, stops what is under way; True when all threads end in time."""
        with self._changed:
            self.closed = True
            waiting, self._queue = self._queue, []
            for ticket in [*self._paused, *([self._running] if self._running else [])]:
                ticket.stopped.set()
            self._news = True
            idle, self._idle = self._idle, []
        for ticket in waiting:
            ticket.settle(None, ShuttingDown())
        for worker in idle:
            worker.call(None)
        end, threads = time.monotonic() + seconds, [worker.thread for worker in self._workers]
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    @property
    def waiting(self) -> int:
        """Pieces of work in the queue."""
        return len(self._queue)

    @property
    def paused(self) -> int:
        """Pieces that are under way and wait for their next turn."""
        return len(self._paused)

    @property
    def running(self) -> int:
        """1 while a piece has the turn, else 0."""
        return int(self._running is not None)

    @property
    def oldest_waiting_seconds(self) -> float:
        """How long the oldest piece in the queue has been there; 0.0 for an empty one."""
        first = min((ticket.submitted for ticket in list(self._queue)), default=None)
        return 0.0 if first is None else time.monotonic() - first

    @property
    def crowded(self) -> bool:
        """Whether anybody but the running piece is there."""
        return bool(self._queue or self._paused)

    def retry_after(self) -> int:
        """Whole seconds until those who wait now are likely to have had their first turn."""
        predicted = sum(not ticket.nice for ticket in self._queue) * self.service_seconds / (1 - FAIR_SHARE)
        return min(LONGEST_RETRY_SECONDS, max(1, math.ceil(predicted)))

    def pass_on(self, ticket: Ticket) -> None:
        """At a checkpoint of the running piece: lets others go first whose turn it is, and waits meanwhile."""
        if time.monotonic() < self._turn_ends and not (self._news and ticket in self._placed):
            return  # without a place it is small as yet, and others like it wait for it
        with self._changed:
            following = self._overtaking(ticket)
            if following is None:
                return
            self.passed_on += 1
            self._paused.append(ticket)
            self._begin_turn(following, None)
        with clock.pausing():
            ticket.turn.acquire()
        if ticket.stopped.is_set():
            raise Stopped

    def end(self, worker: Worker, ticket: Ticket, outcome: Any, error: BaseException | None) -> Ticket | None:
        """Ends the turn of a piece that has ended, or has to begin again; what the thread is to begin with next."""
        with self._changed:
            self._charge()
            again = self._begins_again(ticket, error)
            if not again:
                self.service_seconds += 0.2 * (min(ticket.attained, QUANTUM) - self.service_seconds)
                self._leave(ticket)
            following = self._begin_turn(self._next(), worker)
            if following is None and not self.closed:
                self._idle.append(worker)
        if not again:
            ticket.settle(outcome, error)
        return following

    def _overtaking(self, ticket: Ticket) -> Ticket | None:
        """Who has to go on before the running piece does. Raises `BegunTooSoon`."""
        self._charge()
        self._news, over = False, self._charged >= self._turn_ends
        if over:
            ticket.since = self._charged
            if not self._take_place(ticket):
                raise BegunTooSoon
        if ticket not in self._placed:
            return None
        if over or any(other.stopped.is_set() for other in self._paused):
            following, self._turn_ends = self._next(ticket), self._charged + QUANTUM
            return None if following is ticket else following
        return None if self._granted else self._schedule.overtaking(ticket, self._ready())

    def _next(self, *running: Ticket) -> Ticket | None:
        """Whose turn it is. Those whose caller has gone are first: they only clear away."""
        stopped = next((ticket for ticket in self._paused if ticket.stopped.is_set()), None)
        ready = [*self._ready(), *running]
        chosen, self._granted = (stopped, True) if stopped else self._schedule.next(ready) or (None, False)
        return chosen

    def _begin_turn(self, ticket: Ticket | None, worker: Worker | None) -> Ticket | None:
        """Gives the turn to a piece; returns it when `worker`, which is free, is to run it itself."""
        self._running = ticket
        if ticket is None:
            return None
        self._charged = time.monotonic()
        self._turn_ends, self._news = self._charged + QUANTUM, False
        if ticket in self._paused:
            self._paused.remove(ticket)
            ticket.turn.release()
            return None
        self._queue.remove(ticket)
        if ticket.nice or ticket.level:
            self._take_place(ticket)
        if worker is None:
            self._idle.pop().call(ticket)
        return None if worker is None else ticket

    def _ready(self) -> Iterator[Ticket]:
        """Pieces that can go on at once, or begin."""
        yield from self._paused
        seen = set[Owner]()
        for ticket in self._queue:
            if ticket.is_plain:  # of those of one owner the first is first, whoever's turn it is
                if ticket.owner not in seen:
                    seen.add(ticket.owner)
                    yield ticket
            elif self._may_begin(ticket):
                yield ticket

    def _may_begin(self, ticket: Ticket) -> bool:
        small = not (ticket.nice or ticket.level)
        return not self._placed if ticket.alone else small or self._has_place(ticket)

    def _has_place(self, ticket: Ticket) -> bool:
        taken = sum(other.place == ticket.nice for other in self._placed)
        return taken < self._places[ticket.nice] and self._lonely == ticket.alone

    def _take_place(self, ticket: Ticket) -> bool:
        if ticket not in self._placed and self._has_place(ticket):
            ticket.place = ticket.nice
            self._placed.add(ticket)
        return ticket in self._placed

    def _begins_again(self, ticket: Ticket, error: BaseException | None) -> bool:
        """Puts a piece back into the queue that failed for the others' sake alone."""
        crowded_out = isinstance(error, OutOfMemory | MemoryError) and bool(self._paused) and not ticket.alone
        if not (crowded_out or isinstance(error, BegunTooSoon)) or ticket.stopped.is_set():
            return False
        self.begun_again += 1
        self._placed.discard(ticket)
        ticket.since, ticket.alone = self._charged, ticket.alone or crowded_out
        self._lonely += crowded_out
        self._queue.append(ticket)
        return True

    def _leave(self, ticket: Ticket) -> None:
        self._placed.discard(ticket)
        self._lonely -= ticket.alone
        self._schedule.leave(ticket)

    def _charge(self) -> None:
        """Counts the device time of the running piece since this was last done."""
        if self._running is None:
            return
        now = time.monotonic()
        others = [*self._queue, *self._paused]
        self._schedule.charge(self._running, now - self._charged, others, granted=self._granted)
        self._charged = now


def attempt(ticket: Ticket) -> tuple[Any, BaseException | None]:
    """Runs one piece of work; whatever it raises belongs to its caller, never to the thread."""
    try:
        if ticket.stopped.is_set():
            raise Stopped
        return Context().run(ticket.work, ticket.checkpoint), None
    except (Stopped, BegunTooSoon) as error:
        return None, error
    except BaseException as error:  # noqa: BLE001 - the thread outlives every piece of work, also one that panics
        return None, error if isinstance(error, Exception) else Broken(type(error).__name__)
