"""The deliveries in memory that have a row in `backlog`, counted by endpoint.

While a delivery is here, its row is not taken a second time. The counts answer without a search whether an endpoint
has any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, MutableMapping
from typing import TypeAlias

from pghookd.model.delivery import Delivery

Key: TypeAlias = tuple[int, int]  # event_id, endpoint_id


class InMemory(MutableMapping[Key, Delivery]):
    """Deliveries by event and endpoint."""

    def __init__(self) -> None:
        self._deliveries: dict[Key, Delivery] = {}
        self._counts: Counter[int] = Counter()

    def __getitem__(self, key: Key) -> Delivery:
        """Return a delivery; raise KeyError if it is not here."""
        return self._deliveries[key]

    def __setitem__(self, key: Key, delivery: Delivery) -> None:
        """Add a delivery, or replace the one of the same event and endpoint."""
        if key not in self._deliveries:
            self._counts[key[1]] += 1
        self._deliveries[key] = delivery

    def __delitem__(self, key: Key) -> None:
        """Remove a delivery; raise KeyError if it is not here."""
        del self._deliveries[key]
        self._counts[key[1]] -= 1
        if not self._counts[key[1]]:
            del self._counts[key[1]]

    def __contains__(self, key: object) -> bool:
        """Return True if the delivery is here."""
        return key in self._deliveries

    def __iter__(self) -> Iterator[Key]:
        """Iterate over the keys."""
        return iter(self._deliveries)

    def __len__(self) -> int:
        """Return the number of deliveries."""
        return len(self._deliveries)

    def count(self, endpoint_id: int) -> int:
        """Return how many deliveries of an endpoint are here."""
        return self._counts.get(endpoint_id, 0)
