"""Spans of requests, of waiting for the device, of work on it and of the database, for OpenTelemetry.

Context: the framework's own telemetry records paths, query strings and the texts of errors, which hold what callers
sent. Decision: it is switched off (`main`), and the few spans here hold names and numbers of ours alone; the provider
belongs to one application and is never made the process's. Consequence: off, which is the default, nothing is imported
and a request costs no more; on, the exporter reads its own OTEL_EXPORTER_OTLP_* variables.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)
from sqlalchemy import event

from app.refusals import Refusal

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

CLOSE_SECONDS = 3.0
PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
VERB = re.compile(r"\s*([A-Za-z]{1,16})")
QUIET: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}
"""The text of an error may hold a prompt."""


class Traces:
    """Where spans go; without a provider nowhere, and none is made."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self.provider = provider
        self._tracer = None if provider is None else provider.get_tracer("whence")

    @contextmanager
    def request(self, traceparent: str) -> Iterator[Span]:
        """The span of a request; goes on with the caller's trace, of which nothing else is taken over."""
        if self._tracer is None:
            yield INVALID_SPAN
            return
        context = trace.set_span_in_context(NonRecordingSpan(parent_of(traceparent)))
        with self._tracer.start_as_current_span("request", context, SpanKind.SERVER, **QUIET) as span:
            yield span

    @contextmanager
    def span(self, name: str, **attributes: str | int | float) -> Iterator[Span]:
        """A part of what is under way."""
        if self._tracer is None:
            yield INVALID_SPAN
            return
        with self._tracer.start_as_current_span(name, attributes=attributes, **QUIET) as span:
            yield span

    @contextmanager
    def work(self, asked: int, began: int) -> Iterator[None]:
        """Work on the device since `began`, and the waiting for it since `asked`, both in nanoseconds of the epoch."""
        if self._tracer is None:
            yield
            return
        self._tracer.start_span("device.wait", start_time=asked).end(began)
        with self._tracer.start_as_current_span("device.work", start_time=began, **QUIET):
            yield

    def watch(self, engine: Any) -> None:
        """A span for each statement that an engine sends: its first word, neither text nor values."""
        if self._tracer is None:
            return
        tracer = self._tracer

        def before(_c: Any, _k: Any, statement: str, _p: Any, context: Any, _m: Any) -> None:
            verb = VERB.match(statement)
            context.whence_span = tracer.start_span(f"database {verb[1].upper() if verb else ''}", kind=SpanKind.CLIENT)

        def after(_c: Any, _k: Any, _s: str, _p: Any, context: Any, _m: Any) -> None:
            context.whence_span.end()

        def failed(failure: Any) -> None:
            span = getattr(failure.execution_context, "whence_span", None)
            if span is not None:
                span.set_status(Status(StatusCode.ERROR))
                span.end()

        event.listen(engine, "before_cursor_execute", before)
        event.listen(engine, "after_cursor_execute", after)
        event.listen(engine, "handle_error", failed)

    def close(self) -> None:
        """Sends what has not been sent yet, as far as somebody takes it in time."""
        if self.provider is not None:
            sending = threading.Thread(target=self.provider.shutdown, name="spans", daemon=True)
            sending.start()
            sending.join(CLOSE_SECONDS)


def parent_of(traceparent: str) -> SpanContext:
    """The caller's span by its W3C header; an invalid one, which begins a trace, where that is none."""
    found = PARENT.fullmatch(traceparent)
    if found is None:
        return trace.INVALID_SPAN_CONTEXT
    return SpanContext(int(found[1], 16), int(found[2], 16), is_remote=True, trace_flags=TraceFlags(int(found[3], 16)))


def trace_id_of(span: Span, traceparent: str) -> str | None:
    """The id of the trace that a request belongs to: its span's, or the one that the caller names."""
    context = span.get_span_context()
    if context.is_valid:
        return trace.format_trace_id(context.trace_id)
    found = PARENT.fullmatch(traceparent)
    return found[1] if found else None


def traces_of(*, wanted: bool) -> Traces:
    """Spans sent by OTLP over HTTP, where they are wanted; raises a refusal where the packages are missing."""
    if not wanted:
        return Traces()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 - an extra
    except ImportError:
        raise Refusal(
            "WHENCE_TRACES is set and OpenTelemetry is not installed: pip install -c constraints.txt -e '.[otel]'"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": "whence"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider)
