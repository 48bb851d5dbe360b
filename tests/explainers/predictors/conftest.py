from __future__ import annotations

from collections.abc import Callable

import pytest

from explainers.predictors.binding import TablePredictor, bind
from explainers.predictors.formats import load_artifact
from tests.explainers.predictors.makers import Made, make


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """A file of one of the makers, trained once."""
    known: dict[str, Made] = {}

    def get(name: str) -> Made:
        if name not in known:
            known[name] = make(name, tmp_path_factory.mktemp(name))
        return known[name]

    return get


@pytest.fixture(scope="session")
def bound(made: Callable[[str], Made]) -> Callable[[str], TablePredictor]:
    """The predictor of such a file, loaded once."""
    known: dict[str, TablePredictor] = {}

    def get(name: str) -> TablePredictor:
        if name not in known:
            file = made(name)
            known[name] = bind(load_artifact(file.path), file.schema)
        return known[name]

    return get
