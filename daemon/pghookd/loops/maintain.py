"""Makes the days' partitions ahead, and moves the sequence into today's.

Never waits for a lock that a producer might queue behind: it tries, and comes again. If it never ran, ids would stay
in the old day's range and nothing would break.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.edge.journal import LogEvent
from pghookd.edge.postgres import DatabaseError, Session, query

LOOK_EVERY_S: Final = 60.0
LOOK_AGAIN_S: Final = 2.0  # a lock was not to be had, or a producer is still open from before
DAYS_AHEAD: Final = 8  # today and a week
_TRY: Final = "select pg_try_advisory_lock(1885825131, -3)"
_FREE: Final = "select pg_advisory_unlock(1885825131, -3)"
_TODAY: Final = "select webhooks.day_of()"


async def maintain(
    session: Session, *, logger: FilteringBoundLogger, beat: Callable[[], None], days: int = DAYS_AHEAD
) -> None:
    """Keep the partitions ahead until cancelled."""
    while True:
        wait_s = LOOK_EVERY_S if await step(session, logger=logger, days=days) else LOOK_AGAIN_S
        for _ in range(int(wait_s)):
            beat()
            await asyncio.sleep(1.0)


async def step(
    session: Session, *, logger: FilteringBoundLogger, days: int = DAYS_AHEAD, today: int | None = None
) -> bool:
    """Do what is to be done now; whether nothing is left to do.

    Args:
        session: in no transaction.
        logger: is told what did not work.
        days: how many to have, today included.
        today: as `webhooks.day_of()` counts days; None: by the server's clock.
    """
    if not await session.fetchval(_TRY):
        return False  # another instance is at it
    try:
        return await _step(session, days, today)
    except DatabaseError as error:
        logger.info(LogEvent.PARTITIONS_DELAYED, error=str(error))
        return False
    finally:
        if not session.closed:
            await session.fetchval(_FREE)


async def _step(session: Session, days: int, today: int | None) -> bool:
    if today is None:
        today = await session.fetchval(_TODAY)
    for row in await session.fetch(query("find_missing_days"), today, days):
        await session.fetchval(query("attach_day"), row["day"])
        await session.fetchval(query("note_day"), row["day"])
    if await session.fetchval(query("is_in_day"), today):
        return True
    if not await session.fetchval(query("enter_day"), today):
        return False
    await _analyze(session)
    return True


async def _analyze(session: Session) -> None:
    """Autovacuum analyzes partitions but never their parents; once a day is enough for the planner."""
    for table in ("events", "attempts", "dead"):
        await session.execute(f"analyze webhooks.{table}")
