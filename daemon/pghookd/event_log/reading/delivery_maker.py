"""The interface of the fan-out that reading the log needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from pghookd.event_log.position import Difference, Ticket
from pghookd.event_log.reading.takers import Dealt, Pair, Takers
from pghookd.event_log.reading.unclaimed import Unclaimed
from pghookd.event_log.rows import EventRow


class DeliveryMaker(Protocol):
    """The fan-out, as the reader uses it."""

    unclaimed: Unclaimed

    @property
    def hands(self) -> int:
        """Return the number of sites that have deliveries waiting for room in their lanes."""
        ...

    def waits(self, site_id: str) -> bool:
        """Return True if deliveries of the site wait for room."""
        ...

    def place(self) -> list[str]:
        """Place waiting deliveries; return the sites that had some placed."""
        ...

    def refill_for(self, site_id: str, endpoints: int) -> int:
        """Return the same for one site, but 0 or less if reading the log again is not worth it."""
        ...

    def parking_for(self, site_id: str) -> int:
        """Return how many rows of a site may be parked now; 0 or less if none."""
        ...

    def shed(self, site_id: str, endpoints: int) -> None:
        """Park the deliveries that take the room of the site's other lanes."""
        ...

    def deal(
        self,
        rows: Iterable[EventRow],
        takers: Mapping[str, Takers],
        rooms: dict[str, int],
        ticket_of: Callable[[int], Ticket],
        settled: set[tuple[int, int]],
        now: float,
    ) -> Dealt:
        """Make a delivery for each endpoint that takes an event, as long as the event's site has room."""
        ...

    async def enter(self, work: list[Pair], difference: Difference, *, park: bool = False) -> None:
        """Find a place for each delivery; if `park` is True it becomes a row."""
        ...

    async def attend(self) -> None:
        """Read changed endpoints again, and drop durable rows from the count of unwritten ones."""
        ...
