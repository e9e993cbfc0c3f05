"""Marks the rows of disabled endpoints as held, page by page, and gives up rows that were held for too long."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.delivery.backlog.admission import BacklogStep
from pghookd.model.delivery import Reason
from pghookd.postgres.client import DatabaseError, query
from pghookd.process.logs import LogEvent
from pghookd.scheduling.ordering import Order

HOLD_PAGE: Final = 1000  # rows examined in one step
HOLD_EVERY_S: Final = 0.02  # least time between two pages: outcomes wait behind them
EXPIRE_PAGE: Final = 500
EXPIRE_EVERY_S: Final = 60.0
REFUSED_AGAIN_S: Final = 5.0  # after Postgres refused a statement


class HeldRows:
    """Remembers the disabled endpoints that have rows, and those of them that have only held rows.

    Attributes:
        held_days: rows held for longer are dead, `expired`.
    """

    def __init__(self, order: Order, *, held_days: float, logger: FilteringBoundLogger) -> None:
        self._order = order
        self.held_days = held_days
        self._logger = logger
        self._holding: dict[int, int] = {}  # disabled endpoints, and the last event_id examined
        self._held: set[int] = set()  # disabled endpoints whose rows are all held
        self._hold_at = 0.0
        self._expire_at = 0.0

    def __contains__(self, endpoint_id: int) -> bool:
        """Return True if the endpoint was disabled at the last check."""
        return endpoint_id in self._held or endpoint_id in self._holding

    def switched_off(self, endpoint_id: int) -> None:
        """Start holding the rows of a disabled endpoint, unless all are held."""
        if endpoint_id not in self._held:
            self._holding.setdefault(endpoint_id, 0)

    def switched_on(self, endpoint_id: int) -> bool:
        """Stop holding the rows of an endpoint; return True if it was disabled before."""
        was_off = endpoint_id in self
        self._held.discard(endpoint_id)
        self._holding.pop(endpoint_id, None)
        return was_off

    def look_again(self, endpoint_id: int | None = None) -> None:
        """Examine the rows of a disabled endpoint again; None stands for all disabled endpoints."""
        if endpoint_id is None:
            self._held.clear()
        else:
            self._held.discard(endpoint_id)

    async def step(self, step: BacklogStep) -> None:
        """Hold a page of rows, and expire a page if it is time."""
        if self._holding and step.now >= self._hold_at:
            self._hold_at = await self._unless_refused(self._hold(step), step.now)
        if step.now >= self._expire_at:
            self._expire_at = await self._unless_refused(self._expire(step), step.now)

    async def _unless_refused(self, work: Awaitable[float], now: float) -> float:
        """Do work that can be postponed; return the time of its next run."""
        try:
            return await work
        except DatabaseError as error:
            self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error))
            return now + REFUSED_AGAIN_S

    async def _hold(self, step: BacklogStep) -> float:
        """Hold a page of one disabled endpoint's rows; endpoints take turns."""
        endpoint_id, after = next(iter(self._holding.items()))
        last: int | None = await step.session.fetchval(query("hold_backlog"), endpoint_id, after, HOLD_PAGE)
        del self._holding[endpoint_id]
        if last is not None:
            self._holding[endpoint_id] = last
        else:  # no row is left, or the endpoint is enabled again
            self._held.add(endpoint_id)
        return step.now + HOLD_EVERY_S

    async def _expire(self, step: BacklogStep) -> float:
        """Give up a page of rows that have been held for too long."""
        rows = await step.session.fetch(query("expire_held"), self.held_days, EXPIRE_PAGE)
        for row in rows:
            self._logger.warning(
                LogEvent.DELIVERY_DIED,
                endpoint_id=row["endpoint_id"],
                site_id=row["site_id"],
                reason=Reason.EXPIRED.value,
                deliveries=row["deliveries"],
            )
            if row["endpoint_id"] in self._order:
                self._order.restart(row["endpoint_id"])
        full = sum(row["deliveries"] for row in rows) >= EXPIRE_PAGE
        return step.now if full else step.now + EXPIRE_EVERY_S
