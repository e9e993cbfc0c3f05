"""Days are made ahead and the sequence moved while producers are held open, and no producer ever waits or fails.

The days here are those after the last one that migrate made; which day it is comes in as an argument.
"""

from __future__ import annotations

import asyncio

import pytest
import structlog

from pghookd.postgres import client
from pghookd.postgres.client import query
from pghookd.runtime.upkeep import maintenance
from support.seasoned_producer import IN_BULK, IN_PLPGSQL, INSERT, NO_WAITING, SeasonedProducer

DAY = 2**32


@pytest.fixture
async def session(database):
    session = await client.connect(database, name="maintain", settings={"lock_timeout": "2s"})
    yield session
    await session.close()


@pytest.fixture
async def next_day(session):
    """Return the first day that has no partitions yet."""
    return await session.fetchval("select max(day) + 1 from webhooks.partitions")


@pytest.fixture
async def open_shop(database, connect, session):
    await session.execute(IN_PLPGSQL)

    async def open_one():
        shop = SeasonedProducer(await connect(database, **NO_WAITING))
        await shop.warm_up()
        return shop

    return open_one


async def step(session, today, days=2):
    return await maintenance.step(session, logger=structlog.get_logger(), days=days, today=today)


async def newest_day(session):
    return await session.fetchval("select last_value / 4294967296 from webhooks.events_event_id_seq")


async def attached(session, day):
    return await session.fetchval(
        "select count(*)::int from pg_inherits where inhrelid in (to_regclass('webhooks.events_' || $1::int),"
        " to_regclass('webhooks.attempts_' || $1::int), to_regclass('webhooks.dead_' || $1::int))",
        day,
    )


# Producers held open --------------------------------------------------------------------------------------------


async def test_no_producer_waits_or_fails_while_days_are_made_and_entered(session, next_day, open_shop):
    shops = [await open_shop() for _ in range(3)]
    held, savepoint, idle = shops
    async with held.connection.transaction():
        await held.insert_in_all_ways()
        async with savepoint.connection.transaction():
            await savepoint.connection.execute("savepoint one")
            await savepoint.insert_in_all_ways()
            await savepoint.connection.execute("rollback to one")
            assert not await step(session, next_day)  # made, but two are open that may not know it
            assert await attached(session, next_day) == 3
            for shop in shops:
                await shop.insert_in_all_ways()
        assert not await step(session, next_day)
        assert await newest_day(session) < next_day
        await held.insert_in_all_ways()
    assert await step(session, next_day)
    assert await newest_day(session) == next_day
    for shop in shops:
        await shop.insert_in_all_ways()
        assert await shop.prepared.fetchval() // DAY == next_day
    await idle.connection.execute("begin; rollback")


async def test_an_insert_passes_between_an_open_producer_and_the_partition_maker(
    session, next_day, open_shop
):
    """CREATE TABLE .. PARTITION OF would wait for the first one, and every other insert behind it."""
    held, other = await open_shop(), await open_shop()
    async with held.connection.transaction():
        await held.prepared.fetchval()
        async with session.transaction():  # the locks of the making are kept to its end
            await session.fetchval(query("attach_day"), next_day)
            await other.insert_in_all_ways()  # lock_timeout 200 ms
            await held.insert_in_all_ways()
    assert await attached(session, next_day) == 3


async def test_no_insert_fails_under_load_while_the_day_moves_again_and_again(session, next_day, open_shop):
    shops = [await open_shop() for _ in range(6)]
    done = asyncio.Event()

    async def sell(shop, n):
        count = 0
        while not done.is_set():
            if n % 2:
                async with shop.connection.transaction():
                    await shop.insert_in_all_ways()
                    await shop.insert_in_all_ways()
            else:
                await shop.insert_in_all_ways()
            count += 1
        return count

    selling = [asyncio.create_task(sell(shop, n)) for n, shop in enumerate(shops)]
    for day in range(next_day, next_day + 6):
        async with asyncio.timeout(30):
            while not await step(session, day):
                assert not any(task.done() for task in selling), "an insert has failed"
    done.set()
    assert all(await asyncio.gather(*selling))
    assert await newest_day(session) == next_day + 5
    rows, ids = await session.fetchrow(
        "select count(event_id), count(distinct event_id) from webhooks.events"
    )
    assert rows == ids
    assert await session.fetchval("select max(event_id) from webhooks.events") < 2**53


async def test_a_prepared_transaction_is_neither_waited_for_for_ever_nor_broken(session, next_day, open_shop):
    if await session.fetchval("show max_prepared_transactions") == "0":
        pytest.skip("this server has no two-phase transactions")
    shop, other = await open_shop(), await open_shop()
    await shop.connection.execute("set webhooks.bell = off")
    await shop.connection.execute("begin")
    await shop.insert_in_all_ways()
    assert not await step(session, next_day)
    await shop.connection.execute("prepare transaction 'a'")
    assert await step(session, next_day)  # it can insert no more
    await other.connection.execute("begin")
    await other.insert_in_all_ways()
    await other.connection.execute("prepare transaction 'b'")
    await session.fetchval(query("attach_day"), next_day + 2)
    assert await step(session, next_day + 2)
    for name in ("a", "b"):
        await session.execute(f"commit prepared '{name}'")
    await shop.insert_in_all_ways()
    assert await newest_day(session) == next_day + 2


async def test_who_is_noted_is_only_who_inserts_into_the_log(session, database, next_day, connect):
    """Readers, transactions elsewhere, and producers of another database hold nothing up."""
    reader, elsewhere = await connect(database), await connect(database)
    await reader.execute("begin isolation level repeatable read; select count(*) from webhooks.events")
    await elsewhere.execute("begin; create table public.theirs (n int); insert into public.theirs values (1)")
    assert await step(session, next_day)
    noted = await session.fetchval("select holders from webhooks.partitions where day = $1", next_day)
    assert noted == []


# Two at once, crashes, gaps ---------------------------------------------------------------------------------------


async def test_two_maintainers_make_and_move_once(database, session, next_day):
    others = [await client.connect(database, name="maintain") for _ in range(3)]

    async def until_done(each, day):
        while not await step(each, day):
            pass

    try:
        for day in (next_day, next_day + 1):
            async with asyncio.timeout(20):
                await asyncio.gather(*(until_done(each, day) for each in others))
            assert await session.fetchval(INSERT) // DAY == day
            assert await attached(session, day) == 3
    finally:
        for each in others:
            await each.close()


async def test_days_are_entered_one_at_a_time_and_forward_only(session, database, next_day, connect):
    other = await connect(database)
    await step(session, next_day)
    first = await session.fetchval(INSERT)
    assert not await session.fetchval("select webhooks.enter_day($1)", next_day)
    assert not await session.fetchval("select webhooks.enter_day($1)", next_day - 1)
    assert await session.fetchval(INSERT) == first + 1
    await other.execute("select pg_advisory_lock(1885825131, -3)")
    assert not await session.fetchval("select webhooks.enter_day($1)", next_day + 1)
    assert not await step(session, next_day + 1)  # somebody else is at it
    await other.execute("select pg_advisory_unlock(1885825131, -3)")
    assert await step(session, next_day + 1)


async def test_a_day_without_partitions_or_note_is_never_entered(session, next_day):
    assert not await session.fetchval("select webhooks.enter_day($1)", next_day)
    await session.fetchval(query("attach_day"), next_day)
    assert not await session.fetchval("select webhooks.enter_day($1)", next_day)
    await session.execute("insert into webhooks.partitions (day, holders) values ($1, '{}')", next_day + 1)
    assert not await session.fetchval("select webhooks.enter_day($1)", next_day + 1)
    await session.fetchval(INSERT)


@pytest.mark.parametrize("table", ["attempts", "dead", "events"])
async def test_a_crash_between_making_and_attaching_is_mended(session, next_day, table):
    await session.execute(
        f"create table webhooks.{table}_{next_day} (like webhooks.{table} including defaults)"
    )
    assert await step(session, next_day)
    assert await attached(session, next_day) == 3
    assert await session.fetchval(INSERT) == next_day * DAY


async def test_a_crash_between_attaching_and_noting_is_mended(session, next_day, open_shop):
    shop = await open_shop()
    async with shop.connection.transaction():
        await shop.insert_in_all_ways()
        await session.fetchval(query("attach_day"), next_day)
        assert not await step(session, next_day)  # noted only now, the open producer among them
    assert await step(session, next_day)
    assert await attached(session, next_day) == 3


async def test_days_that_were_missed_are_skipped(session, next_day):
    assert await step(session, next_day + 40, days=3)
    assert await newest_day(session) == next_day + 40
    assert await session.fetchval(INSERT) == (next_day + 40) * DAY
    assert [await attached(session, next_day + n) for n in (0, 39, 40, 42, 43)] == [0, 0, 3, 3, 0]


async def test_if_nobody_moves_the_sequence_inserts_go_on_in_the_old_day(
    session, database, next_day, connect
):
    later = await connect(database)
    old = await newest_day(session)
    await session.fetchval(query("attach_day"), next_day)
    ids = [row[0] for row in await later.fetch(f"{IN_BULK} returning event_id")]
    assert {each // DAY for each in ids} == {old}
    assert await step(session, old)  # a clock that was set back moves nothing
    assert await newest_day(session) == old


async def test_steps_with_nothing_to_do_change_nothing(session, next_day):
    assert await step(session, next_day, days=1)
    xid = await session.fetchval("select pg_current_xact_id()::text::bigint")
    assert await step(session, next_day, days=1)
    assert await session.fetchval("select pg_current_xact_id()::text::bigint") == xid + 1


async def test_the_day_before_the_last_that_fits_a_javascript_number(session):
    day = await session.fetchval("select webhooks.day_of('7000-01-01')")
    assert (day + 1) * DAY < 2**53
    await session.execute("set timezone = 'Pacific/Kiritimati'")
    assert await session.fetchval("select webhooks.day_of('2020-01-01 23:59:59+00')") == 0
    assert await session.fetchval("select webhooks.day_of('2020-01-02 00:00:00+00')") == 1
    assert await step(session, day)
    assert await session.fetchval(INSERT) < 2**53


# Properties of a partition ----------------------------------------------------------------------------------------


async def test_a_partition_has_its_parents_indexes_and_settings(session, next_day):
    await session.fetchval(query("attach_day"), next_day)
    for table in ("events", "attempts", "dead"):
        unmatched = await session.fetch(
            "select i.indexrelid::regclass::text from pg_index i where i.indrelid = to_regclass($1)"
            " and not exists (select from pg_inherits where inhrelid = i.indexrelid)",
            f"webhooks.{table}_{next_day}",
        )
        assert unmatched == []
        indexes = "select count(*) from pg_index where indrelid = to_regclass($1)"
        assert await session.fetchval(indexes, f"webhooks.{table}_{next_day}") == await session.fetchval(
            indexes, f"webhooks.{table}"
        )
        options = await session.fetchval(
            "select reloptions from pg_class where oid = to_regclass($1)", f"webhooks.{table}_{next_day}"
        )
        assert {
            "autovacuum_freeze_min_age=0",
            "autovacuum_vacuum_insert_scale_factor=0",
            "autovacuum_vacuum_insert_threshold=200000",
        } <= set(options)
    compression = """select attcompression::text from pg_attribute
        where attrelid = to_regclass($1) and attname = 'payload'"""
    parent = await session.fetchval(compression, "webhooks.events")
    assert await session.fetchval(compression, f"webhooks.events_{next_day}") == parent


async def test_there_is_no_default_partition(session):
    """DETACH CONCURRENTLY is refused where there is one."""
    defaults = "select count(*) from pg_partitioned_table where partdefid <> 0"
    assert await session.fetchval(defaults) == 0


async def test_a_checks_violation_is_refused_in_a_new_day_as_well(session, next_day):
    await step(session, next_day)
    with pytest.raises(client.DatabaseError, match="site_id is 1 to 200"):
        await session.execute("insert into webhooks.events (site_id, type, payload) values ('', 't', '{}')")


async def test_parents_are_analyzed_when_a_day_is_entered(session, next_day):
    """Autovacuum never does."""
    await session.execute(IN_BULK)
    assert await step(session, next_day)
    rows = await session.fetchval(
        "select reltuples::int from pg_class where oid = 'webhooks.events'::regclass"
    )
    assert rows == 50


@pytest.mark.slow
async def test_a_lock_that_is_not_to_be_had_is_not_waited_for_long(session, database, next_day, connect):
    """Nobody is held up by us meanwhile: our request would not conflict with an insert."""
    holder = await connect(database)
    await session.execute("set lock_timeout = '50ms'")
    await holder.execute("begin; lock table webhooks.events in share update exclusive mode")
    assert not await step(session, next_day)
    await holder.execute("rollback")
    assert await step(session, next_day)
