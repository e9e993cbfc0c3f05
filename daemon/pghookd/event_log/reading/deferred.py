"""Deferred events: events of an overloaded site that stay in the log for a while, so that other sites are read at once.

Only the id of a deferred event is kept in memory. The event is read again when its site has room. The ticket of its
page stays open until then, so a crash loses nothing. Sites take turns.

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
    1_000_000  # deferred events, plus a page; 8 bytes each; when full, reading stops until some are parked
)
C = TypeVar("C")


@dataclasses.dataclass(slots=True)
class DeferredPart(Generic[C]):
    """Deferred events of one site and one page, by ascending id.

    A site with very many endpoints is processed slice by slice: all events for the endpoints of one slice, then all
    for the next. Each endpoint gets its events in order, and no step handles all events times all endpoints.

    Attributes:
        ticket: the ticket of the page.
        context: a value of the reader, returned as it is.
        endpoints: number of the site's endpoints; for a wide site, of one slice.
        weight: approximate number of deliveries per event; at least 1.
        since: monotonic seconds at which the events were read, or at which the site last had room.
        event_ids: the events that are not done for all endpoints.
        recovering: True if recovery read the events: `backlog` may already hold rows of later events.
        ordered: True if some endpoints of the site are ordered. Such events wait until recovery has read everything,
            since `backlog` may hold rows of later events.
        wide: True if the site has more endpoints than a slice holds.
        after: endpoints up to this id have all of the events.
        slice_end: the last endpoint id of the current slice; None if the slice has not begun.
        done: number of events, from the first, that the current slice has.
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
        """Return the ids of the next events, at most `count`."""
        return list(self.event_ids[self.done : self.done + count])


class DeferredEvents(Generic[C]):
    """The deferred events by site, in the order in which they were read."""

    def __init__(self, most: int = ASIDE_MAX) -> None:
        self._most = most
        self._parts: OrderedDict[str, deque[DeferredPart[C]]] = OrderedDict()
        self._recovering: Counter[str] = Counter()
        self.events = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __len__(self) -> int:
        """Return the number of sites that have deferred events."""
        return len(self._parts)

    def __contains__(self, site_id: str) -> bool:
        return site_id in self._parts

    def keys(self) -> KeysView[str]:
        """Return the sites that have deferred events."""
        return self._parts.keys()

    @property
    def is_full(self) -> bool:
        """Return True if no more events can be deferred."""
        return self.events >= self._most

    def put(self, site_id: str, part: DeferredPart[C]) -> None:
        """Defer events; their ticket stays open for them."""
        self._parts.setdefault(site_id, deque()).append(part)
        self._recovering[site_id] += part.recovering
        part.ticket.unmade += len(part.event_ids)
        self.events += len(part.event_ids)

    def turns(self, most: int) -> Iterator[tuple[str, Sequence[DeferredPart[C]]]]:
        """Yield the parts of up to `most` sites, oldest part first; sites take turns from call to call."""
        for site_id in list(itertools.islice(self._parts, most)):
            self._parts.move_to_end(site_id)
            yield site_id, self._parts[site_id]

    def largest(self, most: int) -> list[str]:
        """Return up to `most` sites, those with the most deferred pages."""
        return heapq.nlargest(most, self._parts, key=lambda site_id: len(self._parts[site_id]))

    def is_recovering(self, site_id: str) -> bool:
        """Return True if recovery has deferred events of the site that are not taken yet."""
        return self._recovering[site_id] > 0

    def had_room(self, site_id: str, now: float) -> None:
        """Record that a site has room now: the waiting time of its deferred events starts again."""
        self._parts[site_id][0].since = now

    def taken(self, site_id: str, count: int, slice_end: int | None) -> None:
        """Record that events of a site's oldest part now have deliveries on its ticket, or need none.

        Args:
            site_id: the site.
            count: number of events, from the first that the current slice of endpoints did not have.
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
    """Return event ids in the form that a DeferredPart holds."""
    return array("q", event_ids)
