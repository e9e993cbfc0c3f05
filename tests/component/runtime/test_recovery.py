"""Sessions lost, daemons stopped or restarted in the middle: no event is lost, and no recorded one is sent again."""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter

import pytest

from pghookd.model.delivery import Delivery, Event, Outcome
from pghookd.model.outcome import AttemptWrite
from pghookd.model.verdict import Delivered
from pghookd.runtime import epoch
from support import crew, producers
from support.crew import desk, living, serving
from support.receiver import OK, Response


@pytest.fixture
async def session(database, connect, receiver):
    session = await connect(database)
    await producers.make_sites(session, receiver.url("/"))
    return session


async def recorded(session):
    rows = await session.fetch("select event_id from webhooks.attempts where outcome = 'delivered'")
    return {row[0] for row in rows}


async def all_ids(session):
    return {row[0] for row in await session.fetch("select event_id from webhooks.events")}


async def all_recorded(session):
    return await recorded(session) == await all_ids(session)


def times_sent(receiver):
    return Counter(request.webhook_id for request in receiver.requests)


def ids(it):
    return sorted(event.event_id for event in it.seen)


class Gate:
    """A receiver's script that lets requests wait until it is opened."""

    def __init__(self):
        self.opened = asyncio.Event()
        self.waiting = 0

    async def __call__(self, _request):
        self.waiting += 1
        await self.opened.wait()
        return OK


# Positions --------------------------------------------------------------------------------------------------------


async def test_a_shard_far_behind_keeps_its_own_floor(database, session):
    """A floor proven for one shard's position does not hold for another's that is older."""
    slow, quick = await _sites_of_two_shards(session)
    async with desk(database, settling=False) as it:
        await it.recover()
        await it.store()
        behind = await producers.emit(session, 1500, site=slow)
        await it.read()
        it.open.clear()  # events behind stay open
        for _ in range(3):
            await producers.emit(session, site=quick)
            await it.read()
            it.settle_all()
            await it.store()
    async with desk(database, settling=False) as it:
        await it.store()  # the recorder comes before the reader, and then comes a crash
    async with desk(database) as it:
        await it.recover()
        assert ids(it) == behind


async def test_a_shard_behind_may_lose_its_second_epoch_in_the_middle_of_a_page(database, session):
    slow, quick = await _sites_of_two_shards(session)
    async with desk(database, settling=False) as it:
        await it.recover()
        await it.store()
        behind = await producers.emit(session, 2500, site=slow)
        await it.read()
        it.open.clear()
        for _ in range(3):
            await producers.emit(session, site=quick)
            await it.read()
            it.settle_all()
            await it.store()
    async with desk(database, settling=False) as it:
        await it.recover()
        first = it.open[:1000]
        await it.record(first)  # the first page is settled, the next two are not
        await it.store()
        assert ids(it) == behind
    assert await session.fetchval("select count(*) from webhooks.shards where upto is not null") >= 1
    async with desk(database) as it:
        await it.recover()
        assert ids(it) == behind[1000:]


async def _sites_of_two_shards(session):
    rows = await session.fetch(
        "select site_id, mod(mod(hashtextextended(site_id, 0), $1::int) + $1::int, $1::int) as shard"
        " from webhooks.sites order by 1",
        crew.SHARDS,
    )
    slow = rows[0]
    return slow["site_id"], next(row["site_id"] for row in rows if row["shard"] != slow["shard"])


@pytest.mark.slow
async def test_a_crash_within_a_long_difference_goes_on_from_the_cursor(database, session, receiver, until):
    await producers.emit(session)
    async with living(database):
        await until(lambda: all_recorded(session))
        await until(lambda: session.fetchval("select bool_and(snapshot is not null) from webhooks.shards"))
    for site in producers.SITES[:8]:
        await producers.emit(session, 750, site=site)
    receiver.script = lambda _request: Response(delay_s=0.03)

    async def in_the_middle():
        sql = "select bool_or(upto is not null and last_event_id > 0) from webhooks.shards"
        return len(await recorded(session)) > 2500 and await session.fetchval(sql)

    async with living(database, delivery={"concurrency": 40}):
        await until(in_the_middle, 15.0)
    before = await recorded(session)
    sent = times_sent(receiver)
    assert 2500 < len(before) < 6001
    receiver.script = lambda _request: OK
    async with living(database):
        await until(lambda: all_recorded(session), 15.0)
    again = {request.event_id for request in receiver.requests[sent.total() :]}
    assert not again & before
    assert sum(n - 1 for n in times_sent(receiver).values()) <= 40 + 500
    assert len(times_sent(receiver)) == 6001


@pytest.mark.slow
async def test_an_orderly_stop_repeats_nothing_at_all(database, session, receiver, until):
    receiver.script = lambda _request: Response(delay_s=0.01)
    for site in producers.SITES:
        await producers.emit(session, 100, site=site)
    for _ in range(3):
        async with living(database, delivery={"concurrency": 20}) as life:
            have = len(receiver.requests)
            await receiver.wait_for(have + 150)
            assert await life.stop() == epoch.Stopped()
    async with living(database):
        await until(lambda: all_recorded(session))
    assert set(times_sent(receiver).values()) == {1}
    assert len(receiver.requests) == 1200


# A server that restarts --------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_xids_handed_out_again_after_a_crash_hide_nothing(make_server, connect, receiver, until):
    """Transactions that left no WAL are forgotten by a crash, and their xids given to others; memory must not last."""
    server = make_server(wal_writer_delay="10s")
    await crew.migrated(server.url())
    session = await connect(server.url())
    await producers.make_sites(session, receiver.url("/"))
    async with serving(server.url()) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        await producers.emit(session, 3)
        await until(lambda: all_recorded(session))
        await until(lambda: session.fetchval("select bool_and(snapshot is not null) from webhooks.shards"))
        for _ in range(300):
            burnt = await session.fetchval("select pg_current_xact_id()")
        await daemon.diary.wait_for("bell.slept")
        rung = len(daemon.diary.of("bell.rung"))
        await session.execute("notify pghookd")  # it reads: its snapshot in memory is beyond the burnt xids
        await daemon.diary.wait_for("bell.rung", rung + 1)
        server.stop("immediate")
        server.start()
        session = await connect(server.url())
        first = await session.fetchval("select pg_current_xact_id()")
        assert first < burnt, "no xid was handed out again: this shows nothing"
        await producers.emit(session, 20)
        await daemon.diary.wait_for("database.restored")
        await until(lambda: all_recorded(session))
    assert len(times_sent(receiver)) == 23


@pytest.mark.slow
async def test_restarts_under_load_lose_nothing(own_server, connect, receiver, until):
    await crew.migrated(own_server.url())
    rnd = random.Random(crew.seed())
    session = await connect(own_server.url())
    await producers.make_sites(session, receiver.url("/"))
    receiver.script = lambda _request: Response(
        200 if rnd.random() < 0.8 else 500, delay_s=rnd.random() * 0.05
    )
    schedule = (0.05,) * 20
    async with serving(
        own_server.url(), retry={"schedule": schedule}, delivery={"concurrency": 50}, breaker={"share": 0}
    ) as daemon:
        for _ in range(2):
            await daemon.diary.wait_for("daemon.ready")
            for site in producers.SITES:
                await producers.emit(session, 25, site=site)
            await receiver.wait_for(len(receiver.requests) + 60)
            own_server.stop("immediate")
            own_server.start()
            session = await connect(own_server.url())
        await until(lambda: all_recorded(session), 20.0)
        await until(lambda: _is_empty(session, "backlog"))
    good = Counter(request.webhook_id for request in receiver.requests if request.status == 200)
    assert len(good) == 600
    assert sum(good.values()) - 600 <= 2 * (50 + 500)


async def _is_empty(session, table):
    return not await session.fetchval(f"select exists (select from webhooks.{table})")


# Ten seconds -------------------------------------------------------------------------------------------------------


async def test_an_event_unsettled_for_ten_seconds_gets_a_row(database, session, receiver, until):
    gate = Gate()
    receiver.script = gate
    clock = crew.Clock()
    async with living(database, clock=clock) as life:
        stuck = await producers.emit(session, 30)
        await until(lambda: gate.waiting == 2)  # slow start: the others are queued
        assert await _is_empty(session, "backlog")
        clock.ahead_s += 11.0
        rows = await until(lambda: _rows(session, 30))
        assert {(row["state"], row["reason"], row["attempts"]) for row in rows} == {("waiting", "queued", 0)}
        assert sorted(row["event_id"] for row in rows) == stuck

        async def beyond():
            return await session.fetchval(
                "select bool_and(pg_visible_in_snapshot(e.xid, s.snapshot)) from webhooks.events e, webhooks.shards s"
            )

        await until(beyond)
        assert gate.waiting == 2  # due, but in memory: not sent a second time
        gate.opened.set()
        await until(lambda: all_recorded(session))
        await until(lambda: _is_empty(session, "backlog"))
        assert await life.stop() == epoch.Stopped()
    assert set(times_sent(receiver).values()) == {1}


async def _rows(session, count):
    rows = await session.fetch("select * from webhooks.backlog")
    return rows if len(rows) == count else None


async def test_checkpointed_deliveries_return_from_the_backlog_after_a_crash(
    database, session, receiver, until
):
    gate = Gate()
    receiver.script = gate
    clock = crew.Clock()
    async with living(database, clock=clock):
        await producers.emit(session, 30)
        await until(lambda: gate.waiting == 2)
        clock.ahead_s += 11.0
        await until(lambda: _rows(session, 30))
    receiver.script = lambda _request: OK
    async with living(database):
        await until(lambda: all_recorded(session))
        await until(lambda: _is_empty(session, "backlog"))
    assert Counter(times_sent(receiver).values()) == {1: 28, 2: 2}


# One session lost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asleep", [False, True], ids=["in flight", "asleep"])
@pytest.mark.parametrize("name", ["read", "record", "bell", "work", "tend", "care", "mail"])
async def test_one_lost_session_ends_the_epoch_and_the_next_one_loses_nothing(
    database, session, receiver, until, name, asleep
):
    receiver.script = lambda _request: Response(delay_s=0.01)
    async with living(database, delivery={"concurrency": 30}) as life:
        await life.diary.wait_for("bell.slept")
        if not asleep:
            for site in producers.SITES:
                await producers.emit(session, 40, site=site)
            await receiver.wait_for(150)
        ended = await session.fetchval(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity"
            " where application_name = $1 and datname = current_database()",
            f"pghookd/{name}",
        )
        assert ended == 1
        ending = await life.ending(2.0)
        assert isinstance(ending, epoch.Lost), ending
    before, sent = await recorded(session), len(receiver.requests)
    await producers.emit(session, 5, mark="meanwhile")
    async with living(database):
        await until(lambda: all_recorded(session))
    assert not {request.event_id for request in receiver.requests[sent:]} & before
    assert sum(n - 1 for n in times_sent(receiver).values()) <= 30 + 500
    assert len(times_sent(receiver)) == (5 if asleep else 485)


# The recorder -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_scheduler_does_not_resend_just_recorded_deliveries(database, session, receiver, until):
    seen = Counter()

    def second_time(request):
        seen[request.webhook_id] += 1
        return Response(200 if seen[request.webhook_id] > 1 else 503)

    receiver.script = second_time
    async with living(database, retry={"schedule": (0.05,) * 3}, breaker={"share": 0}):
        for site in producers.SITES:
            await producers.emit(session, 60, site=site)
        await until(lambda: all_recorded(session), 15.0)
        await until(lambda: _is_empty(session, "backlog"))
    assert set(times_sent(receiver).values()) == {2}
    attempts = Counter((request.webhook_id, request.attempt) for request in receiver.requests)
    assert set(attempts.values()) == {1}
    assert {attempt for _, attempt in attempts} == {1, 2}


async def test_no_request_starts_while_outcomes_cannot_be_recorded(
    database, session, connect, receiver, until
):
    blocker = await connect(database)
    clock = crew.Clock()
    async with living(database, clock=clock) as life:
        await life.diary.wait_for("bell.slept")
        await blocker.execute("begin; lock table webhooks.attempts in access exclusive mode")
        first = await producers.emit(session)
        await receiver.wait_for(1)
        await producers.emit(session, mark="still in time")
        await receiver.wait_for(2)
        clock.ahead_s += 5.5
        rung = len(life.diary.of("bell.rung"))
        await life.diary.wait_for("bell.slept", rung + 1)
        await producers.emit(session, 10, site=producers.SITES[3], mark="too late")
        await life.diary.wait_for("bell.rung", rung + 1)
        await life.diary.wait_for("database.refused")  # its lock timeout: two seconds in which nothing starts
        assert len(receiver.requests) == 2
        await blocker.execute("rollback")
        await until(lambda: all_recorded(session))
    assert set(times_sent(receiver).values()) == {1}
    assert receiver.requests[0].event_id == first[0]


def outcome(number):
    delivery = Delivery(Event(number, producers.SITES[0], "order_created", 0, b"{}"), 1, 0, 0.0)
    return AttemptWrite(delivery, Outcome.DELIVERED, 200, None, None, 1, 1.0, Delivered(), 1)


async def test_the_age_of_outcomes_is_that_of_the_oldest_unrecorded_one(database, session):
    [event_id] = await producers.emit(session)
    async with desk(database) as it:
        recorder, clock = it.recorder, it.clock
        assert recorder.closed(clock()) is None
        for n in range(600):
            recorder.put(outcome(event_id + n), clock())
        clock.ahead_s += 4.0
        await recorder._flush(500)
        assert recorder.unrecorded == 100
        recorder.put(outcome(event_id + 600), clock())
        clock.ahead_s += 1.5
        recorder._answered_at = clock()
        assert recorder.closed(clock()) == "unrecorded"
        await recorder._flush(100)
        assert recorder.closed(clock()) is None  # the last one is a second and a half old
        clock.ahead_s += 4.0
        recorder._answered_at = clock()
        assert recorder.closed(clock()) == "unrecorded"
        await recorder._flush(1)
        assert recorder.closed(clock()) is None


async def test_without_an_answer_within_the_lease_no_request_starts(database, session):
    assert session
    async with desk(database) as it:
        it.clock.ahead_s += 5.9
        assert it.recorder.closed(it.clock()) is None
        it.clock.ahead_s += 0.2
        assert it.recorder.closed(it.clock()) == "lease"
        await it.recorder._upkeep()
        assert it.recorder.closed(it.clock()) is None


# A standby that missed commits --------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_promoted_standby_that_missed_commits(own_server, connect, receiver, until):
    """The same event ids are given to other events there: they are delivered, under other webhook-ids."""
    await crew.migrated(own_server.url())
    session = await connect(own_server.url())
    await producers.make_sites(session, receiver.url("/"))
    sent = functools.partial(times_sent, receiver)
    with crew.standby_of(own_server) as standby:
        async with serving(own_server.url()):
            await producers.emit(session, 20, mark="both have")
            await until(lambda: all_recorded(session))
            await until(lambda: _stored(session))
            await until(lambda: _caught_up(session))
            standby.stop("immediate")
            missed = await producers.emit(session, 50, mark="the standby never had")
            await until(lambda: all_recorded(session))
        own_server.stop("immediate")
        standby.start()
        standby.run("pg_ctl", "promote", "-w", "-D", standby.data)
        new = await connect(standby.url())
        before = sent()
        async with serving(standby.url()) as daemon:
            await daemon.diary.wait_for("daemon.ready")
            again = await producers.emit(new, 120, site=producers.SITES[1], mark="given again")
            await until(lambda: all_recorded(new))
            forks = daemon.diary.of("log.reanchored")
    assert forks
    assert "timeline" in forks[0]
    assert set(again) & set(missed), "no id was given out again: this shows nothing"
    assert len(before) == 70
    new_ids = sent().keys() - before.keys()
    assert len(new_ids) == 120
    assert all(n == 1 for webhook_id, n in sent().items() if webhook_id in new_ids)


async def _stored(session):
    return await session.fetchval(
        "select bool_and(snapshot is not null and upto is null) from webhooks.shards"
    )


async def _caught_up(session):
    return await session.fetchval(
        "select bool_and(replay_lsn >= pg_current_wal_lsn()) from pg_stat_replication"
    )
