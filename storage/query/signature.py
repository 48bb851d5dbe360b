"""What a function of the query language declares: its parameters, and how its SQL is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from storage.query.body import Place
from storage.query.typed import Kind, Typed


@dataclass(frozen=True, slots=True)
class Operand:
    """A column or whatever is computed; handed to the function as `Typed`.

    `default` names one of the compiler's defaults, for parameters that follow from the model. With `literally`, a bare
    string, truth value or null is a value, not a column.
    """

    accepts: frozenset[Kind]
    default: str | None = None
    literally: bool = False
    required: bool = True


@dataclass(frozen=True, slots=True)
class Operands:
    """A list of them, handed over as pairs of name and `Typed`."""

    accepts: frozenset[Kind]
    required: bool = True


@dataclass(frozen=True, slots=True)
class Value:
    """A value that means itself, checked as it is read; a missing one is `default`."""

    read: Callable[[Place], Any]
    required: bool = True
    default: Any = None


@dataclass(frozen=True, slots=True)
class Groups:
    """A list of groups of rows with a threshold each, handed over as pairs of a condition and a number."""

    required: bool = True


Parameter: TypeAlias = Operand | Operands | Value | Groups
Parameters: TypeAlias = dict[str, Parameter]


@dataclass(frozen=True, slots=True)
class Function:
    """`build` gets its parameters by name, in lower case with underscores; what it `needs` beside them too.

    With `comparators` it compares `property` as a filter does, and gets where that holds as `matching`. Of the
    parameters in `either` exactly one is given. A `special` function is one that only the compiler can build.
    """

    build: Callable[..., Typed]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    aggregate: bool = False
    comparators: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    either: tuple[str, ...] = ()
    special: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of all the parameters that a request may give."""
        return (*self.parameters, *(("comparator", "value") if self.comparators else ()))
