"""Deployments: under which other name a model answers. Every registered model that completes prompts has one, which
answers as long as it is not switched off; the model's own name always does.

The id of a deployment derives from tenant and model, so that it needs no row to exist and stays the same for a model
that is registered again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid5

from app.models import entry_of, find_model
from app.refusals import Conflict, UnknownModel
from app.runtime import Runtime, State
from explainers.errors import InvalidRequest, MissingCapability
from explainers.loaders import PREDICTORS
from storage import deployments
from storage.database import Database
from storage.deployments import Deployment
from storage.errors import NotFound

NAMESPACE = UUID("06ab041d-0706-4018-9b86-f446c33aefd0")
ID = re.compile(r"deployment-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class NewDeployment:
    """`model` is the name of a registered one."""

    model: str
    name: str
    description: str
    fine_tuned: bool
    instances: int


@dataclass(frozen=True, slots=True)
class Deployed:
    """A deployment and how far the runtime is with its model."""

    id: str
    deployment: Deployment
    state: State

    @property
    def model(self) -> str:
        return self.deployment.row.name

    @property
    def created_at(self) -> datetime:
        return self.deployment.row.created_at


def deployment_id(tenant: str, model: str) -> str:
    return f"deployment-{uuid5(NAMESPACE, f'{tenant}/{model}')}"


async def model_named(database: Database, tenant: str, name: str) -> str:
    """The name of the model that a name or the id of a deployment stands for; another name as it is.

    Raises `UnknownModel` for the id of no deployment, `Conflict` for one that is switched off.
    """
    if not ID.fullmatch(name):
        return name
    with suppress(UnknownModel):
        await find_model(database, tenant, name)
        return name
    found = await find_deployment(database, tenant, name)
    if not found.active:
        raise Conflict("this deployment is inactive: promote it first")
    return found.row.name


async def find_deployment(database: Database, tenant: str, id: str) -> Deployment:
    """Raises `UnknownModel`."""
    for each in await every(database, tenant):
        if deployment_id(tenant, each.row.name) == id:
            return each
    raise UnknownModel(id)


async def every(database: Database, tenant: str) -> Sequence[Deployment]:
    """Those of all models that complete prompts, in the order of their registration."""
    async with database.transaction(tenant=tenant) as session:
        found = await deployments.list_all(session)
    return [each for each in found if each.row.kind not in PREDICTORS]


async def list_deployments(database: Database, runtime: Runtime, tenant: str, skip: int, limit: int) -> list[Deployed]:
    found = await every(database, tenant)
    return [deployed(each, runtime) for each in found[skip : skip + limit]]


async def describe_deployment(database: Database, runtime: Runtime, tenant: str, id: str) -> Deployed:
    return deployed(await find_deployment(database, tenant, id), runtime)


async def create_deployment(database: Database, runtime: Runtime, tenant: str, new: NewDeployment) -> Deployed:
    """Names the deployment of a model. Raises `UnknownModel`, AlreadyExists where it has a name, InvalidRequest."""
    if new.instances != 1:
        raise MissingCapability("one instance of a model is served", "/n_instances")
    row = await find_model(database, tenant, new.model)
    if row.kind in PREDICTORS:
        raise MissingCapability("this model predicts rows or texts and completes no prompts", "/model_id")
    if new.fine_tuned != (row.base is not None):
        kind = "a base model" if row.base is None else "a fine-tune"
        raise InvalidRequest(f"must say that the model is {kind}", "/model_type")
    try:
        async with database.transaction(tenant=tenant) as session:
            made = await deployments.create(session, new.model, name=new.name, description=new.description)
    except NotFound:  # removed meanwhile
        raise UnknownModel(new.model) from None
    return deployed(made, runtime)


async def switch_deployment(database: Database, runtime: Runtime, tenant: str, id: str, *, active: bool) -> Deployed:
    """Lets the id answer, or not; the model stays loaded, for it answers to its own name. Raises `UnknownModel`."""
    found = await find_deployment(database, tenant, id)
    async with database.transaction(tenant=tenant) as session:
        return deployed(await deployments.switch(session, found.row.name, active=active), runtime)


async def count_tokens(database: Database, tenant: str, model: str, *, read: int, written: int) -> None:
    async with database.transaction(tenant=tenant) as session:
        await deployments.count(session, model, input_tokens=read, output_tokens=written)


def deployed(deployment: Deployment, runtime: Runtime) -> Deployed:
    row = deployment.row
    return Deployed(deployment_id(row.tenant_id, row.name), deployment, entry_of(row, runtime).state)
