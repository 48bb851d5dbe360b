"""Two tenants on one server: neither sees, names, changes or learns of anything that is the other's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text

from app.dependencies import KeyedRoute
from storage import models
from storage import tenants as tenants_stored
from storage.migrations import SCHEMA
from tests.app import predictors
from tests.app.conftest import PROMPT, TARGET, Running, Start, until
from tests.app.tenants import CHILDREN, MARK, Names, Operation, Tenant, absent, keyed, made, operations
from tests.app.test_limits import hold

pytestmark = pytest.mark.anyio

SCOPES = ("read", "explain", "ingest", "admin")
OPEN = {"GET /healthz", "GET /readyz", "GET /version", "GET /v1/version", "POST /api/v3/login"}
OPEN |= {"GET /explorer/sign-in", "POST /explorer/sign-in", "GET /explorer/static/{name}"}
STRANGER = Tenant("", {"Authorization": "Bearer x"})
OF_OURSELVES = {"GET /openapi.json", "GET /docs", "POST /explorer/sign-out"}
"""These any key may ask: they are about no tenant's things, or about one's own sign-in."""


@pytest.fixture(scope="module")
async def server(start: Start, models_dir: Path, tiny_lm: Path) -> AsyncIterator[Running]:
    async with start() as running:
        await without_models(running)
        yield running


async def without_models(running: Running) -> None:
    """Other tests share the database, and a server loads the models of all tenants."""
    database = running.server.explainer.database
    async with database.transaction() as session:
        names = [tenant.id for tenant in await tenants_stored.list_all(session)]
    for name in names:
        async with database.transaction(tenant=name) as session:
            await session.execute(text("DELETE FROM models"))
    runtime = running.server.explainer.runtime
    runtime.keep_only([], runtime.known())


@pytest.fixture(scope="module")
async def tenants(server: Running, models_dir: Path) -> tuple[Tenant, Tenant]:
    """One with everything, and one with models and rows of its own."""
    predictor = predictors.boosted(models_dir, "isolated")
    return await made(server, MARK, predictor, whole=True), await made(server, "beta", predictor, whole=False)


def without(names: Mapping[str, str], answer: httpx.Response) -> tuple[Any, ...]:
    """All that can be told from an answer, but for the names that were in the question."""
    body = answer.text
    for noun, name in sorted(names.items(), key=lambda each: -len(each[1])):
        body = body.replace(name, f"<{noun}>")
    headers = {name: value for name, value in answer.headers.items() if name not in ("x-request-id", "content-length")}
    return answer.status_code, headers, body


async def rows_of(server: Running, tenant: Tenant) -> dict[str, Any]:
    """Number and digest of the tenant's rows in every table that has tenants."""
    found = {}
    await server.server.audit.flush()  # outcomes are written a moment after their answers
    async with server.server.explainer.database.transaction(tenant.name) as session:
        for name in SCHEMA.tables:
            query = f"SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {name} t"  # noqa: S608
            found[name] = tuple((await session.execute(text(query))).one())
    found.pop("tenants")  # a list that all may read
    return found


# -- scopes ------------------------------------------------------------------------------------------------------------


async def test_every_operation_documents_its_scopes_and_keeps_to_them(server: Running) -> None:
    """With a key of each single scope, of a tenant that has nothing; no body is sent, so nothing comes about."""
    document = server.app.openapi()
    keys = {scope: await server.key(scope, tenant=f"scopes-{scope}") for scope in SCOPES}
    walked = set()
    for each in operations(server):
        walked.add(each.name)
        if each.name in OPEN | OF_OURSELVES:
            continue
        needs = getattr(each.route, "needs", None)
        assert isinstance(each.route, KeyedRoute) and needs is not None, each.name
        told = document["paths"].get(each.path, {}).get(each.method.lower())
        if told is not None:
            assert [list(way["key"]) for way in told["security"]] == [[scope] for scope in needs.scopes], each.name
            words = " or ".join(f"`{scope}`" for scope in needs.scopes)
            assert told["description"].endswith(f"Needs a key with the scope {words}."), each.name
        request = each.request(lambda _: {}, Names(absent(dict.fromkeys(NOUNS, ""))))
        for scope, key in keys.items():
            answer = await server.client.request(**request, headers=key)
            allowed = scope == "admin" or scope in needs.scopes
            assert (answer.status_code != 403) == allowed and answer.status_code != 401, (each.name, scope, answer.text)
            if not allowed:
                assert answer.json()["code"] == "FORBIDDEN" and "scope" in answer.json()["detail"]
    described = {f"{method.upper()} {path}" for path, item in document["paths"].items() for method in item}
    assert described <= walked


NOUNS = ("tenant", "model", "partner", "monitored", "inference", "batch", "file", "deployment", "enrichment",
         "explanation", "job")  # fmt: skip


# -- things ------------------------------------------------------------------------------------------------------------


async def test_a_cursor_of_the_other_leads_nowhere(server: Running, tenants: tuple[Tenant, Tenant]) -> None:
    owner, other = tenants
    for place in ("/jobs", "/explanations", "/audit"):
        page = (await owner.ask(server, method="GET", url=f"{place}?limit=1")).json()
        answer = await other.ask(server, method="GET", url=place, params={"cursor": page["next_cursor"], "limit": 500})
        assert page["next_cursor"] and answer.status_code == 200 and names_nothing(answer, owner)
        assert MARK not in answer.text


async def test_whatever_is_remembered_is_remembered_for_a_tenant(
    server: Running, tenants: tuple[Tenant, Tenant]
) -> None:
    """All that a server keeps in memory between requests."""
    owner, other = tenants
    asked = {"model_id": owner.names["model"], "question": "Who?", "answer": "Anna."}
    assert (await owner.ask(server, method="POST", url="/influence", json=asked)).status_code == 200
    explainer = server.server.explainer
    loaded, scorers = explainer.runtime._known, explainer.scorers._known
    assert {tenant for tenant, _ in loaded} == {owner.name, other.name}
    for kept in (explainer.rates._taken, scorers):
        assert {key[0] for key in kept if isinstance(key, tuple)} == {owner.name}, kept.keys()
    assert {folder.parent.name for folder in explainer.indexes._known} == {owner.name}


async def test_the_others_things_are_as_if_they_did_not_exist(server: Running, tenants: tuple[Tenant, Tenant]) -> None:
    """In every route, and every place of it where a thing can be named; then the owner does find them all."""
    owner, other = tenants
    assert set(owner.names) == set(NOUNS)
    none = absent(owner.names)
    before = await rows_of(server, owner)
    named, asked, told = set(), list[tuple[Operation, Any]](), list[tuple[str, Any, Any]]()
    for each in keyed(server):
        for ask in each.asks:
            theirs, missing = Names(owner.names), Names(none)
            answer = await other.ask(server, **each.request(ask, theirs))
            if not theirs.used - {"enrichment"}:
                assert MARK not in answer.text + str(answer.headers) and names_nothing(answer, owner), each.name
                continue
            named |= theirs.used
            asked.append((each, ask))
            control = await other.ask(server, **each.request(ask, missing))
            if without(owner.names, answer) != without(none, control):
                told.append((each.name, without(owner.names, answer), without(none, control)))
            stranger = await STRANGER.ask(server, **each.request(ask, theirs))
            assert stranger.status_code == 401 and MARK not in stranger.text
            if theirs.used & CHILDREN and theirs.used - CHILDREN:
                await beside_ones_own(server, other, each, ask, owner.names, none)
    assert not told and named == set(NOUNS)
    assert await rows_of(server, owner) == before
    for each, ask in asked:
        answer = await owner.ask(server, **each.request(ask, Names(owner.names)))
        if answer.status_code in (401, 403, 404) or answer.status_code >= 500:
            told.append((each.name, answer.text, None))
    assert not told


def names_nothing(answer: httpx.Response, owner: Tenant) -> bool:
    said = answer.text + str(answer.headers)
    return not any(name in said for noun, name in owner.names.items() if noun != "enrichment")


async def beside_ones_own(
    server: Running, other: Tenant, each: Operation, ask: Any, theirs: Mapping[str, str], none: Mapping[str, str]
) -> None:
    """A stranger's file for one's own model, a stranger's inference of one's own model, ..."""
    own = {noun: name for noun, name in other.names.items() if noun not in CHILDREN}
    answers = []
    for names in (theirs, none):
        mixed = Names(own | {noun: names[noun] for noun in CHILDREN})
        answers.append(without(mixed, await other.ask(server, **each.request(ask, mixed))))
    assert answers[0] == answers[1], each.name


# -- what is kept in memory --------------------------------------------------------------------------------------------


BODY = {"model": "shared", "prompt": PROMPT, "target": TARGET}


@pytest.fixture(scope="module")
async def namesakes(server: Running, tiny_lm: Path) -> tuple[Tenant, Tenant]:
    """Two tenants that have the same model under the same name."""
    found = []
    for name in (f"{MARK}-{uuid4().hex[:8]}", f"beta-{uuid4().hex[:8]}"):
        found.append(Tenant(name, await server.key("admin", tenant=name)))
        await server.add(tiny_lm, "shared", tenant=name)
    return found[0], found[1]


async def test_the_same_question_is_answered_for_each(server: Running, namesakes: tuple[Tenant, Tenant]) -> None:
    """From no store and no flight of the other's, and with a forecast of one's own experience."""
    owner, other = namesakes
    dry = {"method": "POST", "url": "/explain", "json": BODY | {"dry_run": True}}
    first = (await owner.ask(server, method="POST", url="/explain", json=BODY)).json()
    assert (await owner.ask(server, **dry)).json()["seconds"] is not None
    assert (await other.ask(server, **dry)).json()["seconds"] is None
    second = (await other.ask(server, method="POST", url="/explain", json=BODY)).json()
    assert second["id"] != first["id"] and second["explanations"] == first["explanations"]
    assert (await owner.ask(server, method="POST", url="/explain", json=BODY)).json()["id"] == first["id"]
    listed = (await other.ask(server, method="GET", url="/explanations")).json()["explanations"]
    assert [each["id"] for each in listed] == [second["id"]]


async def test_nobody_joins_a_strangers_flight(server: Running, namesakes: tuple[Tenant, Tenant]) -> None:
    flights, release = server.server.explainer.flights, await hold(server)
    try:
        body = BODY | {"target": " Rome"}
        asked = [each.ask(server, method="POST", url="/explain", json=body) for each in (*namesakes, *namesakes)]
        waiting = [asyncio.create_task(each) for each in asked]
        await until(lambda: flights.waiters == 4)
        assert len(flights) == 2
    finally:
        release.set()
    answers = [answer.json() for answer in await asyncio.gather(*waiting)]
    assert len({answer["id"] for answer in answers}) == 2
    assert answers[0]["id"] == answers[2]["id"] and answers[1]["id"] == answers[3]["id"]


async def test_a_refusal_names_nothing_of_the_other(
    server: Running, namesakes: tuple[Tenant, Tenant], tmp_path: Path
) -> None:
    """Two names for one folder that cannot be read: each is told of its own."""
    for tenant, name in zip(namesakes, (f"{MARK}-broken", "beta-broken"), strict=True):
        async with server.server.explainer.database.transaction(tenant.name) as session:
            await models.add(session, name=name, kind="causal-lm", path=str(tmp_path / "gone"))
        answer = await tenant.ask(server, method="POST", url="/explain", json=BODY | {"model": name})
        assert answer.status_code == 400 and str(tmp_path) not in answer.text, answer.text
        reason = (await tenant.ask(server, method="GET", url=f"/models/{name}")).json()["reason"]
        assert name in reason and str(tmp_path) not in reason
    assert MARK not in answer.text + reason
