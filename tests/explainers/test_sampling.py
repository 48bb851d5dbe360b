from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from explainers.sampling import Sampler, Sampling, distribution, log_softmax, most_probable, penalised

LOGITS = np.array([2.0, 0.0, 1.0, -1.0, 1.0])


def sampler(sampling: Sampling, candidate: int = 0, prompt: tuple[int, ...] = (1, 1, 4)) -> Sampler:
    return Sampler(sampling, prompt, candidate, frozenset({0}))


def drawn(sampling: Sampling, count: int) -> list[int]:
    chooser = sampler(sampling)
    return [chooser.choose(LOGITS) for _ in range(count)]


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), softmax(LOGITS)),
        (Sampling(temperature=0.5), softmax(LOGITS / 0.5)),
        (Sampling(top_k=2), softmax(np.where([1, 0, 1, 0, 0], LOGITS, -np.inf))),
        (Sampling(temperature=2.0, top_k=3), softmax(np.where([1, 0, 1, 0, 1], LOGITS / 2, -np.inf))),
        (Sampling(top_p=0.6), softmax(np.where([1, 0, 1, 0, 0], LOGITS, -np.inf))),
        (Sampling(top_p=1.0), softmax(LOGITS)),
        (Sampling(temperature=1.0, top_p=1e-9), np.eye(5)[0]),
        (Sampling(temperature=1.0, top_k=1), np.eye(5)[0]),
        # top_k cuts before top_p looks: 0.57 of all, but 0.73 of the two
        (Sampling(temperature=1.0, top_k=2, top_p=0.7), np.eye(5)[0]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_are_probable(sampling: Sampling, expected: np.ndarray) -> None:
    count = 20_000
    found = Counter(drawn(sampling, count))
    frequencies = np.array([found[token] / count for token in range(5)])
    assert np.abs(frequencies - expected).max() < 4 * np.sqrt(0.25 / count)
    assert (frequencies[expected == 0] == 0).all()


def test_greedy_takes_the_first_of_the_best() -> None:
    assert drawn(Sampling(), 5) == [0] * 5
    assert sampler(Sampling()).choose(np.array([0.0, 3.0, 3.0])) == 1
    assert drawn(Sampling(top_k=1), 5) == [0] * 5


def test_a_tiny_temperature_is_greedy() -> None:
    assert drawn(Sampling(temperature=1e-300), 5) == [0] * 5


def test_random_numbers_derive_from_the_request() -> None:
    hot = Sampling(temperature=1.0)

    def first(sampling: Sampling, **changes: object) -> list[int]:
        chooser = sampler(sampling, **changes)  # type: ignore[arg-type]
        return [chooser.choose(LOGITS) for _ in range(20)]

    assert first(hot) == first(hot) == [0, 0, 0, 0, 0, 0, 2, 0, 2, 0, 4, 1, 2, 2, 2, 0, 0, 2, 0, 0]
    assert len({tuple(each) for each in (first(hot), first(hot, candidate=1), first(hot, prompt=(1,)))}) == 3
    assert first(Sampling(temperature=1.0, seed=1)) != first(hot)


def test_penalties() -> None:
    logits, counts = np.array([2.0, -2.0]), np.array([1, 3])
    assert penalised(logits, counts, Sampling(presence_penalty=0.5)).tolist() == [1.5, -2.5]
    assert penalised(logits, counts, Sampling(frequency_penalty=0.5)).tolist() == [1.5, -3.5]
    presence = Sampling(presence_penalty=1.0, multiplicative_presence=True)
    assert penalised(logits, counts, presence).tolist() == [1.0, -4.0]
    frequency = Sampling(frequency_penalty=1.0, multiplicative_frequency=True)
    assert penalised(logits, counts, frequency).tolist() == [1.0, -16.0]
    both = Sampling(presence_penalty=1.0, frequency_penalty=0.5)
    assert penalised(logits, counts, both).tolist() == [0.5, -4.5]
    neutral = Sampling(multiplicative_presence=True, multiplicative_frequency=True)
    assert penalised(logits, counts, neutral).tolist() == [2.0, -2.0]
    large = Sampling(frequency_penalty=100.0, multiplicative_frequency=True)
    assert np.isfinite(penalised(logits, np.array([10_000, 10_000]), large)).all()


def test_what_is_penalised() -> None:
    strong = {"presence_penalty": 10.0}
    assert drawn(Sampling(**strong), 3) == [0, 2, 4]
    assert drawn(Sampling(**strong, penalties_include_prompt=True), 2) == [0, 2]
    rewarded = {"presence_penalty": -10.0, "penalties_include_prompt": True}
    assert drawn(Sampling(**rewarded, penalties_include_completion=False), 3) == [4, 4, 4]
    assert drawn(Sampling(**strong, penalties_include_completion=False), 3) == [0, 0, 0]


def test_biases_and_the_earliest_end() -> None:
    assert drawn(Sampling(logit_bias=((3, 10.0),)), 2) == [3, 3]
    assert drawn(Sampling(minimum_tokens=2), 3) == [2, 2, 0]


def test_log_softmax_and_the_most_probable() -> None:
    assert log_softmax(LOGITS).tolist() == pytest.approx(np.log(softmax(LOGITS)).tolist())
    assert log_softmax(np.array([1e4, 0.0])).tolist() == [0.0, -1e4]
    assert most_probable(LOGITS, 3) == [0, 2, 4]
    assert most_probable(LOGITS, 0) == [] and len(most_probable(LOGITS, 99)) == 5


def test_ties_at_the_edge_go_to_the_lower_id() -> None:
    ids, probabilities = distribution(LOGITS, Sampling(top_k=2))
    assert ids.tolist() == [0, 2] and probabilities.sum() == pytest.approx(1)
