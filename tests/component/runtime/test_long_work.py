"""Long work has a session of its own: nothing that a delivery or the reader waits for is queued behind it."""

from __future__ import annotations

import asyncio
import time

import pytest

from pghookd.event_log.doorbell import Bell
from pghookd.event_log.reading.unclaimed import Unclaimed
from pghookd.postgres import client
from pghookd.process import beating
from pghookd.runtime.sessions import Sessions
from pghookd.runtime.upkeep import maintenance
from support import crew, producers
from support.crew import Diary, desk, living
from support.events import Sql, emit

SOON_S = 1.0  # half of the lock's timeout, for which long work waits in these tests
WAITS = (
    "select count(*) > 0 from pg_stat_activity"
    " where application_name = $1 and datname = current_database() and wait_event_type = 'Lock'"
)


@pytest.fixture
async def session(database, connect, receiver):
    session = await connect(database)
    await producers.make_sites(session, receiver.url("/"))
    return session


async def test_a_large_payload_does_not_wait_for_long_work(database, session, connect, receiver, until):
    other = await connect(database)
    await other.execute("begin; lock table webhooks.partitions in access exclusive mode")
    async with living(database):
        await until(lambda: session.fetchval(WAITS, "pghookd/tend"))
        text = Sql("to_json((select string_agg(md5(m::text), '') from generate_series(1, 2000) m))")
        await emit(session, site=producers.SITES[0], payload=text)
        [request] = await receiver.wait_for(1, seconds=SOON_S)
        assert len(request.body) > 64_000
        assert await session.fetchval(WAITS, "pghookd/tend")


async def test_an_analyze_that_takes_too_long_is_left_to_the_next_day(database, session, connect):
    tend = await client.connect(database, name="tend", settings={"lock_timeout": "100ms"})
    today = await tend.fetchval("select webhooks.day_of()")
    other = await connect(database)
    await other.execute("begin; lock table webhooks.dead in share update exclusive mode")
    diary = Diary()
    assert await maintenance.step(tend, logger=diary.logger, days=1, today=today + 1)
    [line] = diary.of("database.refused")
    assert line["statement"] == "analyze dead"
    assert await maintenance.step(tend, logger=diary.logger, days=1, today=today + 1)
    assert len(diary.of("database.refused")) == 1
    await tend.close()


async def test_the_watchdog_is_fed_while_a_long_statement_runs(
    database, session, connect, until, monkeypatch
):
    monkeypatch.setattr(beating, "BEAT_S", 0.01)
    tend = await client.connect(database, name="tend", settings={"lock_timeout": "2s"})
    other = await connect(database)
    await other.execute("begin; lock table webhooks.partitions in access exclusive mode")
    beats = []
    task = asyncio.create_task(
        maintenance.maintain(
            tend,
            maintenance.Duties,
            logger=Diary().logger,
            beat=lambda: beats.append(time.monotonic()),
            wall_us=lambda: time.time_ns() // 1000,
            monotonic=time.monotonic,
            unclaimed=Unclaimed(),
        )
    )
    await until(lambda: session.fetchval(WAITS, "pghookd/tend"))
    count = len(beats)
    await until(lambda: len(beats) > count + 10, SOON_S)
    assert await session.fetchval(WAITS, "pghookd/tend")
    task.cancel()
    await asyncio.wait([task])
    tend.terminate()


async def test_the_reader_does_not_wait_for_the_end_of_the_bells_backend(database, session, connect, until):
    """It gives up beside an open producer while rows keep coming; ending the backend takes its time."""
    wake, asked, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    sessions = Sessions(crew.settings_of(database).database)

    async def end_backend(pid):
        asked.set()
        await go_on.wait()
        sessions.let_go("bell")
        await session.execute("select pg_terminate_backend($1)", pid)

    long_one = await connect(database)
    await long_one.execute("begin")
    await producers.emit(long_one)  # holds the key, so that nobody is granted it for sleeping
    async with desk(database) as it:
        await it.recover()
        bell = Bell(
            await sessions.bell(),
            sessions.bell,
            end_backend,
            wake=wake,
            logger=Diary().logger,
            monotonic=time.monotonic,
            fallback_s=0,
            beat=lambda: None,
        )

        async def read():
            await producers.emit(session)
            return await it.read()

        running = asyncio.create_task(bell.run())
        first = bell.session
        await asyncio.wait_for(bell.sleep(read), 10)  # gives up, and does not wait for what that takes
        await asked.wait()
        began = time.monotonic()
        await bell.sleep(read)
        assert time.monotonic() - began < SOON_S
        assert bell.session is first
        go_on.set()
        await until(lambda: bell.session is not first)
        await long_one.execute("commit")
        sleeping = asyncio.create_task(bell.sleep(it.read))
        await until(lambda: bell._keeps and not sleeping.done())
        for task in (running, sleeping):
            task.cancel()
        await asyncio.wait([running, sleeping])
        bell.session.terminate()
        sessions.terminate()
