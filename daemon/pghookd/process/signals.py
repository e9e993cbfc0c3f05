"""Keeps signals from ending the daemon before it can handle them: importing everything takes a second or two.

The action of a signal belongs to the process, and so does what is kept here.

Never here: what a signal means once the daemon runs (runtime/app.py).
"""

from __future__ import annotations

import signal
from types import FrameType

_hung_up = False


def hold() -> None:
    """Remember a SIGHUP from now on, and ignore SIGUSR1 and SIGUSR2, which mean nothing to the daemon."""
    signal.signal(signal.SIGHUP, _note)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _note(_number: int, _frame: FrameType | None) -> None:
    global _hung_up  # noqa: PLW0603 - a signal handler has no object of its own
    _hung_up = True


def hung_up() -> bool:
    """Return True if a SIGHUP has come since `hold`."""
    return _hung_up
