"""Every committed event is read exactly once, whatever transactions do and however long they stay open."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from pghookd.event_log.reading.pages import PAGE
from pghookd.model.delivery import Delivery, Event, Reason, State
from pghookd.model.outcome import BacklogWrite
from pghookd.postgres.client import DatabaseAway
from support import crew, producers
from support.crew import desk


@pytest.fixture
async def session(database, connect):
    session = await connect(database)
    await producers.make_sites(session)
    return session


def ids(desk):
    return [event.event_id for event in desk.seen]


async def in_the_log(session):
    return [row[0] for row in await session.fetch("select event_id from webhooks.events order by 1")]


async def move_days(session, stop, rnd):
    """Move the sequence on, day after day, as maintenance would, only faster; return how often."""
    day, moved = await session.fetchval("select webhooks.day_of()"), 0
    while not stop.is_set():
        if not await session.fetchval(
            "select exists (select from webhooks.partitions where day = $1)", day + 1
        ):
            await session.fetchval("select webhooks.attach_day($1)", day + 1)
            await session.fetchval("select webhooks.note_day($1)", day + 1)
        if await session.fetchval("select webhooks.enter_day($1)", day + 1):
            day, moved = day + 1, moved + 1
        await asyncio.sleep(rnd.random() * 0.4)
    return moved


@pytest.mark.slow
@pytest.mark.parametrize("moving", [False, True], ids=["one day", "days go by"])
async def test_hostile_producers_lose_nothing_and_repeat_nothing(database, session, connect, moving):
    seed = crew.seed()
    rnd = random.Random(seed)
    two_phase = await producers.takes_two_phase(session)
    crowd = producers.Crowd(database, seed, 8, patience_s=0.8, two_phase=two_phase)
    async with desk(database) as it:
        running = asyncio.create_task(crowd.run(4.0))
        stop = asyncio.Event()
        mover = asyncio.create_task(move_days(await connect(database), stop, rnd)) if moving else None
        old = await connect(database)
        await old.execute("begin")
        await producers.emit(old, mark="open all the time")
        reads = 0
        while not running.done():
            await it.read()
            reads += 1
            if rnd.random() < 0.05:
                await it.store()
            await asyncio.sleep(rnd.random() * 0.01)
        await running
        await old.execute("commit")
        stop.set()
        assert mover is None or await mover > 2
        await it.read()
        log = await in_the_log(session)
        twice = [i for i, n in Counter(ids(it)).items() if n > 1]
        assert (twice, sorted(ids(it))) == ([], log)
    marks = {producers.mark_of(event.payload) for event in it.seen} - {"open all the time-1"}
    assert crowd.account.refused == []
    assert marks == crowd.account.committed.keys()
    print(
        f"{reads} reads, {len(log)} events, {crowd.account.killed} killed, {crowd.account.prepared} prepared"
    )


@pytest.mark.slow
async def test_unread_events_at_the_end_are_found_by_the_next_instance(database, session):
    """The stored positions of hostile minutes, walked by another reader: nothing is below a floor."""
    seed = crew.seed()
    two_phase = await producers.takes_two_phase(session)
    crowd = producers.Crowd(database, seed, 6, patience_s=0.5, two_phase=two_phase)
    running = asyncio.create_task(crowd.run(3.0))
    seen = []
    while not running.done():
        async with desk(database) as it:  # a life of some tenths of a second, ended like a crash
            await it.recover()
            for _ in range(20):
                await it.read()
                await asyncio.sleep(0.005)
            await it.store()
            seen.extend(ids(it))
    await running
    async with desk(database) as it:
        await it.recover()
        seen.extend(ids(it))
    assert sorted(seen) == await in_the_log(session)  # each stored after its last read: none twice either


# Long differences ---------------------------------------------------------------------------------------------


async def test_a_difference_of_many_pages_comes_in_order_and_once(database, session):
    async with desk(database) as it:
        await it.store()
        await producers.emit(session, PAGE)
        await producers.emit(session, PAGE + 1, site=producers.SITES[1])
        await producers.emit(session, 7)
        assert await it.read() == 2 * PAGE + 8
        assert sorted(ids(it)) == await in_the_log(session)
        for site in producers.SITES[:2]:  # each site's in order; what one has too much of comes after others'
            of_site = [event.event_id for event in it.seen if event.site_id == site]
            assert of_site == sorted(of_site)
        assert await it.read() == 0
        assert all(shard.settled.upto is None for shard in it.log.shards.values())


@pytest.mark.parametrize("count", [PAGE - 1, PAGE, PAGE + 1])
async def test_the_edge_between_one_statement_and_pages(database, session, count):
    async with desk(database) as it:
        await producers.emit(session, count)
        assert await it.read() == count
        assert ids(it) == await in_the_log(session)
        assert await it.read() == 0


async def test_a_big_transaction_that_was_open_at_the_last_read_comes_in_pages(database, session, connect):
    big = await connect(database)
    async with desk(database) as it:
        await big.execute("begin")
        await producers.emit(big, PAGE + 10, mark="big")
        small = await producers.emit(session, 5, mark="small")
        await it.read()
        await it.store()
        await it.read()
        assert ids(it) == small
        await producers.emit(session, 3, mark="later")
        await big.execute("commit")
        assert await it.read() == PAGE + 13
        assert sorted(ids(it)) == await in_the_log(session)
        assert len(set(ids(it))) == len(ids(it))


async def test_hundreds_of_open_transactions_do_no_harm(database, session, connect):
    async with desk(database) as it:
        opened = [await connect(database) for _ in range(60)]
        for each in opened:
            await each.execute("begin")
            await producers.emit(each, 30)
        await producers.emit(session)
        await it.read()
        await it.store()
        for n, each in enumerate(opened):
            await each.execute("commit" if n % 3 else "rollback")
            if n % 20 == 0:
                await it.read()
        await it.read()
        assert sorted(ids(it)) == await in_the_log(session)
        assert len(it.seen) == 1 + 40 * 30


# Floors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [False, True], ids=["fresh sequence", "just moved sequence"])
async def test_the_first_event_of_a_sequence_is_above_the_mark_stored_before_it(database, session, moved):
    if moved:
        await producers.emit(session)
    async with desk(database) as it:
        if moved:
            assert await session.fetchval("select webhooks.enter_day(webhooks.day_of() + 1)")
        await it.recover()
        await it.store()
        await it.store()
        before = len(it.seen)
        [first] = await producers.emit(session)
        async with desk(database) as other:
            await other.recover()
            assert ids(other) == [first]
        assert await it.read() == 1
        assert len(it.seen) == before + 1


async def test_an_open_transaction_holds_the_floor_and_not_the_front(database, session, connect):
    slow = await connect(database)
    async with desk(database) as it:
        await slow.execute("begin")
        await producers.emit(slow)
        for _ in range(3):
            [last] = await producers.emit(session)
            await it.read()
            await it.store()
        marks, read = it.log.marks, it.log.read
        assert marks.floor(read) < await session.fetchval("select min(event_id) from webhooks.events")
        assert marks.front(read) >= last - 1
        await slow.execute("commit")
        assert await it.read() == 1


async def test_marks_are_forgotten_once_no_position_needs_them(database, session):
    async with desk(database) as it:
        for _ in range(50):
            await producers.emit(session)
            await it.read()
            await it.store()
        assert len(it.log.marks._marks) <= 2


# Endpoints ------------------------------------------------------------------------------------------------------


async def test_only_an_endpoint_committed_before_an_event_gets_it(database, session):
    async with desk(database) as it:
        await session.execute("insert into webhooks.sites (site_id, name) values ('new', 'new')")
        early = await producers.emit(session, site="new")
        await session.execute(
            "insert into webhooks.endpoints (site_id, url) values ('new', 'http://a.example/')"
        )
        late = await producers.emit(session, site="new")
        await session.execute(
            "insert into webhooks.endpoints (site_id, url) values ('new', 'http://b.example/')"
        )
        assert await it.read() == 2
        assert ids(it) == late
        assert early[0] < late[0]


async def test_an_endpoint_does_not_get_what_commits_late(database, session, connect):
    """An id that was drawn before the endpoint was made keeps the event away, as an old event is kept away."""
    slow = await connect(database)
    async with desk(database) as it:
        await session.execute("insert into webhooks.sites (site_id, name) values ('new', 'new')")
        await slow.execute("begin")
        early = await producers.emit(slow, site="new")
        await session.execute(
            "insert into webhooks.endpoints (site_id, url) values ('new', 'http://a.example/')"
        )
        late = await producers.emit(session, site="new")
        await slow.execute("commit")
        assert await it.read() == 2
        assert ids(it) == late
        assert early[0] < late[0]


async def test_a_deleted_endpoint_gets_nothing_not_even_earlier_events(database, session):
    async with desk(database) as it:
        await producers.emit(session, 3)
        await session.execute("delete from webhooks.endpoints where site_id = $1", producers.SITES[0])
        assert await it.read() == 3
        assert it.seen == []
        assert all(shard.settled.snapshot == it.log.read for shard in it.log.shards.values())


# Where it must not be read ----------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_standby_is_not_read(own_server, connect):
    primary = await connect(own_server.url())
    await crew.migrated(own_server.url())
    with crew.standby_of(own_server) as standby:
        async with desk(own_server.url()) as it:
            session = await crew.session_on(standby.url())
            it.reader._session = session  # as if the server had become one under a reader
            with pytest.raises(DatabaseAway, match="standby"):
                await it.read()
            session.terminate()
        snapshot = await primary.fetchval("select pg_current_snapshot()")
        assert snapshot


async def test_a_late_write_of_a_row_removes_no_delivery_taken_anew_from_it(database, session):
    """Held, switched on and taken again, before the first word was written: it is in memory, and stays known."""
    async with desk(database) as it:
        event = Event(1, "s", "order_created", 0, b"{}")
        before, anew = (Delivery(event, 1, 0, 0.0, in_backlog=True) for _ in range(2))
        in_memory = it.lanes.backlog_index.in_memory
        in_memory.add(anew)
        it.recorder._settle(BacklogWrite(before, State.HELD, Reason.DISABLED))
        assert in_memory._deliveries[1, 1] is anew
        it.recorder._settle(BacklogWrite(anew, State.HELD, Reason.DISABLED))
        assert not in_memory
