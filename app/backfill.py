"""Explaining stored inferences, shard by shard: all that lack scores, or those that have just come in.

Context: there may be millions of them, any number of workers, and each of these may be killed or cut off at any time.
Decision: the job cuts what is lacking into shards; whoever has leased one explains it on the device, behind all
requests that wait, and stores it in one transaction with the word that it is done, which names the lease. The job calls
one helper, and each helper the next one, so that every worker with nothing else to do joins in, also one that is
started later; a helper makes way for any job that waits. Consequence: a killed worker loses the shard under way at
most, nothing is stored twice, and the scores are the same whoever computed them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID, uuid5

from app.costs import stored_speed
from app.device import Priority, Steps
from app.explain import Explainer
from app.explainability import SHARDS, Config, scorer_of, state_of
from app.flights import Watch
from app.leases import Hold
from app.monitored import Monitored, find_active
from app.runtime import SharedJob, Spent
from app.scores import rows_of
from app.scoring import Outcome, Scorer, checked
from explainers.types import Checkpoint
from storage import jobs, scores, shards
from storage.jobs import Job
from storage.monitored_tables import Inference
from storage.queue import SCORES, Later, makes_way
from storage.scores import Wanted
from storage.shards import Shard

LEASE_SECONDS, RENEW_SECONDS = 10.0, 2.5
LOOK_SECONDS = 0.2
SHARD_ROWS = 500
SHARD_PREDICTIONS = {"rows": 200_000, "texts": 2_000}
"""That the model is asked for in a shard, about: enough to make leases cheap, and no more than a killed worker may
lose. Never by how fast somebody was: the same rows are explained together whoever does it."""
MOST_SHARDS = 2_000
"""That are cut at a time."""

GoesOn: TypeAlias = Callable[[Any], Awaitable[bool]]
"""Whether to lease another shard; asked in the transaction that has stored one."""


async def explain_stored(explainer: Explainer, job: Job, request: Mapping[str, Any], watch: Watch) -> UUID:
    """Explains what the job's model lacks; the id of that model. Raises `UnknownModel` when it was archived."""
    steps = Steps()
    watch(steps)
    async with explainer.database.transaction(tenant=job.tenant_id) as session:
        model = await find_active(session, request["model_id"])
        state = await state_of(session, model)
    if state.works:
        scorer = await scorer_of(explainer, job.tenant_id, model, state)
        share = Share(explainer, job.tenant_id, job.id, model, scorer, state.acting)
        await Backfill(share, job, steps).run(int(request["after"]))
    return model.id


async def help_explain(explainer: Explainer, job: Job, request: Mapping[str, Any], watch: Watch) -> UUID:
    """Explains shards of a job beside whoever works on it, as long as there are some to lease; that job's id.

    Raises `Later` when it makes way for a job that waits.
    """
    id = UUID(request["job"])
    watch(Steps())
    async with explainer.database.transaction(tenant=job.tenant_id) as session:
        left = await shards.left(session, id)
        if not left.free or not await jobs.is_wanted(session, id):
            return id
        model = await find_active(session, request["model_id"])
        state = await state_of(session, model)
        if left.free > 1:
            await call_help(session, job, id, model, job.id)
    if state.works:
        scorer = await scorer_of(explainer, job.tenant_id, model, state)
        await help_with(Share(explainer, job.tenant_id, id, model, scorer, state.acting), job.id)
    return id


async def help_with(share: Share, helper: UUID) -> None:
    """Raises `Later` when another job waits for a worker."""

    async def goes_on(session: Any) -> bool:
        return not await makes_way(session, SCORES, helper)

    with suppress(Outdated):
        if not await share.compute_all(goes_on):
            raise Later(0)


async def call_help(session: Any, job: Job, of: UUID, model: Monitored, name: UUID) -> None:
    """A job for another worker, behind all others; called once by the same name."""
    id, request = uuid5(name, f"help {job.attempts}"), {"job": str(of), "model_id": str(model.id)}
    await jobs.add(session, id=id, kind=SHARDS, model=job.model, request=request, lane=SCORES, behind=True)


class Outdated(Exception):
    """What is left is not this job's: it is over, or the model is explained otherwise now."""


@dataclass(frozen=True, slots=True)
class Held:
    """A leased shard, and those of its inferences that lack scores."""

    shard: Shard
    rows: Sequence[Inference]


class Share:
    """One worker's share in the shards of the job `id`, with one state of the model's explanations."""

    def __init__(
        self, explainer: Explainer, tenant: str, id: UUID, model: Monitored, scorer: Scorer, config: Config
    ) -> None:
        self.explainer = explainer
        self.tenant = tenant
        self.id = id
        self.model = model
        self.scorer = scorer
        self.config = config

    def transaction(self) -> Any:
        return self.explainer.database.transaction(tenant=self.tenant)

    def wanted(self, after: int) -> Wanted:
        config = self.config
        return Wanted(self.model.id, config.algorithm, self.scorer.fingerprint, config.share, after)

    async def compute_all(self, goes_on: GoesOn) -> bool:
        """As long as there are shards that nobody else has leased; False when it does not go on before. Raises
        `Outdated`.
        """
        async with self.transaction() as session:
            held = await self.leased(session)
        while held is not None:
            hold = self.hold(held.shard)
            async with hold.kept():
                async with hold.renewed(RENEW_SECONDS):
                    outcomes = await self.explained(held) if held.rows else []
                async with self.transaction() as session:
                    await self.store(session, held, outcomes)
                    going = await goes_on(session)
                    following = await self.leased(session) if going else None
            if not going:
                return False
            held = following
        return True

    async def leased(self, session: Any) -> Held | None:
        """Raises `Outdated`."""
        await self.check(session)
        shard = await shards.lease(session, self.id, LEASE_SECONDS)
        if shard is None:
            return None
        rows = await scores.lacking(session, self.wanted(shard.first - 1), limit=shard.rows, last=shard.last)
        return Held(shard, rows)

    async def check(self, session: Any) -> None:
        """Raises `Outdated` where there is nothing to store any more; the state stays until the transaction ends."""
        now, config = await state_of(session, self.model, keep=True), self.config
        if not now.works or (now.fingerprint, now.acting.algorithm) != (self.scorer.fingerprint, config.algorithm):
            raise Outdated
        if not await jobs.is_wanted(session, self.id):
            raise Outdated
        self.config = now.acting  # its share may be another one

    def hold(self, shard: Shard) -> Hold:
        return Hold(
            self.transaction,
            renew=lambda session: shards.renew(session, self.id, shard, LEASE_SECONDS),
            release=lambda session: shards.release(session, self.id, shard),
        )

    async def explained(self, held: Held) -> list[Outcome]:
        scorer, algorithm, spent = self.scorer, self.config.algorithm, Spent()
        cells, ids = scorer.reading.cells(held.rows), [row.partner_inference_id for row in held.rows]

        def work(checkpoint: Checkpoint) -> list[Outcome]:
            return scorer.explain(algorithm, cells, ids, checkpoint)

        outcomes = await self.explainer.runtime.run(work, Priority(nice=True), spent=spent)
        speed = stored_speed(self.tenant, scorer.predictor.digest, algorithm)
        self.explainer.rates.note(speed, len(ids) * scorer.predictions(algorithm), spent.seconds)
        self.explainer.meters.explained_rows.labels(algorithm).inc(len(ids))
        return checked(outcomes, scorer.reading.predicted(cells))

    async def store(self, session: Any, held: Held, outcomes: Sequence[Outcome]) -> None:
        """Nothing of a shard whose lease was lost. Raises `Outdated` where nothing is to be stored any more."""
        await self.check(session)
        if not await shards.finish(session, self.id, held.shard) or not held.rows:
            return
        rows, tokens = rows_of(self.scorer, [row.seq for row in held.rows], outcomes)
        await scores.add(session, self.model.id, self.config.algorithm, rows)
        if tokens is not None:
            await scores.add_tokens(session, self.model.id, self.config.algorithm, tokens)


class Backfill:
    """One attempt at a job: its shards are cut, computed with whoever helps, and waited for."""

    def __init__(self, share: Share, job: Job, steps: Steps) -> None:
        self.share = share
        self.job = job
        self.steps = steps
        self.end = 0
        """How many inferences are explained once all shards are done."""

    async def run(self, after: int) -> None:
        """Until nothing is lacking, the job is not ours any more, or the state of the explanations has changed."""
        try:
            shared = SharedJob.of(self.job, self.share.model.id, self.share.scorer.device)
            async with self.share.explainer.runtime.helped(shared, self.free):
                while await self.begin(after):
                    await self.share.compute_all(self.goes_on)
                    while await self.others():
                        await asyncio.sleep(LOOK_SECONDS)
                        await self.share.compute_all(self.goes_on)
        except Outdated:
            self.steps.total = self.steps.done
            async with self.share.transaction() as session:
                await shards.forget(session, self.job.id)

    async def free(self) -> int:
        async with self.share.transaction() as session:
            return (await shards.left(session, self.job.id)).free

    async def begin(self, after: int) -> bool:
        """Goes on with the shards that are left of an earlier attempt, or cuts new ones; False: nothing is lacking."""
        share, steps = self.share, self.steps
        async with share.transaction() as session:
            await share.check(session)
            if not await self.told(session):  # it may cut nothing then
                return False
            wanted = share.wanted(after)
            if not self.end:
                steps.done, steps.total = await scores.progress(session, wanted)
            left = await shards.left(session, self.job.id)
            if not left.shards:
                left = await shards.cut(session, self.job.id, wanted, rows=self.shard_rows, most=MOST_SHARDS)
            if left.free > 1:
                await call_help(session, self.job, self.job.id, share.model, uuid5(self.job.id, str(steps.done)))
        self.end = steps.done + left.rows
        return left.shards > 0

    @property
    def shard_rows(self) -> int:
        """By what is asked of the model for them, the same for every worker."""
        scorer, algorithm = self.share.scorer, self.share.config.algorithm
        most = SHARD_PREDICTIONS["texts" if scorer.reading.is_text else "rows"]
        return max(1, min(SHARD_ROWS, SHARD_ROWS * most // scorer.predictions(algorithm, SHARD_ROWS)))

    async def goes_on(self, session: Any) -> bool:
        await self.count(session)
        return await self.told(session)

    async def others(self) -> bool:
        """Whether shards are left that others compute, or have lost; tells how far all workers are."""
        async with self.share.transaction() as session:
            return await self.count(session) > 0 and await self.told(session)

    async def count(self, session: Any) -> int:
        left = await shards.left(session, self.job.id)
        self.steps.done = self.end - left.rows
        self.steps.total = max(self.steps.total, self.end)
        return left.shards

    async def told(self, session: Any) -> bool:
        """Whether the job is still this attempt's; it cannot be another's until the transaction ends."""
        return await jobs.beat(session, self.job.id, self.job.attempts, self.steps.done, self.steps.total)
