"""Trains ``demo-tabular``: ``python -m demo.train_tabular --out demo/models/demo-tabular``; takes a second.

Depth, rate and number of trees are the best of eight settings in five-fold cross-validation (log loss) on the patients
to train on; the patients held out had no part in it. ``python -m demo.tabular_data`` then writes what goes with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import xgboost

from demo.patients import Patients, load, split

TREES: Final = 200
SETTINGS: Final[dict[str, Any]] = {
    "objective": "binary:logistic",
    "max_depth": 2,
    "eta": 0.05,
    "subsample": 0.8,
    "colsample_bytree": 0.8,
    "min_child_weight": 2,
    "nthread": 1,
}


def train(patients: Patients, seed: int = 0) -> xgboost.Booster:
    """Trees for the log-odds of malignant."""
    rows = xgboost.DMatrix(patients.cells, patients.malignant, feature_names=list(patients.names))
    return xgboost.train({**SETTINGS, "seed": seed}, rows, TREES)


def main() -> None:
    """Train on the patients that are not held out, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train(split(load())[0], arguments.seed).save_model(arguments.out / "model.ubj")


if __name__ == "__main__":
    main()
