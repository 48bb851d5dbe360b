"""Without the optional libraries an error says what to install."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from explainers.errors import MissingCapability
from explainers.predictors.formats import load_artifact
from tests.explainers.predictors.makers import Made


@pytest.mark.parametrize(
    ("name", "library"),
    [
        ("xgboost_binary", "xgboost"),
        ("lightgbm_binary", "lightgbm"),
        ("onnx_matrix", "onnxruntime"),
        ("skops_values", "skops"),
    ],
)
def test_a_missing_library_is_named(
    name: str, library: str, made: Callable[[str], Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(name).path
    monkeypatch.setitem(sys.modules, library, None)  # type: ignore[arg-type]
    with pytest.raises(MissingCapability, match=rf"{library} is not installed: pip install "):
        load_artifact(path)


def test_nothing_is_imported_before_it_is_needed() -> None:
    import subprocess

    code = (
        "import sys, explainers.predictors.formats, explainers.methods.tree_shap, explainers.predictors.binding\n"
        "print([name for name in ('xgboost','lightgbm','onnxruntime','skops','sklearn','shap','pandas') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
