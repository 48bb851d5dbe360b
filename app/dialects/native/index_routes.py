"""Building the influence index of a fine-tuned model."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Body, Path, Request
from pydantic import BaseModel, Field, StrictBool
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.accepted import JobResponse, job_answer
from app.dependencies import Ingester, JsonResponse, Reader, ServerState, keyed_router, while_connected
from app.errors import Responses, problems
from app.influence_indexes import MOST_FILES, MOST_PROMPTS, NewIndex, list_indexes, start_index
from app.wire import Array, Whole, Wire
from explainers.influence.examples import Mask
from storage.training_tables import InfluenceIndex

MADE = {"training_files": ["file-9b1f3a52-77aa-4a31-8f0e-2f9c44d0a6e1"]}
BUILDING: Responses = {
    202: {"model": JobResponse, "description": "The job that builds the index; `Location` is its address."}
}
Name = Annotated[str, Path(description="Name of a registered fine-tune; may contain `/`.", examples=["demo-qa"])]


class NewIndexRequest(Wire):
    """The data that a model was fine-tuned on, and how its loss was taken."""

    training_files: Array[str] = Field(
        max_length=MOST_FILES,
        description="Ids of training files, 1 to 100, each once. More files of the same model take over what is there.",
        examples=[MADE["training_files"]],
    )
    loss: Literal["assistant", "last_assistant", "all"] = Field(
        "assistant",
        description="Whose tokens had a loss in training: every assistant turn's, the last one's, or all.",
        examples=["assistant"],
    )
    end_token: StrictBool = Field(
        True, description="Whether the token that ends a turn had a loss too.", examples=[True]
    )
    longest: Annotated[Whole, Field(ge=2, le=2**31 - 1)] | None = Field(
        None, description="Tokens after which the trainer cut examples off; null: nowhere.", examples=[2048]
    )
    generic_prompts: Array[str] = Field(
        default_factory=list,
        max_length=MOST_PROMPTS,
        description="Questions that the training data is not about, in the words and language of your users: they "
        "calibrate the levels beside the built-in English ones, with the first 48 tokens of what the model answers.",
        examples=[["How do I boil an egg?"]],
    )

    def to_domain(self) -> NewIndex:
        mask = Mask(self.loss, self.end_token, self.longest)
        return NewIndex(tuple(self.training_files), mask, tuple(self.generic_prompts))


NewIndexBody = Annotated[NewIndexRequest, Body(openapi_examples={"a file": {"value": MADE}})]


class IndexResponse(BaseModel):
    """An influence index."""

    id: str = Field(description="Id of the index.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])
    state: Literal["building", "ready", "failed"] = Field(
        description="The newest ready one answers; its successor may be being built.", examples=["ready"]
    )
    job: str = Field(description="The job that builds it.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])
    model_digest: str = Field(description="The weights it is of.", examples=["sha256:5f1c0a"])
    base_digest: str | None = Field(description="Those of the base model.", examples=["sha256:7e02bb"])
    facts: dict[str, Any] | None = Field(
        description="Once it is ready: files, pairs, tokens, thresholds' prompts, the training mask and what it was "
        "verified with, warnings, and the digest of it all.",
        examples=[{"pairs": 240, "warnings": []}],
    )
    created_at: datetime = Field(description="When it was asked for.", examples=["2026-01-31T12:00:00Z"])
    published_at: datetime | None = Field(description="When it was ready.", examples=["2026-01-31T12:05:00Z"])


class IndexList(BaseModel):
    indexes: list[IndexResponse] = Field(description="Newest first.")


def index_routes() -> list[BaseRoute]:
    keyed = keyed_router("Models")
    keyed.post(
        "/models/{name:path}/influence-index",
        summary="Build a model's influence index",
        status_code=202,
        response_model=JobResponse,
        responses=BUILDING | problems(400, 401, 403, 404, 409, 413, 415, 429),
    )(build)
    keyed.get(
        "/models/{name:path}/influence-index",
        summary="Get a model's influence indexes",
        response_model=IndexList,
        responses=problems(401, 403, 404),
    )(indexes)
    return keyed.routes


async def build(request: Request, server: ServerState, caller: Ingester, name: Name, body: NewIndexBody) -> Response:
    """Makes `POST /influence` answer for a model: its training pairs are read once, by a job.

    The index is of exactly the registered weights. It answers once it is whole; an older one answers until then.
    """
    job = await while_connected(
        request, start_index(server.explainer_for(caller), caller.tenant, name, body.to_domain())
    )
    return JsonResponse(job_answer(job), 202, {"Location": f"/jobs/{job.id}"})


async def indexes(server: ServerState, caller: Reader, name: Name) -> Response:
    """The indexes of a model: the one that answers, the one that is being built, those that have failed since."""
    rows = await list_indexes(server.explainer, caller.tenant, name)
    return JsonResponse({"indexes": [index_answer(row) for row in rows]})


def index_answer(row: InfluenceIndex) -> dict[str, Any]:
    same = ("state", "model_digest", "base_digest", "facts", "created_at", "published_at")
    return {"id": str(row.id), "job": str(row.job)} | {name: getattr(row, name) for name in same}
