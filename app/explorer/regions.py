"""What the page of predictions asks: inferences that pass a filter, and the queries behind its pictures.

Every picture is of a query that anybody can send to `POST /query`, which the page shows to be copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from app.definitions import Attribute
from app.monitored import Monitored
from explainers.errors import InvalidRequest

Query = dict[str, Any]

COMPARATORS = ("eq", "ne", "lt", "gt", "lte", "gte", "like", "NotNull", "IsNull")
ALONE = ("NotNull", "IsNull")
"""They compare with nothing."""
BESIDE = ("partner_inference_id", "inference_timestamp", "batch_id")
"""What an inference has beside its attributes, and can be filtered by."""
INTERVALS = ("hour", "day", "month", "year")
MOST_CONDITIONS = 10
PAGE_ROWS = 25
MOST_PAGES = 4_000
"""Of the table: each page passes over the rows of those before; a filter brings the others forward."""
MOST_COLUMNS = 6
"""Inputs beside the outputs in the table; the page of one inference has them all."""
MOST_SWARM = 2_000
"""Inferences in one beeswarm."""
MOST_SCORES = 100_000
MOST_CELLS = 500_000
"""Scores in one, and values in its rows: each score comes beside all inputs."""
MOST_COLOURED = 50
"""Inputs, with more of which the dots are not coloured: their values would be most of what is read."""
MOST_WORDS = 20
MOST_TIMES = 400
"""Points of a line over time."""
MOST_MEANS = 20_000
"""In a picture over time."""


@dataclass(frozen=True, slots=True)
class Condition:
    """`value` as it was typed."""

    property: str = ""
    comparator: str = "eq"
    value: str = ""


@dataclass(frozen=True, slots=True)
class Region:
    """Inferences of a model, and which of their scores: of one output by one algorithm."""

    model: Monitored
    output: str
    algorithm: str
    conditions: tuple[Condition, ...] = ()
    interval: str = "day"

    @property
    def inputs(self) -> tuple[Attribute, ...]:
        return self.model.definition.of_stage("PIPELINE_INPUT")

    @property
    def is_text(self) -> bool:
        return self.model.definition.input_type == "NLP"

    @property
    def filter(self) -> list[Query]:
        """Of the inferences."""
        return [condition_query(self.model, each) for each in self.conditions]

    @property
    def of_scores(self) -> list[Query]:
        return [
            {"property": "explainer_predicted_attribute", "comparator": "eq", "value": self.output},
            {"property": "explainer_algo", "comparator": "eq", "value": self.algorithm},
        ]


def conditions_from(
    properties: Sequence[str], comparators: Sequence[str], values: Sequence[str]
) -> tuple[Condition, ...]:
    """Those of a form that are complete: one without a value is being typed. Raises InvalidRequest for too many."""
    given = zip_longest(properties[: MOST_CONDITIONS + 1], comparators, values, fillvalue="")
    found = tuple(Condition(name, comparator or "eq", value) for name, comparator, value in given if name)
    if len(found) > MOST_CONDITIONS:
        raise InvalidRequest(f"more than {MOST_CONDITIONS} conditions")
    return tuple(each for each in found if each.value or each.comparator in ALONE)


def condition_query(model: Monitored, condition: Condition) -> Query:
    said = {"property": condition.property, "comparator": condition.comparator}
    if condition.comparator in ALONE:
        return said
    attribute = model.definition.named(condition.property)
    truth = {"true": True, "false": False}
    if attribute is not None and attribute.value_type == "BOOLEAN":
        return said | {"value": truth.get(condition.value.lower(), condition.value)}
    return said | {"value": condition.value}


def named(name: str) -> Query:
    return {"property": name}


def is_inference(inference: str) -> Query:
    return {"property": "partner_inference_id", "comparator": "eq", "value": inference}


# -- rows --------------------------------------------------------------------------------------------------------------


def columns(model: Monitored) -> list[str]:
    """Of the table: when, the outputs, the truth, and the first inputs."""
    definition = model.definition
    outputs = [each.name for each in definition.of_stage("PREDICTED_VALUE")]
    truths = [each.name for each in definition.of_stage("GROUND_TRUTH", "GROUND_TRUTH_CLASS") if not each.implicit]
    inputs = [each.name for each in definition.of_stage("PIPELINE_INPUT")]
    return ["inference_timestamp", *outputs[:MOST_COLUMNS], *truths[:MOST_COLUMNS], *inputs[:MOST_COLUMNS]]


def rows_query(region: Region, page: int) -> Query:
    """A page of the inferences, the latest first, and one row more, which tells that there are more."""
    select = [named("partner_inference_id"), *map(named, columns(region.model))]
    latest = [{"property": "inference_timestamp", "direction": "desc"}]
    whole: Query = {"select": select, "filter": region.filter, "order_by": latest}
    return whole | {"limit": PAGE_ROWS + 1, "offset": (page - 1) * PAGE_ROWS}


# -- pictures of many --------------------------------------------------------------------------------------------------

SIZE = {"function": "avgAbs", "alias": "size", "parameters": {"property": "explainer_score"}}


def swarm_query(region: Region) -> Query:
    """Scores of the latest inferences, each beside the values of the inputs, which colour the dots."""
    inputs = region.inputs
    beside = inputs if len(inputs) <= MOST_COLOURED else ()
    select = [named("explainer_attribute"), named("explainer_score"), *(named(each.name) for each in beside)]
    latest = [{"property": "inference_timestamp", "direction": "desc"}]
    whole = {"select": select, "from": "enriched", "filter": [*region.filter, *region.of_scores], "order_by": latest}
    return whole | {"limit": most_swarm(len(inputs)) * len(inputs)}


def most_swarm(inputs: int) -> int:
    """How many inferences are in a beeswarm at most: whole ones, each with a score for every input."""
    width = 2 + (inputs if inputs <= MOST_COLOURED else 0)
    return max(1, min(MOST_SWARM, MOST_SCORES // max(1, inputs), MOST_CELLS // max(1, inputs * width)))


def swarm_words(region: Region) -> str:
    """Which inferences are in the beeswarm."""
    count = most_swarm(len(region.inputs))
    words = "Of the latest inference." if count == 1 else f"Of the latest {count} inferences that have scores, at most."
    wide = len(region.inputs) > MOST_COLOURED
    return words + (f" With more than {MOST_COLOURED} inputs the dots have no colours." if wide else "")


def regional_query(region: Region) -> Query:
    parameters = {"predicted_attribute_name": region.output, "explanation_algorithm": region.algorithm}
    return {
        "select": [{"function": "regionalFeatureImportances", "parameters": parameters}],
        "from": "enriched",
        "filter": region.filter,
    }


def words_query(region: Region) -> Query:
    """The words whose scores are largest on average, wherever they stand."""
    return {
        "select": [named("explainer_token"), SIZE],
        "from": "enriched",
        "filter": [*region.filter, *region.of_scores],
        "group_by": [named("explainer_token")],
        "order_by": [{"alias": "size", "direction": "desc"}],
        "limit": MOST_WORDS,
    }


def time_query(region: Region) -> Query:
    """Of the latest times; of words the largest where one time has more of them than there is room for."""
    part = named("explainer_token" if region.is_text else "explainer_attribute")
    parameters = {"property": "inference_timestamp", "time_interval": region.interval}
    return {
        "select": [{"function": "roundTimestamp", "alias": "time", "parameters": parameters}, part, SIZE],
        "from": "enriched",
        "filter": [*region.filter, *region.of_scores],
        "group_by": [{"alias": "time"}, part],
        "order_by": [{"alias": "time", "direction": "desc"}, {"alias": "size", "direction": "desc"}],
        "limit": MOST_MEANS if region.is_text else most_times(region) * max(1, len(region.inputs)),
    }


def most_times(region: Region) -> int:
    """How many times are shown at most: whole ones, each with a mean for every input."""
    return max(1, min(MOST_TIMES, MOST_MEANS // max(1, len(region.inputs))))


def time_words(region: Region) -> str:
    """Which times are in the picture."""
    most = f"{MOST_MEANS} means of words" if region.is_text else f"{most_times(region)} times"
    return f"Of the latest {most} that have scores, at most."


@dataclass(frozen=True, slots=True)
class Picture:
    """One way to look at many inferences; `texts` and `tables`: for which models; `words`: which inferences."""

    label: str
    query: Callable[[Region], Query]
    texts: bool = True
    tables: bool = True
    words: Callable[[Region], str] | None = None


PICTURES: Mapping[str, Picture] = {
    "beeswarm": Picture("Beeswarm", swarm_query, texts=False, words=swarm_words),
    "regional": Picture("Regional importance", regional_query, texts=False),
    "words": Picture("Words that matter", words_query, tables=False),
    "time": Picture("Importance over time", time_query, words=time_words),
}


def pictures_of(region: Region) -> dict[str, Picture]:
    return {key: each for key, each in PICTURES.items() if (each.texts if region.is_text else each.tables)}


# -- pictures of one ---------------------------------------------------------------------------------------------------


def bars_query(region: Region, inference: str) -> Query:
    """The scores of one inference, beside its inputs."""
    scores = ("explainer_attribute", "explainer_score", "explainer_score_stderr")
    return {
        "select": [*map(named, scores), *(named(each.name) for each in region.inputs)],
        "from": "enriched",
        "filter": [is_inference(inference), *region.of_scores],
    }


def tokens_query(region: Region, inference: str) -> Query:
    """The scores of the words of one text."""
    parameters = {"nlp_predicted_attribute": region.output, "nlp_explainer": region.algorithm}
    return {
        "select": [{"function": "nlp_explanation", "parameters": parameters}],
        "from": "enriched",
        "filter": [is_inference(inference)],
    }
