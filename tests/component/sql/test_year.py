"""A year in fast motion: days are made and removed while sixteen producers insert, beside transactions that stay open.

The test plays the daemon: it settles a day's events as soon as nothing holds them back, and steps through the days.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from pghookd.postgres import client
from pghookd.runtime.upkeep import maintenance
from pghookd.runtime.upkeep.retention import Policy, Retention
from support.crew import Diary
from support.events import emit
from support.seasoned_producer import IN_PLPGSQL, INSERT, NO_WAITING, SeasonedProducer

DAY = 2**32
DAYS = 120
KEPT = 30
PRODUCERS = 16
OPEN = range(10, 70)  # days during which a transaction stays open
PREPARED = range(20, 90)  # the same, prepared
UNSETTLED = {15: 60, 40: 119}  # days whose delivery waits, and on which day it is done


class Year:
    """The log, its days, and the sixteen producers."""

    def __init__(self, session):
        self.session = session
        self.diary = Diary()
        self.retention = Retention(session, self.diary.logger, monotonic=time.monotonic)
        self.sold = 0
        self.slowest_s = 0.0
        self.unread = []  # ids of events in open transactions

    async def sell(self, producer, done):
        while not done.is_set():
            begun = time.monotonic()
            await producer.prepared.fetchval()
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
            self.sold += 1

    async def next_day(self, today):
        async with asyncio.timeout(60):
            while not await maintenance.step(self.session, logger=self.diary.logger, days=3, today=today):
                pass
        floor = min(
            [await self.session.fetchval("select webhooks.newest_event_id()"), *(i - 1 for i in self.unread)]
        )
        await self.session.execute("update webhooks.shards set floor = $1", floor)
        await self.retention.step(Policy(days=KEPT, unsettled_days=1000), today)

    async def days(self):
        rows = await self.session.fetch("select day from webhooks.partitions order by day")
        return [row["day"] for row in rows]


@pytest.fixture
async def year(database):
    session = await client.connect(database, name="tend", settings={"lock_timeout": "2s"})
    await session.execute(IN_PLPGSQL)
    await session.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    await session.execute("insert into webhooks.endpoints (site_id, url) values ('s', 'http://x')")
    await session.execute("insert into webhooks.shards (shard, floor) values (0, 0)")
    yield Year(session)
    await session.close()


async def hold(connect, database, **settings):
    """Open a transaction that has inserted an event; return the connection and the event's id."""
    connection = await connect(database, server_settings={"webhooks.bell": "off", **settings})
    await connection.execute("begin")
    return connection, await connection.fetchval(INSERT)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_days_turn_over_while_producers_insert(year, database, connect):
    session = year.session
    producers = [SeasonedProducer(await connect(database, **NO_WAITING)) for _ in range(PRODUCERS)]
    for producer in producers:
        await producer.warm_up()
    done = asyncio.Event()
    selling = [asyncio.create_task(year.sell(producer, done)) for producer in producers]
    first = await session.fetchval("select webhooks.day_of()")
    two_phase = await session.fetchval("show max_prepared_transactions") != "0"
    waiting = {}
    for n in range(DAYS):
        if n == OPEN.start:
            held, held_id = await hold(connect, database)
            year.unread.append(held_id)
        if n == PREPARED.start and two_phase:
            prepared, prepared_id = await hold(connect, database)
            await prepared.execute("prepare transaction 'year'")
            year.unread.append(prepared_id)
        if n in UNSETTLED:
            waiting[n] = await emit(session)
            await session.execute(
                "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, next_attempt_at)"
                " select $1, endpoint_id, site_id, 'waiting', 'retry', now() from webhooks.endpoints",
                waiting[n],
            )
        await year.next_day(first + n)
        assert not [task for task in selling if task.done()], "an insert has failed or waited for 200 ms"
        if n == OPEN.stop:
            await held.execute("commit")
            year.unread.remove(held_id)
        if n == PREPARED.stop and two_phase:
            await session.execute("commit prepared 'year'")
            year.unread.remove(prepared_id)
        for made, end in UNSETTLED.items():
            if n == end:
                assert await session.fetchval(
                    "select count(*) from webhooks.events where event_id = $1", waiting[made]
                )
                await session.execute("delete from webhooks.backlog where event_id = $1", waiting[made])
    await year.next_day(first + DAYS)
    done.set()
    await asyncio.gather(*selling)
    assert (await year.days())[0] == first + DAYS - KEPT
    assert len(year.diary.of("day.dropped")) == DAYS - KEPT
    assert await session.fetchval("select min(event_id) from webhooks.events") >= (first + DAYS - KEPT) * DAY
    print(f"{year.sold} inserts, the slowest took {1000 * year.slowest_s:.0f} ms")
