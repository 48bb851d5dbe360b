"""Arthur's routes asked by somebody who means harm: every answer is a refusal in the one body, none a failure."""

from __future__ import annotations

import io
import json
import resource
from collections.abc import Iterator
from typing import Any

import httpx
import pyarrow as pa
import pytest
from pyarrow import parquet

from app.dialects.arthur.model_routes import CHURN, MODELS
from app.tokens import HEADER
from app.uploads import parquet_rows
from explainers.errors import InvalidRequest
from tests.app.conftest import ADMIN_KEY, Running
from tests.app.test_monitored import WHEN, created, record

ROUTES = (
    ("POST", "/inferences"),
    ("PATCH", "/inferences"),
    ("POST", "/inferences/file"),
    ("POST", "/reference_data"),
    ("PATCH", "/reference_data"),
    ("PATCH", "/batches/b"),
    ("PUT", ""),
    ("POST", "/inferences/query"),
)
KINDS = (
    b"",
    b";;;",
    b"text/plain",
    b"application/json; charset=utf-16",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data",
    b"multipart/form-data; boundary=",
    b"multipart/form-data; boundary=\xff",
    b"multipart/form-data; boundary=other",
    b"multipart/form-data; charset=nonsense; boundary=a",
    b"multipart/mixed; boundary=a",
)
BODIES = (b"", b"\xff" * 9, b"--a--\r\n", b"--a\r\n\r\n--a--", b"--a\r\nX: y\r\n\r\n[]\r\n--a--\r\n")


def refused(response: httpx.Response, *statuses: int) -> None:
    assert response.status_code in (statuses or range(400, 500)), response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code and b"\n" not in response.content
    assert {"type", "title", "detail", "error", "code", "message"} <= set(body)


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[f"{method} {path}" for method, path in ROUTES])
async def test_bodies_that_are_not_what_they_say(running: Running, method: str, path: str) -> None:
    id = await created(running)
    for kind in KINDS:
        for body in BODIES:
            headers = {b"Authorization": ADMIN_KEY.encode(), b"Content-Type": kind}
            response = await running.client.request(method, f"{MODELS}/{id}{path}", content=body, headers=headers)
            refused(response, 400, 415)


ODD_KEYS = (
    b"\xff\xfe",
    b"Bearer \xff",
    b"Bearer a b",
    b"x" * 60_000,
    *(f"{HEADER}{rest}".encode("latin-1") for rest in (".", "..", ".e30.", ".e30.\xff", ".\xe9.x", ".e30.AAAA.x")),
)


@pytest.mark.parametrize("key", ODD_KEYS, ids=range(len(ODD_KEYS)))
async def test_keys_and_cookies_that_are_none(running: Running, key: bytes) -> None:
    sent: list[dict[bytes, bytes]] = [
        {b"Authorization": key},
        {b"Authorization": b"", b"Cookie": b"Authorization=" + key},
        {b"Authorization": b"", b"Cookie": key},
        {b"Authorization": b"", b"Cookie": b";" * 999},
    ]
    for headers in sent:
        refused(await running.client.get("/api/v3/users/me", headers=headers), 401)


IDS = (
    "%00",
    "%ff",
    "%ed%a0%80",
    "a" * 300,
    "a" * 5000,
    "%E2%80%AE",
    "'",
    "%22",
    "%0d%0a",
    "%zz",
    "{}",
    "0" * 32,
    "%20",
)


@pytest.mark.parametrize("id", IDS, ids=range(len(IDS)))
async def test_ids_of_nothing(running: Running, id: str) -> None:
    for method, path in (*ROUTES, ("GET", ""), ("DELETE", ""), ("POST", "/retry"), ("GET", f"/inferences/query/{id}")):
        multipart = path in ("/inferences/file", "/reference_data") and method == "POST"
        body: Any = {"files": {path.strip("/").replace("inferences/file", "inference_data"): b"[]"}}
        content: Any = body if multipart else {"json": [] if path == "/inferences" else {"select": [], "status": "x"}}
        refused(await running.client.request(method, f"{MODELS}/{id}{path}", **content), 400, 404)
    known = await created(running)
    refused(await running.client.get(f"{MODELS}/{known}/inferences/query/{id}"), 404)


VALUES = (
    "true", "-1", "1e400", "1" + "0" * 400, r'"\u0000"', r'"\ud800"', "[[]]", '{"a":1}', "[null]", "[{}]", "NaN",
    '"' + "x" * 20_000 + '"', "9223372036854775808", "[1,{}]",
)  # fmt: skip
MEMBERS = (
    "partner_model_id",
    "input_type",
    "tags",
    "classifier_threshold",
    "pixel_height",
    "text_delimiter",
    "attributes",
)
OF_ATTRIBUTES = ("name", "stage", "position", "categories", "bins", "min_range", "attribute_link", "gt_class_link")


async def test_strange_values_of_models(running: Running) -> None:
    """A model either takes a value and shows it, or refuses it."""
    id = await created(running)
    income = {"name": "income", "value_type": "FLOAT", "stage": "PIPELINE_INPUT"}
    bodies = [f'{{"{member}":{value}}}' for member in MEMBERS for value in VALUES]
    for member in OF_ATTRIBUTES:
        rest = json.dumps({name: each for name, each in income.items() if name != member})[:-1]
        bodies += [f'{{"attributes":[{rest},"{member}":{value}}}]}}' for value in VALUES]
    bodies += ["[" * 100_000, '{"a":' * 100_000, '{"attributes":[' + "{}," * 5000 + "{}]}", "\ufeff{}"]
    for body in bodies:
        headers = {"Content-Type": "application/json"}
        response = await running.client.put(f"{MODELS}/{id}", content=body.encode(), headers=headers)
        if response.status_code != 200:
            refused(response, 400)
        shown = await running.client.get(f"{MODELS}/{id}")
        assert shown.status_code == 200
        assert response.status_code != 200 or shown.json() == response.json()


async def test_the_last_of_two_members_counts(running: Running) -> None:
    id = await created(running)
    headers = {"Content-Type": "application/json"}
    content = b'{"display_name":"a","display_name":"b"}'
    response = await running.client.put(f"{MODELS}/{id}", content=content, headers=headers)
    assert (response.status_code, response.json()["display_name"]) == (200, "b")


@pytest.mark.parametrize(
    "time",
    ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "10000-01-01", "-1-01-01", "2026-02-30", "٢٠٢٦", 0],
)
async def test_times_that_are_none(running: Running, time: Any) -> None:
    id = await created(running)
    sent = [record("a") | {"inference_timestamp": time}]
    answer = await running.client.post(f"{MODELS}/{id}/inferences", json=sent)
    assert (answer.status_code, answer.json()["results"][0]["status"]) == (207, 400)


def parts(*named: tuple[bytes, bytes]) -> bytes:
    return b"".join(b"--a\r\n" + head + b"\r\n\r\n" + body + b"\r\n" for head, body in named) + b"--a--\r\n"


def head(name: bytes, file: bytes | None = None) -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"' + (b'; filename="' + file + b'"' if file else b"")


FILE = head(b"inference_data", b"x")
GOOD = json.dumps([record("a")]).encode()
FORMS = {
    "no file": ((head(b"inference_data"), GOOD),),
    "no name": ((b"Content-Disposition: form-data", GOOD),),
    "no disposition": ((b"X: y", GOOD),),
    "no head": ((b"", GOOD),),
    "many files": ((FILE, GOOD),) * 5,
    "many fields": ((head(b"f"), b"1"),) * 100,
    "a long field": ((head(b"batch_id"), b"x" * 2_000_000), (FILE, GOOD)),
    "compressed": ((FILE, b"\x1f\x8b\x08\x00"),),
    "deep": ((FILE, b"[" * 100_000),),
    "no rows": ((FILE, b'{"a":1}'),),
    "magic alone": ((FILE, b"PAR1PAR1"),),
    "magic and noise": ((FILE, b"PAR1" + b"\x15\x04" * 500 + b"\x00\x00\x00\x10PAR1"),),
}


@pytest.mark.parametrize("name", FORMS)
async def test_tricks_with_parts(running: Running, name: str) -> None:
    id = await created(running)
    headers = {"Content-Type": "multipart/form-data; boundary=a"}
    content = parts(*FORMS[name])
    refused(await running.client.post(f"{MODELS}/{id}/inferences/file", content=content, headers=headers), 400)


@pytest.mark.parametrize("name", [b"../../etc/passwd", b"a\\b", b"\xff", b"x" * 4_000], ids=range(4))
async def test_names_of_files_mean_nothing(running: Running, name: bytes) -> None:
    id = await created(running)
    headers = {"Content-Type": "multipart/form-data; boundary=a"}
    content = parts((head(b"inference_data", name), GOOD))
    answer = await running.client.post(f"{MODELS}/{id}/inferences/file", content=content, headers=headers)
    assert (answer.status_code, answer.json()["counts"]["success"]) == (207, 1)


def column(type: pa.DataType, *buffers: bytes) -> pa.Array:
    """One value as its bytes say, whether it can be or not."""
    return pa.Array.from_buffers(type, 1, [None, *map(pa.py_buffer, buffers)])


FAR = {
    "a far time": column(pa.timestamp("us"), (2**62).to_bytes(8, "little")),
    "a far second": column(pa.timestamp("s"), (2**40).to_bytes(8, "little")),
    "a far date": column(pa.date32(), b"\xff\xff\xff\x7f"),
    "a time of no day": column(pa.time64("us"), (2**60).to_bytes(8, "little")),
    "no text": column(pa.string(), b"\0\0\0\0\2\0\0\0", b"\xff\xfe"),
}


def file_of(**columns: pa.Array) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("name", FAR)
async def test_values_that_python_has_not(running: Running, name: str) -> None:
    id = await created(running)
    content = file_of(partner_inference_id=pa.array(["a"]), income=FAR[name])
    for path, part in (
        ("inferences/file", "inference_data"),
        ("inferences/file", "ground_truth_data"),
        ("reference_data", "reference_data"),
    ):
        refused(await running.client.post(f"{MODELS}/{id}/{path}", files={part: ("x", content)}), 400)


def repeated(size: int, rows: int, nested: bool) -> io.BytesIO:
    """A small file that says one text of `size` bytes in each of `rows` rows."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * size]))
    lists = (
        pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), texts.dictionary_decode()) if nested else texts
    )
    return io.BytesIO(file_of(note=lists))


@pytest.mark.parametrize("nested", [False, True], ids=["texts", "lists of texts"])
def test_a_small_file_cannot_fill_the_memory(nested: bool) -> None:
    file = repeated(2**18, 2_000, nested)  # half a gigabyte
    assert len(file.getvalue()) < 2**18
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidRequest, match="bytes"):
        next(parquet_rows(file))
    assert nested or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


def test_what_is_read_is_what_was_written() -> None:
    """Texts are read by way of dictionaries, however they lie in the file."""
    columns: dict[str, list[Any]] = {
        "text": ["a", None, "a", "é"],
        "list": [["a", "b"], None, [], ["a"]],
        "bytes": [b"\xff", None, b"", b"a"],
        "struct": [{"a": "x"}, None, {"a": None}, {"a": "x"}],
        "number": [1.5, None, 2.0, 0.0],
        "none": [None] * 4,
    }
    for dictionaries in (True, False):
        buffer = io.BytesIO()
        parquet.write_table(pa.table(columns), buffer, use_dictionary=dictionaries)
        assert list(parquet_rows(buffer)) == [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]


def endless() -> Iterator[dict[str, Any]]:
    number = 0
    while True:
        yield record(f"r-{number}") | {"batch_id": "b\0" if number % 2 else None}
        number += 1


async def test_what_cannot_be_stored_is_told_record_by_record(running: Running) -> None:
    id = await created(running)
    rows = endless()
    answer = await running.client.post(f"{MODELS}/{id}/inferences", json=[next(rows) for _ in range(4)])
    assert [result["status"] for result in answer.json()["results"]] == [200, 400, 200, 400]
    truth = [{"partner_inference_id": "r-0\0", "ground_truth_timestamp": WHEN, "ground_truth_data": {"churned": 1}}]
    told = (await running.client.patch(f"{MODELS}/{id}/inferences", json=truth)).json()["results"]
    assert told[0]["status"] in (400, 404)
    model = CHURN | {"partner_model_id": "a\0b"}
    refused(await running.client.post(MODELS, json=model), 400)
