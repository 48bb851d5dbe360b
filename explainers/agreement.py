"""Do our numbers agree with the field's packages on this very model? Asked by `whence check`.

The laws that scores obey (they add up, classes cancel, the same question has the same answer) are tried too, with
predictions made apart. A package that is not installed makes a line without a verdict, never a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers import table_agreement, text_agreement
from explainers.background import Background, readied
from explainers.errors import InvalidRequest, MissingCapability
from explainers.methods import integrated_gradients, lime, shapley, text_lime, text_shapley, tree_shap
from explainers.methods.lime import LimeConfig
from explainers.methods.shapley import ShapleyConfig
from explainers.methods.text_lime import TextLimeConfig
from explainers.methods.text_shapley import TextShapleyConfig
from explainers.predictor import TextPredictor
from explainers.predictors.binding import SLACK, BoundTexts, TablePredictor
from explainers.sequence_classifier import SequenceClassifier
from explainers.table import Table
from explainers.text_masks import Cut, TextOptions, cut
from explainers.types import Attribution
from explainers.verdicts import Finding, Line, adds_up, classes_cancel, judged, repeats

SEEDS, SAMPLES = 8, 1000
"""Of LIME of rows, on both sides."""

MOST_PREDICTIONS = 300_000
"""Rows that our side of SHAP may ask the model for; so many rows are compared as that allows, one at least."""

TEXT_SEEDS, TEXT_SAMPLES = 6, 400
MOST_TEXTS = 3

SHORT = 6
"""Tokens of a text whose every subset is tried."""

SHOWN = 3
"""Tokens of a text that are shown with either removal."""


def run_table(predictor: TablePredictor, background: Background, rows: Table) -> tuple[dict[str, Any], ...]:
    """Lines with name, passed (None: not judged), value, tolerance and note.

    Raises InvalidRequest for no rows or foreign ones, PredictorFailed where the model fails.
    """
    if not len(rows):
        raise InvalidRequest("a check needs a row to explain")
    trial = _Rows(predictor, *readied(background, rows, predictor.accepts_nulls)[:2])
    return tuple(asdict(judged(name, partial(ask, trial))) for name, ask in ROW_LINES.items())


def run_texts(predictor: TextPredictor, texts: Sequence[str], delimiter: str = r"\W+") -> tuple[dict[str, Any], ...]:
    """As `run_table`, for a classifier of texts: the first few that have tokens.

    Behind the verdicts comes what either removal of words says of each text, which is no verdict.
    """
    pieces = [each for each in (cut(text, delimiter) for text in texts) if each.tokens]
    if not pieces:
        raise InvalidRequest("a check needs a text with a token")
    trial = _Texts(predictor, tuple(pieces[:MOST_TEXTS]), TextOptions(delimiter))
    lines = [judged(name, partial(ask, trial)) for name, ask in TEXT_LINES.items()]
    return tuple(asdict(line) for line in (*lines, *trial.removals()))


# -- rows --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """What was asked, as the model can take it, and our answers, computed when a line first needs them."""

    predictor: TablePredictor
    background: Background
    rows: Table

    @cached_property
    def complete(self) -> tuple[Background, Table]:
        """Without nulls, of which the lime package knows nothing."""
        return readied(self.background, self.rows, accepts_nulls=False)[:2]

    @cached_property
    def few(self) -> Table:
        """As many rows as SHAP can afford."""
        each = shapley.predictions(ShapleyConfig(), self.background, 1)
        return self.rows.take(slice(0, max(1, MOST_PREDICTIONS // each)))

    @cached_property
    def slopes(self) -> list[tuple[Attribution, ...]]:
        """By seed and row."""
        return [self.lime(seed) for seed in range(SEEDS)]

    @cached_property
    def shares(self) -> tuple[Attribution, ...]:
        return self.shap()

    @cached_property
    def paths(self) -> tuple[Attribution, ...]:
        return tree_shap.attribute(self.predictor, self.rows)

    def lime(self, seed: int) -> tuple[Attribution, ...]:
        background, rows = self.complete
        config = LimeConfig(samples=SAMPLES, seed=seed)
        return lime.attribute(self.predictor, rows, _ids(len(rows)), background, config)

    def shap(self) -> tuple[Attribution, ...]:
        return shapley.attribute(self.predictor, self.few, _ids(len(self.few)), self.background)

    def classes(self, found: tuple[Attribution, ...]) -> Finding:
        if self.predictor.schema.task != "classification" or len(self.predictor.outputs) < 2:
            raise InvalidRequest("the outputs are no shares of one")
        return classes_cancel(found, SLACK if self.predictor.positive is None else 0.0)

    def trees_add_up(self) -> Finding:
        error = max(answer.facts["additivity_error"] for answer in self.paths)
        largest = max(float(np.abs(answer.values).sum(axis=1).max()) for answer in self.paths)
        return Finding(error, tree_shap.TOLERANCE * max(1.0, largest))


def _ids(count: int) -> list[str]:
    return [str(place) for place in range(count)]


ROW_LINES: Mapping[str, Callable[[_Rows], Finding]] = {
    "LIME equals the lime package": lambda t: table_agreement.lime_agrees(t.predictor, *t.complete, t.slopes, SAMPLES),
    "LIME repeats itself": lambda t: repeats(t.slopes[0], t.lime(0)),
    "LIME of all classes cancels": lambda t: t.classes(t.slopes[0]),
    "SHAP equals shap.KernelExplainer": lambda t: table_agreement.shap_agrees(
        t.predictor, t.background, t.few, t.shares
    ),
    "SHAP adds up to the prediction": lambda t: adds_up(t.predictor.predict(t.few), t.shares),
    "SHAP repeats itself": lambda t: repeats(t.shares, t.shap()),
    "SHAP of all classes cancels": lambda t: t.classes(t.shares),
    "TreeSHAP equals shap.TreeExplainer": lambda t: table_agreement.trees_agree(t.predictor, t.rows, t.paths),
    "TreeSHAP adds up to the trees' output": lambda t: t.trees_add_up(),
}


# -- texts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Texts:
    """As `_Rows`; every text has a token."""

    predictor: TextPredictor
    pieces: tuple[Cut, ...]
    deleting: TextOptions

    @property
    def texts(self) -> list[str]:
        return [each.text for each in self.pieces]

    @cached_property
    def outputs(self) -> NDArray[np.float64]:  # (n, K)
        return self.predictor.predict(self.texts)

    @property
    def replacing(self) -> TextOptions:
        return TextOptions(self.deleting.delimiter, "placeholder")

    @cached_property
    def slopes(self) -> Mapping[str, tuple[Attribution, ...]]:
        """Of the first seed, by what becomes of removed words."""
        both = (self.deleting, self.replacing)
        return {options.removal: self.lime(self.texts, 0, options, 2000) for options in both}

    @cached_property
    def shares(self) -> tuple[Attribution, ...]:
        return self.shap(self.texts)

    @cached_property
    def model(self) -> SequenceClassifier:
        model = self.predictor.artifact if isinstance(self.predictor, BoundTexts) else self.predictor
        if not isinstance(model, SequenceClassifier):
            raise MissingCapability("the model is not one that PyTorch runs")
        return model

    @cached_property
    def gradients(self) -> tuple[Attribution, ...]:
        return tuple(integrated_gradients.attribute(self.model, each.text, each.tokens) for each in self.pieces)

    def lime(self, texts: list[str], seed: int, options: TextOptions, samples: int) -> tuple[Attribution, ...]:
        config = TextLimeConfig(samples, seed, options)
        return text_lime.attribute(self.predictor, texts, _ids(len(texts)), config)

    def shap(self, texts: list[str]) -> tuple[Attribution, ...]:
        config = TextShapleyConfig(options=self.deleting)
        return text_shapley.attribute(self.predictor, texts, _ids(len(texts)), config)

    def lime_agrees(self, options: TextOptions) -> Finding:
        fewest = text_agreement.FEWEST_TOKENS
        texts = [each.text for each in self.pieces if len(each.tokens) >= fewest]
        if not texts:
            raise InvalidRequest(f"no text has {fewest} tokens")
        found = [self.lime(texts, seed, options, TEXT_SAMPLES) for seed in range(TEXT_SEEDS)]
        return text_agreement.lime_agrees(self.predictor, texts, found, options, TEXT_SAMPLES)

    def shap_is_defined(self) -> Finding:
        whole = self.pieces[0]
        short = whole.text[: whole.tokens[:SHORT][-1].stop]
        return text_agreement.shap_agrees(self.predictor, short, self.shap([short])[0])

    def classes(self, found: tuple[Attribution, ...]) -> Finding:
        if self.outputs.shape[1] < 2 or np.abs(self.outputs.sum(axis=1) - 1).max() > SLACK:
            raise InvalidRequest("the outputs are no shares of one")
        return classes_cancel(found, SLACK)

    def removals(self) -> list[Line]:
        """LIME with words deleted beside LIME with words replaced; the value is the correlation of their scores."""
        pairs = zip(self.slopes["delete"], self.slopes["placeholder"], strict=True)
        return [_side_by_side(place, *pair) for place, pair in enumerate(pairs)]


def _side_by_side(place: int, deleted: Attribution, replaced: Attribution) -> Line:
    """The tokens that matter most to the output that deleting moves most."""
    output = int(np.abs(deleted.values).max(axis=1).argmax())
    first, second = deleted.values[output], replaced.values[output]
    spread = min(np.ptp(deleted.values), np.ptp(replaced.values))
    alike = float(np.corrcoef(deleted.values.ravel(), replaced.values.ravel())[0, 1]) if spread > 0 else None
    shown = (-np.maximum(np.abs(first), np.abs(second))).argsort(kind="stable")[:SHOWN].tolist()
    words = ", ".join(f"{deleted.features[token].name} {first[token]:+.3g} | {second[token]:+.3g}" for token in shown)
    name = f"text {place + 1}: words deleted | replaced by {replaced.facts['placeholder']}"
    return Line(name, None, alike, None, f"for {deleted.targets[output].text}: {words}")


TEXT_LINES: Mapping[str, Callable[[_Texts], Finding]] = {
    "LIME equals the lime package, words deleted": lambda t: t.lime_agrees(t.deleting),
    "LIME equals the lime package, words replaced": lambda t: t.lime_agrees(t.replacing),
    "LIME repeats itself": lambda t: repeats(t.slopes["delete"], t.lime(t.texts, 0, t.deleting, 2000)),
    "LIME of all classes cancels": lambda t: t.classes(t.slopes["delete"]),
    "SHAP equals its definition": lambda t: t.shap_is_defined(),
    "SHAP adds up to the prediction": lambda t: adds_up(t.outputs, t.shares),
    "SHAP repeats itself": lambda t: repeats(t.shares, t.shap(t.texts)),
    "SHAP of all classes cancels": lambda t: t.classes(t.shares),
    "integrated gradients equal captum's": lambda t: text_agreement.gradients_agree(t.model, t.texts, t.gradients),
    "integrated gradients add up to the prediction": lambda t: text_agreement.gradients_add_up(t.outputs, t.gradients),
}
