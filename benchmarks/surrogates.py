"""LIME and SHAP of table rows and texts against the packages lime, shap and captum, taking turns.

    python -m benchmarks.surrogates [--rounds 5]

Twenty inputs, a forest and a cheap logistic model. LIME at equal samples, continuous columns and all features, and the
package's default beside it; draws and their outputs are shared by rows, and kept from call to call if the caller wants
it (both are timed). SHAP at equal coalitions over the same twenty background rows, regularisation off; the
error of both is the largest one of any score against the exact values (all 2^20 coalitions of the logistic model, by
its formula; the package's exact interventional TreeSHAP for the forest). Text LIME through a random two-layer encoder:
what share of the time is the model's. CPU seconds of this process on one thread; ratios are medians of rounds in which
both stand beside each other. Needs the extras of development. Writes results/surrogates.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import shap
import torch
from captum.attr import KernelShap
from lime.lime_tabular import LimeTabularExplainer
from lime.lime_text import LimeTextExplainer
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression

from explainers.background import Background, background_of
from explainers.methods import lime, shapley, text_lime
from explainers.methods.lime import Draws, LimeConfig
from explainers.methods.shapley import ShapleyConfig
from explainers.methods.text_lime import TextLimeConfig
from explainers.predictor import Space
from explainers.table import Column, Table

RESULT = Path(__file__).parent / "results" / "surrogates.json"
INPUTS, SAMPLES, COALITIONS, BACKGROUND, SHAP_ROWS = 20, 1000, 512, 20, 8
WORDS, TEXT_SAMPLES, BATCH = 60, 500, 64
Ways = Mapping[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time LIME and SHAP against their packages.")
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    packages = ("numpy", "scikit-learn", "lime", "shap", "captum", "torch")
    result: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "rounds": rounds,
    }
    models = [trained("logistic"), trained("forest of 50")]
    result["lime, ms per row"] = {
        f"{model.name}, {rows} rows": lime_times(model, rows, rounds) for model in models for rows in (1, 16, 64)
    }
    result["shap"] = {model.name: shap_times(model, rounds) for model in (models[0], trained("regression forest"))}
    result["shap"]["logistic, one baseline"] = captum_times(models[0], rounds)
    result["text lime"] = text_times(rounds)
    show(result)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


@dataclass
class RowModel:
    """A scikit-learn model as the explainers see it, and as the packages do."""

    name: str
    fitted: Any
    outputs: tuple[str, ...]
    space: Space
    columns: tuple[Column, ...] = tuple(Column(f"x{place}") for place in range(INPUTS))
    accepts_nulls: bool = False
    digest: str = "sha256:benchmark"

    def __call__(self, cells: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.space == "value":
            return np.asarray(self.fitted.predict(cells))[:, None]
        return np.asarray(self.fitted.predict_proba(cells))

    def predict(self, table: Table) -> NDArray[np.float64]:
        return self(table.cells)

    def table(self, rows: int, seed: int) -> Table:
        return Table(self.columns, cells(rows, seed))


def cells(rows: int, seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(rows, INPUTS))


def truth(known: NDArray[np.float64]) -> NDArray[np.float64]:
    """What the models are trained on: curved, with interactions."""
    return np.asarray(known[:, :6] @ [1, -1, 0.7, 0.5, -0.5, 0.3] + known[:, 6] * known[:, 7] + np.sin(3 * known[:, 8]))


def trained(name: str) -> RowModel:
    known = cells(2000, 0)
    goal = truth(known)
    if name == "regression forest":
        forest = RandomForestRegressor(100, min_samples_leaf=5, random_state=0).fit(known, goal)
        return RowModel(name, forest, ("value",), "value")
    kind = LogisticRegression() if name == "logistic" else RandomForestClassifier(50, random_state=0)
    return RowModel(name, kind.fit(known, goal > 0), ("no", "yes"), "probability")


def timed(ways: Ways, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way, one after the other in every round; a first round warms up."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if turn:
                spent[name].append(time.process_time() - started)
    return spent


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    return round(statistics.median(their / our for their, our in zip(theirs, ours, strict=True)), 2)


def milliseconds(spent: Sequence[float], rows: int = 1) -> float:
    return round(1000 * statistics.median(spent) / rows, 3)


def lime_times(model: RowModel, count: int, rounds: int) -> dict[str, float]:
    reference, rows = cells(1000, 1), model.table(count, 2)
    background = background_of(Table(model.columns, reference))
    ids, config = [f"row {place}" for place in range(count)], LimeConfig(SAMPLES)
    kept: dict[int, Draws] = {}

    def package(**options: Any) -> list[Any]:
        explainer = LimeTabularExplainer(reference, random_state=0, **options)
        ask = {"labels": (1,), "num_features": INPUTS, "num_samples": SAMPLES}
        return [explainer.explain_instance(row, model, **ask) for row in rows.cells]

    plain = {"discretize_continuous": False, "feature_selection": "none"}
    ways: Ways = {
        "ours": lambda: lime.attribute(model, rows, ids, background, config),
        "ours, draws kept": lambda: lime.attribute(model, rows, ids, background, config, kept=kept),
        "package": lambda: package(**plain),
        "package, its defaults": package,
    }
    spent = timed(ways, rounds)
    ours = [found.values[1] for found in lime.attribute(model, rows, ids, background, config)]
    theirs = [[dict(told.local_exp[1])[place] for place in range(INPUTS)] for told in package(**plain)]
    return {name: milliseconds(each, count) for name, each in spent.items()} | {
        "times faster": ratio(spent["package"], spent["ours"]),
        "times faster, draws kept": ratio(spent["package"], spent["ours, draws kept"]),
        "times faster than its defaults": ratio(spent["package, its defaults"], spent["ours"]),
        "correlation": round(float(np.corrcoef(np.ravel(ours), np.ravel(theirs))[0, 1]), 4),
    }


def shap_times(model: RowModel, rounds: int) -> dict[str, float]:
    reference, rows = model.table(BACKGROUND, 3), model.table(SHAP_ROWS, 4)
    background, ids = background_of(reference), [f"row {place}" for place in range(SHAP_ROWS)]
    config = ShapleyConfig(samples=COALITIONS)
    kernel = shap.KernelExplainer(lambda known: model(known)[:, -1], reference.cells)
    ways: Ways = {
        "ours": lambda: shapley.attribute(model, rows, ids, background, config),
        "ours, one row": lambda: shapley.attribute(model, rows.take(slice(0, 1)), ids[:1], background, config),
        "package": lambda: kernel.shap_values(rows.cells, nsamples=COALITIONS, l1_reg=0, silent=True),
        "model alone": lambda: model(np.tile(reference.cells, (COALITIONS * SHAP_ROWS, 1))),
    }
    spent = timed(ways, rounds)
    exact = exact_scores(model, rows.cells, background)
    np.random.seed(0)
    theirs = kernel.shap_values(rows.cells, nsamples=COALITIONS, l1_reg=0, silent=True)
    ours = np.array([found.values[-1] for found in shapley.attribute(model, rows, ids, background, config)])
    return {f"{name}, ms": milliseconds(each) for name, each in spent.items()} | {
        "times faster": ratio(spent["package"], spent["ours"]),
        "largest error, ours": round(float(np.abs(ours - exact).max()), 6),
        "largest error, package": round(float(np.abs(theirs - exact).max()), 6),
        "root mean square error, ours": round(float(np.sqrt(((ours - exact) ** 2).mean())), 6),
        "root mean square error, package": round(float(np.sqrt(((theirs - exact) ** 2).mean())), 6),
        "correlation, ours": round(float(np.corrcoef(ours.ravel(), exact.ravel())[0, 1]), 6),
    }


def captum_times(model: RowModel, rounds: int) -> dict[str, float]:
    """Against one row instead of a background, which is the game of captum, in batches of as many rows as ours."""
    reference, rows = model.table(1, 3), model.table(SHAP_ROWS, 4)
    background, ids = background_of(reference), [f"row {place}" for place in range(SHAP_ROWS)]
    config = ShapleyConfig(samples=COALITIONS)
    inputs, baseline = torch.tensor(rows.cells), torch.tensor(reference.cells)

    def forward(batch: torch.Tensor) -> torch.Tensor:
        return torch.tensor(model(batch.numpy())[:, -1])

    kernel = KernelShap(forward)

    def theirs() -> NDArray[np.float64]:
        found = [
            kernel.attribute(row[None], baselines=baseline, n_samples=COALITIONS, perturbations_per_eval=COALITIONS)
            for row in inputs
        ]
        return np.asarray(torch.cat(found))

    def ours() -> NDArray[np.float64]:
        return np.array([found.values[-1] for found in shapley.attribute(model, rows, ids, background, config)])

    spent = timed({"ours": ours, "captum": theirs}, rounds)
    torch.manual_seed(0)
    exact = exact_scores(model, rows.cells, background)
    return {f"{name}, ms": milliseconds(each) for name, each in spent.items()} | {
        "times faster": ratio(spent["captum"], spent["ours"]),
        "largest error, ours": round(float(np.abs(ours() - exact).max()), 6),
        "largest error, captum": round(float(np.abs(theirs() - exact).max()), 6),
    }


def exact_scores(model: RowModel, rows: NDArray[np.float64], background: Background) -> NDArray[np.float64]:  # (R, M)
    if model.space == "value":
        explainer = shap.TreeExplainer(model.fitted, background.table.cells, feature_perturbation="interventional")
        return np.asarray(explainer.shap_values(rows, check_additivity=False))
    return np.array([logistic_scores(model.fitted, row, background.table.cells) for row in rows])


def logistic_scores(fitted: Any, row: NDArray[np.float64], known: NDArray[np.float64]) -> NDArray[np.float64]:  # (M,)
    """Exact, from all 2^M coalitions: the margin of each is a sum."""
    weights, values = fitted.coef_[0], 0.0
    for other in known:
        margins = np.array([other @ weights + fitted.intercept_[0]])
        for step in weights * (row - other):
            margins = np.concatenate([margins, margins + step])
        values = values + 1 / (1 + np.exp(-margins)) / len(known)  # (2^M,), bit j = input j present
    shares = np.array([1 / (INPUTS * comb(INPUTS - 1, size)) for size in range(INPUTS)])
    scores = []
    for player in range(INPUTS):
        halves = np.asarray(values).reshape(-1, 2, 2**player)
        scores.append(float(((halves[:, 1] - halves[:, 0]).ravel() * shares[others()]).sum()))
    return np.array(scores)


@cache
def others() -> NDArray[np.int_]:
    """How many of the other inputs are present, over all coalitions of them."""
    sizes = np.zeros(1, dtype=int)
    for _ in range(INPUTS - 1):
        sizes = np.concatenate([sizes, sizes + 1])
    return sizes


@dataclass
class Encoder:
    """A random classifier of texts, in batches of texts of like length."""

    outputs: tuple[str, ...] = ("no", "yes")
    space: Space = "probability"
    digest: str = "sha256:benchmark"
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.words, self.head = torch.nn.Embedding(1000, 128), torch.nn.Linear(128, 2)
        self.layers = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()

    def predict(self, texts: Sequence[str]) -> NDArray[np.float64]:
        started = time.process_time()
        blocks = [self._batch(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        self.seconds.append(time.process_time() - started)
        return np.concatenate(blocks)

    @torch.inference_mode()
    def _batch(self, texts: Sequence[str]) -> NDArray[np.float64]:
        ids = [[1, *(2 + sum(map(ord, word)) % 998 for word in text.split())] for text in texts]
        longest = max(map(len, ids))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        found = self.layers(self.words(padded), src_key_padding_mask=padded == 0)[:, 0]
        return np.asarray(self.head(found).softmax(-1).double())


def text_times(rounds: int) -> dict[str, float]:
    text = " ".join(f"word{place}" for place in range(WORDS))
    model, config = Encoder(), TextLimeConfig(TEXT_SAMPLES)
    explainer = LimeTextExplainer(feature_selection="none", random_state=0)
    ask = {"labels": (1,), "num_features": WORDS, "num_samples": TEXT_SAMPLES}
    ours = timed({"ours": lambda: text_lime.attribute(model, [text], ["a"], config)}, rounds)["ours"]
    inside = model.seconds[1:]
    theirs = timed({"package": lambda: explainer.explain_instance(text, model.predict, **ask)}, rounds)["package"]
    paired = timed(
        {
            "ours": lambda: text_lime.attribute(model, [text], ["a"], config),
            "package": lambda: explainer.explain_instance(text, model.predict, **ask),
        },
        rounds,
    )
    return {
        "ours, ms": milliseconds(ours),
        "package, ms": milliseconds(theirs),
        "times faster": ratio(paired["package"], paired["ours"]),
        "share of the model in ours": ratio(inside, ours),
    }


def show(result: Mapping[str, Any]) -> None:
    for name in ("lime, ms per row", "shap"):
        print(f"\n{name}")
        for case, found in result[name].items():
            print(f"  {case:28}" + "  ".join(f"{key} {value:g}" for key, value in found.items()))
    print("\ntext lime\n  " + "  ".join(f"{key} {value:g}" for key, value in result["text lime"].items()))


if __name__ == "__main__":
    main()
