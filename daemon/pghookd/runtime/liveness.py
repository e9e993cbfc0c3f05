"""Pings each session every few seconds; detects stalled loops and a wrong clock.

A connection that was silently cut stays open for ever by itself: asyncpg sets no keepalive, and a LISTEN sends nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.event_log.doorbell import HOLDERS_NAMED, QUEUE_SHARE_MAX
from pghookd.event_log.rows import holder_of
from pghookd.postgres.client import DatabaseAway, Session, query
from pghookd.process.logs import LogEvent

ANSWER_WITHIN_S: Final = 5.0
CLOCK_EVERY_S: Final = 60.0
SKEW_S: Final = 30.0  # receivers reject a `webhook-timestamp` that is off by some minutes
_CLOCK: Final = "select clock_timestamp()"
QUEUE_EVERY_S: Final = 60.0
_QUEUE: Final = "select pg_notification_queue_usage()"


class Beats:
    """Records which loops have moved since the last check."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._moved: set[str] = set()

    def of(self, name: str) -> Callable[[], None]:
        """Return the function that a loop calls in each iteration."""

        def beat() -> None:
            self._moved.add(name)

        return beat

    def all_moved(self) -> bool:
        """Return True if every loop has moved since the last call that returned True."""
        if self._names <= self._moved:
            self._moved.clear()
            return True
        return False


async def watch(sessions: Callable[[], Iterable[Session]], heartbeat_s: float) -> None:
    """Ping sessions until one does not answer.

    Raises:
        DatabaseAway: if a session does not answer.
    """
    while True:
        await asyncio.sleep(heartbeat_s)
        for session in sessions():
            try:
                await session.ping(ANSWER_WITHIN_S)
            except DatabaseAway:
                if session in sessions():  # otherwise it was closed on purpose meanwhile
                    raise


async def watch_clock(
    session: Session,
    *,
    wall_us: Callable[[], int],
    logger: FilteringBoundLogger,
    every_s: float = CLOCK_EVERY_S,
) -> None:
    """Compare the daemon's clock with the database's until cancelled; log a wrong clock with its skew."""
    told_s = 0.0
    while True:
        theirs_us: int = await session.fetchval(_CLOCK)
        skew_s = (wall_us() - theirs_us) / 1e6
        if abs(skew_s - told_s) >= SKEW_S:
            told_s = skew_s if abs(skew_s) >= SKEW_S else 0.0
            logger.warning(LogEvent.CLOCK_SKEWED, skew_s=round(skew_s, 1))
        await asyncio.sleep(every_s)


async def watch_notifications(
    session: Session,
    *,
    logger: FilteringBoundLogger,
    every_s: float = QUEUE_EVERY_S,
    share_max: float = QUEUE_SHARE_MAX,
) -> None:
    """Warn while Postgres's notification queue fills up, until cancelled.

    A session that listens and stays in a transaction keeps the queue from being truncated. The warning names the oldest
    transactions.
    """
    while True:
        share: float = await session.fetchval(_QUEUE)
        if share > share_max:
            rows = await session.fetch(query("find_oldest_transactions"), HOLDERS_NAMED)
            holders = [holder_of(row) for row in rows]
            logger.warning(LogEvent.NOTIFICATIONS_STUCK, share=round(share, 3), oldest_transactions=holders)
        await asyncio.sleep(every_s)
