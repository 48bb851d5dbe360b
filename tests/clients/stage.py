"""Runs scripts in processes forked from one that has imported a vendor's client once: an import of it takes seconds.

    python stage.py PACKAGE

reads a line of JSON for each, [script, arguments ...], and answers with one: exit status, output, errors. Run by the
interpreter of the vendor's client, so that it needs nothing else.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from importlib import import_module


def main(package):
    import_module(package)
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            if not (pid := os.fork()):
                os.dup2(output.fileno(), 1)
                os.dup2(errors.fileno(), 2)
                os._exit(run(*json.loads(line)))
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            sys.stdout.write(json.dumps([status, read(output), read(errors)]) + "\n")
            sys.stdout.flush()


def run(script, *arguments):
    """The exit status of the script."""
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except BaseException:  # noqa: BLE001 - told, as an interpreter would
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def read(file):
    file.seek(0)
    return file.read()


if __name__ == "__main__":
    main(sys.argv[1])
