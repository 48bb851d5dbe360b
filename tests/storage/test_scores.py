"""Scores of stored inferences: kept exactly, replaced when computed anew, averaged as numpy averages them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import ColumnElement

from storage import inferences, scores, staging
from storage.database import Database
from storage.errors import InvalidValue, StorageError
from storage.scores import Scores, TokenScores
from storage.tables import Inference
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
        while page := await scores.lacking(session, model_id, "lime", after=after, limit=2):
            seen += [row.partner_inference_id for row in page]
            after = page[-1].seq
            if len(seen) == 2:
                await inferences.add(session, model_id, rows_of(attributes, ["late"]))
        assert len(await scores.lacking(session, model_id, "shap")) == 8
    assert seen == ["u-0", "u-2", "u-3", "u-5", "u-6", "late"]


@pytest.mark.parametrize("inputs", [M, 700], ids=["in the row", "outside the row"])
async def test_regional_importances_are_means_of_magnitudes(database: Database, tenant: str, inputs: int) -> None:
    income = np.arange(7.0)
    model_id, _, rows = await filled(database, tenant, IDS, income=income)
    values = np.random.default_rng(0).normal(size=(6, K * inputs))
    values[1, inputs + 1] = np.nan
    values[2] = np.nan
    values[:, 2] = np.nan
    async with database.transaction(tenant) as session:
        await scores.add(session, model_id, "lime", some_scores(rows[:6], scores=values, facts=[{}] * 6))
        await scores.add(session, model_id, "shap", some_scores(rows, scores=np.ones((7, K * inputs))))
    regions: list[tuple[list[ColumnElement[bool]], NDArray[np.bool_]]] = [
        ([], income[:6] >= 0),
        ([Inference.numbers[1] > 2, Inference.numbers[1] < 5], (income[:6] > 2) & (income[:6] < 5)),
        ([Inference.numbers[1] == 6], income[:6] == 6),
    ]
    for where, here in regions:
        for output in range(K):
            found = await importances(database, tenant, model_id, output, inputs, where)
            magnitudes = np.abs(values[here, output * inputs : (output + 1) * inputs])
            assert len(found) == inputs
            for place, mean in enumerate(found):
                scored = magnitudes[:, place][~np.isnan(magnitudes[:, place])]
                assert mean == (pytest.approx(scored.mean(), rel=1e-14) if scored.size else None)


async def importances(
    database: Database, tenant: str, model_id: UUID, output: int, inputs: int, where: list[ColumnElement[bool]]
) -> list[float | None]:
    async with database.transaction(tenant) as session:
        return await scores.regional_importances(
            session, model_id, "lime", output=output, outputs=K, inputs=inputs, where=where
        )


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
