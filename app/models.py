"""The registry as its users see it: find, list, add and remove models."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from app.refusals import UnknownModel
from app.runtime import Registration, Runtime, State, Weights
from app.scaling import Scaling, scaling_from, scaling_record
from explainers.errors import ExplainerError, InvalidRequest, MissingCapability
from explainers.language_model import LanguageModel
from explainers.loaders import FINE_TUNES, LOADERS, PREDICTORS, Model, facts_of
from storage import models, tenants
from storage.database import Database
from storage.errors import AlreadyExists, InvalidValue, NotFound

NAME = re.compile(r"(?=.{1,200}\Z)[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
"""What stands in URLs as it is: clients would turn `a/../b` into `b`."""

RESERVED_ENDINGS = ("/tokenizer", "/influence-index")
"""Routes below /models/{name}: a name must not end like one of them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A registered model and how far the runtime is with it."""

    registration: Registration
    description: str
    facts: Mapping[str, Any]
    state: State
    reason: str | None

    @property
    def created_at(self) -> datetime:
        return self.registration.created_at


@dataclass(frozen=True, slots=True)
class NewModel:
    """`path` is relative to the folder of models; `base` names the registered model that this one was trained from."""

    name: str
    kind: str
    path: str
    dtype: str | None = None
    device: str | None = None
    description: str = ""
    base: str | None = None
    scaling: Scaling | None = None


def registration_of(row: Any) -> Registration:
    return Registration(
        tenant=row.tenant_id,
        name=row.name,
        kind=row.kind,
        path=row.path,
        digest=row.digest,
        dtype=row.dtype,
        device=row.device,
        created_at=row.created_at,
        base=row.base,
        base_path=row.base_path,
        scaling=scaling_from(row.scaling),
    )


async def find_model(database: Database, tenant: str, name: str) -> Any:
    """The row of a model; raises `UnknownModel`, also for what cannot be a name at all."""
    with suppress(InvalidValue):
        row = await models.find(database, tenant, name)
        if row is not None:
            return row
    raise UnknownModel(name)


async def load_model(database: Database, runtime: Runtime, tenant: str, name: str) -> LanguageModel:
    """The loaded model of that name."""
    return language_model(await runtime.model(registration_of(await find_model(database, tenant, name))))


def language_model(model: Model) -> LanguageModel:
    """Raises MissingCapability for a model that completes no prompts."""
    if not isinstance(model, LanguageModel):
        raise MissingCapability("this model predicts rows or texts and completes no prompts: its scores are in /query")
    return model


async def list_loaded(database: Database, runtime: Runtime, tenant: str) -> list[tuple[Entry, LanguageModel]]:
    """The models that complete prompts, each loaded; without the refused ones."""
    loaded = []
    for entry in await list_models(database, runtime, tenant):
        if entry.registration.kind in PREDICTORS:
            continue
        with suppress(ExplainerError):
            loaded.append((entry, language_model(await runtime.model(entry.registration))))
    return loaded


async def list_models(database: Database, runtime: Runtime, tenant: str) -> list[Entry]:
    async with database.transaction(tenant=tenant) as session:
        rows = await models.list_all(session)
    return [entry_of(row, runtime) for row in rows]


async def list_names(database: Database, tenant: str) -> list[str]:
    """The names of all models, in order."""
    return await models.names(database, tenant)


async def describe_model(database: Database, runtime: Runtime, tenant: str, name: str) -> Entry:
    return entry_of(await find_model(database, tenant, name), runtime)


def entry_of(row: Any, runtime: Runtime) -> Entry:
    registration = registration_of(row)
    state, reason = runtime.state(registration)
    return Entry(registration, row.description or "", row.facts or {}, state, reason)


async def read_model(database: Database, runtime: Runtime, tenant: str, new: NewModel, path: Path) -> Model:
    """The model at that path, loaded; raises what is wrong with it, or with its name or kind."""
    if not NAME.fullmatch(new.name):
        raise InvalidRequest(
            "must be 1 to 200 characters: letters, digits and . _ - in parts that start with a letter or digit, "
            "separated by single /",
            "/name",
        )
    if new.name.endswith(RESERVED_ENDINGS):
        raise InvalidRequest(f"a name must not end in {' or '.join(RESERVED_ENDINGS)}", "/name")
    if new.kind not in LOADERS:
        raise InvalidRequest(f"must be one of: {', '.join(sorted(LOADERS))}", "/kind")
    await check_free(database, tenant, new.name)
    base = None if new.base is None else await read_base(database, runtime, tenant, new)
    try:
        weights = Weights(new.kind, str(path), base, dtype=new.dtype, device=new.device)
        return await runtime.read(weights, new.scaling)
    except ExplainerError as error:  # where the folder of models lies is the operator's business
        told = str(error).replace(str(path), new.path)
        raise type(error)(told if base is None else told.replace(base, f"model '{new.base}'")) from None


async def read_base(database: Database, runtime: Runtime, tenant: str, new: NewModel) -> str:
    """Where the base of a fine-tune lies, once it has been loaded; raises `UnknownModel`, or why it is refused."""
    if new.kind not in FINE_TUNES:
        raise InvalidRequest(f"is for models of kind {' or '.join(FINE_TUNES)}", "/base")
    registration = registration_of(await find_model(database, tenant, new.base or ""))
    if registration.kind != new.kind:
        raise InvalidRequest(f"must be a model of kind {new.kind}", "/base")
    await runtime.model(registration)
    return registration.path


async def enter_model(
    database: Database, runtime: Runtime, tenant: str, new: NewModel, path: Path, model: Model
) -> Entry:
    """Registers a model that has been read."""
    facts = dict(facts_of(model))
    async with database.transaction(tenant=tenant) as session:
        row = await models.add(
            session,
            name=new.name,
            kind=new.kind,
            path=str(path),
            base=new.base,
            digest=model.digest,
            dtype=new.dtype,
            device=new.device,
            description=new.description,
            facts=facts,
            scaling=scaling_record(new.scaling),
        )
        registration = registration_of(row)
    runtime.adopt(registration, model)
    return Entry(registration, new.description, facts, "loaded", None)


async def check_free(database: Database, tenant: str, name: str) -> None:
    """Refuses a taken name before the files are read, which may take minutes."""
    async with database.transaction(tenant=tenant) as session:
        with suppress(NotFound):
            await models.get(session, name)
            raise AlreadyExists(
                "a model with that name is registered: remove it first (whence models remove, or DELETE /models/NAME), "
                "or choose another name"
            )


async def remove_model(database: Database, runtime: Runtime, tenant: str, name: str) -> None:
    """Takes the registration away; files and stored explanations stay."""
    await find_model(database, tenant, name)
    async with database.transaction(tenant=tenant) as session:
        await models.remove(session, name)
    runtime.forget(tenant, name)


async def keep_loaded(database: Database, runtime: Runtime) -> None:
    """Loads what is registered and not loaded yet, of all tenants, and unloads what is registered no more."""
    known = runtime.known()  # what is registered and loaded while the registry is read is not to be let go of
    registrations = await all_registrations(database)
    await runtime.keep(registrations, known)


async def all_registrations(database: Database) -> list[Registration]:
    """Of all tenants; one transaction for each, for no transaction sees the rows of two."""
    registrations = []
    for tenant in await tenants.names(database):
        async with database.transaction(tenant=tenant) as session:
            registrations += [registration_of(row) for row in await models.list_all(session)]
    return registrations


def inside(models_dir: Path | None, path: str) -> Path:
    """A file or folder below `models_dir`, links resolved; never one outside it."""
    if models_dir is None:
        raise InvalidRequest("WHENCE_MODELS_DIR is not set: register models with `whence models add`", "/path")
    root = models_dir.resolve()
    try:
        found = (root / path).resolve()
        if root in found.parents and found.exists():
            return found
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a loop of links
        pass
    raise InvalidRequest("must name a file or folder below WHENCE_MODELS_DIR", "/path")


def check_links(models_dir: Path | None, path: str) -> None:
    """Raises InvalidRequest for what `inside` refuses, and for a folder of which a file lies outside, by a link.

    Who may register models over HTTP may read those in the folder of models, and nothing else of the machine.
    """
    found = inside(models_dir, path)
    root = found.parent if models_dir is None else models_dir.resolve()
    try:
        entries = list(found.iterdir()) if found.is_dir() else [found]
        outside = any(root not in entry.resolve().parents for entry in entries)
    except (OSError, RuntimeError):  # not to be listed; a loop of links
        outside = True
    if outside:
        raise InvalidRequest("holds a link that leads out of WHENCE_MODELS_DIR", "/path")
