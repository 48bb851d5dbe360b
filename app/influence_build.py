"""Building an influence index: shards that workers lease, then what is derived of all of them, then one rename.

Context: a build takes minutes to days, its workers may be killed at any time, and several may share it. Decision: a
shard is a file whose content is fixed by the training data and the weights alone; whoever has leased it computes it,
writes it whole, and only then says so, under the number of its lease. The job calls one helper, and each helper the
next, so that every worker with nothing else to do joins in, unless reading the training data would take it longer than
its share of what is left; helpers make way for jobs that wait. What is derived is made by the job itself, in the folder
of the build, and the finished folder gets its name before its row says that it is ready. Where machines share a store
instead of a folder, each of these is there before a row says so (`index_files`). Consequence: a killed worker loses the
shard under way, its lease runs out, and the index has the same bytes whatever happened on the way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from app.device import Priority, Steps
from app.explain import Explainer
from app.flights import Watch
from app.index_files import GENERIC, IndexFiles
from app.influence_ground import BATCH_TOKENS, Ground, ground_of
from app.influence_indexes import SHARDS, sweep
from app.leases import Hold
from app.mask_checks import mask_facts
from app.records import digest_of as digest_of_values
from app.runtime import SharedJob
from app.turns import take_turns
from explainers.errors import InvalidRequest
from explainers.influence.examples import Example, Mask
from explainers.influence.finishing import Generic, finish, write_generic
from explainers.influence.generic import ANSWERS, LONGEST, Answer, answering, generic_prompts
from explainers.influence.gradients import left_out
from explainers.influence.levels import FEWEST_PROMPTS
from explainers.influence.pairs import write_pairs
from explainers.influence.passes import batches
from explainers.influence.rendering import render_question
from explainers.influence.shards import Shard, shard_of, write_shard
from explainers.influence.sketching import Sketches, sketching
from explainers.types import Checkpoint
from storage import errors as storage_errors
from storage import influence, jobs
from storage.influence import Lease, Progress
from storage.jobs import Job
from storage.queue import INDEXES, Later, makes_way

LEASE_SECONDS, RENEW_SECONDS = 15.0, 4.0
LOOK_SECONDS = 0.5


async def build_index(explainer: Explainer, job: Job, request: Mapping[str, Any], watch: Watch) -> UUID:
    """Builds the index that the job is about, or goes on with it; the index's id.

    Whatever is raised: the index is given up with its job, not with an attempt at it.
    """
    id, steps = UUID(request["index"]), Steps()
    watch(steps)
    await Build(explainer, job, steps, await ground_of(explainer, job, id)).run()
    return id


async def compute_shards(explainer: Explainer, job: Job, request: Mapping[str, Any], watch: Watch) -> UUID:
    """Computes shards of a build beside the job that it belongs to, as long as there are some to lease.

    Raises `Later` when it makes way for a job that waits.
    """
    id, steps = UUID(request["index"]), Steps()
    watch(steps)
    async with explainer.database.transaction(tenant=job.tenant_id) as session:
        with suppress(storage_errors.NotFound):
            free = (await influence.progress(session, id)).free
            pace = Pace(**request["pace"])
            if (await influence.get(session, id)).state != "building" or not pace.worth(free):
                return id
            await call_help(session, job, id, pace.next, free - 1)
    build = Build(explainer, job, steps, await ground_of(explainer, job, id))
    await build.make_folder()
    await build.compute_all(helping=True)
    if build.makes_way:
        raise Later(0)
    return id


@dataclass(frozen=True, slots=True)
class Pace:
    """What decides whether one more helper is worth while: seconds of a shard, those that whoever joins in reads the
    training data for, and how many would work then.
    """

    shard: float
    ready: float
    workers: int = 2

    @property
    def next(self) -> Pace:
        return replace(self, workers=self.workers + 1)

    def worth(self, free: int) -> bool:
        return free * self.shard / self.workers > self.ready


async def call_help(session: Any, job: Job, index: UUID, pace: Pace, free: int) -> bool:
    """A job for another worker, behind all others; once for each attempt. False where it would come too late."""
    if not pace.worth(free):
        return False
    id, request = uuid5(job.id, f"help {job.attempts}"), {"index": str(index), "pace": asdict(pace)}
    await jobs.add(session, id=id, kind=SHARDS, model=job.model, request=request, lane=INDEXES, behind=True)
    return True


class Build:
    """One worker's attempt at an index."""

    def __init__(self, explainer: Explainer, job: Job, steps: Steps, ground: Ground) -> None:
        self.explainer, self.job, self.steps, self.ground = explainer, job, steps, ground
        self.makes_way = self.called = False
        self.id = ground.row.id
        self.files = IndexFiles(explainer.shelf, job.tenant_id, self.id)
        self.folder = self.files.folder
        self.prompts = (*generic_prompts(), *ground.row.config["generic_prompts"])
        self.steps.total = ground.material.tokens + len(self.prompts) * LONGEST

    def transaction(self) -> Any:
        return self.explainer.database.transaction(tenant=self.job.tenant_id)

    async def run(self) -> None:
        """From wherever the build is to the ready index."""
        if await self.files.finished():
            await self.publish(await self.files.publish())
            return
        await self.all_shards()
        await self.derive(await self.generic())
        await self.publish(await self.files.finish())

    async def publish(self, facts: dict[str, Any]) -> None:
        async with self.transaction() as session:
            known = await influence.list_ids(session)
            await influence.publish(session, self.id, facts)
        self.steps.done = self.steps.total
        await sweep(self.explainer.shelf, self.job.tenant_id, known)

    # -- shards --------------------------------------------------------------------------------------------------------

    async def all_shards(self) -> None:
        """Until every shard's file is there and what its digest says, by this worker and others."""
        async with self.transaction() as session:
            await influence.plan(session, self.id, self.ground.material.pieces)
        shared = SharedJob.of(self.job, self.id, self.ground.tune.model.device.type, self.explainer.shelf.name)
        async with self.explainer.runtime.helped(shared, self.free):
            while True:
                await self.make_folder()
                await self.compute_all()
                if not (await self.look()).missing and not await self.lost():
                    return
                await asyncio.sleep(LOOK_SECONDS)

    async def make_folder(self) -> None:
        await asyncio.to_thread(self.folder.mkdir, mode=0o700, parents=True, exist_ok=True)

    async def free(self) -> int:
        return (await self.look()).free

    async def look(self) -> Progress:
        """Tells how far all workers are."""
        async with self.transaction() as session:
            found = await influence.progress(session, self.id)
        self.steps.done = found.done
        return found

    async def lost(self) -> bool:
        """Whether files of finished shards are gone or damaged; they are to be computed again."""
        async with self.transaction() as session:
            known = await influence.digests(session, self.id)
        wrong = await self.files.lost(known)
        if wrong:
            async with self.transaction() as session:
                await influence.lose(session, self.id, wrong)
        return bool(wrong)

    async def compute_all(self, *, helping: bool = False) -> None:
        """As long as there are shards that nobody else has leased; `helping` makes way for jobs that wait."""
        while not self.makes_way and (lease := await self.leased()) is not None:
            started, hold = time.monotonic(), self.hold(lease)
            async with hold.kept():
                async with hold.renewed(RENEW_SECONDS):
                    digest = await self.shard(lease.number)
                async with self.transaction() as session:
                    await influence.keep(session, self.id, lease, digest)
                    self.makes_way = helping and await makes_way(session, INDEXES, self.job.id)
            free, pace = (await self.look()).free, Pace(time.monotonic() - started, self.ground.seconds)
            if free and not helping and not self.called:
                async with self.transaction() as session:
                    self.called = await call_help(session, self.job, self.id, pace, free)

    async def leased(self) -> Lease | None:
        async with self.transaction() as session:
            return await influence.lease(session, self.id, LEASE_SECONDS)

    def hold(self, lease: Lease) -> Hold:
        return Hold(
            self.transaction,
            renew=lambda session: influence.renew(session, self.id, lease, LEASE_SECONDS),
            release=lambda session: influence.release(session, self.id, lease),
        )

    async def shard(self, number: int) -> str:
        """The sha256 of the shard's file, taken over from another index or computed."""
        material = self.ground.material
        found = await self.known(number)
        if found is None:
            examples = [material.examples[place] for place in material.shards[number]]
            sketches = await self.sketched(examples)
            found = shard_of(sketches, [example.record for example in examples])
        return await self.files.keep_shard(number, await asyncio.to_thread(write_shard, self.folder, number, found))

    async def known(self, number: int) -> Shard | None:
        """The same content in an index that is ready or was given up, with the numbers that its records have here."""
        piece = self.ground.material.pieces[number]
        async with self.transaction() as session:
            twin = await influence.twin(session, self.id, piece.key)
        if twin is None:
            return None
        shard = await replace(self.files, id=twin.index_id).shard(twin.number, twin.digest)
        return None if shard is None else replace(shard, records=shard.records - twin.first + piece.first)

    async def sketched(self, examples: Sequence[Example]) -> Sketches:
        """Behind all requests that wait, and told of as it goes on."""
        ground, sizes = self.ground, list[int]()
        for places in batches(ground.tune.model, examples, BATCH_TOKENS):
            sizes.append(sum(len(examples[place].ids) for place in places))

        def work(checkpoint: Checkpoint) -> Generator[None, None, Sketches]:
            sketching_all = sketching(ground.tune, examples, ground.projection, BATCH_TOKENS, checkpoint)
            return counted(sketching_all, sizes, self.steps)

        return await take_turns(self.explainer.runtime, work, Priority(nice=True))

    # -- what is derived -----------------------------------------------------------------------------------------------

    async def generic(self) -> Generic:
        """The calibration prompts, answered by the model itself; kept, so that an attempt after this has them."""
        found = await self.files.generic(self.calibration) or await self.known_generic()
        if found is None:
            examples = await self.generic_examples()
            sketches = shard_of(await self.sketched(examples), range(len(examples)))
            found = Generic(sketches, tuple(example.ids for example in examples))
        await asyncio.to_thread(write_generic, self.folder / GENERIC, found, self.calibration)
        await self.files.keep_generic()
        return found

    async def known_generic(self) -> Generic | None:
        """The same prompts with the same weights, in an index that is ready or was given up."""
        async with self.transaction() as session:
            rows = await influence.list_of(session, self.ground.row.model)
        for row in rows:
            found = await replace(self.files, id=row.id).generic(self.calibration)
            if found is not None:
                return found
        return None

    @property
    def calibration(self) -> str:
        """Names the prompts and all else that decides what is kept of them."""
        return digest_of_values(ANSWERS, self.ground.made_with, self.prompts).hex()

    async def generic_examples(self) -> list[Example]:
        """Raises InvalidRequest where the model has no answer to most prompts."""
        model, mask = self.ground.tune.model, self.ground.mask
        asked = await asyncio.to_thread(answered, model, [(prompt, None) for prompt in self.prompts], mask)
        told = [(prompt, example) for prompt, example in zip(self.prompts, asked, strict=True) if example is not None]

        def work(checkpoint: Checkpoint) -> Generator[None, None, list[Answer]]:
            sizes = [16 * LONGEST] * len(told)
            return counted(answering(model, [example.ids for _, example in told], checkpoint), sizes, self.steps)

        said = await take_turns(self.explainer.runtime, work, Priority(nice=True))
        pairs = [(prompt, answer) for (prompt, _), answer in zip(told, said, strict=True)]
        made = [example for example in await asyncio.to_thread(answered, model, pairs, mask) if example is not None]
        if len(made) < FEWEST_PROMPTS:
            raise InvalidRequest(
                f"the model answers only {len(made)} of {len(self.prompts)} calibration prompts, and {FEWEST_PROMPTS} "
                "are needed: add generic_prompts in the words of its training data"
            )
        return made

    async def derive(self, generic: Generic) -> None:
        ground, material = self.ground, self.ground.material
        runtime, model = self.explainer.runtime, ground.tune.model
        told, warnings = await mask_facts(runtime, model, material.sample, ground.mask, Path(ground.path))
        facts = self.facts(generic, [*material.warnings, *warnings]) | {"mask_check": told}
        await asyncio.to_thread(write_pairs, self.folder, material.pairs)
        given = (material.keys, lambda record: material.examples.last_of(record).ids, generic, facts)
        await asyncio.to_thread(finish, self.folder, len(material.pieces), *given)

    def facts(self, generic: Generic, warnings: list[str]) -> dict[str, Any]:
        ground, material = self.ground, self.ground.material
        if ground.tune.base is None:
            warnings.append(
                "no base model is registered: every token of an answer counts the same, and nothing is gated"
            )
        if missed := left_out(ground.tune.model.network):
            warnings.append(
                f"{missed:.0%} of the weights of the model's blocks (experts, for one) are in no linear layer: what "
                "fine-tuning taught these is not traced"
            )
        return {
            "files": list(ground.files),
            "pairs": len(material.pairs),
            "examples": len(material.examples),
            "tokens": material.tokens,
            "shards": len(material.pieces),
            "size": ground.projection.size,
            "seed": ground.projection.seed,
            "layers": len(ground.projection.layers),
            "mask": asdict(ground.mask),
            "calibration": self.calibration,
            "calibration_prompts": len(generic.texts),
            "warnings": warnings,
        }


def counted(work: Generator[None, None, Any], sizes: Sequence[int], steps: Steps) -> Generator[None, None, Any]:
    """The same work, whose pauses stand for so many steps each."""
    for size in sizes:
        try:
            next(work)
        except StopIteration as end:
            return end.value
        steps.done = min(steps.done + size, steps.total - 1)
        yield
    return (yield from work)


def answered(model: Any, pairs: Sequence[tuple[str, Answer | None]], mask: Mask) -> list[Example | None]:
    """Each question, with its answer where there is one, as the model reads it; None for what it cannot read.

    As of the questions that are asked later, an end that was never said has no loss.
    """
    examples: list[Example | None] = []
    for question, said in pairs:
        answer = None if said is None else model.tokenizer.decode(list(said.ids))
        own = mask if said is None or said.ended else replace(mask, end=False)
        try:
            examples.append(render_question(model, question, answer, None, own))
        except InvalidRequest:
            examples.append(None)
    return examples
