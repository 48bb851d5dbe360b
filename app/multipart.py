"""Multipart bodies: their parts by name, whatever their file names and types say."""

from __future__ import annotations

from typing import BinaryIO

from fastapi import Request
from starlette.datastructures import UploadFile

from app.dependencies import media_type_of
from app.refusals import UnsupportedMediaType

MULTIPART = "multipart/form-data"
MOST_FILES = 4


class Form:
    """The parts of a multipart body; its files are gone at the end."""

    def __init__(self, request: Request, most_files: int = MOST_FILES) -> None:
        self.request, self.most_files = request, most_files

    async def __aenter__(self) -> Form:
        if media_type_of(self.request) != MULTIPART:
            raise UnsupportedMediaType("send the body with Content-Type: " + MULTIPART)
        self.parts = await self.request.form(max_files=self.most_files, max_fields=16)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.parts.close()

    def file(self, name: str) -> BinaryIO | None:
        part = self.parts.get(name)
        return part.file if isinstance(part, UploadFile) else None

    def file_name(self, name: str) -> str:
        """What the client calls a file: never a path of ours."""
        part = self.parts.get(name)
        return (part.filename or "") if isinstance(part, UploadFile) else ""

    def text(self, name: str) -> str | None:
        part = self.parts.get(name)
        return part if isinstance(part, str) and part else None

    def files(self) -> dict[str, BinaryIO]:
        """All files by the names of their parts."""
        return {name: part.file for name, part in self.parts.multi_items() if isinstance(part, UploadFile)}

    def named(self, name: str) -> list[tuple[str, BinaryIO]]:
        """All files in parts of that name, each with what the client calls it."""
        parts = [part for part in self.parts.getlist(name) if isinstance(part, UploadFile)]
        return [(part.filename or "", part.file) for part in parts]
