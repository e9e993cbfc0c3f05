"""Which event is the newest of its `supersede_key` at an endpoint, as far as memory knows.

Only deliveries of events that have such a key are noted, and what is known of a key goes with the last of them: they
alone hold it. What is not in memory is asked for in the database, when its row is taken back.

Never here: what has no key, SQL, what becomes of a delivery.
"""

from __future__ import annotations

import weakref

from pghookd.core.model import Delivery, Newest


class Keys:
    """The keys of the deliveries in memory."""

    def __init__(self) -> None:
        self._newest: weakref.WeakValueDictionary[tuple[int, str], Newest] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        """Return how many keys are known, at all endpoints."""
        return len(self._newest)

    def note(self, delivery: Delivery) -> None:
        """Take a delivery for the newest of its key, if it has one and no newer event was noted."""
        options = delivery.event.options
        if options is None or options.supersede_key is None:
            return
        key = delivery.endpoint_id, options.supersede_key
        newest = self._newest.get(key)
        if newest is None:
            newest = self._newest[key] = Newest()
        newest.event_id = max(newest.event_id, delivery.event.event_id)
        delivery.newest = newest


def is_superseded(delivery: Delivery) -> bool:
    """Whether a newer event of its key was noted for the same endpoint."""
    return delivery.newest is not None and delivery.newest.event_id > delivery.event.event_id
