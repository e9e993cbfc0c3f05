"""An event loop whose clock stops while anything runs, and whose ready callbacks come in a seeded order.

Nothing here may know of webhooks, or wait for anything real.
"""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections import deque

WHOSE = contextvars.ContextVar("WHOSE", default=None)  # on whose behalf a callback runs


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


class _Sieve(deque):
    """Ready callbacks, from which those of the frozen are put aside."""

    def __init__(self, ready, loop):
        super().__init__(ready)
        self._loop = loop
        self._nothing = asyncio.Handle(lambda: None, (), loop)
        self._nothing.cancel()

    def popleft(self):
        handle = super().popleft()
        aside = self._loop.frozen.get(handle._context.get(WHOSE))
        if aside is None:
            return handle
        aside.append(handle)
        return self._nothing


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs ready callbacks in an order that its random numbers choose.

    Attributes:
        frozen: the stopped instances, and their ready callbacks; their clock goes on.
    """

    def __init__(self, rng):
        self._nobody = _Nobody()
        super().__init__(self._nobody)
        self._rng = rng
        self.frozen = {}

    def run_in_executor(self, _executor, function, *args):
        """Do at once what a thread would do."""
        done = self.create_future()
        try:
            done.set_result(function(*args))
        except Exception as error:  # noqa: BLE001 - the awaiting one's
            done.set_exception(error)
        return done

    def freeze(self, whose):
        self.frozen.setdefault(whose, [])

    def thaw(self, whose):
        self._ready.extend(self.frozen.pop(whose, ()))

    def time(self):
        return self._nobody.now

    def _run_once(self):
        if len(self._ready) > 1:
            ready = list(self._ready)
            self._rng.shuffle(ready)
            self._ready = deque(ready)
        if self.frozen:
            self._ready = _Sieve(self._ready, self)
        elif type(self._ready) is _Sieve:
            self._ready = deque(self._ready)
        super()._run_once()
