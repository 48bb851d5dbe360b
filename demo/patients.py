"""Real measurements of breast masses, shipped with scikit-learn: ten means per patient, and what the mass was.

Wolberg, Mangasarian, Street and Street 1993, *Breast Cancer Wisconsin (Diagnostic)*, UCI Machine Learning Repository,
https://doi.org/10.24432/C5DW2B, CC BY 4.0.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from explainers.predictors.artifact import library

CLASSES: Final = ("malignant", "benign")
TRAINED: Final = 0.35
"""Share of the patients of each class that the model is trained on."""

MEANS: Final = 10
"""The first columns of the data set; the others are errors and extremes of the same measurements."""


@dataclass(frozen=True, slots=True)
class Patients:
    names: tuple[str, ...]  # M = 10
    cells: NDArray[np.float64]  # (n, M)
    diagnoses: tuple[str, ...]  # n, each of CLASSES

    def __len__(self) -> int:
        return len(self.diagnoses)

    def take(self, rows: list[int]) -> Patients:
        return Patients(self.names, self.cells[rows], tuple(self.diagnoses[row] for row in rows))

    @property
    def malignant(self) -> NDArray[np.float64]:  # (n,), 0 or 1
        return np.array([diagnosis == CLASSES[0] for diagnosis in self.diagnoses], dtype=np.float64)


def load() -> Patients:
    """All 569, in the data set's order."""
    found = library("sklearn.datasets").load_breast_cancer()
    names = tuple(str(name).replace(" ", "_") for name in found.feature_names[:MEANS])
    cells = np.asarray(found.data, dtype=np.float64)[:, :MEANS]
    return Patients(names, cells, tuple(str(found.target_names[label]) for label in found.target))


def split(patients: Patients, seed: int = 0) -> tuple[Patients, Patients]:
    """Those to train on and those held out, with the same share of either class; each part in an order of its own."""
    rng = random.Random(f"patients {seed}")  # noqa: S311
    trained: list[int] = []
    for name in CLASSES:
        rows = [row for row, diagnosis in enumerate(patients.diagnoses) if diagnosis == name]
        trained += rng.sample(rows, round(TRAINED * len(rows)))
    held_out = sorted(set(range(len(patients))) - set(trained))
    rng.shuffle(trained)
    rng.shuffle(held_out)
    return patients.take(trained), patients.take(held_out)
