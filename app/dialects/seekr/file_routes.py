"""Training files: sent, listed, read, renamed, removed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Body, Request
from pydantic import BaseModel, Field
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import Ingester, JsonResponse, Reader, ServerState, while_connected
from app.dialects.seekr.router import flow_router
from app.errors import problems
from app.file_forms import (
    CONTENT,
    DeletedFile,
    FileId,
    FileObject,
    Listed,
    content_answer,
    deleted_answer,
    file_answer,
    uploaded,
)
from app.multipart import MULTIPART
from app.training_files import add_files, fetch_file, locate_content, remove_file, rename_file
from app.wire import Wire

FILES = "/v1/flow/files"
MOST_FILES = 100
"""Of one request."""

PURPOSE = {"type": "string", "description": "What it is for; `fine-tune` unless said.", "example": "fine-tune"}
ONE = {
    "files": {"type": "string", "format": "binary", "description": "The file: JSONL, or Parquet of token ids."},
    "filename": {"type": "string", "format": "binary", "description": "A part whose content is the file's name."},
    "purpose": PURPOSE,
}
SEVERAL = {
    "files": {"type": "array", "items": ONE["files"], "description": "The files, each in a part of this name."},
    "purpose": PURPOSE,
}


class FileList(BaseModel):
    object: Literal["list"] = Field(description="`list`.", examples=["list"])
    data: list[FileObject] = Field(description="The files, in the order asked for.")


class RenameRequest(Wire):
    """Another name for a file."""

    new_filename: str = Field(description="1 to 255 printable characters; never a path.", examples=["b.jsonl"])


RenameBody = Annotated[
    RenameRequest, Body(openapi_examples={"a name": {"summary": "A name", "value": {"new_filename": "b.jsonl"}}})
]


def form(parts: dict[str, Any]) -> dict[str, Any]:
    """The description of a multipart body, which its route reads itself."""
    schema = {"type": "object", "required": ["files"], "properties": parts}
    shown = {"a file": {"value": {"files": "@facts.jsonl", "purpose": "fine-tune"}}}
    return {"requestBody": {"required": True, "content": {MULTIPART: {"schema": schema, "examples": shown}}}}


def file_routes() -> list[BaseRoute]:
    flow, counted = flow_router(), flow_router(counted=True)
    sent, one = problems(400, 401, 403, 413, 415, 429), problems(401, 403, 404)
    counted.put(
        FILES, summary="Send a training file", response_model=FileObject, responses=sent, openapi_extra=form(ONE)
    )(upload)
    counted.put(
        "/v1/flow/bulk_files",
        summary="Send several training files",
        response_model=list[FileObject],
        responses=sent,
        openapi_extra=form(SEVERAL),
    )(upload_several)
    flow.get(FILES, summary="List training files", response_model=FileList, responses=problems(400, 401, 403))(files)
    flow.get(FILES + "/{id}", summary="Get a training file", response_model=FileObject, responses=one)(file)
    flow.get(FILES + "/{id}/content", summary="Read a training file", responses=CONTENT | one)(content)
    flow.put(
        FILES + "/{id}/rename",
        summary="Rename a training file",
        response_model=FileObject,
        responses=problems(400, 401, 403, 404, 413, 415),
    )(rename)
    flow.delete(
        FILES + "/{id}", summary="Remove a training file", response_model=DeletedFile, responses=one | problems(409)
    )(remove)
    return [*counted.routes, *flow.routes]


async def upload(request: Request, server: ServerState, caller: Ingester) -> Response:
    """Keeps a file of training examples; a bad line refuses it, and every bad line is named.

    JSONL lines are `{"messages": [...]}`, the same with `chosen` and `rejected`, `{"question", "answer"}`,
    `{"prompt", "completion"}` or `{"text"}`; Parquet has the columns `input_ids`, `labels` and `attention_mask`.
    """
    new = await uploaded(request, "files")
    (file,) = await while_connected(
        request, add_files(server.explainer.database, server.explainer.shelf, caller.tenant, new)
    )
    return JsonResponse(file_answer(file))


async def upload_several(request: Request, server: ServerState, caller: Ingester) -> Response:
    """Keeps several files of training examples, all or none; up to 100."""
    new = await uploaded(request, "files", most=MOST_FILES)
    added = await while_connected(
        request, add_files(server.explainer.database, server.explainer.shelf, caller.tenant, new)
    )
    return JsonResponse([file_answer(file) for file in added])


async def files(found: Listed) -> Response:
    """The training files of the key's tenant, newest first unless asked otherwise."""
    return JsonResponse({"object": "list", "data": found})


async def file(server: ServerState, caller: Reader, id: FileId) -> Response:
    """One training file, without its content."""
    return JsonResponse(file_answer(await fetch_file(server.explainer.database, caller.tenant, id)))


async def content(server: ServerState, caller: Reader, id: FileId) -> Response:
    """The content of a training file, byte for byte as it came."""
    found = await locate_content(server.explainer.database, server.explainer.shelf, caller.tenant, id)
    return content_answer(*found)


async def rename(server: ServerState, caller: Ingester, id: FileId, body: RenameBody) -> Response:
    """Gives a training file another name."""
    row = await rename_file(server.explainer.database, caller.tenant, id, body.new_filename)
    return JsonResponse(file_answer(row))


async def remove(server: ServerState, caller: Ingester, id: FileId) -> Response:
    """Removes a training file; one that an influence index was made from stays, with a 409."""
    await remove_file(server.explainer.database, server.explainer.shelf, caller.tenant, id)
    return JsonResponse(deleted_answer(id))
