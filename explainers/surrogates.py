"""What explains stored inferences, by its public name: one line each.

All algorithms of a table, and all of texts, are called alike, so that whoever cuts stored inferences into pieces of
work need not know one from the other. Each answer says in its facts what the model predicted (`prediction`) and which
model it was (`model_digest`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from explainers import coalitions
from explainers.answers import targets_of
from explainers.background import Background, readied
from explainers.errors import InvalidRequest, MissingCapability
from explainers.methods import integrated_gradients, lime, shapley, text_lime, text_shapley, tree_shap
from explainers.methods.integrated_gradients import IntegratedGradientsConfig
from explainers.methods.lime import LimeConfig
from explainers.methods.shapley import ShapleyConfig
from explainers.methods.text_lime import TextLimeConfig
from explainers.methods.text_shapley import TextShapleyConfig
from explainers.predictor import TextPredictor
from explainers.predictors.binding import BoundTexts, TablePredictor
from explainers.sequence_classifier import SequenceClassifier
from explainers.table import Table
from explainers.text_masks import TextOptions, cut
from explainers.types import Attribution, Checkpoint


@dataclass(frozen=True, slots=True)
class SurrogateConfig:
    """`samples`: rows or texts per explanation for LIME, coalitions for SHAP. The other algorithms draw nothing."""

    samples: int = 2000
    seed: int = 0


Kept: TypeAlias = MutableMapping[int, lime.Draws]
"""What LIME's rows share, for the next call; whoever hands it in bounds it."""

TableAlgorithm: TypeAlias = Callable[
    [TablePredictor, Table, Sequence[str], Background, SurrogateConfig, Checkpoint, Kept | None],
    tuple[Attribution, ...],
]
"""(predictor, rows, ids, background, config, checkpoint, kept): one answer per row."""

TextAlgorithm: TypeAlias = Callable[
    [TextPredictor, Sequence[str], Sequence[str], str, SurrogateConfig, Checkpoint], tuple[Attribution, ...]
]
"""(predictor, texts, ids, delimiter, config, checkpoint): one answer per text."""


def predictions_per_row(
    algorithm: str, config: SurrogateConfig, background_or_tokens: Background | int, outputs: int = 1
) -> int:
    """How many rows or texts the model is asked for at most to explain one row, or one text of so many tokens.

    The number of a row by itself: rows explained together by LIME share their draws (see `predictions`). Integrated
    gradients pass `outputs` times over their line. Raises InvalidRequest for an algorithm that is not offered, and for
    more inputs or tokens than can be explained.
    """
    if isinstance(background_or_tokens, int):
        return TEXTS_ASKED[_offered(algorithm, TEXTS_ASKED)](config, background_or_tokens, outputs)
    return predictions(algorithm, config, background_or_tokens, ["one"])


def predictions(algorithm: str, config: SurrogateConfig, background: Background, ids: Sequence[str]) -> int:
    """How many rows the model is asked for at most to explain the rows of these ids together."""
    return ROWS_ASKED[_offered(algorithm, ROWS_ASKED)](config, background, ids)


def _offered(algorithm: str, known: Iterable[str]) -> str:
    if algorithm not in known:
        raise InvalidRequest(f"there is no algorithm {algorithm!r} here: {', '.join(known)}", "/explanation_algo")
    return algorithm


# -- rows --------------------------------------------------------------------------------------------------------------


def _lime(
    predictor: TablePredictor,
    rows: Table,
    ids: Sequence[str],
    background: Background,
    config: SurrogateConfig,
    checkpoint: Checkpoint,
    kept: Kept | None,
) -> tuple[Attribution, ...]:
    return lime.attribute(predictor, rows, ids, background, _lime_config(config), checkpoint, kept)


def _shap(
    predictor: TablePredictor,
    rows: Table,
    ids: Sequence[str],
    background: Background,
    config: SurrogateConfig,
    checkpoint: Checkpoint,
    _: Kept | None,
) -> tuple[Attribution, ...]:
    return shapley.attribute(predictor, rows, ids, background, _shapley_config(config), checkpoint)


def _tree_shap(
    predictor: TablePredictor,
    rows: Table,
    _: Sequence[str],
    background: Background,
    __: SurrogateConfig,
    checkpoint: Checkpoint,
    ___: Kept | None,
) -> tuple[Attribution, ...]:
    """The background only imputes, where the model accepts no nulls; scores of what was imputed are NaN."""
    rows, missing = readied(background, rows, predictor.accepts_nulls)[1:]
    answers = tree_shap.attribute(predictor, rows, checkpoint)
    outputs = predictor.predict(rows)
    return tuple(
        _told(predictor, rows, answer, gone, output)
        for answer, gone, output in zip(answers, missing, outputs, strict=True)
    )


def _told(
    predictor: TablePredictor, rows: Table, answer: Attribution, gone: NDArray[np.bool_], output: NDArray[np.float64]
) -> Attribution:
    imputed = [column.name for column, missing in zip(rows.columns, gone, strict=True) if missing]
    facts = {"model_digest": predictor.digest, "prediction": output.tolist(), "imputed": imputed}
    return replace(answer, values=np.where(gone, np.nan, answer.values), facts={**answer.facts, **facts})


TABLE_ALGORITHMS: Mapping[str, TableAlgorithm] = {"lime": _lime, "shap": _shap, "tree_shap": _tree_shap}


def _lime_config(config: SurrogateConfig) -> LimeConfig:
    return LimeConfig(samples=config.samples, seed=config.seed)


def _shapley_config(config: SurrogateConfig) -> ShapleyConfig:
    return ShapleyConfig(samples=config.samples, seed=config.seed)


ROWS_ASKED: Mapping[str, Callable[[SurrogateConfig, Background, Sequence[str]], int]] = {
    "lime": lambda config, _, ids: lime.predictions(_lime_config(config), ids),
    "shap": lambda config, background, ids: shapley.predictions(_shapley_config(config), background, len(ids)),
    "tree_shap": lambda _, __, ids: len(ids),
}


# -- texts -------------------------------------------------------------------------------------------------------------


def _text_lime(
    predictor: TextPredictor,
    texts: Sequence[str],
    ids: Sequence[str],
    delimiter: str,
    config: SurrogateConfig,
    checkpoint: Checkpoint,
) -> tuple[Attribution, ...]:
    asked = TextLimeConfig(config.samples, config.seed, TextOptions(delimiter))
    return text_lime.attribute(predictor, texts, ids, asked, checkpoint)


def _text_shap(
    predictor: TextPredictor,
    texts: Sequence[str],
    ids: Sequence[str],
    delimiter: str,
    config: SurrogateConfig,
    checkpoint: Checkpoint,
) -> tuple[Attribution, ...]:
    asked = TextShapleyConfig(config.samples, config.seed, TextOptions(delimiter))
    return text_shapley.attribute(predictor, texts, ids, asked, checkpoint)


def _integrated_gradients(
    predictor: TextPredictor,
    texts: Sequence[str],
    _: Sequence[str],
    delimiter: str,
    __: SurrogateConfig,
    checkpoint: Checkpoint,
) -> tuple[Attribution, ...]:
    model = predictor.artifact if isinstance(predictor, BoundTexts) else predictor
    if not isinstance(model, SequenceClassifier):
        raise MissingCapability("integrated gradients need a model that PyTorch runs: a Hugging Face classifier")
    targets, told = targets_of(predictor.outputs), {"model_digest": predictor.digest, "delimiter": delimiter}
    answers = (
        integrated_gradients.attribute(model, text, cut(text, delimiter).tokens, checkpoint=checkpoint)
        for text in texts
    )
    return tuple(replace(answer, targets=targets, facts={**answer.facts, **told}) for answer in answers)


TEXT_ALGORITHMS: Mapping[str, TextAlgorithm] = {
    "lime": _text_lime,
    "shap": _text_shap,
    "integrated_gradients": _integrated_gradients,
}

TEXTS_ASKED: Mapping[str, Callable[[SurrogateConfig, int, int], int]] = {
    "lime": lambda config, tokens, _: 2**tokens if tokens <= text_lime.ENUMERATED else config.samples,
    "shap": lambda config, tokens, _: 2 + max(0, coalitions.budget(tokens, config.samples)),
    "integrated_gradients": lambda _, __, outputs: 2 + IntegratedGradientsConfig().steps * outputs,
}
