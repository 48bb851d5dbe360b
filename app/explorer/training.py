"""Where an answer came from in the training data: the pairs behind it, and how their wording differs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.dependencies import Asker, Caller, Reader, ReaderOrAsker, Server, ServerState, while_connected
from app.differences import Run, differences
from app.explain import StoredOther, fetch_explanation
from app.explorer.pages import Page, page, swaps
from app.explorer.session import PageRequest, moved, page_router
from app.influence import KIND, Question, named
from app.jobs import trace_or_submit
from app.models import list_models
from app.pairs_page import PairRow, pair_rows, reason_of
from app.refusals import NotFound
from app.training_files import fetch_file
from explainers.influence.levels import LEVELS
from storage import errors as storage_errors

PATH = "/explorer/training"
MOST = 50
"""Pairs of a page; a filter brings the others forward."""
SHOWN_LEVELS = LEVELS[:3]

Filtered = Annotated[str, Query(max_length=200)]


@dataclass(frozen=True, slots=True)
class Shown:
    """A pair beside the question: how its own question and answer differ from what was asked and said.

    None where the texts are too long to be compared.
    """

    row: PairRow
    file: str
    question: tuple[Run, ...] | None
    answer: tuple[Run, ...] | None


def training_routes() -> list[BaseRoute]:
    keyed = page_router()
    keyed.get(PATH)(form)
    keyed.post(PATH)(ask)
    keyed.get(f"{PATH}/{{id}}")(answer)
    return keyed.routes


async def form(request: Request, server: ServerState, caller: ReaderOrAsker) -> Response:
    return await whole_page(request, server, caller, None, {})


async def ask(request: PageRequest, server: ServerState, caller: Asker) -> Response:
    """Answers, and shows the answer under its own address, or here to who could not open that."""
    question = question_from(await request.fields())
    explainer = server.explainer_for(caller)
    resolved = await named(explainer, caller.tenant, question)
    found = await while_connected(request, trace_or_submit(explainer, server.jobs, caller.tenant, resolved))
    place, reads = f"{PATH}/{found.id}", caller.may("read")
    if reads and not swaps(request):
        return moved(place)
    about = await shown(server, caller, found.id, resolved.question, found.content, "", "")
    if not swaps(request):
        return await whole_page(request, server, caller, asdict(question), about)
    response = page(request, "training_answer.html", **about)
    if reads:
        response.headers["HX-Push-Url"] = place
    return response


def question_from(fields: Mapping[str, Any]) -> Question:
    """Raises InvalidRequest."""
    texts = {name: fields.get(name, "") for name in ("model", "question", "answer", "system_prompt")}
    plain = {name: text.replace("\r\n", "\n") if isinstance(text, str) else "" for name, text in texts.items()}
    return Question(plain["model"], plain["question"], plain["answer"] or None, plain["system_prompt"] or None)


async def answer(
    request: Request, server: ServerState, caller: Reader, id: str, level: Filtered = "", file: Filtered = ""
) -> Response:
    """A stored answer; the filter changes its list in place."""
    stored = await fetch_explanation(server.explainer.database, caller.tenant, id)
    if not isinstance(stored, StoredOther) or stored.kind != KIND:  # a map of a prompt
        return moved(f"/explorer/stored/{stored.id}")
    about = await shown(server, caller, stored.id, stored.request["question"], stored.content, level, file)
    if swaps(request):
        return page(request, "training_pairs.html", **about)
    asked = {"model": stored.model} | dict(stored.request)
    return await whole_page(request, server, caller, asked, about)


async def whole_page(
    request: Request, server: Server, caller: Caller, asked: Mapping[str, Any] | None, about: Mapping[str, Any]
) -> Response:
    models = await models_of(server, caller)
    return page(request, "training.html", here="Training data", asked=asked, **about, **models)


async def models_of(server: Server, caller: Caller) -> dict[str, Any]:
    """Language models by name, fine-tunes first."""
    entries = await list_models(server.explainer.database, server.explainer.runtime, caller.tenant)
    found = [each.registration for each in entries if each.registration.kind == "causal-lm"]
    return {"models": [each.name for each in sorted(found, key=lambda each: (each.base is None, each.name))]}


async def shown(
    server: Server, caller: Caller, id: UUID, question: str, content: Mapping[str, Any], level: str, file: str
) -> dict[str, Any]:
    """What the templates show of an answer."""
    rows = pair_rows(content)
    files = await names_of(server, caller, {row.file_id for row in rows})
    kept = [row for row in rows if level in ("", row.level) and file in ("", row.file_id)]
    compared = await asyncio.to_thread(beside, question, content["answer"], kept[:MOST], files)
    about = {
        "id": id,
        "said": content["answer"],
        "lift": content["lift"],
        "reason": None if rows else reason_of(content),
    }
    counts = {"count": len(kept), "whole": len(rows), "most": MOST}
    chosen = {"level": level, "file": file, "files": files, "levels": SHOWN_LEVELS}
    return about | counts | chosen | {"pairs": compared, "question": question}


async def names_of(server: Server, caller: Caller, ids: Iterable[str]) -> dict[str, str]:
    """What files are called; one that is gone by its id."""
    found = {}
    for id in sorted(ids):
        found[id] = id
        with suppress(NotFound, storage_errors.NotFound):
            found[id] = (await fetch_file(server.explainer.database, caller.tenant, id)).filename
    return found


def beside(question: str, answer: str, rows: Iterable[PairRow], files: Mapping[str, str]) -> list[Shown]:
    return [
        Shown(
            row,
            files[row.file_id],
            differences(question.strip(), row.question.strip()),
            differences(answer.strip(), row.answer.strip()),
        )
        for row in rows
    ]


PAGE = Page("Training data", PATH, ("read", "explain"), training_routes)
