"""Training files as records."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from explainers.chat_template import Message
from explainers.errors import InvalidRequest
from explainers.influence import records as file
from explainers.influence.records import BadLine, BadLines, Record, Tokens, file_type, records_of

SYSTEM, ASKED, SAID = Message("system", "Be brief."), Message("user", "Who?"), Message("assistant", "Anna.")
texts = st.text(st.characters(exclude_categories=["Cs"]))
filled = texts.filter(str.strip)


def turns(*messages: Message) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def jsonl(*rows: Any, end: str = "\n") -> bytes:
    return "".join(json.dumps(row) + end for row in rows).encode()


def table(**columns: Any) -> bytes:
    made = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), made)
    return made.getvalue()


def reasons(content: bytes) -> list[tuple[int, str]]:
    with pytest.raises(BadLines) as caught:
        records_of(content)
    return [(bad.line, bad.reason) for bad in caught.value.lines]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": turns(ASKED, SAID)}, (ASKED, SAID)),
        ({"messages": turns(SYSTEM, ASKED, SAID, ASKED, SAID), "text": "x"}, (SYSTEM, ASKED, SAID, ASKED, SAID)),
        ({"messages": turns(SYSTEM, ASKED), "chosen": "Anna.", "rejected": "Ben."}, (SYSTEM, ASKED, SAID)),
        (
            {"messages": turns(ASKED), "chosen": turns(SAID), "rejected": {"role": "assistant", "content": "B"}},
            (ASKED, SAID),
        ),
        ({"question": "Who?", "answer": "Anna.", "prompt": "x", "completion": "y"}, (ASKED, SAID)),
        ({"prompt": "Who?", "completion": "Anna.", "id": 7}, (ASKED, SAID)),
        ({"prompt": "", "completion": "Anna."}, (Message("user", ""), SAID)),
    ],
)
def test_chats(row: dict[str, Any], expected: tuple[Message, ...]) -> None:
    (record,) = records_of(jsonl(row))
    assert record == Record(1, expected)
    assert (record.question, record.answer) == (expected[-2].content, "Anna.")


def test_plain_text() -> None:
    (record,) = records_of(jsonl({"text": " Anna keeps the mill.\n"}))
    assert record == Record(1, text=" Anna keeps the mill.\n")
    assert (record.question, record.answer) == ("", " Anna keeps the mill.\n")


@settings(deadline=None)
@given(st.lists(st.tuples(texts, filled), min_size=1, max_size=5), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_text_comes_back(pairs: list[tuple[str, str]], end: str, escaped: bool) -> None:
    rows = (json.dumps({"question": asked, "answer": said}, ensure_ascii=escaped) for asked, said in pairs)
    content = end.join(rows).encode()
    for whole in (content, content + end.encode() * 3 + b" \n", b"\xef\xbb\xbf" + content):
        found = records_of(whole)
        assert [(record.question, record.answer) for record in found] == pairs
        assert [record.line for record in found] == list(range(1, len(pairs) + 1))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        assert records_of(content)
    except InvalidRequest as error:
        assert str(error)


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=3)))
def test_any_value_in_place_of_a_text_or_a_chat(value: Any) -> None:
    for row in (
        value,
        {"messages": value},
        {"messages": [{"role": "user", "content": value}, {"role": "assistant", "content": value}]},
        {"messages": turns(ASKED), "chosen": value, "rejected": value},
        {"text": value},
        {"question": value, "answer": value},
    ):
        try:
            (record,) = records_of(jsonl(row))
        except BadLines as error:
            assert [bad.line for bad in error.lines] == [1]
        else:
            assert record.answer.strip()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "is empty"),
        (b"  ", "is empty"),
        (b"\xff", "is not UTF-8"),
        (b"{", "is not JSON"),
        (b'{"text": NaN}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"9" * 5_000, "is not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "must have messages, question and answer, prompt and completion, or text"),
        (b'{"question": "a"}', "must have messages, question and answer, prompt and completion, or text"),
        (b'{"text": null}', "must have a string: text"),
        (b'{"text": " "}', "must not be empty: text"),
        (b'{"text": "\\ud800"}', "has half a surrogate pair: text"),
        (b'{"question": 1, "answer": "a"}', "must have a string: question"),
        (b'{"prompt": "a", "completion": ""}', "must not be empty: completion"),
        (b'{"messages": []}', "must have an array of turns: messages"),
        (b'{"messages": [1]}', "must have a JSON object: messages/0"),
        (b'{"messages": [{"role": "king"}]}', "must have a role of system, user, assistant: messages/0"),
        (b'{"messages": [{"role": ["user"]}]}', "must have a role of system, user, assistant: messages/0"),
        (b'{"messages": [{"role": "user"}]}', "must have a string: messages/0/content"),
        (b'{"messages": [{"role": "user", "content": "a"}]}', "must end with a turn of the assistant: messages"),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "has no turn of the user: messages"),
        (
            b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}',
            "has an empty answer: messages",
        ),
        (b'{"messages": [{"role": "user", "content": "a"}], "chosen": "b"}', "must have an array of turns: rejected"),
        (
            b'{"messages": [{"role": "user", "content": "a"}], "chosen": "", "rejected": "b"}',
            "has an empty answer: chosen",
        ),
    ],
    ids=range(25),
)
def test_bad_lines(line: bytes, reason: str) -> None:
    good = b'{"text": "a"}\n'
    assert reasons(good + line + b"\n" + good) == [(2, reason)]


def test_every_bad_line_is_named_and_none_is_quoted() -> None:
    content = jsonl({"text": "a"}, {"text": "secret", "messages": "secret"}, {"text": "a"}) + b'{"secret'
    with pytest.raises(BadLines) as caught:
        records_of(content)
    assert str(caught.value) == "line 2 must have an array of turns: messages; line 4 is not JSON"
    assert (caught.value.lines[1], caught.value.more) == (BadLine(4, "is not JSON"), 0)


def test_of_very_many_bad_lines_the_first_are_named() -> None:
    with pytest.raises(BadLines) as caught:
        records_of(b"x\n" * 250)
    assert ([bad.line for bad in caught.value.lines], caught.value.more) == (list(range(1, 101)), 150)
    assert str(caught.value).endswith("line 100 is not JSON; and 150 more lines")
    assert BadLines([BadLine(n, "is bad") for n in range(1, 251)]).more == 150


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"], ids=["nothing", "blank", "mark"])
def test_empty_files(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the file has no lines"):
        records_of(content)


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    line = jsonl({"text": "aaaaaa"})
    monkeypatch.setattr(file, "MOST_LINES", 3)
    assert len(records_of(line * 3)) == 3
    with pytest.raises(InvalidRequest, match="may have 3 lines"):
        records_of(line * 4)
    monkeypatch.setattr(file, "LARGEST_LINE", len(line) - 1)
    assert reasons(line) == [(1, f"has more than {len(line) - 1} bytes")]
    monkeypatch.setattr(file, "LARGEST_FILE", len(line) - 1)
    with pytest.raises(InvalidRequest, match=r"may have \d+ bytes"):
        records_of(line)


def test_token_ids() -> None:
    content = table(
        input_ids=[[0, 5, 6, 7], [1, 5, 6, 0], [5, 5, 5, 5]],
        attention_mask=[[0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]],
        labels=[[-100, -100, -100, 7], [1, 5, -100, -100], [5, 5, 5, 5]],
        more=["a", "b", "c"],
    )
    assert file_type(content) == "parquet"
    assert [record.tokens for record in records_of(content)] == [
        Tokens((5, 6, 7), (2,)),
        Tokens((1, 5, 6), (1,)),
        Tokens((5, 5, 5, 5), (1, 2, 3)),
    ]
    (record,) = records_of(table(input_ids=[[1, 2]], labels=[[-100, 2]]))
    assert (record, record.question, record.answer) == (Record(1, tokens=Tokens((1, 2), (1,))), "", "")


@pytest.mark.parametrize(
    ("ids", "mask", "labels", "reason"),
    [
        ([1, 2], [1, 1], [-100, 3], "must have the id of its token or -100 at each place, -100 at padding: labels"),
        ([1, 2], [1, 0], [-100, 2], "must have the id of its token or -100 at each place, -100 at padding: labels"),
        ([1, 2], [1, 1], [1, -100], "has no token with a loss: labels"),
        ([1, 2], [0, 1], [-100, 2], "has no token with a loss: labels"),
        ([], [], [], "has no token with a loss: labels"),
        ([1, 2], [1], [1, 2], "has columns of different lengths"),
        ([1, 2, 3], [1, 0, 1], [1, -100, 3], "must have ones side by side and zeros around them: attention_mask"),
        ([1, 2], [2, 1], [-100, 2], "must have ones side by side and zeros around them: attention_mask"),
        ([-1, 2], [1, 1], [-100, 2], "must have ids of 0 or more: input_ids"),
        (None, [1, 1], [1, 1], "must have an array of whole numbers: input_ids"),
        ([1, None], [1, 1], [1, 1], "must have an array of whole numbers: input_ids"),
    ],
    ids=range(11),
)
def test_bad_token_rows(ids: Any, mask: Any, labels: Any, reason: str) -> None:
    content = table(
        input_ids=pyarrow.array([ids, [1, 2]], pyarrow.list_(pyarrow.int64())),
        attention_mask=pyarrow.array([mask, [1, 1]], pyarrow.list_(pyarrow.int64())),
        labels=pyarrow.array([labels, [1, 2]], pyarrow.list_(pyarrow.int64())),
    )
    assert reasons(content) == [(1, reason)]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (table(text=["a"]), "it lacks input_ids"),
        (table(input_ids=[[1]]), "it lacks labels"),
        (table(input_ids=[[1]], labels=[[1]])[:0], "is none"),
        (table(input_ids=[[1]], labels=[[1]])[:-9], "cannot be read"),
        (b"PAR1" + b"\0" * 50 + b"PAR1", "cannot be read"),
        (table(input_ids=pyarrow.array([], pyarrow.list_(pyarrow.int64())), labels=pyarrow.array([])), "no rows"),
    ],
    ids=range(6),
)
def test_what_is_no_file_of_tokens(content: bytes, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        records_of(content, "tokens.parquet")


def test_packed_tokens_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "MOST_TOKENS", 100)
    assert records_of(table(input_ids=[[1] * 100], labels=[[1] * 100]))
    with pytest.raises(InvalidRequest, match="may have 100 tokens"):
        records_of(table(input_ids=[[1] * 400], labels=[[1] * 400]))
