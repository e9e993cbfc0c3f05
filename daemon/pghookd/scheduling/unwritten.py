"""Counts, by site, the rows that the fan-out has handed to the recorder and that are not durable yet.

A site whose deliveries all become rows (parked, held, dead) must not fill the recorder. It may have half of the rows
still free; its further events stay in the log. So one site takes at most half of all rows, and no number of sites can
take the room of a site without rows.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from pghookd.model.delivery import Delivery

UNWRITTEN_MAX: Final = 2000  # rows: four full batches of the recorder, about 0.2 to 0.4 s of its time
UNWRITTEN_LEAST: Final = 20  # rows that a site may have, however many the others have


class Unwritten:
    """Rows to be written into `backlog` or `dead`."""

    def __init__(self) -> None:
        self._deliveries: list[Delivery] = []
        self._of_site: Counter[str] = Counter()

    def __bool__(self) -> bool:
        """Return True if rows are not durable yet; without any, each site has more room than memory gives it."""
        return bool(self._deliveries)

    def note(self, delivery: Delivery) -> None:
        """Count a row handed to the recorder; the delivery's ticket becomes None once the row is durable."""
        self._deliveries.append(delivery)
        self._of_site[delivery.event.site_id] += 1

    def sweep(self) -> None:
        """Forget the rows that have become durable."""
        if self._deliveries:
            self._deliveries = [delivery for delivery in self._deliveries if delivery.ticket is not None]
            self._of_site = Counter(delivery.event.site_id for delivery in self._deliveries)

    def room_for(self, site_id: str) -> int:
        """Return how many more rows a site may hand over; 0 or less if none."""
        free = UNWRITTEN_MAX - len(self._deliveries)
        return max(free // 2, UNWRITTEN_LEAST) - self._of_site.get(site_id, 0)
