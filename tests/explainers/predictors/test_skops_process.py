"""The process of a scikit-learn model: its limits, its end, and what it refuses to build."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC

from explainers.confined.child_process import Limits
from explainers.errors import MissingCapability, PredictorFailed, UnreadableModel
from explainers.predictors import skops_child, skops_model
from explainers.predictors.binding import TablePredictor
from explainers.predictors.contents import read
from explainers.predictors.formats import load_artifact
from tests.explainers.predictors.makers import Made, classes, numbers, saved

Make = Callable[[str], Made]
Bind = Callable[[str], TablePredictor]


def test_a_killed_process_is_an_error_and_the_next_call_works(made: Make, bound: Bind) -> None:
    predictor, file = bound("skops_forest"), made("skops_forest")
    artifact: Any = predictor.artifact
    pid = artifact.process.pid
    stop(pid)  # it cannot answer before it is killed
    with ThreadPoolExecutor(1) as pool:
        process = artifact.process._process
        asked = pool.submit(predictor.predict, file.table)
        while not (asked.done() or unread(process)):
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(PredictorFailed, match="ended \\(SIGKILL\\); the next call starts it again"):
            asked.result()
    np.testing.assert_allclose(predictor.predict(file.table), file.expected, atol=1e-9)
    assert artifact.process.pid != pid


def stop(pid: int) -> None:
    """Returns when each thread stands still: one that waits in a read would still take what comes before that."""
    os.kill(pid, signal.SIGSTOP)
    while any(state(task) not in "TZ" for task in Path(f"/proc/{pid}/task").iterdir()):
        time.sleep(0.01)


def state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def unread(process: subprocess.Popen[bytes]) -> int:
    """Bytes of a question that lie in its pipe."""
    assert process.stdin is not None
    return int.from_bytes(fcntl.ioctl(process.stdin.fileno(), termios.FIONREAD, b"\0" * 4), sys.byteorder)


def test_a_process_that_hangs_is_ended(made: Make) -> None:
    file = made("skops_values")
    artifact: Any = skops_model.load(read(file.path), Limits(call_seconds=0.5))
    pid = artifact.process.pid
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(PredictorFailed, match="did not answer in time"):
        artifact.predict(file.table)
    assert time.monotonic() - started < 30  # and not the minute that others have
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    artifact.process.close()


def test_too_little_memory_is_an_error(made: Make) -> None:
    with pytest.raises((UnreadableModel, MissingCapability)):
        skops_model.load(read(made("skops_values").path), Limits(memory_bytes=300 * 2**20))


def test_the_process_ends_with_its_parent(made: Make) -> None:
    script = (
        "import os, sys; from pathlib import Path\n"
        "from explainers.predictors.formats import load_artifact\n"
        "artifact = load_artifact(Path(sys.argv[1])); print(artifact.process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    root = str(Path(skops_child.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, str(made("skops_values").path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )
    status = Path(f"/proc/{int(done.stdout)}/status")
    for _ in range(600):
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    pytest.fail("the process outlives its parent")


def test_no_file_can_be_written_and_few_opened(bound: Bind) -> None:
    artifact: Any = bound("skops_forest").artifact
    artifact.process.start()
    limits = Path(f"/proc/{artifact.process.pid}/limits").read_text()
    found = {line[:25].strip(): line[25:].split()[0] for line in limits.splitlines()}
    assert found["Max file size"] == "0"
    assert found["Max open files"] == "64"
    assert found["Max core file size"] == "0"
    assert int(found["Max address space"]) == Limits().memory_bytes
    assert found["Max cpu time"] != "unlimited"


def forbidden(folder: Path) -> Path:
    import joblib

    model = FunctionTransformer(joblib.load)  # a function that unpickles
    return saved(model, folder)


def test_a_function_that_loads_pickles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableModel, match=r"not trusted: .*joblib"):
        load_artifact(forbidden(tmp_path))


def test_a_tree_that_points_outside_is_refused() -> None:
    forest = RandomForestClassifier(2, random_state=0).fit(numbers(), classes(numbers(), 2))
    tree = forest.estimators_[1].tree_
    state = tree.__getstate__()
    state["nodes"]["left_child"][0] = 10**6
    tree.__setstate__(state)
    with pytest.raises(skops_child.Refusal, match=r"tree 0|tree 1"):
        skops_child.check_trees(forest)


def test_a_boosted_tree_that_points_outside_is_refused(tmp_path: Path) -> None:
    model = HistGradientBoostingRegressor(max_iter=2).fit(numbers(), numbers()[:, 0])
    model._predictors[1][0].nodes["feature_idx"][0] = 2**31
    with pytest.raises(UnreadableModel, match="column that is not there"):
        load_artifact(saved(model, tmp_path))


@pytest.mark.filterwarnings("ignore")
def test_a_classifier_without_probabilities_is_refused() -> None:
    model = LinearSVC().fit(numbers(), classes(numbers(), 2))
    with pytest.raises(skops_child.Refusal, match="calibrate it"):
        skops_child.facts(model)
    assert skops_child.load(skops.io.dumps(model)).coef_.shape == (1, 3)


def test_an_error_of_the_model_leaves_the_process_alive(made: Make, bound: Bind) -> None:
    predictor, table = bound("skops_values"), made("skops_values").table
    artifact: Any = predictor.artifact
    pid = artifact.process.pid
    wrong = replace(table, columns=table.columns[:2], cells=table.cells[:, :2])
    with pytest.raises(Exception, match="features"):
        artifact.predict(wrong)
    assert artifact.process.pid == pid and len(predictor.predict(table)) == len(table)
