"""What a sandboxed process may not ask of the kernel, asked by a program that means harm."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
sys.path.append(sys.argv[1])
import os, socket, subprocess, threading
from explainers.confined import system_calls
folder = sys.argv[2]
assert system_calls.restrict()

def writes(path):
    with open(path, "w") as file:
        file.write("x")

deeds = {
    "socket": lambda: socket.socket(),
    "pair": lambda: socket.socketpair(),
    "program": lambda: subprocess.run(["/bin/true"]),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "fork": os.fork,
    "signal": lambda: os.kill(os.getppid(), 0),
    "new file": lambda: writes(folder + "/new"),
    "old file": lambda: writes(folder + "/old"),
    "rename": lambda: os.rename(folder + "/old", folder + "/moved"),
    "remove": lambda: os.unlink(folder + "/old"),
    "link": lambda: os.link(folder + "/old", folder + "/link"),
    "symlink": lambda: os.symlink("/", folder + "/link"),
    "folder": lambda: os.mkdir(folder + "/folder"),
    "mode": lambda: os.chmod(folder + "/old", 0o777),
    "truncate": lambda: os.truncate(folder + "/old", 0),
    "memory": lambda: writes("/proc/self/mem"),
    "pipe": lambda: os.mkfifo(folder + "/fifo"),
}
done = []
def all_of_them():
    for name, deed in deeds.items():
        try:
            deed()
        except PermissionError:
            continue
        except OSError as error:
            done.append(f"{name}: {error}")
        else:
            done.append(name)
thread = threading.Thread(target=all_of_them)  # threads are allowed, and no freer
thread.start(); thread.join()
assert open(folder + "/old").read() == "kept"
print("done:", done)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter is that of x86-64")
def test_nothing_but_reading_and_computing(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("kept")
    ran = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, str(ROOT), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.stdout == "done: []\n", ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
