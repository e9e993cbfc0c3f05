"""Stores how far the log is settled, with a mark, on the recorder's session: at most once a second, if it has moved.

If a transaction holds back the vacuum, each store leaves a dead row behind and takes longer than the one before. So
stores never take more than a twentieth of the recorder's time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pghookd.event_log.identity import ServerIdentity, check_newest
from pghookd.event_log.position import EventLog, Mark, Position
from pghookd.postgres.client import Session, columns, query

STORE_EVERY_S: Final = 1.0
STORE_IDLE_EVERY_S: Final = 30.0  # if no event was read: only other transactions moved the snapshot
STORE_SHARE: Final = 20  # the next store waits for this many times the duration of the last one

_COLUMNS: Final = 6


class PositionStore:
    """Stores positions, and remembers the stored ones and their time."""

    def __init__(
        self, session: Session, log: EventLog, server: ServerIdentity, *, monotonic: Callable[[], float]
    ) -> None:
        self._session = session
        self._log = log
        self._server = server
        self._monotonic = monotonic
        self._stored: dict[int, Position] = {}
        self._stored_rows = -1
        self._stored_at = 0.0
        self._next_at = 0.0

    async def step(self, now: float) -> bool:
        """Store if it is time and a position has moved; return True if Postgres has answered."""
        if now < self._next_at:
            return False
        moved = [s for s in self._log.shards.values() if self._stored.get(s.shard) is not s.settled]
        is_idle = self._stored_rows == self._log.rows and now - self._stored_at < STORE_IDLE_EVERY_S
        if not moved or is_idle:
            return False
        self._next_at = now + STORE_EVERY_S
        began = self._monotonic()
        await self.store(now)
        self._next_at = now + max(STORE_EVERY_S, STORE_SHARE * (self._monotonic() - began))
        return True

    async def store(self, now: float) -> bool:
        """Store the shards' positions that have moved, and a mark; return True if Postgres has answered.

        The newest id is read first, in a statement of its own, before the storing statement has an xid.
        """
        moved = [s for s in self._log.shards.values() if self._stored.get(s.shard) is not s.settled]
        if not moved:
            return False
        self._stored_at = now
        self._stored_rows = self._log.rows
        newest: int = await self._session.fetchval(query("read_newest_event_id"))
        marks = self._log.marks
        check_newest(newest, marks.newest)
        settled = [(shard.shard, shard.settled) for shard in moved]
        rows = [
            (
                number,
                at.snapshot,
                at.upto,
                at.last_event_id,
                marks.floor(at.snapshot),
                marks.front(at.snapshot),
            )
            for number, at in settled
        ]
        server = self._server
        xid: int = await self._session.fetchval(
            query("store_positions"),
            *columns(rows, _COLUMNS),
            newest,
            server.system_identifier,
            server.database_oid,
            server.timeline,
        )
        self._stored.update(settled)
        marks.note(Mark(newest, xid))
        marks.forget(self._log.oldest())
        return True
