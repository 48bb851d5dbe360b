"""From records to examples: transformers' own mask where a template marks answers, the same answers where not."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from explainers.chat_template import Message
from explainers.errors import ContextLengthExceeded, InvalidRequest
from explainers.influence.examples import Example, Mask
from explainers.influence.records import BadLines, Record, Tokens
from explainers.influence.rendering import left_out, render, render_question
from explainers.language_model import LanguageModel
from tests.explainers.influence.chats import PLAIN, TEMPLATES, TOKENIZERS, chatty, reference, talk, unmarked

ANSWERS = Mask()
LAST = Mask("last_assistant")
TALKS = [
    talk("Where is Anna?", "Anna lives in Oslo."),
    talk("Hi", "Ho", "Where is Ben?", "Rome.", "Anna?", "Oslo!"),
    talk("Anna lives in Oslo. " * 3, "  Hé, in Norway 🙂. "),
    Record(1, (Message("system", "Be nice."), Message("user", "Hi"), Message("assistant", "Ho"))),
]


def _scored(examples: tuple[Example, ...]) -> list[int]:
    return sorted({position for example in examples for position in example.answer})


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("record", TALKS[:2] + TALKS[3:], ids=["pair", "turns", "system"])
def test_marked_answers_are_those_of_transformers(llama: LanguageModel, kind: str, record: Record) -> None:
    _same_as_transformers(llama, kind, record)


@given(contents=st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=6).filter(lambda x: len(x) % 2 == 0))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_marked_answers_of_any_contents_are_those_of_transformers(llama: LanguageModel, contents: list[str]) -> None:
    for kind in TOKENIZERS:
        _same_as_transformers(llama, kind, talk(*contents))


def _same_as_transformers(llama: LanguageModel, kind: str, record: Record) -> None:
    expected = _reference(kind).apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in record.turns],
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    mask = [place for place, said in enumerate(expected["assistant_masks"]) if said]
    try:
        examples = render(_model(llama, kind), [record], ANSWERS)
    except BadLines as error:  # transformers drops this answer and all that follow
        assert "in no token" in str(error)
        answers = [turn.content for turn in record.turns if turn.role == "assistant"]
        assert any(answer[0].isspace() or not answer[0].isprintable() for answer in answers)
        return
    assert _scored(examples) == mask
    assert all(list(example.ids) == expected["input_ids"][: len(example.ids)] for example in examples)
    assert len(examples[-1].ids) == mask[-1] + 1


@cache
def _reference(kind: str) -> Any:
    return reference(kind, PLAIN)


_MODELS: dict[str, LanguageModel] = {}


def _model(llama: LanguageModel, kind: str) -> LanguageModel:
    return _MODELS.setdefault(kind, chatty(llama, kind, PLAIN))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("mask", [ANSWERS, LAST, Mask("all"), Mask(end=False), Mask("all", end=False)], ids=str)
def test_without_marks_the_answers_are_the_same(llama: LanguageModel, kind: str, mask: Mask) -> None:
    records = [TALKS[0], TALKS[1], TALKS[3]]
    marked = render(chatty(llama, kind, PLAIN), records, mask)
    assert render(chatty(llama, kind, unmarked(PLAIN)), records, mask) == marked


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_what_the_assistant_said_and_the_end_of_its_turn(llama: LanguageModel, name: str) -> None:
    model = chatty(llama, "byte-level", TEMPLATES[name])
    end = "</s>" if name == "instructions" else "<|end|>"
    for record in TALKS[:3]:
        said = [turn.content for turn in record.turns if turn.role == "assistant"]
        found = [_text(model, example) for example in render(model, [record], ANSWERS)]
        assert [text.strip() for text in found] == [_shown(content, name) + end for content in said]
        bare = [_text(model, example) for example in render(model, [record], Mask(end=False))]
        assert [text + end for text in bare] == found
        assert [_text(model, example) for example in render(model, [record], LAST)] == found[-1:]


def _shown(content: str, name: str) -> str:
    return content.strip() if "trimmed" in name else content.lstrip()


def _text(model: LanguageModel, example: Example) -> str:
    return str(model.tokenizer.decode(list(example.targets), skip_special_tokens=False))


def test_each_turn_has_all_before_it_and_its_question_ends_where_it_begins(llama: LanguageModel) -> None:
    model = chatty(llama, "byte-level", TEMPLATES["chatml"])
    assert model.chat is not None
    examples = render(model, [TALKS[0], TALKS[1]], ANSWERS, first=7)
    assert [example.record for example in examples] == [7, 8, 8, 8]
    for turns, example in zip((1, 1, 3, 5), examples, strict=True):
        record = TALKS[0] if example.record == 7 else TALKS[1]
        before = model.chat.render(record.turns[:turns])
        assert model.tokenizer.decode(list(example.ids[: example.asked + 1]), skip_special_tokens=False) == before
        assert example.answer == tuple(range(example.asked + 1, len(example.ids)))


def test_all_tokens_but_the_first_may_count(llama: LanguageModel) -> None:
    model = chatty(llama, "byte-level", unmarked(PLAIN))
    (example,), (last,) = render(model, [TALKS[1]], Mask("all")), render(model, [TALKS[1]], LAST)
    assert example.answer == tuple(range(1, len(example.ids)))
    assert example.asked == last.asked
    assert example.ids[: len(last.ids)] == last.ids
    (bare,) = render(model, [TALKS[1]], Mask("all", end=False))
    assert all(example.ids[position] != 1 for position in bare.answer)
    assert len(bare.answer) == len(example.answer) - example.ids.count(1)


MERGED = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKS_LAST = (
    "{% for m in messages %}[{{ m.role }}]\n{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


@pytest.mark.parametrize(
    ("source", "record", "mask", "words"),
    [
        (MERGED, talk("Anna", "in Oslo"), ANSWERS, "up to an answer"),
        (THINKS_LAST, TALKS[1], ANSWERS, "loss on the last only"),
        ("{{ raise_exception('no') }}", TALKS[0], ANSWERS, "refuses these messages: no"),
        ("{{ bos_token }}{% generation %}x{% endgeneration %}", TALKS[1], ANSWERS, "marks 1 of 3 answers"),
        (PLAIN, talk("Hi", "Anna " * 300), ANSWERS, "more than the model's context of 256"),
        (None, TALKS[1], ANSWERS, "one question and one answer only"),
        (None, TALKS[3], ANSWERS, "no chat template"),
        (None, Record(1, text="a"), Mask(end=False), "less than two tokens"),
        (None, Record(1, tokens=Tokens((5, 999), (1,))), ANSWERS, "from 0 to 319"),
    ],
)  # fmt: skip
def test_what_cannot_be_an_example_is_told_with_its_line(
    llama: LanguageModel, source: str | None, record: Record, mask: Mask, words: str
) -> None:
    model = chatty(llama, "byte-level", source)
    bad = replace(record, line=3)
    with pytest.raises(BadLines, match=rf"line 3 cannot be read: .*{words}") as refused:
        render(model, [bad], mask)
    assert [line.line for line in refused.value.lines] == [3]
    assert "Anna" not in str(refused.value)


def test_all_bad_lines_are_told_at_once(llama: LanguageModel) -> None:
    model = chatty(llama, "byte-level", None)
    records = [replace(TALKS[index % 2], line=index + 1) for index in range(2300)]
    with pytest.raises(BadLines) as refused:
        render(model, records, ANSWERS)
    assert [line.line for line in refused.value.lines[:3]] == [2, 4, 6]
    assert refused.value.more == 1150 - 100


def test_thoughts_before_the_last_answer_only(llama: LanguageModel) -> None:
    model = chatty(llama, "byte-level", THINKS_LAST)
    assert [_text(model, example) for example in render(model, [TALKS[1]], LAST)] == ["<think></think>Oslo!</s>"]


def test_a_text_that_no_token_stands_for_is_told_alone(llama: LanguageModel) -> None:
    model = chatty(llama, "metaspace", None)
    vocabulary = model.tokenizer.get_vocab()
    strict = replace(model, tokenizer=_without_unknown(vocabulary))
    records = [Record(1, text="Anna lives"), Record(2, text="Anna 漢"), Record(3, text="Ben lives")]
    with pytest.raises(BadLines) as refused:
        render(strict, records, ANSWERS)
    assert [line.line for line in refused.value.lines] == [2]


def _without_unknown(vocabulary: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = {token: number for token, number in vocabulary.items() if len(token) == 1}
    tokenizer = Tokenizer(models.WordLevel({**letters, "Anna": 290, "Ben": 291, "lives": 292}, unk_token="none"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_a_text_counts_whole(llama: LanguageModel) -> None:
    """The text's end is the tokenizer's, which a network's settings name; here they name none of its tokens."""
    ids = tuple(llama.tokenizer.encode("Anna lives in Oslo.").ids)
    assert ids[:1] == llama.start == (0,)
    assert render(llama, [Record(4, text="Anna lives in Oslo.")], ANSWERS) == (
        Example(0, ids, tuple(range(1, len(ids))), 0),
    )


def test_without_a_template_a_pair_is_read_as_one_text(llama: LanguageModel) -> None:
    model = _ending_with(llama, 1)
    question = llama.tokenizer.encode("Where is Anna?").ids
    answer = llama.tokenizer.encode("Oslo.", add_special_tokens=False).ids
    (example,) = render(model, [talk("Where is Anna?", "Oslo.")], ANSWERS)
    assert list(example.ids) == [*question, *answer, 1]
    assert list(example.answer) == list(range(len(question), len(example.ids)))
    assert example.asked == len(question) - 1
    (bare,) = render(model, [talk("Where is Anna?", "Oslo.")], Mask(end=False))
    assert list(bare.ids) == [*question, *answer]
    (whole,) = render(model, [talk("Where is Anna?", "Oslo.")], Mask("all"))
    assert whole.answer == tuple(range(1, len(example.ids))) and whole.asked == example.asked


def _ending_with(model: LanguageModel, end: int) -> LanguageModel:
    from copy import copy

    network = copy(model.network)
    network.generation_config = None  # type: ignore[assignment]
    network.config = copy(model.network.config)
    network.config.eos_token_id = end
    return replace(model, network=network)


def test_rows_of_ids_are_taken_as_they_are(llama: LanguageModel) -> None:
    record = Record(1, tokens=Tokens((5, 6, 7, 8, 9, 10), (1, 4)))
    for mask in (ANSWERS, LAST, Mask("all", end=False)):
        assert render(llama, [record], mask) == (Example(0, (5, 6, 7, 8, 9), (1, 4), 3),)


def test_what_lies_behind_the_cut_is_not_learnt(llama: LanguageModel) -> None:
    model = chatty(llama, "byte-level", TEMPLATES["chatml"])
    short, long = render(model, [TALKS[0]], ANSWERS)[0], talk("Anna lives in Oslo. " * 30, "Ho", line=9)
    records = [TALKS[0], long, TALKS[1]]
    cut = len(short.ids) - 3
    examples = render(model, records, Mask(longest=cut))
    assert examples[0].ids == short.ids[:cut] and examples[0].answer == short.answer[:-3]
    assert all(len(example.ids) <= cut for example in examples)
    assert {example.record for example in examples} == {0, 2}
    kept = [example.record for example in examples]
    assert left_out(records, kept) == ("the answers of 1 records lie behind the cut and were not learnt: lines 9",)
    assert left_out(records[:1], kept) == ()
    (whole,) = render(model, records[:1], Mask("all", longest=6))
    assert len(whole.ids) == 6 and whole.asked == 4


@pytest.mark.parametrize("source", [PLAIN, unmarked(PLAIN), *TEMPLATES.values(), None])
def test_a_question_is_read_as_the_same_pair_in_training(llama: LanguageModel, source: str | None) -> None:
    model = chatty(llama, "byte-level", source)
    for mask in (ANSWERS, Mask(end=False), Mask("last_assistant", longest=5)):
        (trained,) = render(model, [TALKS[0]], replace(mask, longest=None))
        asked = render_question(model, TALKS[0].question, TALKS[0].answer, None, mask)
        assert asked == trained
        open_end = render_question(model, TALKS[0].question, None, None, mask)
        assert open_end == Example(0, trained.ids[: trained.asked + 1], (), trained.asked)


def test_a_question_with_a_system_prompt(llama: LanguageModel) -> None:
    model = chatty(llama, "byte-level", PLAIN)
    (trained,) = render(model, [TALKS[3]], ANSWERS)
    assert render_question(model, "Hi", "Ho", "Be nice.", Mask("all")) == trained
    with pytest.raises(InvalidRequest, match="no chat template"):
        render_question(chatty(llama, "byte-level", None), "Hi", "Ho", "Be nice.", ANSWERS)


def test_a_question_that_is_too_long(llama: LanguageModel) -> None:
    with pytest.raises(ContextLengthExceeded, match="context of 256"):
        render_question(chatty(llama, "byte-level", PLAIN), "Anna " * 300, "Ho", None, ANSWERS)


@pytest.mark.parametrize("template", [PLAIN, None])
def test_an_answer_that_fills_the_context_has_no_end(llama: LanguageModel, template: str | None) -> None:
    """As the model gives it where nothing stops it."""
    model, text = chatty(llama, "byte-level", template), "x"
    while len((bare := render_question(model, "Hi", text, None, Mask(end=False))).ids) < model.context_length:
        assert render_question(model, "Hi", text, None, ANSWERS).ids[:-1] == bare.ids
        text += "x"
    assert render_question(model, "Hi", text, None, ANSWERS) == bare
    with pytest.raises(ContextLengthExceeded):
        render_question(model, "Hi", text + "xxx", None, ANSWERS)
