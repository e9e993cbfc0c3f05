"""The recorder's session: outcomes first, answers small, statements prepared, positions stored at a bounded rate."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from itertools import count

import pytest

from pghookd.delivery.payload_pages import ANSWER_BYTES_MAX, load_payloads
from pghookd.delivery.recording.positions import STORE_SHARE, PositionStore
from pghookd.model.delivery import Delivery, Event, Outcome, Reason, State
from pghookd.model.outcome import AttemptWrite, BacklogWrite
from pghookd.model.verdict import Delivered
from pghookd.postgres import lock_keys
from pghookd.postgres.client import query
from pghookd.runtime.sessions import HOT, Sessions
from support import FOUND, producers
from support.crew import desk, settings_of

LEASE_S = 1.0
PAGE = 200


@pytest.fixture
async def con(database, connect):
    con = await connect(database)
    await producers.make_sites(con)
    return con


def delivery(event_id, endpoint_id=1):
    return Delivery(Event(event_id, producers.SITES[0], "order_created", 0, b"{}"), endpoint_id, 0, 0.0)


def outcome(event_id):
    return AttemptWrite(delivery(event_id), Outcome.DELIVERED, 200, None, None, 1, 1.0, Delivered(), 1)


# Outcomes first -----------------------------------------------------------------------------------------------------


async def test_a_flood_of_held_rows_does_not_delay_outcomes(database, con):
    [first, *_] = await producers.emit(con, 2000)
    async with desk(database) as it:
        recorder, clock = it.recorder, it.clock
        for number in range(2000):
            recorder.put(BacklogWrite(delivery(first + number, 2), State.HELD, Reason.DISABLED), clock())
        assert recorder.unrecorded == 0
        clock.ahead_s += 5.5
        recorder._answered_at = clock()
        assert recorder.closed(clock()) is None
        recorder.put(outcome(first), clock())
        assert recorder.unrecorded == 1
        await recorder._flush(500)
        assert recorder.unrecorded == 0
        assert recorder.waiting == 2001 - 500
        assert await con.fetchval("select count(*) from webhooks.attempts") == 1


async def test_the_reader_waits_for_held_rows_and_not_for_outcomes(database, con):
    [first, *_] = await producers.emit(con, 300)
    async with desk(database) as it:
        recorder = it.recorder
        for number in range(200):
            recorder.put(outcome(first + number), it.clock())
        await asyncio.wait_for(recorder.room(125), 1.0)
        for number in range(200, 300):
            recorder.put(BacklogWrite(delivery(first + number), State.PARKED, Reason.LANE_FULL), it.clock())
        waiting = asyncio.create_task(recorder.room(100))
        await asyncio.sleep(0)
        assert not waiting.done()
        await recorder._flush(500)
        await asyncio.wait_for(waiting, 1.0)


# Positions ----------------------------------------------------------------------------------------------------------


async def test_positions_are_stored_no_more_often_than_they_take(database, con):
    async with desk(database) as it:
        await it.recover()
        clock = count(0.0, 0.5)  # each reading of the clock is half a second later
        positions = PositionStore(
            it.record_session, it.log, it.recorder._positions._server, monotonic=clock.__next__
        )
        assert await positions.step(1.0)
        for at, stored in (
            (2.5, False),
            (1.0 + 0.5 * STORE_SHARE - 0.1, False),
            (1.1 + 0.5 * STORE_SHARE, True),
        ):
            await producers.emit(con)
            await it.read()
            assert await positions.step(at) is stored


# Small answers --------------------------------------------------------------------------------------------------------


async def fill(con, size, rows=PAGE):
    """Make due rows with payloads of a size that compression cannot change."""
    await con.execute(
        """with made as (
             insert into webhooks.events (site_id, type, payload, endpoint_id)
             select $1, 'a', to_json(left((select string_agg(md5(random()::text || n || m), '')
               from generate_series(1, $2::int / 32 + 1) m), $2 - 2)), 1
             from generate_series(1, $3::int) n returning event_id)
           insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, next_attempt_at, line)
           select event_id, 1, $1, 'waiting', 'retry', now() - interval '1 s', '' from made""",
        producers.SITES[0],
        size,
        rows,
    )


@pytest.mark.parametrize("size", [100, 2000, 16_000, 40_000])
async def test_a_page_of_due_rows_is_a_small_answer(size, database, con):
    await fill(con, size)
    async with desk(database) as it:
        session = it.record_session
        for name, args in (
            ("read_due", (0, 0, 0, PAGE)),
            ("read_line", (1, "", PAGE)),
        ):
            rows = await session.fetch(query(name), *args)
            sizes = [len(row["payload"] or b"") for row in rows]
            assert len(rows) == PAGE
            assert all(row["exists"] for row in rows)
            assert sum(sizes) <= ANSWER_BYTES_MAX
            assert sum(sizes) >= min(ANSWER_BYTES_MAX * 4 // 5, PAGE * size) or size > 16_384
            loaded = await load_payloads(session, rows)
            assert len(loaded) + sum(map(bool, sizes)) == (PAGE if size <= 16_384 else 0)
            assert all(len(payload) == size for payload in loaded.values())


# The lease of a frozen process ----------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_process_frozen_in_mid_answer_loses_its_locks(database, con, connect, until):
    """On a local socket, where nothing but the size of the answer lets Postgres go on to notice."""
    await fill(con, 16_000)
    child = await asyncio.create_subprocess_exec(
        sys.executable, __file__, database, stdout=asyncio.subprocess.PIPE, env=FOUND
    )
    try:
        assert await child.stdout.readline() == b"asks\n"
        other = await connect(database)
        await until(
            lambda: other.fetchval(f"select pg_try_advisory_lock({lock_keys.CLASS}, 1)"), 4 * LEASE_S + 4
        )
    finally:
        child.kill()
        await child.wait()


async def _freeze_in_mid_answer(url):
    settings = settings_of(url, database={"lease_s": LEASE_S, "heartbeat_s": LEASE_S / 4})
    session = await Sessions(settings.database).record()
    await session.prepare(*(query(name) for name in HOT["record"]))
    await session.fetch(query("lock_shard"), 0)
    task = asyncio.create_task(session.fetch(query("read_due"), 0, 0, 0, PAGE))
    await asyncio.sleep(0)  # the statement is sent
    print("asks", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    await task


# Prepared statements --------------------------------------------------------------------------------------------------


async def test_a_prepared_statement_outlives_a_change_of_the_schema(database, connect):
    admin = await connect(database)
    async with desk(database) as it:
        session = it.record_session
        await admin.execute("create table t (a int); insert into t values (1)")
        sql = "select * from t where a = $1"
        await session.prepare(sql)
        assert [dict(row) for row in await session.fetch(sql, 1)] == [{"a": 1}]
        assert await session.execute(sql, 1) == "SELECT 1"
        await admin.execute("alter table t add b int")
        assert [dict(row) for row in await session.fetch(sql, 1)] == [{"a": 1, "b": None}]


if __name__ == "__main__":
    asyncio.run(_freeze_in_mid_answer(sys.argv[1]))
