"""Models and their attributes: wire <-> domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from pydantic import Field

from app.definitions import MOST_ATTRIBUTES, Attribute, Definition, InputType, OutputType
from app.model_body import AttributeBody, ModelDetails
from app.wire import Array


class ModelChange(ModelDetails):
    """What is said anew of a model; the rest stays."""

    attributes: Array[AttributeBody] = Field(
        [], max_length=MOST_ATTRIBUTES, description="Attributes whose details change."
    )

    def changed(self) -> list[tuple[Attribute, int | None]]:
        """Attributes and their new positions, if they get any."""
        return [(attribute.to_domain(), attribute.position) for attribute in self.attributes]


class MonitoredAttributeResponse(AttributeBody):
    """An attribute, those that follow from others included."""


class MonitoredModelResponse(ModelDetails):
    """A registered model."""

    id: UUID = Field(description="Names it in paths.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])
    partner_model_id: str = Field(description="Your name for it.", examples=["churn-7"])
    input_type: InputType = Field(description="What goes in.", examples=["TABULAR"])
    output_type: OutputType = Field(description="What comes out.", examples=["MULTICLASS"])
    is_batch: bool = Field(description="Whether inferences come in batches.", examples=[False])
    status: str = Field(description="`Ready` or `Archived`.", examples=["Ready"])
    archived: bool = Field(description="Whether it takes no more inferences.", examples=[False])
    attributes: list[MonitoredAttributeResponse] = Field(description="All of them.")
    explainability: dict[str, Any] | None = Field(description="Null: not enabled.", examples=[None])


def model_answer(
    id: UUID, definition: Definition, *, status: str, archived: bool, explainability: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A model as the vendor's client reads it."""
    return {
        "id": str(id),
        "partner_model_id": definition.partner_model_id,
        "input_type": definition.input_type,
        "output_type": definition.output_type,
        "is_batch": definition.is_batch,
        "status": status,
        "archived": archived,
        "classifier_threshold": 0.5,
        **definition.details,
        "attributes": [attribute_answer(attribute) for attribute in definition.attributes],
        "explainability": explainability,
    }


def attribute_answer(attribute: Attribute) -> dict[str, Any]:
    shown = {
        "name": attribute.name,
        "value_type": attribute.value_type,
        "stage": attribute.stage,
        "position": attribute.position,
        "implicit": attribute.implicit,
        "is_positive_predicted_attribute": attribute.positive,
        "attribute_link": attribute.link,
        "gt_class_link": attribute.gt_class_link,
        **attribute.details,
    }
    return {name: value for name, value in shown.items() if value is not None}
