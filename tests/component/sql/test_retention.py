"""Whole days leave the log while producers are held open: none waits or fails, and nothing that is unsettled goes.

Days are numbers: `old` is the day that the schema was made on, `today` the day that ids are drawn from, a month later.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest
import structlog

from pghookd.postgres import client
from pghookd.postgres.client import DatabaseAway, query
from pghookd.runtime.upkeep import maintenance
from pghookd.runtime.upkeep.retention import Policy, Retention
from support.crew import Diary
from support.dying_session import DyingSession
from support.events import emit
from support.seasoned_producer import IN_PLPGSQL, NO_WAITING, SeasonedProducer

DAY = 2**32
TABLES = ("events", "attempts", "dead")
POLICY = Policy(days=10, unsettled_days=30)
ALL_SETTLED = """insert into webhooks.shards (shard, floor) values (0, 9e15)
on conflict (shard) do update set floor = 9e15"""


class Log:
    """A log with a settled event of a day that is a month old."""

    def __init__(self, session, old, today, event_id, endpoint_id):
        self.session, self.old, self.today = session, old, today
        self.event_id, self.endpoint_id = event_id, endpoint_id
        self.diary = Diary()
        self.retention = Retention(session, self.diary.logger, monotonic=itertools.count(1e5, 1e5).__next__)

    async def step(self, policy=POLICY, *, later=0):
        await self.retention.step(policy, self.today + later)

    async def tables(self, day=None):
        """Return where the tables of a day are, as `schema.table` or, attached, as `table`."""
        rows = await self.session.fetch(
            "select relnamespace::regnamespace::text as schema, relname, relispartition from pg_class"
            " where relkind = 'r' and relname ~ ('^(events|attempts|dead)_' || $1::int || '$')",
            self.old if day is None else day,
        )
        return sorted(
            row["relname"] if row["relispartition"] else f"{row['schema']}.{row['relname']}" for row in rows
        )

    async def is_there(self, day=None):
        day = self.old if day is None else day
        return await self.tables(day) == sorted(f"{table}_{day}" for table in TABLES)

    async def backlog(self, **columns):
        columns = {"state": "'waiting'", "reason": "'retry'", "next_attempt_at": "now()", **columns}
        await self.session.execute(
            f"insert into webhooks.backlog (event_id, endpoint_id, site_id, {', '.join(columns)})"
            f" values ($1, $2, 's', {', '.join(columns.values())})",
            self.event_id,
            self.endpoint_id,
        )


@pytest.fixture
async def session(database):
    session = await client.connect(database, name="tend", settings={"lock_timeout": "2s"})
    yield session
    await session.close()


@pytest.fixture
async def log(session):
    await session.execute(IN_PLPGSQL)
    await session.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    endpoint_id = await session.fetchval(
        "insert into webhooks.endpoints (site_id, url) values ('s', 'http://x') returning endpoint_id"
    )
    event_id = await emit(session)
    await session.execute(
        "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome, site_id)"
        " values ($1, $2, now(), 1, 1, 'delivered', 's')",
        event_id,
        endpoint_id,
    )
    await session.execute(ALL_SETTLED)
    old = event_id // DAY
    today = old + 30
    async with asyncio.timeout(10):
        while not await maintenance.step(session, logger=structlog.get_logger(), days=3, today=today):
            pass
    return Log(session, old, today, event_id, endpoint_id)


@pytest.fixture
def open_producer(database, connect):
    async def open_one(**settings):
        producer = SeasonedProducer(
            await connect(database, server_settings={**NO_WAITING["server_settings"], **settings})
        )
        await producer.warm_up()
        return producer

    return open_one


# Which days go ------------------------------------------------------------------------------------------------------


async def test_a_settled_day_goes_with_all_its_tables(log):
    assert await log.is_there()
    await log.step()
    assert await log.tables() == []
    assert (
        await log.session.fetchval("select count(*) from webhooks.events where event_id = $1", log.event_id)
        == 0
    )
    assert await log.session.fetchval("select min(day) from webhooks.partitions") == log.today
    assert await log.session.fetchval("select what from webhooks.operations") == "day_dropped"
    assert len(log.diary.of("day.dropped")) == 8
    assert (await emit(log.session)) // DAY == log.today


async def test_days_within_the_time_stay(log):
    await log.step(Policy(days=30))
    assert await log.is_there()
    await log.step(Policy(days=29))
    assert await log.tables() == []
    assert await log.is_there(log.old + 1)


async def test_all_days_stay_where_none_are_to_go(log):
    await log.step(Policy(days=0), later=10_000)
    assert await log.is_there()


async def test_a_day_moves_to_the_archive(log):
    await log.step(Policy(days=10, action="detach"))
    assert await log.tables() == sorted(f"webhooks_archive.{table}_{log.old}" for table in TABLES)
    found = await log.session.fetchval(f"select event_id from webhooks_archive.events_{log.old}")
    assert found == log.event_id
    assert await log.session.fetchval("select what from webhooks.operations limit 1") == "day_archived"


# Days that are kept -------------------------------------------------------------------------------------------------

REPLAY = (
    "insert into webhooks.replays (spec, state, last_event_id, settled_event_id)"
    " values ('{{}}', '{}', 9e15, 9e15)"
)
KEEPS = {
    "backlog": ("", "delete from webhooks.backlog"),
    "replay": (REPLAY.format("paused"), "update webhooks.replays set state = 'cancelled'"),
    "unread": ("update webhooks.shards set floor = 0", ALL_SETTLED),
}


@pytest.mark.parametrize("reason", KEEPS)
async def test_a_day_with_work_is_kept_and_the_reason_logged(log, reason):
    begin, end = KEEPS[reason]
    await (log.session.execute(begin) if begin else log.backlog())
    await log.step()
    assert await log.is_there()
    (line,) = log.diary.of("day.kept")
    assert reason in next(iter(line["days"].values()))
    await log.session.execute(end)
    await log.step()
    assert await log.tables() == []


async def test_one_kept_day_keeps_no_other(log):
    await log.backlog()
    await log.step()
    assert await log.is_there()
    assert await log.tables(log.old + 1) == []


async def test_events_without_any_shard_are_unread(log):
    await log.session.execute("delete from webhooks.shards")
    await log.step()
    assert await log.is_there()


async def test_a_replay_that_starts_later_leaves_a_leaving_day_alone(log):
    assert await log.session.fetchval(query("leave_day"), log.old) == []
    total = "select deliveries from webhooks.replay(event_ids => $1, states => '{delivered}')"
    assert await log.session.fetchval(total, [log.event_id]) == 0


# Unsettled for too long ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "columns",
    [{}, {"state": "'held'", "reason": "'disabled'", "next_attempt_at": "null"}],
    ids=["waiting", "held"],
)
async def test_deliveries_unsettled_for_too_long_are_given_up_and_counted(log, columns):
    await log.backlog(**columns)
    await log.step(Policy(days=10, action="detach", unsettled_days=20))
    assert await log.is_there()
    await log.step(Policy(days=10, action="detach", unsettled_days=19))
    (line,) = log.diary.of("day.expired")
    assert line["deliveries"] == 1
    buried = await log.session.fetch(f"select event_id, reason from webhooks_archive.dead_{log.old}")
    assert [tuple(row) for row in buried] == [(log.event_id, "expired")]
    assert await log.session.fetchval("select count(*) from webhooks.backlog") == 0


async def test_unread_events_are_never_given_up(log):
    await log.session.execute("update webhooks.shards set floor = 0")
    await log.step(Policy(days=2, unsettled_days=0), later=1000)
    assert await log.is_there()


# Producers ----------------------------------------------------------------------------------------------------------


async def test_no_producer_waits_or_fails_while_days_leave(log, open_producer):
    """Two are held open, one of them at a savepoint; each gives up after 200 ms."""
    held, savepoint, idle = [await open_producer() for _ in range(3)]
    async with held.connection.transaction():
        await held.insert_in_all_ways()
        async with savepoint.connection.transaction():
            await savepoint.connection.execute("savepoint one")
            await savepoint.insert_in_all_ways()
            for _ in range(3):
                await log.step()
                for producer in (held, savepoint, idle):
                    await producer.insert_in_all_ways()
    await log.step()
    assert await log.tables() == []
    for producer in (held, savepoint, idle):
        await producer.insert_in_all_ways()


async def test_a_transaction_that_has_read_the_day_is_waited_for(log, database, connect):
    reader = await connect(database)
    await reader.execute("begin isolation level repeatable read")
    assert (
        await reader.fetchval("select count(*) from webhooks.events where event_id = $1", log.event_id) == 1
    )
    for _ in range(3):
        await log.step()
    assert f"webhooks.dead_{log.old}" not in await log.tables()
    assert (
        await reader.fetchval("select count(*) from webhooks.events where event_id = $1", log.event_id) == 1
    )
    assert "lock timeout" in log.diary.of("day.delayed")[0]["error"]
    await reader.execute("commit")
    await log.step()
    assert await log.tables() == []


async def test_a_prepared_transaction_holds_no_producer_up(log, open_producer, connect, database):
    if await log.session.fetchval("show max_prepared_transactions") == "0":
        pytest.skip("this server has no two-phase transactions")
    producer, other = await open_producer(**{"webhooks.bell": "off"}), await open_producer()
    await producer.connection.execute("begin")
    await producer.insert_in_all_ways()
    await producer.connection.execute("prepare transaction 'a'")
    for _ in range(3):
        await log.step()
        await other.insert_in_all_ways()
    await log.session.execute("commit prepared 'a'")
    await log.step()
    assert await log.tables() == []


# Records ------------------------------------------------------------------------------------------------------------

RECORDS = {
    "emails": "insert into webhooks.emails (owner_email, kind, window_start, digest, state, created_at)"
    " values ('a@b', '{state}', '{at}', '{{}}', '{state}', '{at}')",
    "operations": "insert into webhooks.operations (what, at) values ('enable', '{at}')",
    "replays": "insert into webhooks.replays (spec, state, created_at) values ('{{}}', '{state}', '{at}')",
    "endpoint_revisions": "insert into webhooks.endpoint_revisions (endpoint_id, revision, site_id, changed_at, actor,"
    " changed, replaced) select 0, count(*), 's', '{at}', '', '{{}}', {state} from webhooks.endpoint_revisions",
}
OPEN = {"emails": "queued", "replays": "paused", "endpoint_revisions": "false"}
ENDED = {"emails": "sent", "replays": "done", "endpoint_revisions": "true"}


@pytest.mark.parametrize("table", RECORDS)
async def test_old_records_are_deleted_and_those_still_open_stay(log, table):
    days = [
        await log.session.fetchval("select (now() - make_interval(days => $1))::text", n) for n in (401, 399)
    ]
    made = [(days[0], ENDED), (days[1], ENDED)] + [(days[0], OPEN)] * (table in OPEN)
    for at, states in made:
        await log.session.execute(RECORDS[table].format(at=at, state=states.get(table)))
    count = f"select count(*) from webhooks.{table}"
    before = await log.session.fetchval(count)
    await log.step(Policy(days=0))
    assert await log.session.fetchval(count) == before
    await log.step(Policy(days=0, records_days=400))
    assert await log.session.fetchval(count) == before - 1


# Crashes ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("action", ["drop", "detach"])
async def test_a_removal_goes_on_after_a_crash_at_each_statement(log, database, action):
    """Before each statement of the first day, one after another."""
    policy = Policy(days=10, action=action)
    for statements in itertools.count():
        dying = DyingSession(await client.connect(database, name="tend"), statements)
        try:
            await Retention(dying, log.diary.logger, monotonic=lambda: 0.0).step(policy, log.today - 19)
        except DatabaseAway:
            assert await emit(log.session)
            continue
        finally:
            dying.terminate()
        break
    assert statements > 5
    noted = await log.session.fetch("select what from webhooks.operations")
    assert [row["what"] for row in noted] == ["day_dropped" if action == "drop" else "day_archived"]
    assert not [name for name in await log.tables() if not name.startswith("webhooks_archive.")]


async def test_a_day_that_leaves_goes_before_an_older_one_that_was_kept(log, database, connect):
    """Postgres detaches no second partition of a table while one is pending."""
    reader = await connect(database)
    await log.backlog()
    await reader.execute("begin isolation level repeatable read")
    await reader.execute("select count(*) from webhooks.events")
    await log.step()
    assert await log.is_there()
    await log.session.execute("delete from webhooks.backlog")
    await reader.execute("commit")
    await log.step()
    assert await log.tables() == await log.tables(log.old + 1) == []


async def test_a_day_that_has_begun_to_leave_goes_even_if_its_time_is_longer_now(log, database, connect):
    reader = await connect(database)
    await reader.execute("begin isolation level repeatable read")
    await reader.execute("select count(*) from webhooks.events")
    await log.step()
    begun = "select day from webhooks.partitions where leaving_at is not null"
    assert [row["day"] for row in await log.session.fetch(begun)] == [log.old]
    await reader.execute("commit")
    await log.step(Policy(days=0))
    assert await log.tables() == []
    assert await log.is_there(log.old + 1)
