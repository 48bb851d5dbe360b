"""What the server refuses, as its use cases say it.

Refusal
├── Unauthorized           no key, or one that is unknown, revoked or expired
├── TooManyFailures        too many logins with a wrong password
├── Forbidden              the key lacks the scope
├── NotFound               nothing of the caller's tenant has this id
│   └── UnknownModel       no model of that name
├── Conflict               the thing exists already, or is not in the state asked for
├── MalformedBody          not JSON
├── UnsupportedMediaType   not declared as JSON
├── BodyTooLarge           more bytes than the server reads
├── TooCostly              more predictions than one answer may take
├── Limited                by a limit of the key
│   ├── TooLarge           more of the device than one request may take
│   └── LimitReached       what it may have for now has been used
├── IndexNotReady          the model's influence index is missing, being built, or another model's
├── StillRunning           not ready within the deadline; the work goes on as a job
├── ShortOfMemory          the process has too little memory at the moment
├── WorkerLost             told of a job, never of a request: all who worked on it have ended before it did
└── QueueFull              too much work waits already
    ├── ShuttingDown       the server takes no new work
    └── Unreachable        the model's replicas on the cluster cannot be had at the moment
        └── StoreAway      nor can the store of files

Messages name fields, counts and limits, never the text of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass


class Refusal(Exception):
    """The root of this room's errors; its text is one sentence for a person."""


class Unauthorized(Refusal):
    pass


class TooManyFailures(Refusal):
    """`retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many logins have failed: try again in {retry_after} s")
        self.retry_after = retry_after


class Forbidden(Refusal):
    pass


class NotFound(Refusal):
    pass


class UnknownModel(NotFound):
    def __init__(self, name: str) -> None:
        shown = f"model '{name}'" if name.isprintable() and len(name) <= 200 else "model of that name"
        super().__init__(f"no {shown} is served here")


class Conflict(Refusal):
    pass


class MalformedBody(Refusal):
    pass


class UnsupportedMediaType(Refusal):
    pass


class BodyTooLarge(Refusal):
    pass


class TooCostly(Refusal):
    def __init__(self, predictions: int, most: int) -> None:
        super().__init__(
            f"explaining one row takes up to {predictions:,} predictions; {most:,} are allowed: lower n_samples"
        )


@dataclass(frozen=True, slots=True)
class Numbers:
    """Of a limit: what was asked for and is allowed, in all or in a window of so many seconds; what was used of it, and
    the whole seconds until there is likely to be room.
    """

    name: str
    asked: float
    allowed: float
    used: float | None = None
    window_seconds: int | None = None
    retry_after: int | None = None


class Limited(Refusal):
    """`key` is the id of the key whose limit it is."""

    def __init__(self, message: str, limit: Numbers, key: str) -> None:
        super().__init__(message)
        self.limit = limit
        self.key = key


class TooLarge(Limited):
    pass


class LimitReached(Limited):
    @property
    def retry_after(self) -> int:
        return self.limit.retry_after or 1


class IndexNotReady(Refusal):
    """`job` is the id of the job that builds it, or that last tried to."""

    def __init__(self, message: str, job: str | None = None) -> None:
        super().__init__(message)
        self.job = job


class StillRunning(Refusal):
    """`job` is the id of the job that the work goes on as, and under which its result will be stored."""

    def __init__(self, job: str) -> None:
        super().__init__("the work goes on in the background: repeat the request later to get its stored result")
        self.job = job


class ShortOfMemory(Refusal):
    pass


class WorkerLost(Refusal):
    def __init__(self, attempts: int) -> None:
        super().__init__(f"the worker ended in the middle of each of {attempts} attempts")


class QueueFull(Refusal):
    """`retry_after`: whole seconds until there is likely to be room."""

    def __init__(self, retry_after: int, message: str = "too many requests wait for the device already") -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ShuttingDown(QueueFull):
    def __init__(self) -> None:
        super().__init__(5, "the server is shutting down")


class Unreachable(QueueFull):
    def __init__(self, message: str) -> None:
        super().__init__(5, message)


class StoreAway(Unreachable):
    def __init__(self, why: str) -> None:
        super().__init__(f"the store of files cannot be used at the moment ({why})")
        self.why = why
