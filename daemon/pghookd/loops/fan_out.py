"""The fan-out: from a page of the log to deliveries in the lanes, one for each endpoint that takes an event.

What is not to go out, or not yet, is written down instead: duplicates, what has to wait, what a filter could not judge,
what no lane has room for.

Never here: reading the log, what is left there for a while (loops/read).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

from structlog.typing import FilteringBoundLogger

from pghookd.core.envelope import valid_type
from pghookd.core.event_options import EventOptions
from pghookd.core.keys import AGAIN_MAX, DedupeKey, dedupe_key_of
from pghookd.core.lanes import PARKED_FOR, Lane, Lanes, Offer
from pghookd.core.model import Delivery, Endpoint, Event, Reason, State
from pghookd.core.order import Order, is_ordered
from pghookd.core.snapshot import Difference, Log, Position, ShardLog, Ticket, settle
from pghookd.core.writes import Died, Kept, Write
from pghookd.edge.filter import Filters
from pghookd.edge.journal import LogEvent
from pghookd.edge.postgres import Session, columns, query
from pghookd.edge.rows import EventRow, endpoint_of, event_of

PARKED_AHEAD_MAX: Final = 125  # rows to be parked that wait to be written: while many do, nothing is sent
ROOM_LOOK_S: Final = 0.1  # how often a reader that waits for room looks again
REFRESH_EVERY_S: Final = 5.0  # endpoints of queued work, beside the notifications
CHANGED_MAX: Final = (
    1000  # endpoints to look at again; with more of them all that have work are looked at instead
)
ALL_EVERY_S: Final = 0.5  # between two looks at all of them


class Outbox(Protocol):
    """What the recorder takes."""

    def put(self, write: Write, now: float) -> None:
        """Take a change of state."""
        ...

    async def room(self, most: int = ...) -> None:
        """Wait until it has room, or until fewer writes than so many are waiting."""
        ...

    def heal(self, endpoint_ids: Iterable[int] | None) -> None:
        """Endpoints have changed; None: any of them."""
        ...


class FanOut:
    """Makes deliveries of events, and finds each its place."""

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
        self._filters = filters
        self._shards = shards
        self._kick = kick
        self._room = room
        self._logger = logger
        self._monotonic = monotonic
        self._beat = beat
        self._has_dedupe_keys = False  # the page
        self._filtering: set[int] = set()  # endpoints of the page that have a filter
        self._unjudged: set[Delivery] = set()  # of ordered endpoints, whose filters took too long
        self._changed: set[int] | None = set()  # endpoints to look at again; None: all that have work
        self._refresh_at = monotonic() + REFRESH_EVERY_S
        self._all_at = 0.0  # all are looked at no earlier

    # Making deliveries ------------------------------------------------------------------------------------------------

    async def endpoints(self, rows: Sequence[EventRow]) -> dict[str, list[Endpoint]]:
        """Read the endpoints of a page's sites; after the page, so that none committed before an event is missed."""
        sites = list({row[1] for row in rows})
        found: dict[str, list[Endpoint]] = {}
        for row in await self._session.fetch(query("read_endpoints_of_sites"), sites, self._shards):
            endpoint = endpoint_of(row)
            found.setdefault(endpoint.site_id, []).append(endpoint)
            if endpoint.options is not None and endpoint.options.filter is not None:
                self._filtering.add(endpoint.endpoint_id)
        return found

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
                    event = event_of(row)
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
            options.duplicate = None
            self._has_dedupe_keys = True

    # Into the lanes -------------------------------------------------------------------------------------------

    async def enter(
        self, work: list[tuple[Endpoint, Delivery]], difference: Difference, *, may_wait: bool = True
    ) -> None:
        """Queue deliveries, but for duplicates and what filters leave out; where one may not wait it is parked."""
        if self._has_dedupe_keys:
            work = await self._bury_duplicates(work, difference)
        if self._filtering:
            await self._offer_filtered(work, may_wait=may_wait)
        elif work:
            await self._offer(work, may_wait=may_wait)

    async def _bury_duplicates(
        self, work: list[tuple[Endpoint, Delivery]], difference: Difference
    ) -> list[tuple[Endpoint, Delivery]]:
        """Give up the deliveries of duplicates before anything is offered; return the others.

        Until its write is handed over no checkpoint gives a duplicate a row: see `ShardLog.overdue`.
        """
        self._has_dedupe_keys = False
        keys = {d.event: key for _, d in work if (key := dedupe_key_of(d.event)) is not None}
        firsts = await self._find_firsts(keys, difference)
        for event, key in keys.items():
            if event.options is not None:
                event.options.duplicate = firsts[key] != event.event_id
        others: list[tuple[Endpoint, Delivery]] = []
        for endpoint, delivery in work:
            options = delivery.event.options
            if options is not None and options.duplicate:
                self._outbox.put(Died(delivery, Reason.DUPLICATE), self._monotonic())
                await self._outbox.room(PARKED_AHEAD_MAX)
            else:
                others.append((endpoint, delivery))
        return others

    async def _find_firsts(
        self, keys: Mapping[Event, DedupeKey], difference: Difference
    ) -> dict[DedupeKey, int]:
        """Return the event_id of the first event of each key; 0: it came before the difference."""
        firsts: dict[DedupeKey, int] = {}
        unknown: dict[DedupeKey, int] = {}  # and the least event of the page
        for event, key in keys.items():
            if key in firsts:
                continue
            first = difference.firsts.get(key)
            if first is not None:
                firsts[key] = first
            else:
                unknown[key] = min(event.event_id, unknown.get(key, event.event_id))
        if unknown:
            for key, first in (await self._look_up_firsts(list(unknown), difference)).items():
                firsts[key] = unknown[key] if first is None else first
                difference.firsts.put(key, firsts[key])
        return firsts

    async def _look_up_firsts(
        self, keys: list[DedupeKey], difference: Difference
    ) -> dict[DedupeKey, int | None]:
        columns_of_keys = columns([(*key[:2], key.from_event_id, key.to_event_id) for key in keys], 4)
        least, greatest = min(columns_of_keys[2]), max(columns_of_keys[3])
        arguments = (*columns_of_keys, least, greatest, difference.since, difference.upto)
        if difference.again:
            rows = await self._session.fetch(query("find_firsts_again"), *arguments, AGAIN_MAX)
        else:
            rows = await self._session.fetch(query("find_firsts"), *arguments)
        return dict.fromkeys(keys) | {keys[row["n"] - 1]: row["first_event_id"] for row in rows}

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

    def _instead(self, lane: Lane, delivery: Delivery, now: float) -> Kept | None:
        """Return the row of a delivery that is not to go out yet; what goes out may replace older ones."""
        if not lane.endpoint.enabled:
            return Kept(delivery, State.HELD, Reason.DISABLED)
        options = delivery.event.options
        if options is not None and (wait_s := options.wait_s - (now - delivery.since)) > 0:
            return Kept(delivery, State.WAITING, Reason.DELIVER_AFTER, wait_s)
        if self._unjudged and delivery in self._unjudged:
            return Kept(delivery, State.PARKED, Reason.FILTER_SLOW)
        if options is not None:
            self._log.keys.note(delivery)
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
            if not valid_type(delivery.event.type):
                self.die(delivery, Reason.INVALID, now)
                await self._outbox.room()
            elif (write := self._instead(lane, delivery, now)) is not None:
                self._outbox.put(write, now)
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

    def die(self, delivery: Delivery, reason: Reason, now: float) -> None:
        """Give a delivery up, and say so."""
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
            await self.attend()
        finally:
            self._lanes.wanted = None
        self._beat()

    # Endpoints that change while work for them is queued ----------------------------------------------------

    def endpoints_changed(self, endpoint_ids: Iterable[int] | None) -> None:
        """Look at endpoints again before long; None: at all that have work."""
        if endpoint_ids is None:
            self._changed = None
            self._outbox.heal(None)
        else:
            ids = list(endpoint_ids)
            if self._changed is not None:
                self._changed.update(ids)
                if len(self._changed) > CHANGED_MAX:
                    self._changed = None
            self._outbox.heal(ids)

    async def attend(self) -> None:
        """Look again at endpoints that have changed, and every few seconds at all that have work."""
        now = self._monotonic()
        if now >= self._refresh_at:
            self._refresh_at = now + REFRESH_EVERY_S
            self._changed = None
        if self._changed is None:
            if now < self._all_at:
                return
            self._all_at = now + ALL_EVERY_S
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
                self.die(delivery, Reason.NO_ENDPOINT, now)
            else:
                settle(delivery)
