"""Context attribution: how a context is cut and put together again, and the whole of it done once more by hand."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Lasso
from sklearn.preprocessing import StandardScaler

from explainers.context import (
    FEWEST,
    MOST,
    ContextQuestion,
    attribute,
    attributing,
    fitting_ablations,
    kept_text,
    prompt_text,
    segments_of,
    sources_of,
)
from explainers.errors import ContextLengthExceeded, InvalidRequest
from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm
from explainers.types import Span, Text
from tests import tiny_models
from tests.explainers import brute_force
from tests.explainers.odd_texts import TEXTS

CONTEXT = "Anna lives in Oslo.  Ben lives in Rome!\nThe key is in the red box. Oslo is in Norway.\n\nIt is cold. Is it?"
QUESTION = ContextQuestion(CONTEXT, "Where is Anna?", " She is in Oslo. It is cold there.")
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}<assistant>"


def texts(context: str, granularity: str = "sentence") -> list[str]:
    return [context[s.start : s.stop] for s in sources_of(context, granularity)]  # type: ignore[arg-type]


def test_sources() -> None:
    sentences = ["Anna lives in Oslo.", "Ben lives in Rome!", "The key is in the red box.", "Oslo is in Norway."]
    assert texts(CONTEXT) == [*sentences, "It is cold.", "Is it?"]
    assert texts(" \n a b\nc \n\t\n\n d\r\n\r\n ", "paragraph") == ["a b\nc", "d"]
    assert texts("no end\nnext") == ["no end", "next"]


@pytest.mark.parametrize("granularity", ["sentence", "paragraph"])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_sources_of_odd_texts(text: str, granularity: str) -> None:
    spans = sources_of(text, granularity)  # type: ignore[arg-type]
    pieces = texts(text, granularity)
    assert all(piece and piece == piece.strip() for piece in pieces) and bool(pieces) == bool(text.strip())
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert kept_text(text, spans, np.ones(len(spans))) == text.strip()


@given(st.text(), st.randoms())
def test_a_kept_text_is_made_of_its_sources(text: str, random: object) -> None:
    spans = sources_of(text, "sentence")
    kept = np.array([random.random() < 0.5 for _ in spans])  # type: ignore[attr-defined]
    pieces = [text[span.start : span.stop] for span, keep in zip(spans, kept, strict=True) if keep]
    left = kept_text(text, spans, kept)
    for piece in pieces:
        assert left.startswith(piece)
        left = left[len(piece) :].lstrip()
    assert left == ""


def test_what_is_kept_keeps_its_separators() -> None:
    spans = sources_of(CONTEXT, "sentence")
    assert (
        kept_text(CONTEXT, spans, np.array([0, 1, 0, 1, 1, 0]))
        == "Ben lives in Rome! Oslo is in Norway.\n\nIt is cold."
    )
    assert kept_text(CONTEXT, spans, np.zeros(6)) == ""


def test_segments() -> None:
    assert segments_of("  The mill. It is old.\n", None) == [Span(2, 11), Span(12, 22)]
    assert segments_of("old, old", "old") == [Span(0, 3)]
    with pytest.raises(InvalidRequest, match="must occur in the response"):
        segments_of("The mill", "the mill")


def test_prompts(llama: LanguageModel, tmp_path: Path) -> None:
    assert prompt_text(llama, "a. b.", "c?") == "a. b.\nc?"
    assert (prompt_text(llama, "", "c?"), prompt_text(llama, "a.", ""), prompt_text(llama, "", "")) == ("c?", "a.", "")
    folder = tiny_models.save(tmp_path / "chat")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    model = load_causal_lm(folder)
    assert prompt_text(model, "a. b.", "c?") == "<user>a. b.\nc?\n<assistant>"  # <s> comes from the tokenizer
    found = attribute(model, replace(QUESTION, ablations=32))
    assert found.values.shape == (2, 6)


def by_hand(model: LanguageModel, question: ContextQuestion, kept: np.ndarray, spans: list[Span]) -> np.ndarray:
    """Values (G, F) by one plain pass for each choice and scikit-learn; shares the choices alone."""
    sources = sources_of(question.context, question.granularity)
    outcomes = []
    for choice in kept:
        text = kept_text(question.context, sources, choice)
        prompt = f"{text}\n{question.query}" if text and question.query else text or question.query
        sequence = model.encode((Text(prompt),), question.response)
        rows = brute_force.logits(model, sequence.read, np.ones(sequence.positions))[-len(sequence.target) :]
        p = rows.softmax(-1)[range(len(sequence.target)), sequence.target].numpy().clip(1e-7, 1 - 1e-7)
        logits = np.log(p / (1 - p))
        own = [[t.start < s.stop and t.stop > s.start for t in sequence.target_spans] for s in spans]
        outcomes.append([logits[inside].mean() for inside in own])
    scaler = StandardScaler()
    columns, line = scaler.fit_transform(kept), Lasso(alpha=0.01, tol=1e-10, max_iter=10**6)
    return np.array([np.tanh(line.fit(columns, outcome).coef_ / scaler.scale_) for outcome in np.array(outcomes).T])


@pytest.mark.parametrize("highlight", [None, "is", "Oslo. It", QUESTION.response])
def test_the_whole_of_it_by_hand(llama: LanguageModel, highlight: str | None) -> None:
    question = replace(QUESTION, highlight=highlight, ablations=64)
    found = attribute(llama, question)
    kept = (np.arange(64)[:, None] >> np.arange(6) & 1).astype(float)  # all choices of six sources
    spans = [target.span for target in found.targets if target.span]
    assert [(span.start, span.stop) for span in spans] == {
        None: [(1, 16), (17, 34)], "is": [(5, 7)], "Oslo. It": [(11, 19)], QUESTION.response: [(0, 34)],
    }[highlight]  # fmt: skip
    np.testing.assert_allclose(found.values, by_hand(llama, question, kept, spans), atol=1e-3)
    assert [feature.name for feature in found.features] == texts(CONTEXT)
    assert found.facts["samples"] == 64 and found.facts["diagnostics"]["num_ablations"] == 64


@pytest.mark.parametrize("query", ["Where?", ""])
def test_one_source_is_the_difference_that_it_makes(llama: LanguageModel, query: str) -> None:
    question = ContextQuestion(" Anna lives in Oslo. ", query, " Oslo")
    logits = {}
    for prompt in ("\n".join(filter(None, ["Anna lives in Oslo.", query])), query):
        sequence = llama.encode((Text(prompt),), " Oslo")
        rows = brute_force.logits(llama, sequence.read, np.ones(sequence.positions))[-len(sequence.target) :]
        p = rows.softmax(-1)[range(len(sequence.target)), sequence.target].numpy()
        logits[prompt] = float(np.log(p / (1 - p)).mean())
    kept, removed = logits.values()
    found = attribute(llama, question)
    assert found.values == pytest.approx(np.array([[np.tanh(kept - removed)]]), abs=1e-4)
    assert found.facts["samples"] == 2 and found.features[0].place == Span(1, 20)
    diagnostics = found.facts["diagnostics"]
    assert diagnostics["num_sources"] == 1 and diagnostics["scaler_stats"]["mean"] == 0.5
    assert diagnostics["y_vector_stats"]["max"] == pytest.approx(max(kept, removed), abs=1e-4)


def test_the_same_question_has_the_same_answer(llama: LanguageModel) -> None:
    question = replace(QUESTION, context=" ".join(f"Key {n} is red." for n in range(12)))
    first, again = attribute(llama, question), attribute(llama, question)
    assert (first.values == again.values).all() and first.facts["samples"] == FEWEST
    assert (np.abs(first.values) < 1).all() and np.isfinite(first.values).all()
    sentence = attribute(llama, replace(question, highlight="She is in Oslo."))
    assert sentence.values[0] == pytest.approx(first.values[0], abs=1e-6)
    assert question.seed != replace(question, response=" She.").seed == replace(question, response=" She.").seed
    assert not np.signbit(first.values[first.values == 0]).any()


def test_ablations_grow_with_the_question() -> None:
    contexts = [" ".join(f"Key {n} is red." for n in range(count)) for count in (1, 5, 20, 100, 1000)]
    for top_k in (1, 5, 30):
        counts = [fitting_ablations(context, "sentence", top_k) for context in contexts]
        assert counts == sorted(counts) and all(FEWEST <= count <= MOST and count % 2 == 0 for count in counts)
    assert [fitting_ablations(contexts[2], "sentence", k) for k in (1, 5, 10, 20, 100)] == [32, 88, 176, 256, 256]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"context": " \n"}, "/context"),
        ({"response": " \t"}, "/response"),
        ({"highlight": "Rome"}, "/highlight"),
        ({"ablations": 31}, "/num_ablations"),
        ({"context": "Anna. " * 300}, "/context"),
        ({"response": "Anna. " * 300}, "/context"),
        ({"query": "Anna. " * 300}, "/context"),
        ({"context": "Anna. " * 300 * 256}, "/context"),
    ],
    ids=["context", "response", "highlight", "ablations", "long", "long-response", "long-query", "very-long"],
)
def test_what_cannot_be_answered(llama: LanguageModel, change: dict[str, str], pointer: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        attribute(llama, replace(QUESTION, **change))  # type: ignore[arg-type]
    assert caught.value.pointer == pointer
    assert isinstance(caught.value, ContextLengthExceeded) == ("Anna" in str(change))
    assert "Anna" not in str(caught.value)


def test_a_model_without_start_needs_a_query(tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path / "bare", "qwen2", start_token=False)
    (folder / "tokenizer_config.json").write_text("{}")
    model = load_causal_lm(folder)
    with pytest.raises(InvalidRequest, match="no start token") as caught:
        attribute(model, replace(QUESTION, query=""))
    assert caught.value.pointer == "/query"
    assert attribute(model, QUESTION).values.shape == (2, 6)


def test_it_pauses_after_each_pass(llama: LanguageModel) -> None:
    passes: list[None] = []
    steps = attributing(llama, QUESTION, lambda: passes.append(None))
    assert [len(passes) for _ in steps] == list(range(1, len(passes) + 1))


def test_pauses_are_not_its_time(llama: LanguageModel) -> None:
    steps, started = attributing(llama, QUESTION), time.perf_counter()
    try:
        while True:
            next(steps)
            time.sleep(0.2)
    except StopIteration as end:
        found, taken = end.value, time.perf_counter() - started
    assert 0 < found.facts["seconds"] <= taken - 0.2 * found.facts["forwards"]
