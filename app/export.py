"""Stored explanations in the forms that people take away: JSON, CSV, a page and a picture that stand alone.

Many are sent as they are read, some at a time: as one JSON document, as one table, or as an archive (zip) of pages or
pictures. A table is made to be opened by a spreadsheet: a text that one would take for a formula begins with `'`.
"""

from __future__ import annotations

import asyncio
import csv
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic_core import to_json

from app.explain import Stored, StoredOther, batches
from app.heatmap import heat_map
from app.heatmap_svg import heat_map_svg
from app.pairs_page import pairs_page, pairs_svg
from app.records import attribution_record, place_record
from storage.database import Database
from storage.explanations import Filter

Kept: TypeAlias = Stored | StoredOther
Form: TypeAlias = Literal["json", "csv", "html", "svg"]

COLUMNS = (
    "explanation", "created_at", "kind", "model", "model_digest", "method", "target_index", "target", "item", "place",
    "text", "score", "uncertainty", "level", "impact", "q_value", "group_size", "file_id", "line",
)  # fmt: skip
"""Of the table: one row for each target and part of the prompt, or for each training pair."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What spreadsheets take for the beginning of a formula."""


@dataclass(frozen=True, slots=True)
class Exported:
    """How many explanations are sent in a form: the media type, the ending of the file's name, and the writer."""

    media_type: str
    ending: str
    write: Callable[[AsyncIterator[list[Kept]]], AsyncIterator[bytes]]


def export(database: Database, tenant: str, filter: Filter, form: Form) -> AsyncIterator[bytes]:
    """All that are meant, newest first; what is stored meanwhile is left out."""
    return FORMS[form].write(batches(database, tenant, filter))


def json_answer(stored: Kept) -> dict[str, Any]:
    """An explanation, complete."""
    record = attribution_record(stored.attribution) if isinstance(stored, Stored) else dict(stored.content)
    return {
        "id": str(stored.id),
        "kind": stored.kind,
        "model": stored.model,
        "model_digest": stored.model_digest,
        "request": stored.request,
        "attribution": record,
        "seconds": stored.seconds,
        "forwards": stored.forwards,
        "created_at": stored.created_at,
    }


def one(stored: Kept, form: Form) -> tuple[bytes, str]:
    """One explanation in a form, and the media type of that."""
    match form:
        case "json":
            return to_json(json_answer(stored)), "application/json"
        case "csv":
            return encoded(table_of(stored)), "text/csv"
        case "html":
            return encoded(page_of(stored)), "text/html"
        case "svg":
            return encoded(picture_of(stored)), "image/svg+xml"


def page_of(stored: Kept) -> str:
    return heat_map(stored) if isinstance(stored, Stored) else pairs_page(stored)


def picture_of(stored: Kept) -> str:
    return heat_map_svg(stored) if isinstance(stored, Stored) else pairs_svg(stored)


def table_of(stored: Kept) -> str:
    """The table of one, with its head."""
    return csv_text([COLUMNS, *rows_of(stored)])


def rows_of(stored: Kept) -> Iterator[tuple[object, ...]]:
    if isinstance(stored, Stored):
        return score_rows(stored)
    return pair_rows(stored)


def score_rows(stored: Stored) -> Iterator[tuple[object, ...]]:
    found = stored.attribution
    uncertain = found.uncertainty
    for index, target in enumerate(found.targets):
        errors = [""] * len(found.features) if uncertain is None else uncertain[index].tolist()
        for feature, score, error in zip(found.features, found.values[index].tolist(), errors, strict=True):
            place = to_json(place_record(feature.place)).decode()
            about = (index, target.text, feature.item, place, feature.name, score, error)
            yield (*named(stored, found.method), *about, "", "", "", "", "", "")


def pair_rows(stored: StoredOther) -> Iterator[tuple[object, ...]]:
    found = stored.content
    for each in found["results"]:
        about = (0, found["answer"], "", "", each["messages"], each["score"], "")
        numbers = (each["influence_level"], each["impact"], each["q_value"], each["group_size"])
        yield (*named(stored, found["method"]), *about, *numbers, each["file_id"], each.get("line", ""))


def named(stored: Kept, method: str) -> tuple[object, ...]:
    time = stored.created_at.isoformat()
    return (str(stored.id), time, stored.kind, stored.model, stored.model_digest, method)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """RFC 4180; numbers with every digit."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows([cell(value) for value in row] for row in rows)
    return text.getvalue()


def rows_text(stored: Kept) -> bytes:
    return encoded(csv_text(rows_of(stored)))


def cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def encoded(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which it cannot hold, becomes the sign for what is lost."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


async def as_json(found: AsyncIterator[list[Kept]]) -> AsyncIterator[bytes]:
    """One document, `{"explanations": [...]}`; one that is cut off is none."""
    yield b'{"explanations":['
    before = b""
    async for some in found:
        for stored in some:
            yield before + await asyncio.to_thread(to_json, json_answer(stored))
            before = b",\n"
    yield b"]}"


async def as_table(found: AsyncIterator[list[Kept]]) -> AsyncIterator[bytes]:
    yield encoded(csv_text([COLUMNS]))
    async for some in found:
        for stored in some:
            yield await asyncio.to_thread(rows_text, stored)


async def as_pages(found: AsyncIterator[list[Kept]]) -> AsyncIterator[bytes]:
    async for part in archived(found, page_of, "html"):
        yield part


async def as_pictures(found: AsyncIterator[list[Kept]]) -> AsyncIterator[bytes]:
    async for part in archived(found, picture_of, "svg"):
        yield part


async def archived(found: AsyncIterator[list[Kept]], draw: Callable[[Kept], str], ending: str) -> AsyncIterator[bytes]:
    """One file for each explanation, named for its id."""
    sink = Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        async for some in found:
            for stored in some:
                await asyncio.to_thread(add, archive, stored, draw, ending)
                yield sink.taken()
    yield sink.taken()


def add(archive: zipfile.ZipFile, stored: Kept, draw: Callable[[Kept], str], ending: str) -> None:
    entry = zipfile.ZipInfo(f"{stored.id}.{ending}", stored.created_at.timetuple()[:6])
    archive.writestr(entry, encoded(draw(stored)), zipfile.ZIP_DEFLATED)


class Sink(io.RawIOBase):
    """Where an archive is written that nobody can go back in; gives away what has come so far."""

    def __init__(self) -> None:
        self.waiting = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.waiting += data
        return len(data)

    def taken(self) -> bytes:
        found, self.waiting = bytes(self.waiting), bytearray()
        return found


FORMS: dict[Form, Exported] = {
    "json": Exported("application/json", "json", as_json),
    "csv": Exported("text/csv", "csv", as_table),
    "html": Exported("application/zip", "html.zip", as_pages),
    "svg": Exported("application/zip", "svg.zip", as_pictures),
}
