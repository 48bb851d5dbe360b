"""Questions about drift: between a base and a target, both rows of a model. All that needs no model is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from storage.errors import InvalidQuery
from storage.query.ast import EVERYTHING, Condition, Name, Property, SourceName
from storage.query.body import Place, shown
from storage.query.divergence import DIVERGENCES
from storage.query.grammar import IGNORED, Reader

SOURCES = ("inference", "reference", "ground_truth")
TEST, THRESHOLDS = "HypothesisTest", "Thresholds"
METRICS = (*DIVERGENCES, TEST, THRESHOLDS)
INTERVALS = ("minute", "hour", "day", "month", "year")
BATCH = "batch_id"
ROLLUPS = (*INTERVALS, BATCH)
NUM_BINS, MOST_PROPERTIES = 20, 100
PREDICTED_CLASS, TRUTH_CLASS = "predictedClass", "groundTruthClass"
SHARED = ("num_bins", "base", "target", "group_by", "rollup", *IGNORED)
MEMBERS = ("properties", "predicted_classes", "ground_truth_classes", "metric", *SHARED)


@dataclass(frozen=True, slots=True)
class Side:
    """Which rows."""

    source: SourceName
    filter: tuple[Condition, ...]
    pointer: str


@dataclass(frozen=True, slots=True)
class ClassList:
    """The classes whose shares are compared, None for all; `key` names the figure in the answer."""

    key: str
    names: tuple[str, ...] | None
    pointer: str


@dataclass(frozen=True, slots=True)
class Drift:
    """`metric` is None for the table of bins; `target` only for Thresholds."""

    subjects: tuple[Property | ClassList, ...]
    num_bins: int
    metric: str | None
    base: Side
    target: Side | None
    group_by: tuple[Name, ...]
    rollup: str | None


def parse_drift(body: Mapping[str, Any]) -> Drift:
    """Raises InvalidQuery with the place of the first mistake."""
    members = Place(body).members(MEMBERS, "a drift query")
    subjects: tuple[Property | ClassList, ...] = (
        *_properties(members),
        *_classes(members, "predicted_classes", PREDICTED_CLASS),
        *_classes(members, "ground_truth_classes", TRUTH_CLASS),
    )
    if not subjects:
        raise InvalidQuery("needs properties, predicted_classes or ground_truth_classes")
    metric = _needed(members, "metric").choice(METRICS, "metric")
    return _shared(members, subjects, metric)


def parse_bucket_table(body: Mapping[str, Any]) -> Drift:
    """As `parse_drift`, of one property and without a metric."""
    members = Place(body).members(("property", *SHARED), "a table of bins")
    named = _needed(members, "property")
    return _shared(members, (Property(named.name(), named.pointer),), None)


def _shared(members: dict[str, Place], subjects: tuple[Property | ClassList, ...], metric: str | None) -> Drift:
    reader = Reader()
    target = _given(members, "target")
    if metric == THRESHOLDS and target is not None:
        raise InvalidQuery("Thresholds are of the base alone", target.pointer)
    rollup = _given(members, "rollup")
    if metric == THRESHOLDS and rollup is not None:
        raise InvalidQuery("Thresholds have no target to roll up", rollup.pointer)
    bins = _given(members, "num_bins")
    drift = Drift(
        subjects=subjects,
        num_bins=NUM_BINS if bins is None else bins.bins(),
        metric=metric,
        base=_side(reader, _needed(members, "base")),
        target=None if metric == THRESHOLDS else _side(reader, _needed(members, "target")),
        group_by=_groups(members),
        rollup=None if rollup is None else rollup.choice(ROLLUPS, "rollup"),
    )
    _distinct(drift)
    return drift


def _side(reader: Reader, place: Place) -> Side:
    members = place.members(("source", "filter"), f"'{place.pointer.removeprefix('/')}'")
    source = _needed(members, "source", place.pointer).choice(SOURCES, "source")
    given = _given(members, "filter")
    conditions = () if given is None else tuple(map(reader.condition, given.entries()))
    if named := next((each.target for each in conditions if each.target.is_alias), None):
        raise InvalidQuery("must be a property", named.pointer)
    return Side(cast("SourceName", source), conditions, place.pointer)


def _properties(members: dict[str, Place]) -> list[Property]:
    given = _given(members, "properties")
    return [] if given is None else [Property(each.name(), each.pointer) for each in given.entries(MOST_PROPERTIES)]


def _classes(members: dict[str, Place], name: str, key: str) -> list[ClassList]:
    given = _given(members, name)
    if given is None:
        return []
    names = tuple(each.name() for each in given.entries())
    if not names:
        raise InvalidQuery("must not be empty", given.pointer)
    return [ClassList(key, None if EVERYTHING in names else names, given.pointer)]


def _groups(members: dict[str, Place]) -> tuple[Name, ...]:
    given = _given(members, "group_by")
    if given is None:
        return ()
    named = [_needed(each.members(("property",), "a key"), "property", each.pointer) for each in given.entries()]
    return tuple(Name(each.name(), False, each.pointer) for each in named)


def _distinct(drift: Drift) -> None:
    """Every key of a row names one thing."""
    seen = {"rollup"} if drift.rollup is not None else set()
    named = [(each.name, each.pointer) for each in drift.group_by]
    named += [(key_of(each), each.pointer) for each in drift.subjects if drift.metric is not None]
    for name, pointer in named:
        if name in seen:
            raise InvalidQuery(f"two members of a row are called {shown(name)}", pointer)
        seen.add(name)


def key_of(subject: Property | ClassList) -> str:
    """What a subject is called in the answer."""
    return subject.name if isinstance(subject, Property) else subject.key


def _given(members: dict[str, Place], name: str) -> Place | None:
    """None where it is missing or null."""
    return members[name] if name in members and members[name].value is not None else None


def _needed(members: dict[str, Place], name: str, pointer: str = "") -> Place:
    if name not in members:
        raise InvalidQuery(f"'{name}' is missing", pointer)
    return members[name]
