"""All lanes, one per endpoint: makes them, and records what happens to them.

An endpoint changes, a request ends, a receiver asks for a pause: the lane takes note, and takes part in the turns again
if it may start more. Deliveries that a lane must not keep are returned, to be parked or held.

Bookkeeping is synchronous and does no I/O. No clock and no randomness: callers pass `now` (monotonic seconds) and
random numbers.
"""

from __future__ import annotations

import weakref
from typing import Final

from pghookd.model.delivery import Delivery, Endpoint
from pghookd.scheduling.backlog_index import AT_ONCE, FIRST, BacklogIndex
from pghookd.scheduling.capacity import Capacity
from pghookd.scheduling.intake import Intake
from pghookd.scheduling.lane import PAUSE_PARKS_S, Host, KnownLanes, Lane, LaneKey, LaneTerms, host_and_port
from pghookd.scheduling.slots import Slots
from pghookd.scheduling.turns import Turns

LANE_SHARE: Final = 4  # an endpoint may hold a quarter of all slots, whatever its `concurrency` is


class Lanes:
    """All lanes, and what they share.

    Attributes:
        known: the lanes that are kept, by endpoint.
        capacity: the memory for queued deliveries.
        turns: which delivery starts next.
        intake: which deliveries are queued.
        backlog_index: the rows of `backlog`, as far as memory knows them.
        delivered: successes so far.
    """

    def __init__(self, terms: LaneTerms) -> None:
        self._terms = terms
        self._slots = Slots(terms.concurrency)
        self._hosts: weakref.WeakValueDictionary[str, Host] = weakref.WeakValueDictionary()
        self.known = KnownLanes(terms.idle_max)
        self.capacity = Capacity(terms.queue_max, terms.queue_bytes_max)
        self.turns = Turns(self.known, self.capacity, self._slots, terms.queue_bytes_max)
        self.intake = Intake(self.known, self.capacity, self._slots, self.turns)
        self.backlog_index = BacklogIndex(self.known, self.capacity, terms)
        self.delivered = 0

    def apply(self, terms: LaneTerms) -> None:
        """Apply new limits; deliveries already queued or in flight beyond them are not affected."""
        self._terms = terms
        self._slots.resize(terms.concurrency)
        self.known.resize(terms.idle_max)
        self.capacity.resize(terms.queue_max, terms.queue_bytes_max)
        self.turns.loads.resize(terms.queue_bytes_max)
        self.backlog_index.apply(terms)
        for lane in self.known:
            lane.set_limit(self._limit(lane.endpoint))
            lane.breaker.policy = terms.policy

    def measure(self, now: float) -> None:
        """Measure throughput, traffic and requests that take long; call it a few times a second."""
        self.turns.measure(now)
        self.capacity.measure(self.delivered, now)

    # Endpoints --------------------------------------------------------------------------------------------------------

    def lane(self, endpoint: Endpoint) -> Lane:
        """Return the endpoint's lane: a new one if it has none, and updated if the endpoint has changed."""
        lane = self.known.by_endpoint.get(endpoint.endpoint_id)
        if lane is not None and lane.endpoint is endpoint:
            return lane
        key = LaneKey(endpoint.site_id, endpoint.endpoint_id)
        lane = self.known.get(key)
        if lane is None:
            lane = self._make(key, endpoint)
            self.known.enter(lane)
            self.known.leave(lane)  # until it gets work
        elif lane.endpoint != endpoint:
            lane.change(endpoint, self._host(endpoint), self._limit(endpoint))
            self.backlog_index.parked.look(endpoint.endpoint_id, FIRST)
            self.turns.go_on(lane)
        elif lane.endpoint.revision < endpoint.revision:  # of a change that concerns no request
            lane.endpoint = endpoint
        return lane

    def _make(self, key: LaneKey, endpoint: Endpoint) -> Lane:
        return Lane(
            self.capacity.site(key.site_id),
            self._host(endpoint),
            key,
            endpoint,
            self._limit(endpoint),
            self.backlog_index.breaker_of(key.endpoint_id),
            self.backlog_index.parked,
        )

    def _limit(self, endpoint: Endpoint) -> int:
        most = max(1, self._slots.size // LANE_SHARE)
        return min(endpoint.concurrency or self._terms.endpoint_concurrency, most)

    def _host(self, endpoint: Endpoint) -> Host:
        return self._hosts.setdefault(host_and_port(endpoint.url), Host())

    def disable(self, lane: Lane) -> list[Delivery]:
        """Remove and return all queued deliveries of a lane whose endpoint is disabled."""
        lane.disable()
        return self.turns.withdraw(lane)

    def forget(self, lane: Lane) -> list[Delivery]:
        """Remove and return all queued deliveries of a lane whose endpoint was deleted; reset breaker and pause."""
        lane.forget()
        return self.turns.withdraw(lane)

    def caught_up(self, endpoint_id: int) -> None:
        """Record that an endpoint has no parked rows any more."""
        self.backlog_index.parked.discard(endpoint_id)
        lane = self.known.by_endpoint.get(endpoint_id)
        if lane is not None:
            lane.throttle.end_pace()
            self.turns.go_on(lane)

    # Requests ---------------------------------------------------------------------------------------------------------

    def succeeded(self, lane: Lane, delivery: Delivery, now: float, took_s: float = 0.0) -> bool:
        """Record a request answered 2xx, and let the lane grow by one; return True if this closed its breaker."""
        turns = self.turns
        turns.end(lane, delivery)
        self.delivered += 1
        closed = lane.succeeded(delivery, now, took_s, self.capacity.busy)
        turns.go_on(lane)
        return closed

    def failed(
        self,
        lane: Lane,
        delivery: Delivery,
        now: float,
        random01: float,
        *,
        counts: bool = True,
        hung: bool = False,
    ) -> list[Delivery] | None:
        """Record a failed request, and halve the lane.

        Args:
            lane: the lane.
            delivery: the delivery that was sent.
            now: monotonic seconds.
            random01: from 0 to 1, for the jitter of the wait for a probe.
            counts: True if the endpoint is at fault, so that the breaker counts it.
            hung: True if the request ended with a timeout.

        Returns:
            The queued deliveries, to be parked, if this opened the breaker; None otherwise.
        """
        self.turns.end(lane, delivery)
        if lane.failed(delivery, now, random01, counts=counts, hung=hung):
            return self.turns.withdraw(lane)
        self.turns.go_on(lane)
        return None

    def unsent(self, lane: Lane, delivery: Delivery) -> None:
        """Record a delivery that ended without a request, which proves nothing about the endpoint.

        If it was the probe, another delivery may become the probe at once.
        """
        self.turns.end(lane, delivery)
        if lane.release_probe(delivery):
            self.backlog_index.parked.look(lane.key.endpoint_id, AT_ONCE)
        self.turns.go_on(lane)

    def pause(self, lane: Lane, wait_s: float, now: float, *, asked: bool = True) -> list[Delivery]:
        """Pause a lane; return the queued deliveries, to be parked, if the pause is longer than PAUSE_PARKS_S.

        Requests in flight go on. A success does not end the pause; a change of the endpoint by its owner does.

        Args:
            lane: the lane.
            wait_s: length of the pause, seconds.
            now: monotonic seconds.
            asked: True if the receiver asked for the pause: then late work goes out at a pace after it.
        """
        lane.throttle.pause(wait_s, now, asked=asked)
        until = lane.throttle.paused_until
        self.turns.rest(lane, until)
        return self.turns.withdraw(lane) if until - now > PAUSE_PARKS_S else []
