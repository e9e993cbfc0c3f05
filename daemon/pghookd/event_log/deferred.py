"""Events that are left in the log for a while: what a site has too much of, so that others' events are read at once.

An event left aside is known here by its id alone, and is read again when its site has room. Its page's ticket waits for
it, so that a crash loses nothing. Sites take turns.

Never here: SQL, a clock, deliveries.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, KeysView, Sequence
from typing import Final, Generic, TypeVar

from pghookd.event_log.position import Ticket

ASIDE_MAX: Final = (
    1_000_000  # events, and a page: 8 bytes each; beyond, nothing new is read until some are parked
)
C = TypeVar("C")


@dataclasses.dataclass(slots=True)
class DeferredPart(Generic[C]):
    """Events of one site and one page, by ascending id.

    A site with very many endpoints is dealt with slice by slice: all events for the endpoints of one slice, then all
    for the next. Each endpoint gets its events in order, and nothing is ever as large as events times endpoints.

    Attributes:
        ticket: of the page.
        context: of the reader's.
        endpoints: how many the site had; of a wide one, those of a slice.
        weight: deliveries that one event makes, about; at least 1.
        since: monotonic seconds at which the events were read, or the site last had room.
        event_ids: the events that are not done for all endpoints.
        recovering: the recovery road has read them: rows of later events may lie in `backlog` already.
        ordered: some of its endpoints are: it waits until the recovery road has read everything, since rows of later
            events may lie in `backlog`.
        wide: the site has more endpoints than a slice holds.
        after: endpoints up to this id have all of the events.
        slice_end: the last endpoint id of the slice that is being dealt with; None if it is not begun.
        done: so many events, from the first, the slice has.
    """

    ticket: Ticket
    context: C
    endpoints: int
    weight: int
    since: float
    event_ids: array[int]
    recovering: bool = False
    ordered: bool = False
    wide: bool = False
    after: int = 0
    slice_end: int | None = None
    done: int = 0

    def first(self, count: int) -> list[int]:
        """Return the ids of the next events, at most so many."""
        return list(self.event_ids[self.done : self.done + count])


class DeferredEvents(Generic[C]):
    """The events left in the log, by site, in the order in which they were read."""

    def __init__(self, most: int = ASIDE_MAX) -> None:
        self._most = most
        self._parts: OrderedDict[str, deque[DeferredPart[C]]] = OrderedDict()
        self._recovering: Counter[str] = Counter()
        self.events = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __len__(self) -> int:
        """Return how many sites have left events."""
        return len(self._parts)

    def __contains__(self, site_id: str) -> bool:
        return site_id in self._parts

    def keys(self) -> KeysView[str]:
        """Return the sites that have left events."""
        return self._parts.keys()

    @property
    def is_full(self) -> bool:
        """Return True if no more can be left."""
        return self.events >= self._most

    def put(self, site_id: str, part: DeferredPart[C]) -> None:
        """Leave events; their ticket waits for them."""
        self._parts.setdefault(site_id, deque()).append(part)
        self._recovering[site_id] += part.recovering
        part.ticket.unmade += len(part.event_ids)
        self.events += len(part.event_ids)

    def turns(self, most: int) -> Iterator[tuple[str, Sequence[DeferredPart[C]]]]:
        """Yield the parts of each site whose turn it is, oldest first, of so many sites; then it is others' turn."""
        for site_id in list(itertools.islice(self._parts, most)):
            self._parts.move_to_end(site_id)
            yield site_id, self._parts[site_id]

    def largest(self, most: int) -> list[str]:
        """Return up to so many sites, those that have left most pages."""
        return heapq.nlargest(most, self._parts, key=lambda site_id: len(self._parts[site_id]))

    def is_recovering(self, site_id: str) -> bool:
        """Return True if the recovery road has left events of a site that are not taken yet."""
        return self._recovering[site_id] > 0

    def had_room(self, site_id: str, now: float) -> None:
        """Say that a site has room now: what it left has not waited in vain so far."""
        self._parts[site_id][0].since = now

    def taken(self, site_id: str, count: int, slice_end: int | None) -> None:
        """Say that so many events of a site's oldest part are deliveries of its ticket now, or need not be.

        Args:
            site_id: whose.
            count: events, from the first that its slice of endpoints did not have.
            slice_end: the last endpoint id of that slice; None if the site has no endpoint after it.
        """
        parts = self._parts[site_id]
        part = parts[0]
        if slice_end is not None:
            part.done, part.slice_end = part.done + count, slice_end
            if part.done == len(part.event_ids):
                part.after, part.slice_end, part.done = slice_end, None, 0
            return
        part.event_ids = part.event_ids[count:]
        part.ticket.unmade -= count
        self.events -= count
        if not part.event_ids:
            parts.popleft()
            self._recovering[site_id] -= part.recovering
            if parts:
                parts[0].since = max(parts[0].since, part.since)
            else:
                del self._parts[site_id], self._recovering[site_id]
        part.ticket.advance()


def ids_of(event_ids: Sequence[int]) -> array[int]:
    """Return event ids as a Part holds them."""
    return array("q", event_ids)
