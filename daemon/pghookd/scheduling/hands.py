"""Deliveries that the fan-out has made and that are in no lane: those that wait for room, and those that become rows.

A delivery for which its lane has no room waits in the hand of its site, in order.

A site whose deliveries all become rows (parked, held, dead) must not fill the recorder. It may have half of the rows
still free; its further events stay in the log. So one site takes at most half of all rows, and no number of sites can
take the room of a site without rows.

Never here: the room itself (event_log/fan_out), a clock.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Final

from pghookd.model.delivery import Delivery, Endpoint

UNWRITTEN_MAX: Final = 2000  # rows: four full batches of the recorder, about 0.2 to 0.4 s of its time
UNWRITTEN_LEAST: Final = 20  # rows that a site may have, however many the others have


class Hands:
    """Per site, a queue of deliveries, each with its endpoint."""

    def __init__(self) -> None:
        self._of_site: dict[str, deque[tuple[Endpoint, Delivery]]] = {}

    def __len__(self) -> int:
        """Return the number of sites that have deliveries waiting."""
        return len(self._of_site)

    def __contains__(self, site_id: str) -> bool:
        return site_id in self._of_site

    def put(self, endpoint: Endpoint, delivery: Delivery) -> None:
        """Append a delivery behind the earlier ones of its site."""
        self._of_site.setdefault(endpoint.site_id, deque()).append((endpoint, delivery))

    def endpoints(self) -> Iterator[int]:
        """Return the endpoint of each delivery."""
        return (delivery.endpoint_id for hand in self._of_site.values() for _, delivery in hand)

    def place(self, place: Callable[[Endpoint, Delivery], bool]) -> list[str]:
        """Take deliveries, of each site as long as `place` returns True; return the sites that had some placed."""
        placed: list[str] = []
        for site_id, hand in list(self._of_site.items()):
            before = len(hand)
            while hand and place(*hand[0]):
                hand.popleft()
            if len(hand) < before:
                placed.append(site_id)
            if not hand:
                del self._of_site[site_id]
        return placed

    def forget(self, site_id: str, endpoint_id: int) -> list[Delivery]:
        """Take all deliveries of an endpoint."""
        hand = self._of_site.get(site_id, ())
        taken = [delivery for _, delivery in hand if delivery.endpoint_id == endpoint_id]
        if taken:
            self._of_site[site_id] = deque(pair for pair in hand if pair[1].endpoint_id != endpoint_id)
        return taken


class Unwritten:
    """Rows handed to the recorder, for `backlog` or `dead`, and not durable yet; counted by site."""

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
