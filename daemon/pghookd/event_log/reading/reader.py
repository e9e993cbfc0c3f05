"""Reads the log: the difference to the last read, page by page; event_log/fan_out makes deliveries of it.

One mechanism serves every case. After a start, a crash or a takeover, recovery reads from the stored positions to a
current snapshot. From there on each read is the difference to the one before.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, cast

from pghookd.event_log.position import (
    Difference,
    EventLog,
    Position,
    Snapshot,
    XidMarks,
)
from pghookd.event_log.reading.delivery_maker import DeliveryMaker
from pghookd.event_log.reading.endpoints import Endpoints
from pghookd.event_log.reading.pages import PAGE, Pages
from pghookd.event_log.reading.refill import Refill
from pghookd.event_log.reading.takers import WHOLE
from pghookd.event_log.rows import EventRow
from pghookd.postgres.client import DatabaseAway, Row, Session, query

DAY_IDS: Final = 2**32  # event ids of one day, and of one partition
PAUSE_MIN_S: Final = 0.001
PAUSE_MAX_S: Final = (
    0.002  # an empty read takes 0.1 ms; with 4 ms here the median latency is 2.6 ms instead of 1.6
)
BEHIND_PAUSE_MAX_S: Final = 0.016  # while a site is behind: reading every 2 ms slows it by a tenth
# After rows wait for more, longer if there were many: reading at once would take a tenth of the producers' throughput.
GATHER_S: Final = 0.0001  # for each event of the last read
GATHER_MAX_S: Final = 0.016
LULL_S: Final = 0.25  # without a row for this long: go to sleep


class Sleeper(Protocol):
    """The doorbell, as the reader uses it."""

    async def sleep(self, read: Callable[[], Awaitable[int]]) -> None:
        """Sleep until there is something to read."""
        ...


class Reader:
    """Decides when to read: at once while there is much, ever more slowly while there is little, and when to sleep."""

    def __init__(
        self,
        session: Session,
        log: EventLog,
        pages: Pages,
        refill: Refill,
        fan_out: DeliveryMaker,
        endpoints: Endpoints,
        *,
        monotonic: Callable[[], float],
        beat: Callable[[], None],
    ) -> None:
        self._session = session
        self._log = log
        self.pages = pages
        self.refill = refill
        self._fan_out = fan_out
        self._endpoints = endpoints
        self._monotonic = monotonic
        self._beat = beat
        self._upper = 0  # no known event_id is above this

    async def begin(self) -> None:
        """Have Postgres plan the statements between an event and its delivery, for the days now read and written.

        A statement is planned at its first use. The results here are not used.
        """
        session, since, marks = self._session, self._log.read, self._log.marks
        newest: int = await session.fetchval(query("read_newest_event_id"))
        self._upper = upper_end(newest + 1)  # the next id may be the first of a new day
        for floor in {marks.floor(since), newest + 1}:
            await session.fetch(read_new_events(floor, self._upper), since, newest, newest, 1)
        await self._endpoints.of_sites({"": WHOLE})

    # The loop ---------------------------------------------------------------------------------------------------------

    async def run(self, bell: Sleeper) -> None:
        """Read until cancelled: at once while there are many rows, then ever more slowly, then asleep."""
        idle_at, read_at, pause = self._monotonic(), 0.0, PAUSE_MIN_S
        while True:
            taken = self.refill.place() + await self.refill.take()
            found, is_due = 0, self._monotonic() >= read_at
            if is_due:
                found = await self._read_unless_full()
            now = self._monotonic()
            if taken or found:
                idle_at = now
            if found:
                pause = PAUSE_MIN_S
                gather_s = min(PAUSE_MIN_S + found * GATHER_S, GATHER_MAX_S)
                read_at = now + (gather_s if found < PAGE // 2 else 0.0)
            elif is_due:
                read_at = now + pause
                pause = min(pause * 2, BEHIND_PAUSE_MAX_S if self.refill.is_behind else PAUSE_MAX_S)
            if now - idle_at >= LULL_S and not self.refill.is_behind:
                await bell.sleep(self.read)
                idle_at, read_at, pause = self._monotonic(), 0.0, PAUSE_MIN_S
            elif not taken and read_at > now:
                await asyncio.sleep(
                    min(read_at - now, PAUSE_MAX_S) if self.refill.is_behind else read_at - now
                )

    async def _read_unless_full(self) -> int:
        if not self.refill.deferred.is_full:
            return await self.read()
        await self._fan_out.attend()
        return 0

    async def read(self) -> int:
        """Read the events that are new since the last read, queue them, and return their number."""
        log, marks = self._log, self._log.marks
        rows = await self._difference(log.read)
        self._endpoints.ask_again()
        now = Snapshot(*rows[0]["snapshot"])
        if len(rows) > PAGE:
            found = await self.pages.read(Position(log.read, now, 0), now, marks)
        else:
            events = cast("list[EventRow]", sorted(row[3:] for row in rows if row[3] is not None))
            await self.pages.page(events, Position(now), log.shards, Difference(log.read, now))
            found = len(events)
        log.read = now
        await self._fan_out.attend()
        self._beat()
        return found

    async def _difference(self, since: Snapshot) -> list[Row]:
        """Read the difference; repeat with a new upper end if the sequence has passed the old one."""
        marks = self._log.marks
        floor, front = marks.floor(since), marks.front(since)
        while True:
            statement = read_new_events(floor, self._upper)
            rows = await self._session.fetch(statement, since, floor, front, PAGE)
            if rows[0]["in_recovery"]:
                raise DatabaseAway("the server is a standby")
            newest = rows[0]["newest"]
            upper, self._upper = self._upper, max(self._upper, upper_end(newest))
            if newest <= upper:
                return rows

    async def recover(self, since: Position, marks: XidMarks, shards: Sequence[int]) -> int:
        """Read shards from a stored position to the reader's own, leaving out settled deliveries."""
        found = 0
        if since.upto is not None:
            found += await self.pages.read(since, since.upto, marks, shards)
            since = Position(since.upto)
        start = Position(since.snapshot, self._log.read, 0)
        return found + await self.pages.read(start, self._log.read, marks, shards)


def upper_end(newest: int) -> int:
    """Return the last id of the day after the newest id's day: the sequence may be there tomorrow."""
    return (newest // DAY_IDS + 2) * DAY_IDS - 1


def read_new_events(floor: int, upper: int) -> str:
    """Return the statement for the days from a floor to an upper end; its text is the same all day."""
    return _bounded(floor // DAY_IDS * DAY_IDS - 1, upper)


@functools.lru_cache(maxsize=8)
def _bounded(lower: int, upper: int) -> str:
    return query("read_new_events").format(lower=lower, upper=upper)
