"""A job on the wire of every dialect: its JSON, and the answer 202 to who prefers one."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import Header
from pydantic import BaseModel, Field
from starlette.responses import Response

from app.dependencies import JsonResponse
from app.errors import Problem, Responses
from app.jobs import STORED
from storage.jobs import Job

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]

Prefer = Annotated[
    str | None,
    Header(
        description="`respond-async`: answer 202 at once, with a job that computes the answer (RFC 7240).",
        examples=["respond-async"],
    ),
]


class JobResponse(BaseModel):
    """A job: work that goes on without its client."""

    id: str = Field(description="Id of the job.", examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"])
    kind: str = Field(
        description="What is done: `explain`, `context-attribution`, `influence`, `explain-inferences`, "
        "`influence-index`, or `influence-shards` (a part of the one before).",
        examples=["explain"],
    )
    model: str = Field(description="Name of the model.", examples=["demo-lm"])
    state: State = Field(
        description="`queued` and `running` come before `succeeded`, `failed` or `cancelled`, which are final. A "
        "running job is queued again when its worker ends.",
        examples=["succeeded"],
    )
    done: int = Field(description="Steps made in the current attempt.", examples=[1])
    total: int = Field(description="Steps in all, as far as known.", examples=[1])
    rate: float | None = Field(description="Steps per second of the current attempt; null before one.", examples=[1.7])
    eta_seconds: float | None = Field(
        description="Time until it is likely to be finished, at that rate; null when it cannot be told.",
        examples=[None],
    )
    explanation: str | None = Field(
        description="Of kinds `explain`, `context-attribution` and `influence`, once it has succeeded: its result, for "
        "`GET /explanations/{id}`.",
        examples=["0197c1c6-5f0a-7cc0-8a86-5f5ce4c0a1b2"],
    )
    error: Problem | None = Field(description="Once it has failed: what the request would have been answered.")
    attempts: int = Field(
        description="Attempts begun; after three whose worker ended (ten of what is kept piece by piece) it fails.",
        examples=[1],
    )
    created_at: datetime = Field(description="When it was asked for.", examples=["2026-01-31T12:00:00Z"])
    started_at: datetime | None = Field(
        description="When the current attempt began.", examples=["2026-01-31T12:00:00Z"]
    )
    heartbeat_at: datetime | None = Field(
        description="When its worker was last heard of.", examples=["2026-01-31T12:00:02Z"]
    )
    finished_at: datetime | None = Field(description="When it ended.", examples=["2026-01-31T12:00:03Z"])


ACCEPTED: Responses = {
    202: {
        "model": JobResponse,
        "description": "With `Prefer: respond-async`: the job that computes the answer; `Location` is its address.",
    }
}


def prefers_async(prefer: str | None) -> bool:
    """Whether a Prefer header has `respond-async` among its preferences (RFC 7240, 4.1)."""
    preferences = (prefer or "").lower().split(",")
    return any(preference.partition(";")[0].strip() == "respond-async" for preference in preferences)


def accepted(job: Job) -> Response:
    headers = {"Location": f"/jobs/{job.id}", "Preference-Applied": "respond-async"}
    return JsonResponse(job_answer(job), 202, headers)


def job_answer(job: Job) -> dict[str, Any]:
    same = ("kind", "model", "state", "done", "total", "error", "attempts")
    times = ("created_at", "started_at", "heartbeat_at", "finished_at")
    rate, eta = pace(job)
    about = {"id": str(job.id), "rate": rate, "eta_seconds": eta}
    about |= {"explanation": str(job.result) if job.result is not None and job.kind in STORED else None}
    return about | {name: getattr(job, name) for name in (*same, *times)}


def pace(job: Job) -> tuple[float | None, float | None]:
    """Steps per second, and the seconds that are left at that rate: both as of the last heartbeat."""
    if job.started_at is None or job.heartbeat_at is None or not job.done:
        return None, None
    seconds = (job.heartbeat_at - job.started_at).total_seconds()
    if seconds <= 0:
        return None, None
    rate = job.done / seconds
    left = (job.total - job.done) / rate if job.state == "running" else None
    return round(rate, 3), None if left is None else round(left, 1)
