"""Explaining stored inferences, shard by shard: all that lack scores, or those that have just come in.

A shard is explained on the device, behind all requests that wait, and stored in one transaction with the word of how
far the job is. What has scores is never explained again, so a job that was killed goes on where it was, and loses the
shard under way at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.costs import stored_speed
from app.device import Priority, Steps
from app.explain import Explainer
from app.explainability import Config, State, scorer_of, state_of
from app.flights import Watch
from app.monitored import Monitored, find_active
from app.runtime import Spent
from app.scores import rows_of
from app.scoring import Outcome, Scorer, checked
from explainers.types import Checkpoint
from storage import jobs, scores
from storage.jobs import Job
from storage.scores import Wanted

SHARD_SECONDS = 0.5
"""What a shard takes, about: requests wait that long for it, and a killed worker loses no more."""
SHARD_ROWS = 500
FIRST_PREDICTIONS = {"rows": 20_000, "texts": 2_000}
"""That the model is asked for in the first shard, before its speed is known."""
FASTER = 4.0
"""A shard has at most so many times the rows of the one before, and no less than their share."""


async def explain_stored(explainer: Explainer, job: Job, request: Mapping[str, Any], watch: Watch) -> UUID:
    """Explains what the job's model lacks; the id of that model. Raises `UnknownModel` when it was archived."""
    steps = Steps()
    watch(steps)
    async with explainer.database.transaction(tenant=job.tenant_id) as session:
        model = await find_active(session, request["model_id"])
        state = await state_of(session, model)
    if state.works:
        await Backfill(explainer, job, model, state, await scorer_of(explainer, job.tenant_id, model, state)).run(
            int(request["after"]), steps
        )
    return model.id


class Backfill:
    """One attempt at a job, with one state of the model's explanations."""

    def __init__(self, explainer: Explainer, job: Job, model: Monitored, state: State, scorer: Scorer) -> None:
        self.explainer = explainer
        self.job = job
        self.model = model
        self.state = state
        self.scorer = scorer
        self.config: Config = state.acting
        first = FIRST_PREDICTIONS["texts" if scorer.reading.is_text else "rows"]
        expected = scorer.predictions(self.config.algorithm, SHARD_ROWS)
        self.shard_rows = max(1, min(SHARD_ROWS, SHARD_ROWS * first // expected))

    def wanted(self, after: int) -> Wanted:
        config = self.config
        return Wanted(self.model.id, config.algorithm, self.scorer.fingerprint, config.share, after)

    async def run(self, after: int, steps: Steps) -> None:
        """Until nothing is lacking, the job is not ours any more, or the state of the explanations has changed."""
        async with self.explainer.database.transaction(tenant=self.job.tenant_id) as session:
            steps.done, steps.total = await scores.progress(session, self.wanted(after))
            shard = await scores.lacking(session, self.wanted(after), limit=self.shard_rows)
        while shard:
            outcomes = await self.explained(shard)
            after = shard[-1].seq
            async with self.explainer.database.transaction(tenant=self.job.tenant_id) as session:
                if not await self.store(session, shard, outcomes, steps):
                    steps.total = steps.done  # what is left is not this job's
                    return
                shard = await scores.lacking(session, self.wanted(after), limit=self.shard_rows)

    async def explained(self, shard: Sequence[Any]) -> list[Outcome]:
        scorer, spent, ids = self.scorer, Spent(), [row.partner_inference_id for row in shard]
        cells = scorer.reading.cells(shard)

        def work(checkpoint: Checkpoint) -> list[Outcome]:
            return scorer.explain(self.config.algorithm, cells, ids, checkpoint)

        outcomes = await self.explainer.runtime.run(work, Priority(nice=True), spent=spent)
        self.shard_rows = rows_of_next(len(shard), spent.seconds)
        predictions = len(shard) * scorer.predictions(self.config.algorithm)
        self.explainer.rates.note(
            stored_speed(self.job.tenant_id, scorer.predictor.digest, self.config.algorithm), predictions, spent.seconds
        )
        self.explainer.meters.explained_rows.labels(self.config.algorithm).inc(len(shard))
        return checked(outcomes, scorer.reading.predicted(cells))

    async def store(self, session: Any, shard: Sequence[Any], outcomes: Sequence[Outcome], steps: Steps) -> bool:
        """False, and nothing is stored, when this attempt is no longer wanted."""
        now = await state_of(session, self.model, keep=True)
        if not now.works or (now.fingerprint, now.acting.algorithm) != (self.scorer.fingerprint, self.config.algorithm):
            return False
        self.config = now.acting  # its share may be another one
        done = steps.done + len(shard)
        if not await jobs.beat(session, self.job.id, self.job.attempts, done, max(steps.total, done)):
            return False
        steps.done, steps.total = done, max(steps.total, done)
        rows, tokens = rows_of(self.scorer, [row.seq for row in shard], outcomes)
        await scores.add(session, self.model.id, self.config.algorithm, rows)
        if tokens is not None:
            await scores.add_tokens(session, self.model.id, self.config.algorithm, tokens)
        return True


def rows_of_next(rows: int, seconds: float) -> int:
    """Of the shard after one of so many rows that took so long."""
    wanted = rows * min(FASTER, max(1 / FASTER, SHARD_SECONDS / max(seconds, 1e-6)))
    return max(1, min(SHARD_ROWS, int(wanted)))
