"""Training files on the wire of every dialect: their JSON, the parameters of lists, and how an upload is read."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path as FilePath
from typing import Annotated, Any, BinaryIO, Literal, TypeAlias
from urllib.parse import quote

from fastapi import Depends, Path, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import FileResponse, Response

from app.dependencies import Reader, ServerState
from app.errors import Responses
from app.multipart import Form
from app.training_files import NewFile, Purpose, list_files, wire_id
from explainers.errors import InvalidRequest
from storage.training_tables import TrainingFile

Order: TypeAlias = Literal["asc", "desc"]

FileId = Annotated[str, Path(description="Id of a file.", examples=["file-9b1f3a52-77aa-4a31-8f0e-2f9c44d0a6e1"])]
Limit = Annotated[int, Query(ge=1, le=10_000, description="Most files to list.", examples=[100])]
Offset = Annotated[int, Query(ge=0, lt=2**63, description="Files to skip.", examples=[0])]
SortBy = Annotated[
    Literal["created_at", "filename", "type", "size"], Query(description="What to sort by.", examples=["created_at"])
]
SortOrder = Annotated[Order, Query(description="`desc`: newest, last or largest first.", examples=["desc"])]
OfPurpose = Annotated[Purpose | None, Query(description="Only of this purpose.", examples=["fine-tune"])]

CONTENT: Responses = {
    200: {
        "description": "The bytes as they came, with their number.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


async def listed(
    server: ServerState,
    caller: Reader,
    limit: Limit = 100,
    offset: Offset = 0,
    sort_by: SortBy = "created_at",
    sort_order: SortOrder = "desc",
    purpose: OfPurpose = None,
) -> list[dict[str, Any]]:
    """The files that the parameters of a list ask for, as JSON."""
    rows = await list_files(
        server.explainer.database,
        caller.tenant,
        purpose=purpose,
        sort=sort_by,
        descending=sort_order == "desc",
        offset=offset,
        limit=limit,
    )
    return [file_answer(row) for row in rows]


Listed = Annotated[list[dict[str, Any]], Depends(listed)]


class FileObject(BaseModel):
    """A training file."""

    id: str = Field(description="Id of the file.", examples=["file-9b1f3a52-77aa-4a31-8f0e-2f9c44d0a6e1"])
    object: Literal["file"] = Field(description="`file`.", examples=["file"])
    created_at: datetime = Field(description="When it was stored.", examples=["2026-03-01T08:00:00Z"])
    type: Literal["jsonl", "parquet"] = Field(description="As the content says itself.", examples=["jsonl"])
    purpose: Purpose = Field(description="As it was said.", examples=["fine-tune"])
    filename: str = Field(description="As it was said; never a path.", examples=["facts.jsonl"])
    bytes: int = Field(description="Size of the content.", examples=[20480])
    lines: int = Field(description="Training examples in it.", examples=[240])


class DeletedFile(BaseModel):
    """A training file that is gone."""

    id: str = Field(description="Id of the file.", examples=["file-9b1f3a52-77aa-4a31-8f0e-2f9c44d0a6e1"])
    object: Literal["file"] = Field(description="`file`.", examples=["file"])
    deleted: Literal[True] = Field(description="Always true.", examples=[True])


def file_answer(file: TrainingFile) -> dict[str, Any]:
    own = {name: getattr(file, name) for name in ("created_at", "type", "purpose", "filename", "bytes", "lines")}
    return {"id": wire_id(file.id), "object": "file"} | own


def deleted_answer(file: str) -> dict[str, Any]:
    return {"id": file, "object": "file", "deleted": True}


def content_answer(file: TrainingFile, path: FilePath) -> Response:
    """The content: never compressed, and never in chunks of unknown number."""
    name = f"attachment; filename*=UTF-8''{quote(file.filename, safe='')}"
    return FileResponse(path, media_type="application/octet-stream", headers={"Content-Disposition": name})


async def uploaded(request: Request, *names: str, most: int = 1) -> list[NewFile]:
    """The files in the parts of these names. `filename`, a text or a file that holds it, outdoes the name of a part."""
    async with Form(request, most_files=most + 1) as form:
        parts = [part for name in names for part in form.named(name)]
        if not 1 <= len(parts) <= most:
            told = f"at most {most} files" if parts else f"the part {names[0]}"
            raise InvalidRequest(f"needs {told}", f"/{names[0]}")
        said, purpose = await said_name(form), form.text("purpose") or "fine-tune"
        return [NewFile(said or name, purpose, await content_of(file)) for name, file in parts]


async def said_name(form: Form) -> str | None:
    file = form.file("filename")
    if file is None:
        return form.text("filename")
    try:
        return (await content_of(file)).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest("must be UTF-8", "/filename") from None


async def content_of(file: BinaryIO) -> bytes:
    return await asyncio.to_thread(file.read)
