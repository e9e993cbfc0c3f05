"""Endpoints that change while deliveries of theirs are in memory: which are read again, and when.

Never here: what a change means for the deliveries (event_log/fan_out).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Final

from pghookd.event_log.reading.endpoints import Endpoints
from pghookd.model.delivery import Endpoint
from pghookd.scheduling.lane import KnownLanes

EVERY_S: Final = 5.0  # how often endpoints of queued work are read again, besides the notifications
CHANGED_MAX: Final = 1000  # changed endpoints remembered; with more, all that have work are read
ALL_EVERY_S: Final = 0.5  # least time between two reads of all of them
PAGE: Final = 500  # endpoints read again between two reads of the log


class EndpointChanges:
    """Remembers which endpoints may have changed, and reads them in pages."""

    def __init__(self, endpoints: Endpoints, known: KnownLanes, *, monotonic: Callable[[], float]) -> None:
        self._endpoints = endpoints
        self._known = known
        self._monotonic = monotonic
        self._changed: set[int] | None = set()  # None if all that have work are read again
        self._stale: dict[int, None] = {}  # those of them that are not read yet
        self._next_at = monotonic() + EVERY_S
        self._all_at = 0.0  # all are read again no earlier than this

    def note(self, endpoint_ids: Iterable[int] | None) -> None:
        """Note endpoints that may have changed; None stands for any."""
        self._endpoints.ask_again()
        if endpoint_ids is None:
            self._changed = None
        elif self._changed is not None:
            self._changed.update(endpoint_ids)
            if len(self._changed) > CHANGED_MAX:
                self._changed = None

    async def read(self, in_hand: Callable[[], Iterable[int]]) -> dict[int, Endpoint | None]:
        """Read a page of the changed endpoints; None if one was deleted. Every few seconds all with work count.

        Args:
            in_hand: returns the endpoints that have work outside of lanes.
        """
        now = self._monotonic()
        if now >= self._next_at:
            self._next_at = now + EVERY_S
            self._changed = None
        if self._changed is not None:
            self._stale.update((i, None) for i in self._changed if i in self._known.by_endpoint)
            self._changed = set()
        elif now >= self._all_at:
            self._all_at = now + ALL_EVERY_S
            self._stale.update((lane.key.endpoint_id, None) for lane in self._known.busy())
            self._stale.update((endpoint_id, None) for endpoint_id in in_hand())
            self._changed = set()
        ids = list(itertools.islice(self._stale, PAGE))
        if not ids:
            return {}
        for endpoint_id in ids:
            del self._stale[endpoint_id]
        return await self._endpoints.again(ids)
