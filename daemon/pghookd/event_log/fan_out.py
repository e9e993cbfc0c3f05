"""The fan-out: from events of the log to deliveries in the lanes, one for each endpoint that takes an event.

A delivery that must not be sent, or not yet, is written to the database instead. These are duplicates, delayed
deliveries, those that a filter did not judge in time, and those without room in a lane. The fan-out never waits for a
lane. A delivery without room that does not become a row waits in the hand of its site, a queue. Until the hand is empty
the site gets no more deliveries; all other sites do.

Never here: reading the log, and deferred events (event_log/reading/reader).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Final, Protocol

from pghookd.event_log.endpoint_changes import EndpointChanges
from pghookd.event_log.payload_filter import filter_of
from pghookd.event_log.position import Difference, EventLog, Ticket, settle
from pghookd.event_log.reading.takers import Dealt, Pair, Takers
from pghookd.event_log.reading.unclaimed import Unclaimed
from pghookd.event_log.rows import EventRow, event_of
from pghookd.event_log.sieve import Sieve
from pghookd.model.delivery import AttemptCause, Delivery, Endpoint, Event, Reason, State
from pghookd.model.event_options import EventOptions
from pghookd.model.event_type import valid_type
from pghookd.model.outcome import BacklogWrite, DeadWrite, Write
from pghookd.process.context import Context
from pghookd.process.logs import LogEvent
from pghookd.scheduling.hands import Hands, Unwritten
from pghookd.scheduling.intake import PARKED_FOR, Offer, not_yet
from pghookd.scheduling.lane import Lane
from pghookd.scheduling.lanes import Lanes
from pghookd.scheduling.ordering import Order, is_ordered

HAND_FOR_S: Final = 60.0  # a delivery waits this long for room in its lane; then it is parked


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
        log: EventLog,
        lanes: Lanes,
        order: Order,
        outbox: Outbox,
        sieve: Sieve,
        changes: EndpointChanges,
        context: Context,
        *,
        kick: Callable[[], None],
    ) -> None:
        self._log = log
        self._lanes = lanes
        self._intake = lanes.intake
        self._parked = lanes.backlog_index.parked
        self._order = order
        self._outbox = outbox
        self._sieve = sieve
        self._changes = changes
        self._kick = kick
        self._logger = context.logger
        self._monotonic = context.monotonic
        self._has_dedupe_keys = False  # of the events being processed
        self._unwritten = Unwritten()
        self._hands = Hands()
        self.unclaimed = Unclaimed()  # events that nobody takes

    # Making deliveries ------------------------------------------------------------------------------------------------

    def room_for(self, site_id: str, endpoints: int) -> int:
        """Return how many deliveries of a site, which has so many endpoints, may be made; 0 or less if none."""
        if self._hands and site_id in self._hands:
            return 0
        room = self._lanes.capacity.room_for(site_id, endpoints)
        return min(room, self._unwritten.room_for(site_id)) if self._unwritten else room

    def refill_for(self, site_id: str, endpoints: int) -> int:
        """Return the same for one site, but 0 or less if reading the log again is not worth it."""
        if site_id in self._hands:
            return 0
        return min(self._lanes.capacity.refill_for(site_id, endpoints), self._unwritten.room_for(site_id))

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
            if not wanting:
                if only is None and of_site.is_whole:
                    self.unclaimed.of_type(kind)
                continue
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
        if difference.again:
            for _, delivery in work:
                delivery.cause = AttemptCause.RECOVERY
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
        others, duplicates = await self._sieve.part(work, difference)
        now = self._monotonic()
        for delivery in duplicates:
            self._put(DeadWrite(delivery, Reason.DUPLICATE), now)
        return others

    async def _offer_filtered(self, work: list[Pair], filtered: list[Pair], *, park: bool) -> None:
        """Queue the deliveries without a filter first, so that they do not wait for filters.

        Deliveries that filters exclude are settled without a row. Those not judged in time are parked, those of ordered
        endpoints when it is their turn.
        """
        if others := [pair for pair in work if filter_of(pair[0]) is None]:
            self._offer(others, park=park)
        judged = await self._sieve.judge(filtered)
        now = self._monotonic()
        for delivery in judged.excluded:
            settle(delivery)
        for delivery in judged.late:
            self._put(BacklogWrite(delivery, State.PARKED, Reason.FILTER_SLOW), now)
        if judged.kept:
            self._offer(judged.kept, park=park, unjudged=judged.unjudged)

    def _offer(self, work: list[Pair], *, park: bool, unjudged: AbstractSet[Delivery] = frozenset()) -> None:
        now = self._monotonic()
        for endpoint, delivery in work:
            lane = self._lanes.lane(endpoint)
            if is_ordered(endpoint) and delivery.event.endpoint_id is None:
                self._order.assign(delivery)
            if not valid_type(delivery.event.type):
                self.die(delivery, Reason.INVALID, now)
            elif (row := not_yet(lane.endpoint, delivery, now)) is not None:
                self._put(row, now)
            elif unjudged and delivery in unjudged:
                self._put(BacklogWrite(delivery, State.PARKED, Reason.FILTER_SLOW), now)
            else:
                if delivery.event.options is not None:
                    self._log.keys.note(delivery)
                if park:
                    self._park(delivery, Reason.LANE_FULL if delivery.line is None else Reason.ORDERING, now)
                else:
                    self._hand_over(endpoint, lane, delivery, now)
        self._kick()

    def _hand_over(self, endpoint: Endpoint, lane: Lane, delivery: Delivery, now: float) -> None:
        """Find a place for a delivery, or append it to the hand of its site behind earlier ones."""
        if self._hands and endpoint.site_id in self._hands:
            self._hands.put(endpoint, delivery)
        elif not self._find_place(lane, delivery, now):
            self._hands.put(endpoint, delivery)
            self._outbox.wake()  # the delivery may be waiting for the recorder's chores

    def _put(self, write: Write, now: float) -> None:
        self._outbox.put(write, now)
        self._unwritten.note(write.delivery)

    def _find_place(self, lane: Lane, delivery: Delivery, now: float) -> bool:
        """Queue a delivery or give it a row; return False if it must wait for room in its lane."""
        queue = self._intake if delivery.line is None else self._order
        offer = queue.offer(lane, delivery, now)
        if offer is Offer.WAIT and now - delivery.since < HAND_FOR_S:
            return False
        if offer is not Offer.QUEUED:
            self._park(delivery, PARKED_FOR[offer], now)
        return True

    def shed(self, site_id: str, endpoints: int) -> None:
        """Park the surplus of lanes that do not keep up and take the room of the site's other lanes."""
        now = self._monotonic()
        for delivery in self._intake.shed_for(site_id, endpoints, now):
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
        now = self._monotonic()
        if placed := self._hands.place(lambda endpoint, delivery: self._place(endpoint, delivery, now)):
            self._kick()
        return placed

    def _place(self, endpoint: Endpoint, delivery: Delivery, now: float) -> bool:
        lane = self._lanes.known.by_endpoint.get(delivery.endpoint_id) or self._lanes.lane(endpoint)
        if (row := not_yet(lane.endpoint, delivery, now)) is not None:
            self._put(row, now)
            return True
        return self._find_place(lane, delivery, now)

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
        if delivery.endpoint_id not in self._parked:
            self._parked.add(delivery.endpoint_id)
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
        self._changes.note(endpoint_ids)

    async def attend(self) -> None:
        """Apply a page of the changed endpoints, and drop written deliveries from the count of unwritten ones."""
        self._unwritten.sweep()
        found = await self._changes.read(self._hands.endpoints)
        now = self._monotonic()
        for endpoint_id, endpoint in found.items():
            lane = self._lanes.known.by_endpoint.get(endpoint_id)
            if lane is None:
                continue
            if endpoint is not None and endpoint.site_id == lane.key.site_id:
                self._lanes.lane(endpoint)
                if not endpoint.enabled:
                    for delivery in self._lanes.disable(lane):
                        self._outbox.put(BacklogWrite(delivery, State.HELD, Reason.DISABLED), now)
            else:
                self._forget(lane, now)

    def _forget(self, lane: Lane, now: float) -> None:
        """Drop the work of a deleted endpoint: deliveries with a row become dead, the others leave no row."""
        endpoint_id = lane.key.endpoint_id
        waiting = self._lanes.forget(lane) + self._order.forget(endpoint_id)
        waiting += self._hands.forget(lane.key.site_id, endpoint_id)
        for delivery in waiting:
            if delivery.in_backlog:
                self.die(delivery, Reason.NO_ENDPOINT, now)
            else:
                settle(delivery)
