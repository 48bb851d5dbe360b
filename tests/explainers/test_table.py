"""Rows: what cells hold, what comes back, and which rows are alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explainers.predictor import predict_distinct
from explainers.table import Column, Table, table_of

COLUMNS = (Column("a"), Column("b", "integer"), Column("c", "boolean"), Column("d", "category", ("x", "y")))
ROWS = st.lists(
    st.tuples(
        st.none() | st.sampled_from([0.0, 1.5, -1e300]),
        st.none() | st.integers(-3, 3),
        st.none() | st.booleans(),
        st.none() | st.sampled_from(["y", "x", "", "new", "é"]),
    )
)


@given(ROWS)
def test_what_goes_in_comes_out(rows: list[tuple[Any, ...]]) -> None:
    table = table_of(COLUMNS, rows)
    back = list(zip(*(table.values(place) for place in range(len(COLUMNS))), strict=True))
    assert back == rows
    assert [[type(value) for value in row] for row in back] == [[type(value) for value in row] for row in rows]
    assert table.columns[3].levels[:2] == ("x", "y")


@given(ROWS)
def test_distinct_rows(rows: list[tuple[Any, ...]]) -> None:
    table = table_of(COLUMNS, rows)
    once, places = table.distinct()
    assert len(once) == len(set(rows))
    np.testing.assert_array_equal(once.cells[places] + 0.0, table.cells + 0.0)
    assert [len(once)] == [1 + places.max()] if rows else len(once) == 0


@pytest.mark.parametrize("row", [("1", 0, True, "x"), (1.0, 0, True, 3)])
def test_a_value_of_another_kind_is_refused(row: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="column"):
        table_of(COLUMNS, [row])


class Summing:
    """A predictor that counts what it is asked."""

    columns, outputs, space, accepts_nulls, digest = COLUMNS[:2], ("sum",), "value", True, "sha256:0"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def predict(self, table: Table) -> np.ndarray[Any, Any]:
        self.asked.append(len(table))
        return np.asarray(table.cells.sum(axis=1, keepdims=True))


def test_each_different_row_is_predicted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("explainers.predictor.ROW_BYTES", 32)  # two rows of two cells
    rows = [(1.0, 1), (2.0, 2), (1.0, 1), (3.0, 3), (2.0, 2)]
    model: Any = Summing()
    assert predict_distinct(model, table_of(COLUMNS[:2], rows))[:, 0].tolist() == [2, 4, 2, 6, 4]
    assert model.asked == [2, 1]
    assert predict_distinct(model, table_of(COLUMNS[:2], [])).shape == (0, 1)
