"""`shap.TreeExplainer` for a booster: built at the first question, then kept.

Lundberg et al., *From local explanations to global understanding with explainable AI for trees*, 2020. Without a
background it hands the work to the booster's own code.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from explainers.predictors.artifact import library


class TreeExplainer:
    """Path-dependent attributions of one booster. Not safe to use from two threads: shap keeps the last base values."""

    def __init__(self, booster: Any) -> None:
        self._booster = booster
        self._explainer: Any = None

    def values(self, rows: Any, count: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(n, G, M) contributions to the margins of n rows, and their (G,) base values."""
        if self._explainer is None:
            self._explainer = self._built()
        found = self._explainer.shap_values(rows, check_additivity=False)  # the caller checks, more strictly
        values = np.asarray(found, dtype=np.float64).reshape(count, width, -1).transpose(0, 2, 1)
        return values, np.atleast_1d(np.asarray(self._explainer.expected_value, dtype=np.float64))

    def _built(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the plotting library that comes with it
            shap = library("shap")
        return shap.TreeExplainer(self._booster, feature_perturbation="tree_path_dependent")
