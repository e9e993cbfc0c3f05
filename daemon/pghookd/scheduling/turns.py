"""Chooses the next delivery to send: sites take turns, and so do the lanes of a site, within the limits of their slots.

Bookkeeping is synchronous and does no I/O. A lane takes part in the turns if it has work and may start more requests.
Otherwise it waits for one of three things: a share of the slots (scheduling/slots), the payload of its next delivery
(scheduling/payload_loads), or a time at which its pause ends or its rate or pace allows the next start.

Never here: what an answer means for a lane (scheduling/lane), a clock.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from typing import Final, cast

from pghookd.model.delivery import Delivery
from pghookd.scheduling.capacity import Capacity
from pghookd.scheduling.lane import NEVER, KnownLanes, Lane, Site
from pghookd.scheduling.payload_loads import PayloadLoads
from pghookd.scheduling.slots import Slots

TRAFFIC_S: Final = 600.0  # a site has traffic if it started requests in this period, or in the one before


class Traffic:
    """The sites that have started requests in the last ten to twenty minutes.

    Attributes:
        period: number of the present period.
    """

    def __init__(self) -> None:
        self.period = 0
        self._active: set[str] = set()  # sites with traffic in this period
        self._active_before: set[str] = set()

    def note(self, lane: Lane) -> None:
        """Count a lane's site; callers may skip this if the site's period is the present one."""
        lane.site.period = self.period
        self._active.add(lane.key.site_id)

    def measure(self, now: float) -> None:
        """Begin a new period if it is time; call it at least once a minute."""
        period = int(now // TRAFFIC_S)
        if period != self.period:
            self._active_before = self._active if period == self.period + 1 else set()
            self.period, self._active = period, set()

    def sites(self) -> int:
        """Return the number of sites."""
        return max(len(self._active), len(self._active_before))


class Turns:
    """The queued deliveries of all lanes, and whose turn it is.

    Attributes:
        loads: the lanes whose next payload must be loaded.
        traffic: the sites that have started requests lately.
    """

    def __init__(self, known: KnownLanes, capacity: Capacity, slots: Slots, payload_bytes_max: int) -> None:
        self._known = known
        self._capacity = capacity
        self._slots = slots
        self._sites: deque[Site] = deque()
        self._rests: list[tuple[float, int, Lane]] = []  # a heap: time, sequence number, lane
        self._numbers = itertools.count()
        self.loads = PayloadLoads(payload_bytes_max, self._resume)
        self.traffic = Traffic()

    @property
    def in_flight(self) -> int:
        """Requests in flight, in all lanes."""
        return self._slots.in_flight

    @property
    def starving(self) -> bool:
        """Return True if no queued delivery may start."""
        return not self._sites

    @property
    def rests_until(self) -> float | None:
        """Monotonic seconds at which the first resting lane must be checked; None if no lane rests."""
        return self._rests[0][0] if self._rests else None

    # In and out -------------------------------------------------------------------------------------------------------

    def push(self, lane: Lane, delivery: Delivery) -> None:
        """Queue a delivery that memory has room for."""
        if not lane.queue and not lane.late and not lane.in_flight:
            self._known.enter(lane)
        (lane.late if delivery.late else lane.queue).append(delivery)
        if delivery.event.payload is None:
            lane.unloaded += 1
        if not lane.in_turn and lane.in_flight < lane.allowed:
            self._line_up(lane)

    def withdraw(self, lane: Lane, keep: int = 0) -> list[Delivery]:
        """Remove the newest deliveries, late ones first, until `keep` are left; return them oldest first."""
        taken: list[Delivery] = []
        while lane.queued > keep:
            delivery = (lane.late or lane.queue).pop()
            self._capacity.leave(lane.site, delivery)
            if delivery.event.payload is None and delivery.loaded is None:
                lane.unloaded -= 1
            self.loads.drop(lane, delivery)
            lane.release_probe(delivery)
            taken.append(delivery)
        taken.reverse()
        if lane.waits_for is not None and not lane.queued:
            self._slots.forget(lane)
            lane.in_turn = False
        self.go_on(lane)
        return taken

    def next(self, now: float) -> tuple[Lane, Delivery] | None:
        """Take the next delivery to send, and a slot for it; None if there is none or no slot is free."""
        slots = self._slots
        if slots.in_flight >= slots.size:
            return None
        if self._rests and self._rests[0][0] <= now:
            self._wake_due_lanes(now)
        while self._sites:
            site = self._sites.popleft()
            lane = site.turns.popleft()
            lane.in_turn = False
            if site.turns:
                self._sites.append(site)
            if lane.in_flight >= lane.allowed or not (lane.queue or lane.late):
                continue
            if (lane.unloaded or slots.in_flight >= slots.plenty) and not self._may_start(lane):
                continue
            queue = self._queue_of(lane, now) if lane.late or lane.throttle.active else lane.queue
            if queue is not None:
                delivery = queue.popleft()
                self._capacity.leave(site, delivery)
                delivery.flight = slots.start(lane, now)
                if site.period != self.traffic.period:
                    self.traffic.note(lane)
                if (lane.queue or lane.late) and lane.in_flight < lane.allowed:
                    self._line_up(lane)
                return lane, delivery
        return None

    def end(self, lane: Lane, delivery: Delivery) -> None:
        """Release the slot and the payload's bytes; lanes woken by that take part in the turns again."""
        if delivery.loaded is not None:
            self.loads.drop(lane, delivery)
        for member in self._slots.end(lane, delivery.flight):
            self._resume(cast("Lane", member))
        delivery.flight = None

    # Lanes that may start, and those that wait ------------------------------------------------------------------------

    def go_on(self, lane: Lane) -> None:
        """Add a lane to the turns if it may start a request; call it after any change that may let it."""
        if lane.queue or lane.late:
            if not lane.in_turn and lane.in_flight < lane.allowed:
                self._line_up(lane)
        elif not lane.in_flight:
            self._known.leave(lane)

    def _line_up(self, lane: Lane) -> None:
        """Add a lane, and its site, to the turns."""
        lane.in_turn = True
        turns = lane.site.turns
        if not turns:
            self._sites.append(lane.site)
        turns.append(lane)

    def _resume(self, lane: Lane) -> None:
        """Add a lane that waited for a share or a payload to the turns again."""
        lane.in_turn = False
        self.go_on(lane)

    def _may_start(self, lane: Lane) -> bool:
        """Return True if the payload of a lane's next delivery is loaded and its share has a free slot."""
        if lane.unloaded and self.loads.want(lane):
            lane.in_turn = True  # until it is loaded
            return False
        slots = self._slots
        if slots.in_flight >= slots.plenty and not slots.admits(lane):
            lane.in_turn = True  # until its share has room
            return False
        return True

    def _queue_of(self, lane: Lane, now: float) -> deque[Delivery] | None:
        """Return the queue of a lane to take from next; None if it is too early, and then let the lane rest."""
        queue = lane.next_queue(now)
        if queue is None:
            self.rest(lane, lane.starts_at(now))
        return queue

    def rest(self, lane: Lane, at: float) -> None:
        """Plan to check a lane again at a time, unless an earlier time is planned."""
        if at < lane.rests_at:
            lane.rests_at = at
            heapq.heappush(self._rests, (at, next(self._numbers), lane))

    def _wake_due_lanes(self, now: float) -> None:
        while self._rests and self._rests[0][0] <= now:
            at, _, lane = heapq.heappop(self._rests)
            if at == lane.rests_at:  # otherwise the lane was checked earlier
                lane.rests_at = NEVER
                lane.is_paused(now)  # ends a pause that is over, so that the lane can become idle
                self.go_on(lane)

    def measure(self, now: float) -> None:
        """Find requests that take long, and wake lanes if slots were left unused; call it a few times a second."""
        for member in self._slots.age(now):
            self._resume(cast("Lane", member))
        self.traffic.measure(now)
