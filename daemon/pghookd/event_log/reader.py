"""Reads the log: the difference to the last read, page by page; event_log/fan_out makes deliveries of it.

One mechanism serves every case. After a start, a crash or a takeover, recovery reads from the stored positions to a
current snapshot. From there on each read is the difference to the one before.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, Protocol, TypeAlias, cast

from pghookd.event_log.deferred import DeferredEvents, DeferredPart, ids_of
from pghookd.event_log.endpoints import Endpoints
from pghookd.event_log.position import (
    Difference,
    EventLog,
    Page,
    Position,
    ShardLog,
    Snapshot,
    Ticket,
    XidMarks,
)
from pghookd.event_log.rows import EventRow
from pghookd.event_log.takers import ENDPOINT_ID_MAX, SITES_A_READ, WHOLE, Dealt, Pair, Span, Takers
from pghookd.postgres.client import DatabaseAway, Row, Session, query
from pghookd.scheduling.ordering import Order

PAGE: Final = 1000  # events
SKIM: Final = 5000  # ids read at once of events whose sites are behind
SKIM_FROM: Final = 0.9  # if these sites have this share of a page, the next read takes ids only
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
ENDPOINTS_AT_ONCE: Final = 5000  # with this many, the sites read so far are processed before more are read
PAIRS_A_STEP: Final = (
    1000  # pairs of event and endpoint processed between two turns of the other tasks; about 10 us each
)
SETTLED_MAX: Final = 2000  # settled deliveries read by the range of event ids; if there are more, by the ids
SPARSE: Final = 20  # ids per event; in a sparser range the settled deliveries are read by ids
BARE_SITES_MAX: Final = (
    16  # sites behind whose events are read without payload; each is compared with each row
)
ASIDE_CHUNK: Final = 500  # deliveries, and events, that one look at deferred events takes
ASIDE_LEAST: Final = 100  # with fewer events a look waits for more sites with room, but not for long
ASIDE_FOR_S: Final = (
    60.0  # a site without room for this long has some events parked, so that the stored position moves on
)
STUCK_S: Final = 1.0  # a site without room for this long has its lanes checked for the cause
SHED_EVERY_S: Final = 0.2  # least time between two such checks: each examines every lane
LOOK_S: Final = 250e-6  # pause for each site without room; finding that out took 2 to 6 us
ASIDE_LONG_S: Final = 900.0  # an event is deferred no longer than this, whether there is room or not
ASIDE_PARKED: Final = 200  # deliveries parked then in one look


# Event ids by site, type and only endpoint (None if the event is for all).
Groups: TypeAlias = dict[tuple[str, str, int | None], list[int]]


class Sleeper(Protocol):
    """The doorbell, as the reader uses it."""

    async def sleep(self, read: Callable[[], Awaitable[int]]) -> None:
        """Sleep until there is something to read."""
        ...


class DeliveryMaker(Protocol):
    """The fan-out, as the reader uses it."""

    @property
    def hands(self) -> int:
        """Return the number of sites that have deliveries waiting for room in their lanes."""
        ...

    def waits(self, site_id: str) -> bool:
        """Return True if deliveries of the site wait for room."""
        ...

    def place(self) -> list[str]:
        """Place waiting deliveries; return the sites that had some placed."""
        ...

    def rooms_for(self, sites: Iterable[tuple[str, int]]) -> dict[str, int]:
        """Return per site how many deliveries may be made; 0 or less if none. A site comes with its endpoint count."""
        ...

    def refill_for(self, site_id: str, endpoints: int) -> int:
        """Return the same for one site, but 0 or less if reading the log again is not worth it."""
        ...

    def parking_for(self, site_id: str) -> int:
        """Return how many rows of a site may be parked now; 0 or less if none."""
        ...

    def shed(self, site_id: str, endpoints: int) -> None:
        """Park the deliveries that take the room of the site's other lanes."""
        ...

    def deal(
        self,
        rows: Iterable[EventRow],
        takers: Mapping[str, Takers],
        room: dict[str, int],
        ticket_of: Callable[[int], Ticket],
        settled: set[tuple[int, int]],
        now: float,
    ) -> Dealt:
        """Make a delivery for each endpoint that takes an event, as long as the event's site has room."""
        ...

    async def enter(self, work: list[Pair], difference: Difference, *, park: bool = False) -> None:
        """Find a place for each delivery; if `park` is True it becomes a row."""
        ...

    async def attend(self) -> None:
        """Read changed endpoints again, and drop durable rows from the count of unwritten ones."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """The deferred events of one site that are processed next.

    Attributes:
        pieces: parts, oldest first, each with the ids of its events.
        room: how many deliveries they may make.
        park: True if they have waited too long: their deliveries become rows.
    """

    pieces: list[tuple[DeferredPart[Difference], list[int]]]
    room: int
    park: bool

    @property
    def event_ids(self) -> list[int]:
        """Return the ids of all its events."""
        return [event_id for _, event_ids in self.pieces for event_id in event_ids]

    @property
    def pairs(self) -> int:
        """Return the approximate number of deliveries that they make."""
        return sum(len(event_ids) * part.weight for part, event_ids in self.pieces)

    @property
    def recovering(self) -> bool:
        """Return True if recovery has read some of its events."""
        return any(part.recovering for part, _ in self.pieces)

    @property
    def wide(self) -> bool:
        """Return True if its site is processed slice by slice."""
        return self.pieces[0][0].wide

    @property
    def span(self) -> Span:
        """Return the endpoints that its events are for now."""
        part = self.pieces[0][0]
        return Span(part.after, part.slice_end) if part.wide else WHOLE


@dataclasses.dataclass(slots=True)
class Walk:
    """The progress of reading a long difference.

    Attributes:
        difference: the difference that is read.
        logs: the shards that it is read for.
        only: the numbers of these shards; None if they are all shards.
        newest: no event of the difference has a higher id.
        last_event_id: events up to this id are read.
        ended: True if all events are read.
    """

    difference: Difference
    logs: Mapping[int, ShardLog]
    only: list[int] | None
    newest: int
    last_event_id: int
    ended: bool = False

    @property
    def end(self) -> Position:
        """Return the position in the log up to which the events are read."""
        upto = self.difference.upto
        return Position(upto) if self.ended else Position(self.difference.since, upto, self.last_event_id)


class Reader:
    """Reads differences, and defers the events of sites without room."""

    def __init__(
        self,
        session: Session,
        log: EventLog,
        order: Order,
        fan_out: DeliveryMaker,
        endpoints: Endpoints,
        *,
        shards: int,
        monotonic: Callable[[], float],
        beat: Callable[[], None],
    ) -> None:
        self._session = session
        self._log = log
        self._order = order
        self._fan_out = fan_out
        self._endpoints = endpoints
        self._shards = shards
        self._monotonic = monotonic
        self._beat = beat
        self._aside: DeferredEvents[Difference] = DeferredEvents()
        self._place_at = 0.0  # when to try again to place waiting deliveries
        self._look_at = 0.0  # when to check again for sites with room
        self._shed_at = 0.0  # when to check lanes again for the cause of missing room
        self._patient_until = 0.0  # until then, few events are not worth the statements
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
            taken = self._place() + await self._take_aside()
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
                pause = min(pause * 2, BEHIND_PAUSE_MAX_S if self._is_behind else PAUSE_MAX_S)
            if now - idle_at >= LULL_S and not self._is_behind:
                await bell.sleep(self.read)
                idle_at, read_at, pause = self._monotonic(), 0.0, PAUSE_MIN_S
            elif not taken and read_at > now:
                await asyncio.sleep(min(read_at - now, PAUSE_MAX_S) if self._is_behind else read_at - now)

    async def _read_unless_full(self) -> int:
        if not self._aside.is_full:
            return await self.read()
        await self._fan_out.attend()
        return 0

    def _place(self) -> int:
        now = self._monotonic()
        if not self._fan_out.hands or now < self._place_at:
            return 0
        placed = self._fan_out.place()
        self._note_read(placed)
        if not placed:
            self._place_at = now + self._fan_out.hands * LOOK_S
        return len(placed)

    @property
    def _is_behind(self) -> bool:
        """Return True if events already read still have to find a place."""
        return bool(self._aside or self._fan_out.hands)

    async def read(self) -> int:
        """Read the events that are new since the last read, queue them, and return their number."""
        log, marks = self._log, self._log.marks
        rows = await self._difference(log.read)
        self._endpoints.ask_again()
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
            found += await self._pages(since, since.upto, marks, shards)
            since = Position(since.upto)
        start = Position(since.snapshot, self._log.read, 0)
        return found + await self._pages(start, self._log.read, marks, shards)

    async def _pages(
        self, at: Position, upto: Snapshot, marks: XidMarks, shards: Sequence[int] | None = None
    ) -> int:
        """Read a long difference in pages, each a short statement; `shards` is given in recovery only."""
        since, last = at.snapshot, at.last_event_id
        floors = (marks.floor(since), marks.front(since))
        last = max(last, await self._session.fetchval(query("find_first_event"), since, upto, *floors))
        newest = await self._session.fetchval(query("read_newest_event_id"))
        logs = self._log.shards if shards is None else {s: self._log.shards[s] for s in shards}
        only = None if shards is None or len(shards) == self._shards else list(shards)
        walk = Walk(Difference(since, upto, again=shards is not None), logs, only, newest, last)
        found = taken = behind = 0
        while not walk.ended:
            # These sites have no room in the next page. If they filled most of the last one, many more events follow.
            sites = self._aside.largest(BARE_SITES_MAX)
            is_run = taken >= PAGE and behind >= SKIM_FROM * taken
            behind = taken = await self._skim(walk, sites) if is_run and sites else 0
            if not taken:
                taken, behind = await self._read_page(walk, set(sites))
            found += taken
            while self._aside.is_full:
                self._place()
                if not await self._take_aside():
                    await asyncio.sleep(PAUSE_MAX_S)
            await self._fan_out.attend()
            self._beat()
        return found

    async def _read_page(self, walk: Walk, behind: set[str]) -> tuple[int, int]:
        """Read the next page; return the number of its events, and of those whose sites are behind."""
        since, upto = walk.difference.since, walk.difference.upto
        where = (since, upto, walk.last_event_id, walk.newest, PAGE, walk.only, self._shards, list(behind))
        rows = cast("list[EventRow]", await self._session.fetch(query("read_events_page"), *where))
        walk.ended = len(rows) < PAGE
        walk.last_event_id = rows[-1][0] if rows else walk.last_event_id
        await self._page(rows, walk.end, walk.logs, walk.difference)
        return len(rows), sum(1 for row in rows if row[1] in behind)

    async def _skim(self, walk: Walk, behind: list[str]) -> int:
        """Defer the events up to the first of a site that is not behind, by id only; return their number."""
        since, upto = walk.difference.since, walk.difference.upto
        where = (since, upto, walk.last_event_id, walk.newest, SKIM, walk.only, self._shards, behind)
        rows = await self._session.fetch(query("skim_events"), *where)
        groups: Groups = {(site_id, kind, only): event_ids for site_id, kind, only, event_ids in rows}
        if not groups:
            return 0
        count = sum(map(len, groups.values()))
        walk.last_event_id = max(map(max, groups.values()))
        takers = await self._endpoints.of_sites({site_id: WHOLE for site_id, _, _ in groups})
        page = Page(walk.logs, walk.end, self._monotonic())
        self._log.rows += count
        ours = {site_id: found for site_id, found in takers.items() if found.shard in walk.logs}
        self._leave_groups(groups, ours, page, walk.difference)
        page.close()
        return count

    # One page -----------------------------------------------------------------------------------------------

    async def _page(
        self,
        rows: Sequence[EventRow],
        end: Position,
        shards: Mapping[int, ShardLog],
        difference: Difference,
    ) -> None:
        """Process a page, one group of sites after another; events of sites without room are deferred."""
        page = Page(shards, end, self._monotonic())
        self._log.rows += len(rows)
        async for group, takers in self._groups(rows):
            ours = {site_id: found for site_id, found in takers.items() if found.shard in shards}
            self._leave_at_once(group, ours, page, difference)
            for step in _steps(group, ours):
                await self._deal(step, ours, page, difference)
        page.close()

    async def _groups(
        self, rows: Sequence[EventRow]
    ) -> AsyncIterator[tuple[Sequence[EventRow], dict[str, Takers]]]:
        """Yield the events of a page with the endpoints of their sites, in groups of bounded numbers of endpoints."""
        sites = dict.fromkeys(row[1] for row in rows)
        takers = self._endpoints.known(sites)
        unread = [site_id for site_id in sites if site_id not in takers]
        is_first, endpoints = True, 0
        for start in range(0, len(unread), SITES_A_READ):
            if endpoints >= ENDPOINTS_AT_ONCE:
                yield [row for row in rows if row[1] in takers], takers
                takers, is_first, endpoints = {}, False, 0
            found = await self._endpoints.of_sites(dict.fromkeys(unread[start : start + SITES_A_READ], WHOLE))
            takers |= found
            endpoints += sum(of_site.count for of_site in found.values())
        yield (rows if is_first else [row for row in rows if row[1] in takers]), takers

    async def _deal(
        self, rows: Sequence[EventRow], takers: Mapping[str, Takers], page: Page, difference: Difference
    ) -> None:
        settled: set[tuple[int, int]] = set()
        sites = takers.keys() & {row[1] for row in rows} - self._aside.keys()
        if difference.again and (roomy := [row[0] for row in rows if row[1] in sites]):
            settled = await self._read_settled(roomy, WHOLE)
        now = self._monotonic()
        room = self._fan_out.rooms_for((site_id, takers[site_id].count) for site_id in sites)
        dealt = self._fan_out.deal(rows, takers, room, page.ticket, settled, now)
        for site_id, event_ids in dealt.left.items():
            weight = -(-dealt.left_pairs[site_id] // len(event_ids))
            self._leave(site_id, event_ids, weight, takers[site_id], page, difference, now)
        await self._fan_out.enter(dealt.work, difference)
        self._beat()
        await asyncio.sleep(0)

    def _leave_at_once(
        self, rows: Sequence[EventRow], takers: dict[str, Takers], page: Page, difference: Difference
    ) -> None:
        """Defer the events of sites that are behind, wide or too early; remove these sites from `takers`.

        Deliveries are not counted one by one here: every event of a site that is behind passes here once more.
        """
        is_early = difference.again and not self._order.recovered
        left = self._aside.keys()
        at_once = {
            site_id: found
            for site_id, found in takers.items()
            if site_id in left or found.slice_end is not None or (is_early and found.has_ordered)
        }
        if not at_once:
            return
        for site_id in at_once:
            del takers[site_id]
        groups: Groups = {}
        for event_id, site_id, kind, _, only, *_ in rows:
            if site_id in at_once:
                groups.setdefault((site_id, kind, only), []).append(event_id)
        self._leave_groups(groups, at_once, page, difference)

    def _leave_groups(
        self, groups: Groups, takers: Mapping[str, Takers], page: Page, difference: Difference
    ) -> None:
        """Defer the events that at least one endpoint takes."""
        now = self._monotonic()
        left: dict[str, list[int]] = {}
        pairs: Counter[str] = Counter()
        for (site_id, kind, only), event_ids in groups.items():
            found = takers.get(site_id)
            if found is None:
                continue
            if found.slice_end is not None:
                wanting = len(found.endpoints)
            else:
                wanting = len(found.of(kind)) if only is None else 1
            if wanting:
                left.setdefault(site_id, []).extend(event_ids)
                pairs[site_id] += wanting * len(event_ids)
        for site_id, event_ids in left.items():
            weight = -(-pairs[site_id] // len(event_ids))
            self._leave(site_id, sorted(event_ids), weight, takers[site_id], page, difference, now)

    def _leave(
        self,
        site_id: str,
        event_ids: list[int],
        weight: int,
        takers: Takers,
        page: Page,
        difference: Difference,
        now: float,
    ) -> None:
        part = DeferredPart(
            page.ticket(takers.shard),
            difference,
            len(takers.endpoints),
            weight,
            now,
            ids_of(event_ids),
            recovering=difference.again,
            ordered=takers.has_ordered,
            wide=takers.slice_end is not None,
        )
        self._aside.put(site_id, part)
        if part.recovering:
            self._order.unread.add(site_id)

    async def _read_settled(self, event_ids: list[int], span: Span) -> set[tuple[int, int]]:
        """Read which deliveries of some events are settled: by range, or by ids if others fill the range."""
        first, last = min(event_ids), max(event_ids)
        if last - first < SPARSE * len(event_ids):
            rows = await self._session.fetch(query("read_settled"), first, last, SETTLED_MAX)
            if len(rows) < SETTLED_MAX:
                return {(event_id, endpoint_id) for event_id, endpoint_id in rows}
        upto = ENDPOINT_ID_MAX if span.upto is None else span.upto
        sql = query("read_settled_events")
        rows = await self._session.fetch(sql, event_ids, first, last, span.after, upto)
        return {(event_id, endpoint_id) for event_id, endpoint_id in rows}

    # Events left in the log for a while ---------------------------------------------------------------------

    async def _take_aside(self) -> int:
        """Process some deferred events of the sites that have room; return the number of events."""
        looks = self._looks(self._monotonic())
        if not looks:
            return 0
        event_ids = sorted(itertools.chain.from_iterable(look.event_ids for look in looks.values()))
        rows = await self._session.fetch(query("read_events"), event_ids, event_ids[0], event_ids[-1])
        events = {row[0]: row for row in cast("list[EventRow]", rows)}
        takers = await self._endpoints.of_sites({site_id: look.span for site_id, look in looks.items()})
        settled = await self._settled_of(looks.values())
        work: list[Pair] = []
        entered: tuple[Difference, bool] | None = None  # how `work` enters, the same for most
        for site_id, look in looks.items():
            room = {site_id: look.room}
            for part, ids in look.pieces:
                if entered is not None and entered != (part.context, look.park):
                    await self._fan_out.enter(work, entered[0], park=entered[1])
                    work = []
                entered = part.context, look.park
                some = [events[event_id] for event_id in ids if event_id in events]
                dealt, is_whole = self._take(site_id, part, ids, some, takers.get(site_id), room, settled)
                work += dealt.work
                if not is_whole:
                    break
        if entered is not None:
            await self._fan_out.enter(work, entered[0], park=entered[1])
        self._note_read(looks)
        self._beat()
        return len(event_ids)

    def _take(
        self,
        site_id: str,
        part: DeferredPart[Difference],
        event_ids: list[int],
        rows: list[EventRow],
        takers: Takers | None,
        room: dict[str, int],
        settled: set[tuple[int, int]],
    ) -> tuple[Dealt, bool]:
        """Make deliveries of the next events of a part; return them, and True if there was room for all."""
        now = self._monotonic()
        if takers is None:  # the endpoints were deleted: those of the slice, or all
            self._aside.taken(site_id, len(event_ids), part.slice_end)
            return Dealt(), True
        dealt = self._fan_out.deal(rows, {site_id: takers}, room, lambda _: part.ticket, settled, now)
        left = dealt.left.get(site_id)
        count = len(event_ids) if left is None else event_ids.index(left[0])
        if count:
            part.weight = max(1, dealt.pairs // count)
        self._aside.taken(site_id, count, takers.slice_end)
        return dealt, left is None

    async def _settled_of(self, looks: Iterable[Look]) -> set[tuple[int, int]]:
        """Read the settled deliveries of some events; for a site processed by slices, only those of the current slice.

        Only events read by recovery can have settled deliveries.
        """
        looks = [look for look in looks if look.recovering]
        narrow = [event_id for look in looks if not look.wide for event_id in look.event_ids]
        settled = await self._read_settled(narrow, WHOLE) if narrow else set()
        for look in looks:
            if look.wide:
                settled |= await self._read_settled(look.event_ids, look.span)
        return settled

    def _looks(self, now: float) -> dict[str, Look]:
        """Return what to process now, sites taking turns; nothing if it is too little to be worth the statements."""
        if not self._aside or now < self._look_at:
            return {}
        looks: dict[str, Look] = {}
        events = pairs = 0
        for site_id, parts in self._aside.turns(SITES_A_READ):
            if (look := self._look(site_id, parts, now)) is not None:
                looks[site_id] = look
                events += len(look.event_ids)
                pairs += look.pairs
                if events >= ASIDE_CHUNK or pairs >= PAIRS_A_STEP:
                    break
        if not looks or (events < ASIDE_LEAST and now < self._patient_until):
            self._look_at = now + max(PAUSE_MAX_S, min(len(self._aside), SITES_A_READ) * LOOK_S)
            return {}
        self._patient_until = now + GATHER_MAX_S
        return looks

    def _look(self, site_id: str, parts: Iterable[DeferredPart[Difference]], now: float) -> Look | None:
        """Return what to process of one site; None if it has no room."""
        oldest = next(iter(parts))
        is_early = oldest.recovering and oldest.ordered and not self._order.recovered
        room, park = 0 if is_early else self._fan_out.refill_for(site_id, oldest.endpoints), False
        if room > 0:
            self._aside.had_room(site_id, now)
        else:
            room, park = self._room_to_park(site_id, oldest, now), True
            if room <= 0:
                return None
        pieces: list[tuple[DeferredPart[Difference], list[int]]] = []
        free = room
        for part in parts:
            if pieces and (part.wide or free <= 0):
                break
            event_ids = part.first(max(1, min(free // part.weight, ASIDE_CHUNK)))
            pieces.append((part, event_ids))
            free -= len(event_ids) * part.weight
            if part.wide or len(event_ids) < len(part.event_ids):
                break
        return Look(pieces, room, park)

    def _room_to_park(self, site_id: str, oldest: DeferredPart[Difference], now: float) -> int:
        """Return how many deliveries of a site without room to park now; 0 or less if it can wait."""
        waited_s = now - oldest.since
        if waited_s >= STUCK_S and now >= self._shed_at:
            self._shed_at = now + SHED_EVERY_S
            self._fan_out.shed(site_id, oldest.endpoints)
        if waited_s >= ASIDE_FOR_S or now - oldest.ticket.read_at >= ASIDE_LONG_S or self._aside.is_full:
            return min(self._fan_out.parking_for(site_id), ASIDE_PARKED)
        return 0

    def _note_read(self, site_ids: Iterable[str]) -> None:
        """Mark sites as read by recovery if none of their recovered events wait any more."""
        for site_id in self._order.unread.intersection(site_ids):
            if not self._aside.is_recovering(site_id) and not self._fan_out.waits(site_id):
                self._order.unread.discard(site_id)


def _steps(rows: Sequence[EventRow], takers: Mapping[str, Takers]) -> Iterator[Sequence[EventRow]]:
    """Yield the events that endpoints may take, in steps of bounded pairs."""
    if not takers:
        return
    if len(rows) * max(of_site.count for of_site in takers.values()) <= PAIRS_A_STEP:
        yield rows
        return
    step: list[EventRow] = []
    pairs = 0
    for row in rows:
        of_site = takers.get(row[1])
        if of_site is None:
            continue
        wanting = len(of_site.of(row[2])) if row[4] is None else 1
        if not wanting:
            continue
        step.append(row)
        pairs += wanting
        if pairs >= PAIRS_A_STEP:
            yield step
            step, pairs = [], 0
    if step:
        yield step


def upper_end(newest: int) -> int:
    """Return the last id of the day after the newest id's day: the sequence may be there tomorrow."""
    return (newest // DAY_IDS + 2) * DAY_IDS - 1


def read_new_events(floor: int, upper: int) -> str:
    """Return the statement for the days from a floor to an upper end; its text is the same all day."""
    lower = floor // DAY_IDS * DAY_IDS - 1
    return query("read_new_events").replace(" -1 ", f" {lower} ").replace(f"{2**63 - 1}", f"{upper}")
