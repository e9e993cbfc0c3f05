"""Runs replays: page by page, at their rate, on the recorder's session before it takes due rows.

The database stores what to replay and how far each replay is. So nothing is lost with this process, and a page is one
transaction. It has no loop and no session of its own, for the same reason as due rows. Live traffic goes first, since
replayed rows join their lane's late ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.model.outcome import Write
from pghookd.postgres.client import DatabaseError, Session, query
from pghookd.process.logs import LogEvent
from pghookd.scheduling.capacity import Capacity
from pghookd.scheduling.rate import Meter

LOOK_EVERY_S: Final = 5.0  # for replays whose notification was lost
PAGE_EVERY_S: Final = 0.1
PAGE: Final = 200  # deliveries
LOOKS: Final = 1000  # events, or dead deliveries, examined for a page
STEP_S: Final = 0.02  # time for further pages, if few of the examined events are taken
PAGES_A_STEP: Final = 16
REFUSED_AGAIN_S: Final = 5.0  # after Postgres refused a statement


class Replays:
    """A chore of the recorder, done before due rows are taken."""

    def __init__(
        self,
        capacity: Capacity,
        *,
        made_due: Callable[[], None],
        logger: FilteringBoundLogger,
        monotonic: Callable[[], float],
    ) -> None:
        self._made_due = made_due
        self._capacity = capacity
        self._logger = logger
        self._monotonic = monotonic
        self._meters: dict[int, Meter] = {}  # of running replays
        self._look_at = 0.0
        self._page_at = 0.0

    def ring(self) -> None:
        """Poll for replays at once: one was started, paused, resumed or cancelled."""
        self._look_at = 0.0

    async def step(self, session: Session, now: float, _put: Callable[[Write, float], None]) -> bool:
        """Take pages of replays if it is time."""
        try:
            await self._replay(session, now)
        except DatabaseError as error:
            self._look_at = self._page_at = now + REFUSED_AGAIN_S
            self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error))
        return False

    async def _replay(self, session: Session, now: float) -> None:
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            rows = await session.fetch(query("find_replays"))
            meters = {row["replay_id"]: Meter(row["rate_per_s"], now) for row in rows}
            self._meters = {number: self._meters.get(number) or meters[number] for number in meters}
        if self._meters and now >= self._page_at and not self._capacity.full:
            self._page_at = now + PAGE_EVERY_S
            for replay_id, meter in list(self._meters.items()):
                await self._advance(session, replay_id, meter, now)

    async def _advance(self, session: Session, replay_id: int, meter: Meter, now: float) -> None:
        """Take what the rate of one replay allows now, within the bounds of a step."""
        for _ in range(PAGES_A_STEP):
            most = min(meter.due(now), PAGE)
            if most <= 0:
                return
            row = await session.fetchrow(query("advance_replay"), replay_id, LOOKS, most)
            if row is None or row["ended"]:
                del self._meters[replay_id]
            if row is None:
                return
            meter.taken += row["taken"]
            if row["taken"]:
                self._made_due()
            if row["ended"]:
                return
            if self._monotonic() - now > STEP_S:
                break
        self._page_at = now  # there is more to examine
