"""The shipped model of tables is what its card and its data say, as the server reads them."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest

from app.definitions import Definition
from app.ingest import read_inference
from app.model_body import ModelBody
from app.rows import Layout
from demo.patients import CLASSES, load, split
from demo.records import read_lines, schema_of
from demo.tabular_data import FOLDER, inferences, predictor, quality, reference, schema_body
from demo.train_tabular import train
from explainers.background import background_of
from explainers.methods import shapley
from explainers.predictors.binding import TablePredictor
from explainers.table import Table, table_of

INFERENCES: list[dict[str, Any]] = read_lines(FOLDER / "inferences.jsonl")
REFERENCE: list[dict[str, Any]] = read_lines(FOLDER / "reference.jsonl")
SCHEMA: dict[str, Any] = json.loads((FOLDER / "schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model() -> TablePredictor:
    return predictor()


@pytest.fixture(scope="module")
def definition() -> Definition:
    return ModelBody.model_validate(SCHEMA).to_domain()


def rows_of(model: TablePredictor, rows: list[dict[str, Any]]) -> Table:
    return table_of(model.columns, [[row[column.name] for column in model.columns] for row in rows])


def without_predictions(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in CLASSES}


def test_it_is_small() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(sizes) == {"README.md", "model.ubj", "schema.json", "reference.jsonl", "inferences.jsonl"}
    assert sizes["model.ubj"] <= 300_000 and sum(sizes.values()) <= 600_000


def test_the_schema_registers_a_classifier_of_ten_numbers(definition: Definition) -> None:
    inputs, outputs = definition.of_stage("PIPELINE_INPUT"), definition.of_stage("PREDICTED_VALUE")
    assert [attribute.name for attribute in inputs] == list(load().names)
    assert [(attribute.name, attribute.positive) for attribute in outputs] == [("malignant", True), ("benign", False)]
    assert {attribute.name for attribute in definition.attributes if attribute.implicit} == {
        "gt_malignant",
        "gt_benign",
    }
    assert schema_of(SCHEMA).classes == CLASSES


def test_every_record_is_one_that_the_server_takes(definition: Definition) -> None:
    layout = Layout(definition)
    for record in INFERENCES:
        arrival = read_inference(layout, record)
        right = layout.value(arrival.row, "gt_malignant")
        assert right == (record["ground_truth_data"]["diagnosis"] == "malignant")
    for row in REFERENCE:
        assert layout.value(layout.reference(row), "gt_benign") == (row["diagnosis"] == "benign")


def test_stored_predictions_are_those_of_the_model(model: TablePredictor) -> None:
    for rows in ([record["inference_data"] for record in INFERENCES], REFERENCE):
        stored = [[row[name] for name in CLASSES] for row in rows]
        np.testing.assert_allclose(model.predict(rows_of(model, rows)), stored, atol=1e-6, rtol=0)


def test_the_files_are_what_the_program_writes(model: TablePredictor) -> None:
    """But for predictions, which another processor may round otherwise."""
    assert schema_body(load()) == SCHEMA
    assert [without_predictions(row) for row in reference(model)] == [without_predictions(row) for row in REFERENCE]
    for made, stored in zip(inferences(model), INFERENCES, strict=True):
        rows = [without_predictions(record["inference_data"]) for record in (made, stored)]
        assert rows[0] == rows[1]
        assert made | {"inference_data": None} == stored | {"inference_data": None}


def test_training_again_gives_the_same_model(model: TablePredictor) -> None:
    trained, held_out = split(load())
    again = train(trained).inplace_predict(held_out.cells)
    np.testing.assert_allclose(again, model.predict(Table(model.columns, held_out.cells))[:, 0], atol=1e-3, rtol=0)


def test_held_out_patients_come_first_and_are_not_in_the_reference() -> None:
    told = [record["inference_data"]["held_out"] for record in INFERENCES]
    assert told == [True] * 370 + [False] * 130
    names = load().names
    known = {tuple(row[name] for name in names) for row in REFERENCE}
    seen = [tuple(record["inference_data"][name] for name in names) in known for record in INFERENCES]
    assert seen == [not held_out for held_out in told]
    assert [record["partner_inference_id"] for record in INFERENCES] == [f"patient-{n:04d}" for n in range(1, 501)]


def test_times_fill_a_month_and_truth_comes_later() -> None:
    made, known = (
        [datetime.fromisoformat(record[name]) for record in INFERENCES]
        for name in ("inference_timestamp", "ground_truth_timestamp")
    )
    assert len({moment.date() for moment in made}) == 30
    assert all(
        timedelta(days=1) <= later - moment <= timedelta(days=5) for moment, later in zip(made, known, strict=True)
    )


def test_the_card_tells_how_good_it_is(model: TablePredictor) -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) (?:trained on|held out) \| ([\d.]+) \| ([\d.]+) \|$", card, re.MULTILINE)
    assert len(rows) == 2
    for told, patients in zip(rows, split(load()), strict=True):
        share, area = quality(model, patients)
        assert int(told[0]) == len(patients)
        assert float(told[1]) == pytest.approx(100 * share, abs=0.06)
        assert float(told[2]) == pytest.approx(area, abs=6e-4)


def test_shapley_values_are_exact(model: TablePredictor) -> None:
    background = background_of(rows_of(model, REFERENCE[:20]))
    row = rows_of(model, [INFERENCES[2]["inference_data"]])
    (found,) = shapley.attribute(model, row, ["patient-0003"], background)
    assert found.facts["exact"] is True and found.base_values is not None
    np.testing.assert_allclose(found.values.sum(axis=1) + found.base_values, model.predict(row)[0], atol=1e-6)
