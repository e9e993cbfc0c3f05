"""Which endpoints may have parked rows, when each is checked next, and how far its rows have been read.

Checks happen in the order of their times, so that all endpoints take turns. Each endpoint has a cursor along which its
rows are read. The cursor falls back to a row that is parked below it, so that every row is reached, older ones first.

Never here: a clock, SQL, whether an endpoint has room for its rows (scheduling/lanes).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Final

FIRST: Final = -1.0  # time of a check that goes before all others
AT_ONCE: Final = 0.0  # time of a check that goes before all checks planned for a time
_STALE_MAX: Final = 100  # heap entries beyond two per endpoint, before the heap is rebuilt


class Parked(AbstractSet[int]):
    """A set of endpoint ids, with the time of the next check of each. Times are monotonic seconds."""

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
