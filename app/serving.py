"""Running the web server, or a worker alone: the port first, then the database, then the application.

A port in use is found before a database is started, and the database is held here while the application inside attaches
to it: an unusable one is then one line of text, not a traceback of the web server.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from typing import NoReturn, TypeAlias

import typer
import uvicorn
import uvloop
from fastapi import FastAPI

from app import logs
from app.cluster.connection import joined
from app.main import create_app, open_server
from app.meters import Meters
from app.refusals import Refusal
from app.settings import Settings
from app.shelf import open_shelf
from app.start import open_database
from app.tracing import traces_of
from app.traffic import Traffic
from app.worker import working
from storage.database import Database

Preparation: TypeAlias = Callable[[Database, Settings, str], Awaitable[str]]
"""What is done before the first request; returns the text that is shown once the server is ready at that URL."""

log = logging.getLogger(__name__)

READY_SECONDS = 120.0
STOP_SECONDS = 5
"""For connections to close, once no request is left."""


def run_server(settings: Settings, preparation: Preparation) -> None:
    """Serves until SIGTERM or Ctrl-C, which both end it in good order."""
    listener = bound_socket(settings.host, settings.port)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with closing(listener), suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_on(listener, settings, preparation))


def run_worker(settings: Settings) -> None:
    """Works on jobs until SIGTERM or Ctrl-C; what is under way then goes back into the queue."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work_until_stopped(settings))


async def work_until_stopped(settings: Settings) -> None:
    logs.configure(settings.log_level, settings.log_format)
    stopped = asyncio.Event()
    traces = traces_of(wanted=settings.traces)
    async with open_server(settings, Traffic(), Meters(), traces) as server, working(server.jobs):
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        typer.echo("Whence's worker is ready")
        await stopped.wait()


def interrupt(*_: object) -> NoReturn:
    """Leaves through every open context. The web server has handlers of its own while it runs, and calls this after."""
    raise KeyboardInterrupt


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that holds the address but accepts nobody yet."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Refusal(f"port {port} of {host} is in use: choose another with --port") from error
        raise Refusal(f"cannot listen on port {port} of {host}: {error.strerror}") from error
    return listener


async def serve_on(listener: socket.socket, settings: Settings, preparation: Preparation) -> None:
    logs.configure(settings.log_level, settings.log_format)
    host, port = reachable(listener)
    async with open_database(settings) as database, joined(settings):
        await open_shelf(settings, database)
        greeting = await preparation(database, settings, f"http://{f'[{host}]' if ':' in host else host}:{port}")
        app = create_app(settings)
        config = uvicorn.Config(
            app,
            http="httptools",
            lifespan="on",
            log_config=None,
            log_level="debug" if settings.log_level == "debug" else "warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        server = WindingDown(config, app, settings.shutdown_seconds)
        app.state.stopping = lambda: server.should_exit  # streams end with it, so that nobody waits for them
        greeter = asyncio.create_task(greet(host, port, greeting))
        try:
            await server.serve(sockets=[listener])
        finally:
            greeter.cancel()


class WindingDown(uvicorn.Server):
    """A web server that finishes what is under way before it stops listening; see `traffic`."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, seconds: float) -> None:
        super().__init__(config)
        self.app, self.seconds = app, seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        server = getattr(self.app.state, "server", None)
        if server is not None:
            server.jobs.leave()  # the device is for those who wait
        refused = await self.app.state.traffic.end(self.seconds, lambda: self.force_exit)
        if refused:
            log.warning("requests not finished within %s seconds were refused: %s", self.seconds, refused)
        await super().shutdown(sockets)


def reachable(listener: socket.socket) -> tuple[str, int]:
    """Host and port under which this machine reaches the socket."""
    host, port = listener.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104 - compared, not bound


async def greet(host: str, port: int, greeting: str) -> None:
    """Shows the text as soon as the server says that it is ready."""
    deadline = time.monotonic() + READY_SECONDS
    while not await is_ready(host, port) and time.monotonic() < deadline:  # noqa: ASYNC110 - asks over the network
        await asyncio.sleep(0.2)
    typer.echo(greeting)


async def is_ready(host: str, port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    with closing(writer):
        writer.write(b"GET /readyz HTTP/1.0\r\n\r\n")
        return b" 200 " in await reader.readline()
