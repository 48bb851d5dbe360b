"""A model's definition on the wire, wherever it is handed in: wire -> domain."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from app.definitions import (
    MOST_ATTRIBUTES,
    Attribute,
    Definition,
    InputType,
    OutputType,
    Stage,
    ValueType,
    completed,
    in_places,
)
from app.wire import Array, Number, Whole, Wire
from explainers.errors import InvalidRequest

DELIMITERS = (r"\W+", r"\s+", ",", ",+", r"\|", r"\|+")
OWN = frozenset(
    {"name", "value_type", "stage", "position", "attribute_link", "gt_class_link", "is_positive_predicted_attribute"}
)
"""Members of an attribute that have a place of their own in the domain."""

Short = Annotated[str, StringConstraints(max_length=255)]
Long = Annotated[str, StringConstraints(max_length=10_000)]
Scalar = str | int | float | bool


class Category(Wire):
    value: Scalar = Field(description="The value as it comes in rows.", examples=["north"])
    label: str | None = Field(None, description="What people call it.", examples=["North"])


class Bin(Wire):
    continuous_start: Number | None = Field(None, description="Lower bound, excluded.", examples=[0])
    continuous_end: Number | None = Field(None, description="Upper bound, included.", examples=[100])


class AttributeBody(Wire):
    """A column of the model's rows."""

    name: str = Field(description="Letters, digits and _, no digit first.", examples=["income"])
    value_type: ValueType = Field(description="What its values are.", examples=["FLOAT"])
    stage: Stage = Field(description="Its part in the model.", examples=["PIPELINE_INPUT"])
    position: Whole | None = Field(None, ge=0, lt=MOST_ATTRIBUTES, description="Place in its stage.", examples=[0])
    label: Short | None = Field(None, description="What people call it.", examples=["Income"])
    categorical: bool | None = Field(None, description="Whether its values are categories.", examples=[False])
    categories: Array[Category] = Field([], description="The categories, in order.")
    bins: Array[Bin] = Field([], description="Ranges that charts show.")
    min_range: Number | None = Field(None, description="Smallest value.", examples=[0])
    max_range: Number | None = Field(None, description="Largest value.", examples=[9000])
    monitor_for_bias: bool | None = Field(None, description="Kept as given.", examples=[False])
    is_unique: bool | None = Field(None, description="Kept as given.", examples=[False])
    is_positive_predicted_attribute: bool | None = Field(None, description="The positive class.", examples=[True])
    attribute_link: str | None = Field(None, description="Name of its counterpart.", examples=["churned"])
    gt_class_link: str | None = Field(None, description="The class it predicts, as a string.", examples=["1"])
    token_attribute_link: str | None = Field(None, description="Kept as given.", examples=["note"])
    implicit: bool | None = Field(None, description="Set by the server alone.", examples=[False])

    def to_domain(self) -> Attribute:
        details = self.model_dump(exclude=set(OWN) | {"implicit"}, exclude_none=True, exclude_unset=True, mode="json")
        return Attribute(
            name=self.name,
            value_type=self.value_type,
            stage=self.stage,
            position=self.position or 0,
            link=self.attribute_link,
            gt_class_link=self.gt_class_link,
            positive=bool(self.is_positive_predicted_attribute),
            details=details,
        )


class ModelDetails(Wire):
    """What may change after a model has been created."""

    display_name: Short | None = Field(None, description="What people call it.", examples=["Churn"])
    description: Long | None = Field(None, description="Kept as given.", examples=["who leaves"])
    tags: Array[Short] = Field([], max_length=1_000, description="Kept as given.", examples=[["q3"]])
    classifier_threshold: Number | None = Field(None, description="Positive from here on; 0.5.", examples=[0.5])
    version_label: Short | None = Field(None, description="Kept as given.", examples=["7"])
    model_group_id: Short | None = Field(None, description="Kept as given.", examples=[None])
    expected_throughput_gb_per_day: Number | None = Field(None, description="Kept as given.", examples=[None])
    pixel_height: Whole | None = Field(None, description="Of images.", examples=[None])
    pixel_width: Whole | None = Field(None, description="Of images.", examples=[None])
    text_delimiter: str | None = Field(
        None, description=f"Between the tokens of texts, one of {', '.join(DELIMITERS)}.", examples=[r"\W+"]
    )

    def details(self) -> dict[str, Any]:
        if self.text_delimiter is not None and self.text_delimiter not in DELIMITERS:
            raise InvalidRequest(f"must be one of {' '.join(DELIMITERS)}", "/text_delimiter")
        return self.model_dump(
            include=set(ModelDetails.model_fields), exclude_none=True, exclude_unset=True, mode="json"
        )


class ModelBody(ModelDetails):
    """A model as it is registered."""

    partner_model_id: Annotated[str, StringConstraints(min_length=1, max_length=255)] = Field(
        description="Your name for it, unique among the models in use.", examples=["churn-7"]
    )
    input_type: InputType = Field(description="What goes in.", examples=["TABULAR"])
    output_type: OutputType = Field(description="What comes out.", examples=["MULTICLASS"])
    is_batch: bool = Field(False, description="Whether inferences come in batches.", examples=[False])
    attributes: Array[AttributeBody] = Field(
        max_length=MOST_ATTRIBUTES, description="The columns of its rows; fixed from then on."
    )

    def to_domain(self) -> Definition:
        """With the attributes that follow from the declared ones; raises InvalidRequest."""
        declared = [attribute.position for attribute in self.attributes]
        attributes = in_places([attribute.to_domain() for attribute in self.attributes], declared)
        return completed(
            Definition(
                self.partner_model_id, self.input_type, self.output_type, attributes, self.is_batch, self.details()
            )
        )
