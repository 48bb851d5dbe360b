"""What a loader makes of a file: its own account of itself, and a batch function from rows to its raw outputs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from explainers.errors import InvalidRequest, MissingCapability
from explainers.table import Table

ArtifactSpace: TypeAlias = Literal["probability", "value"]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a file says of itself; None where it does not."""

    width: int | None = None  # M, input columns
    inputs: tuple[str, ...] | None = None  # M, their names in order
    by_name: bool = False
    """Whether columns are handed over by name, so that their order in the file says nothing."""
    categories: Mapping[int, tuple[str, ...] | None] | None = None
    """Category columns by place, with their values in order where the file has them; None: it does not tell."""
    unused: frozenset[int] | None = None
    """Columns of which the file cannot tell whether they are categories, since no split reads them."""
    strings: bool = False
    """Whether any text can be a category; else a category is the number of its place."""
    outputs: int | None = None  # K of `predict`; 1 for a booster of two classes
    classes: tuple[str, ...] | None = None
    space: ArtifactSpace | None = None
    exclusive: bool | None = None
    """Whether probabilities are shares of one whole: False for multi-label and one-against-all models."""
    accepts_nulls: bool | None = None


@runtime_checkable
class Artifact(Protocol):
    """A loaded file. `digest` is the sha256 of its bytes."""

    @property
    def format(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def signature(self) -> Signature: ...

    def predict(self, table: Table) -> NDArray[np.float64]:  # (n, M) -> (n, K)
        """Of at least one row; blocks until done."""


@runtime_checkable
class TextArtifact(Protocol):
    """A loaded classifier of texts."""

    @property
    def format(self) -> str: ...

    @property
    def digest(self) -> str: ...

    @property
    def signature(self) -> Signature: ...

    def predict_texts(self, texts: list[str]) -> NDArray[np.float64]:  # n -> (n, K)
        """Of at least one text; blocks until done."""


@dataclass(frozen=True, slots=True)
class Contributions:
    """Path-dependent TreeSHAP of n rows: `values` and `base` add up to `margins`."""

    values: NDArray[np.float64]  # (n, G, M)
    base: NDArray[np.float64]  # (G,)
    margins: NDArray[np.float64]  # (n, G), the trees' own output, computed without the contributions
    output: Literal["margin", "probability", "value"]
    """What the trees add up to: margins for boosters, for a forest its answer itself."""
    facts: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Trees(Protocol):
    """An artifact that can say how each column moves its margin along the trees' paths."""

    def contributions(self, table: Table) -> Contributions: ...


def library(name: str) -> Any:
    """A library that is only needed for some models. Raises MissingCapability that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingCapability(
            f"{name.partition('.')[0]} is not installed: pip install -c constraints.txt -e ."
        ) from error
    except OSError as error:  # LightGBM's wheel has no OpenMP runtime, and finds the one that PyTorch has loaded
        raise MissingCapability(
            f"{name} cannot be loaded: install libgomp1 (Debian, Ubuntu), libgomp (Fedora)"
        ) from error


def as_columns(raw: NDArray[Any]) -> NDArray[np.float64]:  # (n,) or (n, K) -> (n, K)
    return np.asarray(raw, dtype=np.float64).reshape(len(raw), -1)


def check_no_nulls(table: Table, places: list[int]) -> None:
    """Raises InvalidRequest that names the first of these columns with a null."""
    empty = np.isnan(table.cells[:, places]).any(axis=0)
    if empty.any():
        name = table.columns[places[int(empty.argmax())]].name
        raise InvalidRequest(f"the model takes no nulls, and column {name!r} has one")
