"""The hands of sites: deliveries already made for which the site's lanes have no room yet, in their order.

Never here: the room itself (event_log/fan_out), a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from pghookd.model.delivery import Delivery, Endpoint


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
