"""A year in fast motion: days are made and removed while sixteen producers insert, beside transactions that stay open.

The test plays the daemon: it settles a day's events as soon as nothing holds them back, and steps through the days.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time

import pytest

from pghookd.postgres import client
from pghookd.postgres.client import DatabaseAway
from pghookd.runtime.upkeep import maintenance
from pghookd.runtime.upkeep.retention import Policy, Retention
from support.crew import Diary
from support.dying_session import DyingSession
from support.events import emit
from support.seasoned_producer import IN_PLPGSQL, INSERT, NO_WAITING, SeasonedProducer

DAY = 2**32
DAYS = 120
KEPT = 30
PRODUCERS = 16
OPEN = range(33, 53)  # a transaction is open for an hour around the beginning of each of these days
PREPARED = range(40, 65)  # a transaction is prepared on the first of these days, and ended on the last one
KILLED = range(
    70, 120
)  # the daemon is killed before its first statement, the next day before its second one, ...
UNSETTLED = {15: 60, 40: 119}  # days whose delivery waits, and on which day it is done


class Year:
    """The log, its days, and the producers."""

    def __init__(self, session, first):
        self.session = session
        self.first = first
        self.diary = Diary()
        self.sold = 0
        self.slowest_s = 0.0
        self.unread = set()  # ids of events in open transactions
        self.is_over = False

    async def sell(self, producer):
        """Insert until the year is over; a wait of 200 ms for a lock is an error."""
        while not self.is_over:
            begun = time.monotonic()
            await producer.prepared.fetchval()
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
            self.sold += 1

    async def turn(self, day, session=None):
        """Enter a day, and remove the old ones that may go."""
        session = session or self.session
        newest = await self.session.fetchval("select webhooks.newest_event_id()")
        floor = min([newest, *(event_id - 1 for event_id in self.unread)])
        await self.session.execute("update webhooks.shards set floor = $1", floor)
        retention = Retention(session, self.diary.logger, monotonic=time.monotonic)
        leave = functools.partial(retention.step, Policy(days=KEPT, unsettled_days=1000))
        step = functools.partial(
            maintenance.step, session, logger=self.diary.logger, days=3, today=self.first + day, leave=leave
        )
        async with asyncio.timeout(30):
            while not await step():
                pass
            await step()

    async def queue(self):
        """Insert an event whose delivery waits; return its id."""
        event_id = await emit(self.session)
        await self.session.execute(
            "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, next_attempt_at)"
            " select $1, endpoint_id, site_id, 'waiting', 'retry', now() from webhooks.endpoints",
            event_id,
        )
        return event_id

    async def finish(self, event_id):
        """Settle an event that was queued, which must be there."""
        found = "select count(*) from webhooks.events where event_id = $1"
        assert await self.session.fetchval(found, event_id) == 1
        await self.session.execute("delete from webhooks.backlog where event_id = $1", event_id)


@pytest.fixture
async def year(database):
    session = await client.connect(database, name="tend", settings={"lock_timeout": "2s"})
    await session.execute(IN_PLPGSQL)
    await session.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    await session.execute("insert into webhooks.endpoints (site_id, url) values ('s', 'http://x')")
    await session.execute("insert into webhooks.shards (shard, floor) values (0, 0)")
    yield Year(session, await session.fetchval("select webhooks.day_of()"))
    await session.close()


@pytest.fixture
def held(year, database, connect):
    """Return `async with held(end)`: a transaction with an event, which `end` ends."""

    @contextlib.asynccontextmanager
    async def hold(*begun, end):
        connection = await connect(database, server_settings={"webhooks.bell": "off"})
        await connection.execute("begin")
        event_id = await connection.fetchval(INSERT)
        year.unread.add(event_id)
        for statement in begun:
            await connection.execute(statement)
        yield
        await connection.execute(end)
        year.unread.remove(event_id)
        await connection.close()

    return hold


async def killed(year, database, day, statements):
    """Play a day with a daemon that is killed; return False if it has survived."""
    session = DyingSession(await client.connect(database, name="tend"), statements)
    with contextlib.suppress(DatabaseAway):
        await year.turn(day, session)
    session.terminate()
    return session.died


async def pass_days(year, database, held):
    """Play the year; return the number of statements before which the daemon was killed."""
    waiting, deaths = {}, 0
    async with contextlib.AsyncExitStack() as prepared:
        for day in range(DAYS):
            if day == PREPARED.start:
                two_phase = held("prepare transaction 'year'", end="commit prepared 'year'")
                await prepared.enter_async_context(two_phase)
            if day in UNSETTLED:
                waiting[UNSETTLED[day]] = await year.queue()
            if day in OPEN:
                async with held(end="commit"):
                    await year.turn(day)
            if day in KILLED:
                deaths += await killed(year, database, day, day - KILLED.start)
            await year.turn(day)
            if day == PREPARED[-1]:
                await prepared.aclose()
            if day in waiting:
                await year.finish(waiting[day])
    await year.turn(DAYS)
    return deaths


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_days_turn_over_while_producers_insert(year, database, connect, held):
    session = year.session
    if await session.fetchval("show max_prepared_transactions") == "0":
        pytest.skip("this server has no two-phase transactions")
    producers = [SeasonedProducer(await connect(database, **NO_WAITING)) for _ in range(PRODUCERS)]
    for producer in producers:
        await producer.warm_up()
    async with asyncio.TaskGroup() as group:
        for producer in producers:
            group.create_task(year.sell(producer))
        deaths = await pass_days(year, database, held)
        year.is_over = True
    assert 15 < deaths < len(KILLED), "each statement of a day is one before which the daemon was killed"
    left = await session.fetch("select day from webhooks.partitions order by day")
    assert left[0]["day"] == year.first + DAYS - KEPT
    gone = await session.fetch("select detail from webhooks.operations where what = 'day_dropped'")
    assert len(gone) == len({row["detail"] for row in gone}) == DAYS - KEPT
    assert await session.fetchval("select min(event_id) from webhooks.events") >= left[0]["day"] * DAY
    print(f"{year.sold} inserts, the slowest took {1000 * year.slowest_s:.0f} ms; {deaths} kills")
