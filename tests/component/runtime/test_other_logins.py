"""A login of the database can hold our locks, fill the notification queue or hide from rows: the daemon reports it."""

from __future__ import annotations

import asyncio
import time

import asyncpg
import pytest

from pghookd.operations import check
from pghookd.postgres import client
from pghookd.runtime.liveness import watch_notifications
from pghookd.runtime.upkeep import maintenance
from support import crew, producers
from support.crew import Diary, serving
from support.events import Sql, emit

HOLD = "select pg_advisory_lock(1885825131, $1)"
PRETENDS = {"application_name": "pghookd/record"}


@pytest.fixture
async def session(database, connect, receiver):
    session = await connect(database)
    await producers.make_sites(session, receiver.url("/"))
    return session


@pytest.fixture
async def stranger(session, database):
    """Return a connection of a role without a single grant, under the name of an instance."""
    await session.execute(
        "drop role if exists pghookd_test_stranger; create role pghookd_test_stranger login"
    )
    connection = await asyncpg.connect(database, user="pghookd_test_stranger", server_settings=PRETENDS)
    yield connection
    connection.terminate()


@pytest.fixture
async def work(database):
    work = await client.connect(database, name="work", settings={"lock_timeout": "2s"})
    yield work
    await work.close()


async def findings(url, grade, what, **changes):
    found = await check.check(crew.settings_of(url, **changes))
    return [each.text for each in found if (each.grade, each.what) == (grade, what)]


# Locks ----------------------------------------------------------------------------------------------------------------


async def test_a_standby_behind_a_stranger_warns_every_minute(database, session, stranger, receiver, until):
    await stranger.execute(HOLD, 2)
    pid = stranger.get_server_pid()
    holder = f"role pghookd_test_stranger, backend {pid}, application 'pghookd/record'"
    async with serving(database) as daemon:
        [line] = await daemon.diary.wait_for("shard.withheld")
        assert line["holders"] == [holder]
        [ready] = await daemon.diary.wait_for("daemon.ready")
        assert ready["status"].startswith(f"waiting: {holder} holds the locks of the shards")
        daemon.clock.ahead_s += 61.0
        await daemon.diary.wait_for("shard.withheld", count=2)
        [text] = await findings(database, check.Grade.FAULT, "locks")
        assert "(role pghookd_test_stranger, application 'pghookd/record'), which is not pghookd's" in text
        assert "nothing is delivered" in text
        await stranger.close()
        await producers.emit(session, 1)
        await until(lambda: len(receiver.requests) == 1)


async def test_an_instance_of_our_role_is_not_a_stranger(database, session):
    async with serving(database) as owner:
        await owner.diary.wait_for("shard.taken")
        async with serving(database) as standby:
            [ready] = await standby.diary.wait_for("daemon.ready")
            assert ready["status"] == "standing by: another instance owns the shards"
            assert not standby.diary.of("shard.withheld")
            assert await findings(database, check.Grade.FAULT, "locks") == []


async def test_a_member_of_the_daemons_role_is_not_a_stranger(database, session, stranger):
    await session.execute(
        "do $$ begin create role webhooks_daemon; exception when duplicate_object then null; end $$"
    )
    await stranger.execute(HOLD, 1)
    assert len(await findings(database, check.Grade.FAULT, "locks")) == 1
    await session.execute("grant webhooks_daemon to pghookd_test_stranger")
    assert await findings(database, check.Grade.FAULT, "locks") == []


async def test_a_holder_of_the_maintenance_lock_for_an_hour_is_logged(work, stranger):
    diary, clock = Diary(), crew.Clock()
    warnings = maintenance.Warnings(diary.logger, clock)
    await stranger.execute(HOLD, -3)
    for ahead_s in (0, 3500, 3601, 3700, 7300):
        clock.ahead_s = ahead_s
        assert not await maintenance.step(work, logger=diary.logger, warnings=warnings)
    told = diary.of("partitions.delayed")
    assert len(told) == 2
    assert told[0]["holders"][0].startswith("role pghookd_test_stranger, backend ")


# The clock ------------------------------------------------------------------------------------------------------------

ID_DAY = "select last_value / 4294967296 from webhooks.events_event_id_seq"
DAYS = "select max(day) from webhooks.partitions"


async def test_one_wrong_reading_of_the_clock_moves_no_ids(work, session):
    diary, clock = Diary(), crew.Clock()
    warnings = maintenance.Warnings(diary.logger, clock)
    today = await session.fetchval("select webhooks.day_of()")
    last = await session.fetchval(DAYS)

    async def step(theirs, ours):
        return await maintenance.step(
            work, logger=diary.logger, days=2, today=theirs, own_day=ours, warnings=warnings
        )

    assert await step(today + 3650, today)  # the server's clock alone
    await producers.emit(session, 1)
    assert await step(today + 3650, today + 3650)  # the whole machine's
    assert await session.fetchval(ID_DAY) == today
    assert await session.fetchval(DAYS) == last
    [line] = diary.of("day.refused")
    assert "the daemon's clock" in line["reason"]
    clock.ahead_s += 3601.0
    assert await step(today + 3650, today + 3650)
    assert "the newest event" in diary.of("day.refused")[1]["reason"]
    # The clocks are right again.
    assert await step(today + 1, today + 1)
    assert await session.fetchval(ID_DAY) == today + 1
    assert len(diary.of("day.refused")) == 2


async def test_after_a_long_pause_the_ids_follow_as_soon_as_an_event_agrees(work, session):
    today = await session.fetchval("select webhooks.day_of()")
    await producers.emit(session, 3)
    later = today + 9

    async def step():
        return await maintenance.step(work, logger=Diary().logger, days=2, today=later, own_day=later)

    assert await step()
    assert await session.fetchval(ID_DAY) == today
    await emit(session, created_at=Sql("now() + interval '9 days'"))
    while not await step():
        pass
    assert await session.fetchval(ID_DAY) == later


async def test_the_daemon_uses_its_own_clock_as_a_witness(database, session, until):
    id_day = await session.fetchval(ID_DAY)
    await session.execute(
        "select setval('webhooks.events_event_id_seq', ($1::bigint - 5) * 4294967296)", id_day
    )
    async with serving(database, wall_us=lambda: time.time_ns() // 1000 - 30 * 86_400_000_000) as daemon:
        [line] = await daemon.diary.wait_for("day.refused")
    assert "the daemon's clock" in line["reason"]
    assert await session.fetchval(ID_DAY) == id_day - 5
    async with serving(database):
        await until(lambda: session.fetchval(f"select ({ID_DAY}) = {id_day}"))


# Row level security ---------------------------------------------------------------------------------------------------


async def test_a_policy_that_hides_events_stops_the_reader_before_its_position(
    database, session, receiver, until
):
    await session.execute(
        "do $$ begin create role webhooks_daemon; exception when duplicate_object then null; end $$"
    )
    await session.execute("drop role if exists pghookd_test_hidden; create role pghookd_test_hidden login")
    await session.execute(
        "grant usage on schema webhooks to pghookd_test_hidden;"
        " grant all on all tables in schema webhooks to pghookd_test_hidden;"
        " grant all on all sequences in schema webhooks to pghookd_test_hidden;"
        " grant execute on all functions in schema webhooks to pghookd_test_hidden;"
        " alter table webhooks.events enable row level security;"
        " create policy by_site on webhooks.events using (site_id = current_setting('app.site', true))"
    )
    url = database.replace("postgres@", "pghookd_test_hidden@")
    async with serving(url) as daemon:
        await producers.emit(session, 2)
        lost = await daemon.diary.wait_for("database.lost")
        assert 'row-level security policy for table "events"' in lost[0]["reason"]
        [text] = await findings(url, check.Grade.FAULT, "row_security")
        assert "hides rows of events from role pghookd_test_hidden" in text
        assert not receiver.requests
        await session.execute("alter table webhooks.events disable row level security")
        await until(lambda: len(receiver.requests) == 2)
    assert await findings(url, check.Grade.FAULT, "row_security") == []


# The queue of notifications -------------------------------------------------------------------------------------------


async def test_a_listener_that_fills_the_queue_is_named(database, work, session, stranger):
    diary = Diary()
    await stranger.execute("listen anything")
    await stranger.execute("begin; select 1")
    await session.execute(
        "select pg_notify('pghookd_test', repeat(n::text, 1000)) from generate_series(1, 999) n"
    )
    watching = asyncio.create_task(
        watch_notifications(work, logger=diary.logger, every_s=0.01, share_max=0.0)
    )
    [line, *_] = await diary.wait_for("notifications.stuck")
    watching.cancel()
    assert any(f"backend {stranger.get_server_pid()}," in each for each in line["oldest_transactions"])
    assert await findings(database, check.Grade.WARNING, "notifications") == []  # far from full
