"""The answers of POST /complete and POST /evaluate: documented as schemas, built as plain values."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel, Field

from app.complete import Completed, Event, Finished
from app.dialects.aleph_alpha.completion_schemas import CompleteRequest, Reason
from app.evaluate import Evaluated
from explainers.completion_text import ScoredToken
from explainers.decoding import Completion, Piece


class EvaluationResult(BaseModel):
    """Log-probabilities are in nats."""

    log_probability: float = Field(description="Of all expected tokens together.", examples=[-2.5])
    log_perplexity: float = Field(description="Its negative.", examples=[2.5])
    log_perplexity_per_token: float = Field(description="Divided by `token_count`.", examples=[1.25])
    log_perplexity_per_character: float = Field(description="Divided by `character_count`.", examples=[0.3125])
    correct_greedy: bool = Field(description="Whether the model says exactly these tokens.", examples=[False])
    token_count: int = Field(description="Tokens of the expected completion.", examples=[2])
    character_count: int = Field(description="Its characters (Unicode code points).", examples=[8])
    completion: str = Field(description="What the model says by itself in as many tokens.", examples=[" in June"])


class EvaluateResponse(BaseModel):
    """How likely the expected completion is."""

    model_version: str = Field(description="Names the exact weights.", examples=["sha256:5f1c0a"])
    result: EvaluationResult = Field(description="The evaluation.")
    num_tokens_prompt_total: int = Field(description="Tokens of prompt and expected completion.", examples=[7])
    warnings: list[str] | None = Field(
        None, description="What is not as it may seem; absent when empty.", examples=[["x has no effect"]]
    )


LOG_PROBS = "Per token: its text -> log-probability, and those of others if asked for."


class CompletionItem(BaseModel):
    index: int = Field(description="Number of the completion, from 0.", examples=[0])
    log_probs: list[dict[str, float]] | None = Field(
        None, description=f"{LOG_PROBS} Only if asked for.", examples=[[{" Norway": -0.07}]]
    )
    completion: str = Field(description="The text.", examples=[" Norway"])
    finish_reason: Reason = Field(description="Why it ends there.", examples=["maximum_tokens"])
    completion_tokens: list[str] | None = Field(None, description="Its tokens, if asked for.", examples=[[" Norway"]])
    raw_completion: str | None = Field(None, description="With special tokens, if asked for.", examples=[" Norway"])


class CompleteResponse(BaseModel):
    """Completions, the best or first one first."""

    model_version: str = Field(description="Names the exact weights.", examples=["sha256:5f1c0a"])
    completions: list[CompletionItem] = Field(description="The n completions.")
    num_tokens_prompt_total: int = Field(description="Tokens of the prompt, once per candidate.", examples=[13])
    num_tokens_generated: int = Field(description="Tokens generated for all candidates.", examples=[1])
    warnings: list[str] | None = Field(
        None, description="What is not as it may seem; absent when empty.", examples=[["x has no effect"]]
    )


def evaluate_answer(answer: Evaluated) -> dict[str, Any]:
    found = answer.evaluation
    perplexity = 0.0 - found.log_probability
    body = {
        "model_version": answer.model_digest,
        "result": {
            "log_probability": found.log_probability,
            "log_perplexity": perplexity,
            "log_perplexity_per_token": perplexity / found.tokens,
            "log_perplexity_per_character": perplexity / found.characters,
            "correct_greedy": found.correct_greedy,
            "token_count": found.tokens,
            "character_count": found.characters,
            "completion": found.greedy,
        },
        "num_tokens_prompt_total": found.prompt_tokens + found.tokens,
    }
    return body | ({"warnings": list(found.warnings)} if found.warnings else {})


def complete_answer(answer: Completed, asked: CompleteRequest) -> dict[str, Any]:
    body = {
        "model_version": answer.model_digest,
        "completions": [
            {"index": item.index, **gained(item, asked), "finish_reason": item.finish_reason}
            for item in answer.completions.items
        ],
        **totals(answer, asked),
    }
    warnings = list(answer.completions.warnings)
    return body | ({"warnings": warnings} if warnings else {})


async def complete_events(
    events: AsyncGenerator[Event, None], asked: CompleteRequest
) -> AsyncGenerator[dict[str, Any], None]:
    async with aclosing(events):
        async for event in events:
            yield event_answer(event, asked)


def event_answer(event: Event, asked: CompleteRequest) -> dict[str, Any]:
    match event:
        case Piece(index=index):
            return {"type": "stream_chunk", "index": index, **gained(event, asked)}
        case Finished(model_digest=digest, completion=completion):
            reason = {"model_version": digest, "finish_reason": completion.finish_reason}
            return {"type": "stream_summary", "index": completion.index, **reason}
        case _:
            return {"type": "completion_summary", **totals(event, asked)}


def gained(text: Piece | Completion, asked: CompleteRequest) -> dict[str, Any]:
    """The text, and what was asked for of its tokens."""
    body: dict[str, Any] = {"completion": text.text}
    if asked.log_probs is not None:
        body["log_probs"] = log_probs(text.tokens)
    if asked.tokens:
        body["completion_tokens"] = [token.text for token in text.tokens]
    if asked.raw_completion:
        body["raw_completion"] = text.raw
    return body


def log_probs(tokens: Sequence[ScoredToken]) -> list[dict[str, float]]:
    """Where tokens have the same text, the chosen one counts, and of the others the most probable."""
    return [{} if token.log_prob is None else log_probs_of(token, token.log_prob) for token in tokens]


def log_probs_of(token: ScoredToken, log_prob: float) -> dict[str, float]:
    found: dict[str, float] = {}
    for text, other in token.alternatives:
        found.setdefault(text, other)
    return found | {token.text: log_prob}


def totals(answer: Completed, asked: CompleteRequest) -> dict[str, int]:
    found = answer.completions
    return {
        "num_tokens_prompt_total": found.prompt_tokens * (asked.best_of or asked.n),
        "num_tokens_generated": found.generated_tokens,
    }
