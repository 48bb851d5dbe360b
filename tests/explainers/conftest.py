from __future__ import annotations

from pathlib import Path

import pytest

from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm
from tests import tiny_models


@pytest.fixture(scope="session", params=list(tiny_models.FAMILIES))
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """One tiny random model after the other, of every family."""
    return load_causal_lm(tiny_models.save(tmp_path_factory.mktemp("models") / request.param, request.param))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> LanguageModel:
    return load_causal_lm(llama_folder)
