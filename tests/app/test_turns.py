"""Pieces that take turns at every checkpoint on the same models give the numbers that they give alone, bit for bit."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from app.device import Device, Priority
from app.questions import Question, answer
from explainers.attention_control import AttentionPass, Segment, only_rows
from explainers.context import ContextQuestion
from explainers.context import attribute as attribute_context
from explainers.decoding import CompletionConfig, complete, outcome_of
from explainers.evaluation import evaluate
from explainers.image_text_model import ImageTextModel
from explainers.influence.examples import Example
from explainers.influence.generic import answering
from explainers.influence.gradients import Projection, Watch, frozen
from explainers.influence.passes import plain_attention, token_log_probs
from explainers.influence.sketching import FineTune, sketching
from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm, load_image_text_lm, load_text_classifier
from explainers.methods import integrated_gradients
from explainers.sampling import Sampling
from explainers.sequence_classifier import SequenceClassifier
from explainers.suppression import PACKED_ROWS
from explainers.types import AtmanConfig, Checkpoint, Control, Image, Prompt, Span, Text
from explainers.undivided import is_undivided
from tests import tiny_models
from tests.explainers import plain_images, tiny_classifiers

pytestmark = pytest.mark.anyio

Piece: TypeAlias = Callable[[Checkpoint], Any]

LONG = (
    " ".join(["Anna lives in Oslo.", "Ben lives in Rome.", "The code for the red door is 12."] * 4) + " Anna lives in"
)
TARGET = " Oslo, in Rome"
EXAMPLES = tuple(
    Example(place, tuple((7 * place + 3 * step) % 250 for step in range(5 + place)), (3, 4), 2) for place in range(6)
)


@pytest.fixture
async def device(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Device]:
    """One on which every turn is over at the next checkpoint, with a place for everybody."""
    for module in ("device", "schedule"):
        monkeypatch.setattr(f"app.{module}.QUANTUM", 1e-9)
    monkeypatch.setitem(PACKED_ROWS, "cpu", 64)  # several passes even for tiny models
    device = Device(limit=64, places=32)
    yield device
    assert await asyncio.to_thread(device.close, 30.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load_causal_lm(tiny_models.save(tmp_path_factory.mktemp("m") / "m", "llama"))


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> ImageTextModel:
    return load_image_text_lm(tiny_models.save_image_text(tmp_path_factory.mktemp("m") / "m"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> SequenceClassifier:
    return load_text_classifier(tiny_classifiers.save(tmp_path_factory.mktemp("m") / "m"))


def questions(model: LanguageModel, prompt: Prompt) -> list[Piece]:
    """Every method, giants and small ones."""
    kinds = [
        ("atman", AtmanConfig(granularity="sentence"), {"uncertainty": True}),
        ("atman", AtmanConfig(granularity="word", log_additive=False), {}),
        ("gradient", AtmanConfig(granularity="word", target_granularity="token"), {}),
        ("screened", AtmanConfig(granularity="word"), {}),
        ("atman", AtmanConfig(granularity="sentence", threshold=0.1), {}),
    ]
    asked = [Question("m", prompt, TARGET, config, method, **more) for method, config, more in kinds]
    asked.append(Question("m", prompt, "", AtmanConfig(), generate=CompletionConfig(maximum_tokens=6)))
    return [lambda checkpoint, one=one: numbers(answer(model, one, checkpoint)) for one in asked]  # type: ignore[misc]


def numbers(found: Any) -> list[Any]:
    return [found.values, found.uncertainty, found.base_values]


def others(model: LanguageModel, prompt: Prompt) -> list[Piece]:
    """What else is asked of a language model."""
    sampled = CompletionConfig(maximum_tokens=12, n=3, sampling=Sampling(temperature=1.0, seed=3), log_probs=2)
    pieces: list[Piece] = [
        lambda checkpoint: complete(model, prompt, sampled, checkpoint),
        lambda checkpoint: evaluate(model, prompt, TARGET, checkpoint=checkpoint),
    ]
    return pieces


def tracings(model: LanguageModel) -> list[Piece]:
    """What influence does: gradients with hooks, batches with the model's own attention, answers of its own."""
    tune, projection = FineTune(model), Projection(model.network, 4)
    prompts = [example.ids for example in EXAMPLES] * 3
    context = ContextQuestion(LONG, "Where does Anna live?", "Anna lives in Oslo.")

    def sketches(checkpoint: Checkpoint) -> list[Any]:
        found = outcome_of(sketching(tune, EXAMPLES, projection, 8, checkpoint))
        return [found.rows, found.hidden, found.losses]

    return [
        sketches,
        lambda checkpoint: token_log_probs(model, EXAMPLES, 8, checkpoint),
        lambda checkpoint: outcome_of(answering(model, prompts, checkpoint)),
        lambda checkpoint: attribute_context(model, context, checkpoint).values,
    ]


def same(one: Any, other: Any) -> bool:
    """To the last bit, all the way down."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        return all(same(getattr(one, each.name), getattr(other, each.name)) for each in dataclasses.fields(one))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


async def run(device: Device, piece: Piece) -> Any:
    return await device.result(device.submit(piece, Priority()))


async def check(device: Device, pieces: list[Piece], *besides: Piece) -> None:
    """Each piece at the same time as all others, a second one like some of them, and `besides`; against each alone."""
    alone = [await run(device, piece) for piece in pieces]
    assert device.passed_on == 0
    found = await asyncio.gather(*(run(device, piece) for piece in [*pieces, *pieces[:3], *besides]))
    assert device.passed_on > 5 * len(pieces) and device.begun_again == 0
    for place, expected in enumerate([*alone, *alone[:3]]):
        assert same(expected, found[place]), f"piece {place}"


def state(network: torch.nn.Module) -> tuple[Any, ...]:
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in network.modules()]
    grads = [(parameter.requires_grad, parameter.grad is None) for parameter in network.parameters()]
    return sum(hooks), grads, network.training, network.config._attn_implementation


async def test_a_language_model(device: Device, model: LanguageModel) -> None:
    prompt, before = (Text(LONG, (Control(Span(3, 40), 0.3),)),), state(model.network)
    await check(device, [*questions(model, (Text(LONG),)), *others(model, prompt), *tracings(model)])
    assert state(model.network) == before


async def test_a_model_that_reads_images(device: Device, seeing: ImageTextModel) -> None:
    prompt = (Text("Ben lives in "), Image(plain_images.png(90, 40, 1)), Text(TARGET))
    before = state(seeing.network)
    await check(device, [*questions(seeing, prompt)[1:4], *others(seeing, prompt)])
    assert state(seeing.network) == before


async def test_a_classifier_of_texts(device: Device, classifier: SequenceClassifier) -> None:
    """Whose gradients are captum's, with hooks on the embeddings all the time."""
    text, config = "Anna lives in Oslo. The key", integrated_gradients.IntegratedGradientsConfig(steps=400)
    spans = [Span(0, 4), Span(14, 18)]

    def gradients(checkpoint: Checkpoint) -> list[Any]:
        return numbers(integrated_gradients.attribute(classifier, text, spans, config, checkpoint))

    def predictions(checkpoint: Checkpoint) -> list[Any]:
        return [(checkpoint(), classifier.predict([text, "Ben"] * size))[1] for size in range(1, 20)]

    await check(device, [gradients, predictions])


async def test_while_a_model_is_loaded(device: Device, model: LanguageModel, tmp_path_factory: Any) -> None:
    """With its self-test, which registers attention of its own."""
    folder = tiny_models.save(tmp_path_factory.mktemp("m") / "m", "mistral")
    await check(device, questions(model, (Text(LONG),))[2:4], lambda _: load_causal_lm(folder))


async def test_nothing_is_let_in_while_a_model_is_changed(model: LanguageModel) -> None:
    """Whatever hooks or freezes a shared model says so to the device."""
    row = model.inputs(model.encode((Text("Anna"),), "a"))
    attention = AttentionPass([Segment(0, 0, torch.ones(len(row.ids)))], log_additive=True, last_layer=0)
    projection = Projection(model.network, 4)
    controls = [
        attention.active(),
        only_rows([model.network.lm_head], torch.arange(1)),
        plain_attention(model),
        frozen(model.network),
        Watch(projection, (1, 1)).active(),
    ]
    for control in controls:
        assert not is_undivided()
        with control:
            assert is_undivided()
    assert not is_undivided()


async def test_every_thread_has_as_many_cores(device: Device) -> None:
    """torch keeps their number for each thread."""

    def cores(checkpoint: Checkpoint) -> int:
        for _ in range(20):
            checkpoint()
        return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert await asyncio.gather(*(run(device, cores) for _ in range(8))) == [before + 1] * 8
    finally:
        torch.set_num_threads(before)


async def test_gradients_are_recorded_by_piece(device: Device) -> None:
    """What torch is told to record stays with the piece that told it."""

    def recording(checkpoint: Checkpoint) -> bool:
        for _ in range(20):
            checkpoint()
        return torch.is_grad_enabled()

    def inference(checkpoint: Checkpoint) -> bool:
        with torch.inference_mode():
            return recording(checkpoint)

    found = await asyncio.gather(*(run(device, piece) for piece in [recording, inference] * 4))
    assert found == [True, False] * 4 and device.passed_on > 20
