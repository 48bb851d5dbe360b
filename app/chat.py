"""A chat is a completion of what the model's own chat template makes of its messages."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.complete import Request
from app.explain import Explainer
from app.models import load_model
from explainers.chat_template import Message
from explainers.decoding import CompletionConfig
from explainers.errors import InvalidRequest, MissingCapability
from explainers.language_model import LanguageModel
from explainers.types import Prompt, Text


@dataclass(frozen=True, slots=True)
class Chat:
    """Answer the last of these messages."""

    model: str
    messages: tuple[Message, ...]
    config: CompletionConfig


class Part(Protocol):
    """Of a message, which comes in one or several."""

    @property
    def type(self) -> str: ...

    @property
    def text(self) -> str | None: ...


def message_of(role: str, parts: Sequence[Part], pointer: str) -> Message:
    """The texts put together; raises MissingCapability for anything else, and InvalidRequest for a missing text."""
    for index, part in enumerate(parts):
        if part.type != "text":
            raise MissingCapability("chats are served with text only", f"{pointer}/{index}")
        if part.text is None:
            raise InvalidRequest("must be a string", f"{pointer}/{index}/text")
    return Message(role, "".join(part.text or "" for part in parts))


async def as_completion(explainer: Explainer, tenant: str, chat: Chat) -> Request:
    """Raises `UnknownModel`, MissingCapability for a model without a template, InvalidRequest when it refuses."""
    model = await load_model(explainer.database, explainer.runtime, tenant, chat.model)
    return Request(chat.model, await asyncio.to_thread(rendered, model, chat.messages), chat.config)


def rendered(model: LanguageModel, messages: tuple[Message, ...]) -> Prompt:
    """The chat as one text; a start token in it is left out where the model gets one anyway."""
    if model.chat is None:
        raise MissingCapability(
            "this model came without a chat template: POST /complete takes a plain prompt", "/model"
        )
    text = model.chat.render(messages)
    start = model.chat.tokens.get("bos_token", "") if model.start else ""
    return (Text(text.removeprefix(start)),)
