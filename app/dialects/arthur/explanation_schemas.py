"""Explanations and how they are switched on: wire <-> domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, StrictBool, StringConstraints

from app.costs import Cost
from app.explainability import DEFAULTS, State
from app.on_demand import WhatIf
from app.scores import Explanation
from app.wire import COST, Array, CostFields, Wire
from explainers.errors import InvalidRequest

EnrichmentName = Literal["explainability", "anomaly_detection", "hotspots", "bias_mitigation"]
NAMES: tuple[EnrichmentName, ...] = ("explainability", "anomaly_detection", "hotspots", "bias_mitigation")
OFF = {"enabled": False, "status": "Disabled", "config": {}}

COLUMNS: Mapping[str, Callable[[Any], Any]] = {
    "value": lambda scored: scored.value,
    "word": lambda scored: scored.part.token or scored.part.attribute,
    "location": lambda scored: scored.place if scored.part.position is None else scored.part.position,
    "attribute_name": lambda scored: scored.part.attribute,
}
"""What scores can be sorted by."""


class Enrichment(BaseModel):
    """One way in which inferences are enriched."""

    enabled: bool = Field(description="Whether it is switched on.", examples=[True])
    status: str = Field(description="`Disabled`, `Ready` or `Failed`.", examples=["Ready"])
    status_detail: str | None = Field(None, description="Why it failed, and the way out.", examples=[None])
    config: dict[str, Any] = Field(
        description="As it was given, with the defaults of what acts; `files` are digests of uploads, never opened.",
        examples=[{"explanation_algo": "lime", "explanation_nsamples": 2000}],
    )


class Enrichments(BaseModel):
    explainability: Enrichment = Field(description="Scores of every input of every inference.")
    anomaly_detection: Enrichment = Field(description="Not offered.")
    hotspots: Enrichment = Field(description="Not offered.")
    bias_mitigation: Enrichment = Field(description="Not offered.")


class EnrichmentChange(Wire):
    """What is said anew of an enrichment; the rest stays."""

    enabled: bool | None = Field(None, description="Switch it on or off.", examples=[True])
    config: dict[str, Any] = Field(
        {},
        description="Acting: `explanation_algo` (lime, shap; tree_shap for tables, integrated_gradients for texts), "
        "`explanation_nsamples`, `streaming_explainability_enabled`, `inference_consumer_score_percent` (0 to 1), "
        "`seed`. The rest is kept as given.",
        examples=[{"explanation_algo": "shap", "explanation_nsamples": 2000}],
    )


class Score(BaseModel):
    attribute_name: str = Field(description="The input.", examples=["income"])
    explanation_value: float | None = Field(None, description="Its score; null where there is none.", examples=[-0.21])
    value: float | None = Field(None, description="The same.", examples=[-0.21])
    stderr: float | None = Field(None, description="With `uncertainty`: its standard error.", examples=[0.004])
    tokens: list[dict[str, Any]] | None = Field(
        None,
        description="Of a text: `token`, `position`, `explanation_value`, `value`.",
        examples=[[{"token": "smoke", "position": 5, "explanation_value": 0.41, "value": 0.41}]],
    )


class Entry(BaseModel):
    algorithm: str = Field(description="How it was computed.", examples=["shap"])
    predicted_attribute_name: str = Field(description="The output that is explained.", examples=["churn_yes"])
    importance_scores: list[Score] = Field(description="Scores of the inputs.")
    local_fit_r2: float | None = Field(None, description="LIME: how much of the output its line tells.", examples=[0.9])


class Expected(BaseModel):
    predicted_attribute_name: str = Field(description="The output.", examples=["churn_yes"])
    expected_value: float = Field(description="What scores add to.", examples=[0.33])


class ExplanationAnswer(BaseModel):
    """Scores of one row."""

    explanation: list[Entry] = Field(description="One entry per predicted attribute.")
    expected_value: list[Expected] = Field(description="With them shap scores add up to the prediction; lime: empty.")
    facts: dict[str, Any] = Field(
        description="How it was computed: samples, seed, background, model.", examples=[{"n_samples": 2000}]
    )


class CostAnswer(BaseModel):
    """What an answer would take."""

    predictions: int = Field(description="Rows or texts the model would be asked for, at most.", examples=[20441])
    cost: CostFields = COST


def cost_answer(cost: Cost) -> dict[str, Any]:
    return {"predictions": cost.forwards, "cost": asdict(cost)}


class PipelineInput(Wire):
    attribute_name: Annotated[str, StringConstraints(max_length=255)] = Field(
        description="An input of the model.", examples=["income"]
    )
    attribute_value: Any = Field(description="Its value, of its type; null: unknown.", examples=[1500])


class WhatIfBody(Wire):
    model_pipeline_input: Array[PipelineInput] = Field(max_length=2_000, description="Every input once.")
    algorithm: str | None = Field(None, description="Default: the configured one.", examples=["shap"])
    compare_to: str | None = Field(
        None, description="partner_inference_id of an inference that the prediction is compared with.", examples=["u-1"]
    )

    dry_run: StrictBool = Field(
        False, description="Nothing is computed: the answer is `predictions`, what it would take.", examples=[False]
    )

    def given(self) -> list[tuple[str, Any]]:
        return [(each.attribute_name, each.attribute_value) for each in self.model_pipeline_input]


class Predicted(BaseModel):
    attribute_name: str = Field(description="The output.", examples=["churn_yes"])
    attribute_value: float = Field(description="Its value.", examples=[0.8])
    change: float | None = Field(None, description="Against the inference named in `compare_to`.", examples=[0.1])


class WhatIfAnswer(ExplanationAnswer):
    """The prediction for a row that never was, and why."""

    predicted_values: list[Predicted] = Field(description="One per output.")


class Listing(NamedTuple):
    """Which scores of each entry are shown, and how."""

    sort: str | None = None
    page: int = 1
    page_size: int = 500
    uncertainty: bool = False


WHOLE = Listing()


class Scored(NamedTuple):
    """A score and what carries it."""

    place: int
    part: Any
    value: float | None
    error: float | None


def enrichment_answer(state: State) -> dict[str, Any]:
    known = state.background
    about = {} if known is None else {"background": {name: known[name] for name in ("id", "source", "rows")}}
    config = {**DEFAULTS, **state.config, **about} | ({"files": dict(state.uploads)} if state.uploads else {})
    shown = {"enabled": state.enabled, "status": state.status, "config": config}
    return shown | ({"status_detail": state.detail} if state.detail else {})


def explanation_answer(explanation: Explanation, listing: Listing = WHOLE) -> dict[str, Any]:
    """Raises InvalidRequest for a sorting that is none."""
    entries = [entry_answer(explanation, place, listing) for place in range(len(explanation.outputs))]
    facts = dict(explanation.facts) | ({"reason": explanation.reason} if explanation.reason else {})
    return {"explanation": entries, "expected_value": expected_values(explanation), "facts": facts}


def what_if_answer(found: WhatIf) -> dict[str, Any]:
    predicted = [
        {"attribute_name": name, "attribute_value": float(value)}
        | ({} if found.change is None else {"change": float(found.change[place])})
        for place, (name, value) in enumerate(zip(found.outputs, found.predicted, strict=True))
    ]
    return {"predicted_values": predicted} | explanation_answer(found.explanation)


def expected_values(explanation: Explanation) -> list[dict[str, Any]]:
    if explanation.base_values is None:
        return []
    pairs = zip(explanation.outputs, explanation.base_values, strict=True)
    return [{"predicted_attribute_name": name, "expected_value": float(value)} for name, value in pairs]


def entry_answer(explanation: Explanation, output: int, listing: Listing) -> dict[str, Any]:
    values = numbers(explanation.values[output])
    errors = [None] * len(values) if explanation.errors is None else numbers(explanation.errors[output])
    scored = [Scored(place, *of) for place, of in enumerate(zip(explanation.parts, values, errors, strict=True))]
    first = (listing.page - 1) * listing.page_size
    shown = ordered(scored, listing.sort)[first : first + listing.page_size]
    fit = None if explanation.fit is None else numbers(explanation.fit)[output]
    about = {"algorithm": explanation.algorithm, "predicted_attribute_name": explanation.outputs[output]}
    return about | {"importance_scores": scores_answer(shown, listing)} | ({} if fit is None else {"local_fit_r2": fit})


def scores_answer(shown: Sequence[Scored], listing: Listing) -> list[dict[str, Any]]:
    """Inputs, or of a text its tokens under their attribute."""
    answers: list[dict[str, Any]] = []
    for scored in shown:
        values = {"explanation_value": scored.value, "value": scored.value}
        values |= {"stderr": scored.error} if listing.uncertainty else {}
        attribute = {"attribute_name": scored.part.attribute}
        if scored.part.token is None:
            answers.append(attribute | values)
            continue
        if not answers:
            answers.append(attribute | {"tokens": []})
        answers[-1]["tokens"].append({"token": scored.part.token, "position": scored.part.position} | values)
    return answers


def ordered(scored: list[Scored], sort: str | None) -> list[Scored]:
    """By a column and, where that is equal, by place; without a value last. A + arrives as a space."""
    if sort is None:
        return scored
    name = sort.lstrip("+- ")
    if name not in COLUMNS or len(sort) - len(name) > 1:
        raise InvalidRequest(f"must be one of {', '.join(COLUMNS)}, after + or -", "/sort")
    key = COLUMNS[name]
    known = sorted((each for each in scored if key(each) is not None), key=key, reverse=sort[0] == "-")
    return known + [each for each in scored if key(each) is None]


def numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
