"""Processes in which scripts with the vendors' clients run: one for each environment, begun when it is needed first."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).with_name("stage.py")
PACKAGES = {".venv-clients": "aleph_alpha_client", ".venv-seekr": "seekrai", ".venv-arthur": "arthurai"}


class Stage:
    """Runs one script at a time."""

    def __init__(self, python: Path, warnings: str) -> None:
        self._process = subprocess.Popen(
            [python, "-W", warnings, SCRIPT, PACKAGES[python.parents[1].name]],
            env=os.environ | {"MPLBACKEND": "Agg"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def printed(self, script: str, *arguments: str) -> str:
        """What a script of this folder prints; it must end well."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(SCRIPT.with_name(script)), *arguments]) + "\n")
        self._process.stdin.flush()
        status, output, errors = json.loads(self._process.stdout.readline())
        assert status == 0, output[-4000:] + errors[-4000:]
        return str(output)

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@functools.cache
def stage(python: Path, warnings: str = "default") -> Stage:
    """That of an environment's Python."""
    made = Stage(python, warnings)
    atexit.register(made.close)
    return made
