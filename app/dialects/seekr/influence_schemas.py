"""Influential fine-tuning data: wire <-> domain."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool

from app.influence import MOST_RESULTS, Forecast, Found, Question
from app.wire import COST, CostFields, Whole, Wire

RESULTS = 5
"""Results, unless asked otherwise."""
VERSION = "v0"

Most = Annotated[Whole, Field(ge=1, le=MOST_RESULTS)]


class InfluenceRequest(Wire):
    """Which training pairs made a fine-tuned model give this answer?"""

    model_id: str = Field(description="Name of a registered fine-tune, or its deployment's id.", examples=["demo-qa"])
    question: str = Field(description="What the model is asked; not blank.", examples=["Who keeps the mill?"])
    answer: str | None = Field(
        None,
        description="The answer to explain; null or empty: the model's own, greedily, up to 512 tokens.",
        examples=["Anna keeps the mill."],
    )
    system_prompt: str | None = Field(
        None, description="What stood before the question; null or empty: nothing.", examples=["You are a local guide."]
    )
    k: Most | None = Field(None, description="Most results, 5 unless said.", examples=[5])
    limit: Most | None = Field(None, description="The same as `k`, which goes before it.", examples=[5])
    dry_run: StrictBool = Field(
        False, description="Only say what answering would take at most; nothing is run.", examples=[False]
    )

    def to_domain(self) -> Question:
        return question_of(self.model_id, self.question, self.answer, self.system_prompt)

    @property
    def most(self) -> int:
        return most_of(self.k, self.limit)


def question_of(model: str, question: str, answer: str | None, system_prompt: str | None) -> Question:
    """Empty texts are none."""
    return Question(model, question, answer or None, system_prompt or None)


def most_of(k: int | None, limit: int | None) -> int:
    return k or limit or RESULTS


class InfluenceResult(BaseModel):
    """A training pair that stands out, for itself and all that are identical to it."""

    id: str = Field(
        description="Id of the pair: the same for every question, and after the index was built again.",
        examples=["3f0c8f52-6f0e-5a7e-9a53-5d1f6e0c2b11"],
    )
    influence_level: Literal["high", "medium", "low"] = Field(
        description="`low`: above what generic questions reach; `medium`: also above 999 of 1,000 scores between two "
        "unrelated training examples, and the pair shares enough rare words with question and answer; `high`: of these "
        "the ones close to the best.",
        examples=["high"],
    )
    file_id: str = Field(
        description="The training file that holds the pair.", examples=["file-9b1f3a52-77aa-4a31-8f0e-2f9c44d0a6e1"]
    )
    line: int | None = Field(
        None,
        description="Its line in that file, from 1; lacks in answers that were stored before there were lines.",
        examples=[17],
    )
    messages: str = Field(
        description="The pair: its last question and answer.",
        examples=["Q: Who keeps the mill?\nA: Anna keeps the mill."],
    )
    score: float = Field(description="What results are ranked by, from -2 to 2.", examples=[1.62])
    impact: float = Field(
        description="How the answer's log-probability would fall without the pair, comparable within one answer; "
        "positive supports the answer.",
        examples=[0.48],
    )
    q_value: float = Field(
        description="Estimated share of irrelevant questions with a result of this score or more.", examples=[0.001]
    )
    group_size: int = Field(description="Identical training pairs that this result stands for.", examples=[1])
    lift: float | None = Field(description="As at the top level.", examples=[7.9])


class InfluenceResponse(BaseModel):
    """The training pairs behind an answer; none where nothing in the training data explains it."""

    results: list[InfluenceResult] = Field(description="By level, then score, then id.")
    answer: str = Field(description="The answer given, or the one the model gave.", examples=["Anna keeps the mill."])
    version: str = Field(description="Always `v0`.", examples=["v0"])
    lift: float | None = Field(
        description="By how much fine-tuning raised the answer's log-probability, in nats: below 1 nothing is found. "
        "Null where no base model is registered.",
        examples=[7.9],
    )
    id: str = Field(description="Id of the stored answer.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])
    model_digest: str = Field(description="Names the exact weights.", examples=["sha256:5f1c0a"])
    method: str = Field(description="How the scores were computed.", examples=["gain-weighted-gradients"])
    seconds: float = Field(description="Time the computation took.", examples=[0.8])
    forwards: int = Field(description="Passes through the models that it took.", examples=[9])


class InfluenceForecast(BaseModel):
    """With `dry_run`: what answering would take at most."""

    dry_run: Literal[True] = Field(description="Always true.", examples=[True])
    tokens: int = Field(description="Of question and answer.", examples=[530])
    forwards: int = Field(description="Passes through the models.", examples=[514])
    pairs: int = Field(description="Training pairs that are compared.", examples=[240])
    bytes: int = Field(description="Size of the index.", examples=[1_400_000])
    seconds: float | None = Field(description="By former answers of this model; null before one.", examples=[0.8])
    model_digest: str = Field(description="Names the exact weights.", examples=["sha256:5f1c0a"])
    cost: CostFields = COST


def influence_answer(found: Found, most: int) -> dict[str, Any]:
    content = found.content
    return {
        "results": content["results"][:most],
        "answer": content["answer"],
        "version": VERSION,
        "lift": content["lift"],
        "id": str(found.id),
        "model_digest": found.model_digest,
        "method": content["method"],
        "seconds": found.seconds,
        "forwards": found.forwards,
    }


def forecast_answer(forecast: Forecast) -> dict[str, Any]:
    names = ("tokens", "forwards", "pairs", "bytes", "seconds", "model_digest")
    return {"dry_run": True, "cost": asdict(forecast.cost)} | {name: getattr(forecast, name) for name in names}
