"""The second page: stored inferences, why each came out as it did, what matters to many, and what would change one."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Depends, Query, Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from app.definitions import Attribute
from app.dependencies import Asker, Caller, Reader, Server, ServerState, while_connected
from app.explainability import State, find_state
from app.explorer.pages import Page, page, swaps
from app.explorer.regions import (
    ALONE,
    BESIDE,
    COMPARATORS,
    INTERVALS,
    MOST_PAGES,
    PAGE_ROWS,
    PICTURES,
    Condition,
    Region,
    bars_query,
    columns,
    conditions_from,
    pictures_of,
    rows_query,
    tokens_query,
)
from app.explorer.session import PageRequest, counted_page_router, page_router
from app.explorer.trials import as_stored, given_from, has_breaks, most_inputs, outcome, sliders
from app.media_types import SVG
from app.monitored import Monitored, list_active
from app.on_demand import explain_inference, what_if
from app.pictures import explanation_plot, query_plot
from app.plots.canvas import Plot
from app.query import inference as stored_inference
from app.query import query
from app.refusals import UnknownModel
from explainers.errors import InvalidRequest
from explainers.surrogates import TABLE_ALGORITHMS, TEXT_ALGORITHMS
from storage.errors import InvalidValue

PATH = "/explorer/predictions"

Text = Annotated[str, Query(max_length=2_000)]
Texts = Annotated[list[str] | None, Query(max_length=20)]
PageNumber = Annotated[int, Query(ge=1, le=MOST_PAGES)]


@dataclass(frozen=True, slots=True)
class Asked:
    """What an address says of a region, before anybody knows whether there is such a thing."""

    model: str = ""
    output: str = ""
    algorithm: str = ""
    conditions: tuple[Condition, ...] = ()
    interval: str = "day"


async def asked_for(
    model: Text = "",
    output: Text = "",
    algorithm: Text = "",
    interval: Text = "day",
    property: Texts = None,
    comparator: Texts = None,
    value: Texts = None,
) -> Asked:
    return Asked(
        model, output, algorithm, conditions_from(property or (), comparator or (), value or ()), interval or "day"
    )


AskedFor = Annotated[Asked, Depends(asked_for)]


@dataclass(frozen=True, slots=True)
class Behind:
    """How a picture or a table is to be had from the API: a request, as JSON and as a line for a shell."""

    id: str
    words: str
    body: str
    line: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture and what it was asked with; without one, `words` say why."""

    plot: Plot | None
    behind: Behind
    words: str = ""


def prediction_routes() -> list[BaseRoute]:
    counted, keyed = counted_page_router(), page_router()
    counted.get(PATH)(front)
    counted.get(f"{PATH}/rows")(more_rows)
    counted.get(f"{PATH}/one")(one)
    counted.get(f"{PATH}/scores")(scores)
    keyed.post(f"{PATH}/explained")(explained)
    keyed.post(f"{PATH}/what-if")(tried)
    return [*counted.routes, *keyed.routes]


def part(request: Request, template: str, heading: str, **context: Any) -> Response:
    """A fragment, to be put into a page; for a browser without scripts a page of its own."""
    if swaps(request):
        return page(request, template, **context)
    return page(request, "part.html", here="Predictions", heading=heading, part=template, **context)


# -- many --------------------------------------------------------------------------------------------------------------


async def front(
    request: Request,
    server: ServerState,
    caller: Reader,
    asked: AskedFor,
    picture: Text = "",
    number: PageNumber = 1,
) -> Response:
    """Inferences that pass the filter, and a picture of their scores; for a swap these alone."""
    models = await list_active(server.explainer.database, caller.tenant)
    if not models and not asked.model:
        return page(request, "predictions.html", here="Predictions", models=[], region=None)
    region, state = await region_of(server, caller, asked)
    found = await rows_shown(request, server, caller, region, number)
    kinds = pictures_of(region)
    chosen = picture if picture in kinds else next(iter(kinds))
    shown = await query_shown(request, server, caller, region, PICTURES[chosen].query(region), "picture")
    template = "found.html" if swaps(request) else "predictions.html"
    return page(
        request, template, here="Predictions", models=models, state=state, kinds=kinds, chosen=chosen,
        shown=shown, **found, **choices(region),
    )  # fmt: skip


async def more_rows(
    request: Request, server: ServerState, caller: Reader, asked: AskedFor, number: PageNumber = 1
) -> Response:
    """Another page of the table."""
    region, _ = await region_of(server, caller, asked)
    return part(request, "rows.html", "Inferences", **await rows_shown(request, server, caller, region, number))


def choices(region: Region) -> dict[str, Any]:
    """What the form offers."""
    conditions = [*region.conditions, *[Condition()] * 2][: max(2, len(region.conditions))]
    properties = [*BESIDE, *(each.name for each in region.model.definition.attributes)]
    return {
        "conditions": conditions, "properties": properties, "comparators": COMPARATORS, "alone": ALONE,
        "intervals": INTERVALS, "outputs": outputs_of(region.model), "algorithms": algorithms(region.model),
    }  # fmt: skip


async def region_of(server: Server, caller: Caller, asked: Asked) -> tuple[Region, State]:
    """What is looked at: a model by its id or name, else the first; its positive output; the configured algorithm.

    Raises `UnknownModel`, and InvalidRequest for an output, an algorithm or an interval that there is not.
    """
    models = await list_active(server.explainer.database, caller.tenant)
    named = (each for each in models if asked.model in ("", str(each.id), each.definition.partner_model_id))
    model = next(named, None)
    if model is None:
        raise UnknownModel(asked.model)
    _, state = await find_state(server.explainer, caller.tenant, str(model.id))
    outputs = outputs_of(model)
    usual = next((each.name for each in sorted(outputs, key=lambda each: not each.positive)), "")
    for given, known, pointer in (
        (asked.output, [each.name for each in outputs], "/output"),
        (asked.algorithm, algorithms(model), "/algorithm"),
        (asked.interval, INTERVALS, "/interval"),
    ):
        if given and given not in known:
            raise InvalidRequest(f"must be one of: {', '.join(known)}", pointer)
    algorithm = asked.algorithm or state.acting.algorithm
    return Region(model, asked.output or usual, algorithm, asked.conditions, asked.interval), state


def outputs_of(model: Monitored) -> tuple[Attribute, ...]:
    return model.definition.of_stage("PREDICTED_VALUE")


def algorithms(model: Monitored) -> tuple[str, ...]:
    return tuple(TEXT_ALGORITHMS if model.definition.input_type == "NLP" else TABLE_ALGORITHMS)


async def rows_shown(request: Request, server: Server, caller: Caller, region: Region, number: int) -> dict[str, Any]:
    """A page of the table, and the query behind it."""
    body = rows_query(region, number)
    rows = await query(server.explainer.database, caller.tenant, str(region.model.id), body)
    return {
        "region": region,
        "place": place_of(region),
        "rows": rows[:PAGE_ROWS], "more": len(rows) > PAGE_ROWS and number < MOST_PAGES, "number": number,
        "columns": columns(region.model),
        "behind_rows": behind(request, region, body, "rows"),
    }  # fmt: skip


def place_of(region: Region) -> str:
    """The address of a region, after the question mark."""
    pairs = [("model", str(region.model.id)), ("output", region.output), ("algorithm", region.algorithm)]
    for each in region.conditions:
        pairs += [("property", each.property), ("comparator", each.comparator), ("value", each.value)]
    return urlencode([*pairs, ("interval", region.interval)])


async def query_shown(
    request: Request, server: Server, caller: Caller, region: Region, body: Mapping[str, Any], id: str
) -> Shown:
    """The picture of a query's rows, or in words why there is none."""
    asked = behind(request, region, body, id)
    try:
        rows = await query(server.explainer.database, caller.tenant, str(region.model.id), body)
        return Shown(await asyncio.to_thread(query_plot, body, rows), asked)
    except (InvalidRequest, InvalidValue) as error:
        return Shown(None, asked, str(error))


def behind(request: Request, region: Region, body: Mapping[str, Any], id: str) -> Behind:
    """The same of `POST /query`."""
    whole = {"model_id": str(region.model.id), **body}
    form = "" if id == "rows" else f" -H 'Accept: {SVG}'"
    shell = shlex.quote(json.dumps(whole, ensure_ascii=False))
    line = f"curl -s {origin(request)}/query {KEY}{form} -H 'Content-Type: application/json' -d {shell}"
    return Behind(id, "POST /query", json.dumps(whole, indent=2, ensure_ascii=False), line)


KEY = '-H "Authorization: Bearer $KEY"'


def origin(request: Request) -> str:
    return shlex.quote(str(request.base_url).rstrip("/"))


# -- one ---------------------------------------------------------------------------------------------------------------


async def one(request: Request, server: ServerState, caller: Reader, asked: AskedFor, inference: Text) -> Response:
    """One inference: its values, the picture of its scores, and for who may compute, what would change it."""
    region, state = await region_of(server, caller, asked)
    row = await stored_inference(server.explainer.database, caller.tenant, str(region.model.id), inference)
    inputs = {each.name: row.get(each.name) for each in region.inputs}
    outputs = {each.name: row.get(each.name) for each in outputs_of(region.model)}
    rest = {name: value for name, value in row.items() if name not in inputs and name not in outputs}
    return page(
        request, "inference.html", here="Predictions", region=region, state=state, inference=inference, inputs=inputs,
        outputs=outputs, rest=rest, computes=caller.may("explain") and state.works, sliders=sliders(region.inputs, row),
        most_inputs=most_inputs(), algorithms=algorithms(region.model), all_outputs=outputs_of(region.model),
    )  # fmt: skip


async def scores(request: Request, server: ServerState, caller: Reader, asked: AskedFor, inference: Text) -> Response:
    """The stored scores of an inference: bars, or the heat map of its text."""
    region, state = await region_of(server, caller, asked)
    body = (tokens_query if region.is_text else bars_query)(region, inference)
    shown = await query_shown(request, server, caller, region, body, "scores")
    missing = shown.plot is None and caller.may("explain") and state.works
    said = {"model": region.model.id, "inference": inference, "output": region.output, "algorithm": region.algorithm}
    return part(request, "picture.html", inference, shown=shown, compute=said if missing else {})


async def explained(request: Request, server: ServerState, caller: Asker) -> Response:
    """The scores of an inference, computed where they are not stored: a waterfall where they add up to the output."""
    fields = await fields_of(request)
    inference, plot = fields.get("inference", ""), fields.get("plot", "")
    region, _ = await region_of(server, caller, asked_in(fields))
    id = str(region.model.id)
    work = explain_inference(server.explainer_for(caller), caller.tenant, id, inference, region.algorithm, None)
    found = await while_connected(request, work)
    row = await stored_inference(server.explainer.database, caller.tenant, id, inference)
    drawing = await asyncio.to_thread(explanation_plot, found, inference, row, output=region.output, kind=plot or None)
    shown = Shown(drawing, behind_explanation(request, region, inference, plot))
    return part(request, "picture.html", inference, shown=shown)


def behind_explanation(request: Request, region: Region, inference: str, plot: str) -> Behind:
    """The same of the route of explanations, whose request has no body."""
    path = f"/api/v3/models/{region.model.id}/inferences/{quote(inference)}/explanation"
    asked = {"algorithm": region.algorithm, "predicted_attribute_name": region.output}
    asked |= {"plot": plot} if plot else {}
    pairs = " ".join(f"--data-urlencode {shlex.quote(f'{name}={value}')}" for name, value in asked.items())
    line = f"curl -s -G {origin(request)}{shlex.quote(path)} {KEY} -H 'Accept: {SVG}' {pairs}"
    whole = {"path": path, "query": asked, "headers": {"Accept": SVG}}
    return Behind(plot or "explained", "The explanation by GET", json.dumps(whole, indent=2, ensure_ascii=False), line)


async def fields_of(request: Request) -> dict[str, str]:
    """What a form says, but for files."""
    assert isinstance(request, PageRequest)  # noqa: S101 - the route makes it one
    return {name: value for name, value in (await request.fields()).items() if isinstance(value, str)}


def asked_in(fields: Mapping[str, str]) -> Asked:
    return Asked(fields.get("model", ""), fields.get("output", ""), fields.get("algorithm", ""))


async def tried(request: Request, server: ServerState, caller: Asker) -> Response:
    """What the model says of other inputs, against the inference that they were changed from. Nothing is stored."""
    fields = await fields_of(request)
    region, _ = await region_of(server, caller, asked_in(fields))
    given = await given_in(server, caller, region, fields)
    work = what_if(
        server.explainer_for(caller), caller.tenant, str(region.model.id), given, algorithm=region.algorithm,
        original=fields.get("inference", ""),
    )  # fmt: skip
    found = await while_connected(request, work)
    drawing = await asyncio.to_thread(
        explanation_plot, found.explanation, "the changed row", dict(given), output=region.output
    )
    changes = [None] * len(found.outputs) if found.change is None else found.change.tolist()
    told = map(outcome, found.predicted.tolist(), changes)
    outputs = [(name, *each) for name, each in zip(found.outputs, told, strict=True)]
    shown = Shown(drawing, behind_trial(request, region, given, fields.get("inference", "")))
    return part(request, "trial.html", "What if?", outputs=outputs, output=region.output, shown=shown)


async def given_in(server: Server, caller: Caller, region: Region, fields: Mapping[str, str]) -> list[tuple[str, Any]]:
    """The inputs in a form; a text in which nothing but line breaks is other than stored is the stored one."""
    given = given_from(region.inputs, fields)
    if not any(isinstance(value, str) and has_breaks(value) for _, value in given):
        return given
    id, inference = str(region.model.id), fields.get("inference", "")
    row = await stored_inference(server.explainer.database, caller.tenant, id, inference)
    return [(name, as_stored(value, row.get(name))) for name, value in given]


def behind_trial(request: Request, region: Region, given: Sequence[tuple[str, Any]], inference: str) -> Behind:
    inputs = [{"attribute_name": name, "attribute_value": value} for name, value in given]
    whole = {"model_pipeline_input": inputs, "algorithm": region.algorithm, "compare_to": inference}
    address = f"{origin(request)}/api/v3/models/{region.model.id}/what_if"
    shell = shlex.quote(json.dumps(whole, ensure_ascii=False))
    line = f"curl -s {address} {KEY} -H 'Content-Type: application/json' -d {shell}"
    words = f"POST /api/v3/models/{region.model.id}/what_if"
    return Behind("trial", words, json.dumps(whole, indent=2, ensure_ascii=False), line)


PAGE = Page("Predictions", PATH, ("read",), prediction_routes)
