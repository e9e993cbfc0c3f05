"""Reads the log: the difference to the last read, then the endpoints of its sites, then into the lanes.

One road for everything: after a start, a crash or a takeover the stored positions are walked to a snapshot of now, and
from there on each read is the difference to the one before.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeAlias, cast

from structlog.typing import FilteringBoundLogger

from pghookd.core import event_options
from pghookd.core.aside import Aside, Part
from pghookd.core.envelope import valid_type
from pghookd.core.event_options import EventOptions
from pghookd.core.lanes import PARKED_FOR, Lane, Lanes, Offer
from pghookd.core.model import Delivery, Endpoint, Event, Reason, State
from pghookd.core.order import Order, is_ordered
from pghookd.core.snapshot import Log, Marks, Position, ShardLog, Snapshot, Ticket, settle
from pghookd.core.writes import Died, Kept, Write
from pghookd.edge.filter import Filters
from pghookd.edge.journal import LogEvent
from pghookd.edge.postgres import DatabaseAway, Row, Session, columns, query
from pghookd.edge.rows import endpoint_of

PAGE: Final = 1000  # events
DAY_IDS: Final = 2**32  # event ids of a day, and of a partition
PAUSE_MIN_S: Final = 0.001
PAUSE_MAX_S: Final = (
    0.002  # a read that finds nothing takes 0.1 ms; 4 ms here makes the median latency 2.6 ms, not 1.6
)
# After rows let some gather, the longer the more there were: reading at once takes a tenth of the producers' speed.
GATHER_S: Final = 0.0001  # for each event of the last read
GATHER_MAX_S: Final = 0.008
LULL_S: Final = 0.25  # without a row: go to sleep
PARKED_AHEAD_MAX: Final = 125  # rows to be parked that wait to be written: while many do, nothing is sent
ROOM_LOOK_S: Final = 0.1  # how often a reader that waits for room looks again
ASIDE_CHUNK: Final = 500  # deliveries of what was left in the log, between two reads
ASIDE_FOR_S: Final = (
    60.0  # for so long it waits for room; then it is parked, so that the stored position goes on
)
ASIDE_PARKED: Final = 200  # deliveries parked then, between two reads
REFRESH_EVERY_S: Final = 5.0  # endpoints of queued work, beside the notifications

# event_id, site_id, type, created_at in microseconds, the only endpoint it is for, payload (null: large), options
EventRow: TypeAlias = tuple[int, str, str, int, int | None, bytes | None, str | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """Between which snapshots events are new; `again`: they may have been read, and settled, in another life."""

    since: Snapshot
    upto: Snapshot
    again: bool = False


class Sleeper(Protocol):
    """The bell."""

    async def sleep(self, read: Callable[[], Awaitable[int]]) -> None:
        """Sleep until there is something to read."""
        ...


class Outbox(Protocol):
    """What the recorder takes from the reader."""

    def put(self, write: Write, now: float) -> None:
        """Take a change of state."""
        ...

    async def room(self, most: int = ...) -> None:
        """Wait until it has room, or until fewer writes than so many are waiting."""
        ...

    def heal(self, endpoint_ids: Iterable[int] | None) -> None:
        """Endpoints have changed; None: any of them."""
        ...


class Reader:
    """Reads differences and fans them out."""

    def __init__(
        self,
        session: Session,
        log: Log,
        lanes: Lanes,
        order: Order,
        outbox: Outbox,
        filters: Filters,
        *,
        shards: int,
        kick: Callable[[], None],
        room: asyncio.Event,
        logger: FilteringBoundLogger,
        monotonic: Callable[[], float],
        beat: Callable[[], None],
    ) -> None:
        self._session = session
        self._log = log
        self._lanes = lanes
        self._order = order
        self._outbox = outbox
        self._shards = shards
        self._kick = kick
        self._room = room
        self._logger = logger
        self._monotonic = monotonic
        self._beat = beat
        self._keyed: dict[int, Event] = {}  # of the page, those that have a dedupe_key
        self._filtering: set[int] = set()  # endpoints of the page that have a filter
        self._filters = filters
        self._aside: Aside[Difference] = Aside()
        self._unjudged: set[Delivery] = set()  # of ordered endpoints, whose filters took too long
        self._upper = 0  # no event_id lies above this, as far as was seen
        self._changed: set[int] | None = set()  # endpoints to look at again; None: all that have work
        self._refresh_at = monotonic() + REFRESH_EVERY_S

    def endpoints_changed(self, endpoint_ids: Iterable[int] | None) -> None:
        """Look at endpoints again before long; None: at all that have work."""
        if endpoint_ids is None:
            self._changed = None
            self._outbox.heal(None)
        else:
            ids = list(endpoint_ids)
            if self._changed is not None:
                self._changed.update(ids)
            self._outbox.heal(ids)

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
        await self._attend()
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
            difference = Difference(since, upto, again=shards is not None)
            await self._page(cast("list[EventRow]", rows), end, logs, difference, settled)
            found += len(rows)
            while self._aside.is_full:
                await self._take_aside()
                self._beat()
            await self._attend()
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
            endpoints = await self._endpoints(rows)
            if self._aside or self._lanes.is_mixed(now):
                rows = self._leave(rows, endpoints, tickets, end, shards, difference, now)
            work = self._fan_out(rows, endpoints, tickets, end, shards, settled or set(), now)
        for number in shards:
            if number not in tickets:
                self._log.shards[number].skip(end)
        await self._enter(work, difference)

    async def _enter(
        self, work: list[tuple[Endpoint, Delivery]], difference: Difference, *, may_wait: bool = True
    ) -> None:
        """Queue deliveries, but for duplicates and what filters leave out; where one may not wait it is parked."""
        if self._keyed:
            await self._find_duplicates(difference)
        if self._filtering:
            await self._offer_filtered(work, may_wait=may_wait)
        elif work:
            await self._offer(work, may_wait=may_wait)

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
            again = dataclasses.replace(difference, again=True)
            self._aside.put(site_id, Part(tickets[shard], again, len(of_site), now, event_ids))
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
        endpoints = await self._endpoints(events) if events else {}
        shard = part.ticket.shard
        work = self._fan_out(
            events, endpoints, {shard.shard: part.ticket}, part.ticket.end, {shard.shard: shard}, settled, now
        )
        self._aside.taken(site_id, len(event_ids))
        await self._enter(work, part.context, may_wait=False)
        return len(event_ids)

    # Fanning out --------------------------------------------------------------------------------------------

    async def _endpoints(self, rows: Sequence[EventRow]) -> dict[str, list[Endpoint]]:
        """Read the endpoints of a page's sites; after the page, so that none committed before an event is missed."""
        sites = list({row[1] for row in rows})
        found: dict[str, list[Endpoint]] = {}
        for row in await self._session.fetch(query("read_endpoints_of_sites"), sites, self._shards):
            endpoint = endpoint_of(row)
            found.setdefault(endpoint.site_id, []).append(endpoint)
            if endpoint.options is not None and endpoint.options.filter is not None:
                self._filtering.add(endpoint.endpoint_id)
        return found

    def _fan_out(
        self,
        rows: Sequence[EventRow],
        endpoints: dict[str, list[Endpoint]],
        tickets: dict[int, Ticket],
        end: Position,
        shards: Mapping[int, ShardLog],
        settled: set[tuple[int, int]],
        now: float,
    ) -> list[tuple[Endpoint, Delivery]]:
        """Make a delivery for each endpoint that takes an event; every ticket is filled before anything is queued."""
        takers: dict[tuple[str, str], list[Endpoint]] = {}
        work: list[tuple[Endpoint, Delivery]] = []
        for row in rows:
            event_id, site_id, kind, created_at_us, only = row[:5]
            of_site = endpoints.get(site_id)
            if of_site is None:
                continue
            wanting = takers.get((site_id, kind))
            if wanting is None:
                wanting = takers[site_id, kind] = [e for e in of_site if e.takes(kind) and e.shard in shards]
            if only is not None:
                wanting = [e for e in of_site if e.endpoint_id == only and e.shard in shards]
            event: Event | None = None
            for endpoint in wanting:
                if event_id <= endpoint.from_event_id or (
                    settled and (event_id, endpoint.endpoint_id) in settled
                ):
                    continue
                if event is None:
                    event = _event_of(row)
                ticket = tickets.get(endpoint.shard)
                if ticket is None:
                    ticket = tickets[endpoint.shard] = self._log.shards[endpoint.shard].page(end, now)
                delivery = Delivery(event, endpoint.endpoint_id, 0, now, ticket, age_from_us=created_at_us)
                if event.options is not None:
                    self._heed(delivery, event.options)
                ticket.open.add(delivery)
                work.append((endpoint, delivery))
        return work

    def _heed(self, delivery: Delivery, options: EventOptions) -> None:
        delivery.age_from_us = max(delivery.age_from_us, options.deliver_after_us)
        if options.dedupe_key is not None:
            self._keyed[delivery.event.event_id] = delivery.event

    async def _find_duplicates(self, difference: Difference) -> None:
        """Say of the page's events with a dedupe_key which are not the first of it."""
        keyed, self._keyed = self._keyed, {}
        ids = [(e.event_id, e.site_id, e.options and e.options.dedupe_key) for e in keyed.values()]
        sql = query("find_duplicates_again" if difference.again else "find_duplicates")
        rows = await self._session.fetch(sql, *columns(ids, 3), difference.since, difference.upto)
        for row in rows:
            options = keyed[row["event_id"]].options
            if options is not None:
                options.duplicate = True

    async def _offer_filtered(self, work: list[tuple[Endpoint, Delivery]], *, may_wait: bool) -> None:
        """Queue what no filter is asked of first: nobody else waits for filters."""
        filtering, self._filtering = self._filtering, set()
        if others := [(e, d) for e, d in work if e.endpoint_id not in filtering]:
            await self._offer(others, may_wait=may_wait)
        if kept := await self._sift([(e, d) for e, d in work if e.endpoint_id in filtering]):
            await self._offer(kept, may_wait=may_wait)
        self._unjudged.clear()

    async def _sift(self, work: list[tuple[Endpoint, Delivery]]) -> list[tuple[Endpoint, Delivery]]:
        """Take out what filters leave out, which leaves no row, and park what they could not judge in time."""
        asked = [(e, d) for e, d in work if d.event.endpoint_id is None]
        sifted = await self._filters.sift(self._session, asked)
        kept: list[tuple[Endpoint, Delivery]] = []
        now = self._monotonic()
        for endpoint, delivery in work:
            key = delivery.event.event_id, delivery.endpoint_id
            if key in sifted.left_out:
                settle(delivery)
            elif key in sifted.unknown and is_ordered(endpoint):
                self._unjudged.add(delivery)  # parked when it is its turn
                kept.append((endpoint, delivery))
            elif key in sifted.unknown:
                self._outbox.put(Kept(delivery, State.PARKED, Reason.FILTER_SLOW), now)
                await self._outbox.room()
            else:
                kept.append((endpoint, delivery))
        return kept

    def _instead(
        self, lane: Lane, delivery: Delivery, options: EventOptions, now: float
    ) -> Kept | Died | None:
        """Return what is to be written of a delivery that is not to go out, or not yet."""
        if options.duplicate:
            return Died(delivery, Reason.DUPLICATE)
        self._log.keys.note(delivery)
        wait_s = options.wait_s - (now - delivery.since)
        if wait_s > 0 and lane.endpoint.enabled:
            return Kept(delivery, State.WAITING, Reason.DELIVER_AFTER, wait_s)
        return None

    async def _offer(self, work: list[tuple[Endpoint, Delivery]], *, may_wait: bool) -> None:
        lanes = self._lanes
        known: dict[int, Lane] = {}
        now = self._monotonic()
        for endpoint, delivery in work:
            lane = known.get(endpoint.endpoint_id)
            if lane is None:
                lane = known[endpoint.endpoint_id] = lanes.lane(endpoint)
            if is_ordered(endpoint) and delivery.event.endpoint_id is None:
                self._order.assign(delivery)
            options = delivery.event.options
            if options is not None and (write := self._instead(lane, delivery, options, now)) is not None:
                self._outbox.put(write, now)
                await self._outbox.room()
            elif not lane.endpoint.enabled:
                self._outbox.put(Kept(delivery, State.HELD, Reason.DISABLED), now)
                await self._outbox.room()
            elif not valid_type(delivery.event.type):
                self._die(delivery, Reason.INVALID, now)
            elif self._unjudged and delivery in self._unjudged:
                self._outbox.put(Kept(delivery, State.PARKED, Reason.FILTER_SLOW), now)
                await self._outbox.room()
            elif (offer := self._queue(lane, delivery, now)) is not Offer.QUEUED:
                if may_wait:
                    await self._overflow(lane, delivery)
                else:
                    self._park([delivery], PARKED_FOR[offer], now)
                    await self._outbox.room(PARKED_AHEAD_MAX)
                known.clear()
                now = self._monotonic()
        self._kick()

    def _queue(self, lane: Lane, delivery: Delivery, now: float) -> Offer:
        if delivery.line is None:
            return self._lanes.offer(lane, delivery, now)
        return self._order.offer(lane, delivery, now)

    def _die(self, delivery: Delivery, reason: Reason, now: float) -> None:
        self._logger.warning(
            LogEvent.DELIVERY_DIED,
            event_id=delivery.event.event_id,
            endpoint_id=delivery.endpoint_id,
            site_id=delivery.event.site_id,
            reason=reason.value,
        )
        self._outbox.put(Died(delivery, reason), now)

    async def _overflow(self, lane: Lane, delivery: Delivery) -> None:
        """Wait for room, or park: whichever the lanes say, until the delivery has found its place."""
        while True:
            now = self._monotonic()
            lane = self._lanes.by_endpoint.get(delivery.endpoint_id, lane)
            if not lane.endpoint.enabled:
                self._outbox.put(Kept(delivery, State.HELD, Reason.DISABLED), now)
                return
            offer = self._queue(lane, delivery, now)
            if offer is Offer.QUEUED:
                return
            if offer is not Offer.WAIT:
                self._park([delivery], PARKED_FOR[offer], now)
                await self._outbox.room(PARKED_AHEAD_MAX)
                return
            self._kick()
            self._park(self._lanes.shed(now), Reason.LANE_FULL, now)
            for write in self._order.shed(now):
                self._outbox.put(write, now)
            await self._wait_for_room(lane)

    def _park(self, deliveries: list[Delivery], reason: Reason, now: float) -> None:
        for delivery in deliveries:
            if delivery.endpoint_id not in self._lanes.parked:
                self._lanes.parked.add(delivery.endpoint_id)
                self._logger.info(
                    LogEvent.DELIVERY_PARKED,
                    endpoint_id=delivery.endpoint_id,
                    site_id=delivery.event.site_id,
                    reason=reason.value,
                )
            self._outbox.put(Kept(delivery, State.PARKED, reason), now)

    async def _wait_for_room(self, lane: Lane) -> None:
        self._room.clear()
        self._lanes.wanted = lane
        try:
            if not self._lanes.has_wanted_room():
                async with asyncio.timeout(ROOM_LOOK_S):
                    await self._room.wait()
        except TimeoutError:
            await self._attend()
        finally:
            self._lanes.wanted = None
        self._beat()

    # Endpoints that change while work for them is queued ----------------------------------------------------

    async def _attend(self) -> None:
        now = self._monotonic()
        if now >= self._refresh_at:
            self._refresh_at = now + REFRESH_EVERY_S
            self._changed = None
        if self._changed is None:
            ids = [lane.key.endpoint_id for lane in self._lanes.busy()]
        elif self._changed:
            ids = [i for i in self._changed if i in self._lanes.by_endpoint]
        else:
            return
        self._changed = set()
        if ids:
            await self._refresh(ids)

    async def _refresh(self, ids: list[int]) -> None:
        rows = await self._session.fetch(query("read_endpoints"), ids, self._shards)
        found = {row["endpoint_id"]: endpoint_of(row) for row in rows}
        now = self._monotonic()
        for endpoint_id in ids:
            lane = self._lanes.by_endpoint.get(endpoint_id)
            if lane is None:
                continue
            endpoint = found.get(endpoint_id)
            if endpoint is not None and endpoint.site_id == lane.key.site_id:
                self._lanes.lane(endpoint)
                if not endpoint.enabled:
                    for delivery in self._lanes.empty(lane):
                        self._outbox.put(Kept(delivery, State.HELD, Reason.DISABLED), now)
            else:
                self._forget(lane, now)

    def _forget(self, lane: Lane, now: float) -> None:
        """Drop the work of a deleted endpoint: what had a row is dead, the rest leaves none."""
        lane.endpoint = dataclasses.replace(
            lane.endpoint, enabled=False
        )  # the rest of a page must not go out
        for delivery in [*self._lanes.forget(lane), *self._order.forget(lane.key.endpoint_id)]:
            if delivery.in_backlog:
                self._die(delivery, Reason.NO_ENDPOINT, now)
            else:
                settle(delivery)


def _event_of(row: EventRow) -> Event:
    event_id, site_id, kind, created_at_us, only, payload, options = row
    event = Event(event_id, site_id, kind, created_at_us, payload, only)
    if options is not None:
        event.options = event_options.read(options)
    return event


def upper_end(newest: int) -> int:
    """Return the last id of the day after that of the newest one: where the sequence may be tomorrow."""
    return (newest // DAY_IDS + 2) * DAY_IDS - 1


def read_new_events(floor: int, upper: int) -> str:
    """Return the statement for the days from a floor's to an upper end's; the same text all day long."""
    lower = floor // DAY_IDS * DAY_IDS - 1
    return query("read_new_events").replace(" -1 ", f" {lower} ").replace(f"{2**63 - 1}", f"{upper}")
