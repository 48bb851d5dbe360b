"""POST /v1/explainability/context-attributor: wire <-> domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictBool

from app.context import Inquiry
from app.explain import Explained
from app.wire import Whole, Wire
from explainers.context import FEWEST, MOST
from explainers.types import Feature, Span

CONTEXT = "The mill is on the river. It was built in 1843."
ANSWER = "The mill was built in 1843."


class ContextAttributionRequest(Wire):
    """From which parts of a context does a response come?"""

    context: str = Field(description="What the model was given to answer from; not blank.", examples=[CONTEXT])
    query: str = Field(
        description="What it was asked; may be empty. It stands behind the context, after a line break.",
        examples=["When was the mill built?"],
    )
    response: str = Field(
        description="What it said; not blank. With a model without a chat template it follows the query as it stands, "
        "leading white space included.",
        examples=[ANSWER],
    )
    highlight: str | None = Field(
        None,
        description="A part of the response to attribute in place of its sentences; the first occurrence counts. Empty "
        "counts as null.",
        examples=["1843"],
    )
    granularity: Literal["sentence", "paragraph"] = Field(
        "sentence",
        description="Into what the context is cut: sentences (Unicode rules; a line break ends one too) or paragraphs "
        "(at blank lines).",
        examples=["sentence"],
    )
    top_k: Annotated[Whole, Field(ge=1, le=2**31 - 1)] = Field(
        5, description="Most sources to return for each segment.", examples=[5]
    )
    num_ablations: Annotated[Whole, Field(ge=FEWEST, le=MOST)] | None = Field(
        None,
        description="How many random halves of the sources the response is read behind; null: more for a larger "
        "`top_k` and for more sources. Where all choices of sources are no more than that, each is read once.",
        examples=[64],
    )
    return_diagnostics: StrictBool = Field(
        False, description="Whether to say what the passes and the fit were like.", examples=[False]
    )
    model: str | None = Field(
        None,
        description="Name or deployment of the model that said it, or of one that is to stand for it; null: the "
        "server's WHENCE_CONTEXT_MODEL, or else the only language model registered.",
        examples=["demo-lm"],
    )

    def to_domain(self) -> Inquiry:
        highlight, model = self.highlight or None, self.model or None
        texts = (self.context, self.query, self.response)
        return Inquiry(model, *texts, highlight, self.granularity, self.top_k, self.num_ablations)


class ContextSource(BaseModel):
    """A piece of the context."""

    source_type: Literal["raw"] = Field(description="Always `raw`: it was sent as text.", examples=["raw"])
    id: int = Field(description="Its number in the context, from 0.", examples=[1])
    text: str = Field(description="The piece itself.", examples=["It was built in 1843."])
    attribution: float = Field(
        description="tanh of what the piece adds to the response, in logits per token: between -1 and 1, positive "
        "supports it.",
        examples=[0.71],
    )
    offset: int = Field(description="Where it begins in the context, in code points.", examples=[26])


class ResponseSegment(BaseModel):
    """A sentence of the response and what it comes from."""

    segment_index: int = Field(description="Its number in the response, from 0.", examples=[0])
    segment_text: str = Field(description="The sentence.", examples=[ANSWER])
    char_offset: int = Field(description="Where it begins in the response, in code points.", examples=[0])
    sources: list[ContextSource] = Field(description="The `top_k` with the highest attribution, highest first.")


class Spread(BaseModel):
    """What a list of numbers is like."""

    mean: float = Field(description="Their mean.", examples=[1.2])
    std: float = Field(description="Their standard deviation.", examples=[0.4])
    min: float = Field(description="The smallest.", examples=[0.1])
    max: float = Field(description="The largest.", examples=[2.3])


class ContextDiagnostics(BaseModel):
    """What the passes and the fit were like, all segments together."""

    num_sources: int = Field(description="Pieces of the context.", examples=[2])
    num_ablations: int = Field(description="Choices of them that the response was read behind.", examples=[4])
    lasso_alpha: float = Field(description="The penalty of the fit.", examples=[0.01])
    mask_probability: float = Field(description="That a piece is kept.", examples=[0.5])
    y_vector_stats: Spread = Field(description="Of the mean token logits of segments, over all passes.")
    raw_coef_stats: Spread = Field(description="Of the fitted coefficients, on standardised columns.")
    scaler_stats: Spread = Field(description="Of the columns' standard deviations.")


class ContextAttributionResponse(BaseModel):
    """What each sentence of the response, or the highlight, comes from."""

    response_text: str = Field(description="The response as it was sent.", examples=[ANSWER])
    segments: list[ResponseSegment] = Field(description="One for each sentence; empty with a highlight.")
    highlight: str | None = Field(description="The highlight as it was sent.", examples=[None])
    sources: list[ContextSource] | None = Field(description="What the highlight comes from; null without one.")
    id: str = Field(
        description="Under which the answer is stored, with all sources: GET /explanations/{id}.",
        examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"],
    )
    diagnostics: ContextDiagnostics | None = Field(None, description="Only where they were asked for.")


def context_answer(explained: Explained, asked: ContextAttributionRequest) -> dict[str, Any]:
    found, highlight = explained.attribution, asked.highlight or None
    ranked = [top_sources(found.features, row.tolist(), asked.top_k) for row in found.values]
    segments = [
        {"segment_index": index, "segment_text": target.text, "char_offset": start_of(target.span), "sources": sources}
        for index, (target, sources) in enumerate(zip(found.targets, ranked, strict=True))
    ]
    return {
        "response_text": asked.response,
        "segments": [] if highlight else segments,
        "highlight": highlight,
        "sources": ranked[0] if highlight else None,
        "id": str(explained.id),
    } | ({"diagnostics": found.facts["diagnostics"]} if asked.return_diagnostics else {})


def top_sources(features: Sequence[Feature], scores: Sequence[float], count: int) -> list[dict[str, Any]]:
    """The highest first; of equals the one that comes first in the context."""
    order = sorted(range(len(features)), key=lambda place: -scores[place])[:count]
    return [
        {
            "source_type": "raw",
            "id": place,
            "text": features[place].name,
            "attribution": scores[place],
            "offset": start_of(features[place].place),
        }
        for place in order
    ]


def start_of(place: object) -> int:
    """Where a piece of text begins."""
    assert isinstance(place, Span)  # noqa: S101 - sources and segments are made of characters
    return place.start
