"""What the compiler knows of a model: its attributes, where their values lie, and whether it is explained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID

PREDICTED, INPUT = "PREDICTED_VALUE", "PIPELINE_INPUT"
TRUTH, TRUTH_CLASS = "GROUND_TRUTH", "GROUND_TRUTH_CLASS"
ALGORITHMS = ("lime", "shap", "tree_shap", "integrated_gradients")
"""In the order in which their scores are listed."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """A column of a model: its values lie at `numbers[slot]` or `texts[slot]`, counted from 1."""

    name: str
    stage: str
    value_type: str
    position: int
    slot_kind: Literal["number", "text"]
    slot: int
    implicit: bool = False
    attribute_link: str | None = None
    gt_class_link: str | None = None
    is_positive_predicted_attribute: bool = False
    definition: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Explainability:
    """Present once explanations were enabled, also when they are disabled since: what was computed stays."""

    enabled: bool
    algorithm: str
    fingerprint: int = 0
    """Scores with another one are of former days, and are not seen."""


@dataclass(frozen=True, slots=True)
class QueryModel:
    id: UUID
    attributes: tuple[Attribute, ...]
    explainability: Explainability | None  # None: never enabled
    classifier_threshold: float = 0.5
    text_delimiter: str | None = None

    def attribute(self, name: str) -> Attribute | None:
        return next((each for each in self.attributes if each.name == name), None)

    def stage(self, stage: str) -> tuple[Attribute, ...]:
        """The attributes of a stage by position."""
        return tuple(sorted((a for a in self.attributes if a.stage == stage), key=lambda each: each.position))

    @property
    def predicted(self) -> tuple[Attribute, ...]:  # K
        return self.stage(PREDICTED)

    @property
    def inputs(self) -> tuple[Attribute, ...]:  # M
        return self.stage(INPUT)

    @property
    def texts(self) -> tuple[Attribute, ...]:
        """The inputs that are explained token by token."""
        return tuple(each for each in self.inputs if each.value_type == "UNSTRUCTURED_TEXT")

    @property
    def positive(self) -> Attribute | None:
        """The positive or only predicted attribute; None where several classes are alike."""
        marked = [each for each in self.predicted if each.is_positive_predicted_attribute]
        return marked[0] if marked else self.predicted[0] if len(self.predicted) == 1 else None

    def truth_of(self, name: str) -> Attribute | None:
        """The ground truth that a predicted attribute is linked with, from either side."""
        linked = self.attribute(name)
        if linked is not None and linked.attribute_link is not None:
            return self.attribute(linked.attribute_link)
        return next((each for each in self.stage(TRUTH) if each.attribute_link == name), None)
