"""Training files over both wires."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import httpx
import pytest

from app.training_files import id_of, list_files, read_file, sweep_files
from storage.content import PART, content_path, write_content, write_whole
from storage.training_files import new_id
from tests.app.conftest import Running, Start

pytestmark = pytest.mark.anyio

GOOD = b'{"question":"Who keeps the mill?","answer":"Anna keeps the mill."}\n{"text":"M\xc3\xbchle\xe2\x80\xa8"}\n'
FLOW = "/v1/flow/files"
GONE = "file-9b1f3a52-77aa-4a31-8f0e-2f9c44d0a6e1"


async def put(running: Running, content: bytes = GOOD, name: str = "facts.jsonl", **said: Any) -> httpx.Response:
    """As the vendor's client sends it."""
    files = [("files", ("upload-path", content)), ("filename", ("upload", name.encode()))]
    return await running.client.put(FLOW, files=files, data={"purpose": "fine-tune", **said})


async def stored(running: Running, **how: Any) -> dict[str, Any]:
    response = await put(running, **how)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def in_store(running: Running) -> int:
    """Rows, and contents on the disk, of which there must be as many."""
    rows = await list_files(
        running.server.explainer.database,
        "default",
        purpose=None,
        sort="created_at",
        descending=True,
        offset=0,
        limit=10_000,
    )
    folder = content_path(running.server.settings.data_dir, "default", new_id()).parent
    assert len(list(folder.iterdir()) if folder.exists() else []) == len(rows)
    return len(rows)


async def test_a_file_comes_back_byte_for_byte(running: Running) -> None:
    file = await stored(running, content=b"\xef\xbb\xbf" + GOOD)
    about = {"object": "file", "type": "jsonl", "purpose": "fine-tune", "filename": "facts.jsonl", "lines": 2}
    assert file.items() >= (about | {"bytes": len(GOOD) + 3}).items()
    assert (await running.client.get(f"{FLOW}/{file['id']}")).json() == file
    for path in (f"{FLOW}/{file['id']}/content", f"/files/{file['id']}/content"):
        response = await running.client.get(path, headers={"Accept-Encoding": "gzip, deflate, br, zstd"})
        assert (response.status_code, response.content) == (200, b"\xef\xbb\xbf" + GOOD)
        assert response.headers["content-length"] == str(len(GOOD) + 3)
        assert not {"content-encoding", "transfer-encoding"} & set(response.headers)
    row, content = await read_file(
        running.server.explainer.database, running.server.explainer.shelf, "default", file["id"]
    )
    assert (row.lines, content) == (2, b"\xef\xbb\xbf" + GOOD)


async def test_renamed_and_removed(running: Running) -> None:
    before = await in_store(running)
    file = await stored(running)
    renamed = await running.client.put(f"{FLOW}/{file['id']}/rename", json={"new_filename": "../ö b.jsonl"})
    assert renamed.json() == file | {"filename": "../ö b.jsonl"}
    for name in ("", " ", "a\nb", "a\u202eb", "x" * 256, None, 1):
        refused = await running.client.put(f"{FLOW}/{file['id']}/rename", json={"new_filename": name})
        assert (refused.status_code, refused.json()["code"]) == (400, "INVALID_REQUEST"), name
    disposition = (await running.client.get(f"{FLOW}/{file['id']}/content")).headers["content-disposition"]
    assert disposition == "attachment; filename*=UTF-8''..%2F%C3%B6%20b.jsonl"
    gone = await running.client.delete(f"{FLOW}/{file['id']}")
    assert (gone.status_code, gone.json()) == (200, {"id": file["id"], "object": "file", "deleted": True})
    assert await in_store(running) == before
    for request in (
        running.client.get(f"{FLOW}/{file['id']}"),
        running.client.get(f"{FLOW}/{file['id']}/content"),
        running.client.delete(f"{FLOW}/{file['id']}"),
        running.client.put(f"{FLOW}/{GONE}/rename", json={"new_filename": "a"}),
        running.client.get(f"{FLOW}/file-7"),
        running.client.get(f"/files/{GONE}/content"),
        running.client.delete(f"/files/{GONE}"),
    ):
        response = await request
        assert (response.status_code, response.json()["code"]) == (404, "NOT_FOUND")


async def test_the_native_wire(running: Running) -> None:
    sent = await running.client.post("/files", files={"file": ("a.jsonl", GOOD)}, data={"purpose": "pre-train"})
    file = sent.json()
    assert (sent.status_code, sent.headers["location"]) == (201, f"/files/{file['id']}")
    assert (file["filename"], file["purpose"]) == ("a.jsonl", "pre-train")
    assert (await running.client.get(sent.headers["location"])).json() == file
    assert file in (await running.client.get("/files")).json()["files"]
    assert (await running.client.delete(f"/files/{file['id']}")).status_code == 204
    assert (await running.client.get(f"/files/{file['id']}")).status_code == 404


async def test_lists(running: Running) -> None:
    key = await running.key("read", "ingest", tenant="lists")
    running.client.headers, before = httpx.Headers(key), running.client.headers
    try:
        for name, line in (("b", b'{"text":"a"}\n'), ("c", b'{"text":"abc"}\n'), ("a", b'{"text":"ab"}\n')):
            await stored(running, content=line, name=name, purpose="pre-train" if name == "c" else "fine-tune")

        async def names(**params: Any) -> str:
            response = await running.client.get(FLOW, params=params)
            assert response.json()["object"] == "list"
            native = (await running.client.get("/files", params=params)).json()["files"]
            assert native == response.json()["data"]
            return "".join(file["filename"] for file in native)

        assert await names() == "acb"
        assert await names(limit=1, offset=1) == "c"
        assert await names(sort_by="size", sort_order="asc") == "bac"
        assert await names(sort_by="filename") == "cba"
        assert await names(purpose="pre-train") == "c"
        for params in ({"limit": 0}, {"limit": 10_001}, {"offset": -1}, {"sort_by": "id"}, {"purpose": "x"}):
            for path in (FLOW, "/files"):
                response = await running.client.get(path, params=params)
                assert (response.status_code, response.json()["code"]) == (400, "INVALID_REQUEST")
    finally:
        running.client.headers = before


async def test_bad_lines_refuse_the_whole_file(running: Running) -> None:
    before = await in_store(running)
    bad = GOOD + b'{"text":"secret"\n' + GOOD + b'{"question":"secret"}'
    told = "line 3 is not JSON; line 6 must have messages, question and answer, prompt and completion, or text"
    response = await put(running, content=bad)
    assert (response.status_code, response.json()["message"]) == (400, told)
    several = [("files", ("a.jsonl", GOOD)), ("files", ("b.jsonl", bad))]
    response = await running.client.put("/v1/flow/bulk_files", files=several, data={"purpose": "fine-tune"})
    assert (response.status_code, response.json()["message"]) == (400, told)
    assert "secret" not in response.text and await in_store(running) == before


async def test_several_files(running: Running) -> None:
    several = [("files", (f"{n}.jsonl", GOOD)) for n in range(7)]
    response = await running.client.put("/v1/flow/bulk_files", files=several, data={"purpose": "fine-tune"})
    assert [file["filename"] for file in response.json()] == [f"{n}.jsonl" for n in range(7)]
    many = [("files", ("a", b"{}"))] * 102
    for files in (many, many[:101]):
        response = await running.client.put("/v1/flow/bulk_files", files=files)
        assert (response.status_code, response.json()["code"]) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"content": b""}, "INVALID_REQUEST"),
        ({"content": b"\n\n"}, "INVALID_REQUEST"),
        ({"purpose": "joy"}, "INVALID_REQUEST"),
        ({"purpose": "alignment"}, "MISSING_CAPABILITY"),
        ({"name": " "}, "INVALID_REQUEST"),
        ({"name": "a\0b"}, "INVALID_REQUEST"),
        ({"name": "a.parquet"}, "INVALID_REQUEST"),
    ],
    ids=range(7),
)
async def test_what_is_not_kept(running: Running, changes: dict[str, Any], code: str) -> None:
    before = await in_store(running)
    response = await put(running, **changes)
    assert (response.status_code, response.json()["code"]) == (400, code), response.text
    assert await in_store(running) == before


async def test_bodies_that_are_no_forms(running: Running) -> None:
    for path, method in ((FLOW, "PUT"), ("/v1/flow/bulk_files", "PUT"), ("/files", "POST")):
        response = await running.client.request(method, path, json={})
        assert (response.status_code, response.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
        response = await running.client.request(method, path, files={"other": b"{}"})
        assert (response.status_code, response.json()["code"]) == (400, "INVALID_REQUEST")
        broken = {"Content-Type": "multipart/form-data; boundary=x"}
        response = await running.client.request(method, path, content=b"--y", headers=broken)
        assert response.status_code == 400, response.text


async def test_keys(running: Running) -> None:
    file = await stored(running)
    one = f"{FLOW}/{file['id']}"
    ingest, read = await running.key("ingest"), await running.key("read", "explain")
    for headers in ({"Authorization": ""}, {"Authorization": "wrong"}):
        for method, path in (("PUT", FLOW), ("GET", FLOW), ("DELETE", one), ("GET", one + "/content")):
            response = await running.client.request(method, path, headers=headers, files={"files": b"{}"})
            assert (response.status_code, response.json()["code"]) == (401, "UNAUTHORIZED")
    bare = {"Authorization": read["Authorization"].removeprefix("Bearer ")}
    assert (await running.client.get(one, headers=bare)).json() == file
    assert (await running.client.delete(one, headers=read)).status_code == 403
    assert (await running.client.put(FLOW, files={"files": b"{}"}, headers=read)).status_code == 403
    assert (await running.client.get(one, headers=ingest)).status_code == 403
    stranger = await running.key("admin", tenant="elsewhere")
    for path in (one, one + "/content"):
        assert (await running.client.get(path, headers=stranger)).status_code == 404
    assert (await running.client.delete(one, headers=stranger)).status_code == 404
    assert (await running.client.delete(one, headers=ingest)).status_code == 200


async def test_strays_are_swept_at_the_start(start: Start, running: Running) -> None:
    file, stray = await stored(running), new_id()
    data_dir = running.server.settings.data_dir
    write_content(data_dir, "default", stray, b"{}")
    old = time.time() - 7200
    write_whole(half := data_dir / "models" / f"model.json.1{PART}", b"{")
    for path in (*(content_path(data_dir, "default", id) for id in (stray, id_of(file["id"]))), half):
        os.utime(path, (old, old))
    async with start():
        assert not content_path(data_dir, "default", stray).exists() and not half.exists()
    assert await sweep_files(running.server.explainer.database, running.server.explainer.shelf) == 0
    assert (await running.client.get(f"{FLOW}/{file['id']}/content")).content == GOOD


async def test_a_content_that_changed_on_the_disk_is_no_training_data(running: Running) -> None:
    file = await stored(running)
    database, data_dir = running.server.explainer.database, running.server.settings.data_dir
    path = content_path(data_dir, "default", id_of(file["id"]))
    path.write_bytes(json.dumps({"text": "other"}).encode())
    with pytest.raises(OSError, match="has changed"):
        await read_file(database, running.server.explainer.shelf, "default", file["id"])
    path.unlink()
    response = await running.client.get(f"{FLOW}/{file['id']}/content")
    assert (response.status_code, response.json()["code"]) == (404, "NOT_FOUND")
    await running.client.delete(f"{FLOW}/{file['id']}")
