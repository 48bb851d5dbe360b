"""The functions of the query language: a function is one Python function and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from storage.query import aggregates, boxes, evaluation, ranking, scalars
from storage.query.body import Place
from storage.query.comparators import COMPARATORS
from storage.query.schema import ALGORITHMS
from storage.query.signature import Function, Groups, Operand, Operands, Parameters, Value
from storage.query.typed import ANY, GROUPED, LISTS, NUMERIC, ORDERED, TIMES, Typed

ALL = tuple(COMPARATORS)
MEASURES = ("gt", "lt", "gte", "lte", "eq", "ne")
SHAPES = ("list", "object")


def _one_of(*names: str) -> Value:
    return Value(lambda place: place.choice(names, "value"))


def _maybe(value: Value, default: object = None) -> Value:
    return Value(value.read, required=False, default=default)


def _special(**_: object) -> Typed:
    raise TypeError("only the compiler builds this function")


NUMBER: Parameters = {"property": Operand(NUMERIC)}
SIDES: Parameters = {"left": Operand(NUMERIC), "right": Operand(NUMERIC)}
COMPARED: Parameters = {"property": Operand(ANY)}
EXTREME: Parameters = {"argument": Operand(GROUPED), "value": Operand(ORDERED)}
THRESHOLDS, BINS = Value(Place.thresholds), Value(Place.bins)
NAME = _maybe(Value(Place.name))
PAIR: Parameters = {
    "predicted_property": Operand(NUMERIC, default="predicted"),
    "ground_truth_property": Operand(NUMERIC, default="truth"),
}
OPTIONAL_PAIR: Parameters = {
    "predicted_property": Operand(NUMERIC, required=False),
    "ground_truth_property": Operand(NUMERIC, default="truth_if_predicted"),
}
LISTED: Parameters = {
    "predicted_property": Operand(LISTS, default="predicted"),
    "ground_truth_property": Operand(LISTS, default="truth"),
}
AT_K: Parameters = {**LISTED, "k": Value(lambda place: place.integer(1, 1_000_000))}
THRESHOLD: Parameters = {"threshold": _maybe(Value(Place.number))}
ERRORS: Parameters = {
    "aggregation": _maybe(_one_of("avg", "min", "max"), "avg"),
    "normalizationMin": _maybe(Value(Place.number)),
    "normalizationMax": _maybe(Value(Place.number)),
}
ALGORITHM = _maybe(_one_of(*ALGORITHMS))
REGION: Parameters = {"predicted_attribute_name": Value(Place.name), "explanation_algorithm": ALGORITHM}
SPREAD: Parameters = {"num_bins": _maybe(BINS), "bin_thresholds": _maybe(THRESHOLDS)}


def _whole(build: Callable[..., Typed], parameters: Parameters = PAIR, *needs: str) -> Function:
    """Of all values, not of those from a threshold on, which clients name for every evaluation: it changes nothing."""

    def built(*, threshold: float | None = None, **given: Any) -> Typed:
        return build(**given)

    return Function(built, parameters | THRESHOLD, aggregate=True, needs=needs)


def _binary(rate: str) -> Function:
    return Function(evaluation.binary_rate(rate), PAIR | THRESHOLD, aggregate=True, needs=("threshold",))


def _multiclass(rate: str) -> Function:
    return _whole(evaluation.multiclass_rate(rate), PAIR, "classes")


FUNCTIONS: Mapping[str, Function] = {
    # Aggregations
    "avg": Function(aggregates.avg, NUMBER, aggregate=True),
    "avgAbs": Function(aggregates.avg_abs, NUMBER, aggregate=True),
    "sum": Function(aggregates.sum_, NUMBER, aggregate=True),
    "variance": Function(aggregates.variance, NUMBER, aggregate=True),
    "stdDev": Function(aggregates.std_dev, NUMBER, aggregate=True),
    "max": Function(aggregates.max_, {"property": Operand(ORDERED)}, aggregate=True),
    "min": Function(aggregates.min_, {"property": Operand(ORDERED)}, aggregate=True),
    "count": Function(aggregates.count, aggregate=True),
    "countIf": Function(aggregates.count_if, COMPARED, aggregate=True, comparators=ALL),
    "rate": Function(aggregates.rate, COMPARED, aggregate=True, comparators=ALL),
    "categoriesCount": Function(aggregates.categories_count, {"property": Operand(GROUPED)}, aggregate=True),
    "distribution": Function(aggregates.distribution, NUMBER | SPREAD, aggregate=True, either=tuple(SPREAD)),
    "quantile": Function(aggregates.quantile, {**NUMBER, "level": Value(Place.level)}, aggregate=True),
    "deciles": Function(aggregates.deciles, NUMBER, aggregate=True),
    "argMax": Function(aggregates.arg_max, EXTREME, aggregate=True, needs=("ties",)),
    "argMin": Function(aggregates.arg_min, EXTREME, aggregate=True, needs=("ties",)),
    "anyIf": Function(
        aggregates.any_if, {"result": Operand(GROUPED), **COMPARED}, aggregate=True, comparators=ALL, needs=("ties",)
    ),
    "binsToQuantiles": Function(aggregates.bins_to_quantiles, {**NUMBER, "num_bins": BINS}, aggregate=True),
    "rankedItemMaxK": Function(
        ranking.ranked_item_max_k, {"property": Operand(LISTS), "item_filter": Value(ranking.items)}, aggregate=True
    ),
    # Row functions
    "roundTimestamp": Function(
        scalars.round_timestamp, {"property": Operand(TIMES), "time_interval": _one_of(*scalars.INTERVALS)}
    ),
    "add": Function(scalars.add, SIDES),
    "subtract": Function(scalars.subtract, SIDES),
    "multiply": Function(scalars.multiply, SIDES),
    "divide": Function(scalars.divide, SIDES),
    "abs": Function(scalars.abs_, NUMBER),
    "equals": Function(scalars.equals, {"left": Operand(GROUPED), "right": Operand(GROUPED)}),
    "and": Function(scalars.and_, SIDES),
    "or": Function(scalars.or_, SIDES),
    "if": Function(
        scalars.if_,
        {
            "property": Operand(GROUPED),
            "then": Operand(GROUPED, literally=True),
            "else": Operand(GROUPED, literally=True),
        },
        comparators=MEASURES,
    ),
    "binContinuous": Function(scalars.bin_continuous, {**NUMBER, "bin_thresholds": THRESHOLDS}),
    "labelByMaxColumn": Function(scalars.label_by_max_column, {"properties": Operands(NUMERIC)}),
    "dateDiff": Function(
        scalars.date_diff,
        {
            "unit": _one_of(*scalars.SECONDS, *scalars.MONTHS),
            "start_date": Operand(TIMES),
            "end_date": Operand(TIMES),
        },
    ),
    "neighbor": Function(
        scalars.neighbor,
        {
            "property": Operand(ORDERED),
            "offset": Value(lambda place: place.integer(-(2**31) + 1, 2**31 - 1)),
            "default": _maybe(Value(Place.scalar)),
        },
        needs=("order",),
    ),
    "arraySlice": Function(
        scalars.array_slice,
        {
            "property": Operand(LISTS),
            "start": Value(lambda place: place.integer(1)),
            "length": Value(lambda place: place.integer(0)),
        },
    ),
    "biasMitigatedPredictions": Function(
        scalars.bias_mitigated_predictions,
        {"predicted_property": Operand(NUMERIC, default="predicted"), "thresholds": Groups()},
    ),
    # Evaluation
    "rmse": _whole(evaluation.rmse),
    "mae": _whole(evaluation.mae, PAIR | ERRORS),
    "rSquared": _whole(evaluation.r_squared),
    "auc": _whole(evaluation.auc),
    "confusionMatrix": Function(evaluation.confusion_matrix, PAIR | THRESHOLD, aggregate=True, needs=("threshold",)),
    "confusionMatrixRate": Function(
        evaluation.confusion_matrix_rate, PAIR | THRESHOLD, aggregate=True, needs=("threshold",)
    ),
    "truePositiveRate": _binary("sensitivity"),
    "falsePositiveRate": _binary("fall_out"),
    "trueNegativeRate": _binary("specificity"),
    "falseNegativeRate": _binary("miss_rate"),
    "accuracyRate": _binary("accuracy"),
    "balancedAccuracyRate": _binary("balanced_accuracy"),
    "f1": _binary("f1"),
    "sensitivity": _binary("sensitivity"),
    "specificity": _binary("specificity"),
    "precision": _binary("precision"),
    "recall": _binary("sensitivity"),
    "accuracyRateMulticlass": _whole(evaluation.accuracy_rate_multiclass, OPTIONAL_PAIR, "classes"),
    "confusionMatrixMulticlass": _whole(evaluation.confusion_matrix_multiclass, PAIR, "classes"),
    "confusionMatrixRateMulticlass": _whole(evaluation.confusion_matrix_rate_multiclass, PAIR, "classes"),
    "truePositiveRateMulticlass": _multiclass("sensitivity"),
    "falsePositiveRateMulticlass": _multiclass("fall_out"),
    "trueNegativeRateMulticlass": _multiclass("specificity"),
    "falseNegativeRateMulticlass": _multiclass("miss_rate"),
    "precisionAtK": Function(ranking.precision_at_k, AT_K, aggregate=True),
    "recallAtK": Function(ranking.recall_at_k, AT_K, aggregate=True),
    "mapAtK": Function(ranking.map_at_k, AT_K, aggregate=True),
    "nDCGAtK": Function(ranking.ndcg_at_k, AT_K, aggregate=True),
    "rankedListAUC": Function(ranking.ranked_list_auc, LISTED, aggregate=True),
    "meanReciprocalRank": Function(ranking.mean_reciprocal_rank, LISTED, aggregate=True),
    "meanAveragePrecision": Function(
        boxes.mean_average_precision,
        {**LISTED, "threshold": _maybe(Value(boxes.overlap_from), 0.5)},
        aggregate=True,
        needs=("ties",),
    ),
    # Explanations
    "regionalFeatureImportance": Function(
        _special, {"attribute_name": Value(Place.name), **REGION}, aggregate=True, special=True
    ),
    "regionalFeatureImportances": Function(_special, REGION, special=True),
    "nlp_explanation": Function(
        _special,
        {
            "attribute_name": NAME,
            "nlp_predicted_attribute": NAME,
            "nlp_explainer": ALGORITHM,
            "shape": _maybe(_one_of(*SHAPES), "list"),
        },
        special=True,
    ),
}
