"""Where log lines go: plain lines on stderr, the access log as bare JSON."""

from __future__ import annotations

import logging


def configure(level: str) -> None:
    """Gives this room's loggers a place to write, unless the program that runs the server has given them one."""
    rooms = logging.getLogger("app")
    rooms.setLevel(level.upper())
    if rooms.handlers or logging.getLogger().handlers:
        return
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    access = logging.StreamHandler()
    access.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("app.access").addHandler(access)
    logging.getLogger("app.access").propagate = False
    rooms.addHandler(lines)
