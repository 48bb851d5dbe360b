"""Scores of stored inferences: kept exactly, replaced when computed anew, averaged as numpy averages them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from storage import inferences, scores, staging
from storage.database import Database
from storage.errors import InvalidValue, StorageError
from storage.monitored_tables import Inference
from storage.scores import Scores, TokenScores, Wanted
from tests.storage.monitored import filled, rows_of

K, M = 2, 3
IDS = [f"u-{place}" for place in range(7)]


@pytest.fixture(autouse=True, params=[0, staging.FEW], ids=["by COPY", "as JSON"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How rows that are not too many travel."""
    monkeypatch.setattr(staging, "FEW", request.param)


def some_scores(rows: list[Inference], **changes: Any) -> Scores:
    count = len(rows)
    values = np.random.default_rng(count).normal(size=(count, K * M))
    fields: dict[str, Any] = {
        "fingerprint": 7,
        "seqs": np.array([row.seq for row in rows], dtype=np.int64),
        "scores": values,
        "facts": [{"n_samples": 2000, "place": place} for place in range(count)],
    }
    return Scores(**fields | changes)


async def test_whether_a_model_has_scores(database: Database, tenant: str, other_tenant: str) -> None:
    model_id, _, rows = await filled(database, tenant, IDS[:2])
    async with database.transaction(tenant) as session:
        assert not await scores.exist(session, model_id)
        await scores.add(session, model_id, "shap", some_scores(rows[1:]))
        assert await scores.exist(session, model_id) and not await scores.exist(session, rows[1].id)
    async with database.transaction(other_tenant) as session:
        assert not await scores.exist(session, model_id)


async def test_scores_come_back_exactly(database: Database, tenant: str) -> None:
    model_id, _, rows = await filled(database, tenant, IDS[:2])
    partial = np.array([[0.1 + 0.2, np.nan, -0.0, 1e-300, 1e300, -1.0], [np.nan] * 6])
    given = some_scores(
        rows,
        scores=partial,
        errors=np.abs(partial),
        base_values=np.array([[0.25, 0.75], [np.nan, np.nan]]),
        fit=np.array([[0.9, 0.8], [np.nan, np.nan]]),
        reasons=[None, "a null input"],
    )
    async with database.transaction(tenant) as session:
        await scores.add(session, model_id, "lime", given)
    async with database.transaction(tenant) as session:
        first = await scores.find(session, model_id, "lime", rows[0].seq)
        second = await scores.find_by_partner_id(session, model_id, "lime", "u-1")
        assert await scores.find(session, model_id, "shap", rows[0].seq) is None
        assert await scores.find_by_partner_id(session, model_id, "lime", "none") is None
    assert first is not None and second is not None
    assert first.scores == [0.1 + 0.2, None, -0.0, 1e-300, 1e300, -1.0]
    assert first.errors == [0.1 + 0.2, None, 0.0, 1e-300, 1e300, 1.0]
    assert (first.base_values, first.fit, first.reason) == ([0.25, 0.75], [0.9, 0.8], None)
    assert first.facts == {"n_samples": 2000, "place": 0}
    assert (second.seq, second.scores, second.reason) == (rows[1].seq, [None] * 6, "a null input")


async def test_scores_computed_anew_replace_all_of_the_old(database: Database, tenant: str) -> None:
    model_id, _, rows = await filled(database, tenant, IDS)
    async with database.transaction(tenant) as session:
        await scores.add(session, model_id, "shap", some_scores(rows, base_values=np.ones((7, K))))
        await scores.add(session, model_id, "lime", some_scores(rows))
        await scores.add_tokens(session, model_id, "shap", some_tokens(rows))
    async with database.transaction(tenant) as session:
        await scores.add(session, model_id, "shap", some_scores(rows[:1], reasons=["late"], facts=[{}]))
    async with database.transaction(tenant) as session:
        new = await scores.find(session, model_id, "shap", rows[0].seq)
        old = await scores.find(session, model_id, "shap", rows[1].seq)
        lime = await scores.find(session, model_id, "lime", rows[0].seq)
        assert await scores.find_tokens(session, model_id, "shap", rows[0].seq) == []
        assert len(await scores.find_tokens(session, model_id, "shap", rows[1].seq)) == 1
    assert new is not None and old is not None and lime is not None
    assert (new.base_values, new.reason, new.facts) == (None, "late", {})
    assert (old.base_values, old.reason, lime.reason) == ([1.0, 1.0], None, None)


def some_tokens(rows: list[Inference], attribute: str = "note") -> TokenScores:
    counts = range(len(rows))  # the first text is empty
    return TokenScores(
        fingerprint=7,
        seqs=np.array([row.seq for row in rows], dtype=np.int64),
        attribute=attribute,
        tokens=[[f"t{place}" for place in range(count)] for count in counts],
        positions=[list(range(0, 2 * count, 2)) for count in counts],
        scores=[np.arange(K * count, dtype=float).reshape(K, count) for count in counts],
        facts=[{} for _ in counts],
        errors=None if attribute == "note" else [np.full((K, count), np.nan) for count in counts],
    )


async def test_scores_of_tokens_are_class_by_class(database: Database, tenant: str) -> None:
    model_id, _, rows = await filled(database, tenant, IDS)
    async with database.transaction(tenant) as session:
        await scores.add(session, model_id, "lime", some_scores(rows, scores=np.zeros((7, 0))))
        for attribute in ("note", "title"):
            await scores.add_tokens(session, model_id, "lime", some_tokens(rows, attribute))
    async with database.transaction(tenant) as session:
        marker = await scores.find(session, model_id, "lime", rows[3].seq)
        note, title = await scores.find_tokens(session, model_id, "lime", rows[3].seq)
        empty, _ = await scores.find_tokens(session, model_id, "lime", rows[0].seq)
    assert marker is not None and marker.scores == []
    assert (note.attribute, note.tokens, note.positions) == ("note", ["t0", "t1", "t2"], [0, 2, 4])
    assert (note.scores, note.errors) == ([0, 1, 2, 3, 4, 5], None)
    assert (title.attribute, title.errors) == ("title", [None] * 6)
    assert (empty.tokens, empty.scores) == ([], [])


async def test_what_lacks_scores_is_told_page_by_page(database: Database, tenant: str) -> None:
    model_id, attributes, rows = await filled(database, tenant, IDS)
    async with database.transaction(tenant) as session:
        await scores.add(session, model_id, "lime", some_scores([rows[1], rows[4]]))
    seen: list[str] = []
    after = 0
    async with database.transaction(tenant) as session:
        while page := await scores.lacking(session, Wanted(model_id, "lime", 7, after=after), limit=2):
            seen += [row.partner_inference_id for row in page]
            after = page[-1].seq
            if len(seen) == 2:
                await inferences.add(session, model_id, rows_of(attributes, ["late"]))
        assert len(await scores.lacking(session, Wanted(model_id, "shap", 7))) == 8
        assert len(await scores.lacking(session, Wanted(model_id, "lime", 8))) == 8
        assert await scores.progress(session, Wanted(model_id, "lime", 7)) == (2, 8)
        assert await scores.progress(session, Wanted(model_id, "lime", 8)) == (0, 8)
    assert seen == ["u-0", "u-2", "u-3", "u-5", "u-6", "late"]


async def test_a_share_of_the_inferences_is_chosen_by_their_ids(database: Database, tenant: str) -> None:
    model_id, _, rows = await filled(database, tenant, [f"u-{place}" for place in range(400)])
    async with database.transaction(tenant) as session:
        few = {row.seq for row in await scores.lacking(session, Wanted(model_id, "lime", 7, share=0.2))}
        more = {row.seq for row in await scores.lacking(session, Wanted(model_id, "lime", 7, share=0.5))}
        assert (await scores.progress(session, Wanted(model_id, "lime", 7, share=0.5)))[1] == len(more)
        assert not await scores.lacking(session, Wanted(model_id, "lime", 7, share=0.0))
    assert few < more and 40 < len(few) < 120 and 140 < len(more) < 260
    assert len(rows) == 400


async def test_bad_scores_are_refused(database: Database, tenant: str) -> None:
    model_id, _, rows = await filled(database, tenant, IDS)
    wrong = [
        some_scores([rows[0], rows[0]]),
        some_scores(rows[:1], scores=np.array([[np.inf]])),
        some_scores(rows[:1], facts=[{"x": float("nan")}]),
        some_scores(rows[:1], reasons=["\0"]),
    ]
    async with database.transaction(tenant) as session:
        for each in wrong:
            with pytest.raises(InvalidValue):
                await scores.add(session, model_id, "lime", each)
    with pytest.raises(StorageError, match="ForeignKeyViolation"):
        async with database.transaction(tenant) as session:
            await scores.add(session, model_id, "lime", some_scores(rows[:1], seqs=np.array([2**60])))
    with pytest.raises(StorageError, match="ForeignKeyViolation"):
        async with database.transaction(tenant) as session:
            await scores.add_tokens(session, model_id, "lime", some_tokens(rows))
