"""The audit log of a server that is killed in the middle of a change, and the command that reads it."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.clients.server import objects, running, whence

SECRET = "audit-secret-0123456789"
KEY = {"Authorization": f"Bearer {SECRET}"}
HEAD = """POST /files HTTP/1.1\r
Host: whence\r
Authorization: Bearer {}\r
Content-Type: multipart/form-data; boundary=x\r
Content-Length: 1000\r
X-Request-ID: killed\r
\r
--x\r
"""


def begin_upload(url: str) -> socket.socket:
    """Sends the head of a request and a little of its body."""
    address = urlsplit(url)
    connection = socket.create_connection((address.hostname, address.port), timeout=60)
    connection.sendall(HEAD.format(SECRET).encode())
    return connection


def unanswered(url: str) -> list[dict[str, object]]:
    answer = httpx.get(f"{url}/audit", params={"outcome": "unanswered"}, headers=KEY, timeout=60)
    found: list[dict[str, object]] = answer.json()["entries"]
    return found


def test_a_change_that_a_kill_cut_off_stands_in_the_log(new_data_dir: Path) -> None:
    with running(new_data_dir, returncode=-signal.SIGKILL, options=["--no-worker"], WHENCE_API_KEY=SECRET) as server:
        assert httpx.delete(f"{server.url}/files/file-0", headers=KEY, timeout=60).status_code == 404
        with begin_upload(server.url):
            deadline = time.monotonic() + 60
            while not unanswered(server.url) and time.monotonic() < deadline:
                time.sleep(0.05)
            server.process.kill()
            server.process.wait()
    made = objects(whence(new_data_dir, "keys", "create", "ci", "--json"))[0]
    newest, cut, answered, first = objects(whence(new_data_dir, "audit", "--json"))
    assert (newest["kind"], newest["route"], newest["object"]["id"]) == ("command", "whence keys create", made["id"])
    assert (cut["route"], cut["outcome"], cut["status"], cut["request_id"]) == ("/files", "unanswered", None, "killed")
    assert (answered["route"], answered["outcome"], answered["key_name"]) == (
        "/files/{id}",
        "refused",
        "WHENCE_API_KEY",
    )
    assert (first["route"], first["object"]["scopes"]) == ("whence serve", "admin")
    assert made["secret"] not in str([newest, cut, answered, first])
