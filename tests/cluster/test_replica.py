"""What a replica does, without a cluster around it: work by name and by value, news, errors, turns."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.cluster.parcels import Ended, News, Order, Shared, pack, unpack
from app.cluster.replica import Replica
from app.complete import Completion, Piece
from app.device import Steps
from app.listeners import Once
from app.questions import Question, answer, forecast
from app.runtime import Weights
from explainers import errors
from explainers.decoding import CompletionConfig, completing, outcome_of
from explainers.errors import ExplainerError
from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm
from explainers.outlines import outline
from explainers.sampling import Sampling
from explainers.types import AtmanConfig, Checkpoint, Elsewhere, Text
from tests import tiny_models

pytestmark = pytest.mark.anyio

PROMPT = (Text("Anna lives in Oslo. Ben lives in Rome. Anna lives in"),)
QUESTION = Question("tiny-lm", PROMPT, " Oslo", AtmanConfig(granularity="word"))
CANARY = "canaryQ7x"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_causal_lm(tiny_models.save(tmp_path_factory.mktemp("replica") / "tiny-lm"), device="cpu")


@pytest.fixture(scope="module")
def weights(model: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = next(tmp_path_factory.getbasetemp().glob("replica*/tiny-lm"))
    return Weights("causal-lm", str(folder), digest=model.digest, device="cpu")


@pytest.fixture(scope="module")
def replica(weights: Weights) -> Replica:
    return Replica(weights, "cpu", queue_limit=8, cores=1, log_level="info")


@pytest.fixture
async def far(replica: Replica, weights: Weights) -> LanguageModel:
    """The outline that a server has of the replica's model."""
    told = await replica.describe()
    assert not isinstance(told, ExplainerError)
    return outline(Path(weights.path), None, "causal-lm", told[0], Elsewhere(weights, "app", told[1]))


def sent(work: Any, *, nice: bool = False) -> tuple[Shared, Order, bytes]:
    shared = Shared()
    parcel = pack(work, shared.name_of)
    heard = tuple(listener.wanted for listener in shared.listeners)
    return shared, Order(tuple(shared.models), (), ("t", "k"), nice, None, len(shared.steps), heard), parcel


async def done(replica: Replica, work: Any, id: str = "one") -> tuple[Shared, Ended]:
    shared, order, parcel = sent(work)
    async for data in replica.work(id, order, parcel):
        told = pickle.loads(data)  # noqa: S301 - made here
        if isinstance(told, News):
            shared.hear(told)
    assert isinstance(told, Ended)
    return shared, told


async def test_an_answer_is_that_of_the_same_weights_here_to_the_bit(
    replica: Replica, far: LanguageModel, model: LanguageModel
) -> None:
    await done(replica, lambda _: None)  # tells of the passes of the test at load
    steps = Steps()
    shared, ended = await done(replica, lambda checkpoint: answer(far, QUESTION, checkpoint, steps))
    found, own = unpack(ended.value, shared.thing_of), answer(model, QUESTION, lambda: None)
    assert ended.how == "done" and found.features == own.features
    assert np.array_equal(found.values, own.values)
    assert steps.total > 1 and steps.done == steps.total - 1
    assert ended.passes.forwards == found.facts["forwards"] and ended.seconds > 0


async def test_a_parcel_holds_neither_weights_nor_places_of_the_caller(far: LanguageModel) -> None:
    _, order, parcel = sent(lambda checkpoint: answer(far, QUESTION, checkpoint))
    assert len(parcel) < 5_000 and order.models == (far.elsewhere.name if far.elsewhere else (),)


async def test_a_plan_comes_back_with_the_outline(replica: Replica, far: LanguageModel, model: LanguageModel) -> None:
    shared, ended = await done(replica, lambda _: forecast(far, QUESTION))
    found = unpack(ended.value, shared.thing_of)
    assert found.plan.model is far and found.cost == forecast(model, QUESTION).cost


async def test_listeners_hear_everything_once_and_in_order(replica: Replica, far: LanguageModel) -> None:
    heard: list[Piece | Completion] = []
    told, config = Once(heard.append), CompletionConfig(maximum_tokens=12)

    def work(checkpoint: Checkpoint) -> Any:
        return outcome_of(completing(far, PROMPT, config, checkpoint, told.from_the_start()))

    shared, ended = await done(replica, work)
    (whole,) = unpack(ended.value, shared.thing_of).items
    assert heard[-1] == whole and "".join(piece.text for piece in heard[:-1] if isinstance(piece, Piece)) == whole.text
    before = list(heard)
    await done(replica, work)  # as after the end of the replica in the middle
    assert heard == before


def every(kind: type[ExplainerError]) -> list[type[ExplainerError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in every(below))]


@pytest.mark.parametrize(
    "kind",
    [kind for kind in every(ExplainerError) if kind.__module__ == errors.__name__],
    ids=lambda kind: kind.__name__,
)
async def test_errors_arrive_as_themselves_without_a_place(
    replica: Replica, far: LanguageModel, weights: Weights, kind: type[ExplainerError]
) -> None:
    def work(_: Checkpoint) -> Any:
        error = kind(f"{weights.path}/config.json holds no {far.context_length}")
        if isinstance(error, errors.InvalidRequest):
            error.pointer = "/prompt"
        raise error

    _, ended = await done(replica, work)
    assert ended.how == "failed" and type(ended.value) is kind
    assert str(ended.value) == f"the model/config.json holds no {far.context_length}"
    assert getattr(ended.value, "pointer", "/prompt") == "/prompt"


async def test_a_defect_says_its_kind_and_nothing_else(
    replica: Replica, far: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    def work(_: Checkpoint) -> Any:
        raise LookupError(f"{CANARY} {far.digest}")

    _, ended = await done(replica, work)
    assert (ended.how, ended.value) == ("broken", "LookupError")
    assert "LookupError" in caplog.text and CANARY not in caplog.text


async def test_who_stops_listening_frees_the_device(replica: Replica, far: LanguageModel) -> None:
    config = CompletionConfig(maximum_tokens=200, n=32, ends=False, sampling=Sampling(temperature=1.0))  # seconds
    heard: list[Any] = []
    told = Once(heard.append)
    _, order, parcel = sent(lambda checkpoint: outcome_of(completing(far, PROMPT, config, checkpoint, told.hear)))
    events: AsyncIterator[bytes] = replica.work("stopped", order, parcel)
    await anext(events)
    assert replica.runtime.device.running
    await events.aclose()  # type: ignore[attr-defined]
    for _ in range(6000):
        if not replica.runtime.device.running:
            break
        await asyncio.sleep(0.01)
    assert not replica.runtime.device.running and not replica.urgency


async def test_nice_work_waits_until_somebody_waits_for_it(replica: Replica, far: LanguageModel) -> None:
    _, order, parcel = sent(lambda checkpoint: answer(far, QUESTION, checkpoint), nice=True)
    events = replica.work("nice", order, parcel)
    first = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    assert replica.urgency["nice"].nice
    await replica.hurry("nice")
    await replica.hurry("of another replica")
    assert not replica.urgency["nice"].nice
    await first
    async for _ in events:
        pass


async def test_a_full_queue_says_when_to_come_back(replica: Replica, far: LanguageModel) -> None:
    replica.runtime.device.limit, before = 0, replica.runtime.device.limit
    try:
        _, ended = await done(replica, lambda checkpoint: answer(far, QUESTION, checkpoint))
    finally:
        replica.runtime.device.limit = before
    assert ended.how == "full" and ended.value >= 1


async def test_a_model_that_is_refused_says_so_to_everybody(weights: Weights, far: LanguageModel) -> None:
    changed = Replica(weights._replace(digest="sha256:other"), "cpu", queue_limit=8, cores=1, log_level="info")
    refusal = await changed.describe()
    assert isinstance(refusal, errors.MissingCapability) and "registered as sha256:other" in str(refusal)
    _, ended = await done(changed, lambda checkpoint: answer(far, QUESTION, checkpoint))
    assert ended.how == "failed" and str(ended.value) == str(refusal)
