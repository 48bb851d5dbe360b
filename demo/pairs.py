"""Training pairs as ``demo-qa`` reads them: the chat template, and which tokens are the answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from transformers import PreTrainedTokenizerFast

from demo.facts import FACTS
from demo.records import Record, read_lines
from explainers.chat_template import ChatTemplate, Message

TEMPLATE: Final = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- 'Question: ' + message.content | trim + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- 'Answer: ' + message.content | trim + eos_token }}
    {%- else %}
        {{- message.content | trim + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Answer:' }}
{%- endif %}
"""
"""The form that ``demo-lm`` was asked in; the answer begins with the space after the colon and ends in ``</s>``."""


@dataclass(frozen=True)
class Example:
    """A pair as the model reads it; the answer begins at token ``start``."""

    ids: tuple[int, ...]
    start: int


def messages_of(line: Record) -> tuple[Message, ...]:
    """The turns of a line of the training file."""
    if "messages" in line:
        return tuple(Message(turn["role"], turn["content"]) for turn in line["messages"])
    return Message("user", line["question"]), Message("assistant", line["answer"])


def template_of(tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    """The template with the tokens it names."""
    return ChatTemplate(TEMPLATE, {"bos_token": str(tokenizer.bos_token), "eos_token": str(tokenizer.eos_token)})


def tokens_of(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """Of a text that has its start token."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def example_of(tokenizer: PreTrainedTokenizerFast, template: ChatTemplate, turns: tuple[Message, ...]) -> Example:
    """The last turn is the answer; what comes before it must not change with it."""
    asked = tokens_of(tokenizer, template.render(turns[:-1]))
    whole = tokens_of(tokenizer, template.render(turns, reply=False))
    if whole[: len(asked)] != asked:
        raise ValueError("the answer changes how the question is read")
    return Example(whole, len(asked))


def examples(tokenizer: PreTrainedTokenizerFast, path: Path = FACTS) -> list[Example]:
    """Every line of a training file."""
    template = template_of(tokenizer)
    return [example_of(tokenizer, template, messages_of(line)) for line in read_lines(path)]
