"""Building the influence index of a fine-tuned model."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Body, Path, Request
from pydantic import Field, StrictBool
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.accepted import JobResponse, job_answer
from app.dependencies import Ingester, JsonResponse, ServerState, keyed_router, while_connected
from app.errors import Responses, problems
from app.influence_indexes import MOST_FILES, MOST_PROMPTS, NewIndex, start_index
from app.wire import Array, Wire
from explainers.influence.examples import Mask

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
    longest: Annotated[int, Field(strict=True, ge=2, le=2**31 - 1)] | None = Field(
        None, description="Tokens after which the trainer cut examples off; null: nowhere.", examples=[2048]
    )
    generic_prompts: Array[str] = Field(
        default_factory=list,
        max_length=MOST_PROMPTS,
        description="Questions that the training data is not about, in the words and language of your users: they "
        "calibrate the levels beside the built-in English ones.",
        examples=[["How do I boil an egg?"]],
    )

    def to_domain(self) -> NewIndex:
        mask = Mask(self.loss, self.end_token, self.longest)
        return NewIndex(tuple(self.training_files), mask, tuple(self.generic_prompts))


NewIndexBody = Annotated[NewIndexRequest, Body(openapi_examples={"a file": {"value": MADE}})]


def index_routes() -> list[BaseRoute]:
    keyed = keyed_router("Models")
    keyed.post(
        "/models/{name:path}/influence-index",
        summary="Build a model's influence index",
        status_code=202,
        response_model=JobResponse,
        responses=BUILDING | problems(400, 401, 403, 404, 409, 413, 415),
    )(build)
    return keyed.routes


async def build(request: Request, server: ServerState, caller: Ingester, name: Name, body: NewIndexBody) -> Response:
    """Makes `POST /influence` answer for a model: its training pairs are read once, by a job.

    The index is of exactly the registered weights. It answers once it is whole; an older one answers until then.
    """
    job = await while_connected(request, start_index(server.explainer, caller.tenant, name, body.to_domain()))
    return JsonResponse(job_answer(job), 202, {"Location": f"/jobs/{job.id}"})
