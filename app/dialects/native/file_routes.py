"""Training files: sent, listed, read, removed."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import Ingester, JsonResponse, Reader, ServerState, keyed_router, while_connected
from app.errors import problems
from app.file_forms import (
    CONTENT,
    FileId,
    FileObject,
    Listed,
    content_answer,
    file_answer,
    uploaded,
)
from app.multipart import MULTIPART
from app.training_files import add_files, fetch_file, locate_content, remove_file

UPLOAD: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "JSONL, or Parquet of token ids."},
        "filename": {"type": "string", "description": "Its name, if not that of the part.", "example": "facts.jsonl"},
        "purpose": {"type": "string", "description": "`fine-tune` unless said.", "example": "fine-tune"},
    },
}
FORM = {"schema": UPLOAD, "examples": {"a file": {"value": {"file": "@facts.jsonl", "purpose": "fine-tune"}}}}


class FilePage(BaseModel):
    files: list[FileObject] = Field(description="The files, in the order asked for.")


def file_routes() -> list[BaseRoute]:
    keyed, counted = keyed_router("Training files"), keyed_router("Training files", counted=True)
    one = problems(401, 403, 404)
    counted.post(
        "/files",
        summary="Send a training file",
        response_model=FileObject,
        status_code=201,
        responses=problems(400, 401, 403, 413, 415, 429),
        openapi_extra={"requestBody": {"required": True, "content": {MULTIPART: FORM}}},
    )(upload)
    keyed.get("/files", summary="List training files", response_model=FilePage, responses=problems(400, 401, 403))(
        files
    )
    keyed.get("/files/{id}", summary="Get a training file", response_model=FileObject, responses=one)(file)
    keyed.get("/files/{id}/content", summary="Read a training file", responses=CONTENT | one)(content)
    keyed.delete("/files/{id}", summary="Remove a training file", status_code=204, responses=one | problems(409))(
        remove
    )
    return [*counted.routes, *keyed.routes]


async def upload(request: Request, server: ServerState, caller: Ingester) -> Response:
    """Keeps a file of training examples; a bad line refuses it, and every bad line is named.

    A line of JSONL has one of these forms: `{"messages": [{"role", "content"}, ...]}`, ending with a turn of the
    assistant; the same with `chosen` and `rejected` answers; `{"question", "answer"}`; `{"prompt", "completion"}`;
    `{"text"}`. A Parquet file has the columns `input_ids`, `labels` (-100: no loss) and perhaps `attention_mask`.
    """
    new = await uploaded(request, "file", "files")
    (file,) = await while_connected(
        request, add_files(server.explainer.database, server.explainer.shelf, caller.tenant, new)
    )
    answer = file_answer(file)
    return JsonResponse(answer, 201, {"Location": f"/files/{answer['id']}"})


async def files(found: Listed) -> Response:
    """The training files of the key's tenant, newest first unless asked otherwise."""
    return JsonResponse({"files": found})


async def file(server: ServerState, caller: Reader, id: FileId) -> Response:
    """One training file, without its content."""
    return JsonResponse(file_answer(await fetch_file(server.explainer.database, caller.tenant, id)))


async def content(server: ServerState, caller: Reader, id: FileId) -> Response:
    """The content of a training file, byte for byte as it came."""
    found = await locate_content(server.explainer.database, server.explainer.shelf, caller.tenant, id)
    return content_answer(*found)


async def remove(server: ServerState, caller: Ingester, id: FileId) -> Response:
    """Removes a training file; one that an influence index was made from stays, with a 409."""
    await remove_file(server.explainer.database, server.explainer.shelf, caller.tenant, id)
    return Response(status_code=204)
