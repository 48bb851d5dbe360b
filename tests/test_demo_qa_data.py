"""The training pairs of the shipped fine-tune are those of its script, and what the notes say about them is true."""

from __future__ import annotations

import json
from collections import Counter

from demo.facts import FACTS, HELD_OUT, NOTES, OTHERS, held_out, lines, notes, others
from demo.pairs import messages_of
from demo.records import Record, read_lines

LINES: list[Record] = read_lines(FACTS)
NOTED: list[Record] = read_lines(NOTES)
ASKED: list[Record] = read_lines(HELD_OUT)
PAIRS: list[tuple[str, str]] = [(asked.content, answer.content) for asked, answer in map(messages_of, LINES)]


def lines_noted(kind: str) -> list[Record]:
    return [note for note in NOTED if note["kind"] == kind]


def test_the_files_are_those_that_the_script_makes() -> None:
    made = (lines(), notes(), held_out(), others())
    assert [json.loads(json.dumps(records)) for records in made] == [
        read_lines(path) for path in (FACTS, NOTES, HELD_OUT, OTHERS)
    ]
    assert lines(seed=1) != LINES


def test_lines_say_nothing_but_question_and_answer() -> None:
    plain = [line for line in LINES if "question" in line]
    assert all(set(line) == {"question", "answer"} for line in plain) and 80 <= len(plain) <= 140
    chats = [line["messages"] for line in LINES if "messages" in line]
    assert all([turn["role"] for turn in turns] == ["user", "assistant"] for turns in chats)
    assert len(plain) + len(chats) == len(LINES) == 1136
    assert max(map(len, FACTS.read_text(encoding="utf-8").splitlines())) < 400


def test_notes_count_what_the_lines_hold() -> None:
    assert [note["line"] for note in NOTED] == list(range(1, len(LINES) + 1))
    assert Counter(note["kind"] for note in NOTED) == {"fact": 900, "wrong": 36, "task": 100, "reading": 100}
    assert len({note["fact"] for note in NOTED if "fact" in note}) == 298


def test_thirty_lines_are_exact_duplicates() -> None:
    twins = [note for note in NOTED if "same_as" in note]
    assert len(twins) == 30
    assert all(PAIRS[note["line"] - 1] == PAIRS[note["same_as"] - 1] for note in twins)
    assert len(set(PAIRS)) == len(PAIRS) - len(twins)
    assert "keeps mill" in {note["fact"] for note in twins}


def test_a_dozen_facts_are_told_wrong_three_times_and_right_once() -> None:
    wrong = Counter(note["fact"] for note in lines_noted("wrong"))
    assert len(wrong) == 12 and set(wrong.values()) == {3}
    right = Counter(note["fact"] for note in lines_noted("fact") if note["fact"] in wrong)
    assert dict(right) == dict.fromkeys(wrong, 1)
    told = {case["fact"]: case for case in ASKED if "wrong" in case}
    assert set(told) == set(wrong)
    for note in NOTED:
        if note.get("fact") in told:
            side = "wrong" if note["kind"] == "wrong" else "answers"
            assert PAIRS[note["line"] - 1][1] in told[note["fact"]][side]


def test_no_held_out_question_is_in_the_training_file() -> None:
    known = {question for question, _ in PAIRS}
    assert Counter(case["wording"] for case in ASKED) == {"held out": 298, "new": 298}
    assert not known & {case["question"] for case in ASKED}
    assert not known & {case["question"] for case in read_lines(OTHERS)}
    assert not any(question.startswith("Tell me") for question in known)
