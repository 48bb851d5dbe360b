"""Tenants, API keys, models and explanations."""

from __future__ import annotations

import base64
import json
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from storage import api_keys, explanations, models, tenants
from storage.database import Database
from storage.errors import AlreadyExists, InUse, InvalidCursor, InvalidValue, NotFound
from storage.ids import time_ordered
from storage.tables import EndedSession, Explanation
from tests.storage.test_tenancy import explanation

texts = st.text(st.characters(exclude_categories=[])).map(lambda text: json.loads(json.dumps(text)))
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers()
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
)
ODD = "\0 \x01 \ud800 x \udfff \U0001f642 \\u0000 \\ ' \" \u2028 e\u0301"


def bits(value: Any) -> Any:
    """The value with floats as their eight bytes: 0.0 and -0.0, 1 and 1.0 differ."""
    if isinstance(value, float):
        return struct.pack("d", value)
    if isinstance(value, list):
        return [bits(item) for item in value]
    if isinstance(value, dict):
        return [(key, bits(item)) for key, item in value.items()]
    return value


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=st.dictionaries(texts, values, max_size=5), scores=st.lists(numbers, max_size=20))
async def test_json_comes_back_exactly(
    database: Database, tenant: str, request: dict[str, Any], scores: list[float]
) -> None:
    fields = explanation(request=request, attribution={"values": scores})
    await explanations.add(database, tenant, **fields)
    async with database.transaction(tenant) as session:
        row = await explanations.get(session, fields["id"])
    assert bits(row.request) == bits(request)
    assert bits(row.attribution) == bits({"values": scores})


async def test_odd_text_comes_back_exactly(database: Database, tenant: str) -> None:
    fields = explanation(request={"prompt": ODD, ODD: 1}, seconds=0.1 + 0.2)
    await explanations.add(database, tenant, **fields)
    async with database.transaction(tenant) as session:
        row = await explanations.get(session, fields["id"])
    assert (row.tenant_id, row.created_at.tzinfo) == (tenant, UTC)
    assert row.request == {"prompt": ODD, ODD: 1}
    assert row.seconds == 0.1 + 0.2


async def test_an_explanation_sent_twice_is_stored_once(database: Database, tenant: str) -> None:
    fields = explanation()
    for _ in range(2):
        await explanations.add(database, tenant, **fields)
    async with database.transaction(tenant) as session:
        assert len((await explanations.page(session)).rows) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x"])
async def test_what_json_cannot_carry_is_refused(database: Database, tenant: str, value: Any) -> None:
    with pytest.raises(InvalidValue):
        await explanations.add(database, tenant, **explanation(request={"x": value}))


@pytest.mark.parametrize("name", ["a\0", "\ud800"])
async def test_names_that_postgres_cannot_hold_are_invalid(database: Database, tenant: str, name: str) -> None:
    async with database.transaction(tenant) as session:
        with pytest.raises(InvalidValue):
            await models.get(session, name)
        with pytest.raises(InvalidValue):
            await explanations.page(session, explanations.Filter(model=name))
        with pytest.raises(InvalidValue):
            await models.add(session, name=name, kind="causal-lm", path="/m")
    with pytest.raises(InvalidValue):
        async with database.transaction(name):
            pass


async def test_find_gives_the_newest_for_a_request(database: Database, tenant: str) -> None:
    early = explanation(request_key=b"same")  # of an earlier registration under the same name
    await explanations.add(database, tenant, **early)
    async with database.transaction(tenant) as session:
        await models.add(session, name="m", kind="causal-lm", path="/m", digest="d", dtype="float32")
        await models.add(session, name="unread", kind="causal-lm", path="/m")
    assert await found(database, tenant, "m") is None
    other = explanation(request_key=b"same", model_digest="other weights")
    unread = explanation(request_key=b"same", model="unread")
    older, newer = (explanation(request_key=b"same") for _ in range(2))
    for fields in (older, newer, other, unread):
        await explanations.add(database, tenant, **fields)
    assert await found(database, tenant, "m") == newer["id"]
    assert await found(database, tenant, "m", b"another") is None
    assert await found(database, tenant, "unread") is None
    row = await explanations.find(database, tenant, "m", b"same")
    assert row is not None
    assert (row.name, row.dtype, row.facts) == ("m", "float32", {})
    assert (row.attribution, row.seconds, row.forwards) == (newer["attribution"], newer["seconds"], newer["forwards"])
    assert await explanations.find(database, tenant, "unknown", b"same") is None
    async with database.transaction(tenant) as session:
        with pytest.raises(NotFound):
            await explanations.get(session, time_ordered())


async def found(database: Database, tenant: str, model: str, request_key: bytes = b"same") -> Any:
    row = await explanations.find(database, tenant, model, request_key)
    assert row is not None
    return row.id


async def test_pages_are_newest_first_and_steady(database: Database, tenant: str) -> None:
    added = []
    for number in range(7):  # equal times within one transaction, which the id then orders
        async with database.transaction(tenant) as session:
            for kind in ("explain", "influence"):
                row = Explanation(**explanation(kind=kind, model=f"m{number % 2}"))
                session.add(row)
                await session.flush()
                await session.refresh(row)
                added.append(row)
    newest = [row.id for row in sorted(added, key=lambda row: (row.created_at, row.id), reverse=True)]
    seen: list[Any] = []
    cursor = None
    while True:
        async with database.transaction(tenant) as session:
            page = await explanations.page(session, limit=3, cursor=cursor)
        seen += page.rows
        await explanations.add(database, tenant, **explanation(model="late"))  # does not shift the pages
        if (cursor := page.next_cursor) is None:
            break
    assert [row.id for row in seen] == newest
    async with database.transaction(tenant) as session:
        filter = explanations.Filter(model="m1", kind="explain", since=added[6].created_at)
        only = await explanations.page(session, filter)
    wanted = [r.id for r in added if r.model == "m1" and r.kind == "explain" and r.created_at >= added[6].created_at]
    assert [row.id for row in only.rows] == wanted[::-1]
    assert only.next_cursor is None


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "é", "\0", "AAAA", base64.urlsafe_b64encode(b"\xff" * 24).decode(), "A" * 33],
)
async def test_foreign_cursors_are_refused(database: Database, tenant: str, cursor: str) -> None:
    async with database.transaction(tenant) as session:
        with pytest.raises(InvalidCursor):
            await explanations.page(session, cursor=cursor)


async def test_page_arguments_are_checked(database: Database, tenant: str) -> None:
    async with database.transaction(tenant) as session:
        for limit in (0, 501):
            with pytest.raises(InvalidValue):
                await explanations.page(session, limit=limit)
    for name in ("since", "until"):
        with pytest.raises(InvalidValue, match=name):
            explanations.Filter(**{name: datetime(2026, 1, 1)})  # noqa: DTZ001


def test_ids_are_ordered_by_time() -> None:
    ids = [time_ordered() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {(each.version, each.variant) for each in ids} == {(7, "specified in RFC 4122")}
    milliseconds = [each.int >> 80 for each in ids]
    assert milliseconds == sorted(milliseconds)
    assert abs(milliseconds[-1] / 1000 - datetime.now(UTC).timestamp()) < 5


async def test_a_key_is_found_by_its_secret_until_it_ends(database: Database, tenant: str) -> None:
    now = datetime.now(UTC)
    async with database.transaction(tenant) as session:
        make = {"tenant": tenant, "name": "k", "scopes": ["explain", "read"]}
        key, secret = await api_keys.create(session, **make)
        lasting, later = await api_keys.create(session, **make, expires_at=now + timedelta(hours=1))
        past, expired = await api_keys.create(session, **make, expires_at=now - timedelta(seconds=1))
        assert len(await api_keys.list_all(session)) == 3
    found = await api_keys.find_by_secret(database, secret)
    assert found is not None
    assert (found.tenant_id, found.id, found.scopes) == (tenant, key.id, ["read", "explain"])
    assert secret.startswith("whence_")
    assert secret.encode() not in found.key_hash
    assert await api_keys.find_by_secret(database, later) is not None
    usable = [await api_keys.find_by_id(database, tenant, id) is not None for id in (key.id, lasting.id, past.id)]
    assert usable == [True, True, False]
    assert await api_keys.find_by_id(database, "nobody", key.id) is None
    assert await api_keys.find_by_id(database, tenant, time_ordered()) is None
    assert await api_keys.find_by_secret(database, expired) is None
    assert await api_keys.find_by_secret(database, secret + "x") is None
    assert await api_keys.find_by_secret(database, "\ud800") is None
    async with database.transaction(tenant) as session:
        await api_keys.revoke(session, key.id)
        ended = (await api_keys.list_all(session))[0].revoked_at
    assert await api_keys.find_by_secret(database, secret) is None
    assert await api_keys.find_by_id(database, tenant, key.id) is None
    async with database.transaction(tenant) as session:
        await api_keys.revoke(session, key.id)
        assert (await api_keys.list_all(session))[0].revoked_at == ended
        with pytest.raises(NotFound):
            await api_keys.revoke(session, time_ordered())


async def test_a_sign_in_that_was_ended_finds_no_key(database: Database, tenant: str, other_tenant: str) -> None:
    """Nor does one with a key that is of no use any more; what has expired is forgotten."""
    now, one, two, old = datetime.now(UTC), *(time_ordered() for _ in range(3))
    async with database.transaction(tenant) as session:
        key, _ = await api_keys.create(session, tenant=tenant, name="k", scopes=["read"])
        await api_keys.end_session(session, old, now - timedelta(seconds=1))
    async with database.transaction(tenant) as session:
        for _ in range(2):
            await api_keys.end_session(session, one, now + timedelta(hours=1))
        assert list(await session.scalars(select(EndedSession.id))) == [one]
    found = [await api_keys.find_in_session(database, tenant, key.id, each) for each in (one, two)]
    assert found[0] is None and found[1] is not None and found[1].id == key.id
    assert await api_keys.find_in_session(database, other_tenant, key.id, two) is None
    async with database.transaction(tenant) as session:
        await api_keys.revoke(session, key.id)
    assert await api_keys.find_in_session(database, tenant, key.id, two) is None


async def test_names_of_models_come_in_order(database: Database, tenant: str) -> None:
    assert await models.names(database, tenant) == []
    async with database.transaction(tenant) as session:
        for name in ("b", "a", "c"):
            await models.add(session, name=name, kind="causal-lm", path="/m")
    assert await models.names(database, tenant) == ["a", "b", "c"]


async def test_a_given_secret_is_used_once(database: Database, tenant: str, other_tenant: str) -> None:
    secret = f"my-own-secret-{time_ordered()}"
    async with database.transaction(tenant) as session:
        _, same = await api_keys.create(session, tenant=tenant, name="k", scopes=["admin"], secret=secret)
    assert same == secret
    for who in (tenant, other_tenant):
        async with database.transaction(who) as session:
            with pytest.raises(AlreadyExists):
                await api_keys.create(session, tenant=who, name="k", scopes=["admin"], secret=secret)


@pytest.mark.parametrize(
    "wrong",
    [{"scopes": []}, {"scopes": ["root"]}, {"secret": "x" * 15}, {"expires_at": datetime(2030, 1, 1)}],  # noqa: DTZ001
)
async def test_bad_keys_are_refused(database: Database, tenant: str, wrong: dict[str, Any]) -> None:
    async with database.transaction(tenant) as session:
        with pytest.raises(InvalidValue):
            await api_keys.create(session, **{"tenant": tenant, "name": "k", "scopes": ["read"]} | wrong)


@pytest.mark.parametrize("name", ["", "A", "-a", "a b", "a\n", "a" * 64, "é"])
async def test_bad_tenant_names_are_refused(database: Database, name: str) -> None:
    async with database.transaction(name) as session:
        with pytest.raises(InvalidValue):
            await tenants.ensure(session, name)


async def test_models_come_and_go(database: Database, tenant: str) -> None:
    async with database.transaction(tenant) as session:
        await tenants.ensure(session, tenant)
        await models.add(session, name="base", kind="causal-lm", path="/b", digest="sha256:1", facts={"layers": 4})
        await models.add(session, name="adapter", kind="causal-lm", path="/a", base="base", dtype="bfloat16")
        with pytest.raises(AlreadyExists):
            await models.add(session, name="base", kind="causal-lm", path="/other")
        with pytest.raises(NotFound):
            await models.add(session, name="x", kind="causal-lm", path="/x", base="none")
        with pytest.raises(InUse):
            await models.remove(session, "base")
    async with database.transaction(tenant) as session:
        assert [model.name for model in await models.list_all(session)] == ["adapter", "base"]
        base = await models.get(session, "base")
        assert (base.digest, base.facts, base.path, base.base) == ("sha256:1", {"layers": 4}, "/b", None)
        await models.remove(session, "adapter")
        await models.remove(session, "base")
        for gone in (models.get(session, "base"), models.remove(session, "base")):
            with pytest.raises(NotFound):
                await gone
