"""Backpressure: whether a delivery enters memory, becomes a row or waits in the log, and which ones leave memory again.

A lane that does not keep up must not take the memory of others, so its surplus becomes rows: it is parked. That costs
as much as a delivery. So it happens only if reading on gives other lanes work; otherwise the log waits.

Never here: writing rows, which deliveries can never be sent (event_log/fan_out, delivery/backlog/admission), a clock.
"""

from __future__ import annotations

import enum
from typing import Final

from pghookd.model.delivery import Delivery, Endpoint, Reason, State
from pghookd.model.outcome import BacklogWrite
from pghookd.scheduling.capacity import Capacity
from pghookd.scheduling.lane import LANE_QUEUE_MAX, PAUSE_PARKS_S, KnownLanes, Lane
from pghookd.scheduling.slots import Slots
from pghookd.scheduling.turns import Turns

STUCK_QUEUE_MAX: Final = 100  # deliveries queued for a lane that does not keep up, and as many late ones
SHED_MAX: Final = 500  # deliveries taken out of memory at once


class Offer(enum.Enum):
    """The result of offering a delivery to a lane."""

    QUEUED = "queued"
    PARK = "park"  # give it a row in backlog: its lane is full and other lanes could use the memory
    OPEN = "open"  # give it a row in backlog: the endpoint's breaker is open
    PAUSED = "paused"  # give it a row in backlog: the lane is paused for long
    WAIT = "wait"  # leave it in the log until there is room
    BEHIND = "behind"  # give it a row in backlog: its line has earlier deliveries (scheduling/ordering)


PARKED_FOR: Final = {
    Offer.PARK: Reason.LANE_FULL,
    Offer.OPEN: Reason.BREAKER_OPEN,
    Offer.PAUSED: Reason.PAUSED,
    Offer.BEHIND: Reason.ORDERING,
    Offer.WAIT: Reason.LANE_FULL,  # for a delivery that does not come from the log
}


def not_yet(endpoint: Endpoint, delivery: Delivery, now: float) -> BacklogWrite | None:
    """Return the row of a delivery whose endpoint is disabled, or whose time has not come; None if it may be sent."""
    if not endpoint.enabled:
        return BacklogWrite(delivery, State.HELD, Reason.DISABLED)
    options = delivery.event.options
    if options is not None and (wait_s := options.wait_s - (now - delivery.since)) > 0:
        return BacklogWrite(delivery, State.WAITING, Reason.DELIVER_AFTER, wait_s)
    return None


class Intake:
    """Takes deliveries into the lanes, and the surplus of lanes that do not keep up out of them."""

    def __init__(self, known: KnownLanes, capacity: Capacity, slots: Slots, turns: Turns) -> None:
        self._known = known
        self._capacity = capacity
        self._slots = slots
        self._turns = turns

    def offer(self, lane: Lane, delivery: Delivery, now: float) -> Offer:
        """Queue a delivery, or return why it was not queued."""
        if lane.breaker.is_open:
            return self._offer_probe(lane, delivery, now)
        if lane.throttle.paused_until - now > PAUSE_PARKS_S:
            return Offer.PAUSED
        waiting = len(lane.late if delivery.late else lane.queue)
        if waiting >= STUCK_QUEUE_MAX:
            if waiting >= LANE_QUEUE_MAX:
                return Offer.PARK if self._parking_buys_something(lane, now) else Offer.WAIT
            if lane.waits_longer(self._capacity.patience_s, now) and self._parking_buys_something(lane, now):
                return Offer.PARK
        if not self._capacity.enter(lane.site, delivery):
            return Offer.WAIT
        self._turns.push(lane, delivery)
        return Offer.QUEUED

    def _offer_probe(self, lane: Lane, delivery: Delivery, now: float) -> Offer:
        if not lane.accept_probe(delivery, now):
            return Offer.OPEN
        self._capacity.enter(lane.site, delivery, must=True)
        self._turns.push(lane, delivery)
        return Offer.QUEUED

    def _parking_buys_something(self, lane: Lane, now: float) -> bool:
        """Return True if the lane is stuck and reading on would give other lanes work."""
        return lane.is_stuck(self._capacity.patience_s, now) and self._feeds_others(lane)

    def _feeds_others(self, lane: Lane) -> bool:
        """Return True if reading on helps: a slot is free, or the other lanes will soon run out of work."""
        if self._slots.in_flight < self._slots.size:
            return True
        is_fed = not self._turns.starving and self._capacity.half_full
        return 2 * lane.in_flight < self._slots.size and not is_fed

    def shed(self, now: float) -> list[Delivery]:
        """Remove and return the surplus of stuck lanes, to be parked, if memory is full while slots are free.

        About SHED_MAX at a time, because outcomes wait behind these rows in the recorder.
        """
        if not self._capacity.full or self._slots.in_flight >= self._slots.size:
            return []
        shed: list[Delivery] = []
        for lane in self._known.busy():
            if lane.is_stuck(self._capacity.patience_s, now):
                shed += self._surplus(lane, SHED_MAX - len(shed))
                if len(shed) >= SHED_MAX:
                    break
        return shed

    def shed_for(self, site_id: str, endpoints: int, now: float) -> list[Delivery]:
        """Remove and return the surplus of a site's stuck lanes if other endpoints of the site have nothing queued.

        The site has used up its part of the memory, so those endpoints would get nothing. If all of its endpoints have
        deliveries queued, parking gains nothing: their events may as well stay in the log.
        """
        patience_s = self._capacity.patience_s
        lanes = [lane for lane in self._known if lane.key.site_id == site_id]
        stuck = [lane for lane in lanes if lane.queued > 2 * lane.limit and lane.is_stuck(patience_s, now)]
        busy = sum(1 for lane in lanes if lane.queued)
        if not stuck or self._slots.in_flight >= self._slots.size or busy >= max(endpoints, len(lanes)):
            return []
        shed: list[Delivery] = []
        for lane in stuck:
            shed += self._surplus(lane, SHED_MAX - len(shed))
        return shed

    def _surplus(self, lane: Lane, most: int) -> list[Delivery]:
        """Remove and return at most so many deliveries of a lane that it cannot start soon."""
        return self._turns.withdraw(lane, max(2 * lane.limit, lane.queued - most))
