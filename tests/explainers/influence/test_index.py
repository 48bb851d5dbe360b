"""The index against the formulas, written out over all rows at once."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from explainers.errors import InvalidRequest, UnreadableModel
from explainers.influence import finishing
from explainers.influence import index as searching
from explainers.influence.finishing import Generic, finish, read_finished, read_generic, unrelated_score, write_generic
from explainers.influence.index import ARRAYS, Index
from explainers.influence.metric import DAMPING, Metric
from explainers.influence.shards import (
    Shard,
    digest_of,
    mapped,
    read_shard,
    shard_of,
    shard_path,
    write_arrays,
    write_shard,
)
from explainers.influence.sketching import Sketches
from explainers.influence.space import Space, nearness
from explainers.influence.texts import words_of

ROWS, DIMENSIONS, WIDTH, PROMPTS = 90, 24, 10, 30
PROMPT_TOKENS = tuple((5000 + number,) for number in range(PROMPTS))


def drawn(count: int, seed: int) -> Sketches:
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((count, DIMENSIONS)) * np.exp(2 * draw.standard_normal((count, 1)))
    hidden = draw.standard_normal((count, 2, WIDTH)) + 1.0
    return Sketches(rows.astype(np.float32), hidden.astype(np.float32), draw.random(count), draw.random(count))


def built(folder: Path, *, identical: list[bytes] | None = None) -> list[Shard]:
    """Three shards of a third of ROWS each."""
    shards = [shard_of(drawn(ROWS // 3, number), range(30 * number, 30 * number + 30)) for number in range(3)]
    for number, shard in enumerate(shards):
        write_shard(folder, number, shard)
    finish(
        folder,
        3,
        identical or [bytes([place]) for place in range(ROWS)],
        tokens_of,
        generic(),
        {"size": 4},
    )
    return shards


def tokens_of(record: int) -> tuple[int, ...]:
    """Of every four records the texts are the same words."""
    return (record // 4, 1000 + record // 4)


def generic(*texts: tuple[int, ...]) -> Generic:
    return Generic(shard_of(drawn(PROMPTS, 99), range(PROMPTS)), texts or PROMPT_TOKENS)


def obvious(shards: list[Shard], row: np.ndarray, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """C and Hw by the inverse of the damped matrices."""
    rows = np.concatenate([shard.whole_rows for shard in shards])
    states = np.concatenate([shard.hidden.astype(float) for shard in shards])  # (n, 2, d)
    states /= np.linalg.norm(states, axis=2, keepdims=True)
    means = states.mean(axis=0)
    right = hidden / np.linalg.norm(hidden, axis=1, keepdims=True) - means
    asked, said = (cosines(states[:, number] - means[number], right[number]) for number in range(2))
    return cosines(rows, row), (asked + said) / 2


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    moment = left.T @ left
    inverse = np.linalg.inv(moment + DAMPING * np.trace(moment) / min(left.shape) * np.eye(left.shape[1]))
    lengths = np.sqrt(np.einsum("nd,de,ne->n", left, inverse, left) * (right @ inverse @ right))
    return left @ inverse @ right / lengths


def test_scores_are_those_of_the_formulas(tmp_path: Path) -> None:
    shards, asked = built(tmp_path), drawn(1, 7)
    found = Index.open(tmp_path).search(asked.rows[0].astype(float), asked.hidden[0].astype(float))
    cosines, states = obvious(shards, asked.rows[0].astype(float), asked.hidden[0].astype(float))
    np.testing.assert_allclose(found.cosines, cosines, atol=2e-6)
    np.testing.assert_allclose(found.states, states, atol=2e-6)


def test_a_large_index_scores_its_best_rows_as_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = built(tmp_path)
    whole = Index.open(tmp_path)
    monkeypatch.setattr(finishing, "WHOLE", 50)
    monkeypatch.setattr(searching, "SHORTLIST", 40)
    finish(tmp_path, 3, [bytes([place]) for place in range(ROWS)], tokens_of, generic(), {"size": 4})
    large = Index.open(tmp_path)
    assert large.matrix is not None
    (tmp_path / ARRAYS).unlink()  # as where a newer index is there
    for seed in range(20):
        near = shards[seed % 3].whole_rows[seed] + drawn(1, seed).rows[0] * 0.01
        hidden = shards[seed % 3].hidden[seed].astype(float)
        exact, found = whole.search(near, hidden), large.search(near, hidden)
        assert len(found.rows) == 40
        np.testing.assert_allclose(found.scores, exact.scores[found.rows], atol=2e-6)
        assert found.rows[found.scores.argmax()] == exact.rows[exact.scores.argmax()]


def test_the_places_of_a_large_index_stay_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they lie in the file: it may be one that safetensors itself wrote."""
    built(tmp_path)
    small = Index.open(tmp_path)
    monkeypatch.setattr(finishing, "WHOLE", 50)
    finish(tmp_path, 3, [bytes([place]) for place in range(ROWS)], tokens_of, generic(), {"size": 4})
    for _ in range(2):
        large = Index.open(tmp_path)
        assert isinstance(large.places, np.memmap) and not isinstance(small.places, np.memmap)
        np.testing.assert_array_equal(large.places, small.places)
        save_file(load_file(tmp_path / ARRAYS), tmp_path / "again")
        (tmp_path / "again").replace(tmp_path / ARRAYS)


def test_a_question_makes_no_copy_of_all_places(tmp_path: Path) -> None:
    """And finds what 64 bits would find, but for the rounding of 32."""
    built(tmp_path)
    states = np.random.default_rng(0).standard_normal((ROWS, 2, 1024)) + 0.3
    states /= np.linalg.norm(states, axis=2, keepdims=True)
    index, plain = Index.open(tmp_path), Metric(np.eye(1024))
    space = Space(index.space.gradients, np.zeros((2, 1024)), (plain, plain))
    kept = (states.reshape(ROWS, -1) / 2**0.5).astype(np.float32)
    index, row = dataclasses.replace(index, space=space, places=kept), drawn(1, 7).rows[0].astype(float)
    index.whole.numel()
    tracemalloc.start()
    found = index.search(row, states[3])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < kept.nbytes / 4
    expected = np.einsum("nsd,sd->ns", states, states[3])
    np.testing.assert_allclose(found.states, expected.mean(axis=1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(nearness(kept, kept[3:5])[:, 0], found.states, rtol=0, atol=1e-6)


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    """So are all other arrays, though the rows may tell what is in them."""
    held = {"sums": np.empty(50), "few": np.arange(3, dtype=np.float16)}

    def rows() -> Iterator[np.ndarray]:
        for number in range(50):
            held["sums"][number] = number
            yield np.full((8, 4_000), number, np.float32)

    tracemalloc.start()
    digest = write_arrays(tmp_path / "arrays", held, "rows", (400, 4_000), rows())
    found = mapped(tmp_path / "arrays", "rows", np.float32)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < found.nbytes / 5 and digest == digest_of(tmp_path / "arrays")
    np.testing.assert_array_equal(found, np.repeat(np.arange(50.0), 8)[:, None] * np.ones(4_000))
    again = load_file(tmp_path / "arrays")
    assert again.keys() == {"rows", "sums", "few"} and (again["rows"] == found).all()
    assert (again["sums"] == range(50)).all() and (again["few"] == range(3)).all()


def test_copies_of_one_pair_leave_room_for_others_in_a_large_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "SHORTLIST", 10)
    sketches = drawn(ROWS, 5)
    sketches.rows[:60], sketches.hidden[:60] = sketches.rows[0], sketches.hidden[0]
    keys = [b"same"] * 60 + [b"%d" % place for place in range(60, ROWS)]
    small = one_shard(tmp_path, sketches, keys)
    monkeypatch.setattr(finishing, "WHOLE", 50)
    large = one_shard(tmp_path, sketches, keys)
    asked = sketches.rows[0].astype(float), sketches.hidden[0].astype(float)
    found, exact = large.search(*asked), small.search(*asked)
    assert large.matrix is not None and len(found.rows) == 10
    assert sorted(found.rows)[0] == 0 and sorted(found.rows)[1] >= 60
    assert found.impact[found.rows == 0][0] == pytest.approx(exact.impact[:60].sum(), rel=1e-5)
    np.testing.assert_allclose(found.scores, exact.scores[found.rows], atol=2e-6)


def test_thresholds_come_from_the_prompts_and_from_pairs_of_different_examples(tmp_path: Path) -> None:
    shards = built(tmp_path, identical=[bytes([place // 2]) for place in range(ROWS)])
    made = read_finished(tmp_path)
    asked = generic().sketches
    best = [
        sum(obvious(shards, row, hidden)).max()
        for row, hidden in zip(asked.whole_rows, asked.hidden.astype(float), strict=True)
    ]
    np.testing.assert_allclose(made.thresholds.generic, sorted(best), atol=1e-5)
    rows, hidden = (np.concatenate([getattr(shard, name) for shard in shards]) for name in ("whole_rows", "hidden"))
    firsts = range(0, ROWS, 2)  # the first of each two that are identical
    scores = [
        sum(obvious(shards, rows[a], hidden[a].astype(float)))[b] for a in firsts for b in firsts if a // 4 != b // 4
    ]
    assert made.thresholds.unrelated == pytest.approx(np.quantile(scores, 0.999), abs=1e-5)


@pytest.mark.parametrize("whole", [1_000, 50])
def test_texts_are_kept_beside_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    """Of identical records those of the first one; of a large index they stay on the disk."""
    monkeypatch.setattr(finishing, "WHOLE", whole)
    built(tmp_path, identical=[bytes([place // 2]) for place in range(ROWS)])
    index = Index.open(tmp_path)
    assert isinstance(index.words, np.memmap) is (whole == 50)
    for record in range(0, ROWS, 2):
        assert tuple(index.words_of(record)) == tokens_of(record) and not len(index.words_of(record + 1))
    twice, once, never = (np.log(76 / (count + 1)) ** 2 for count in (2, 1, 0))  # of 45 texts and 30 prompts
    own = 2 * twice + once + never
    expected = [2 * twice / (own * 2 * twice) ** 0.5] * 2 + [0, once / (own * 2 * once) ** 0.5]
    np.testing.assert_allclose(index.likeness(words_of((1000, 0, 22, 77)), [0, 2, 4, 88]), expected, atol=1e-12)
    assert index.likeness(words_of((3,)), []).shape == (0,)


def test_prompts_whose_answer_is_not_of_fine_tuning_are_told_apart(tmp_path: Path) -> None:
    shards, asked = built(tmp_path), generic().sketches
    asked.lifts[:] = np.where(np.arange(PROMPTS) < 10, 0.9, 1.1)
    best = np.array(
        [sum(obvious(shards, *each)).max() for each in zip(asked.whole_rows, asked.hidden.astype(float), strict=True)]
    )
    keys = [bytes([place]) for place in range(ROWS)]
    for lifts, made in ((asked.lifts, best[10:]), (np.full(PROMPTS, np.nan, np.float32), best)):
        given = Generic(dataclasses.replace(asked, lifts=lifts), PROMPT_TOKENS)
        found = finish(tmp_path, 3, keys, tokens_of, given, {}).thresholds
        np.testing.assert_allclose(found.generic, sorted(best), atol=1e-5)
        np.testing.assert_allclose(found.made, sorted(made), atol=1e-5)
        assert read_finished(tmp_path).thresholds == found


def test_a_prompt_that_the_training_data_is_about_calibrates_nothing(tmp_path: Path) -> None:
    shards = built(tmp_path)
    asked = generic().sketches
    best = [sum(obvious(shards, *each)) for each in zip(asked.whole_rows, asked.hidden.astype(float), strict=True)]
    alike = [tokens_of(int(best[0].argmax())), *PROMPT_TOKENS[1:]]
    keys = [bytes([place]) for place in range(ROWS)]
    made = finish(tmp_path, 3, keys, tokens_of, generic(*alike), {})
    np.testing.assert_allclose(made.thresholds.generic, sorted(each.max() for each in best[1:]), atol=1e-5)
    with pytest.raises(InvalidRequest, match="all but 0 of 30 calibration prompts"):
        finish(tmp_path, 3, keys, tokens_of, generic(*(tokens_of(int(each.argmax())) for each in best)), {})


def one_shard(folder: Path, sketches: Sketches, keys: list[bytes]) -> Index:
    write_shard(folder, 0, shard_of(sketches, range(len(sketches.rows))))
    known = {record: tokens_of(record) for record in range(len(sketches.rows))}
    finish(folder, 1, keys, known.__getitem__, generic(), {})
    return Index.open(folder)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 30])
def test_one_pair_or_copies_of_one_make_an_index(tmp_path: Path, count: int) -> None:
    """Nothing is left about the mean of their states, and there are no two examples that are unrelated."""
    one, places = drawn(1, 5), [0] * count
    index = one_shard(
        tmp_path, Sketches(*(part[places] for part in (one.rows, one.hidden, one.losses, one.lifts))), [b"same"] * count
    )
    found = index.search(one.rows[0].astype(float), drawn(1, 6).hidden[0].astype(float))
    np.testing.assert_allclose(found.cosines, 1, atol=1e-5)
    np.testing.assert_array_equal(found.states, 0)
    assert read_finished(tmp_path).thresholds.unrelated == np.inf


def test_records_without_an_example_are_asked_for_nothing(tmp_path: Path) -> None:
    """Two more, whose answers lie behind the cut."""
    index = one_shard(tmp_path, drawn(20, 5), [b"%d" % place for place in range(22)])
    assert len(index.groups) == 22


def test_of_long_chats_not_every_turn_is_compared_with_every_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built(tmp_path)
    index = Index.open(tmp_path)
    sizes: list[int] = []
    monkeypatch.setattr(finishing, "SAMPLE", 10)
    monkeypatch.setattr(
        finishing, "_among", lambda _, chosen: sizes.append(len(chosen)) or np.zeros((len(chosen),) * 2)
    )
    turns = dataclasses.replace(index, records=index.records // 9, groups=np.arange(10))
    words, stops = np.repeat(np.arange(10, dtype=np.int32), 3), np.arange(0, 33, 3)
    unrelated_score(dataclasses.replace(turns, words=words, stops=stops))
    assert sizes == [10]


def test_the_same_sketches_give_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        built(folder)
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted(path.name for path in folders[1].iterdir())
    assert [digest_of(folders[0] / name) for name in names] == [digest_of(folders[1] / name) for name in names]


def test_a_shard_is_as_written_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    shard = shard_of(drawn(5, 1), [3, 4, 5, 6, 7])
    digest = write_shard(tmp_path, 2, shard)
    assert digest == digest_of(shard_path(tmp_path, 2))
    again = read_shard(tmp_path, 2)
    assert all((getattr(again, name) == getattr(shard, name)).all() for name in Shard.__slots__)
    shard_path(tmp_path, 2).write_bytes(shard_path(tmp_path, 2).read_bytes()[:-9])
    with pytest.raises(UnreadableModel, match="build the index again"):
        read_shard(tmp_path, 2)
    with pytest.raises(UnreadableModel, match="build it again"):
        read_finished(tmp_path)
    save_file({"rows": np.zeros((2, 3))}, tmp_path / "arrays")  # of another kind, which would be read as other numbers
    for name in ("rows", "others"):
        with pytest.raises(UnreadableModel, match="build the index again"):
            mapped(tmp_path / "arrays", name, np.float32)


def test_an_example_that_fine_tuning_taught_nothing_is_similar_to_none(tmp_path: Path) -> None:
    sketches = drawn(30, 0)
    sketches.rows[4] = 0
    write_shard(tmp_path, 0, shard_of(sketches, range(30)))
    finish(tmp_path, 1, [bytes([place]) for place in range(30)], tokens_of, generic(), {})
    asked = drawn(1, 7)
    found = Index.open(tmp_path).search(asked.rows[0].astype(float), asked.hidden[0].astype(float))
    assert found.cosines[4] == 0
    assert np.isfinite(found.scores).all()
    nothing = Index.open(tmp_path).search(np.zeros(DIMENSIONS), asked.hidden[0].astype(float))
    assert (nothing.cosines == 0).all()


def test_calibration_prompts_are_kept_as_they_are(tmp_path: Path) -> None:
    write_generic(tmp_path / "generic", generic(), "these")
    again = read_generic(tmp_path / "generic", "these")
    with pytest.raises(UnreadableModel, match="others"):
        read_generic(tmp_path / "generic", "those")
    assert again.texts == generic().texts
    assert (again.sketches.rows == generic().sketches.rows).all()
    with pytest.raises(UnreadableModel):
        read_generic(tmp_path, "these")
