"""Turns the rows of disabled endpoints into held ones, page by page, and gives up what was held for too long."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.delivery.backlog.admission import BacklogStep
from pghookd.model.delivery import Reason
from pghookd.postgres.client import DatabaseError, query
from pghookd.process.logs import LogEvent
from pghookd.scheduling.ordering import Order

HOLD_PAGE: Final = 1000  # rows looked at in one step
HOLD_EVERY_S: Final = 0.02  # between two pages: outcomes wait behind them
EXPIRE_PAGE: Final = 500
EXPIRE_EVERY_S: Final = 60.0
REFUSED_AGAIN_S: Final = 5.0  # after a statement that was refused


class HeldRows:
    """Remembers which endpoints with rows are off, and which of them have no other rows than held ones.

    Attributes:
        held_days: rows held for longer are dead, `expired`.
    """

    def __init__(self, order: Order, *, held_days: float, logger: FilteringBoundLogger) -> None:
        self._order = order
        self.held_days = held_days
        self._logger = logger
        self._holding: dict[int, int] = {}  # disabled endpoints, and the last event_id looked at
        self._held: set[int] = set()  # disabled endpoints of which every row is held
        self._hold_at = 0.0
        self._expire_at = 0.0

    def __contains__(self, endpoint_id: int) -> bool:
        """Return True if the endpoint was off when it was last looked at."""
        return endpoint_id in self._held or endpoint_id in self._holding

    def switched_off(self, endpoint_id: int) -> None:
        """Hold the rows of a disabled endpoint, unless that is done."""
        if endpoint_id not in self._held:
            self._holding.setdefault(endpoint_id, 0)

    def switched_on(self, endpoint_id: int) -> bool:
        """Hold no more rows of an endpoint; return True if it was off before."""
        was_off = endpoint_id in self
        self._held.discard(endpoint_id)
        self._holding.pop(endpoint_id, None)
        return was_off

    def look_again(self, endpoint_id: int | None = None) -> None:
        """Look through the rows of a disabled endpoint once more; None: of all of them."""
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
        """Do what can wait; return when to do it again."""
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
        else:  # none left, or it is on again
            self._held.add(endpoint_id)
        return step.now + HOLD_EVERY_S

    async def _expire(self, step: BacklogStep) -> float:
        """Give up a page of what has been held for too long."""
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
