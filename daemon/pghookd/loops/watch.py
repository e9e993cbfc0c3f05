"""Asks each session every few seconds whether it lives, and notices the loops that stand still.

A connection that was silently cut stays open for ever by itself: asyncpg sets no keepalive, and a LISTEN says nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from pghookd.edge.postgres import DatabaseAway, Session

ANSWER_WITHIN_S: Final = 5.0


class Beats:
    """Which loops have moved since last asked."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._moved: set[str] = set()

    def of(self, name: str) -> Callable[[], None]:
        """Return what a loop calls each time it comes around."""

        def beat() -> None:
            self._moved.add(name)

        return beat

    def all_moved(self) -> bool:
        """Whether every loop has moved since the last call that said so."""
        if self._names <= self._moved:
            self._moved.clear()
            return True
        return False


async def watch(sessions: Callable[[], Iterable[Session]], heartbeat_s: float) -> None:
    """Ping sessions until one does not answer.

    Raises:
        DatabaseAway: one did not.
    """
    while True:
        await asyncio.sleep(heartbeat_s)
        for session in sessions():
            try:
                await session.ping(ANSWER_WITHIN_S)
            except DatabaseAway:
                if session in sessions():  # else it was let go meanwhile, on purpose
                    raise
