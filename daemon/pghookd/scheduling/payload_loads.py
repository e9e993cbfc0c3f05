"""Limits the bytes of large payloads in memory, and chooses which payload is loaded next. Sites take turns.

A payload of over 16 KB is not read with its page. It is loaded when its delivery is the next of a lane, before that
takes a request slot, and kept until the request has ended.

    owner                 may hold                          at the limit
    a site that has any   a half, and not the last quarter  its lanes wait until bytes of payloads are free again
    a site that has none  all of them                       likewise

A payload counts for at most a quarter of all bytes, so that a payload of any allowed size can be sent. Up to four of
these may be in memory together.

Never here: loading (delivery/payloads), a clock.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Final

from pghookd.model.delivery import Delivery, Loaded
from pghookd.scheduling.lane import Lane, Site

SITE_SHARE: Final = 0.5
RESERVED: Final = 0.75  # beyond this share, only sites without a large payload in memory may take bytes
LARGEST: Final = 0.25  # maximum share that one payload counts for


@dataclasses.dataclass(slots=True, eq=False)
class PayloadBudget:
    """The bytes of all large payloads in memory.

    Attributes:
        size: the limit, bytes.
        used: cost of the payloads in memory, bytes.
    """

    size: int
    used: int = 0

    def room(self, held: int) -> int:
        """Return how many more bytes a site may take that already holds `held`."""
        if not held:
            return max(0, self.size - self.used)
        return max(0, min(int(self.size * SITE_SHARE) - held, int(self.size * RESERVED) - self.used))

    def cost(self, payload_bytes: int) -> int:
        """Return the bytes that a payload counts for."""
        return min(payload_bytes, int(self.size * LARGEST))


class PayloadLoads:
    """The lanes that wait for a payload to be loaded, and the payloads that were.

    Args:
        bytes_max: limit of the payloads in memory, bytes.
        resume: called with a lane that waits for no payload any more.

    Attributes:
        budget: the bytes that all payloads in memory take.
    """

    def __init__(self, bytes_max: int, resume: Callable[[Lane], None]) -> None:
        self.budget = PayloadBudget(bytes_max)
        self._resume = resume
        self._sites: deque[Site] = deque()

    def resize(self, bytes_max: int) -> None:
        """Set the limit; payloads in memory beyond it are not affected."""
        self.budget.size = bytes_max

    def __bool__(self) -> bool:
        """Return True if lanes wait for payloads to be loaded."""
        return bool(self._sites)

    def want(self, lane: Lane) -> bool:
        """Return True if a lane's next payload must be loaded first, and queue the lane for that."""
        if lane.next_unloaded() is None:
            return False
        if not lane.site.loads:
            self._sites.append(lane.site)
        lane.site.loads.append(lane)
        return True

    def next(self) -> tuple[Lane, Delivery, int] | None:
        """Take the next delivery whose payload must be loaded; call `put` or `put_back` with it.

        Returns:
            Lane, delivery and the bytes it may take; None if no payload is wanted, or no site that wants one has room.
        """
        for _ in range(len(self._sites)):
            site = self._sites.popleft()
            room = self.budget.room(site.loaded_bytes)
            if room <= 0 or room < site.load_wants:
                self._sites.append(site)
                continue
            site.load_wants = 0
            lane = site.loads.popleft()
            if site.loads:
                self._sites.append(site)
            delivery = lane.next_unloaded()
            if delivery is not None:
                return lane, delivery, room
            self._resume(lane)
        return None

    def put(self, lane: Lane, delivery: Delivery, loaded: Loaded) -> None:
        """Store a loaded payload, unless its delivery has left the lane meanwhile."""
        if lane.next_unloaded() is delivery:
            delivery.loaded = loaded
            lane.unloaded -= 1
            self.budget.used += loaded.cost
            lane.site.loaded_bytes += loaded.cost
        self._resume(lane)

    def put_back(self, lane: Lane, cost: int) -> None:
        """Put a lane back as the first of its site, until there is room for its next payload's cost, in bytes."""
        site = lane.site
        if not site.loads:
            self._sites.append(site)
        site.loads.appendleft(lane)
        site.load_wants = cost

    def drop(self, lane: Lane, delivery: Delivery) -> None:
        """Drop a delivery's large payload, if it was loaded: it was sent, or will be loaded again."""
        if delivery.loaded is not None:
            self.budget.used -= delivery.loaded.cost
            lane.site.loaded_bytes -= delivery.loaded.cost
            delivery.loaded = None
