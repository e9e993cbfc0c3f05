"""Holds the current sender, and each earlier one until its last request in flight has ended.

A reload brings a new sender. A request that began with an earlier sender keeps its connection, proxy and policy to the
end. So no reload waits for a slow receiver.

Never here: which settings a sender is made of (runtime/app.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from pghookd.egress.sender import Sender


class Senders:
    """The senders of one daemon, at most one of them current.

    An earlier sender lives for as long as a request may take (`delivery.timeout_s`), so that few are open at any time.
    """

    def __init__(self) -> None:
        self._current: tuple[Sender, AsyncExitStack] | None = None
        self._retiring: dict[asyncio.Task[None], tuple[Sender, AsyncExitStack]] = {}

    async def use(self, sender: Sender, put: Callable[[], None] = lambda: None) -> None:
        """Open a sender and make it the current one.

        Args:
            sender: a sender that is not open yet.
            put: called once the sender is open; after it no request may begin with the earlier one.

        Raises:
            OSError: if the sender cannot be opened; the earlier one stays current.
        """
        closing = AsyncExitStack()
        await closing.enter_async_context(sender)
        before, self._current = self._current, (sender, closing)
        put()
        if before is not None:
            task = asyncio.create_task(_retire(*before))
            self._retiring[task] = before
            task.add_done_callback(self._retiring.pop)

    @property
    def current(self) -> Sender:
        """Return the current sender; there is one after the first `use`."""
        if self._current is None:
            raise LookupError("no sender is in force")
        return self._current[0]

    @property
    def in_flight(self) -> int:
        """Return the number of requests in flight, of all senders."""
        current = self._current[0].in_flight if self._current else 0
        return current + sum(sender.in_flight for sender, _ in self._retiring.values())

    async def close(self) -> None:
        """Close all senders at once; requests in flight fail."""
        retiring = dict(self._retiring)
        for task in retiring:
            task.cancel()
        if retiring:
            await asyncio.wait(retiring)
        for _, closing in retiring.values():  # for a task that was cancelled before it began
            await closing.aclose()
        if self._current is not None:
            await self._current[1].aclose()


async def _retire(sender: Sender, closing: AsyncExitStack) -> None:
    await sender.idle()
    await closing.aclose()
