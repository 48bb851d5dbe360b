"""Models made to do harm, as they come over HTTP: refused with a reason, nothing run, the server alive."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from app.models import inside
from app.uploads import parquet_rows
from explainers.errors import InvalidRequest
from explainers.predictors.formats import FORMATS
from explainers.predictors.parquet_file import MOST_ROWS
from tests.app.conftest import Running
from tests.app.predictors import definition
from tests.explainers.predictors.test_hostile_files import pickles
from tests.explainers.predictors.test_onnx_process import huge
from tests.explainers.test_hostile_folders import HARM

FOLDERS = (
    "a billion layers",
    "code of its own",
    "a vocabulary of all words",
    "a place outside",
    "weights above",
    "weights anywhere",
    "a pipe for weights",
    "a device for settings",
    "a choice repeated",
    "a word that grows",
    "deep settings of tokens",
    "a template in no text",
)


def refused(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["status"] == answer.status_code


async def alive(running: Running) -> None:
    assert (await running.client.get("/healthz")).status_code == 200
    assert (await running.explain()).status_code == 200


@pytest.fixture(scope="module")
def sound(tiny_lm: Path) -> Path:
    return tiny_lm


async def post(running: Running, path: str, kind: str = "causal-lm") -> httpx.Response:
    return await running.client.post("/models", json={"name": "evil", "kind": kind, "path": path})


async def test_folders(running: Running, sound: Path, models_dir: Path) -> None:
    for number, name in enumerate(FOLDERS):
        folder = Path(shutil.copytree(sound, models_dir / f"evil-{number}"))
        HARM[name](folder)
        answer = await post(running, folder.name)
        refused(answer)
        assert str(models_dir) not in answer.text, name
        shutil.rmtree(folder)
    await alive(running)


def linked(folder: Path, target: Path) -> None:
    """A folder of links to the files of another one."""
    folder.mkdir()
    for path in target.iterdir():
        (folder / path.name).symlink_to(path)


async def test_links_out_of_the_folder_of_models(
    running: Running, sound: Path, models_dir: Path, tmp_path: Path
) -> None:
    whole = Path(shutil.copytree(sound, tmp_path / "whole"))
    (models_dir / "linked").symlink_to(whole)
    linked(models_dir / "parts", whole)
    linked(models_dir / "within", sound)  # as the caches of hubs are
    os.mkfifo(models_dir / "pipe.onnx")
    for path, kind in (("linked", "causal-lm"), ("parts", "causal-lm"), ("pipe.onnx", "tabular")):
        refused(await post(running, path, kind))
    assert (await post(running, "within")).status_code == 201
    assert (await running.client.delete("/models/evil")).status_code == 204
    await alive(running)


def archive(**members: bytes) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as written:
        for name, data in members.items():
            written.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


async def upload(running: Running, content: bytes, ending: str, **fields: str) -> httpx.Response:
    return await running.client.post(
        "/models",
        data={"name": "evil", "kind": "tabular", **fields},
        files={"file": (f"../../m{ending}", content, "text/plain")},
    )


async def test_uploads(running: Running, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    found = pickles(canary, tmp_path)
    for ending, kind in zip(FORMATS, ("protocol 0", "protocol 5", "torch", "compressed joblib", "torch"), strict=True):
        refused(await upload(running, found[kind], ending))
    bomb = bytearray(archive(a=b"x", b=b"y"))
    for entry in (bomb.index(b"PK\1\2"), bomb.rindex(b"PK\1\2")):  # what the directory says of sizes
        bomb[entry + 24 : entry + 28] = (2**31 - 1).to_bytes(4, "little")
    inside_zip = archive(**{"inner__model.pkl": found["protocol 5"], "schema.json": b"{}"})
    schema = (
        b'{"__class__":"system","__module__":"os","__loader__":"FunctionNode","__id__":1,"protocol":2,"content":{}}'
    )
    for data in (bytes(bomb), inside_zip, archive(**{"..__..__x": b"x"}), archive(**{"schema.json": schema})):
        refused(await upload(running, data, ".skops"))
    refused(await upload(running, b'{"learner":' * 50_000, ".json"))
    assert not canary.exists()
    await alive(running)


async def test_a_graph_that_takes_everything(running: Running) -> None:
    """It loads; what it does to the row that is tried ends in its process."""
    whole = definition("evil")
    whole["attributes"] = [each for each in whole["attributes"] if each["name"] != "age"]
    answer = await upload(running, huge(2**31 - 1, 2**10), ".onnx", schema=json.dumps(whole))
    refused(answer)
    assert "ONNX Runtime fails on the rows" in answer.json()["detail"]
    await alive(running)


ROOTS = ("", "/", "..", "../", "./", "a/", "a/../", "~", "~root", "//", "\\", "C:", "%2e%2e/", "․․/", "．．/", "A")
TAILS = ("", "x", "secret", "link", "link/secret", "loop", "\0", "x" * 300, "x/" * 3000, "e\u0301", "é", "A/..", "*")


@pytest.fixture(scope="module")
def maze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models beside a secret, with links to it."""
    root = tmp_path_factory.mktemp("maze")
    (root / "outside").mkdir()
    (root / "outside" / "secret").write_text("s")
    folder = root / "models"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "x").write_text("model")
    (folder / "link").symlink_to(root / "outside")
    (folder / "a" / "link").symlink_to("../../outside/secret")
    (folder / "loop").symlink_to("loop")
    return folder


@settings(max_examples=80, deadline=None)
@given(parts=st.lists(st.one_of(st.sampled_from(ROOTS), st.sampled_from(TAILS), st.text(max_size=8)), max_size=6))
def test_no_path_leads_out(maze: Path, parts: list[str]) -> None:
    for path in ("".join(parts), "/".join(parts), str(maze.parent / "outside" / "secret")):
        try:
            found = inside(maze, path)
        except InvalidRequest as refusal:
            assert refusal.pointer == "/path"
        else:
            assert found.resolve() == found and maze.resolve() in found.parents


def test_a_parquet_file_of_more_rows_than_are_read() -> None:
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"x": pa.nulls(MOST_ROWS + 1, pa.int8())}), buffer)
    assert len(buffer.getvalue()) < 2**16
    with pytest.raises(InvalidRequest, match="rows"):
        next(parquet_rows(buffer))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 0.99])
def test_a_damaged_parquet_file(place: float) -> None:
    buffer = io.BytesIO()
    parquet.write_table(pa.table({"x": ["a", "b"] * 100, "y": [[1.0], []] * 100}), buffer, compression="zstd")
    data = bytearray(buffer.getvalue())
    at = int(len(data) * place)
    data[at : at + 8] = b"\xff" * 8
    try:
        rows = list(parquet_rows(io.BytesIO(data)))
    except InvalidRequest:
        return
    assert len(rows) <= 200
