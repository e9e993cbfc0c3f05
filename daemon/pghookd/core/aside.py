"""Events that are left in the log for a while: those of sites that have had their part of a page, or of the memory.

A site that floods the log must not hold up others, whose events stand behind its own. What it has too much of is known
here by id alone, and read again when there is room; its page's ticket waits for it, so that a crash loses nothing.

Never here: SQL, a clock, deliveries.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final, Generic, TypeVar

from pghookd.core.snapshot import Ticket

ASIDE_MAX: Final = 1_000_000  # events, and a page; beyond, nothing new is read until some are parked
C = TypeVar("C")


@dataclasses.dataclass(slots=True)
class Part(Generic[C]):
    """Events of one site and one page, by ascending id.

    Attributes:
        ticket: of the page.
        context: of the reader's.
        endpoints: how many the site had.
        since: monotonic seconds at which they were read.
        event_ids: which ones.
    """

    ticket: Ticket
    context: C
    endpoints: int
    since: float
    event_ids: Sequence[int]


class Aside(Generic[C]):
    """The events left in the log, by site, in the order in which they were read."""

    def __init__(self, most: int = ASIDE_MAX) -> None:
        self._most = most
        self._parts: OrderedDict[str, deque[Part[C]]] = OrderedDict()
        self.events = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def __contains__(self, site_id: str) -> bool:
        return site_id in self._parts

    @property
    def is_full(self) -> bool:
        """Whether no more can be left."""
        return self.events >= self._most

    def put(self, site_id: str, part: Part[C]) -> None:
        """Leave events; their ticket waits for them."""
        self._parts.setdefault(site_id, deque()).append(part)
        part.ticket.aside += len(part.event_ids)
        self.events += len(part.event_ids)

    def next(self) -> tuple[str, Part[C]] | None:
        """Return the oldest part of the site whose turn it is; None: nothing is left."""
        if not self._parts:
            return None
        site_id = next(iter(self._parts))
        self._parts.move_to_end(site_id)
        return site_id, self._parts[site_id][0]

    def taken(self, site_id: str, count: int) -> None:
        """Say that so many events of a site's oldest part are deliveries of its ticket now, or nothing."""
        parts = self._parts[site_id]
        part = parts[0]
        part.event_ids = part.event_ids[count:]
        part.ticket.aside -= count
        self.events -= count
        if not part.event_ids:
            parts.popleft()
            if not parts:
                del self._parts[site_id]
        if part.ticket.is_done:
            part.ticket.shard.advance()
