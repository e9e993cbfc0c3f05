"""Keeps signals from ending the daemon before it can handle them: importing all modules takes a second or two.

Signal actions belong to the whole process, and so does the state of this module.

Never here: the meaning of a signal once the daemon runs (runtime/app.py).
"""

from __future__ import annotations

import signal
from types import FrameType

_hung_up = False


def hold() -> None:
    """Record a SIGHUP from now on, and ignore SIGUSR1 and SIGUSR2, which the daemon does not use."""
    signal.signal(signal.SIGHUP, _note)
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _note(_number: int, _frame: FrameType | None) -> None:
    global _hung_up  # noqa: PLW0603 - a signal handler belongs to no object
    _hung_up = True


def hung_up() -> bool:
    """Return True if a SIGHUP has arrived since `hold`."""
    return _hung_up
