"""Reads the log: the difference to the last read, page by page, for loops/fan_out to make deliveries of.

One road for everything: after a start, a crash or a takeover the stored positions are walked to a snapshot of now, and
from there on each read is the difference to the one before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol, cast

from pghookd.core.aside import Aside, Part
from pghookd.core.lanes import Lanes
from pghookd.core.model import Delivery, Endpoint
from pghookd.core.order import is_ordered
from pghookd.core.snapshot import Difference, Log, Marks, Position, ShardLog, Snapshot, Ticket
from pghookd.edge.postgres import DatabaseAway, Row, Session, query
from pghookd.edge.rows import EventRow

PAGE: Final = 1000  # events
DAY_IDS: Final = 2**32  # event ids of a day, and of a partition
PAUSE_MIN_S: Final = 0.001
PAUSE_MAX_S: Final = (
    0.002  # a read that finds nothing takes 0.1 ms; 4 ms here makes the median latency 2.6 ms, not 1.6
)
# After rows let some gather, the longer the more there were: reading at once takes a tenth of the producers' speed.
GATHER_S: Final = 0.0001  # for each event of the last read
GATHER_MAX_S: Final = 0.016
LULL_S: Final = 0.25  # without a row: go to sleep
ASIDE_CHUNK: Final = 500  # deliveries of what was left in the log, between two reads
ASIDE_FOR_S: Final = (
    60.0  # for so long it waits for room; then it is parked, so that the stored position goes on
)
ASIDE_PARKED: Final = 200  # deliveries parked then, between two reads


class Sleeper(Protocol):
    """The bell."""

    async def sleep(self, read: Callable[[], Awaitable[int]]) -> None:
        """Sleep until there is something to read."""
        ...


class FanOut(Protocol):
    """What makes deliveries of events."""

    async def endpoints(self, rows: Sequence[EventRow]) -> dict[str, list[Endpoint]]:
        """Read the endpoints of a page's sites."""
        ...

    def deliveries(
        self,
        rows: Sequence[EventRow],
        endpoints: dict[str, list[Endpoint]],
        tickets: dict[int, Ticket],
        end: Position,
        shards: Mapping[int, ShardLog],
        settled: set[tuple[int, int]],
        now: float,
    ) -> list[tuple[Endpoint, Delivery]]:
        """Make a delivery for each endpoint that takes an event, all of them on their tickets."""
        ...

    async def enter(
        self, work: list[tuple[Endpoint, Delivery]], difference: Difference, *, may_wait: bool = True
    ) -> None:
        """Find each its place."""
        ...

    async def attend(self) -> None:
        """Look at endpoints that have changed."""
        ...


class Reader:
    """Reads differences, and leaves what a site has too much of in the log for a while."""

    def __init__(
        self,
        session: Session,
        log: Log,
        lanes: Lanes,
        fan_out: FanOut,
        *,
        shards: int,
        monotonic: Callable[[], float],
        beat: Callable[[], None],
    ) -> None:
        self._session = session
        self._log = log
        self._lanes = lanes
        self._fan_out = fan_out
        self._shards = shards
        self._monotonic = monotonic
        self._beat = beat
        self._aside: Aside[Difference] = Aside()
        self._upper = 0  # no event_id lies above this, as far as was seen

    async def begin(self) -> None:
        """Plan what stands between an event and its delivery, for the days in which the log is read and written now.

        A statement is planned at its first use. What these two return is not used.
        """
        session, since, marks = self._session, self._log.read, self._log.marks
        newest: int = await session.fetchval(query("read_newest_event_id"))
        self._upper = upper_end(newest + 1)  # the next id may be the first of its day
        for floor in {marks.floor(since), newest + 1}:
            await session.fetch(read_new_events(floor, self._upper), since, newest, newest, 1)
        await session.fetch(query("read_endpoints_of_sites"), [], self._shards)

    # The loop ---------------------------------------------------------------------------------------------------------

    async def run(self, bell: Sleeper) -> None:
        """Read until cancelled: at once while there are many rows, then ever slower, then asleep."""
        idle_at, pause = self._monotonic(), PAUSE_MIN_S
        while True:
            found = await self._take_aside()
            if not self._aside.is_full:
                found += await self.read()
            now = self._monotonic()
            if found:
                idle_at, pause = now, PAUSE_MIN_S
                if found < PAGE // 2:
                    await asyncio.sleep(min(PAUSE_MIN_S + found * GATHER_S, GATHER_MAX_S))
            elif now - idle_at < LULL_S or self._aside:
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_MAX_S)
            else:
                await bell.sleep(self.read)
                idle_at, pause = self._monotonic(), PAUSE_MIN_S

    async def read(self) -> int:
        """Read what is new since the last read, queue it, and return how many events it was."""
        log, marks = self._log, self._log.marks
        rows = await self._difference(log.read)
        now = Snapshot(*rows[0]["snapshot"])
        if len(rows) > PAGE:
            found = await self._pages(Position(log.read, now, 0), now, marks)
        else:
            events = cast("list[EventRow]", sorted(row[3:] for row in rows if row[3] is not None))
            await self._page(events, Position(now), log.shards, Difference(log.read, now))
            found = len(events)
        log.read = now
        await self._fan_out.attend()
        self._beat()
        return found

    async def _difference(self, since: Snapshot) -> list[Row]:
        """Read the difference; again, with another upper end, where the sequence has moved beyond it."""
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

    async def recover(self, since: Position, marks: Marks, shards: Sequence[int]) -> int:
        """Walk shards from a stored position to the reader's own, leaving out what is settled already."""
        found = 0
        if since.upto is not None:
            found += await self._pages(since, since.upto, marks, shards)
            since = Position(since.upto)
        start = Position(since.snapshot, self._log.read, 0)
        return found + await self._pages(start, self._log.read, marks, shards)

    async def _pages(
        self, at: Position, upto: Snapshot, marks: Marks, shards: Sequence[int] | None = None
    ) -> int:
        """Take a long difference in pages, each a short statement; `shards` are given on the recovery road."""
        since, last = at.snapshot, at.last_event_id
        floors = (marks.floor(since), marks.front(since))
        last = max(last, await self._session.fetchval(query("find_first_event"), since, upto, *floors))
        newest = await self._session.fetchval(query("read_newest_event_id"))
        logs = self._log.shards if shards is None else {s: self._log.shards[s] for s in shards}
        only = None if shards is None or len(shards) == self._shards else list(shards)
        difference = Difference(since, upto, again=shards is not None)
        found = 0
        while True:
            rows = await self._session.fetch(
                query("read_events_page"), since, upto, last, newest, PAGE, only, self._shards
            )
            settled: set[tuple[int, int]] = set()
            if rows and shards is not None:
                first, last_id = rows[0]["event_id"], rows[-1]["event_id"]
                settled = {
                    (e, p) for e, p in await self._session.fetch(query("read_settled"), first, last_id)
                }
            full = len(rows) == PAGE
            end = Position(since, upto, rows[-1]["event_id"]) if full else Position(upto)
            await self._page(cast("list[EventRow]", rows), end, logs, difference, settled)
            found += len(rows)
            while self._aside.is_full:
                await self._take_aside()
                self._beat()
            await self._fan_out.attend()
            self._beat()
            if not full:
                return found
            last = rows[-1]["event_id"]

    # One page -----------------------------------------------------------------------------------------------

    async def _page(
        self,
        rows: Sequence[EventRow],
        end: Position,
        shards: Mapping[int, ShardLog],
        difference: Difference,
        settled: set[tuple[int, int]] | None = None,
    ) -> None:
        work: list[tuple[Endpoint, Delivery]] = []
        tickets: dict[int, Ticket] = {}
        if rows:
            self._log.rows += len(rows)
            now = self._monotonic()
            endpoints = await self._fan_out.endpoints(rows)
            if self._aside or self._lanes.is_mixed(now):
                rows = self._leave(rows, endpoints, tickets, end, shards, difference, now)
            work = self._fan_out.deliveries(rows, endpoints, tickets, end, shards, settled or set(), now)
        for number in shards:
            if number not in tickets:
                self._log.shards[number].skip(end)
        await self._fan_out.enter(work, difference)

    # What is left in the log for a while --------------------------------------------------------------------

    def _leave(
        self,
        rows: Sequence[EventRow],
        endpoints: dict[str, list[Endpoint]],
        tickets: dict[int, Ticket],
        end: Position,
        shards: Mapping[int, ShardLog],
        difference: Difference,
        now: float,
    ) -> list[EventRow]:
        """Leave what a site has too much of in the log; return the rest of the page.

        On the recovery road nothing of a site with ordered endpoints is left: rows that stand behind may be due.
        """
        room: dict[str, int] = {}
        kept: list[EventRow] = []
        left: dict[str, list[int]] = {}
        for row in rows:
            site_id = row[1]
            of_site = endpoints.get(site_id)
            if of_site is None:
                continue  # nobody takes it
            free = room.get(site_id)
            if free is None:
                free = self._free(site_id, of_site, difference, shards)
            if free > 0:
                kept.append(row)
                room[site_id] = free - len(of_site)
            else:
                room[site_id] = free
                left.setdefault(site_id, []).append(row[0])
        for site_id, event_ids in left.items():
            of_site = endpoints[site_id]
            shard = of_site[0].shard
            if shard not in tickets:
                tickets[shard] = self._log.shards[shard].page(end, now)
            self._aside.put(site_id, Part(tickets[shard], difference, len(of_site), now, event_ids))
        return kept

    def _free(
        self, site_id: str, of_site: list[Endpoint], difference: Difference, shards: Mapping[int, ShardLog]
    ) -> int:
        """Return how many deliveries of a page a site may have at once."""
        if site_id in self._aside:
            return 0
        if of_site[0].shard not in shards or (difference.again and any(map(is_ordered, of_site))):
            return PAGE * len(of_site)
        return self._lanes.room_for(site_id, len(of_site))

    async def _take_aside(self) -> int:
        """Read some of what was left, if there is room for it, or if it has waited for long; return how many events."""
        found = self._aside.next()
        if found is None:
            return 0
        site_id, part = found
        now = self._monotonic()
        room = min(self._lanes.room_for(site_id, part.endpoints), ASIDE_CHUNK)
        if self._lanes.full or room <= 0:
            if now - part.since < ASIDE_FOR_S and not self._aside.is_full:
                return 0
            room = ASIDE_PARKED
        event_ids = list(part.event_ids[: max(1, room // part.endpoints)])
        first, last = event_ids[0], event_ids[-1]
        rows = await self._session.fetch(query("read_events"), event_ids, first, last)
        done = await self._session.fetch(query("read_settled_events"), event_ids, first, last)
        settled = {(event_id, endpoint_id) for event_id, endpoint_id in done}
        events = cast("list[EventRow]", rows)
        endpoints = await self._fan_out.endpoints(events) if events else {}
        shard = part.ticket.shard
        work = self._fan_out.deliveries(
            events, endpoints, {shard.shard: part.ticket}, part.ticket.end, {shard.shard: shard}, settled, now
        )
        self._aside.taken(site_id, len(event_ids))
        await self._fan_out.enter(work, part.context, may_wait=False)
        return len(event_ids)


def upper_end(newest: int) -> int:
    """Return the last id of the day after that of the newest one: where the sequence may be tomorrow."""
    return (newest // DAY_IDS + 2) * DAY_IDS - 1


def read_new_events(floor: int, upper: int) -> str:
    """Return the statement for the days from a floor's to an upper end's; the same text all day long."""
    lower = floor // DAY_IDS * DAY_IDS - 1
    return query("read_new_events").replace(" -1 ", f" {lower} ").replace(f"{2**63 - 1}", f"{upper}")
