"""The rows that the fan-out has handed to the recorder and that are not durable yet, by site.

A site whose deliveries all become rows (parked, held, dead) must not fill the recorder. It may have half of the rows
that are still free; what it has beyond that stays in the log. So one site has half of them at most, and no number of
sites takes the room of a site that has none.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from pghookd.model.delivery import Delivery

UNWRITTEN_MAX: Final = 2000  # rows: four full batches of the recorder, some 0.2 to 0.4 s of its time
UNWRITTEN_LEAST: Final = 20  # rows that a site may have however many the others have


class Unwritten:
    """Rows on their way into `backlog` or `dead`."""

    def __init__(self) -> None:
        self._deliveries: list[Delivery] = []
        self._of_site: Counter[str] = Counter()

    def __bool__(self) -> bool:
        """Return True if rows are on their way: without any, each site has more room than memory gives it at once."""
        return bool(self._deliveries)

    def note(self, delivery: Delivery) -> None:
        """Count a row that the recorder has been given; its ticket says when it is durable."""
        self._deliveries.append(delivery)
        self._of_site[delivery.event.site_id] += 1

    def sweep(self) -> None:
        """Forget the rows that are durable by now."""
        if self._deliveries:
            self._deliveries = [delivery for delivery in self._deliveries if delivery.ticket is not None]
            self._of_site = Counter(delivery.event.site_id for delivery in self._deliveries)

    def room_for(self, site_id: str) -> int:
        """Return how many more rows a site may hand over; 0 or less if none."""
        free = UNWRITTEN_MAX - len(self._deliveries)
        return max(free // 2, UNWRITTEN_LEAST) - self._of_site.get(site_id, 0)
