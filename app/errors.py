"""Error class -> status and code, and the one error body of all dialects.

A deterministic bad request is never 422 and never 5xx: real clients retry those many times. Bodies name fields and
limits; they never echo what the caller sent.
"""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, TypeAlias, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json, to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from app import refusals
from explainers import errors as explainer_errors
from storage import errors as storage_errors

log = logging.getLogger(__name__)

ANSWERS: dict[type[Exception], tuple[int, str]] = {
    refusals.Unauthorized: (401, "UNAUTHORIZED"),
    refusals.TooManyFailures: (429, "TOO_MANY_REQUESTS"),
    refusals.Forbidden: (403, "FORBIDDEN"),
    refusals.NotFound: (404, "NOT_FOUND"),
    refusals.UnknownModel: (404, "UNKNOWN_MODEL"),
    refusals.Conflict: (409, "CONFLICT"),
    refusals.IndexNotReady: (409, "INDEX_NOT_READY"),
    refusals.StillRunning: (409, "STILL_RUNNING"),
    refusals.MalformedBody: (400, "INVALID_REQUEST"),
    refusals.UnsupportedMediaType: (415, "UNSUPPORTED_MEDIA_TYPE"),
    refusals.BodyTooLarge: (413, "PAYLOAD_TOO_LARGE"),
    refusals.TooCostly: (413, "PAYLOAD_TOO_LARGE"),
    refusals.TooLarge: (413, "PAYLOAD_TOO_LARGE"),
    refusals.Limited: (429, "TOO_MANY_REQUESTS"),
    refusals.QueueFull: (503, "QUEUE_FULL"),
    refusals.ShuttingDown: (503, "SHUTTING_DOWN"),
    refusals.Unreachable: (503, "UNAVAILABLE"),
    refusals.ShortOfMemory: (503, "UNAVAILABLE"),
    refusals.WorkerLost: (500, "WORKER_LOST"),
    explainer_errors.InvalidRequest: (400, "INVALID_REQUEST"),
    explainer_errors.ContextLengthExceeded: (400, "CONTEXT_LENGTH_EXCEEDED"),
    explainer_errors.MissingCapability: (400, "MISSING_CAPABILITY"),
    explainer_errors.InconsistentAnswer: (400, "MISSING_CAPABILITY"),
    explainer_errors.UnreadableModel: (400, "MISSING_CAPABILITY"),
    explainer_errors.PredictorFailed: (500, "INTERNAL"),
    explainer_errors.OutOfMemory: (413, "PAYLOAD_TOO_LARGE"),
    storage_errors.DatabaseUnavailable: (503, "UNAVAILABLE"),
    storage_errors.OutOfSpace: (507, "OUT_OF_SPACE"),
    storage_errors.NotFound: (404, "NOT_FOUND"),
    storage_errors.AlreadyExists: (409, "CONFLICT"),
    storage_errors.InUse: (409, "CONFLICT"),
    storage_errors.InvalidValue: (400, "INVALID_REQUEST"),
}

HTTP_CODES = {
    400: "INVALID_REQUEST",
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "PAYLOAD_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    429: "TOO_MANY_REQUESTS",
    503: "QUEUE_FULL",
}
"""Codes of the framework's own errors, by status."""

FULL = (errno.ENOSPC, errno.EDQUOT)
NO_THREAD = "can't start new thread"
"""What Python says where there is no memory for one."""
FULL_DISK_SECONDS = 10
"""Somebody has to make room first."""

MOST_FIELDS = 20
"""Mistakes named in one answer."""

PLAIN_WORDS = {
    "missing": "is required",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "list_type": "must be an array",
    "finite_number": "must be a finite number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "bool_parsing": "must be true or false",
    "union_tag_invalid": "must be one of {expected_tags}",
    "union_tag_not_found": "must have a member 'type'",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be >= {ge}",
    "greater_than": "must be > {gt}",
    "less_than_equal": "must be <= {le}",
    "less_than": "must be < {lt}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    "string_pattern_mismatch": "must match {pattern}",
}
"""By kind of mistake: what is right, never what was sent."""


class FieldProblem(BaseModel):
    pointer: str = Field(
        description="The field as a JSON pointer (RFC 6901).", examples=["/prompt/0/controls/1/factor"]
    )
    message: str = Field(description="What is wrong with it.", examples=["must be >= 0"])


class LimitProblem(BaseModel):
    """The limit that a request has run into, and its numbers."""

    name: str = Field(
        description="`request_seconds` or `job_seconds` (predicted, of one), `requests` or `seconds` (of a minute), "
        "`seconds_per_minute` (one request alone is more), or `concurrency` (requests under way).",
        examples=["requests"],
    )
    asked: float = Field(description="What the request asks for.", examples=[1])
    allowed: float = Field(description="What the key may have.", examples=[60])
    used: float | None = Field(description="What it has had, in that window or now.", examples=[60])
    window_seconds: int | None = Field(description="Seconds that a rate is of; else null.", examples=[60])
    retry_after: int | None = Field(
        description="Seconds until there is likely to be room; null where there never is.", examples=[12]
    )


class Problem(BaseModel):
    """Every error of every route (RFC 9457), with the members that the vendors' clients read beside the standard's."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "type": "about:blank",
                "title": "Not Found",
                "status": 404,
                "detail": "no model 'tiny-lm' is served here",
                "error": "Not Found",
                "code": "UNKNOWN_MODEL",
                "message": "no model 'tiny-lm' is served here",
            }
        }
    )

    type: str = Field("about:blank", description="Always `about:blank`: the status says the kind.")
    title: str = Field(description="The reason phrase of the status.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="One sentence for a person.")
    error: str = Field(description="Same as `title`.")
    code: str = Field(description="Stable upper-case token for programs.")
    message: str = Field(description="Same as `detail`.")
    errors: list[FieldProblem] | None = Field(None, description="The fields at fault, where known.")
    job: str | None = Field(
        None,
        description="With `STILL_RUNNING`: the job that goes on; also the id of its result. With `INDEX_NOT_READY`: "
        "the job that builds the index.",
    )
    limit: LimitProblem | None = Field(None, description="With a 413 or 429 for the sake of a limit: its numbers.")


MEANINGS = {
    400: "The request cannot be served as it stands; the same request will fail again.",
    401: "The key is missing, unknown, revoked or expired.",
    403: "The key lacks the scope.",
    404: "No such thing, or it belongs to another tenant.",
    409: "Not ready within the deadline (the work goes on), or in conflict with what exists.",
    413: "The body is larger than the server reads, or the work larger than one request of this key may be.",
    415: "The body is not declared as application/json.",
    429: "The key has had what it may have for now, too much work waits, or (where no 503 is named) the database is "
    "away or the disk full; `Retry-After` says when to come back.",
    503: "Too much work waits, or the database is away; `Retry-After` says when to come back.",
    507: "The disk of the server is full; `Retry-After` says when to come back.",
}


Responses: TypeAlias = dict[int | str, dict[str, Any]]


def problems(*statuses: int) -> Responses:
    """The documentation of a route's error responses."""
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": MEANINGS[status], "content": content} for status in statuses}


class ProblemResponse(Response):
    media_type = "application/problem+json"

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        title = HTTPStatus(status).phrase
        body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        body |= {"error": title, "code": code, "message": detail}
        body |= {name: value for name, value in more.items() if value}
        super().__init__(to_json(body), status, dict(headers or {}))
        self.code, self.detail = code, detail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["problem"] = self.code  # for the log and the metrics
        await super().__call__(scope, receive, send)


def add_error_answers(app: FastAPI) -> None:
    """All of them coroutines: others would need a thread, which a machine without memory does not have."""
    for error in ANSWERS:
        app.add_exception_handler(error, answer_refusal)
    for kind in (OSError, MemoryError, RuntimeError):
        app.add_exception_handler(kind, answer_exhaustion)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http)


async def answer_refusal(_: Request, error: Exception) -> Response:
    return refusal_response(error)


async def answer_exhaustion(_: Request, error: Exception) -> Response:
    """Of the disk or the memory; other errors of the system are defects."""
    short = exhaustion(error)
    if short is error:
        raise error
    return refusal_response(short)


def exhaustion(error: BaseException) -> BaseException:
    """What a client is told of a full disk or too little memory, in place of the system's error; others as they are."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and str(error) == NO_THREAD):
        return refusals.ShortOfMemory("the server has too little memory at the moment")
    if isinstance(error, OSError) and error.errno in FULL:
        return storage_errors.OutOfSpace("the disk of the server is full")
    return error


def refusal_response(error: BaseException, *, status: int | None = None) -> ProblemResponse:
    """What a client is told of the error; with a dialect's own status for it, where it has one."""
    usual, code = next(ANSWERS[kind] for kind in type(error).__mro__ if kind in ANSWERS)
    message = str(error)
    pointer = getattr(error, "pointer", None)
    fields = [{"pointer": pointer, "message": message}] if pointer else []
    detail = f"{pointer} {message}" if pointer and message.startswith("must ") else message
    limit = asdict(error.limit) if isinstance(error, refusals.Limited) else None
    job = getattr(error, "job", None)
    headers = headers_for(error)
    return ProblemResponse(status or usual, code, detail, headers=headers, errors=fields, job=job, limit=limit)


def problem_body(error: BaseException) -> dict[str, Any]:
    """What a client would be told of this error, for one that is told later."""
    error = exhaustion(error)
    known = any(kind in ANSWERS for kind in type(error).__mro__)
    body: dict[str, Any] = from_json(bytes((refusal_response(error) if known else internal_error(error)).body))
    return body


def headers_for(error: BaseException) -> dict[str, str]:
    match error:
        case refusals.Unauthorized():
            return {"WWW-Authenticate": "Bearer"}
        case refusals.QueueFull() | refusals.TooManyFailures():
            return {"Retry-After": str(error.retry_after)}
        case refusals.LimitReached():
            return {"Retry-After": str(error.retry_after)} | rate_headers(error.limit)
        case storage_errors.DatabaseUnavailable() | refusals.ShortOfMemory():
            return {"Retry-After": "1"}
        case storage_errors.OutOfSpace():
            return {"Retry-After": str(FULL_DISK_SECONDS)}
        case _:
            return {}


def rate_headers(limit: refusals.Numbers) -> dict[str, str]:
    """Of a limit by the minute, as the IETF's draft on RateLimit header fields has them."""
    if limit.window_seconds is None or limit.used is None:
        return {}
    left = max(0, int(limit.allowed - limit.used))
    return {
        "RateLimit-Policy": f'"{limit.name}";q={int(limit.allowed)};w={limit.window_seconds}',
        "RateLimit": f'"{limit.name}";r={left};t={limit.retry_after}',
    }


async def answer_http(request: Request, error: Exception) -> Response:
    """The framework's own errors: unknown path, wrong method."""
    error = cast(HTTPException, error)
    headers = {"Allow": ", ".join(methods_of(request))} if error.status_code == 405 else error.headers
    code = HTTP_CODES.get(error.status_code, "INVALID_REQUEST" if error.status_code < 500 else "INTERNAL")
    detail = HTTPStatus(error.status_code).description or HTTPStatus(error.status_code).phrase
    return ProblemResponse(error.status_code, code, detail[0].lower() + detail[1:], headers=headers)


def methods_of(request: Request) -> list[str]:
    """All methods that a path takes: each route of it knows its own alone."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    path = next(route.path_format for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in routes if route.path_format == path for method in route.methods or ()})


async def answer_invalid(_: Request, error: Exception) -> Response:
    """A request that does not fit its schema."""
    error = cast(RequestValidationError, error)
    mistakes = error.errors()
    fields = [
        {"pointer": pointer(mistake["loc"], error.body), "message": plain_words(mistake)}
        for mistake in mistakes[:MOST_FIELDS]
    ]
    first, others = fields[0], len(mistakes) - 1
    detail = f"{first['pointer'] or 'the body'} {first['message']}" + (f" (and {others} more)" if others else "")
    return ProblemResponse(400, "INVALID_REQUEST", detail, errors=fields)


def plain_words(mistake: Mapping[str, Any]) -> str:
    """One mistake in words that never quote the input."""
    words = PLAIN_WORDS.get(mistake["type"])
    if words is not None:
        return words.format(**{name: whole(limit) for name, limit in mistake.get("ctx", {}).items()})
    if mistake["type"] == "value_error":  # our own validators, which quote nothing
        return str(mistake["msg"]).removeprefix("Value error, ")
    return "is not valid"


def whole(limit: Any) -> Any:
    """A limit as people write it: 0 for 0.0."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def pointer(location: Sequence[str | int], body: Any) -> str:
    """A JSON pointer from pydantic's location, which also names the chosen members of unions: those are left out."""
    source, *steps = location
    if source != "body":
        return "".join(f"/{escaped(step)}" for step in steps)
    kept, here = "", body
    for position, step in enumerate(steps):
        if step_exists(here, step):
            here = here[step]
        elif position < len(steps) - 1:
            continue
        kept += f"/{escaped(step)}"
    return kept


def step_exists(value: Any, step: str | int) -> bool:
    if isinstance(value, dict):
        return step in value
    return isinstance(value, list) and isinstance(step, int) and step < len(value)


def escaped(step: str | int) -> str:
    return str(step).replace("~", "~0").replace("/", "~1")


def internal_error(error: BaseException) -> ProblemResponse:
    """A defect of ours. The log gets its type and where it went through, never its text: that may hold a prompt.

    A refused statement is told: storage names its kind, tables and constraints, never values.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = "".join(f"\n  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames)
    what = f" ({error})" if type(error) is storage_errors.StorageError else ""
    log.error("unhandled %s%s%s", type(error).__name__, what, where)
    return ProblemResponse(500, "INTERNAL", "the server failed on this request; its log says where")
