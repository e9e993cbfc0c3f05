"""`pghookd run` that kills itself at a fail point: PGHOOKD_TEST_KILL_AT is `name` or `name:nth`."""

from __future__ import annotations

import os
import signal
import sys

from pghookd.process import fail_points
from pghookd.runtime import app
from pghookd.settings import load

NAME, _, NTH = os.environ.get("PGHOOKD_TEST_KILL_AT", "").partition(":")
seen = 0


async def kill_at(name):
    global seen  # noqa: PLW0603 - one count for the process
    if name == NAME:
        seen += 1
        if seen == int(NTH or 1):
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    with fail_points.interrupted_by(kill_at):
        sys.exit(app.run(load.load(None, os.environ, None)))
