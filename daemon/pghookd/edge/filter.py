"""Asks Postgres which deliveries the filter of their endpoint leaves out, within 50 ms, or does without the answer.

Only for endpoints that have a filter. Left out is what is clearly false: an event whose payload cannot be looked at, or
of which a filter says neither true nor false, is delivered, since a receiver can tell what it does not want, and not
what it never got. It has no session of its own: whoever asks waits for no longer than a limit, whatever a filter does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.core.model import Delivery, Endpoint, Reason
from pghookd.edge.journal import LogEvent
from pghookd.edge.postgres import DatabaseError, Session, query

LIMIT_S: Final = 0.05  # for all that is asked at once
LEAST_S: Final = 0.005  # with less than this left nothing more is asked
SLOW_FOR_S: Final = 30.0  # a filter that took all of it is not asked for so long, unless it is changed
CHUNK: Final = 100  # events in a statement
_CANCELLED: Final = "57014"  # query_canceled, by statement_timeout

Key = tuple[int, int]  # event_id, endpoint_id


@dataclasses.dataclass(frozen=True, slots=True)
class Sifted:
    """What filters said.

    Attributes:
        left_out: deliveries that they leave out.
        unknown: deliveries of which it could not be said in time.
    """

    left_out: set[Key] = dataclasses.field(default_factory=set)
    unknown: set[Key] = dataclasses.field(default_factory=set)


def filter_of(endpoint: Endpoint) -> str | None:
    """Return the filter of an endpoint, if it has one."""
    return None if endpoint.options is None else endpoint.options.filter


class Filters:
    """Asks, and remembers which filters are slow."""

    def __init__(self, *, logger: FilteringBoundLogger, monotonic: Callable[[], float]) -> None:
        self._logger = logger
        self._monotonic = monotonic
        self._slow: dict[int, tuple[str | None, float]] = {}  # per endpoint: its filter, not asked until then
        self._planned = False

    def rests_until(self, endpoint_id: int) -> float:
        """Return when the filter of an endpoint may be asked; in the past: now."""
        return self._slow.get(endpoint_id, (None, 0.0))[1]

    def forget(self, endpoint_id: int) -> None:
        """Take an endpoint's filter for one that was never asked: it may have changed."""
        self._slow.pop(endpoint_id, None)

    async def sift(self, session: Session, asked: Iterable[tuple[Endpoint, Delivery]]) -> Sifted:
        """Ask for deliveries whose endpoints have filters."""
        groups: dict[int, tuple[Endpoint, list[int]]] = {}
        for endpoint, delivery in asked:
            group = groups.setdefault(endpoint.endpoint_id, (endpoint, []))
            group[1].append(delivery.event.event_id)
        sifted = Sifted()
        if groups and not self._planned:
            await session.fetch(query("match_filter"), [], 0)  # planned before time counts
            self._planned = True
        end = self._monotonic() + LIMIT_S
        for endpoint, ids in groups.values():
            for start in range(0, len(ids), CHUNK):
                await self._sift(session, endpoint, ids[start : start + CHUNK], end, sifted)
        return sifted

    async def _sift(
        self, session: Session, endpoint: Endpoint, ids: list[int], end: float, sifted: Sifted
    ) -> None:
        now = self._monotonic()
        slow = self._slow.get(endpoint.endpoint_id)
        rests = slow is not None and slow[0] == filter_of(endpoint) and now < slow[1]
        found = None if rests or end - now < LEAST_S else await self._ask(session, endpoint, ids, end - now)
        if found is None:
            sifted.unknown.update((event_id, endpoint.endpoint_id) for event_id in ids)
        else:
            sifted.left_out.update((event_id, endpoint.endpoint_id) for event_id in found)

    async def _ask(
        self, session: Session, endpoint: Endpoint, ids: list[int], within_s: float
    ) -> list[int] | None:
        """Return the events that are left out; None: it took too long."""
        await session.execute(f"set statement_timeout = {max(1, round(within_s * 1e3))}")
        try:
            rows = await session.fetch(query("match_filter"), ids, endpoint.endpoint_id)
        except DatabaseError as error:
            if error.sqlstate != _CANCELLED:
                self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error))
                return []
            if within_s >= LIMIT_S / 2:  # with less it may have been another's fault
                self._note_slow(endpoint)
            return None
        finally:
            await session.execute("reset statement_timeout")
        return [row["event_id"] for row in rows]

    def _note_slow(self, endpoint: Endpoint) -> None:
        self._slow[endpoint.endpoint_id] = (filter_of(endpoint), self._monotonic() + SLOW_FOR_S)
        self._logger.warning(
            LogEvent.DELIVERY_PARKED,
            endpoint_id=endpoint.endpoint_id,
            site_id=endpoint.site_id,
            reason=Reason.FILTER_SLOW.value,
        )
