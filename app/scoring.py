"""Explaining rows of a model: a predictor, and all that decides its scores."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from app.bindings import Predictor, Reading
from app.records import digest_of
from explainers.answers import check_unchanged
from explainers.background import Background, readied
from explainers.errors import InconsistentAnswer, InvalidRequest, PredictorFailed
from explainers.methods.lime import Draws
from explainers.predictors.binding import BoundTexts, TablePredictor
from explainers.sequence_classifier import SequenceClassifier
from explainers.surrogates import (
    TABLE_ALGORITHMS,
    TEXT_ALGORITHMS,
    Kept,
    SurrogateConfig,
    predictions,
    predictions_per_row,
)
from explainers.text_masks import cut
from explainers.types import Attribution, Checkpoint
from storage.cells import Cells

REVISION = 2
"""Raised when the numbers of an algorithm change, so that stored ones of the old kind are not taken for new."""

MOST_KEPT = 16
"""Buckets of draws that LIME leaves for the next call."""
KEPT_BYTES = 64 * 2**20
"""Draws that are larger together are not left."""
MOST_DRAWN = 20_000_000
"""Values in the samples of one explanation, at most."""
MOST_SCORERS = 32
LONG_TEXT = 100
"""Tokens of a text whose cost is told in advance."""

Outcome: TypeAlias = Attribution | str
"""An answer, or the reason why a row has none."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """A predictor and all that decides its scores but the algorithm; `fingerprint` names just that."""

    reading: Reading
    predictor: Predictor
    background: Background | None  # None for texts
    config: SurrogateConfig
    kept: Kept = field(default_factory=dict)

    @property
    def fingerprint(self) -> int:
        """63 bits of a digest, for a column of Postgres."""
        schema = self.reading.schema
        columns = [(column.name, column.kind, list(column.levels)) for column in schema.columns]
        read = [columns, list(schema.outputs), schema.task, list(schema.classes or ()), schema.positive]
        background = "" if self.background is None else self.background.id
        decides = (REVISION, self.predictor.digest, read, background, self.config.samples, self.config.seed)
        return int.from_bytes(digest_of(*decides, self.delimiter)[:8]) >> 1

    @property
    def delimiter(self) -> str:
        return self.reading.delimiter

    @property
    def outputs(self) -> tuple[str, ...]:  # K
        return self.predictor.outputs

    @property
    def device(self) -> str:
        """The type of the one that its model runs on."""
        artifact = self.predictor.artifact
        return str(artifact.network.device.type) if isinstance(artifact, SequenceClassifier) else "cpu"

    def predictions(self, algorithm: str, rows: int = 1) -> int:
        """How many rows or texts the model is asked for to explain so many together, at most."""
        if self.background is None:
            return rows * predictions_per_row(algorithm, self.config, LONG_TEXT, len(self.outputs))
        return predictions(algorithm, self.config, self.background, [str(place) for place in range(rows)])

    def predictions_of(self, algorithm: str, cells: Cells) -> int:
        """As `predictions`, of a row that is known. Raises InvalidRequest for a text with too many tokens."""
        if self.background is not None:
            return self.predictions(algorithm)
        tokens = len(cut(self.reading.texts(cells)[0], self.delimiter).tokens)
        return predictions_per_row(algorithm, self.config, tokens, len(self.outputs))

    def predict(self, cells: Cells) -> NDArray[np.float64]:  # (n, K)
        """Blocks: what the model says of n rows; nulls are imputed where it takes none."""
        if isinstance(self.predictor, BoundTexts):
            return self.predictor.predict(self.reading.texts(cells))
        assert self.background is not None  # noqa: S101 - a model of rows has one
        table = self.reading.table(cells, self.predictor.columns)
        rows = readied(self.background, table, self.predictor.accepts_nulls)[1]
        return self.predictor.predict(rows)

    def check_samples(self, pointer: str) -> None:
        """Raises InvalidRequest for more samples than can be held with so many inputs."""
        most = MOST_DRAWN // max(1, len(self.reading.inputs))
        if self.background is not None and self.config.samples > most:
            raise InvalidRequest(f"must be at most {most} with {len(self.reading.inputs)} inputs", pointer)

    def explain(
        self, algorithm: str, cells: Cells, ids: Sequence[str], checkpoint: Checkpoint, *, shared: bool = True
    ) -> list[Outcome]:
        """Blocks: an outcome for each of n rows. What goes wrong with one does not stop the others.

        Not `shared` leaves nothing behind for the next call: for rare configurations.
        """
        try:
            return list(self._explain(algorithm, cells, ids, checkpoint, shared))
        except (InvalidRequest, InconsistentAnswer) as error:
            if len(ids) == 1:
                return [str(error)]
        except PredictorFailed:
            if (known := self._refused(cells)) is None:
                raise
            if len(ids) == 1:
                return [known]
        parts = (cells.take(slice(place, place + 1)) for place in range(len(ids)))
        each = (
            self.explain(algorithm, part, [id], checkpoint, shared=shared) for part, id in zip(parts, ids, strict=True)
        )
        return [outcome for found in each for outcome in found]

    def _refused(self, cells: Cells) -> str | None:
        """Why the model does not answer these rows themselves, None where it does: one such row is not the others'."""
        try:
            self.predict(cells)
        except PredictorFailed as error:
            return str(error)
        return None

    def _explain(
        self, algorithm: str, cells: Cells, ids: Sequence[str], checkpoint: Checkpoint, shared: bool
    ) -> tuple[Attribution, ...]:
        if isinstance(self.predictor, BoundTexts):
            texts = self.reading.texts(cells)
            return TEXT_ALGORITHMS[algorithm](self.predictor, texts, ids, self.delimiter, self.config, checkpoint)
        return self._of_rows(self.predictor, algorithm, cells, ids, checkpoint, self.kept if shared else None)

    def _of_rows(
        self,
        predictor: TablePredictor,
        algorithm: str,
        cells: Cells,
        ids: Sequence[str],
        checkpoint: Checkpoint,
        kept: Kept | None,
    ) -> tuple[Attribution, ...]:
        assert self.background is not None  # noqa: S101 - a model of rows has one
        rows = self.reading.table(cells, predictor.columns)
        found = TABLE_ALGORITHMS[algorithm](predictor, rows, ids, self.background, self.config, checkpoint, kept)
        if kept is not None and (len(kept) > MOST_KEPT or sum(map(bytes_of, kept.values())) > KEPT_BYTES):
            kept.clear()
        return found


def bytes_of(draws: Draws) -> int:
    return draws.cells.nbytes + draws.scaled.nbytes + draws.outputs.nbytes


def algorithms_of(reading: Reading) -> tuple[str, ...]:
    """Those that can explain such a model."""
    return tuple(TEXT_ALGORITHMS if reading.is_text else TABLE_ALGORITHMS)


def checked(outcomes: Sequence[Outcome], stored: NDArray[np.float64]) -> list[Outcome]:  # n, (n, K)
    """A reason in place of an answer of a model that predicts something else than is stored for the row."""
    return [_checked(outcome, row) for outcome, row in zip(outcomes, stored, strict=True)]


def _checked(outcome: Outcome, stored: NDArray[np.float64]) -> Outcome:
    if isinstance(outcome, str) or "prediction" not in outcome.facts:
        return outcome
    try:
        check_unchanged(np.array([outcome.facts["prediction"]], dtype=np.float64), stored[None])
    except InconsistentAnswer as error:
        return str(error)
    return outcome


class Scorers:
    """The scorers of the models asked last, by a key that names the tenant."""

    def __init__(self) -> None:
        self._known: dict[Hashable, Scorer] = {}

    def get(self, key: Hashable) -> Scorer | None:
        return self._known.get(key)

    def drop(self, key: Hashable) -> None:
        self._known.pop(key, None)

    def put(self, key: Hashable, scorer: Scorer) -> None:
        self._known.pop(key, None)
        self._known[key] = scorer
        while len(self._known) > MOST_SCORERS:
            del self._known[next(iter(self._known))]
