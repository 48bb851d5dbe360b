"""What is counted while the server works, for `GET /metrics`: one registry for each application, none at import.

Labels are bounded: templates of routes, statuses, codes, methods and kinds, all from tables of ours. None names a
tenant, a key or a model, and none holds what a caller sent.
"""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
DEVICE_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Meters:
    """Counters and histograms; safe to use from any thread."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, of no use here
        self.registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=self.registry), partial(Histogram, registry=self.registry)
        self.requests = counter("whence_http_requests", "Requests answered.", ["route", "method", "status"])
        self.request_seconds = histogram(
            "whence_http_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ["route", "method"],
            buckets=REQUEST_SECONDS,
        )
        self.problems = counter("whence_problems", "Errors answered, by their code.", ["code"])
        self.answers = counter(
            "whence_answers",
            "Questions answered: computed, from the store, or with the computation of another request.",
            ["kind", "source"],
        )
        self.explanation_seconds = histogram(
            "whence_explanation_seconds",
            "Time that computing an explanation took, by method.",
            ["method"],
            buckets=REQUEST_SECONDS,
        )
        self.explained_rows = counter(
            "whence_explained_rows", "Inferences explained on demand or by jobs, by algorithm.", ["method"]
        )
        self.ingested_rows = counter(
            "whence_ingested_rows", "Records sent by clients, kept or refused.", ["kind", "outcome"]
        )
        self.device_wait = histogram(
            "whence_device_wait_seconds", "Time that pieces of work waited for the device.", buckets=DEVICE_SECONDS
        )
        self.device_work = histogram(
            "whence_device_work_seconds", "Time that pieces of work held the device.", buckets=DEVICE_SECONDS
        )
        self.jobs_ended = counter(
            "whence_jobs_ended", "Attempts at jobs that this process brought to an end.", ["kind", "outcome"]
        )
        self.shard_tasks = counter(
            "whence_shard_tasks",
            "Tasks that nodes of a Ray cluster had for jobs led by this process, by how they ended.",
            ["outcome"],
        )
        self.audit_lost = counter("whence_audit_lost", "Rows of the audit log that could not be written.")

    def answered(self, route: str | None, method: str, status: int | None, seconds: float, problem: str | None) -> None:
        """One request; `route` None: no route of ours, whose path is the client's own words."""
        if problem is not None:
            self.problems.labels(problem).inc()
        template, verb = route or "(none)", method if method in VERBS else "(other)"
        self.requests.labels(template, verb, str(status or 500)).inc()
        self.request_seconds.labels(template, verb).observe(seconds)

    def ingested(self, kind: str, kept: int, refused: int) -> None:
        """Records of one request or file."""
        self.ingested_rows.labels(kind, "kept").inc(kept)
        self.ingested_rows.labels(kind, "refused").inc(refused)
