"""Counts the attempts of finished hours, for charts of endpoints (webhooks.endpoint_activity).

An hour is counted once, in one transaction, after a grace for outcomes that are recorded late. Attempts recorded after
that stay out of the counts. Charts read the attempts themselves of hours that are not counted yet.
"""

from __future__ import annotations

import asyncio
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.postgres.client import DatabaseError, Session, query
from pghookd.process.logs import LogEvent

GRACE_S: Final = (
    600.0  # after an hour: outcomes that Postgres could not take at once are recorded within minutes
)
HOURS_A_STEP: Final = 24  # counted in one step, after a time without a daemon
PAUSE_S: Final = 0.02  # after each hour


async def count_hours(session: Session, logger: FilteringBoundLogger) -> None:
    """Count the next hours that are over; what Postgres refuses is tried again in the next step."""
    try:
        for _ in range(HOURS_A_STEP):
            if await session.fetchval(query("roll_up_hour"), GRACE_S) is None:
                return
            await asyncio.sleep(PAUSE_S)
    except DatabaseError as error:
        logger.warning(LogEvent.DATABASE_REFUSED, error=str(error), statement="roll up hour")
