"""Work and outcomes as they travel: what both sides have is called by its name, all else is sent.

Both sides run the same release, and trust each other as the processes of one server do: a parcel is a pickle. What
clients send is in it as plain values, and no file of a model is.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import cloudpickle

from app.device import Steps
from app.listeners import Once
from app.open_indexes import Opened
from app.runtime import Weights
from app.schedule import Owner
from explainers.decoding import Completion, Piece
from explainers.language_model import LanguageModel, Passes

How: TypeAlias = Literal["done", "failed", "full", "closing", "broken"]
Kind: TypeAlias = Literal["model", "index", "steps", "listener"]
Name: TypeAlias = tuple[Kind, Any]
Naming: TypeAlias = Callable[[Any], Name | None]


@dataclass(frozen=True, slots=True)
class Order:
    """What a replica has to know of work before it unpacks it. `listeners`: whether anybody listens, for each."""

    models: tuple[Weights, ...]
    indexes: tuple[tuple[str, Weights], ...]  # folder, and the model that it is of
    owner: Owner
    nice: bool
    cost: float | None
    steps: int
    listeners: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class News:
    """Of work that goes on: seconds of the device so far, steps by their place, and what listeners are to hear."""

    seconds: float
    steps: tuple[tuple[int, int], ...] = ()  # (done, total) of each
    heard: tuple[tuple[int, int, Piece | Completion], ...] = ()  # (listener, number of the event, event)


@dataclass(frozen=True, slots=True)
class Ended:
    """`value`: the packed outcome, the error, the seconds after which to come back, or the name of a defect."""

    how: How
    value: Any
    waited: float  # seconds
    seconds: float  # of the device
    passes: Passes


@dataclass
class Shared:
    """What a piece of work has in common with who asks for it, found while it is packed."""

    models: dict[Weights, LanguageModel] = field(default_factory=dict)
    indexes: set[tuple[str, Weights]] = field(default_factory=set)
    steps: list[Steps] = field(default_factory=list)
    listeners: list[Once] = field(default_factory=list)

    def name_of(self, thing: Any) -> Name | None:
        match thing:
            case LanguageModel(elsewhere=where) if where is not None:
                self.models[where.name] = thing
                return "model", where.name
            case Opened(model=model) if model.elsewhere is not None:
                self.models[model.elsewhere.name] = model
                key = (str(thing.index.folder), model.elsewhere.name)
                self.indexes.add(key)
                return "index", key
            case Steps():
                return "steps", place_in(self.steps, thing)
            case Once():
                return "listener", place_in(self.listeners, thing)
        return None

    def thing_of(self, name: Name) -> Any:
        kind, key = name
        if kind != "model":
            raise pickle.UnpicklingError(f"an outcome names no {kind}")
        return self.models[key]

    def hear(self, news: News) -> None:
        for steps, (done, total) in zip(self.steps, news.steps, strict=False):
            steps.done, steps.total = done, total
        for place, number, event in news.heard:
            self.listeners[place].tell(number, event)


def place_in(things: list[Any], thing: Any) -> int:
    place = next((place for place, known in enumerate(things) if known is thing), len(things))
    if place == len(things):
        things.append(thing)
    return place


def pack(value: Any, naming: Naming) -> bytes:
    file = io.BytesIO()
    Packer(file, naming).dump(value)
    return file.getvalue()


def unpack(data: bytes, resolve: Callable[[Name], Any]) -> Any:
    return Unpacker(io.BytesIO(data), resolve).load()


class Packer(cloudpickle.Pickler):  # type: ignore[misc] # the library has no types
    """Functions without a name of their own travel by value."""

    def __init__(self, file: io.BytesIO, naming: Naming) -> None:
        super().__init__(file)
        self._naming = naming

    def persistent_id(self, obj: Any) -> Name | None:
        return self._naming(obj)


class Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, resolve: Callable[[Name], Any]) -> None:
        super().__init__(file)
        self._resolve = resolve

    def persistent_load(self, name: Any) -> Any:
        return self._resolve(name)
