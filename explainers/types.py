"""The words of the field: what is asked, and the one form of every answer. No torch in here.

Positions count Unicode code points (as Python's `str` does), never bytes or UTF-16 units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Overlap: TypeAlias = Literal["partial", "complete"]
Granularity: TypeAlias = Literal["token", "word", "sentence", "paragraph", "custom"]
TargetGranularity: TypeAlias = Literal["complete", "token"]
Postprocessing: TypeAlias = Literal["none", "absolute", "square"]

Checkpoint: TypeAlias = Callable[[], None]
"""Called between two forward passes; raises to stop the work (cancelled, out of time), and may let others go first."""


def never_stop() -> None:
    """The checkpoint of work that nobody can cancel."""


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` (included) to `stop` (excluded) of a text."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of an image, in fractions 0..1 of the whole image."""

    left: float
    top: float
    width: float
    height: float


Place: TypeAlias = Span | Tile | int
"""Where in its item a feature or control lies: characters, a rectangle, or the position of a token id."""


@dataclass(frozen=True, slots=True)
class Control:
    """The caller's own damping (factor < 1) or strengthening (> 1) of attention to a part of an item."""

    place: Place
    factor: float
    overlap: Overlap | None = None
    """How tokens only partly inside `place` count; None: as the request says."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Which message of a chat a text is (a part of), who says it, and what the part is called."""

    message: int
    role: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """`before` and `after` are what a chat template puts around the text: read by the model, part of no feature."""

    data: str
    controls: tuple[Control, ...] = ()
    turn: Turn | None = None
    before: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class TokenIds:
    ids: tuple[int, ...]
    controls: tuple[Control, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """The encoded file (PNG, JPEG, ...) as the caller sent it."""

    data: bytes
    controls: tuple[Control, ...] = ()
    cropped: bool = False
    """Whether the caller named a part of it: that has no effect but a warning, since images are read whole."""


Item: TypeAlias = Text | TokenIds | Image
Prompt: TypeAlias = tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """A part of the input that carries a score.

    `item` is the index of the prompt item; one past the last item is the target itself, whose earlier tokens are
    features of the later ones.
    """

    name: str
    item: int
    place: Place


@dataclass(frozen=True, slots=True)
class Target:
    """An output that is explained: a piece of the target text, or a named output (then without a span)."""

    text: str
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Attribution:
    """What every method returns: for each target the contribution of each feature."""

    method: str
    features: tuple[Feature, ...]  # F
    targets: tuple[Target, ...]  # T
    values: NDArray[np.float64]  # (T, F), in nats unless post-processed; positive supports the target
    base_values: NDArray[np.float64] | None = None  # (T,), the output before anything was changed
    uncertainty: NDArray[np.float64] | None = None  # (T, F)
    facts: Mapping[str, Any] = field(default_factory=dict)
    """How it was computed: forwards, seconds, warnings, ...; JSON values only."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Where the weights of a model are that has none here: its name and whereabouts there, and the kind of device."""

    name: Any  # hashable
    place: str
    device: str


@dataclass(frozen=True, slots=True)
class AtmanConfig:
    """Attention suppression (Deiseroth et al. 2023): how, and in what pieces.

    `granularity` None chooses the one nearest to thirty pieces; `custom` splits at `delimiter`. `threshold`, when set,
    also damps tokens whose input embedding has at least that cosine similarity to a damped one.
    """

    control_factor: float = 0.1
    log_additive: bool = True
    threshold: float | None = None
    granularity: Granularity | None = None
    delimiter: str | None = None
    target_granularity: TargetGranularity = "complete"
    overlap: Overlap = "partial"
    postprocessing: Postprocessing = "none"
    normalize: bool = False


@dataclass(frozen=True, slots=True)
class ScreenedConfig(AtmanConfig):
    """Exact scores for the `exact` pieces that matter most by their gradient, first-order ones for the others."""

    exact: int = 8


@dataclass(frozen=True, slots=True)
class AblationConfig(AtmanConfig):
    """Scores fitted to `samples` passes in each of which about half of the pieces are removed."""

    control_factor: float = 0.0
    samples: int = 64
