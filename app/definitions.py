"""What a monitored model's rows consist of: its attributes, those that follow from others included.

A definition is fixed when the model is created. Attributes that nobody declares but everybody needs are derived: the
other class of a model that gives one of two, and a 0/1 ground truth per class beside the class itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from explainers.errors import InvalidRequest

InputType: TypeAlias = Literal["TABULAR", "NLP", "IMAGE", "TIME_SERIES"]
OutputType: TypeAlias = Literal[
    "MULTICLASS", "MULTILABEL", "REGRESSION", "OBJECT_DETECTION", "TOKEN_SEQUENCE", "RANKED_LIST"
]
ValueType: TypeAlias = Literal[
    "BOOLEAN",
    "FLOAT",
    "INTEGER",
    "STRING",
    "TIMESTAMP",
    "UNSTRUCTURED_TEXT",
    "IMAGE",
    "BOUNDING_BOX",
    "TOKENS",
    "TOKEN_LIKELIHOODS",
    "RANKED_LIST",
    "ARRAY(STRING)",
    "TIME_SERIES",
]
Stage: TypeAlias = Literal[
    "PIPELINE_INPUT",
    "PREDICT_FUNCTION_INPUT",
    "NON_INPUT_DATA",
    "PREDICTED_VALUE",
    "GROUND_TRUTH",
    "GROUND_TRUTH_CLASS",
]
NUMBERS: frozenset[ValueType] = frozenset({"BOOLEAN", "FLOAT", "INTEGER", "TIMESTAMP"})
"""Kept as numbers; all else as text, lists as their JSON."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
MOST_ATTRIBUTES = 2_000
TRUTHS: tuple[Stage, ...] = ("GROUND_TRUTH", "GROUND_TRUTH_CLASS")


@dataclass(frozen=True, slots=True)
class Attribute:
    """One column. `link` names its counterpart: the ground truth of a prediction, and the other way round.

    `details` is everything else that was declared: labels, ranges, categories, bins.
    """

    name: str
    value_type: ValueType
    stage: Stage
    position: int
    link: str | None = None
    gt_class_link: str | None = None
    positive: bool = False
    implicit: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_number(self) -> bool:
        return self.value_type in NUMBERS


@dataclass(frozen=True, slots=True)
class Definition:
    """`details` is everything else that was declared of the model.

    One that came with a predictor is `offered`: it becomes that of whoever first registers the same.
    """

    partner_model_id: str
    input_type: InputType
    output_type: OutputType
    attributes: tuple[Attribute, ...]
    is_batch: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)
    offered: bool = False

    def of_stage(self, *stages: Stage) -> tuple[Attribute, ...]:
        """In order of their positions."""
        return tuple(sorted((a for a in self.attributes if a.stage in stages), key=lambda a: a.position))

    def named(self, name: str) -> Attribute | None:
        return next((attribute for attribute in self.attributes if attribute.name == name), None)


def definition_record(definition: Definition) -> dict[str, Any]:
    """As a plain JSON value."""
    return asdict(definition)


def definition_from(record: Mapping[str, Any]) -> Definition:
    """The inverse of `definition_record`."""
    attributes = tuple(Attribute(**attribute) for attribute in record["attributes"])
    return Definition(**{**record, "attributes": attributes})


def completed(definition: Definition) -> Definition:
    """With every attribute that follows from the declared ones; raises InvalidRequest for what cannot be."""
    _check(definition.attributes)
    whole = _with_other_class(definition)
    return replace(whole, attributes=_linked(_with_truths(whole.attributes)))


def in_places(attributes: Sequence[Attribute], declared: Sequence[int | None]) -> tuple[Attribute, ...]:
    """Attributes at their declared positions; those without one take the next free ones of their stage, in order."""
    taken: dict[str, set[int]] = {}
    for attribute, position in zip(attributes, declared, strict=True):
        if position is not None and position in taken.setdefault(attribute.stage, set()):
            pointer = f"/attributes/{attributes.index(attribute)}/position"
            raise InvalidRequest(f"two attributes of stage {attribute.stage} have position {position}", pointer)
        if position is not None:
            taken[attribute.stage].add(position)
    placed = []
    for attribute, position in zip(attributes, declared, strict=True):
        used = taken.setdefault(attribute.stage, set())
        free = next(n for n in range(len(used) + 1) if n not in used) if position is None else position
        used.add(free)
        placed.append(replace(attribute, position=free))
    return tuple(placed)


def _check(attributes: Sequence[Attribute]) -> None:
    if not 0 < len(attributes) <= MOST_ATTRIBUTES:
        raise InvalidRequest(f"a model has 1 to {MOST_ATTRIBUTES} attributes", "/attributes")
    seen: set[str] = set()
    for index, attribute in enumerate(attributes):
        pointer = f"/attributes/{index}/name"
        if not NAME.fullmatch(attribute.name):
            raise InvalidRequest("must be up to 255 letters, digits and _, with no digit first", pointer)
        if attribute.name in RESERVED:
            raise InvalidRequest("is the name of a property that every inference has", pointer)
        if attribute.name in seen:
            raise InvalidRequest("another attribute has this name", pointer)
        seen.add(attribute.name)
    for index, attribute in enumerate(attributes):
        if attribute.link is not None and attribute.link not in seen:
            raise InvalidRequest("names no attribute of this model", f"/attributes/{index}/attribute_link")


RESERVED = frozenset(
    {
        "inference_id",
        "partner_inference_id",
        "inference_timestamp",
        "received_timestamp",
        "ground_truth_timestamp",
        "batch_id",
        "anomaly_score",
        "explainer_algo",
        "explainer_predicted_attribute",
        "explainer_attribute",
        "explainer_score",
        "explainer_score_stderr",
        "explainer_local_fit_r2",
        "explainer_n_samples",
        "explainer_token",
        "explainer_token_position",
        "lime_feature_importance",
        "shap_feature_importance",
        "lime_importance",
        "shap_importance",
        "nlp_explanation",
    }
)
"""What queries call other things by."""


def _with_other_class(definition: Definition) -> Definition:
    """A classifier that gives one of two classes also has the other, at the other position."""
    given = definition.of_stage("PREDICTED_VALUE")
    if definition.output_type != "MULTICLASS" or len(given) != 1 or given[0].value_type != "FLOAT":
        return definition
    (only,) = given
    name = free_name(f"not_{only.name}", definition.attributes)
    other = Attribute(name, "FLOAT", "PREDICTED_VALUE", 1 if only.position == 0 else 0, implicit=True)
    return replace(definition, attributes=(*definition.attributes, other))


def _with_truths(attributes: tuple[Attribute, ...]) -> tuple[Attribute, ...]:
    """Beside a ground truth class, whether it is this class, for each predicted one that says which class it is."""
    if not any(attribute.stage == "GROUND_TRUTH_CLASS" for attribute in attributes):
        return attributes
    whole = list(attributes)
    position = sum(attribute.stage == "GROUND_TRUTH" for attribute in attributes)
    for predicted in attributes:
        if predicted.stage == "PREDICTED_VALUE" and predicted.gt_class_link is not None:
            name = free_name(f"gt_{predicted.name}", whole)
            whole.append(Attribute(name, "INTEGER", "GROUND_TRUTH", position, link=predicted.name, implicit=True))
            position += 1
    return tuple(whole)


def _linked(attributes: tuple[Attribute, ...]) -> tuple[Attribute, ...]:
    """A derived ground truth and its prediction name each other."""
    truth_of = {attribute.link: attribute.name for attribute in attributes if attribute.implicit and attribute.link}
    return tuple(
        replace(attribute, link=truth_of[attribute.name]) if attribute.name in truth_of else attribute
        for attribute in attributes
    )


def free_name(wanted: str, attributes: Iterable[Attribute]) -> str:
    """The name, or the first of name_2, name_3, ... that nobody has."""
    taken = {attribute.name for attribute in attributes} | RESERVED
    return next(name for name in _numbered(wanted) if name not in taken)


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}_{number}"
        number += 1
