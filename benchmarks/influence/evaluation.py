"""All figures of one fine-tuned model of the bed, as plain numbers for a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.influence import baselines, metrics
from benchmarks.influence.bed import Bed, Query, QueryKind
from benchmarks.influence.metrics import Estimate
from benchmarks.influence.own import Own, own
from benchmarks.influence.retraining import halves, losses_after, retrained, without
from benchmarks.influence.training import losses
from explainers.influence.levels import LEAST_LIFT, LEVELS, Level, Thresholds
from explainers.influence.tracing import Traced

Floats = NDArray[np.float64]
Scores = Mapping[str, Floats]
FIRST_ORDER = 100
"""Seed of the first run of each retraining, the next one's is one more: none has the seed of the model itself."""
TOGETHER = 5
"""Queries whose pairs are removed in one retraining: what others lose with one query's pairs is little."""
SPLITS = 1000
"""Of the generic questions into those that make thresholds and those that test them."""
FILTERED = 10
"""Pairs without a level that are removed for a query, drawn from all of them."""
ELSEWHERE = ("__main__", "cost", "evaluation", "kronfluence_oracle", "metrics", "own", "retraining")
"""Files here on which other methods' scores do not depend."""
IRRELEVANT: tuple[QueryKind, ...] = ("known", "forgotten", "unknown")


def all_scores(bed: Bed, queries: Sequence[Query], made: Own, *, checkpoints: bool) -> dict[str, Floats]:
    found = {"BM25": baselines.lexical(bed, queries), "hidden state cosine": baselines.hidden_cosine(bed, queries)}
    found |= kept(bed, "gradients", lambda: baselines.gradient_scores(bed, queries))
    if checkpoints:
        found |= kept(bed, "checkpoints", lambda: {"TracInCP": baselines.traced(bed, queries)})
    found |= made.scores(queries)
    states = found["ours, hidden states alone"]
    # The most that a second look at a shortlist can give, as two forward passes along EK-FAC's direction would.
    return {**found, "impact with exact EK-FAC": found["EK-FAC normed"] * np.maximum(states, 0)}


def kept(bed: Bed, name: str, score: Callable[[], dict[str, Floats]]) -> dict[str, Floats]:
    """The scores of other methods, from the cache while neither the model nor any line of code here has changed."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    held = [*(file for file in sources if file.stem not in ELSEWHERE), bed.folder / f"{bed.kind}.safetensors"]
    digest = sha256(b"".join(sha256(file.read_bytes()).digest() for file in held)).hexdigest()[:16]
    place = bed.folder / f"{bed.kind}-{name}-{digest}.npz"
    if not place.exists():
        beside = place.with_suffix(".part.npz")
        np.savez(beside, **score())  # type: ignore[arg-type]
        beside.rename(place)
    with np.load(place) as scores:
        return dict(scores)


def evaluated(bed: Bed, retrainings: int, runs: int, removed: int, *, checkpoints: bool) -> dict[str, Any]:
    """`retrainings` on halves of the set, `runs` times each, `removed` queries' pairs taken out.

    Raises ValueError for a model that learnt no fact: there is nothing to ask it.
    """
    made, right, poisoned = own(bed, calibrating(bed)), bed.of("right"), bed.of("poison")
    if not (right and poisoned):
        raise ValueError("fine-tuning taught the model no fact, or none of the poisoned ones")
    scores = all_scores(bed, [*right, *poisoned], made, checkpoints=checkpoints)
    found: dict[str, Any] = {
        "queries": counted(bed),
        "sources": {name: sources(bed, each, right, poisoned) for name, each in scores.items()},
        "levels": levels(made, bed),
    }
    about_right = {name: each[: len(right)] for name, each in scores.items()}
    if retrainings:
        found["lds"] = forecasts(bed, right, about_right, retrainings, runs)
    if removed:
        found["removal"] = removals(bed, made, right[:removed], about_right)
    return found


def levels_of(bed: Bed) -> dict[str, Any]:
    """What the levels hold, alone."""
    return {"queries": counted(bed), "levels": levels(own(bed, calibrating(bed)), bed)}


def counted(bed: Bed) -> dict[str, int]:
    """Queries of each kind."""
    return dict(Counter(query.kind for query in bed.queries))


def calibrating(bed: Bed) -> Sequence[Query]:
    return bed.of("generic")[::2]


def relevant(bed: Bed, queries: Sequence[Query]) -> NDArray[np.bool_]:  # (Q, n)
    found = np.zeros((len(queries), len(bed.pairs)), dtype=bool)
    for row, query in enumerate(queries):
        found[row, list(query.relevant)] = True
    return found


def sources(bed: Bed, scores: Floats, right: Sequence[Query], poisoned: Sequence[Query]) -> dict[str, Any]:
    """How well the pairs that state the fact are found, and the wrong ones behind a poisoned answer."""
    wanted, first = relevant(bed, right), metrics.reciprocal_ranks(scores[len(right) :], relevant(bed, poisoned))
    outliers = np.array([pair.origin == "outlier" for pair in bed.pairs])
    asked = scores[: len(right)]
    return {
        "MRR": rounded(metrics.estimate(metrics.reciprocal_ranks(asked, wanted))),
        "R@10": rounded(metrics.estimate(metrics.recalls(asked, wanted))),
        "R-precision": rounded(metrics.estimate(metrics.r_precisions(asked, wanted))),
        "outliers in the top 5": rounded(float(metrics.shares_at_top(asked, outliers).mean())),
        "AUC": rounded(float(metrics.areas(asked, wanted).mean())),
        "poison MRR": rounded(float(first.mean())),
        "poison first": rounded(float((first == 1).mean())),
    }


def forecasts(bed: Bed, queries: Sequence[Query], scores: Scores, count: int, runs: int) -> dict[str, Any]:
    """LDS of each method against the mean of `runs` on each of `count` halves, and what two runs have in common.

    A mean, for the order of training is no pair's influence (TRAK, arXiv 2303.14186, section 2.3).
    """
    held = halves(bed, count)
    after = runs_of(bed, queries, held, runs)
    oracle = {"knowing the sources": relevant(bed, queries).astype(float)}
    methods = {
        name: rounded(metrics.datamodelling(each, held, after.mean(0))) for name, each in {**scores, **oracle}.items()
    }
    found = {"retrainings": count, "runs": runs, "methods": methods}
    if runs > 1:
        found |= {"two runs, r": rounded(metrics.agreement(after)), "ceiling": rounded(metrics.ceiling(after))}
    return found


def runs_of(bed: Bed, queries: Sequence[Query], held: NDArray[np.bool_], runs: int) -> Floats:  # (runs, R, Q)
    """Loss of each query's answer after each run on each of the subsets `held` (R, n)."""
    return np.array([losses_after(bed, queries, held, FIRST_ORDER + run) for run in range(runs)])


def levels(made: Own, bed: Bed) -> dict[str, Any]:
    """What each level holds: of relevant questions, and of those that no pair should answer."""
    right, other = taught(bed, bed.of("right")), {kind: bed.of(kind) for kind in IRRELEVANT}
    answers = [made.traced(query) for query in right]
    tops = {kind: [_top(made.traced(query)) for query in asked] for kind, asked in other.items()}
    return {
        "relevant questions": len(right),
        "relevant": {f"{level} or above": _hits(right, answers, place) for place, level in enumerate(LEVELS[:3])},
        "precision": {level: _precision(right, answers, level) for level in LEVELS[:3]},
        "irrelevant": generic_levels(made, bed) | {kind: _reached(found) for kind, found in tops.items() if found},
    }


def taught(bed: Bed, queries: Sequence[Query]) -> list[Query]:
    """Those whose answer fine-tuning made: what the base says does not state the value already."""
    before = bed.answers([query.question for query in queries], bed.base)
    facts = [bed.world.facts[query.fact] for query in queries if query.fact is not None]
    return [query for query, fact, said in zip(queries, facts, before, strict=True) if fact.value not in said.split()]


def generic_levels(made: Own, bed: Bed) -> dict[str, dict[str, float]]:
    """What generic questions reach: all, and those that a damaged model does not answer with a value from a pair."""
    queries, values = bed.of("generic"), {value for some in bed.world.values for value in some}
    places, tops = generic_tops(made, queries)
    taught = np.array([not values.isdisjoint(query.answer.split()) for query in queries])
    others = [top for place, top in zip(places, tops, strict=True) if not taught[place]]
    return {"generic": _reached(tops), "generic, without a value of ours": _reached(others)}


def generic_tops(made: Own, queries: Sequence[Query]) -> tuple[list[int], list[Level]]:
    """Each generic question and its highest level, half of them tested after the other half made the thresholds."""
    each, lifts = made.searched(queries)
    best, answered = np.array([one.scores.max() for one in each]), lifts >= LEAST_LIFT
    alike = [made.alike(query, one) for query, one in zip(queries, each, strict=True)]
    draw, places, found = np.random.default_rng(0), list[int](), list[Level]()
    for _ in range(SPLITS):
        tested, calibration = np.split(draw.permutation(len(queries)), 2)
        reached, marked = np.sort(best[calibration]), np.sort(best[calibration[answered[calibration]]])
        thresholds = replace(made.thresholds, generic=tuple(reached.tolist()), made=tuple(marked.tolist()))
        places += tested.tolist()
        found += [
            _highest(thresholds, each[place].scores, alike[place]) if answered[place] else "irrelevant"
            for place in tested
        ]
    return places, found


def _highest(thresholds: Thresholds, scores: Floats, alike: NDArray[np.bool_]) -> Level:
    near = scores > thresholds.low
    return min(thresholds.levels(scores[near], alike[near]), key=LEVELS.index, default="irrelevant")


def _top(answer: Traced) -> Level:
    return answer.results[0].level if answer.results else "irrelevant"


def _hits(queries: Sequence[Query], answers: Sequence[Any], place: int) -> float:
    """Share of questions with a right pair at this level or above."""
    accepted = LEVELS[: place + 1]
    found = [
        any(result.level in accepted and result.record in query.relevant for result in answer.results)
        for query, answer in zip(queries, answers, strict=True)
    ]
    return rounded(float(np.mean(found)))


def _precision(queries: Sequence[Query], answers: Sequence[Any], level: Level) -> dict[str, float]:
    told = [
        result.record in query.relevant
        for query, answer in zip(queries, answers, strict=True)
        for result in answer.results
        if result.level == level
    ]
    return {
        "right": rounded(float(np.mean(told))) if told else 0.0,
        "pairs per question": rounded(len(told) / len(queries)),
    }


def _reached(tops: Sequence[Level]) -> dict[str, float]:
    """Share of questions with a result at a level or above."""
    return {
        f"{level} or above": rounded(float(np.mean([top in LEVELS[: place + 1] for top in tops])))
        for place, level in enumerate(LEVELS[:3])
    }


def removals(bed: Bed, made: Own, queries: Sequence[Query], scores: Scores) -> dict[str, Any]:
    """Rise of the queries' losses (nats) after retraining without the first hundredth of a list, or without a level."""
    draw = np.random.default_rng(bed.seed)
    lists = {name: metrics.removals(scores[name][: len(queries)]) for name in ("ours, list", "ours, impact", "BM25")}
    lists["random"] = metrics.removals(draw.random((len(queries), len(bed.pairs))))
    for level in LEVELS[:3]:
        lists[f"level {level}"] = [members(made, query, level) for query in queries]
    lists["filtered out"] = [draw.choice(members(made, query, "irrelevant"), FILTERED, False) for query in queries]
    counts = {name: rounded(float(np.mean([len(part) for part in each]))) for name, each in lists.items()}
    return {
        name: {"pairs": counts[name], "rise": rounded(metrics.estimate(rises(bed, queries, each)))}
        for name, each in lists.items()
    }


def members(made: Own, query: Query, level: Level) -> NDArray[np.int_]:
    """All pairs of a level, identical ones too; those of the last level are in no result."""
    results = made.traced(query).results
    firsts = [result.record for result in results if level in (result.level, "irrelevant")]
    return np.flatnonzero(np.isin(made.index.groups, firsts, invert=level == "irrelevant"))


def rises(bed: Bed, queries: Sequence[Query], removed: Sequence[NDArray[np.int_]]) -> Floats:  # (Q,)
    """Loss after minus loss before, a few queries at a time."""
    found = []
    for start in range(0, len(queries), TOGETHER):
        rows = [query.row for query in queries[start : start + TOGETHER]]
        held = without(bed, np.unique(np.concatenate(removed[start : start + TOGETHER])).tolist())
        weights = retrained(bed, held, FIRST_ORDER)
        found.append((losses(bed.tuned, rows, weights) - losses(bed.tuned, rows)).double().numpy())
    return np.concatenate(found)


def rounded(value: Estimate | float) -> Any:
    """Three digits; an estimate as its value and its standard errors."""
    if isinstance(value, Estimate):
        return [None if part is None else round(part, 3) for part in astuple(value)]
    return round(value, 3)
