"""Where the rows of a query come from, and the closed set of columns that it can name.

A stored source joins scores and tokens only when a query names what needs them: rows multiply only then. A source of
rows is a subquery. Row-level security keeps tenants apart; the model is always filtered here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import zip_longest
from typing import Any, Protocol

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    DateTime,
    Double,
    FromClause,
    Integer,
    Interval,
    Text,
    Uuid,
    and_,
    bindparam,
    column,
    func,
    literal,
    null,
    table,
    true,
)
from sqlalchemy import cast as sql_cast

from storage.errors import InvalidQuery
from storage.query import boxes
from storage.query.ast import SourceName
from storage.query.lists import PARTS
from storage.query.schema import ALGORITHMS, Attribute, QueryModel
from storage.query.typed import Kind, Sql, Typed
from storage.query.words import words

MOMENT, NUMBERS, TEXTS = DateTime(timezone=True), ARRAY(Double), ARRAY(Text)


def _table(name: str, **columns: Any) -> Any:
    """A table of the tenant's models; row-level security leaves the tenant's rows."""
    place = {"tenant_id": Text, "model_id": Uuid, "seq": BigInteger}
    return table(name, *(column(each, kind) for each, kind in (place | columns).items()))


INFERENCES = _table(
    "inferences",
    id=Uuid,
    partner_inference_id=Text,
    inference_timestamp=MOMENT,
    received_timestamp=MOMENT,
    batch_id=Text,
    ground_truth_timestamp=MOMENT,
    numbers=NUMBERS,
    texts=TEXTS,
)
REFERENCE_ROWS = _table("reference_rows", numbers=NUMBERS, texts=TEXTS)
SCORES = _table(
    "inference_scores", algorithm=Text, fingerprint=BigInteger, scores=NUMBERS, errors=NUMBERS, fit=NUMBERS, facts=JSON
)
TOKENS = _table(
    "inference_tokens",
    algorithm=Text,
    fingerprint=BigInteger,
    attribute=Text,
    tokens=TEXTS,
    positions=ARRAY(Integer),
    scores=NUMBERS,
    errors=NUMBERS,
)

SYSTEM: Mapping[str, tuple[str, Kind]] = {
    "inference_id": ("id", "id"),
    "partner_inference_id": ("partner_inference_id", "text"),
    "inference_timestamp": ("inference_timestamp", "timestamp"),
    "received_timestamp": ("received_timestamp", "timestamp"),
    "ground_truth_timestamp": ("ground_truth_timestamp", "timestamp"),
    "batch_id": ("batch_id", "text"),
}
"""Properties of every inference: their columns and kinds. They win over an attribute of the same name."""
KINDS: Mapping[str, Kind] = {"BOOLEAN": "boolean", "INTEGER": "integer", "FLOAT": "number", "TIMESTAMP": "timestamp"}
TEXT_KINDS: frozenset[str] = frozenset(("STRING", "UNSTRUCTURED_TEXT", "IMAGE"))
EXPLAINER = (
    "explainer_algo",
    "explainer_predicted_attribute",
    "explainer_attribute",
    "explainer_score",
    "explainer_score_stderr",
    "explainer_local_fit_r2",
    "explainer_n_samples",
)
"""Properties of one score; naming any of them makes a row for each."""
EXPLAINER_OF_TEXTS = ("explainer_token", "explainer_token_position")
"""And of models of texts, whose scores are those of tokens."""
IMPORTANCES = {
    "lime_feature_importance": "lime",
    "lime_importance": "lime",
    "shap_feature_importance": "shap",
    "shap_importance": "shap",
}
EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)


class Source(Protocol):
    def column(self, name: str) -> Typed | None:
        """The property with that name, None if there is none."""

    def names(self) -> tuple[str, ...]:
        """All properties."""

    def everything(self) -> tuple[str, ...]:
        """What `*` stands for."""

    def rows(self) -> FromClause:
        """With the joins that the columns asked for so far need."""

    def parts(self) -> list[Any]:
        """The clauses of `rows`."""

    def conditions(self) -> list[Sql]: ...

    def ties(self) -> list[Sql]:
        """Whole numbers that order the rows where nothing else does."""


@dataclass(slots=True)
class Rows:
    """The rows of a subquery; `place` numbers them."""

    clause: Any
    columns: Mapping[str, Typed]
    place: Sql

    def column(self, name: str) -> Typed | None:
        return self.columns.get(name)

    def names(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def everything(self) -> tuple[str, ...]:
        return tuple(self.columns)

    def rows(self) -> FromClause:
        clause: FromClause = self.clause
        return clause

    def parts(self) -> list[Any]:
        return [self.clause]

    def conditions(self) -> list[Sql]:
        return []

    def ties(self) -> list[Sql]:
        return [self.place]


@dataclass(frozen=True, slots=True)
class Region:
    """The arrays of scores of some inferences."""

    scores: Sql
    rows: Any
    conditions: list[Sql]


@dataclass(slots=True)
class Stored:
    """Inferences or reference rows of a model."""

    model: QueryModel
    name: SourceName
    main: Any = None
    joined: dict[str, tuple[Any, Sql, bool]] = field(default_factory=dict)  # clause, condition, whether outer
    cells: Any = None
    boxes: dict[str, Any] = field(default_factory=dict)  # by attribute, at most one
    makers: dict[str, Callable[[], Typed]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.main = REFERENCE_ROWS.alias("r") if self.name == "reference" else INFERENCES.alias("i")
        self.makers = {each.name: partial(self._attribute, each) for each in self.model.attributes}
        if self.name != "reference":
            self.makers |= {name: partial(self._system, name) for name in SYSTEM}

    def column(self, name: str) -> Typed | None:
        maker = self.makers.get(name) or self._named().get(name)
        return maker() if maker else None

    def names(self) -> tuple[str, ...]:
        return (*self.makers, *self._named())

    def everything(self) -> tuple[str, ...]:
        return tuple(self.makers)

    def rows(self) -> FromClause:
        rows = self.unmultiplied()
        for multiplying in self._multiplying():
            rows = rows.join(multiplying, true())
        return rows

    def unmultiplied(self) -> FromClause:
        """One row for each inference and algorithm."""
        rows: FromClause = self.main
        for clause, condition, outer in self.joined.values():
            rows = rows.join(clause, condition, isouter=outer)
        return rows

    def parts(self) -> list[Any]:
        joined = [clause for clause, _, _ in self.joined.values()]
        return [self.main, *joined, *self._multiplying()]

    def conditions(self) -> list[Sql]:
        conditions = [self.main.c.model_id == self._model_id]
        if self.name == "ground_truth":
            conditions.append(self.main.c.ground_truth_timestamp.is_not(None))
        return conditions

    def ties(self) -> list[Sql]:
        if self.cells is None:
            return [self.main.c.seq, *(each.c.place for each in self._multiplying())]
        known = bindparam(None, list(ALGORITHMS), TEXTS)
        rank = func.array_position(known, self.joined["explained"][0].c.algorithm)
        return [self.main.c.seq, rank, self.cells.c.place]

    def _multiplying(self) -> list[Any]:
        """One clause at most; raises InvalidQuery for more."""
        found = [*([] if self.cells is None else [self.cells]), *self.boxes.values()]
        if len(found) > 1:
            raise InvalidQuery("a query has a row for each score or for each box of one attribute, not for both")
        return found

    def scores(self, algorithm: str) -> Sql:
        """The scores of an algorithm, class by class; null where it was not computed."""
        name = f"{algorithm}_scores"
        clause = self._join(name, SCORES, outer=True, algorithm=algorithm)
        scores: Sql = clause.c.scores
        return scores

    def region(self, algorithm: str, conditions: Sequence[Sql]) -> Region:
        """The scores of the explained inferences that pass; without conditions the inferences are not even read."""
        if conditions or self.name == "ground_truth":
            clause = self._join(f"{algorithm}_region", SCORES, outer=False, algorithm=algorithm)
            return Region(clause.c.scores, self.rows(), [*self.conditions(), *conditions])
        clause = SCORES.alias("s")
        return Region(
            clause.c.scores, clause, [clause.c.model_id == self._model_id, *self._current(clause, algorithm=algorithm)]
        )

    def tokens(self, algorithm: str, attribute: str) -> Any:
        """The tokens of a text and their scores; inferences without them fall out."""
        name = f"tokens/{algorithm}/{attribute}"
        return self._join(name, TOKENS, outer=False, algorithm=algorithm, attribute=attribute)

    def explained(self) -> tuple[Any, Any]:
        """Multiplies the rows: one for each algorithm, predicted attribute and input; scores, and the cells of them."""
        if self.model.texts:
            return self._explained_tokens()
        clause = self._join("explained", SCORES, outer=False)
        if self.cells is None:
            inputs, predicted = ([each.name for each in part] for part in (self.model.inputs, self.model.predicted))
            attributes = bindparam(None, inputs * len(predicted), TEXTS)
            classes = bindparam(None, [name for name in predicted for _ in inputs], TEXTS)
            unnested = func.unnest(attributes, classes)
            self.cells = unnested.table_valued(
                column("attribute", Text), column("predicted", Text), with_ordinality="place", name="cells"
            ).render_derived()
        return clause, self.cells

    def _explained_tokens(self) -> tuple[Any, Any]:
        """The same for texts, where each token is an input."""
        clause = self._join("explained", TOKENS, outer=False)
        if self.cells is None:
            self.cells = words(clause, [each.name for each in self.model.predicted])
        return clause, self.cells

    def require_explanations(self) -> None:
        """Raises InvalidQuery where the model was never explained, or the source has no inferences."""
        if self.name == "reference":
            raise InvalidQuery("reference rows are not explained")
        if self.model.explainability is None:
            raise InvalidQuery("explainability was never enabled for this model")

    @property
    def _model_id(self) -> Sql:
        return literal(self.model.id, Uuid)

    def _current(self, clause: Any, **fixed: Any) -> list[Sql]:
        """What scores and tokens must have: these values, and the fingerprint of the model's explanations of now."""
        values = {key: literal(value, Text) if isinstance(value, str) else value for key, value in fixed.items()}
        same: list[Sql] = [clause.c[key] == value for key, value in values.items()]
        known = self.model.explainability
        return same if known is None else [*same, clause.c.fingerprint == literal(known.fingerprint, BigInteger)]

    def _join(self, name: str, of: Any, *, outer: bool, **fixed: Any) -> Any:
        if name not in self.joined:
            clause = of.alias(f"j{len(self.joined)}")
            same = [clause.c[key] == self.main.c[key] for key in ("tenant_id", "model_id", "seq")]
            same += self._current(clause, **fixed)
            self.joined[name] = (clause, and_(*same), outer)
        return self.joined[name][0]

    def _attribute(self, attribute: Attribute) -> Typed:
        cells = self.main.c.numbers if attribute.slot_kind == "number" else self.main.c.texts
        cell = cells[attribute.slot]
        kind = kind_of(attribute)
        if kind == "timestamp":
            cell = _moment(cell)
        return Typed(cell, kind, plain=attribute.name)

    def _system(self, name: str) -> Typed:
        column, kind = SYSTEM[name]
        return Typed(self.main.c[column], kind, plain=name)

    def _named(self) -> Mapping[str, Callable[[], Typed]]:
        """What `*` does not stand for."""
        parts: dict[str, Callable[[], Typed]] = {
            f"{each.name}_{part}": partial(self._part, each, part)
            for each in self.model.attributes
            for part in PARTS.get(each.value_type, ())
        }
        named = boxes.properties(self.model.predicted).items()
        boxed = {name: partial(self._box_part, name, *each) for name, each in named}
        return {**parts, **boxed, **self._enriched()}

    def _part(self, attribute: Attribute, part: str) -> Typed:
        column = self._attribute(attribute)
        return Typed(PARTS[attribute.value_type][part](column.sql), "list", plain=f"{attribute.name}_{part}")

    def _box_part(self, name: str, attribute: Attribute, part: str) -> Typed:
        """Multiplies the rows: one for each box."""
        if attribute.name not in self.boxes:
            self.boxes[attribute.name] = boxes.rows(self._attribute(attribute).sql, self.main)
        return Typed(self.boxes[attribute.name].c[part], boxes.PARTS[part], plain=name)

    def _enriched(self) -> Mapping[str, Callable[[], Typed]]:
        if self.name != "enriched":
            return {}
        return {
            "anomaly_score": lambda: Typed(sql_cast(null(), Double), "number", plain="anomaly_score"),
            **{name: partial(self._cell, name) for name in EXPLAINER},
            **{name: partial(self._cell, name) for name in EXPLAINER_OF_TEXTS if self.model.texts},
            **{name: partial(self._importance, name) for name in IMPORTANCES},
        }

    def _cell(self, name: str) -> Typed:
        self.require_explanations()
        scores, cells = self.explained()
        if name in ("explainer_local_fit_r2", "explainer_n_samples"):
            return self._of_whole(name, scores, cells)
        found: dict[str, Callable[[], tuple[Sql, Kind]]] = {
            "explainer_algo": lambda: (scores.c.algorithm, "text"),
            "explainer_predicted_attribute": lambda: (cells.c.predicted, "text"),
            "explainer_attribute": lambda: ((scores if self.model.texts else cells).c.attribute, "text"),
            "explainer_score": lambda: (scores.c.scores[cells.c.place], "number"),
            "explainer_score_stderr": lambda: (scores.c.errors[cells.c.place], "number"),
            "explainer_token": lambda: (cells.c.token, "text"),
            "explainer_token_position": lambda: (cells.c.position, "integer"),
        }
        return Typed(*found[name](), plain=name)

    def _of_whole(self, name: str, scores: Any, cells: Any) -> Typed:
        """What is said of all scores for an output, or of all together; beside tokens it lies in the row of scores."""
        output = (cells.c.place - 1) // len(self.model.inputs) + 1
        if self.model.texts:
            tokens, output = scores, cells.c.output
            scores = self._join("of_tokens", SCORES, outer=False, algorithm=tokens.c.algorithm)
        if name == "explainer_local_fit_r2":
            return Typed(scores.c.fit[output], "number", plain=name)
        return Typed(sql_cast(scores.c.facts.op("->>")("n_samples"), Double), "integer", plain=name)

    def _importance(self, name: str) -> Typed:
        """An object of the scores for the positive or only class."""
        self.require_explanations()
        positive, inputs = self.model.positive, self.model.inputs
        if positive is None:
            raise InvalidQuery(f"the model has no positive class for '{name}': use explainer_score")
        first = self.model.predicted.index(positive) * len(inputs) + 1
        part = self.scores(IMPORTANCES[name])[first : first + len(inputs) - 1]
        names = [each.name for each in inputs]
        return Typed(part, "json", plain=name, shape=lambda values: dict(zip_longest(names, values)))


def kind_of(attribute: Attribute) -> Kind:
    """What the values of an attribute are; whatever is neither a number, a time nor a text is a list."""
    if attribute.slot_kind == "number":
        return KINDS.get(attribute.value_type, "number")
    return "text" if attribute.value_type in TEXT_KINDS else "list"


def _moment(microseconds: Sql) -> Sql:
    """A multiple of an interval, exact to the microsecond."""
    return literal(EPOCH, MOMENT) + microseconds * literal(MICROSECOND, Interval)
