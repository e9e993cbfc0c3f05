"""The fan-out: from events of the log to deliveries in the lanes, one for each endpoint that takes an event.

A delivery that must not be sent, or not yet, is written to the database instead. These are duplicates, delayed
deliveries, those that a filter did not judge in time, and those without room in a lane. The fan-out never waits for a
lane. A delivery without room that does not become a row waits in the hand of its site, a queue. Until the hand is empty
the site gets no more deliveries; all other sites do.

Never here: reading the log, and deferred events (event_log/reading/reader).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from structlog.typing import FilteringBoundLogger

from pghookd.event_log.payload_filter import Filters, filter_of
from pghookd.event_log.position import Difference, EventLog, Ticket, settle
from pghookd.event_log.reading.endpoints import Endpoints
from pghookd.event_log.reading.takers import Dealt, Pair, Takers
from pghookd.event_log.rows import EventRow, endpoint_of, event_of
from pghookd.event_log.supersede import AGAIN_MAX, DedupeKey, dedupe_key_of
from pghookd.model.delivery import Delivery, Endpoint, Event, Reason, State
from pghookd.model.event_options import EventOptions
from pghookd.model.event_type import valid_type
from pghookd.model.outcome import BacklogWrite, DeadWrite, Write
from pghookd.postgres.client import Session, columns, query
from pghookd.process.logs import LogEvent
from pghookd.scheduling.lanes import PARKED_FOR, Lane, Lanes, Offer
from pghookd.scheduling.ordering import Order, is_ordered
from pghookd.scheduling.unwritten import Unwritten

HAND_FOR_S: Final = 60.0  # a delivery waits this long for room in its lane; then it is parked
REFRESH_EVERY_S: Final = 5.0  # how often endpoints of queued work are read again, besides the notifications
CHANGED_MAX: Final = 1000  # changed endpoints remembered; with more, all that have work are read
ALL_EVERY_S: Final = 0.5  # least time between two reads of all of them
REFRESH_PAGE: Final = 500  # endpoints read again between two reads of the log


class Outbox(Protocol):
    """The recorder, as the fan-out uses it."""

    def put(self, write: Write, now: float) -> None:
        """Take a change of state."""
        ...

    async def room(self, most: int = ...) -> None:
        """Wait until the recorder has room, or until fewer than `most` writes are waiting."""
        ...

    def wake(self) -> None:
        """Run the chores between two batches at once."""
        ...


class FanOut:
    """Makes deliveries of events and finds a place for each."""

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
        self._has_dedupe_keys = False  # of the events being processed
        self._unjudged: set[Delivery] = set()  # of ordered endpoints whose filters took too long
        self._unwritten = Unwritten()
        self._hands: dict[str, deque[Pair]] = {}  # per site, the deliveries that its lanes have no room for
        self._changed: set[int] | None = set()  # endpoints to read again; None if all that have work are
        self._stale: dict[int, None] = {}  # those of them that are not read yet
        self._refresh_at = monotonic() + REFRESH_EVERY_S
        self._all_at = 0.0  # all are read again no earlier than this

    # Making deliveries ------------------------------------------------------------------------------------------------

    def room_for(self, site_id: str, endpoints: int) -> int:
        """Return how many deliveries of a site, which has so many endpoints, may be made; 0 or less if none."""
        if self._hands and site_id in self._hands:
            return 0
        room = self._lanes.room_for(site_id, endpoints)
        return min(room, self._unwritten.room_for(site_id)) if self._unwritten else room

    def refill_for(self, site_id: str, endpoints: int) -> int:
        """Return the same for one site, but 0 or less if reading the log again is not worth it."""
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
        rooms: dict[str, int],
        ticket_of: Callable[[int], Ticket],
        settled: set[tuple[int, int]],
        now: float,
    ) -> Dealt:
        """Make a delivery for each endpoint that takes an event, as long as the event's site has room.

        Args:
            rows: events, by ascending id within each site; the caller bounds their number of deliveries.
            takers: the endpoints of each site; events of other sites make no deliveries.
            rooms: per site, how many deliveries it may have, `room_for` where a site is missing; the deliveries made
                are subtracted.
            ticket_of: returns the ticket for the events of a shard.
            settled: pairs of event and endpoint that are already settled.
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
            room = rooms.get(site_id)
            if room is None:
                room = self.room_for(site_id, of_site.count)
            if room <= 0:
                rooms[site_id] = room
                dealt.left.setdefault(site_id, []).append(event_id)
                dealt.left_pairs[site_id] += len(wanting)
                continue
            rooms[site_id] = room - len(wanting)
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
        """Queue deliveries, except duplicates and those that filters exclude.

        Args:
            work: a few thousand deliveries at most, each with its endpoint.
            difference: the difference in which their events were read.
            park: True if deliveries that would be queued become rows instead.
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
        """Give up the deliveries of duplicates before any delivery is offered; return the others.

        Until the write of a duplicate is handed over, no checkpoint gives it a row: see `ShardLog.overdue`.
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
        """Return the event_id of the first event of each key; 0 if it came before the difference."""
        firsts: dict[DedupeKey, int] = {}
        unknown: dict[DedupeKey, int] = {}  # with the least event_id of the page
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
        """Queue the deliveries without a filter first, so that they do not wait for filters."""
        if others := [pair for pair in work if filter_of(pair[0]) is None]:
            self._offer(others, park=park)
        if kept := await self._sift(filtered):
            self._offer(kept, park=park)
        self._unjudged.clear()

    async def _sift(self, work: list[tuple[Endpoint, Delivery]]) -> list[tuple[Endpoint, Delivery]]:
        """Settle deliveries that filters exclude, without a row; park those that filters did not judge in time."""
        asked = [(e, d) for e, d in work if d.event.endpoint_id is None]
        sifted = await self._filters.sift(self._session, asked)
        kept: list[tuple[Endpoint, Delivery]] = []
        now = self._monotonic()
        for endpoint, delivery in work:
            key = delivery.event.event_id, delivery.endpoint_id
            if key in sifted.left_out:
                settle(delivery)
            elif key in sifted.unknown and is_ordered(endpoint):
                self._unjudged.add(delivery)  # parked when its turn comes
                kept.append((endpoint, delivery))
            elif key in sifted.unknown:
                self._put(BacklogWrite(delivery, State.PARKED, Reason.FILTER_SLOW), now)
            else:
                kept.append((endpoint, delivery))
        return kept

    def _instead(self, lane: Lane, delivery: Delivery, now: float) -> BacklogWrite | None:
        """Return the row of a delivery that must not be sent yet; otherwise note its supersede_key and return None."""
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
        now = self._monotonic()
        for endpoint, delivery in work:
            lane = self._lanes.lane(endpoint)
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
        """Find a place for a delivery, or append it to the hand of its site behind earlier ones."""
        hand = self._hands.get(endpoint.site_id) if self._hands else None
        if hand is not None:
            hand.append((endpoint, delivery))
        elif not self._find_place(lane, delivery, now):
            self._hands[endpoint.site_id] = deque([(endpoint, delivery)])
            self._outbox.wake()  # the delivery may be waiting for the recorder's chores

    def _put(self, write: Write, now: float) -> None:
        self._outbox.put(write, now)
        self._unwritten.note(write.delivery)

    def _find_place(self, lane: Lane, delivery: Delivery, now: float) -> bool:
        """Queue a delivery or give it a row; return False if it must wait for room in its lane."""
        offer = self._queue(lane, delivery, now)
        if offer is Offer.WAIT and now - delivery.since < HAND_FOR_S:
            return False
        if offer is not Offer.QUEUED:
            self._park(delivery, PARKED_FOR[offer], now)
        return True

    def shed(self, site_id: str, endpoints: int) -> None:
        """Park the surplus of lanes that do not keep up and take the room of the site's other lanes."""
        now = self._monotonic()
        for delivery in self._lanes.shed_for(site_id, endpoints, now):
            self._park(delivery, Reason.LANE_FULL, now)

    def waits(self, site_id: str) -> bool:
        """Return True if deliveries of a site wait in its hand."""
        return site_id in self._hands

    @property
    def hands(self) -> int:
        """Return the number of sites that have deliveries in their hands."""
        return len(self._hands)

    def place(self) -> list[str]:
        """Place deliveries from the hands of sites, as far as there is room; return the sites that had some placed."""
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
        """Give a delivery up, and log it."""
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
        """Read endpoints again soon; None stands for all that have work."""
        self._endpoints.ask_again()
        if endpoint_ids is None:
            self._changed = None
        elif self._changed is not None:
            self._changed.update(endpoint_ids)
            if len(self._changed) > CHANGED_MAX:
                self._changed = None

    async def attend(self) -> None:
        """Read a page of the changed endpoints again, and drop written deliveries from the count of unwritten ones.

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
        self._endpoints.ask_again()  # no older read may replace this one
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
        """Drop the work of a deleted endpoint: deliveries with a row become dead, the others leave no row."""
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
