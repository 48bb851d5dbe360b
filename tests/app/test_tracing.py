"""Spans: off unless asked for, never the framework's own, and no burden at the end."""

from __future__ import annotations

import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from opentelemetry.trace import INVALID_SPAN

from app.main import create_app
from app.refusals import Refusal
from app.settings import Settings
from app.tracing import Traces, parent_of, trace_id_of, traces_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_the_frameworks_own_telemetry_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would send paths, query strings and the texts of errors."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:1")
    app = create_app(Settings())
    assert not app._native_telemetry.enabled()
    assert not any(app._telemetry[part] for part in ("tracing", "metrics", "logs", "operation_spans", "auto_configure"))


def test_without_a_provider_there_are_no_spans() -> None:
    traces = Traces()
    with traces.request(PARENT) as request, traces.span("answer") as span, traces.work(0, 1):
        assert request is span is INVALID_SPAN
    assert traces_of(wanted=False).provider is None


def test_without_the_extra_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(Refusal, match="otel"):
        create_app(Settings(traces=True))


@pytest.mark.parametrize("header", ["", "00", PARENT.upper(), f"{PARENT}-x", PARENT.replace("0af7", "zzzz")])
def test_a_bad_parent_begins_a_trace(header: str) -> None:
    assert not parent_of(header).is_valid and trace_id_of(INVALID_SPAN, header) is None


def test_a_good_parent_is_gone_on_with() -> None:
    assert parent_of(PARENT).is_remote and trace_id_of(INVALID_SPAN, PARENT) == PARENT[3:35]


def test_spans_are_sent_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        traces = traces_of(wanted=True)
        with traces.request(PARENT):
            pass
        traces.close()
        server.shutdown()
    assert any(b"whence" in body and b"request" in body for body in received)


def test_a_collector_that_is_away_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    traces = traces_of(wanted=True)
    with traces.request(PARENT):
        pass
    started = time.monotonic()
    traces.close()
    assert time.monotonic() - started < 5
