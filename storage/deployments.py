"""Deployments: one for each registered model, whether anybody has said something of it or not."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, and_, func, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from storage.errors import AlreadyExists, NotFound
from storage.tables import Deployment as Row
from storage.tables import Model


@dataclass(frozen=True, slots=True)
class Deployment:
    """A model and how it is served. Nobody has named it as long as `name` is None."""

    row: Model
    name: str | None
    description: str | None
    active: bool
    input_tokens: int
    output_tokens: int
    changed_at: datetime | None


async def list_all(session: AsyncSession) -> list[Deployment]:
    """Those of all of the tenant's models, in the order of their registration."""
    found = await session.execute(_all().order_by(Model.created_at, Model.name))
    return [Deployment(*row) for row in found]


async def get(session: AsyncSession, model: str) -> Deployment:
    """That of a model. Raises NotFound."""
    row = (await session.execute(_all().where(Model.name == model))).one_or_none()
    if row is None:
        raise NotFound("no such model")
    return Deployment(*row)


async def create(session: AsyncSession, model: str, *, name: str, description: str) -> Deployment:
    """Names the deployment of a model, which is active then. Raises NotFound, and AlreadyExists where it has a name."""
    before = await get(session, model)
    if before.name is not None:
        raise AlreadyExists("the model is deployed already")
    said = {"name": name, "description": description, "active": True, "changed_at": func.now()}
    put = insert(Row).values(model=model, **said)
    put = put.on_conflict_do_update(index_elements=("tenant_id", "model"), set_=said, where=Row.name.is_(None))
    if await session.scalar(put.returning(Row.model)) is None:
        raise AlreadyExists("the model is deployed already")
    return await get(session, model)


async def switch(session: AsyncSession, model: str, *, active: bool) -> Deployment:
    """Lets a deployment's id answer, or not. Raises NotFound."""
    if (await get(session, model)).active != active:
        said = {"active": active, "changed_at": func.now()}
        put = insert(Row).values(model=model, **said)
        await session.execute(put.on_conflict_do_update(index_elements=("tenant_id", "model"), set_=said))
    return await get(session, model)


async def count(session: AsyncSession, model: str, *, input_tokens: int, output_tokens: int) -> None:
    """Adds tokens to those of a model; it may have been removed meanwhile."""
    known = select(Model.name, literal(input_tokens), literal(output_tokens)).where(Model.name == model)
    put = insert(Row).from_select(["model", "input_tokens", "output_tokens"], known)
    sums = {name: getattr(Row, name) + getattr(put.excluded, name) for name in ("input_tokens", "output_tokens")}
    await session.execute(put.on_conflict_do_update(index_elements=("tenant_id", "model"), set_=sums))


def _all() -> Select[Model, str | None, str | None, bool, int, int, datetime | None]:
    said = and_(Row.tenant_id == Model.tenant_id, Row.model == Model.name)
    return select(
        Model,
        Row.name,
        Row.description,
        func.coalesce(Row.active, True),
        func.coalesce(Row.input_tokens, 0),
        func.coalesce(Row.output_tokens, 0),
        Row.changed_at,
    ).outerjoin(Row, said)
