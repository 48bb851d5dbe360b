"""The answers of the dialect: documented as schemas, built as plain values (they are large and hot)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.explain import Explained
from explainers.types import Attribution, Feature, Image, Prompt, Span, Text, Tile

Score = dict[str, Any] | float


class TextScore(BaseModel):
    start: int = Field(description="First character, relative to the item (code points).", examples=[0])
    length: int = Field(description="Number of characters.", examples=[18])
    score: float = Field(description="Nats by which the piece supports the target; negative: hinders.", examples=[1.84])


class TileRectangle(BaseModel):
    left: float = Field(description="Left edge, 0 to 1 of the whole image.", examples=[0.0])
    top: float = Field(description="Upper edge, 0 to 1 of the whole image.", examples=[0.0])
    width: float = Field(description="Width, 0 to 1 of the whole image.", examples=[0.5])
    height: float = Field(description="Height, 0 to 1 of the whole image.", examples=[0.5])


class ImageScore(BaseModel):
    rect: TileRectangle = Field(description="The tile.")
    score: float = Field(description="Nats by which the tile supports the target.", examples=[0.4])


class ItemScores(BaseModel):
    """The scores of one prompt item, or (last) of the target's own earlier tokens."""

    type: Literal["text", "token_ids", "image", "target"] = Field(description="As in the prompt.", examples=["text"])
    scores: list[TextScore] | list[float] | list[ImageScore] = Field(
        description="Text and target: characters and score. token_ids: one number per id. Image: tiles and score.",
        examples=[[{"start": 0, "length": 18, "score": 1.84}]],
    )


class TargetExplanation(BaseModel):
    target: str = Field(description="The whole target, or one of its tokens.", examples=[" Norway"])
    items: list[ItemScores] = Field(description="One per prompt item in order, then the target.")


class ExplainResponse(BaseModel):
    """Scores of every piece of the prompt."""

    model_version: str = Field(description="Names the exact weights.", examples=["sha256:5f1c0a"])
    explanations: list[TargetExplanation] = Field(description="One, or with target granularity `token` one per token.")
    id: str = Field(
        description="Where the answer is stored: GET /explanations/{id}.",
        examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"],
    )
    model_digest: str = Field(description="Same as `model_version`.", examples=["sha256:5f1c0a"])
    method: str = Field(description="How it was computed.", examples=["atman"])
    seconds: float = Field(description="Time the computation took.", examples=[0.021])
    forwards: int = Field(description="Passes through the model that it took.", examples=[5])
    approximate: bool | None = Field(
        None, description="True when the method approximates; else absent.", examples=[True]
    )
    warnings: list[str] | None = Field(
        None, description="What was accepted without effect; absent when empty.", examples=[["x has no effect"]]
    )


class TokenizeResponse(BaseModel):
    tokens: list[str] | None = Field(None, description="Raw vocabulary strings, if asked for.", examples=[["ĠOslo"]])
    token_ids: list[int] | None = Field(None, description="Ids, if asked for.", examples=[[812]])


class DetokenizeResponse(BaseModel):
    result: str = Field(description="The text.", examples=[" Oslo"])


class AvailableModel(BaseModel):
    name: str = Field(description="What `model` names in requests.", examples=["demo-lm"])
    description: str = Field(description="As given when it was registered.", examples=["a small language model"])
    max_context_size: int = Field(description="Most tokens of prompt plus target.", examples=[2048])
    hostings: list[str] = Field(description="Always empty.", examples=[[]])
    image_support: bool = Field(description="Whether prompts may hold images.", examples=[False])
    qa_support: bool = Field(description="Always false.", examples=[False])
    summarization_support: bool = Field(description="Always false.", examples=[False])
    embedding_types: list[str] = Field(description="Always empty.", examples=[[]])
    maximum_completion_tokens: int | None = Field(description="Most tokens of a completion.", examples=[2048])
    aligned: bool = Field(description="Always false.", examples=[False])


def explain_answer(answer: Explained, prompt: Prompt) -> dict[str, Any]:
    attribution = answer.attribution
    body = {
        "model_version": answer.model_digest,
        "explanations": explanations_of(attribution, prompt),
        "id": str(answer.id),
        "model_digest": answer.model_digest,
        "method": attribution.method,
        "seconds": answer.seconds,
        "forwards": answer.forwards,
    }
    extra = {"approximate": attribution.facts.get("approximate"), "warnings": attribution.facts.get("warnings")}
    return body | {name: value for name, value in extra.items() if value}


def explanations_of(attribution: Attribution, prompt: Prompt) -> list[dict[str, Any]]:
    """One per target: the scores of each prompt item, then those of the target tokens before this one."""
    columns = columns_by_item(attribution.features, len(prompt))
    rows: list[list[float]] = (attribution.values + 0.0).tolist()  # T x F; a negative zero becomes zero
    explanations = []
    for position, (target, row) in enumerate(zip(attribution.targets, rows, strict=True)):
        items = [
            {"type": type_of(item), "scores": [score_of(attribution.features[column], row[column]) for column in mine]}
            for item, mine in zip(prompt, columns, strict=False)
        ]
        earlier = columns[-1][:position]  # target token j explains only those after it
        scores = [score_of(attribution.features[column], row[column]) for column in earlier]
        explanations.append({"target": target.text, "items": [*items, {"type": "target", "scores": scores}]})
    return explanations


def columns_by_item(features: Sequence[Feature], items: int) -> list[list[int]]:
    """For each prompt item, and last for the target, the columns that belong to it."""
    columns: list[list[int]] = [[] for _ in range(items + 1)]
    for column, feature in enumerate(features):
        columns[feature.item].append(column)
    return columns


def type_of(item: object) -> str:
    return "text" if isinstance(item, Text) else "image" if isinstance(item, Image) else "token_ids"


def score_of(feature: Feature, score: float) -> Score:
    match feature.place:
        case Span(start, stop):
            return {"start": start, "length": stop - start, "score": score}
        case Tile(left, top, width, height):
            rect = {"left": left, "top": top, "width": width, "height": height}
            return {"rect": rect, "score": score}
        case _:
            return score
