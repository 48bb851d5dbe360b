"""The form of the prompt page <-> the body of POST /explain, which is what is asked, shown and copied."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile

from app.dialects.aleph_alpha.explain_schemas import ExplainRequest
from app.questions import Question
from app.records import digest_of
from explainers.errors import InvalidRequest

Body = dict[str, Any]

SPEAKER = re.compile(r"^(system|user|assistant):[ \t]?", re.MULTILINE)
TOKENS = 16
GRANULARITIES = ("", "token", "word", "sentence", "paragraph")
"""Empty: the one that gives nearest to thirty pieces."""


@dataclass(frozen=True, slots=True)
class Form:
    """What stands in the form; texts as they were typed."""

    model: str = ""
    chat: bool = False
    prompt: str = ""
    target: str = ""
    tokens: str = str(TOKENS)
    method: str = "atman"
    factor: str = "0.1"
    granularity: str = ""
    each: bool = True
    evaluate: bool = False
    uncertainty: bool = False
    other_method: str = ""
    other_factor: str = ""
    pictured: str = ""
    """The stored explanation whose image is asked about again."""

    @property
    def compares(self) -> bool:
        return bool(self.other_method or self.other_factor)


def form_from(fields: FormData) -> Form:
    """The fields that are texts; line ends as people type them, which browsers send as CR LF."""
    texts = {name: value.replace("\r\n", "\n") for name, value in fields.items() if isinstance(value, str)}
    checked: dict[str, Any] = {name: name in texts for name in ("each", "evaluate", "uncertainty")}
    names = ("model", "prompt", "target", "tokens", "method", "factor", "granularity", "other_method", "other_factor")
    given: dict[str, Any] = {name: texts[name] for name in (*names, "pictured") if name in texts}
    return Form(**given, **checked, chat=texts.get("kind") == "chat")


async def image_from(fields: FormData) -> bytes | None:
    """The image that was chosen; browsers send an empty file where none was."""
    file = fields.get("image")
    return (await file.read() or None) if isinstance(file, UploadFile) else None


def bodies_of(form: Form, image: bytes | None) -> list[Body]:
    """What is asked, and what that is compared with where it is."""
    if not form.compares:
        return [body_of(form, image)]
    other = replace(form, method=form.other_method or form.method, factor=form.other_factor or form.factor)
    return [body_of(form, image), body_of(other, image)]


def body_of(form: Form, image: bytes | None) -> Body:
    """As short as it can be: what has its default is not named."""
    body: Body = {"model": form.model} | said(form, image)
    body |= {"target": form.target} if form.target else {"generate": {"maximum_tokens": whole(form.tokens)}}
    body |= {} if form.method == "atman" else {"method": form.method}
    factor = number(form.factor)
    body |= {} if factor == 0.1 or form.method == "ablation" else {"control_factor": factor}
    body |= {"prompt_granularity": {"type": form.granularity}} if form.granularity else {}
    body |= {"target_granularity": "token"} if form.each else {}
    return body | {name: True for name in ("evaluate", "uncertainty") if getattr(form, name)}


def said(form: Form, image: bytes | None) -> Body:
    if form.chat and image is not None:
        words = "a chat takes no image: choose the form Text, or ask on a new page without the image"
        raise InvalidRequest(words, "/image")
    if form.chat:
        return {"messages": messages_of(form.prompt)}
    if image is None:
        return {"prompt": form.prompt}
    text = [{"type": "text", "data": form.prompt}] if form.prompt else []
    return {"prompt": [{"type": "image", "data": b64encode(image).decode()}, *text]}


def messages_of(text: str) -> list[Body]:
    """Messages each begin with `user:`, `assistant:` or `system:`; pasted JSON is taken as it is."""
    if text.lstrip().startswith("["):
        try:
            messages: list[Body] = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidRequest("begins like JSON, and is none", "/messages") from None
        return messages
    before, *parts = SPEAKER.split(text)
    if before.strip() or not parts:
        raise InvalidRequest("must begin with `user:`, `assistant:` or `system:`", "/messages")
    contents = [part[:-1] if part.endswith("\n") else part for part in parts[1::2]]
    return [{"role": role, "content": content} for role, content in zip(parts[::2], contents, strict=True)]


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidRequest("must be a number", "/control_factor") from None


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InvalidRequest("must be a whole number", "/generate/maximum_tokens") from None


def question_of(body: Body) -> Question:
    """Raises what POST /explain would."""
    try:
        return ExplainRequest.model_validate(body).to_domain()
    except ValidationError as error:
        mistakes = [{**mistake, "loc": ("body", *mistake["loc"])} for mistake in error.errors()]
        raise RequestValidationError(mistakes, body=body) from None


# -- back --------------------------------------------------------------------------------------------------------------

SETTINGS = {
    "control_factor": "control_factor",
    "control_log_additive": "log_additive",
    "contextual_control_threshold": "threshold",
    "target_granularity": "target_granularity",
    "control_token_overlap": "overlap",
    "postprocessing": "postprocessing",
    "normalize": "normalize",
    "exact_scores": "exact",
    "samples": "samples",
}
"""Members of the body, and the names of the same in a stored question."""


def body_from(model: str, record: Mapping[str, Any]) -> Body | None:
    """The body that asks a stored question once more; None for one that this cannot be said of with certainty."""
    config = record["config"]
    body: Body = {"model": model} | said_from(record["prompt"])
    if record.get("generate"):
        body["generate"] = {"maximum_tokens": record["generate"]["maximum_tokens"]}
    else:
        body["target"] = record["target"]
    body |= {} if record["method"] == "atman" else {"method": record["method"]}
    for name, kept in SETTINGS.items():
        skipped = kept not in config or (name == "control_factor" and record["method"] == "ablation")
        if not skipped and config[kept] != ExplainRequest.model_fields[name].default:
            body[name] = config[kept]
    if config["granularity"] is not None:
        delimiter = {} if config["delimiter"] is None else {"delimiter": config["delimiter"]}
        body["prompt_granularity"] = {"type": config["granularity"]} | delimiter
    body |= {name: True for name in ("evaluate", "uncertainty") if record.get(name)}
    return body if asks(body, record) else None


def asks(body: Body, record: Mapping[str, Any]) -> bool:
    """Whether the body means exactly this question."""
    try:
        return digest_of(question_of(body).record) == digest_of(record)
    except (InvalidRequest, RequestValidationError):
        return False


def said_from(items: list[Mapping[str, Any]]) -> Body:
    if any("turn" in item for item in items):
        return {"messages": messages_from(items)}
    if [item["type"] for item in items] == ["text"] and not items[0]["controls"]:
        return {"prompt": items[0]["data"]}
    return {"prompt": [item_from(item) for item in items]}


def messages_from(items: list[Mapping[str, Any]]) -> list[Body]:
    """Messages of one unnamed part as texts, others with their parts."""
    messages: list[Body] = []
    for item in items:
        turn = item["turn"]
        part = {"type": "text", "text": item["data"]} | ({} if turn["name"] is None else {"name": turn["name"]})
        if turn["message"] == len(messages):
            messages.append({"role": turn["role"], "content": []})
        messages[-1]["content"].append(part)
    plain = [message["content"] for message in messages]
    for message, parts in zip(messages, plain, strict=True):
        if len(parts) == 1 and "name" not in parts[0]:
            message["content"] = parts[0]["text"]
    return messages


def item_from(item: Mapping[str, Any]) -> Body:
    found: Body = {"type": item["type"], "data": item["data"]}
    if item["controls"]:
        found["controls"] = [control_from(item["type"], control) for control in item["controls"]]
    return found


def control_from(kind: str, control: Mapping[str, Any]) -> Body:
    place, overlap = control["place"], control["overlap"]
    where: Body = {"index": place}
    if kind == "text":
        where = {"start": place[0], "length": place[1] - place[0]}
    elif kind == "image":
        where = {"rect": dict(zip(("left", "top", "width", "height"), place, strict=True))}
    return where | {"factor": control["factor"]} | ({} if overlap is None else {"token_overlap": overlap})


def form_of(body: Body, id: str) -> Form:
    """The form filled in as it was; what it cannot hold is missing from it."""
    parts = body.get("prompt", "")
    texts = [parts] if isinstance(parts, str) else [part["data"] for part in parts if part["type"] == "text"]
    chat = "messages" in body
    return Form(
        model=body["model"],
        chat=chat,
        prompt=spoken(body["messages"]) if chat else "".join(texts),
        target=body.get("target", ""),
        tokens=str(body.get("generate", {}).get("maximum_tokens") or TOKENS),
        method=body.get("method", "atman"),
        factor=figure(body.get("control_factor", 0.1)),
        granularity=body.get("prompt_granularity", {}).get("type", ""),
        each=body.get("target_granularity") == "token",
        evaluate="evaluate" in body,
        uncertainty="uncertainty" in body,
        pictured=id if not isinstance(parts, str) and any(part["type"] == "image" for part in parts) else "",
    )


def compared(form: Form, other: Body) -> Form:
    """The form of two bodies: of the second what it says of the method and the factor."""
    method, factor = other.get("method", "atman"), figure(other.get("control_factor", 0.1))
    same = method == "ablation" or factor == form.factor
    return replace(form, other_method="" if method == form.method else method, other_factor="" if same else factor)


def figure(value: float) -> str:
    """With every digit, and no more."""
    return str(value).removesuffix(".0")


def spoken(messages: list[Body]) -> str:
    """A chat as people type it, where that is read back as the same; else as JSON."""
    plain = all(isinstance(message["content"], str) for message in messages)
    text = "\n".join(f"{message['role']}: {message['content']}" for message in messages) if plain else ""
    if plain and messages_of(text) == messages:
        return text
    return json.dumps(messages, ensure_ascii=False, indent=2)
