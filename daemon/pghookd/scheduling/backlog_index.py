"""An index of `backlog`: which rows are in memory, which endpoints have parked rows, and how many may be taken back.

While a delivery is in memory, its row is not taken a second time. Endpoints with parked rows are checked in the order
of their times, so that all take turns. Each has a cursor along which its rows are read. The cursor falls back to a row
that is parked below it, so that every row is reached, older ones first.

Never here: a clock, SQL.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Final, TypeAlias

from pghookd.model.delivery import Delivery
from pghookd.scheduling.breaker import Breaker
from pghookd.scheduling.capacity import Capacity
from pghookd.scheduling.lane import LANE_QUEUE_MAX, KnownLanes, Lane, LaneTerms

Key: TypeAlias = tuple[int, int]  # event_id, endpoint_id

FIRST: Final = -1.0  # time of a check that goes before all others
AT_ONCE: Final = 0.0  # time of a check that goes before all checks planned for a time
_STALE_MAX: Final = 100  # heap entries beyond two per endpoint, before the heap is rebuilt
PACED_AHEAD_S: Final = 2.0  # a lane with a pace holds the late deliveries of this time in memory
PACED_LEAST: Final = 4


class InMemory:
    """The deliveries in memory that have a row in `backlog`, by event and endpoint.

    They are counted by endpoint, so that no search is needed to find out whether an endpoint has any.
    """

    def __init__(self) -> None:
        self._deliveries: dict[Key, Delivery] = {}
        self._counts: Counter[int] = Counter()

    def __contains__(self, key: Key) -> bool:
        return key in self._deliveries

    def __len__(self) -> int:
        return len(self._deliveries)

    def add(self, delivery: Delivery) -> None:
        """Add a delivery, or replace the one of the same event and endpoint."""
        key = delivery.event.event_id, delivery.endpoint_id
        if key not in self._deliveries:
            self._counts[delivery.endpoint_id] += 1
        self._deliveries[key] = delivery

    def discard(self, delivery: Delivery) -> None:
        """Remove a delivery, unless it is another one by now: its row may have been taken again."""
        key = delivery.event.event_id, delivery.endpoint_id
        if self._deliveries.get(key) is delivery:
            del self._deliveries[key]
            self._counts[delivery.endpoint_id] -= 1
            if not self._counts[delivery.endpoint_id]:
                del self._counts[delivery.endpoint_id]

    def count(self, endpoint_id: int) -> int:
        """Return how many deliveries of an endpoint are here."""
        return self._counts.get(endpoint_id, 0)


class Parked(AbstractSet[int]):
    """The endpoints that may have parked rows, with the time of the next check of each. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._at: dict[int, float] = {}  # the time of the next check, per endpoint
        self._heap: list[tuple[float, int, int]] = []  # time, sequence number, endpoint_id; some are stale
        self._numbers = itertools.count()
        self._after: dict[int, int] = {}  # the last event_id read, per endpoint

    def __contains__(self, endpoint_id: object) -> bool:
        """Return True if the endpoint may have parked rows."""
        return endpoint_id in self._at

    def __iter__(self) -> Iterator[int]:
        """Iterate over the endpoint ids, in no order."""
        return iter(self._at)

    def __len__(self) -> int:
        """Return the number of endpoints."""
        return len(self._at)

    def add(self, endpoint_id: int) -> None:
        """Add an endpoint; a new one is checked as soon as possible."""
        if endpoint_id not in self._at:
            self._plan(endpoint_id, AT_ONCE)

    def note(self, endpoint_id: int, event_id: int) -> None:
        """Add an endpoint after a row of it was parked; the cursor falls back to that row."""
        self.add(endpoint_id)
        if event_id <= self._after.get(endpoint_id, 0):
            self._after[endpoint_id] = event_id - 1

    def discard(self, endpoint_id: int) -> None:
        """Remove an endpoint, its planned check and its cursor."""
        self._at.pop(endpoint_id, None)
        self._after.pop(endpoint_id, None)

    # Looks ------------------------------------------------------------------------------------------------------------

    def take(self, now: float, again_at: float) -> int | None:
        """Return the endpoint whose check is due first, and plan its next one for `again_at`; None if none is due."""
        while self._heap and self._heap[0][0] <= now:
            at, _, endpoint_id = heapq.heappop(self._heap)
            if self._at.get(endpoint_id) == at:
                self._plan(endpoint_id, again_at)
                return endpoint_id
        return None

    def look(self, endpoint_id: int, at: float) -> None:
        """Plan the next check of an endpoint for a time, in place of any other; ignored if it is not in the set."""
        if self._at.get(endpoint_id, at) != at:
            self._plan(endpoint_id, at)

    def probe_now(self, endpoint_id: int, at: float) -> None:
        """Plan the next check for a time, unless it comes earlier; ignored if the endpoint is not in the set."""
        if self._at.get(endpoint_id, at) > at:
            self._plan(endpoint_id, at)

    def _plan(self, endpoint_id: int, at: float) -> None:
        self._at[endpoint_id] = at
        heapq.heappush(self._heap, (at, next(self._numbers), endpoint_id))
        if len(self._heap) > 2 * len(self._at) + _STALE_MAX:
            self._heap = [(at, next(self._numbers), endpoint_id) for endpoint_id, at in self._at.items()]
            heapq.heapify(self._heap)

    # The cursor -------------------------------------------------------------------------------------------------------

    def after(self, endpoint_id: int) -> int:
        """Return the event_id after which to read an endpoint's rows; 0 means from the beginning."""
        return self._after.get(endpoint_id, 0)

    def read(self, endpoint_id: int, event_id: int) -> None:
        """Move an endpoint's cursor to the last row that was read."""
        self._after[endpoint_id] = event_id

    def rewind(self, endpoint_id: int) -> None:
        """Reset an endpoint's cursor, so that its rows are read from the beginning."""
        self._after.pop(endpoint_id, None)

    def rewind_all(self) -> None:
        """Reset all cursors, because rows may have been parked from outside this daemon."""
        self._after.clear()


class BacklogIndex:
    """Everything that is known about `backlog` without reading it.

    Attributes:
        in_memory: deliveries in memory with a row, so that the row is not taken a second time.
        parked: endpoints that may have parked rows, or held rows that may go out.
    """

    def __init__(self, known: KnownLanes, capacity: Capacity, terms: LaneTerms) -> None:
        self._known = known
        self._capacity = capacity
        self._terms = terms
        self._reopened: dict[int, Breaker] = {}  # open breakers of endpoints without a lane yet
        self.in_memory = InMemory()
        self.parked = Parked()

    def apply(self, terms: LaneTerms) -> None:
        """Apply new limits."""
        self._terms = terms
        for breaker in self._reopened.values():
            breaker.policy = terms.policy

    def reopen(self, endpoint_id: int, probe_at: float) -> None:
        """Open the breaker of an endpoint without a lane, because its parked rows show that it was open."""
        if self._terms.policy.share > 0:
            breaker = self._reopened[endpoint_id] = Breaker(self._terms.policy)
            breaker.reopen(probe_at)

    def breaker_of(self, endpoint_id: int) -> Breaker:
        """Return the breaker of an endpoint that gets a lane: the reopened one, or a new one."""
        return self._reopened.pop(endpoint_id, None) or Breaker(self._terms.policy)

    def probe_at(self, endpoint_id: int) -> float | None:
        """Return when a paused endpoint, or one with an open breaker, may get a request; None if it may at once."""
        lane = self._known.by_endpoint.get(endpoint_id)
        breaker = self._reopened.get(endpoint_id) if lane is None else lane.breaker
        at = breaker.probe_at if breaker is not None and breaker.is_open else None
        if lane is not None and lane.throttle.paused_until:
            return max(at or 0.0, lane.throttle.paused_until)
        return at

    def refill_quota(self, endpoint_id: int, now: float) -> int:
        """Return how many parked deliveries an endpoint may take back; only a few if it does not keep up."""
        lane = self._known.by_endpoint.get(endpoint_id)
        if self._capacity.full or (lane is not None and lane.is_paused(now)):
            return 0
        probe_at = self.probe_at(endpoint_id)
        if probe_at is not None:
            return int(now >= probe_at and (lane is None or lane.probe is None))
        return 2 * self._terms.endpoint_concurrency if lane is None else self._quota_of(lane, now)

    def _quota_of(self, lane: Lane, now: float) -> int:
        """Return the quota of a lane with a closed breaker and without a pause."""
        late = len(lane.late)
        per_s = lane.throttle.late_per_s
        if per_s is not None:
            most = LANE_QUEUE_MAX // 2 if lane.proved else 2 * lane.limit
            wanted = max(PACED_LEAST, min(most, int(per_s * PACED_AHEAD_S)))
            return wanted - late if late <= wanted // 2 else 0
        keeps_up = lane.proved and not lane.waits_longer(self._capacity.patience_s, now)
        if keeps_up and lane.queued <= LANE_QUEUE_MAX // 4:
            return LANE_QUEUE_MAX // 2
        # Late work only: it has turns of its own, and live traffic may never end.
        return 2 * lane.limit - late if late <= lane.limit else 0
