"""An event loop whose clock stands still while anything runs, and whose ready callbacks come in a seeded order.

Nothing here may know of webhooks, or wait for anything real.
"""

from __future__ import annotations

import asyncio
import selectors
from collections import deque


class DeadlockError(AssertionError):
    """Nothing is ready and no timer is set: everybody waits for somebody else."""


class _Nobody(selectors.SelectSelector):
    """Has no files to wait for: it jumps to the next timer instead."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        if timeout is None:
            raise DeadlockError
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs what is ready in an order that its random numbers choose."""

    def __init__(self, rng):
        self._nobody = _Nobody()
        super().__init__(self._nobody)
        self._rng = rng

    def time(self):
        return self._nobody.now

    def _run_once(self):
        if len(self._ready) > 1:
            ready = list(self._ready)
            self._rng.shuffle(ready)
            self._ready = deque(ready)
        super()._run_once()
