"""What TreeSHAP costs beside the booster's own contributions and beside a new explainer for each row.

    python -m benchmarks.tree_shap [--rounds 200]

XGBoost, 200 trees of depth 6 over 20 columns, one row and 500: the booster's `predict(pred_contribs=True)` on a matrix
made for the call, `shap.TreeExplainer` built for the call, and `tree_shap.attribute` with the explainer that the loaded
model keeps, its check of additivity included. Turns are taken in one process; medians of milliseconds, and the median
of the paired ratios. Writes benchmarks/results/tree_shap.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import shap
import xgboost

from explainers.methods import tree_shap
from explainers.predictors.binding import Schema, bind
from explainers.predictors.formats import load_artifact
from explainers.table import Column, Table

RESULT = Path(__file__).parent / "results" / "tree_shap.json"
COLUMNS, TREES, DEPTH = 20, 200, 6


def model(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    cells = generator.normal(size=(4000, COLUMNS))
    labels = cells[:, 0] + cells[:, 1] * cells[:, 2] + generator.normal(size=4000) > 0
    trained = xgboost.XGBClassifier(n_estimators=TREES, max_depth=DEPTH, n_jobs=1).fit(cells, labels)
    trained.save_model(path := folder / "model.json")
    return path


def milliseconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1000


def measure(path: Path, rows: int, rounds: int) -> dict[str, float]:
    schema = Schema(tuple(Column(f"c{i}") for i in range(COLUMNS)), ("no", "yes"), "classification", positive=1)
    predictor, booster = bind(load_artifact(path), schema), xgboost.Booster(model_file=path)
    cells = np.random.default_rng(1).normal(size=(rows, COLUMNS))
    table = Table(schema.columns, cells)
    works: dict[str, Callable[[], Any]] = {
        "native": lambda: booster.predict(xgboost.DMatrix(cells), pred_contribs=True),
        "whence": lambda: tree_shap.attribute(predictor, table),
        "new explainer": lambda: shap.TreeExplainer(booster).shap_values(cells),
    }
    spent: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 3):
        for name, work in works.items():
            if name == "new explainer" and turn > 12:
                continue
            took = milliseconds(work)
            if turn >= 3:
                spent[name].append(took)
    ratios = [ours / native for ours, native in zip(spent["whence"], spent["native"], strict=True)]
    ours = np.stack([found.values[1] for found in tree_shap.attribute(predictor, table)])
    gap = np.abs(ours - shap.TreeExplainer(booster).shap_values(cells)).max()
    medians = {f"{name}, ms": round(statistics.median(times), 3) for name, times in spent.items()}
    return medians | {"whence over native": round(statistics.median(ratios), 3), "largest gap to shap": float(gap)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Hold TreeSHAP against the booster's own contributions.")
    parser.add_argument("--rounds", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = model(Path(folder))
        found = {"one row": measure(path, 1, arguments.rounds), "500 rows": measure(path, 500, arguments.rounds // 10)}
    versions = {name: importlib.metadata.version(name) for name in ("shap", "xgboost-cpu", "numpy")}
    result = {"machine": {"cores": os.cpu_count()}, "versions": versions, "trees": TREES, "columns": COLUMNS} | found
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
