"""What a request costs beyond the model's own work: wall time of POST /explain minus the `seconds` in its answer.

    python -m benchmarks.server_overhead

A real server process on its own embedded database, one client on one kept-alive connection over loopback, prompts that
differ so that nothing is served from the store; then the same requests again, which are. Time is that of the wire, from
the first byte sent to the last received: what a client does to write JSON and to read it is its own. Writes
benchmarks/results/server_overhead.json.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from tests.clients.server import objects, running, spawned, whence

ROUNDS, WARM_UP = 300, 30
SECRET = "benchmark-secret-0123456789"
MODEL = Path(__file__).parents[1] / "demo" / "models" / "demo-lm"
RESULT = Path(__file__).parent / "results" / "server_overhead.json"
PACKAGES = ("fastapi", "uvicorn", "sqlalchemy", "psycopg", "pydantic", "torch", "transformers")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "data"
        objects(whence(data_dir, "models", "add", "demo-lm", str(MODEL), "--kind", "causal-lm", "--json"))
        with running(data_dir, start=spawned, WHENCE_API_KEY=SECRET) as server:
            address = urlsplit(server.url)
            stream = socket.create_connection((address.hostname, address.port)).makefile("rwb")
            computed = [ask(stream, n) for n in range(ROUNDS + WARM_UP)][WARM_UP:]
            stored = [ask(stream, n) for n in range(WARM_UP, ROUNDS + WARM_UP)]
            health = [exchange(stream, "GET /healthz")[0] for _ in range(ROUNDS)]
    result = {
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "requests": ROUNDS,
        "milliseconds": {
            "overhead of a computed explanation": spread([wall - model for wall, model in computed]),
            "model's own time": spread([model for _, model in computed]),
            "stored explanation, whole request": spread([wall for wall, _ in stored]),
            "GET /healthz, whole request": spread(health),
            "a million additions in Python": spread([additions() for _ in range(30)]),
        },
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for name, figures in result["milliseconds"].items():
        print(f"{name:<38}" + "  ".join(f"{key} {value:7.2f}" for key, value in figures.items()))


def ask(stream: BinaryIO, number: int) -> tuple[float, float]:
    """Wall seconds of one request, and the seconds that its answer says the model took."""
    body = {
        "model": "demo-lm",
        "prompt": f"Anna lives in Oslo. Ben lives in Rome. The code for the red door is {number:04d}. Anna lives in",
        "target": " Oslo",
        "prompt_granularity": {"type": "sentence"},
    }
    wall, answer = exchange(stream, "POST /explain", json.dumps(body).encode())
    return wall, float(json.loads(answer)["seconds"])


def exchange(stream: BinaryIO, asked: str, body: bytes = b"") -> tuple[float, bytes]:
    """Wall seconds from the first byte sent to the last one received, and the body that was."""
    lines = [f"{asked} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {SECRET}"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
    message = "\r\n".join([*lines, "", ""]).encode() + body
    started = time.perf_counter()
    stream.write(message)
    stream.flush()
    status, size = stream.readline(), 0
    while (line := stream.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        size = int(value) if name.lower() == b"content-length" else size
    answer = stream.read(size)
    wall = time.perf_counter() - started
    assert b" 200 " in status, answer
    return wall, answer


def additions() -> float:
    """How fast this machine runs plain Python, to compare machines by."""
    started, total = time.perf_counter(), 0
    for number in range(1_000_000):
        total += number
    return time.perf_counter() - started


def spread(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100)
    return {f"p{p}": round(cuts[p - 1] * 1000, 3) for p in (5, 50, 95)}


if __name__ == "__main__":
    main()
