"""Influence indexes that have been asked lately, held in memory with what searching them needs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from explainers.influence.finishing import read_finished
from explainers.influence.gradients import Projection
from explainers.influence.index import Index
from explainers.influence.levels import Thresholds
from explainers.language_model import LanguageModel

MOST = 4
"""Indexes at a time: each may have hundreds of megabytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A finished index, and the projection that its rows were made with."""

    index: Index
    thresholds: Thresholds
    projection: Projection
    facts: Mapping[str, Any]
    model: LanguageModel


class OpenIndexes:
    """By folder, which names the tenant; the one that was asked longest ago is closed first."""

    def __init__(self) -> None:
        self._known: dict[Path, Opened] = {}

    async def get(self, folder: Path, model: LanguageModel) -> Opened:
        """The index in that folder, opened now unless it is open. Raises UnreadableModel."""
        opened = self._known.pop(folder, None)
        if opened is None or opened.projection.network is not model.network:
            opened = await asyncio.to_thread(open_index, folder, model)
        self._known[folder] = opened
        while len(self._known) > MOST:
            del self._known[next(iter(self._known))]
        return opened

    def keep_only(self, models: Iterable[Any]) -> None:
        """Closes those of all other models: an open one keeps the weights in memory that it was made for."""
        loaded = {id(model) for model in models}
        self._known = {folder: opened for folder, opened in self._known.items() if id(opened.model) in loaded}


def open_index(folder: Path, model: LanguageModel) -> Opened:
    finished, index = read_finished(folder), Index.open(folder)
    projection = Projection(model.network, int(finished.facts["size"]), int(finished.facts["seed"]))
    if index.matrix is None:
        index.whole.numel()  # read now: the files of an index go some time after a newer one is there
    return Opened(index, finished.thresholds, projection, finished.facts, model)
