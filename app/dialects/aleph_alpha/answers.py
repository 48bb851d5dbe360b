"""The answers of the dialect: documented as schemas, built as plain values (they are large and hot)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, Field

from app.explain import Explained, Forecasted
from app.wire import COST, CostFields
from explainers.types import Attribution, Feature, Image, Prompt, Span, Text, Tile

Score = dict[str, Any] | float

EXTRAS = ("approximate", "completion", "faithfulness", "warnings")
"""Facts that stand in the answer where there are any."""


class ScoreFacts(BaseModel):
    """What else is known of a score, where it was asked for."""

    uncertainty: float | None = Field(
        None,
        description="With `uncertainty`: how much of the score is rounding of the model's arithmetic.",
        examples=[0.0004],
    )
    below_noise: bool | None = Field(
        None, description="True when the score is no larger than its `uncertainty`; else absent.", examples=[True]
    )
    exact: bool | None = Field(
        None, description="With method `screened`: whether this score is exact.", examples=[True]
    )


class TextScore(ScoreFacts):
    start: int = Field(description="First character, relative to the item (code points).", examples=[0])
    length: int = Field(description="Number of characters.", examples=[18])
    score: float = Field(description="Nats by which the piece supports the target; negative: hinders.", examples=[1.84])


class TileRectangle(BaseModel):
    left: float = Field(description="Left edge, 0 to 1 of the whole image.", examples=[0.0])
    top: float = Field(description="Upper edge, 0 to 1 of the whole image.", examples=[0.0])
    width: float = Field(description="Width, 0 to 1 of the whole image.", examples=[0.5])
    height: float = Field(description="Height, 0 to 1 of the whole image.", examples=[0.5])


class ImageScore(ScoreFacts):
    rect: TileRectangle = Field(description="The tile.")
    score: float = Field(description="Nats by which the tile supports the target.", examples=[0.4])


class ItemScores(BaseModel):
    """The scores of one prompt item, or (last) of the target's own earlier tokens."""

    type: Literal["text", "token_ids", "image", "target"] = Field(description="As in the prompt.", examples=["text"])
    scores: list[TextScore] | list[float] | list[ImageScore] = Field(
        description="Text and target: characters and score. token_ids: one number per id. Image: tiles and score.",
        examples=[[{"start": 0, "length": 18, "score": 1.84}]],
    )
    uncertainty: list[float] | None = Field(
        None, description="With `uncertainty`, of a token_ids item: that of each score.", examples=[[0.0004]]
    )
    exact: list[bool] | None = Field(
        None, description="With method `screened`, of a token_ids item: that of each score.", examples=[[True]]
    )
    message: int | None = Field(None, description="Of a chat: the number of the message, from 0.", examples=[1])
    role: str | None = Field(None, description="Of a chat: who says it.", examples=["user"])
    name: str | None = Field(None, description="Of a chat: what the part is called.", examples=["atlas, page 7"])


class TargetExplanation(BaseModel):
    target: str = Field(description="The whole target, or one of its tokens.", examples=[" Norway"])
    items: list[ItemScores] = Field(description="One per prompt item in order, then the target.")


class FaithfulnessResponse(BaseModel):
    """What happened to the target when the top-scored pieces were removed together."""

    score: float | None = Field(
        description="(area - mean random area) / (largest area - mean random area). 1: the first piece was all that "
        "mattered; 0: no better than chance; null: no order could be told from another.",
        examples=[0.82],
    )
    removed: list[int] = Field(description="How many pieces were removed at each step.", examples=[[1, 2, 3]])
    drops: list[float] = Field(
        description="By how many nats the target's log-probability was lower then, highest score first.",
        examples=[[2.4, 2.5, 2.6]],
    )
    random_drops: list[float] = Field(description="The mean over the random orders.", examples=[[0.9, 1.8, 2.6]])
    area: float = Field(description="The mean of `drops`.", examples=[2.5])
    random_areas: list[float] = Field(description="The same for each random order.", examples=[[1.5, 1.9, 2.0, 1.6]])
    largest_area: float = Field(description="The largest drop seen.", examples=[2.6])
    forwards: int = Field(description="Passes through the model that the test took.", examples=[3])
    rows: int = Field(description="Rows of these passes.", examples=[420])


class DryRunResponse(BaseModel):
    """What an answer would take; nothing was run."""

    dry_run: Literal[True] = Field(description="Always true.", examples=[True])
    model_version: str = Field(description="Names the exact weights.", examples=["sha256:5f1c0a"])
    method: str = Field(description="How it would be computed.", examples=["atman"])
    granularity: str = Field(description="Into what the prompt would be cut.", examples=["sentence"])
    prompt_tokens: int = Field(description="Tokens of the prompt.", examples=[16])
    target_tokens: int = Field(description="Tokens of the target.", examples=[1])
    chunks: int = Field(description="Pieces that would get a score.", examples=[3])
    forwards: int = Field(description="Passes forwards, at most.", examples=[2])
    backwards: int = Field(description="Passes backwards, at most.", examples=[0])
    rows: int = Field(description="Rows of these passes, at most.", examples=[51])
    bytes: int = Field(description="Memory beyond the weights, estimated.", examples=[4194304])
    seconds: float | None = Field(
        description="Time it would take, by that of similar answers of this model since the server started; null "
        "before the first.",
        examples=[0.021],
    )
    cost: CostFields = COST


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
    completion: str | None = Field(
        None, description="With `generate`: what the model said and what is explained.", examples=[" Norway"]
    )
    faithfulness: FaithfulnessResponse | None = Field(None, description="With `evaluate`: a test of the scores.")
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
    facts = attribution.facts
    return body | {name: facts[name] for name in EXTRAS if facts.get(name)}


def dry_run_answer(found: Forecasted) -> dict[str, Any]:
    asked, cost = found.forecast.plan, found.forecast.cost
    return {
        "dry_run": True,
        "model_version": found.model_digest,
        "method": found.method,
        "granularity": asked.granularity,
        "prompt_tokens": len(asked.sequence.prompt),
        "target_tokens": len(asked.sequence.target),
        "chunks": len(asked.chunks),
        "forwards": cost.forwards,
        "backwards": cost.backwards,
        "rows": cost.rows,
        "bytes": cost.bytes,
        "seconds": found.seconds,
        "cost": asdict(found.cost),
    }


def explanations_of(attribution: Attribution, prompt: Prompt) -> list[dict[str, Any]]:
    """One per target: the scores of each prompt item, then those of the target tokens before this one."""
    columns = columns_by_item(attribution.features, len(prompt))
    rows: list[list[float]] = (attribution.values + 0.0).tolist()  # T x F; a negative zero becomes zero
    notes = notes_of(attribution)
    explanations = []
    for position, (target, row) in enumerate(zip(attribution.targets, rows, strict=True)):
        columns_shown = [*columns[:-1], columns[-1][:position]]  # target token j explains only those after it
        items = []
        for item, mine in zip([*prompt, None], columns_shown, strict=True):
            scores = [score_of(attribution.features[column], row[column]) for column in mine]
            items.append({"type": type_of(item), "scores": scores} | turn_of(item))
            for column, score in zip(mine, scores, strict=True) if notes else ():
                note(items[-1], score, notes[position][column])
        explanations.append({"target": target.text, "items": items})
    return explanations


def notes_of(attribution: Attribution) -> list[list[dict[str, Any]]]:  # T x F
    """What else is to be said of each score; nothing at all in most cases."""
    exact = attribution.facts.get("exact")
    floor = None if attribution.uncertainty is None else attribution.uncertainty.tolist()
    if exact is None and floor is None:
        return []
    notes: list[list[dict[str, Any]]] = [[{} for _ in attribution.features] for _ in attribution.targets]
    for row, of_row in enumerate(notes):
        for column, about in enumerate(of_row):
            if floor is not None:
                about["uncertainty"] = floor[row][column]
                if abs(attribution.values[row, column]) <= floor[row][column]:
                    about["below_noise"] = True
            if exact is not None:
                about["exact"] = exact[column]
    return notes


def note(item: dict[str, Any], score: Score, about: Mapping[str, Any]) -> None:
    """Writes it into the score; beside the bare numbers of a token_ids item, as lists."""
    if isinstance(score, dict):
        score |= about
        return
    for name in ("uncertainty", "exact"):
        if name in about:
            item.setdefault(name, []).append(about[name])


def turn_of(item: object) -> dict[str, Any]:
    """Which message of a chat it is, if it is one."""
    if not isinstance(item, Text) or item.turn is None:
        return {}
    return {name: value for name, value in asdict(item.turn).items() if value is not None}


def columns_by_item(features: Sequence[Feature], items: int) -> list[list[int]]:
    """For each prompt item, and last for the target, the columns that belong to it."""
    columns: list[list[int]] = [[] for _ in range(items + 1)]
    for column, feature in enumerate(features):
        columns[feature.item].append(column)
    return columns


def type_of(item: object) -> str:
    if item is None:
        return "target"
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
