"""Deployments of models."""

from __future__ import annotations

import pytest

from storage import deployments, models
from storage.database import Database
from storage.errors import AlreadyExists, InvalidValue, NotFound


async def test_every_model_is_deployed(database: Database, tenant: str, other_tenant: str) -> None:
    async with database.transaction(tenant) as session:
        await models.add(session, name="b", kind="causal-lm", path="/b")
    async with database.transaction(tenant) as session:
        await models.add(session, name="a", kind="causal-lm", path="/a", base="b")
    async with database.transaction(tenant) as session:
        assert [each.row.name for each in await deployments.list_all(session)] == ["b", "a"]
        own = await deployments.get(session, "a")
        assert (own.row.base, own.name, own.active, own.input_tokens, own.changed_at) == ("b", None, True, 0, None)
    async with database.transaction(other_tenant) as session:
        assert await deployments.list_all(session) == []
        with pytest.raises(NotFound):
            await deployments.get(session, "a")


async def test_a_deployment_is_named_once_switched_and_counted(database: Database, tenant: str) -> None:
    async with database.transaction(tenant) as session:
        await models.add(session, name="m", kind="causal-lm", path="/m")
        await deployments.count(session, "m", input_tokens=2**31, output_tokens=3)
        await deployments.count(session, "m", input_tokens=1, output_tokens=4)
        await deployments.count(session, "gone", input_tokens=1, output_tokens=4)
        made = await deployments.create(session, "m", name="mill", description="Who keeps it")
        assert (made.name, made.description, made.active) == ("mill", "Who keeps it", True)
        assert (made.input_tokens, made.output_tokens) == (2**31 + 1, 7)
        assert not (await deployments.switch(session, "m", active=False)).active
        assert (await deployments.switch(session, "m", active=True)).name == "mill"
        with pytest.raises(AlreadyExists):
            await deployments.create(session, "m", name="other", description="")
        for work in (
            deployments.create(session, "gone", name="a", description="b"),
            deployments.switch(session, "gone", active=True),
        ):
            with pytest.raises(NotFound):
                await work


async def test_a_removed_model_takes_its_deployment_along(database: Database, tenant: str) -> None:
    async with database.transaction(tenant) as session:
        for _ in range(2):
            await models.add(session, name="m", kind="causal-lm", path="/m")
            assert not (await deployments.switch(session, "m", active=False)).active
            await models.remove(session, "m")
        await models.add(session, name="m", kind="causal-lm", path="/m")
        assert (await deployments.get(session, "m")).active


async def test_a_name_that_cannot_be_stored(database: Database, tenant: str) -> None:
    async with database.transaction(tenant) as session:
        await models.add(session, name="m", kind="causal-lm", path="/m")
    with pytest.raises(InvalidValue):
        async with database.transaction(tenant) as session:
            await deployments.create(session, "m", name="a\0", description="")
