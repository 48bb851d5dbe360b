"""A store shared by machines with data directories of their own: what is put there, fetched, checked and swept."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.influence_indexes import sweep
from app.refusals import Refusal, StoreAway
from app.settings import Settings
from app.shelf import MANIFEST, Shelf
from app.store import MARK, Damaged, Store, open_store
from explainers.errors import UnreadableModel
from storage.ids import time_ordered

OLD = UUID(int=(int(time.time() - 7200) * 1000 << 80) | 7 << 76 | 2 << 62)
ELSEWHERE = os.environ.get("TEST_STORE_URL", "").split()
"""More stores to test, such as s3://bucket."""


@pytest.fixture(params=["file", "memory", *ELSEWHERE])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    places = {"file": f"file://{tmp_path}", "memory": "memory://"}
    store = open_store(f"{places.get(request.param, request.param)}/{uuid4()}")
    store.claim("1/whence")
    return store


@pytest.fixture
def shelf(store: Store, tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "data", store)


def made(path: Path, content: bytes) -> tuple[Path, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def test_a_file_comes_back_or_is_told_to_be_damaged(store: Store, tmp_path: Path) -> None:
    path, digest = made(tmp_path / "a", bytes(range(256)) * 4096)
    store.put(path, "files/default/a")
    store.put(path, "files/default/a")  # by another worker
    assert store.sizes("files/default") == {"a": 2**20} and store.sizes("parts") == store.sizes("nothing") == {}
    store.fetch("files/default/a", fetched := tmp_path / "new" / "b", digest)
    assert fetched.read_bytes() == path.read_bytes() and fetched.stat().st_mode & 0o777 == 0o600
    store.write("files/default/a", bytes(2**20))
    with pytest.raises(Damaged):
        store.fetch("files/default/a", tmp_path / "new" / "c", digest)
    store.remove("files/default/a")
    store.remove("files/default/a")
    with pytest.raises(FileNotFoundError):
        store.fetch("files/default/a", tmp_path / "new" / "c", digest)
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["b"]
    for name in ("../a", "files/../../a", "/a", "files//a", "a/.b", ""):
        with pytest.raises(ValueError, match="no name"):
            store.read(name)


def test_a_store_belongs_to_one_database(store: Store, tmp_path: Path) -> None:
    store.claim("1/whence")
    store.look()
    assert set(store.sizes("parts")) == set()
    with pytest.raises(Refusal, match=r"another database.*remove whence-store\.json"):
        store.claim("2/whence")
    store.remove(MARK)
    for missed in (store.look, lambda: store.fetch("files/default/a", tmp_path / "a", "")):
        with pytest.raises(StoreAway, match="mark"):
            missed()


def test_what_cannot_be_a_store_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(Refusal, match=r"s3:// needs the Python package s3fs, which is not installed: pip install"):
        open_store("s3://bucket/prefix")
    with pytest.raises(Refusal, match="no storage can be opened as nowhere://"):
        open_store("nowhere://bucket")
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match="cannot be written, read and cleared"):
        open_store(f"file://{tmp_path}/file/store").claim("1/whence")


@pytest.mark.parametrize(
    "url",
    ["bucket/prefix", "s3://", "file://relative", "simplecache::s3://b", "s3://id:secret@b/p", "gs://b/p?token=x"],
)
def test_settings_take_a_plain_url_and_repeat_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"must|three slashes") as refused:
        Settings(store_url=url)
    assert "secret" not in str(refused.value) and "token" not in str(refused.value)
    for good in (
        "s3://bucket/prefix",
        "file:///folder",
        "memory://x",
        "abfs://box@account.dfs.core.windows.net/whence",
    ):
        assert "bucket" not in repr(Settings(store_url=good))


async def test_an_uploaded_model_of_another_machine_is_fetched(shelf: Shelf, tmp_path: Path) -> None:
    content = b'{"learner": {}}'
    name = f"{hashlib.sha256(content).hexdigest()}.json"
    there = Shelf(tmp_path / "there", shelf.store)
    registered, _ = made(there.folder / "models" / name, content)
    await there.put_models()
    assert await shelf.model_path(str(registered)) == str(registered)
    registered.unlink()
    for path in (str(tmp_path / name), str(tmp_path / "models" / "folder")):
        assert await shelf.model_path(path) == path
        assert await Shelf(shelf.folder).model_path(path) == path
    mine = shelf.folder / "models" / name
    assert await shelf.model_path(str(registered)) == str(mine) and mine.read_bytes() == content
    await shelf.put(made(tmp_path / "other", b"{}")[0], f"models/{name}")
    mine.unlink()
    with pytest.raises(UnreadableModel, match="send it again"):
        await shelf.model_path(str(registered))


async def test_a_folder_is_there_once_its_manifest_is(shelf: Shelf, tmp_path: Path, monkeypatch: Any) -> None:
    here, name, there = tmp_path / "made", "indexes/default/one", shelf.folder / "indexes/default/one"
    made(here / "index.json", b"{}")
    made(here / "generic" / "texts.json", b"[]")
    made(here / ".index.json.1", b"half")
    assert shelf.store is not None
    write = shelf.store.write
    with monkeypatch.context() as killed:
        killed.setattr(shelf.store, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await shelf.put_folder(here, name, "sha256:1")
    with pytest.raises(FileNotFoundError):
        await shelf.bring_folder(name, there)
    await shelf.put_folder(here, name, "sha256:1")
    with pytest.raises(Damaged):
        await shelf.bring_folder(name, there, "sha256:2")
    await asyncio.gather(*(shelf.bring_folder(name, there, "sha256:1") for _ in range(3)))
    assert {str(path.relative_to(there)) for path in there.rglob("*.json")} == {"index.json", "generic/texts.json"}
    assert [each.name for each in there.parent.iterdir()] == ["one"]
    manifest = await shelf._run(shelf.store.read, f"{name}/{MANIFEST}")
    for bad in (b"", b"[]", manifest[:-9], manifest.replace(b"index.json", b"../../x"), b'{"digest": ""}'):
        write(f"{name}/{MANIFEST}", bad)
        with pytest.raises(Damaged):
            await shelf.bring_folder(name, shelf.folder / "other")
    (digest,) = [each for each, size in shelf.store.sizes(name).items() if len(each) == 64 and size == 2][:1]
    write(f"{name}/{MANIFEST}", manifest)
    write(f"{name}/{digest}", b"??")
    with pytest.raises(Damaged):
        await shelf.bring_folder(name, shelf.folder / "other")
    assert not (shelf.folder / "other").exists()


async def test_what_no_row_knows_is_swept_once_it_is_old(shelf: Shelf, tmp_path: Path) -> None:
    path, _ = made(tmp_path / "a", b"a")
    known, young = time_ordered(), time_ordered()
    for id in (OLD, known, young):
        await shelf.put(path, f"files/default/{id}")
        await shelf.put_folder(tmp_path / "empty", f"indexes/default/{id}")
        await shelf.put(path, f"parts/{id}")
    await shelf.sweep("files/default", {known})
    await sweep(shelf, "default", {known})
    await shelf.sweep_parts()
    for folder in ("files/default", "indexes/default", "parts"):
        assert set(await shelf.names(folder)) == {str(known), str(young)}
    await shelf.sweep("files/default", {OLD})
    assert str(known) in await shelf.names("files/default")
