"""Creates the days' partitions ahead, moves the sequence into the current day, and has old days removed.

It also counts attempts, encrypts secrets and erases old data.

It never waits for a lock that a producer might queue behind: it tries, and tries again later. If it never ran, ids
would stay in the old day's range and nothing would break. All other work is done in pages of a few milliseconds, with a
pause after each. A statement that touches a whole table has no place here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.encryption.encrypt_at_rest import wrap_plain
from pghookd.encryption.keyring import Vault
from pghookd.event_log.reading.unclaimed import Unclaimed
from pghookd.event_log.rows import holder_of
from pghookd.model import day
from pghookd.model.day import Reminder
from pghookd.postgres import lock_keys
from pghookd.postgres.client import DatabaseError, Session, query
from pghookd.postgres.owner import as_owner
from pghookd.process import beating
from pghookd.process.logs import LogEvent
from pghookd.runtime.upkeep.activity import count_hours
from pghookd.runtime.upkeep.retention import KEEP_ALL, Policy, Retention
from pghookd.runtime.upkeep.unclaimed_reports import UnclaimedReports
from pghookd.settings.schema import Settings

LOOK_EVERY_S: Final = 60.0
LOOK_AGAIN_S: Final = 2.0  # a lock was not available, or a producer's earlier transaction is still open
TIDY_EVERY_S: Final = 10.0
PAUSE_S: Final = 0.02  # after each page
PAGE: Final = 1000  # events or attempts examined
DAYS_AHEAD: Final = 8  # today and the next week
REMIND_S: Final = 3600.0  # how often a lock held by others, or clocks that disagree, are reported


@dataclasses.dataclass(frozen=True, slots=True)
class Duties:
    """The data to encrypt, to erase and to remove.

    Attributes:
        days: which days are removed.
        payload_days: payloads older than this many days are erased; 0 keeps them.
        response_days: the same for responses.
        vault: encrypts secrets; None if they stay in plain text.
    """

    days: Policy = KEEP_ALL
    payload_days: float = 0.0
    response_days: float = 0.0
    vault: Vault | None = None

    @classmethod
    def of(cls, settings: Settings) -> Duties:
        """Make them from the settings."""
        kept = settings.retention
        return cls(Policy.of(kept), kept.payload_days, kept.response_days, Vault.of(settings))


async def maintain(
    session: Session,
    duties: Callable[[], Duties],
    *,
    logger: FilteringBoundLogger,
    beat: Callable[[], None],
    wall_us: Callable[[], int],
    monotonic: Callable[[], float],
    unclaimed: Unclaimed,
    days: int = DAYS_AHEAD,
) -> None:
    """Keep the partitions ahead and the rest in order until cancelled; `duties` returns the current ones."""
    reports = UnclaimedReports(session, logger, monotonic)
    warnings = Warnings(logger, monotonic)
    retention = Retention(session, logger, monotonic)
    left_s = 0.0
    while True:
        if left_s <= 0:
            own_day = day.day_of(wall_us())
            leave = functools.partial(retention.step, duties().days)
            stepping = step(
                session, logger=logger, days=days, own_day=own_day, warnings=warnings, leave=leave
            )
            left_s = LOOK_EVERY_S if await beating.while_working(stepping, beat) else LOOK_AGAIN_S
            await beating.while_working(count_hours(session, logger), beat)
        await tidy(session, duties(), logger=logger, beat=beat)
        await reports.write(unclaimed)
        wait_s = min(left_s, TIDY_EVERY_S)
        left_s -= wait_s
        for _ in range(int(wait_s)):
            beat()
            await asyncio.sleep(1.0)


async def tidy(
    session: Session, duties: Duties, *, logger: FilteringBoundLogger, beat: Callable[[], None]
) -> None:
    """Encrypt and erase until nothing is left to do; a refused statement is tried again the next time."""
    try:
        async for _ in _pages(session, duties):
            beat()
            await asyncio.sleep(PAUSE_S)
    except DatabaseError as error:
        logger.info(LogEvent.DATABASE_REFUSED, error=str(error))


async def _pages(session: Session, duties: Duties) -> AsyncIterator[None]:
    if duties.vault is not None:
        while await wrap_plain(session, duties.vault):
            yield
    while any(row["erased"] is not None for row in await session.fetch(query("forget_sites"), PAGE)):
        yield
    await session.fetch(query("erase_subjects"))
    yield
    for name, kept_days in (
        ("erase_payloads", duties.payload_days),
        ("erase_responses", duties.response_days),
    ):
        while kept_days and not (await session.fetch(query(name), kept_days, PAGE))[0]["ended"]:
            yield


class Warnings:
    """Logs once an hour why the days have not moved for longer than usual.

    Args:
        logger: logs the warnings.
        monotonic: returns seconds.
    """

    def __init__(self, logger: FilteringBoundLogger, monotonic: Callable[[], float]) -> None:
        self._logger = logger
        self._monotonic = monotonic
        self._held = Reminder(REMIND_S, REMIND_S)
        self._refused = Reminder(0.0, REMIND_S)

    async def held(self, session: Session, *, lasts: bool) -> None:
        """Record whether another session holds the maintenance lock; name it after an hour."""
        if self._held.is_due(self._monotonic(), lasts=lasts):
            found = await session.fetch(query("find_strangers"))
            holders = [holder_of(row) for row in found if row["key"] == lock_keys.MAINTENANCE]
            self._logger.warning(
                LogEvent.PARTITIONS_DELAYED, error="the lock of maintenance is held", holders=holders or None
            )

    def refused(self, reason: str | None) -> None:
        """Record why the ids do not move to the current day; None if they may."""
        if self._refused.is_due(self._monotonic(), lasts=reason is not None):
            self._logger.warning(LogEvent.DAY_REFUSED, reason=reason)


async def step(
    session: Session,
    *,
    logger: FilteringBoundLogger,
    days: int = DAYS_AHEAD,
    today: int | None = None,
    own_day: int | None = None,
    warnings: Warnings | None = None,
    leave: Callable[[int], Awaitable[None]] | None = None,
) -> bool:
    """Do the work that is due now; return True if nothing is left to do.

    Args:
        session: a session that is in no transaction.
        logger: logs failures.
        days: how many days to have, today included.
        today: the day as `webhooks.day_of()` counts days; None for the server's clock.
        own_day: the same by the daemon's clock; None if the server's clock needs no confirmation.
        warnings: reports lasting conditions.
        leave: removes old days, given the day that ids are drawn from; None if all are kept.
    """
    got = await session.fetchval(lock_keys.TRY, lock_keys.MAINTENANCE)
    try:
        if warnings is not None:
            await warnings.held(session, lasts=not got)
        return got and await _step(
            session, days, today, own_day, logger=logger, warnings=warnings, leave=leave
        )
    except DatabaseError as error:
        logger.info(LogEvent.PARTITIONS_DELAYED, error=str(error))
        return False
    finally:
        if got and not session.closed:
            await session.fetchval(lock_keys.RELEASE, lock_keys.MAINTENANCE)


async def _step(
    session: Session,
    days: int,
    today: int | None,
    own_day: int | None,
    *,
    logger: FilteringBoundLogger,
    warnings: Warnings | None,
    leave: Callable[[int], Awaitable[None]] | None,
) -> bool:
    if today is None:
        today = await session.fetchval(query("find_today"))
    entered = await session.fetchval(query("is_in_day"), today)
    refusal = None if entered or own_day is None else await _why_refuse(session, today, own_day)
    if warnings is not None:
        warnings.refused(refusal)
    if refusal is not None:
        return True  # until the clocks are checked again; a doubtful day gets no partitions
    for row in await session.fetch(query("find_missing_days"), today, days):
        await session.fetchval(query("attach_day"), row["day"])
        await session.fetchval(query("note_day"), row["day"])
    if entered:
        if leave is not None:
            await leave(today)
        return True
    if not await session.fetchval(query("enter_day"), today):
        return False
    await _analyze(session, logger)
    return True


async def _why_refuse(session: Session, today: int, own_day: int) -> str | None:
    row = (await session.fetch(query("read_days")))[0]
    return day.why_refuse(id_day=row["id_day"], today=today, own_day=own_day, event_day=row["event_day"])


async def _analyze(session: Session, logger: FilteringBoundLogger) -> None:
    """Analyze the parent tables: autovacuum analyzes only partitions; once a day is enough for the planner.

    A table that takes longer than the session's statement timeout is left to the next day.
    """
    for name in ("analyze_events", "analyze_attempts", "analyze_dead"):
        try:
            async with as_owner(session):
                await session.execute(query(name))
        except DatabaseError as error:
            logger.warning(LogEvent.DATABASE_REFUSED, error=str(error), statement=name.replace("_", " "))
