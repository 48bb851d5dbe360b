"""Predictions against ground truth, over the rows that have both; a rate without cases is null."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, Double, case, func, literal, null, select
from sqlalchemy import cast as sql_cast

from storage.errors import InvalidQuery
from storage.query.typed import Sql, Typed, check_varies, number, ratio, whole

COUNTS = ("true_positive", "false_positive", "true_negative", "false_negative")


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of rows, as double precision."""

    true_positive: Sql
    false_positive: Sql
    true_negative: Sql
    false_negative: Sql

    @property
    def sensitivity(self) -> Sql:
        return ratio(self.true_positive, self.true_positive + self.false_negative)

    @property
    def fall_out(self) -> Sql:
        return ratio(self.false_positive, self.false_positive + self.true_negative)

    @property
    def specificity(self) -> Sql:
        return ratio(self.true_negative, self.false_positive + self.true_negative)

    @property
    def miss_rate(self) -> Sql:
        return ratio(self.false_negative, self.true_positive + self.false_negative)

    @property
    def precision(self) -> Sql:
        return ratio(self.true_positive, self.true_positive + self.false_positive)

    @property
    def accuracy(self) -> Sql:
        right = self.true_positive + self.true_negative
        return ratio(right, right + self.false_positive + self.false_negative)

    @property
    def balanced_accuracy(self) -> Sql:
        return (self.sensitivity + self.specificity) / 2.0

    @property
    def f1(self) -> Sql:
        twice = 2.0 * self.true_positive
        return ratio(twice, twice + self.false_positive + self.false_negative)


RATES = {
    "true_positive_rate": "sensitivity",
    "false_positive_rate": "fall_out",
    "true_negative_rate": "specificity",
    "false_negative_rate": "miss_rate",
    "accuracy_rate": "accuracy",
    "balanced_accuracy_rate": "balanced_accuracy",
    "precision": "precision",
    "f1": "f1",
}
"""Names in the answer, and of the rates they are."""


@dataclass(frozen=True, slots=True)
class Classes:
    """The predicted attributes by position, and the ground truth of each: 1 where the class is the true one."""

    names: tuple[str, ...]
    predicted: tuple[Typed, ...]
    truths: tuple[Typed | None, ...]

    @property
    def winner(self) -> Sql:
        """The place of the largest, the first of several; null where all are null."""
        largest = func.greatest(*(each.sql for each in self.predicted))
        return case(*((each.sql == largest, place) for place, each in enumerate(self.predicted)), else_=null())


def rmse(predicted_property: Typed, ground_truth_property: Typed) -> Typed:
    off = predicted_property.sql - ground_truth_property.sql
    return number(func.sqrt(func.avg(off * off)))


def mae(
    predicted_property: Typed,
    ground_truth_property: Typed,
    aggregation: str = "avg",
    normalization_min: float | None = None,
    normalization_max: float | None = None,
) -> Typed:
    """With both bounds, errors are in units of the range between them."""
    off: Sql = func.abs(predicted_property.sql - ground_truth_property.sql)
    if (normalization_min is None) != (normalization_max is None):
        raise InvalidQuery("normalizationMin and normalizationMax go together")
    if normalization_min is not None and normalization_max is not None:
        if normalization_max <= normalization_min:
            raise InvalidQuery("normalizationMax must be greater than normalizationMin")
        off = off / literal(float(normalization_max) - float(normalization_min), Double)
    return number(getattr(func, {"avg": "avg", "min": "min", "max": "max"}[aggregation])(off))


def r_squared(predicted_property: Typed, ground_truth_property: Typed) -> Typed:
    """Null where all true values are equal."""
    predicted, truth = predicted_property.sql, ground_truth_property.sql
    off, both = predicted - truth, predicted.is_not(None) & truth.is_not(None)
    spread = func.var_pop(truth).filter(both)
    return number(1.0 - ratio(func.avg(off * off), spread))


def confusion_matrix(predicted_property: Typed, ground_truth_property: Typed, threshold: float) -> Typed:
    return _matrix(_binary(predicted_property, ground_truth_property, threshold))


def confusion_matrix_rate(predicted_property: Typed, ground_truth_property: Typed, threshold: float) -> Typed:
    return _rates(_binary(predicted_property, ground_truth_property, threshold))


def binary_rate(name: str) -> Any:
    """The function that answers with one rate of the binary confusion matrix."""

    def rate(predicted_property: Typed, ground_truth_property: Typed, threshold: float) -> Typed:
        return number(getattr(_binary(predicted_property, ground_truth_property, threshold), name))

    return rate


def confusion_matrix_multiclass(predicted_property: Typed, ground_truth_property: Typed, classes: Classes) -> Typed:
    return _matrix(_one_against_all(predicted_property, ground_truth_property, classes))


def confusion_matrix_rate_multiclass(
    predicted_property: Typed, ground_truth_property: Typed, classes: Classes
) -> Typed:
    return _rates(_one_against_all(predicted_property, ground_truth_property, classes))


def multiclass_rate(name: str) -> Any:
    """The function that answers with one rate of a class against all others."""

    def rate(predicted_property: Typed, ground_truth_property: Typed, classes: Classes) -> Typed:
        return number(getattr(_one_against_all(predicted_property, ground_truth_property, classes), name))

    return rate


def accuracy_rate_multiclass(
    classes: Classes, predicted_property: Typed | None = None, ground_truth_property: Typed | None = None
) -> Typed:
    """The share of rows whose largest class is the true one; of one class against all others where it is named."""
    if predicted_property is not None and ground_truth_property is not None:
        return number(_one_against_all(predicted_property, ground_truth_property, classes).accuracy)
    winner = classes.winner
    hits = [(winner == place, truth.sql) for place, truth in enumerate(classes.truths) if truth is not None]
    if len(hits) < len(classes.truths):
        raise InvalidQuery("every predicted attribute needs a ground truth")
    truth = case(*hits, else_=null())
    return number(func.avg(case((truth == 1.0, 1.0), (truth.is_not(None), 0.0), else_=null()), type_=Double()))


def auc(predicted_property: Typed, ground_truth_property: Typed) -> Typed:
    """The share of pairs of a positive and a negative row that the prediction orders rightly; ties count half."""
    check_varies(predicted_property, ground_truth_property)
    predicted, truth = predicted_property.sql, ground_truth_property.sql
    both = predicted.is_not(None) & truth.is_not(None)
    pairs: Any = func.unnest(func.array_agg(predicted).filter(both), func.array_agg(truth).filter(both))
    rows = pairs.table_valued("score", "truth").render_derived()
    positive = func.count().filter(rows.c.truth == 1.0)
    counts = (
        select(rows.c.score, positive.label("positive"), (func.count() - positive).label("negative"))
        .select_from(rows)
        .group_by(rows.c.score)
        .subquery()
    )
    lower = func.sum(counts.c.negative).over(order_by=counts.c.score) - counts.c.negative
    steps = select(counts.c.positive, counts.c.negative, lower.label("lower")).subquery()
    won = sql_cast(func.sum(steps.c.positive * (2 * steps.c.lower + steps.c.negative)), Double)
    pairs_of_two = sql_cast(func.sum(steps.c.positive) * func.sum(steps.c.negative), Double)
    return number(select(ratio(won, 2.0 * pairs_of_two)).scalar_subquery())


def _binary(predicted: Typed, truth: Typed, threshold: float) -> Confusion:
    return _confusion(predicted.sql >= literal(float(threshold), Double), truth.sql == 1.0)


def _one_against_all(predicted: Typed, truth: Typed, classes: Classes) -> Confusion:
    if predicted.plain not in classes.names:
        raise InvalidQuery("predicted_property must be a predicted attribute of the model")
    return _confusion(classes.winner == classes.names.index(predicted.plain), truth.sql == 1.0)


def _confusion(positive: Sql, true: Sql) -> Confusion:
    """A null on either side makes the comparison unknown, and the row counts nowhere."""
    cells = (positive & true, positive & ~true, ~positive & ~true, ~positive & true)
    return Confusion(*(sql_cast(func.count().filter(cell), Double) for cell in cells))


def _matrix(confusion: Confusion) -> Typed:
    return _object({name: whole(getattr(confusion, name)) for name in COUNTS})


def _rates(confusion: Confusion) -> Typed:
    return _object({name: number(getattr(confusion, rate)) for name, rate in RATES.items()})


def _object(members: dict[str, Typed]) -> Typed:
    shapes = {name: member.shaped for name, member in members.items()}
    array = func.json_build_array(*(member.sql for member in members.values()), type_=JSON)

    def shape(values: Sequence[Any]) -> dict[str, Any]:
        pairs = zip(shapes.items(), values, strict=True)
        return {name: None if value is None else shape(value) for (name, shape), value in pairs}

    return Typed(array, "json", shape=shape)
