"""Memory for queued deliveries: how much is used, how many more of a site fit, and how long a normal wait in it is.

A site may hold a third of the free memory, so that a site alone holds a quarter of all memory. A tenth of the memory is
reserved: it gives every site SITE_LEAST deliveries, however much the others hold.

Never here: what happens to a delivery without room (scheduling/intake), a clock.
"""

from __future__ import annotations

import weakref
from typing import Final

from pghookd.model.delivery import Delivery
from pghookd.scheduling.lane import LANE_QUEUE_MAX, Site

SITE_SHARE: Final = 3  # a site may take a third of the free memory: a quarter of all memory if it is alone
SITE_LEAST: Final = 20  # deliveries that a site may have in memory, however much the others hold
RESERVE: Final = 10  # a tenth of the memory is kept for SITE_LEAST
SITE_PAGE_MAX: Final = 500  # deliveries made at once for one site
REFILL_LEAST: Final = 250  # least deliveries to read deferred events for, unless the site's part is smaller
STUCK_AFTER_S: Final = 1.0  # a lane whose next delivery has waited this long does not keep up
MEASURE_EVERY_S: Final = 0.5
BUSY_PER_S: Final = 2000.0  # deliveries; at this throughput waiting for room costs less than parking


class Capacity:
    """The memory that all sites share.

    Attributes:
        queued: deliveries queued, in all lanes and in the lines in front of them.
        queued_bytes: bytes of their payloads; a payload counts once for each of its deliveries.
        patience_s: a lane whose head has waited for longer does not keep up.
        busy: True if the daemon itself is the bottleneck, so that no lane is at fault if it is slow.
    """

    def __init__(self, queue_max: int, bytes_max: int) -> None:
        self._queue_max = queue_max
        self._bytes_max = bytes_max
        self._sites: weakref.WeakValueDictionary[str, Site] = weakref.WeakValueDictionary()
        self._measured: tuple[float, int] | None = None
        self.queued = 0
        self.queued_bytes = 0
        self.patience_s = STUCK_AFTER_S
        self.busy = False

    def resize(self, queue_max: int, bytes_max: int) -> None:
        """Set the size of the memory, in deliveries and in bytes; those queued beyond it are not affected."""
        self._queue_max, self._bytes_max = queue_max, bytes_max

    def site(self, site_id: str) -> Site:
        """Return a site, with which its memory is counted; it is forgotten with its last lane."""
        return self._sites.setdefault(site_id, Site())

    def enter(self, site: Site, delivery: Delivery, must: bool = False) -> bool:
        """Count a delivery that joins a queue, or a line in front of it (scheduling/ordering).

        Returns:
            False if memory has no room for it; a delivery that `must` enter has room in any case.
        """
        if (self.queued >= self._queue_max or self.queued_bytes >= self._bytes_max) and not must:
            return False
        payload_bytes = len(delivery.event.payload or b"")
        self.queued += 1
        self.queued_bytes += payload_bytes
        site.queued += 1
        site.queued_bytes += payload_bytes
        return True

    def leave(self, site: Site, delivery: Delivery) -> None:
        """Count a delivery that leaves its queue or line."""
        payload_bytes = len(delivery.event.payload or b"")
        self.queued -= 1
        self.queued_bytes -= payload_bytes
        site.queued -= 1
        site.queued_bytes -= payload_bytes

    @property
    def full(self) -> bool:
        """Return True if memory has no room for another delivery of any lane."""
        return self.queued >= self._queue_max or self.queued_bytes >= self._bytes_max

    @property
    def half_full(self) -> bool:
        """Return True if at least half of the memory is used."""
        return 2 * self.queued >= self._queue_max or 2 * self.queued_bytes >= self._bytes_max

    def room_for(self, site_id: str, endpoints: int) -> int:
        """Return how many more deliveries of a site with so many endpoints fit into memory; 0 or less if none."""
        bytes_left = self._bytes_max - self.queued_bytes
        if self.queued >= self._queue_max or bytes_left <= 0:
            return 0
        most = self._most(endpoints)
        site = self._sites.get(site_id)
        if site is not None and site.queued:
            most = most - site.queued if SITE_SHARE * site.queued_bytes < bytes_left else 0
        return min(SITE_PAGE_MAX, most)

    def refill_for(self, site_id: str, endpoints: int) -> int:
        """Return the room of one site; 0 if it is below both REFILL_LEAST and half of the site's part."""
        room = self.room_for(site_id, endpoints)
        return room if room >= min(REFILL_LEAST, self._most(endpoints) / 2) else 0

    def _most(self, endpoints: int) -> int:
        """Return the share of memory of a site with so many endpoints, in deliveries, while others hold theirs."""
        part = (self._queue_max - self._queue_max // RESERVE - self.queued) // SITE_SHARE
        return min(max(SITE_LEAST, part), endpoints * LANE_QUEUE_MAX // 2)

    def measure(self, delivered: int, now: float) -> None:
        """Measure the throughput from the number of successes so far; set `busy` and `patience_s` from it.

        When the daemon itself is the bottleneck, every lane waits and none is at fault. Draining the queues takes
        queued / rate seconds; patience is twice that. Parking costs as much work as a delivery, so it gains nothing
        while BUSY_PER_S deliveries go out.
        """
        if self._measured is None:
            self._measured = (now, delivered)
            return
        since, before = self._measured
        if now - since >= MEASURE_EVERY_S:
            self._measured = (now, delivered)
            per_s = (delivered - before) / (now - since)
            self.busy = per_s >= BUSY_PER_S
            self.patience_s = max(STUCK_AFTER_S, 2 * self.queued / per_s) if self.busy else STUCK_AFTER_S
