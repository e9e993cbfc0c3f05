"""Removes whole days that are old enough, and old records.

Each table's partition of a day is detached, then dropped or moved to the archive.

A day goes only if everything of it is settled; otherwise it is kept, and a warning gives the reasons. No producer
waits: a detachment waits for transactions without a lock that inserts need, and for 200 ms at most; then the next step
ends it. Where the catalogue shows a removal half done, after a crash or such a wait, it goes on from there.

Never here: which deliveries are settled (sql/functions/why_kept.sql), payloads and responses (sql/functions/erase_*).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Final, Literal

from structlog.typing import FilteringBoundLogger

from pghookd.model.day import Reminder, date_of
from pghookd.postgres.client import DatabaseError, Session, query
from pghookd.postgres.owner import as_owner
from pghookd.process.logs import LogEvent
from pghookd.settings.schema import RetentionSettings

DAYS_A_STEP: Final = 50  # old days processed in one step
PAGE: Final = 1000  # deliveries given up, or records deleted, by one statement
RECORDS: Final = ("prune_emails", "prune_operations", "prune_replays", "prune_activity", "prune_revisions")
PAUSE_S: Final = 0.02  # after each page and each day
WAIT_MS: Final = 200  # for transactions that use a partition
DELAYED_S: Final = 3600.0  # a table may be in use for so long before a warning
REMIND_S: Final = 86_400.0  # how often a day that is kept, or delayed, is reported


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """Which days go, and where.

    Attributes:
        days: whole days that are kept, today not counted; 0 keeps all.
        action: drop, or detach: the tables of the day move to the schema webhooks_archive.
        unsettled_days: days after which unsettled deliveries are given up.
        records_days: days after which records are deleted; 0 keeps them.
    """

    days: int = 0
    action: Literal["drop", "detach"] = "drop"
    unsettled_days: int = 30
    records_days: int = 0

    @classmethod
    def of(cls, settings: RetentionSettings) -> Policy:
        """Make it from the settings."""
        return cls(settings.days, settings.action, settings.unsettled_days, settings.records_days)


KEEP_ALL: Final = Policy()


class Retention:
    """Removes old days, one step at a time.

    Args:
        session: a session that is in no transaction.
        logger: logs each day that goes, and those that are kept for longer.
        monotonic: returns seconds.
    """

    def __init__(
        self, session: Session, logger: FilteringBoundLogger, monotonic: Callable[[], float]
    ) -> None:
        self._session = session
        self._logger = logger
        self._monotonic = monotonic
        self._kept = Reminder(0.0, REMIND_S)
        self._delayed = Reminder(DELAYED_S, REMIND_S)

    async def step(self, policy: Policy, today: int) -> None:
        """Remove the days that may go.

        Args:
            policy: which days.
            today: the day that ids are drawn from, so that a wrong clock removes nothing.

        A table that is in use, or that Postgres refuses to detach, ends the step; the next one goes on from there.
        """
        try:
            await self._remove_days(policy, today)
            await self._prune(policy.records_days)
        except DatabaseError as error:
            if self._delayed.is_due(self._monotonic(), lasts=True):
                self._logger.warning(LogEvent.DAY_DELAYED, error=str(error))
        else:
            self._delayed.is_due(self._monotonic(), lasts=False)

    async def _remove_days(self, policy: Policy, today: int) -> None:
        first_kept = today - policy.days if policy.days else 0  # those that have begun to leave go on
        kept: dict[str, list[str]] = {}
        for row in await self._session.fetch(query("find_old_days"), first_kept, DAYS_A_STEP):
            day = row["day"]
            if day < first_kept - policy.unsettled_days:
                await self._expire(day)
            reasons = await self._session.fetchval(query("leave_day"), day)
            if reasons:
                kept[date_of(day)] = reasons
                continue
            await self._remove(day, policy)
            await asyncio.sleep(PAUSE_S)
        if self._kept.is_due(self._monotonic(), lasts=bool(kept)):
            self._logger.warning(LogEvent.DAY_KEPT, days=kept)

    async def _expire(self, day: int) -> None:
        """Give up the deliveries of a day in backlog, and notify: the next ones of ordered endpoints may go."""
        count = 0
        while rows := await self._session.fetch(query("expire_day"), day, PAGE):
            count += sum(row["deliveries"] for row in rows)
            await self._session.execute("select pg_notify('pghookd', 'endpoints')")
            await asyncio.sleep(PAUSE_S)
        if count:
            await self._session.execute(query("note_expired_day"), day, count)
            self._logger.warning(LogEvent.DAY_EXPIRED, day=date_of(day), deliveries=count)

    async def _remove(self, day: int, policy: Policy) -> None:
        """Detach the tables of a day, then drop or archive them; each statement leaves a state to go on from."""
        session, is_dropped = self._session, policy.action == "drop"
        tables = await session.fetch(query("read_day_tables"), day)
        await session.execute(f"set lock_timeout = {WAIT_MS}")
        try:
            async with as_owner(session):
                for table in tables:
                    if table["interrupted"]:
                        await session.execute(_ddl("finish_detaching", table["name"], day))
                    elif table["attached"]:
                        await session.execute(_ddl("detach_partition", table["name"], day))
                async with session.transaction():
                    for table in tables:
                        name = "drop_partition" if is_dropped else "archive_partition"
                        await session.execute(_ddl(name, table["name"], day))
                    await session.execute(
                        query("note_left_day"), day, "dropped" if is_dropped else "archived"
                    )
        finally:
            if not session.closed:
                await session.execute("reset lock_timeout")
        self._logger.info(LogEvent.DAY_DROPPED if is_dropped else LogEvent.DAY_ARCHIVED, day=date_of(day))

    async def _prune(self, days: int) -> None:
        """Delete records that are older; as the owner, since the daemon's own role may not change history."""
        if not days:
            return
        async with as_owner(self._session):
            for name in RECORDS:
                while await self._session.fetchval(query(name), days, PAGE):  # noqa: ASYNC110 - a pause, no wait
                    await asyncio.sleep(PAUSE_S)


def _ddl(name: str, table: str, day: int) -> str:
    """Return a statement that takes no parameters, with the names written into it."""
    return query(name).format(table=table, day=day)
