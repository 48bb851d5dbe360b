"""Chats: the model's own template, and scores for what people said, never for what the template adds."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from explainers.chat_template import ChatTemplate, Message
from explainers.errors import InvalidRequest, MissingCapability
from explainers.language_model import LanguageModel
from explainers.loaders import load_causal_lm
from explainers.methods.atman import attribute
from explainers.types import AtmanConfig, Prompt, Span, Text, Turn
from tests import tiny_models

PLAIN = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = ChatTemplate(PLAIN, TOKENS)
PROMPT: Prompt = (
    Text("Anna lives in Oslo.", turn=Turn(0, "system")),
    Text("Ben lives in Rome. ", turn=Turn(1, "user", "notes")),
    Text("Where is Anna?", turn=Turn(1, "user")),
)


@pytest.fixture(scope="module")
def chatty(llama: LanguageModel) -> LanguageModel:
    return replace(llama, chat=CHAT)


def test_rendering() -> None:
    messages = [Message("user", "Hi"), Message("assistant", "Ho")]
    assert CHAT.render(messages, reply=False) == "<s>[user]\nHi</s>\n[assistant]\nHo</s>\n"
    assert CHAT.render(messages[:1]) == "<s>[user]\nHi</s>\n[assistant]\n"


@pytest.mark.parametrize("start", [True, False])
def test_parts_and_what_stands_around_them_make_the_whole(start: bool) -> None:
    found = CHAT.around(PROMPT, start)
    joined = "".join(text.before + text.data + text.after for text in found if isinstance(text, Text))
    whole = CHAT.render(
        [Message("system", "Anna lives in Oslo."), Message("user", "Ben lives in Rome. Where is Anna?")]
    )
    assert joined == (whole.removeprefix("<s>") if start else whole)
    assert [text.data for text in found if isinstance(text, Text)] == [text.data for text in PROMPT]  # type: ignore[union-attr]
    assert found[2].before == ""  # type: ignore[union-attr]


@pytest.mark.parametrize("granularity", [None, "token", "word", "sentence", "paragraph"])
def test_what_the_template_adds_is_read_and_in_no_feature(chatty: LanguageModel, granularity: Any) -> None:
    assert chatty.chat is not None
    prompt = chatty.chat.around(PROMPT, start=bool(chatty.start))
    found = attribute(chatty, prompt, " Oslo", AtmanConfig(granularity=granularity))
    texts = [item.data for item in PROMPT if isinstance(item, Text)]
    for feature in found.features:
        assert isinstance(feature.place, Span)
        assert texts[feature.item][feature.place.start : feature.place.stop] == feature.name
    read = chatty.encode(prompt, " Oslo")
    whole = chatty.chat.render([Message("system", texts[0]), Message("user", texts[1] + texts[2])])
    assert chatty.tokenizer.decode(list(read.start + read.prompt), skip_special_tokens=False) == whole
    bare = attribute(chatty, PROMPT, " Oslo", AtmanConfig(granularity=granularity))
    assert bare.features == found.features or granularity is None
    assert len(found.features) == len({(feature.item, feature.place) for feature in found.features})


def test_removing_all_parts_leaves_the_template(chatty: LanguageModel) -> None:
    """Scores are those of the texts' own columns: their ids can change freely once these columns are gone."""
    assert chatty.chat is not None
    prompt = chatty.chat.around(PROMPT, start=True)
    sequence = chatty.encode(prompt, " Oslo")
    around = [token.body is None for token in sequence.tokens]
    assert any(around) and not all(around)
    assert sum(around) == sum(
        len(chatty.tokenizer.encode(text, add_special_tokens=False).ids)
        for item in prompt
        if isinstance(item, Text)
        for text in (item.before, item.after)
    )
    found = attribute(chatty, prompt, " Oslo", AtmanConfig(0.0, granularity="token"))
    assert found.values.shape[1] == around.count(False)
    assert np.isfinite(found.values).all()


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", InvalidRequest, "roles must alternate"),
        ("{{ raise_exception(messages[0].content) }}", InvalidRequest, "refuses these messages$"),
        ("{{ messages[0].__class__.__mro__ }}", MissingCapability, "not allowed"),
        ("{% for x in range(10**7) %}xxxx{% endfor %}", InvalidRequest, "cannot render"),
        ("{{ messages[7].content.upper() }}", InvalidRequest, "cannot render"),
        ("{% if %}", MissingCapability, "cannot be read"),
        ("{{ messages[0].content }}", InvalidRequest, "leaves a message out"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", InvalidRequest, "changes the contents"),
        ("{{ 'x' * 10000000 }}", MissingCapability, "not allowed"),
    ],
)
def test_templates_that_do_not_serve(source: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as refused:
        ChatTemplate(source, TOKENS).around(PROMPT, start=True)
    assert "Anna" not in str(refused.value)


@pytest.mark.parametrize("form", ["jinja", "config", "named"])
def test_templates_are_read_from_the_folder(tmp_path: Path, form: str) -> None:
    import json

    folder = tiny_models.save(tmp_path / "chatty")
    plain = load_causal_lm(folder)
    assert plain.chat is None
    settings = folder / "tokenizer_config.json"
    config = json.loads(settings.read_text())
    if form == "jinja":
        (folder / "chat_template.jinja").write_text(PLAIN)
    else:
        named = [{"name": "tools", "template": "x"}, {"name": "default", "template": PLAIN}]
        settings.write_text(json.dumps({**config, "chat_template": PLAIN if form == "config" else named}))
    found = load_causal_lm(folder)
    assert found.chat is not None
    assert found.chat.render([Message("user", "Hi")]) == "<s>[user]\nHi</s>\n[assistant]\n"
    assert found.digest != plain.digest


MARKED = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ message.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
TALK = [Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "Hi"), Message("assistant", "Hé 🙂")]


def test_marks_say_where_answers_stand_and_change_no_text() -> None:
    template = ChatTemplate(MARKED, TOKENS)
    assert template.marks_answers and not CHAT.marks_answers
    text, spans = template.render_marked(TALK)
    assert [text[span.start : span.stop] for span in spans] == ["Ho</s>", "Hé 🙂</s>"]
    assert text == template.render(TALK, reply=False) == CHAT.render(TALK, reply=False)
    assert template.render(TALK[:1]) == CHAT.render(TALK[:1])
    assert CHAT.render_marked(TALK) == (CHAT.render(TALK, reply=False), ())


def test_marks_that_cannot_be_placed_are_refused() -> None:
    """What a macro makes is not yet part of the text when the marks inside it are met."""
    source = (
        "{% macro said(m) %}a: {% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}{{ said(messages[1]) }}"
    )
    with pytest.raises(MissingCapability, match="marks answers where"):
        ChatTemplate(source, TOKENS).render_marked(TALK)


def test_templates_see_what_transformers_gives_them() -> None:
    source = "{% if tools is not none %}tools{% endif %}{% if documents is none %}bare{% endif %}"
    assert ChatTemplate(source, TOKENS).render(TALK) == "bare"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**12 }}",
        "{{ 10**6 * 'a' * 10**6 }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ '%099999999999d' % 1 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ range(10**9)|list }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__.__base__.__subclasses__()[0] }}",
        "{{ cycler.__init__.__globals__.os.system('touch /tmp/canary') }}",
    ],
    ids=["text", "twice", "power", "width", "recursion", "range", "deep", "class", "base", "globals"],
)
def test_templates_that_mean_harm_are_refused(source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidRequest):
        ChatTemplate(source, {}).render([Message("user", "hello")])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB
