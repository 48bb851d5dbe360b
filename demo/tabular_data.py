"""Writes what goes with ``demo-tabular``: ``python -m demo.tabular_data``, and prints how good the model is.

`reference.jsonl`: the patients it was trained on, flat rows. `inferences.jsonl`: 500 patients, first all that were held
out, then some that were not (`held_out` tells them apart), at times of one month. Predictions are the model's own, as
the server computes them.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from demo.patients import CLASSES, Patients, load, split
from demo.records import MODELS, Record, class_attributes, moments, record, schema_of, write_json, write_lines
from explainers.predictors.artifact import library
from explainers.predictors.binding import TablePredictor, bind
from explainers.predictors.formats import load_artifact
from explainers.table import Table

FOLDER: Final = MODELS / "demo-tabular"
INFERENCES: Final = 500
NAME: Final = "demo-tabular"


def schema_body(patients: Patients) -> Record:
    """What registers the model; ranges are those of all patients."""
    held_out: Record = {"name": "held_out", "label": "Not trained on", "value_type": "BOOLEAN"}
    return {
        "partner_model_id": NAME,
        "display_name": "Breast masses",
        "description": "Whether a breast mass is malignant, from ten means of a digitised image of its cell nuclei.",
        "input_type": "TABULAR",
        "output_type": "MULTICLASS",
        "is_batch": False,
        "tags": ["demo"],
        "classifier_threshold": 0.5,
        "attributes": [
            *_inputs(patients),
            *class_attributes({"name": "diagnosis", "label": "Diagnosis"}, CLASSES, ("Malignant", "Benign")),
            held_out | {"stage": "NON_INPUT_DATA", "position": 0, "categorical": True},
        ],
    }


def _inputs(patients: Patients) -> list[Record]:
    lowest, highest = patients.cells.min(axis=0).tolist(), patients.cells.max(axis=0).tolist()
    return [
        {"name": name, "label": name.replace("_", " ").capitalize(), "value_type": "FLOAT", "stage": "PIPELINE_INPUT"}
        | {"position": place, "categorical": False, "min_range": lowest[place], "max_range": highest[place]}
        for place, name in enumerate(patients.names)
    ]


def predictor(folder: Path = FOLDER) -> TablePredictor:
    """The model as the server loads it."""
    return bind(load_artifact(folder / "model.ubj"), schema_of(schema_body(load())))


def predictions(model: TablePredictor, patients: Patients) -> NDArray[np.float64]:  # (n, 2), malignant first
    return model.predict(Table(model.columns, patients.cells))


def flat_rows(model: TablePredictor, patients: Patients, held_out: bool) -> list[Record]:
    """Inputs and predictions of each patient."""
    found = predictions(model, patients).tolist()
    return [
        dict(zip(patients.names, cells, strict=True)) | dict(zip(CLASSES, shares, strict=True)) | {"held_out": held_out}
        for cells, shares in zip(patients.cells.tolist(), found, strict=True)
    ]


def reference(model: TablePredictor) -> list[Record]:
    trained, _ = split(load())
    rows = flat_rows(model, trained, held_out=False)
    return [row | {"diagnosis": diagnosis} for row, diagnosis in zip(rows, trained.diagnoses, strict=True)]


def inferences(model: TablePredictor) -> list[Record]:
    trained, held_out = split(load())
    some = trained.take(list(range(INFERENCES - len(held_out))))
    rows = [*flat_rows(model, held_out, held_out=True), *flat_rows(model, some, held_out=False)]
    times = moments(random.Random("visits"), INFERENCES)  # noqa: S311
    diagnoses = (*held_out.diagnoses, *some.diagnoses)
    return [
        record(f"patient-{number:04d}", time, row, {"diagnosis": diagnosis})
        for number, (time, row, diagnosis) in enumerate(zip(times, rows, diagnoses, strict=True), 1)
    ]


def quality(model: TablePredictor, patients: Patients) -> tuple[float, float]:
    """Share of right answers, and area under the curve."""
    malignant = predictions(model, patients)[:, 0]
    right = (malignant >= 0.5) == (patients.malignant == 1)
    return float(right.mean()), float(library("sklearn.metrics").roc_auc_score(patients.malignant, malignant))


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=FOLDER)
    folder = parser.parse_args().model
    model = predictor(folder)
    write_json(folder / "schema.json", schema_body(load()))
    write_lines(folder / "reference.jsonl", reference(model))
    write_lines(folder / "inferences.jsonl", inferences(model))
    for name, patients in zip(("trained on", "held out"), split(load()), strict=True):
        share, area = quality(model, patients)
        print(f"{len(patients)} patients {name}: {100 * share:.1f} % right, area under the curve {area:.4f}")


if __name__ == "__main__":
    main()
