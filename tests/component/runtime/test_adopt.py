"""Before a database that is not the one it ran in, the daemon holds still; adopting it loses and repeats nothing."""

from __future__ import annotations

import asyncio
import socket
import time
from urllib.parse import urlsplit

import pytest

from pghookd.postgres.client import DatabaseError
from pghookd.runtime import adopt, epoch
from support import crew, producers
from support.crew import desk, living, serving
from support.events import Sql, emit


@pytest.fixture
async def session(database, connect, receiver):
    session = await connect(database)
    await producers.make_sites(session, receiver.url("/"))
    return session


async def adopted(url, *, skip_backlog=False):
    return await adopt.adopt(crew.settings_of(url), skip_backlog=skip_backlog)


async def undelivered(session):
    return await session.fetchval(
        "select count(*) from webhooks.events e where not exists (select from webhooks.attempts a"
        " where a.event_id = e.event_id and a.outcome = 'delivered')"
    )


async def all_but(session, count):
    return await undelivered(session) == count


async def nothing_undelivered(session):
    return await all_but(session, 0)


async def run_for_a_while(url, session, until, count=5):
    """Deliver some events and end in order, all positions stored."""
    async with living(url) as life:
        event_ids = await producers.emit(session, count, mark="delivered before")
        await until(lambda: nothing_undelivered(session))
        assert await life.stop() == epoch.Stopped()
    return event_ids


async def ending_of(url):
    """Live one epoch that is expected to end by itself."""
    async with crew.app.sender_of(crew.settings_of(url)) as sender, asyncio.timeout(10):
        return await epoch.run(crew.world_of(crew.settings_of(url), sender))


PRODUCERS_WAIT_S = 0.2  # no longer for anything that the daemon does
ANOTHER_SERVER = "update webhooks.shards set system_identifier = 1"
FOREIGN = {
    "another server": ANOTHER_SERVER,
    "another database of the server": "update webhooks.shards set database_oid = 1",
    "its transactions are older than the stored position": "update webhooks.shards"
    " set snapshot = '99999999999:99999999999:' where shard = 2",
    "its event ids are older than the stored position": "select setval('webhooks.events_event_id_seq', last_value - 3)"
    " from webhooks.events_event_id_seq",
}


# Holding still ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("why", "sql"), FOREIGN.items(), ids=FOREIGN)
async def test_a_foreign_database_gets_nothing_until_it_is_adopted(
    database, session, receiver, until, why, sql
):
    await run_for_a_while(database, session, until)
    await session.execute(sql)
    async with serving(database) as daemon:
        [line] = await daemon.diary.wait_for("database.foreign")
        assert line["reason"] == why
        fresh = (
            await producers.emit(session, 4, site=producers.SITES[5], mark="meanwhile")
            if "ids" not in why
            else []
        )
        assert await ending_of(database) == epoch.Foreign(why)
        assert len(receiver.requests) == 5
        assert (await adopted(database))["queued"] == len(fresh)
        later = await producers.emit(session, 3, mark="later")
        await until(lambda: nothing_undelivered(session))
        assert len(daemon.diary.of("database.foreign")) == 1
    assert [request.event_id for request in receiver.requests[:5]] < fresh + later
    assert sorted(request.event_id for request in receiver.requests[5:]) == sorted(fresh + later)


async def test_ids_that_go_back_while_it_runs_end_the_epoch(database, session, until):
    async with living(database) as life:
        await producers.emit(session, 5)
        await until(lambda: session.fetchval("select bool_and(mark_xid is not null) from webhooks.shards"))
        await session.execute(
            "select setval('webhooks.events_event_id_seq', last_value - 5) from webhooks.events_event_id_seq"
        )
        await session.execute("notify pghookd")
        life.clock.ahead_s += 31.0  # it stores a position that moved without rows only so often
        ending = await life.ending(5.0)
    assert ending == epoch.Foreign("its event ids went back")


async def test_a_daemon_that_holds_still_reports_ready_to_systemd(database, session, until, tmp_path):
    await run_for_a_while(database, session, until)
    await session.execute(ANOTHER_SERVER)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as heard:
        heard.bind(str(tmp_path / "notify"))
        async with serving(database, environ={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as daemon:
            await daemon.diary.wait_for("database.foreign")
            await daemon.diary.wait_for("daemon.ready")
            await daemon.stop()
        assert b"READY=1" in heard.recv(4096)


async def test_another_timeline_is_logged_and_accepted(database, session, receiver, until):
    await run_for_a_while(database, session, until)
    await producers.emit(session, 2)
    await session.execute("update webhooks.shards set timeline = '00000000'")
    async with living(database) as life:
        await until(lambda: nothing_undelivered(session))
        assert life.diary.of("log.reanchored")[0]["stored_timeline"] == "00000000"
    assert len(receiver.requests) == 7


# Copies ---------------------------------------------------------------------------------------------------------


async def test_a_copy_in_the_same_server_is_another_database(
    database, session, admin, server_url, connect, receiver, until
):
    await run_for_a_while(database, session, until)
    await producers.emit(session, 3, mark="unsettled in the original")
    name = await session.fetchval("select current_database()")
    await session.close()
    url = urlsplit(server_url)._replace(path=f"/{name}_copy").geturl()
    await admin.execute(f'create database "{name}_copy" template "{name}"')
    try:
        copy = await connect(url)
        assert await ending_of(url) == epoch.Foreign("another database of the server")
        assert len(receiver.requests) == 5
        assert (await adopted(url, skip_backlog=True))["queued"] == 0
        async with living(url):
            fresh = await producers.emit(copy, 2, mark="new in the copy")
            await until(lambda: all_but(copy, 3))
        assert sorted(request.event_id for request in receiver.requests[5:]) == fresh
    finally:
        await admin.execute(f'drop database if exists "{name}_copy" with (force)')


@pytest.mark.slow
async def test_a_dump_restored_elsewhere_is_adopted_with_all_its_foreign_xids(
    make_server, connect, receiver, until
):
    old, new = make_server(), make_server()
    await crew.migrated(old.url())
    session = await connect(old.url())
    await session.execute(
        "do $$ begin for i in 1..2000 loop perform pg_current_xact_id(); commit; end loop; end $$"
    )
    await producers.make_sites(session, receiver.url("/"))
    await run_for_a_while(old.url(), session, until)
    unsettled = await producers.emit(session, 4, site=producers.SITES[2])
    dump = old.folder / "dump.sql"
    where = ("-h", str(old.sockets), "-U", "postgres", "postgres")
    old.run("pg_dump", "-f", dump, *where)
    new.run(
        "psql",
        "-q",
        "-v",
        "ON_ERROR_STOP=1",
        "-f",
        dump,
        "-h",
        str(new.sockets),
        "-U",
        "postgres",
        "postgres",
    )
    copy = await connect(new.url())
    highest, now = await copy.fetchrow(
        "select max(xid), pg_snapshot_xmax(pg_current_snapshot()) from webhooks.events"
    )
    assert highest > now, "the xids are not foreign: this shows nothing"
    assert isinstance(await ending_of(new.url()), epoch.Foreign)
    assert (await adopted(new.url()))["queued"] == 4
    async with living(new.url()) as life:
        await until(lambda: nothing_undelivered(copy))
        fresh = await producers.emit(copy, 3)
        await until(lambda: nothing_undelivered(copy))
        for _ in range(3):
            await copy.execute(
                "do $$ begin for i in 1..700 loop perform pg_current_xact_id(); commit; end loop; end $$"
            )
            await copy.execute("notify pghookd")
        assert await copy.fetchval("select pg_current_xact_id()") > highest
        fresh += await producers.emit(copy, 3)
        await until(lambda: nothing_undelivered(copy))
        assert await life.stop() == epoch.Stopped()
    assert sorted(request.event_id for request in receiver.requests[5:]) == unsettled + fresh


# Adopting -----------------------------------------------------------------------------------------------------


async def test_settled_deliveries_stay_settled(database, session, until):
    """Delivered, waiting, held and dead are left as they are; only what nobody settled is queued."""
    await run_for_a_while(database, session, until)
    open_ones = await producers.emit(session, 6, mark="not read yet")
    endpoint = await session.fetchval("select min(endpoint_id) from webhooks.endpoints")
    site = producers.SITES[0]
    await session.execute(
        "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, attempts)"
        " values ($1, $2, $3, 'held', 'disabled', 2)",
        open_ones[0],
        endpoint,
        site,
    )
    await session.execute(
        "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)"
        " values ($1, $2, $3, 'exhausted', 9)",
        open_ones[1],
        endpoint,
        site,
    )
    await session.execute(
        "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome, site_id)"
        " values ($1, $2, now(), 1, 1, 'delivered', $3)",
        open_ones[2],
        endpoint,
        site,
    )
    await session.execute(ANOTHER_SERVER)
    report = await adopted(database)
    assert report == {"queued": 3, "max_event_id": open_ones[-1]}
    rows = await session.fetch("select event_id, state, reason from webhooks.backlog order by 1")
    assert [tuple(row) for row in rows] == [
        (open_ones[0], "held", "disabled"),
        *((event_id, "waiting", "adopted") for event_id in open_ones[3:]),
    ]
    assert await adopted(database) == {"queued": 0, "max_event_id": open_ones[-1]}


async def test_duplicates_are_not_queued(database, session, until):
    await run_for_a_while(database, session, until)
    keys = ["d", "d", "e", "d"]
    ids = [await emit(session, site=producers.SITES[0], dedupe_key=key) for key in keys]
    await session.execute(ANOTHER_SERVER)
    assert (await adopted(database))["queued"] == 2
    rows = await session.fetch(
        "select event_id, reason from webhooks.deliveries where event_id >= $1", ids[0]
    )
    reasons = dict(map(tuple, rows))
    assert [reasons[event_id] for event_id in ids] == ["adopted", "duplicate", "adopted", "duplicate"]


async def test_a_position_in_the_middle_of_a_difference_is_understood(database, session):
    async with desk(database, settling=False) as it:
        await it.recover()
        await it.store()
        event_ids = await producers.emit(session, 2500)
        await it.read()
        await it.record(it.open[:1000])
        await it.store()
    await session.execute("delete from webhooks.attempts")  # what the position says is enough
    await session.execute(ANOTHER_SERVER)
    assert (await adopted(database))["queued"] == 1500
    queued = await session.fetch("select event_id from webhooks.backlog order by 1")
    assert [row[0] for row in queued] == event_ids[1000:]


async def test_skipping_the_backlog_queues_nothing_and_new_events_go_out(database, session, receiver, until):
    await run_for_a_while(database, session, until)
    await producers.emit(session, 6)
    await session.execute(ANOTHER_SERVER)
    assert (await adopted(database, skip_backlog=True))["queued"] == 0
    async with living(database):
        fresh = await producers.emit(session, 2)
        await until(lambda: all_but(session, 6))
    assert sorted(request.event_id for request in receiver.requests[5:]) == fresh
    detail = await session.fetchval("select detail from webhooks.operations where what = 'adopt'")
    assert '"skip_backlog": true' in detail


async def test_a_foreign_xid_is_not_read_again_and_again_after_adopting(database, session):
    async with desk(database) as it:
        await it.recover()
        await it.store()
    foreign = Sql("((pg_current_xact_id()::text::bigint + 400)::text)::xid8")
    await emit(session, site=producers.SITES[0], xid=foreign)
    await session.execute(ANOTHER_SERVER)
    assert (await adopted(database))["queued"] == 1
    async with desk(database) as it:
        await it.recover()
        assert [await it.read() for _ in range(5)] == [0] * 5
        [fresh] = await producers.emit(session)
        assert await it.read() == 1
        await it.store()
        for _ in range(50):  # until the foreign xid is one of the past
            await session.execute(
                "do $$ begin for i in 1..10 loop perform pg_current_xact_id(); commit; end loop; end $$"
            )
            assert await it.read() == 0
            await it.store()
        assert [event.event_id for event in it.seen] == [fresh]


async def test_the_sequence_is_moved_beyond_the_greatest_id(database, session, until):
    *_, last = await run_for_a_while(database, session, until)
    await session.execute(
        "select setval('webhooks.events_event_id_seq', last_value - 5) from webhooks.events_event_id_seq"
    )
    assert (await adopted(database))["max_event_id"] == last
    assert await producers.emit(session) == [last + 1]
    await session.execute(
        "select setval('webhooks.events_event_id_seq', last_value + 100) from webhooks.events_event_id_seq"
    )
    await adopted(database)
    assert await producers.emit(session) == [last + 102]  # never back


async def slowest_insert(session, count=20):
    """Insert events one by one; return how long the slowest took, in seconds."""
    slowest = 0.0
    for _ in range(count):
        began = time.monotonic()
        await producers.emit(session)
        slowest = max(slowest, time.monotonic() - began)
        await asyncio.sleep(0.01)
    return slowest


async def test_an_open_producer_is_waited_for_and_makes_no_other_wait(database, session, connect, until):
    await run_for_a_while(database, session, until)
    await session.execute(ANOTHER_SERVER)
    open_one = await connect(database)
    await open_one.execute("begin")
    first_ids = await producers.emit(open_one, 2)
    adopting = asyncio.create_task(adopted(database))
    looking = (
        "select count(*) > 0 from pg_stat_activity"
        " where application_name = 'pghookd/adopt' and query like 'set transaction%'"
    )
    await until(lambda: session.fetchval(looking))  # it has checked if the producer has ended
    assert await slowest_insert(session) < PRODUCERS_WAIT_S
    assert not adopting.done()
    await open_one.execute("commit")
    assert (await adopting)["queued"] == 22
    assert await session.fetchval("select min(floor) from webhooks.shards") >= max(first_ids)


async def test_events_inserted_during_adopt_go_out_once(database, session, connect, receiver, until):
    """Producers commit all the while: each event is either queued by adopt or read by the daemon after it."""
    await run_for_a_while(database, session, until)
    await session.execute(ANOTHER_SERVER)
    crowd = [await connect(database) for _ in range(4)]
    done = asyncio.Event()

    async def produce(connection):
        ids = []
        while not done.is_set():
            async with connection.transaction():
                ids += await producers.emit(connection, 3)
                await asyncio.sleep(0.005)
        return ids

    producing = [asyncio.create_task(produce(each)) for each in crowd]
    await until(lambda: undelivered(session))
    await adopted(database)
    done.set()
    sent = [event_id for ids in await asyncio.gather(*producing) for event_id in ids]
    async with living(database):
        await until(lambda: nothing_undelivered(session))
    assert sorted(request.event_id for request in receiver.requests[5:]) == sorted(sent)


async def test_on_the_same_server_only_the_machine_is_noted(database, session, connect, until):
    """No position is reset, so that the daemon does not wait for an open producer."""
    await run_for_a_while(database, session, until)
    stored = await session.fetch("select shard, snapshot, floor, stored_at from webhooks.shards order by 1")
    open_one = await connect(database)
    await open_one.execute("begin")
    await producers.emit(open_one, 2)
    async with asyncio.timeout(5):
        assert (await adopt.adopt(crew.settings_of(database), skip_backlog=False, host="another"))[
            "queued"
        ] == 0
    assert (
        await session.fetch("select shard, snapshot, floor, stored_at from webhooks.shards order by 1")
        == stored
    )
    assert [row[0] for row in await session.fetch("select host from webhooks.home")] == ["another"]
    await open_one.execute("rollback")
    assert (await adopted(database, skip_backlog=True))[
        "queued"
    ] == 0  # open deliveries are skipped on request
    assert await session.fetchval("select min(stored_at) from webhooks.shards") > stored[0]["stored_at"]


async def test_a_transaction_that_stays_open_is_reported(database, session, connect, until, monkeypatch):
    await run_for_a_while(database, session, until)
    await session.execute(ANOTHER_SERVER)
    monkeypatch.setattr(adopt, "WAIT_S", 0.3)
    open_one = await connect(database)
    await open_one.execute("begin")
    await producers.emit(open_one, 1)
    with pytest.raises(DatabaseError, match="is still open after"):
        await adopted(database)
    assert isinstance(await ending_of(database), epoch.Foreign)  # nothing has changed


@pytest.mark.slow
async def test_a_daemon_that_reads_is_not_adopted_from_under_it(database, session, receiver, until):
    async with living(database) as life:
        await producers.emit(session, 3)
        await until(lambda: nothing_undelivered(session))
        with pytest.raises(DatabaseError, match="owns the shards"):
            await adopted(database)
        await producers.emit(session, 3)
        await until(lambda: nothing_undelivered(session))
        assert not life.ended
    assert len(receiver.requests) == 6


async def test_adopting_succeeds_however_often_a_daemon_that_holds_still_looks(database, session, until):
    await run_for_a_while(database, session, until)
    await session.execute(ANOTHER_SERVER)
    looking = asyncio.Event()

    async def look():
        while not looking.is_set():
            assert not isinstance(await ending_of(database), epoch.Lost)

    task = asyncio.create_task(look())
    for _ in range(5):
        await adopted(database)
        await session.execute(ANOTHER_SERVER)
    looking.set()
    await task


async def test_auto_adopts_by_itself(database, session, receiver, until):
    await run_for_a_while(database, session, until)
    await producers.emit(session, 4)
    await session.execute(ANOTHER_SERVER)
    async with serving(database, database={"adopt": "auto"}) as daemon:
        await daemon.diary.wait_for("log.reanchored")
        await until(lambda: nothing_undelivered(session))
    assert len(receiver.requests) == 9
