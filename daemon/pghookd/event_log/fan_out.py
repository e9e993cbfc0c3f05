"""The fan-out: from events of the log to deliveries in the lanes, one for each endpoint that takes an event.

What is not to go out, or not yet, is written down instead: duplicates, what has to wait, what a filter could not judge,
what no lane has room for. Nobody waits here for a lane: what a lane has no room for, and is not to become a row, stays
in the hand of its site. Until it has found its place the site gets nothing more, and all others do.

Never here: reading the log, what is left there for a while (event_log/reader).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from structlog.typing import FilteringBoundLogger

from pghookd.event_log.endpoints import Endpoints
from pghookd.event_log.payload_filter import Filters, filter_of
from pghookd.event_log.position import Difference, EventLog, Ticket, settle
from pghookd.event_log.rows import EventRow, endpoint_of, event_of
from pghookd.event_log.supersede import AGAIN_MAX, DedupeKey, dedupe_key_of
from pghookd.event_log.takers import Dealt, Pair, Takers
from pghookd.model.delivery import Delivery, Endpoint, Event, Reason, State
from pghookd.model.event_options import EventOptions
from pghookd.model.event_type import valid_type
from pghookd.model.outcome import BacklogWrite, DeadWrite, Write
from pghookd.postgres.client import Session, columns, query
from pghookd.process.logs import LogEvent
from pghookd.scheduling.lanes import PARKED_FOR, Lane, Lanes, Offer
from pghookd.scheduling.ordering import Order, is_ordered
from pghookd.scheduling.unwritten import Unwritten

HAND_FOR_S: Final = 60.0  # for so long a delivery waits for room in its lane; then it is parked
REFRESH_EVERY_S: Final = 5.0  # endpoints of queued work, beside the notifications
CHANGED_MAX: Final = 1000  # endpoints to look at again; with more of them all that have work are looked at
ALL_EVERY_S: Final = 0.5  # between two looks at all of them
REFRESH_PAGE: Final = 500  # endpoints looked at again between two reads


class Outbox(Protocol):
    """What the recorder takes."""

    def put(self, write: Write, now: float) -> None:
        """Take a change of state."""
        ...

    async def room(self, most: int = ...) -> None:
        """Wait until it has room, or until fewer writes than so many are waiting."""
        ...

    def wake(self) -> None:
        """Go on at once with what is done between two batches."""
        ...


class FanOut:
    """Makes deliveries of events, and finds each its place."""

    def __init__(
        self,
        session: Session,
        log: EventLog,
        lanes: Lanes,
        order: Order,
        outbox: Outbox,
        filters: Filters,
        endpoints: Endpoints,
        *,
        shards: int,
        kick: Callable[[], None],
        logger: FilteringBoundLogger,
        monotonic: Callable[[], float],
    ) -> None:
        self._session = session
        self._log = log
        self._lanes = lanes
        self._order = order
        self._outbox = outbox
        self._filters = filters
        self._endpoints = endpoints
        self._shards = shards
        self._kick = kick
        self._logger = logger
        self._monotonic = monotonic
        self._has_dedupe_keys = False  # what is dealt with now
        self._unjudged: set[Delivery] = set()  # of ordered endpoints, whose filters took too long
        self._unwritten = Unwritten()
        self._hands: dict[str, deque[Pair]] = {}  # per site, what its lanes have no room for
        self._changed: set[int] | None = set()  # endpoints to look at again; None: all that have work
        self._stale: dict[int, None] = {}  # of those, what is not looked at yet
        self._refresh_at = monotonic() + REFRESH_EVERY_S
        self._all_at = 0.0  # all are looked at no earlier

    # Making deliveries ------------------------------------------------------------------------------------------------

    def rooms_for(self, sites: Iterable[tuple[str, int]]) -> dict[str, int]:
        """Return how many deliveries may be made of the events of sites with so many endpoints; 0 or less: none."""
        rooms = self._lanes.rooms_for(sites)
        if self._unwritten:
            rooms = {site_id: min(room, self._unwritten.room_for(site_id)) for site_id, room in rooms.items()}
        for site_id in self._hands.keys() & rooms.keys() if self._hands else ():
            rooms[site_id] = 0
        return rooms

    def refill_for(self, site_id: str, endpoints: int) -> int:
        """Return the same of one site where it is worth reading the log again for."""
        if site_id in self._hands:
            return 0
        return min(self._lanes.refill_for(site_id, endpoints), self._unwritten.room_for(site_id))

    def parking_for(self, site_id: str) -> int:
        """Return how many rows of a site may be parked now; 0 or less if none."""
        if site_id in self._hands:
            return 0
        return self._unwritten.room_for(site_id)

    def deal(
        self,
        rows: Iterable[EventRow],
        takers: Mapping[str, Takers],
        room: dict[str, int],
        ticket_of: Callable[[int], Ticket],
        settled: set[tuple[int, int]],
        now: float,
    ) -> Dealt:
        """Make a delivery for each endpoint that takes an event, as long as the event's site has room.

        Args:
            rows: events, by ascending id within each site; the caller bounds their pairs.
            takers: per site, its endpoints; events of other sites make nothing.
            room: per site, how many deliveries it may have, if any; what is made is taken off.
            ticket_of: returns the ticket for the events of a shard.
            settled: pairs of event and endpoint that need nothing.
            now: monotonic seconds.
        """
        dealt = Dealt()
        for row in rows:
            event_id, site_id, kind, _, only = row[:5]
            of_site = takers.get(site_id)
            if of_site is None:
                continue
            wanting = of_site.of(kind) if only is None else of_site.only(only)
            if settled:
                wanting = [each for each in wanting if (event_id, each.endpoint_id) not in settled]
            if not wanting:
                continue
            if room.get(site_id, 0) <= 0:
                dealt.left.setdefault(site_id, []).append(event_id)
                dealt.left_pairs[site_id] += len(wanting)
                continue
            room[site_id] -= len(wanting)
            dealt.pairs += len(wanting)
            self._make(event_of(row), wanting, ticket_of(of_site.shard), dealt.work, now)
        return dealt

    def _make(
        self, event: Event, wanting: Iterable[Endpoint], ticket: Ticket, work: list[Pair], now: float
    ) -> None:
        for endpoint in wanting:
            if event.event_id <= endpoint.from_event_id:
                continue
            delivery = Delivery(event, endpoint.endpoint_id, 0, now, ticket, age_from_us=event.created_at_us)
            if event.options is not None:
                self._heed(delivery, event.options)
            ticket.open.add(delivery)
            work.append((endpoint, delivery))

    def _heed(self, delivery: Delivery, options: EventOptions) -> None:
        delivery.age_from_us = max(delivery.age_from_us, options.deliver_after_us)
        if options.dedupe_key is not None:
            options.duplicate = None
            self._has_dedupe_keys = True

    # Into the lanes -------------------------------------------------------------------------------------------

    async def enter(self, work: list[Pair], difference: Difference, *, park: bool = False) -> None:
        """Queue deliveries, but for duplicates and what filters leave out.

        Args:
            work: some thousand deliveries at most, each with its endpoint.
            difference: in which their events were read.
            park: what would be queued becomes a row instead.
        """
        if self._has_dedupe_keys:
            work = await self._bury_duplicates(work, difference)
        filtered = [pair for pair in work if filter_of(pair[0]) is not None]
        if filtered:
            await self._offer_filtered(work, filtered, park=park)
        elif work:
            self._offer(work, park=park)
        await self._outbox.room()

    async def _bury_duplicates(self, work: list[Pair], difference: Difference) -> list[Pair]:
        """Give up the deliveries of duplicates before anything is offered; return the others.

        Until its write is handed over no checkpoint gives a duplicate a row: see `ShardLog.overdue`.
        """
        self._has_dedupe_keys = False
        keys = {d.event: key for _, d in work if (key := dedupe_key_of(d.event)) is not None}
        firsts = await self._find_firsts(keys, difference)
        for event, key in keys.items():
            if event.options is not None:
                event.options.duplicate = firsts[key] != event.event_id
        others: list[Pair] = []
        now = self._monotonic()
        for endpoint, delivery in work:
            options = delivery.event.options
            if options is not None and options.duplicate:
                self._put(DeadWrite(delivery, Reason.DUPLICATE), now)
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

    async def _offer_filtered(self, work: list[Pair], filtered: list[Pair], *, park: bool) -> None:
        """Queue what no filter is asked of first: nobody else waits for filters."""
        if others := [pair for pair in work if filter_of(pair[0]) is None]:
            self._offer(others, park=park)
        if kept := await self._sift(filtered):
            self._offer(kept, park=park)
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
                self._put(BacklogWrite(delivery, State.PARKED, Reason.FILTER_SLOW), now)
            else:
                kept.append((endpoint, delivery))
        return kept

    def _instead(self, lane: Lane, delivery: Delivery, now: float) -> BacklogWrite | None:
        """Return the row of a delivery that is not to go out yet; what goes out may replace older ones."""
        if not lane.endpoint.enabled:
            return BacklogWrite(delivery, State.HELD, Reason.DISABLED)
        options = delivery.event.options
        if options is not None and (wait_s := options.wait_s - (now - delivery.since)) > 0:
            return BacklogWrite(delivery, State.WAITING, Reason.DELIVER_AFTER, wait_s)
        if self._unjudged and delivery in self._unjudged:
            return BacklogWrite(delivery, State.PARKED, Reason.FILTER_SLOW)
        if options is not None:
            self._log.keys.note(delivery)
        return None

    def _offer(self, work: list[Pair], *, park: bool) -> None:
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
            elif (write := self._instead(lane, delivery, now)) is not None:
                self._put(write, now)
            elif park:
                self._park(delivery, Reason.LANE_FULL if delivery.line is None else Reason.ORDERING, now)
            else:
                self._hand_over(endpoint, lane, delivery, now)
        self._kick()

    def _hand_over(self, endpoint: Endpoint, lane: Lane, delivery: Delivery, now: float) -> None:
        """Find a place for a delivery; in the hand of its site it waits for one, and for those before it."""
        hand = self._hands.get(endpoint.site_id) if self._hands else None
        if hand is not None:
            hand.append((endpoint, delivery))
        elif not self._find_place(lane, delivery, now):
            self._hands[endpoint.site_id] = deque([(endpoint, delivery)])
            self._outbox.wake()  # a look at rows may be what it waits for

    def _put(self, write: Write, now: float) -> None:
        self._outbox.put(write, now)
        self._unwritten.note(write.delivery)

    def _find_place(self, lane: Lane, delivery: Delivery, now: float) -> bool:
        """Queue a delivery, or give it a row; return False if it is to wait for room in its lane."""
        offer = self._queue(lane, delivery, now)
        if offer is Offer.WAIT and now - delivery.since < HAND_FOR_S:
            return False
        if offer is not Offer.QUEUED:
            self._park(delivery, PARKED_FOR[offer], now)
        return True

    def shed(self, site_id: str, endpoints: int) -> None:
        """Park the surplus of lanes that do not keep up, and keep others of the same site from having room."""
        now = self._monotonic()
        for delivery in self._lanes.shed_for(site_id, endpoints, now):
            self._park(delivery, Reason.LANE_FULL, now)

    def waits(self, site_id: str) -> bool:
        """Return True if a site has."""
        return site_id in self._hands

    @property
    def hands(self) -> int:
        """How many sites have deliveries in their hands."""
        return len(self._hands)

    def place(self) -> list[str]:
        """Find a place for what sites have in their hands, as far as there is room; return the sites that it helped."""
        placed: list[str] = []
        now = self._monotonic()
        for site_id, hand in list(self._hands.items()):
            before = len(hand)
            while hand and self._place(*hand[0], now):
                hand.popleft()
            if len(hand) < before:
                placed.append(site_id)
            if not hand:
                del self._hands[site_id]
        if placed:
            self._kick()
        return placed

    def _place(self, endpoint: Endpoint, delivery: Delivery, now: float) -> bool:
        lane = self._lanes.by_endpoint.get(delivery.endpoint_id) or self._lanes.lane(endpoint)
        if not lane.endpoint.enabled:
            self._put(BacklogWrite(delivery, State.HELD, Reason.DISABLED), now)
            return True
        return self._find_place(lane, delivery, now)

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
        self._put(DeadWrite(delivery, reason), now)

    def _park(self, delivery: Delivery, reason: Reason, now: float) -> None:
        if delivery.endpoint_id not in self._lanes.parked:
            self._lanes.parked.add(delivery.endpoint_id)
            self._logger.info(
                LogEvent.DELIVERY_PARKED,
                endpoint_id=delivery.endpoint_id,
                site_id=delivery.event.site_id,
                reason=reason.value,
            )
        self._put(BacklogWrite(delivery, State.PARKED, reason), now)

    # Endpoints that change while work for them is queued ----------------------------------------------------

    def endpoints_changed(self, endpoint_ids: Iterable[int] | None) -> None:
        """Look at endpoints again before long; None: at all that have work."""
        self._endpoints.ask_again()
        if endpoint_ids is None:
            self._changed = None
        elif self._changed is not None:
            self._changed.update(endpoint_ids)
            if len(self._changed) > CHANGED_MAX:
                self._changed = None

    async def attend(self) -> None:
        """Look again at a page of the endpoints that have changed, and at which rows are durable by now.

        Every few seconds all endpoints that have work count as changed.
        """
        self._unwritten.sweep()
        now = self._monotonic()
        if now >= self._refresh_at:
            self._refresh_at = now + REFRESH_EVERY_S
            self._changed = None
        if self._changed is not None:
            self._stale.update((i, None) for i in self._changed if i in self._lanes.by_endpoint)
            self._changed = set()
        elif now >= self._all_at:
            self._all_at = now + ALL_EVERY_S
            self._stale.update((lane.key.endpoint_id, None) for lane in self._lanes.busy())
            self._stale.update((d.endpoint_id, None) for hand in self._hands.values() for _, d in hand)
            self._changed = set()
        if self._stale:
            ids = list(itertools.islice(self._stale, REFRESH_PAGE))
            for endpoint_id in ids:
                del self._stale[endpoint_id]
            await self._refresh(ids)

    async def _refresh(self, ids: list[int]) -> None:
        self._endpoints.ask_again()  # nothing older is to come after what is read now
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
                        self._outbox.put(BacklogWrite(delivery, State.HELD, Reason.DISABLED), now)
            else:
                self._forget(lane, now)

    def _forget(self, lane: Lane, now: float) -> None:
        """Drop the work of a deleted endpoint: what had a row is dead, the rest leaves none."""
        lane.endpoint = dataclasses.replace(
            lane.endpoint, enabled=False
        )  # the rest of a page must not go out
        endpoint_id = lane.key.endpoint_id
        waiting = self._lanes.forget(lane) + self._order.forget(endpoint_id)
        if (hand := self._hands.get(lane.key.site_id)) is not None:
            waiting += [delivery for _, delivery in hand if delivery.endpoint_id == endpoint_id]
            self._hands[lane.key.site_id] = deque(pair for pair in hand if pair[1].endpoint_id != endpoint_id)
        for delivery in waiting:
            if delivery.in_backlog:
                self.die(delivery, Reason.NO_ENDPOINT, now)
            else:
                settle(delivery)
