"""Durable jobs: the use cases of requests, called later, or for longer than a request waits.

Context: a worker may be killed at any time, several may run, and a client may ask about a job long after its request.
Decision: the row of a job (`storage.jobs`) is the truth, the queue only says who looks at it next. Work is claimed with
an attempt's number and watched by a heartbeat; the explanation that a job stores has the id of the job, so that it is
found instead of computed again when a worker died between storing it and saying so. What went wrong is tried again
where the server failed (5xx), three attempts in all (ten at what is kept piece by piece), never where the request did.
Consequence: one result per job; a request that outlives its deadline becomes a job that is running already, and its
flight is watched by this process until it lands or another process takes the job over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar
from uuid import UUID

from app import context, explainability, influence, influence_indexes
from app.backfill import explain_stored, help_explain
from app.context import ContextAsked, asked_from, attribute_context
from app.device import ASKED_BY, Steps
from app.explain import Explained, Explainer, estimated, explain_completion, look_up
from app.flights import Watch
from app.influence import Found, influence_of
from app.influence_build import build_index, compute_shards
from app.questions import Question, question_from
from app.records import Record
from app.refusals import Conflict, NotFound, QueueFull, ShuttingDown, StillRunning, WorkerLost
from storage import errors as storage_errors
from storage import explanations
from storage import jobs as rows
from storage.database import Database
from storage.errors import StorageError
from storage.ids import time_ordered
from storage.influence import abandon
from storage.jobs import Job, Page
from storage.queue import Later, put

log = logging.getLogger(__name__)

KIND = "explain"
BEAT_SECONDS = 2.0
STALE_SECONDS = 8.0
"""A worker not heard of for so long is taken for dead."""
FOLLOW_SECONDS = 0.5
LOOK_AGAIN_SECONDS = 5
MOST_ATTEMPTS = {
    KIND: 3,
    context.KIND: 3,
    influence.KIND: 3,
    explainability.KIND: 10,
    explainability.SHARDS: 10,
    influence_indexes.KIND: 10,
    influence_indexes.SHARDS: 10,
}
"""A job that keeps what it has done may be begun more often: what ends its workers may be another's doing."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is asked for: a question, and whether a stored answer will do."""

    question: Question
    fresh: bool = False
    kind: ClassVar[str] = KIND

    @property
    def record(self) -> Record:
        return {"question": self.question.record, "fresh": self.fresh}


@dataclass(frozen=True, slots=True)
class TraceOrder:
    """The same for the question from which training example."""

    question: influence.Question
    kind: ClassVar[str] = influence.KIND

    @property
    def record(self) -> Record:
        return {"question": self.question.record}


@dataclass(slots=True)
class Attempt:
    """An attempt of this process at a job: the task that answers, and how far its work is.

    Once it is `left` to others, its job goes back where it was.
    """

    answering: asyncio.Task[UUID]
    steps: Steps = field(default_factory=Steps)
    left: bool = False

    def leave(self) -> None:
        self.left = True
        self.answering.cancel()


class Jobs:
    """The jobs that this process works on, and what working on them needs.

    `problem` puts an error into the words in which clients are told of it.
    """

    def __init__(self, explainer: Explainer, problem: Callable[[BaseException], Record]) -> None:
        self.explainer = replace(explainer, deadline=None)
        self.problem = problem
        self._attempts: dict[UUID, Attempt] = {}
        self._watched: set[asyncio.Task[None]] = set()
        self.left = asyncio.Event()
        """Set once this process begins no more work on jobs."""
        self.looking = False
        """Whether this process looks for jobs in the queue at the moment."""

    @property
    def database(self) -> Database:
        return self.explainer.database

    async def look(self, tenant: str, id: UUID) -> None:
        """Works on the job unless it is finished; raises `Later` when it must be looked at again."""
        if self.left.is_set():
            raise Later(0)
        async with self.database.transaction(tenant=tenant) as session:
            most = await self._most_attempts(session, id)
            claimed = await rows.claim(session, id, stale=STALE_SECONDS, most=most, alone=ALONE)
            if claimed is None:
                error = self.problem(WorkerLost(most))
                if await rows.give_up(session, id, stale=STALE_SECONDS, most=most, error=error):
                    await abandon(session, id)
                await look_again_unless_finished(session, id)
                return
        job, request = claimed
        await self.work(job, request)

    async def _most_attempts(self, session: Any, id: UUID) -> int:
        with suppress(storage_errors.NotFound):  # its tenant was removed
            return MOST_ATTEMPTS[(await rows.get(session, id)).kind]
        return 0

    def watch(self, job: Job, request: Record) -> None:
        """Works on a job that this process has claimed, beside everything else."""
        task = asyncio.create_task(self._work_quietly(job, request))
        self._watched.add(task)
        task.add_done_callback(self._watched.discard)

    async def work(self, job: Job, request: Record) -> None:
        """Answers a claimed job and writes down the outcome; raises `Later` when it is to be tried again."""
        self._attempts[job.id] = attempt = Attempt(asyncio.create_task(self._answer(job, request)))
        try:
            while not attempt.answering.done():
                await asyncio.wait({attempt.answering}, timeout=BEAT_SECONDS)
                if not attempt.answering.done() and (attempt.left or not await self._beat(job, attempt)):
                    attempt.answering.cancel()
            await self._settle(job, attempt)
        except asyncio.CancelledError:  # whoever runs this is about to end
            attempt.leave()
            await asyncio.wait({attempt.answering})
            await self._settle(job, attempt)
        finally:
            self._attempts.pop(job.id, None)

    def stop(self, id: UUID) -> None:
        """Stops work on a job that is no longer wanted; another process notices with its next heartbeat."""
        if id in self._attempts:
            self._attempts[id].answering.cancel()

    def leave(self) -> None:
        """Stops all work, for good; the jobs go back into the queue."""
        self.left.set()
        for attempt in self._attempts.values():
            attempt.leave()

    async def close(self) -> None:
        """Stops all work, and waits until the jobs that are watched beside the queue are in it."""
        self.leave()
        await asyncio.gather(*self._watched, return_exceptions=True)

    async def _work_quietly(self, job: Job, request: Record) -> None:
        """Works on a job whose entry in the queue is only there for the case that this process dies."""
        try:
            await self.work(job, request)
        except Later as later:
            with suppress(StorageError):
                async with self.database.transaction(tenant=job.tenant_id) as session:
                    await put(session, job.tenant_id, job.id, seconds=later.seconds)
        except Exception as error:  # noqa: BLE001 - a job loop: its error's text may hold a prompt
            log.warning("job %s was left to others: %s", job.id, type(error).__name__)

    async def _answer(self, job: Job, request: Record) -> UUID:
        """The id of the result, stored by an earlier attempt or now."""
        if job.kind in STORED and await self._stored(job):
            return job.id
        attempt = self._attempts[job.id]
        ASKED_BY.set((job.tenant_id,))

        def watch(steps: Steps) -> None:
            attempt.steps = steps

        while True:
            try:
                return await KINDS[job.kind](self.explainer, job, request, watch)
            except ShuttingDown:
                raise
            except QueueFull as full:  # a job has time
                await asyncio.sleep(full.retry_after)

    async def _stored(self, job: Job) -> bool:
        async with self.database.transaction(tenant=job.tenant_id) as session:
            with suppress(storage_errors.NotFound):
                return bool(await explanations.get(session, job.id))
        return False

    async def _beat(self, job: Job, attempt: Attempt) -> bool:
        """Says that the attempt goes on; False when it must not. A database that is away does not stop it."""
        try:
            async with self.database.transaction(tenant=job.tenant_id) as session:
                return await rows.beat(session, job.id, job.attempts, attempt.steps.done, attempt.steps.total)
        except StorageError as error:
            log.warning("job %s could not be heard of: %s", job.id, type(error).__name__)
            return True

    async def _settle(self, job: Job, attempt: Attempt) -> None:
        """Writes down the outcome. An attempt that was stopped has none: its row says why, unless it was left."""
        if attempt.answering.cancelled():
            if attempt.left:
                await self._release(job, counted=False)
                self._ended(job, "left")
                raise Later(0)
            self._ended(job, "cancelled")
            return
        error = attempt.answering.exception()
        if isinstance(error, Later):  # others come first
            await self._release(job, counted=False)
            self._ended(job, "left")
            raise error
        problem = self.problem(error) if error is not None else {}
        again = problem.get("status", 0) >= 500 and job.attempts < MOST_ATTEMPTS[job.kind]
        if again and await self._release(job, counted=True):
            self._ended(job, "to try again")
            raise Later(2**job.attempts)
        async with self.database.transaction(tenant=job.tenant_id) as session:
            if error is not None:
                if await rows.fail(session, job.id, job.attempts, error=problem):
                    await abandon(session, job.id)
            else:
                result = attempt.answering.result()
                await rows.succeed(session, job.id, job.attempts, total=attempt.steps.total, result=result)
        self._ended(job, "failed" if error is not None else "succeeded")

    def _ended(self, job: Job, outcome: str) -> None:
        self.explainer.meters.jobs_ended.labels(job.kind, outcome).inc()

    async def _release(self, job: Job, *, counted: bool) -> bool:
        """Lets go of the job; False when it was ours no more. Without a database it is taken over when it is stale."""
        try:
            async with self.database.transaction(tenant=job.tenant_id) as session:
                return await rows.release(session, job.id, job.attempts, counted=counted)
        except StorageError:
            return False


async def answer_question(explainer: Explainer, job: Job, request: Record, watch: Watch) -> UUID:
    """Explains as a request would, behind all requests that wait."""
    question = question_from(job.model, request["question"])
    fresh = request["fresh"]
    answer = await explain_completion(
        explainer, job.tenant_id, question, fresh=fresh, nice=True, id=job.id, watch=watch
    )
    return answer.id


async def answer_context(explainer: Explainer, job: Job, request: Record, watch: Watch) -> UUID:
    """Attributes as a request would, behind all requests that wait."""
    asked, fresh = asked_from(job.model, request["question"]), request["fresh"]
    answer = await attribute_context(explainer, job.tenant_id, asked, fresh=fresh, nice=True, id=job.id, watch=watch)
    return answer.id


async def answer_influence(explainer: Explainer, job: Job, request: Record, watch: Watch) -> UUID:
    """The same for the question from which training example."""
    question = influence.question_from(job.model, request["question"])
    answer = await influence_of(explainer, job.tenant_id, question, nice=True, id=job.id, watch=watch)
    return answer.id


KINDS: Mapping[str, Callable[[Explainer, Job, Record, Watch], Awaitable[UUID]]] = {
    KIND: answer_question,
    context.KIND: answer_context,
    influence.KIND: answer_influence,
    explainability.KIND: explain_stored,
    explainability.SHARDS: help_explain,
    influence_indexes.KIND: build_index,
    influence_indexes.SHARDS: compute_shards,
}
"""What each kind of job calls. It stores its result under the id of the job, or names one stored before."""

STORED = (KIND, context.KIND, influence.KIND)
"""Kinds whose result is an explanation with the id of the job."""

PARTS = (explainability.SHARDS, influence_indexes.SHARDS)
"""Kinds that nobody asked for: another job called them, and tells how far all of them are together."""

ALONE = (explainability.KIND, influence_indexes.KIND)
"""Kinds of which no two jobs of one model run at a time."""


async def look_again_unless_finished(session: Any, id: UUID) -> None:
    """Raises `Later` for a job that somebody else works on."""
    with suppress(storage_errors.NotFound):  # its tenant was removed
        if not (await rows.get(session, id)).finished:
            raise Later(LOOK_AGAIN_SECONDS)


async def submit(explainer: Explainer, jobs: Jobs, tenant: str, order: Order) -> Job:
    """A new job, which a worker will look at; raises `UnknownModel`, `Limited`, and why its model cannot be loaded."""
    asked = order.question
    registration, stored = await look_up(jobs.database, tenant, asked.model, asked.key)
    if stored is None or order.fresh:
        await explainer.gate.check_job(lambda: estimated(explainer, registration, asked))
    return await add(jobs, tenant, order)


async def add(jobs: Jobs, tenant: str, order: Order | TraceOrder) -> Job:
    model = order.question.model
    async with jobs.database.transaction(tenant=tenant) as session:
        job = await rows.add(session, id=time_ordered(), kind=order.kind, model=model, request=order.record)
    assert job is not None  # noqa: S101 - its id is new
    return job


async def explain_or_submit(
    explainer: Explainer, jobs: Jobs, tenant: str, order: Order, *, nice: bool = False
) -> Explained:
    """The answer; one that is not ready within the deadline goes on as the job that the `StillRunning` names."""
    try:
        return await explain_completion(explainer, tenant, order.question, fresh=order.fresh, nice=nice)
    except StillRunning as late:
        await go_on(jobs, tenant, UUID(late.job), KIND, order.question.model, order.record)
        raise


async def attribute_or_go_on(
    explainer: Explainer, jobs: Jobs, tenant: str, asked: ContextAsked, *, nice: bool = False
) -> Explained:
    """The same for the sources of a context."""
    try:
        return await attribute_context(explainer, tenant, asked, nice=nice)
    except StillRunning as late:
        record = {"question": asked.record, "fresh": False}
        await go_on(jobs, tenant, UUID(late.job), context.KIND, asked.model, record)
        raise


async def trace_or_submit(
    explainer: Explainer, jobs: Jobs, tenant: str, question: influence.Question, *, nice: bool = False
) -> Found:
    """The same for the question from which training example."""
    try:
        return await influence_of(explainer, tenant, question, nice=nice)
    except StillRunning as late:
        order = TraceOrder(question)
        await go_on(jobs, tenant, UUID(late.job), order.kind, question.model, order.record)
        raise


async def submit_trace(explainer: Explainer, jobs: Jobs, tenant: str, question: influence.Question) -> Job:
    """A new job; raises at once what stands against any answer of that model, and `Limited`."""
    await influence.admit_job(explainer, tenant, question)
    return await add(jobs, tenant, TraceOrder(question))


async def go_on(jobs: Jobs, tenant: str, id: UUID, kind: str, model: str, record: Record) -> None:
    """Makes a flight that goes on a job with that id, unless it is one."""
    async with jobs.database.transaction(tenant=tenant) as session:
        job = await rows.add(
            session,
            id=id,
            kind=kind,
            model=model,
            request=record,
            running=True,
            seconds=int(STALE_SECONDS) + 1,
        )
    if job is not None:
        jobs.watch(job, record)


async def fetch_job(database: Database, tenant: str, name: str) -> Job:
    """One job of this tenant; raises `NotFound` for anything else."""
    async with database.transaction(tenant=tenant) as session:
        return await found(rows.get(session, identity(name)))


async def list_jobs(database: Database, tenant: str, **filters: Any) -> Page:
    """One page of the tenant's jobs, newest first, without the parts that a job has called to its help."""
    async with database.transaction(tenant=tenant) as session:
        return await rows.page(session, without=PARTS, **filters)


async def cancel_job(jobs: Jobs, tenant: str, name: str) -> Job:
    """Ends a job at once; work on it stops at its next checkpoint. Raises `NotFound`, or `Conflict` when it is over."""
    async with jobs.database.transaction(tenant=tenant) as session:
        job = await found(rows.cancel(session, identity(name)))
        if job.state == "cancelled":
            await abandon(session, job.id)  # its training files may be removed now
    if job.state != "cancelled":
        raise Conflict(f"the job has {job.state} already")
    jobs.stop(job.id)
    return job


async def follow(database: Database, job: Job, seen: int, stopping: Callable[[], bool]) -> AsyncIterator[Job | None]:
    """The job each time its version is above the last one `seen`, up to its end; None while nothing changes."""
    while True:
        if job.version > seen:
            seen = job.version
            yield job
        else:
            yield None
        if job.finished or stopping():
            return
        await asyncio.sleep(FOLLOW_SECONDS)
        with suppress(storage_errors.DatabaseUnavailable):
            job = await fetch_job(database, job.tenant_id, str(job.id))


def identity(name: str) -> UUID:
    try:
        return UUID(name)
    except ValueError:
        raise NotFound("there is no job with this id") from None


async def found(job: Awaitable[Job]) -> Job:
    try:
        return await job
    except storage_errors.NotFound:
        raise NotFound("there is no job with this id") from None
