"""Stored explanations as people take them away, one and many, whatever their text is."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from datetime import UTC, datetime
from typing import Any
from uuid import UUID
from xml.etree.ElementTree import fromstring

import numpy as np
import pytest

from app import explain
from app.explain import StoredOther
from app.export import COLUMNS, cell, encoded, table_of
from app.pairs_page import pair_rows, pairs_page, pairs_svg, parts_of
from explainers.types import Attribution, Target, Text
from storage import explanations
from tests.app.conftest import PROMPT, Running
from tests.app.test_heatmap import EVIL, plain, stored, word_features
from tests.storage.test_tenancy import explanation

pytestmark = pytest.mark.anyio

RESULT = {
    "id": "3f0c8f52-6f0e-5a7e-9a53-5d1f6e0c2b11", "influence_level": "high", "file_id": "file-1", "line": 17,
    "messages": f"Q: {EVIL}\nA: =cmd()", "score": 1.5, "impact": -0.5, "q_value": 0.001, "group_size": 2, "lift": 7.5,
}  # fmt: skip
OLD = {name: value for name, value in RESULT.items() if name != "line"} | {"impact": 1.0, "messages": "Q: a\nA: b"}
"""As it was stored before lines were."""


def traced(*results: dict[str, Any], lift: float | None = 7.5) -> StoredOther:
    content = {"method": "gain-weighted-gradients", "results": list(results), "answer": EVIL, "lift": lift, "facts": {}}
    request = {"question": EVIL, "answer": None, "system_prompt": None}
    time = datetime(2026, 1, 31, tzinfo=UTC)
    return StoredOther(UUID(int=7), "influence", "<b>m</b>", "sha256:00", request, content, 0.5, 3, time)


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


# -- one ---------------------------------------------------------------------------------------------------------------


def test_a_table_of_scores_has_every_digit() -> None:
    values = np.array([[0.1 + 0.2, -1e-9], [2.0, 3.0]])
    found = Attribution(
        "atman", word_features("=1+1 b", 0), (Target("@x"), Target("y")), values, uncertainty=values / 2
    )
    rows = table(table_of(stored((Text("=1+1 b"),), "@xy", found)))
    assert [float(row["score"]) for row in rows] == values.ravel().tolist()
    assert [float(row["uncertainty"]) for row in rows] == (values / 2).ravel().tolist()
    assert [(row["target_index"], row["target"], row["text"], row["place"]) for row in rows[:3]] == [
        ("0", "'@x", "'=1+1", "[0,4]"),
        ("0", "'@x", "b", "[5,6]"),
        ("1", "y", "'=1+1", "[0,4]"),
    ]
    assert {row["level"] for row in rows} == {""} and tuple(rows[0]) == COLUMNS


def test_a_table_of_pairs() -> None:
    first, second = table(table_of(traced(RESULT, OLD)))
    assert (first["text"], first["target"]) == (RESULT["messages"], EVIL)
    assert (first["level"], first["impact"], first["file_id"], first["line"]) == ("high", "-0.5", "file-1", "17")
    assert (second["line"], second["group_size"], second["item"]) == ("", "2", "")


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "\uff1d1"], ids=ascii)
def test_no_text_is_a_formula(text: str) -> None:
    assert cell(text) == f"'{text}"
    assert cell(-1.5) == -1.5


def test_half_a_surrogate_pair_is_shown_as_lost() -> None:
    assert encoded("a\ud800b\U0001f642\0") == "a\ufffdb\U0001f642\0".encode()


def test_a_page_of_pairs() -> None:
    page = pairs_page(traced(RESULT, OLD))
    assert plain(page).count(EVIL) == 3 and "<script" not in page and "<b>m" not in page
    assert "file-1, line 17" in page and "2 identical pairs" in page and 'class="s n10" width="100.0"' in page
    fromstring(pairs_svg(traced(RESULT, OLD)))  # noqa: S314 - our own


def test_no_pairs_are_told_in_words() -> None:
    assert "raised its log-probability by 0.25 nats" in pairs_page(traced(lift=0.25))
    assert "stands out for this answer although fine-tuning raised" in plain(pairs_page(traced(lift=2.0)))
    assert "No training pair stands out for this answer:" in plain(pairs_page(traced(lift=None)))
    assert "guess." in pairs_svg(traced())


def test_pairs_are_read_as_they_were_written() -> None:
    assert parts_of("Q: one\nA: two\nA: three") == ("one\nA: two", "three")
    assert parts_of("neither") == ("neither", "")
    assert [row.width for row in pair_rows(traced(RESULT, OLD).content)] == [0.5, 1.0]
    assert [row.width for row in pair_rows(traced(RESULT | {"impact": 0.0}).content)] == [0.0]


# -- over HTTP ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def filled(running: Running) -> Running:
    """With three explanations of prompts, and one of training data."""
    for place in range(3):
        assert (await running.explain(prompt=f"{EVIL} {place}. {PROMPT}")).status_code == 200
    content = traced(RESULT).content
    fields = explanation(kind="influence", request=traced().request, attribution=content, prompt=EVIL, target="rare")
    await explanations.add(running.server.explainer.database, "default", **fields)
    return running


async def exported(server: Running, **params: str) -> bytes:
    answer = await server.client.get("/explanations/export", params=params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    return answer.content


async def test_one_in_all_forms(filled: Running) -> None:
    for entry in (await filled.client.get("/explanations")).json()["explanations"]:
        place = f"/explanations/{entry['id']}"
        rows = table((await filled.client.get(place, headers={"Accept": "text/csv"})).text)
        assert rows and {row["explanation"] for row in rows} == {entry["id"]}
        page = await filled.client.get(place, headers={"Accept": "text/html"})
        assert EVIL in plain(page.text) and "<script" not in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
        picture = await filled.client.get(place, headers={"Accept": "image/svg+xml"})
        assert picture.headers["content-type"] == "image/svg+xml"
        fromstring(picture.text)  # noqa: S314 - our own


async def test_many_in_all_forms(filled: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "BATCH", 2)
    ids = [entry["id"] for entry in (await filled.client.get("/explanations")).json()["explanations"]]
    document = json.loads(await exported(filled))
    assert [entry["id"] for entry in document["explanations"]] == ids and len(ids) == 4
    one = (await filled.client.get(f"/explanations/{ids[0]}")).json()
    assert document["explanations"][0] == one
    rows = table((await exported(filled, format="csv")).decode())
    assert list(dict.fromkeys(row["explanation"] for row in rows)) == ids
    for form in ("html", "svg"):
        with zipfile.ZipFile(io.BytesIO(await exported(filled, format=form))) as archive:
            assert archive.namelist() == [f"{id}.{form}" for id in ids] and archive.testzip() is None
            accept = {"html": "text/html", "svg": "image/svg+xml"}[form]
            alone = await filled.client.get(f"/explanations/{ids[1]}", headers={"Accept": accept})
            assert archive.read(f"{ids[1]}.{form}") == alone.content


async def test_what_is_searched_is_exported(filled: Running) -> None:
    for params, count in (({"search": "RARE"}, 1), ({"kind": "completion"}, 3), ({"search": "nowhere"}, 0)):
        listed = (await filled.client.get("/explanations", params=params)).json()["explanations"]
        document = json.loads(await exported(filled, **params))
        assert [entry["id"] for entry in document["explanations"]] == [entry["id"] for entry in listed]
        assert len(listed) == count
    assert table((await exported(filled, format="csv", search="nowhere")).decode()) == []
    empty = await exported(filled, format="svg", search="nowhere")
    assert zipfile.ZipFile(io.BytesIO(empty)).namelist() == []


async def test_lists_show_prompt_and_target(filled: Running) -> None:
    first, second = (await filled.client.get("/explanations?limit=2")).json()["explanations"]
    assert (first["prompt"], first["target"]) == (EVIL, "rare")
    assert second["prompt"] == f"{EVIL} 2. {PROMPT}" and second["target"] == " Oslo"


@pytest.mark.parametrize(
    "params", [{"format": "xml"}, {"since": "1e9"}, {"until": "yesterday"}, {"search": "x" * 1001}, {"model": "a\0"}],
    ids=lambda value: next(iter(value)),
)  # fmt: skip
async def test_what_cannot_be_meant_is_refused(filled: Running, params: dict[str, str]) -> None:
    answer = await filled.client.get("/explanations/export", params=params)
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_REQUEST")
