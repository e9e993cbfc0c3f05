"""The doorbell: nobody is ever slept through, and nobody rings for one who is awake. The fallback poll is off.

PGHOOKD_TEST_SLEEP_CYCLES says how many times the hostile test sleeps (150; benchmarks ask for 5000).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time

import asyncpg
import pytest

from pghookd.event_log.doorbell import Bell
from pghookd.postgres import lock_keys
from pghookd.runtime import epoch
from pghookd.runtime.sessions import Sessions
from support import SUPPORT, crew, producers
from support.crew import desk, living

CYCLES = int(os.environ.get("PGHOOKD_TEST_SLEEP_CYCLES", "150"))
LATE_S = 0.1  # a row read later than this after its commit is late
LOST_S = 5.0  # and one not read until then is lost

_INTO = "insert into webhooks.events (site_id, type, payload)"
INSERTS = (
    f"{_INTO} values ('site-1', 'order_created', '{{}}')",
    f"{_INTO} select 'site-1', 'a', '{{}}' from generate_series(1, 3)",
    "select webhooks.emit('site-1', 'order_created', '{}')",
    f"do $$ begin {_INTO} values ('site-1', 'a', '{{}}'); end $$",
    f"begin; savepoint a; {_INTO} values ('site-1', 'a', '{{}}'); release a; commit",
)

KEY = "locktype = 'advisory' and classid = 1885825131 and objid = 0 and objsubid = 2"
IN_THIS_DATABASE = "database = (select oid from pg_database where datname = current_database())"


@pytest.fixture
async def session(database, connect):
    session = await connect(database)
    await producers.make_sites(session)
    return session


class Ears:
    """A session that LISTENs beside the daemon."""

    def __init__(self, listening, other):
        self._listening = listening
        self._other = other
        self._heard = []
        self._marker = 0
        self._news = asyncio.Event()

    @classmethod
    async def open(cls, url, connect):
        ears = cls(await connect(url), await connect(url))
        for channel in (
            "pghookd",
            "pghookd_test",
        ):  # one queue: notifications arrive in the order they were sent
            await ears._listening.add_listener(channel, ears._hear)
        return ears

    def _hear(self, _connection, _pid, _channel, text):
        self._heard.append(text)
        self._news.set()

    async def count(self):
        """Return how often it rang since last asked: all before a notification of our own has arrived."""
        self._marker += 1
        marker = f"marker {self._marker}"
        await self._other.execute("select pg_notify('pghookd_test', $1)", marker)
        while marker not in self._heard:
            self._news.clear()
            await self._news.wait()
        rings = self._heard.count("")
        self._heard.clear()
        return rings


@pytest.fixture
async def ears(database, connect):
    return await Ears.open(database, connect)


class Sleeper:
    """A reader that sleeps at the first lull instead of after 250 ms, and notes when it saw what."""

    def __init__(self, desk, bell, diary):
        self.desk = desk
        self.bell = bell
        self.diary = diary
        self.read_at = {}
        self.after_read = None  # what happens between the end of a statement and the use of its rows
        self._noted = 0

    async def read(self):
        found = await self.desk.read()
        if self.after_read is not None:
            await self.after_read()
        if found:
            now = time.monotonic()
            for event in self.desk.seen[self._noted :]:
                self.read_at[producers.mark_of(event.payload)] = now
            self._noted = len(self.desk.seen)
        return found

    @property
    def cycles(self):
        return len(self.diary.of("bell.slept"))

    async def run(self):
        while True:
            idle = 0
            while idle < 2:
                idle = 0 if await self.read() else idle + 1
                await asyncio.sleep(0.001)
            await self.bell.sleep(self.read)


@contextlib.asynccontextmanager
async def sleeping(url, *, fallback_s=0, beat=lambda: None):
    """Run a Sleeper with the sessions of a real epoch."""
    diary, wake = crew.Diary(), asyncio.Event()
    sessions = Sessions(crew.settings_of(url).database)
    async with desk(url) as it:
        work = await sessions.work()
        await it.read_session.listen("pghookd", lambda _: wake.set())

        async def end_backend(pid):
            sessions.let_go("bell")
            await work.fetchval("select pg_terminate_backend($1)", pid)

        bell = Bell(
            await sessions.bell(),
            sessions.bell,
            end_backend,
            wake=wake,
            logger=diary.logger,
            monotonic=time.monotonic,
            fallback_s=fallback_s,
            beat=beat,
        )
        sleeper = Sleeper(it, bell, diary)
        running = [asyncio.create_task(sleeper.run()), asyncio.create_task(bell.run())]
        try:
            yield sleeper
            assert not any(task.done() for task in running), running
        finally:
            for task in running:
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*running)
            bell.session.terminate()
            sessions.terminate()


# Nobody is slept through --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(120 + CYCLES // 5)
async def test_hostile_producers_are_never_slept_through(database, session, until):
    seed = crew.seed()
    rnd = random.Random(seed)
    two_phase = await producers.takes_two_phase(session)
    crowd = producers.Crowd(database, seed, 6, patience_s=0.25, two_phase=two_phase, silent=False)
    committed = crowd.account.committed
    async with sleeping(database) as sleeper:

        def unread():
            return committed.keys() - sleeper.read_at.keys()

        while sleeper.cycles < CYCLES:
            await crowd.burst()
            if rnd.random() < 0.9:  # else the next burst comes before the last one was read
                with contextlib.suppress(TimeoutError):
                    await until(lambda: not unread(), LOST_S)
                assert not unread(), f"lost: {sorted(unread())}"
            await asyncio.sleep(rnd.choice((0, 0.002, 0.01, 0.03)))
        await until(lambda: not unread(), LOST_S)
    crowd.close()
    assert crowd.account.refused == []
    late = sorted(max(0.0, sleeper.read_at[mark] - at) for mark, at in committed.items())
    p50, p99, worst = late[len(late) // 2], late[len(late) * 99 // 100], late[-1]
    print(
        f"{sleeper.cycles} cycles, {len(late)} events, ms p50 {p50 * 1e3:.1f} p99 {p99 * 1e3:.1f} max {worst * 1e3:.0f}"
    )
    assert p99 < LATE_S
    assert worst < LATE_S * 5  # two loaded cores: a lost one would be late by seconds


async def test_a_silent_producer_is_waited_for(database, session, connect, ears, until):
    """webhooks.bell is read after the try: it says nothing, yet holds off the sleep until its end."""
    async with sleeping(database) as sleeper:
        await until(lambda: sleeper.cycles >= 1)
        quiet = await connect(database)
        await producers.emit(session, mark="wakes")
        await until(lambda: "wakes-1" in sleeper.read_at)
        await _hold_off(quiet, session, until, "quiet", silent=True)
        await ears.count()
        await until(lambda: _asked(session))
        slept = sleeper.cycles
        await quiet.execute("commit")
        await until(lambda: "quiet-1" in sleeper.read_at, 1.0)
        assert sleeper.cycles <= slept + 1
        assert await ears.count() == 0


async def test_a_commit_during_the_grant_of_the_key_is_read_before_the_sleep(
    database, session, connect, until
):
    """The grant proves that all who kept silent have ended, but not that what they wrote was read."""
    long_one = await connect(database)
    async with sleeping(database) as sleeper:
        await until(lambda: sleeper.cycles >= 1)
        await _hold_off(long_one, session, until, "silent")

        async def commit_behind_the_read():
            if await _asked(session):
                sleeper.after_read = None
                slept.append(sleeper.cycles)
                await long_one.execute("commit")
                await until(lambda: _holders(session))

        slept = []
        sleeper.after_read = commit_behind_the_read
        await until(lambda: slept and "silent-1" in sleeper.read_at, 2.0)
        assert sleeper.cycles <= slept[0] + 1


async def test_a_ring_between_the_last_read_and_the_sleep_is_heard(database, session, until):
    async with sleeping(database) as sleeper:
        await until(lambda: sleeper.cycles >= 1)
        held, rung = [], []

        async def ring_behind_the_last_read():
            held.append(await _holders(session))
            if held[-2:] == [1, 1]:  # the first with the key ended the drowsiness, the second is the last one
                sleeper.after_read = None
                rung.extend(await producers.emit(session, mark="rings"))
                await until(sleeper.bell._wake.is_set)

        sleeper.after_read = ring_behind_the_last_read
        while not rung:
            slept = sleeper.cycles
            await producers.emit(session, mark="wakes")
            await until(lambda slept=slept: rung or sleeper.cycles > slept)
        await until(lambda: "rings-1" in sleeper.read_at, 2.0)


async def _hold_off(connection, session, until, mark="m", *, silent=False):
    """Leave a transaction open that inserted while nobody slept: until it ends, nobody can."""

    async def holds():
        await producers.emit(session, mark="keeps it awake")
        await connection.execute("begin; set local webhooks.bell = off" if silent else "begin")
        await producers.emit(connection, mark=mark)
        if await connection.fetchval(
            f"select exists (select from pg_locks where {KEY} and pid = pg_backend_pid())"
        ):
            return True
        await connection.execute("rollback")  # it was asleep at that moment
        return False

    await until(holds)


async def _asked(session):
    sql = f"select exists (select from pg_locks where {KEY} and not granted and {IN_THIS_DATABASE})"
    return await session.fetchval(sql)


async def _holders(session, mode="ExclusiveLock"):
    sql = f"select count(*) from pg_locks where {KEY} and granted and mode = $1 and {IN_THIS_DATABASE}"
    return await session.fetchval(sql, mode)


# Roles that ring --------------------------------------------------------------------------------------------------


async def test_with_no_daemon_nobody_rings(session, ears):
    for _ in range(20):
        await producers.emit(session)
    assert await ears.count() == 0


async def test_an_awake_daemon_is_not_rung_for(database, session, ears):
    async with living(database) as life:
        await life.diary.wait_for("bell.slept")
        await producers.emit(session)
        await life.diary.wait_for("bell.rung")
        await ears.count()
        until_at = time.monotonic() + 0.8
        count = 0
        while time.monotonic() < until_at:
            await producers.emit(session)
            count += 1
            await asyncio.sleep(0.005)
        assert count > 20
        assert await ears.count() <= 1  # the first may come before the key is free again


async def test_a_sleeping_daemon_is_rung_for_by_every_kind_of_insert(database, session, ears):
    async with living(database) as life:
        for nth, insert in enumerate(INSERTS, start=1):
            await life.diary.wait_for("bell.slept", nth)
            await ears.count()
            await session.execute(insert)
            await life.diary.wait_for("bell.rung", nth)
            assert await ears.count() == 1
        await life.diary.wait_for("bell.slept", len(INSERTS) + 1)
        await session.copy_records_to_table(
            "events",
            schema_name="webhooks",
            columns=["site_id", "type", "payload"],
            records=[("site-1", "a", "{}")] * 3,
        )
        await life.diary.wait_for("bell.rung", len(INSERTS) + 1)


async def test_rollback_to_a_savepoint_takes_row_ring_and_lock_together(database, session, ears, until):
    async with sleeping(database) as sleeper:
        await until(lambda: sleeper.cycles >= 1)
        await session.execute("begin; savepoint a")
        await producers.emit(session, mark="gone")
        await session.execute("rollback to a")
        assert await _holders(session, "ShareLock") == 0
        await session.execute("commit")
        assert await ears.count() == 0
        await session.execute("begin; savepoint a")
        await producers.emit(session, mark="gone")
        await session.execute("rollback to a")
        await producers.emit(session, mark="stays")
        await session.execute("commit")
        await until(lambda: "stays-1" in sleeper.read_at, 1.0)
        assert "gone-1" not in sleeper.read_at


async def test_while_somebody_sleeps_only_the_silent_can_be_prepared(database, session, until):
    if not await producers.takes_two_phase(session):
        pytest.skip("max_prepared_transactions is 0")
    async with sleeping(database) as sleeper:
        await until(lambda: sleeper.cycles >= 1)
        await session.execute("begin")
        await producers.emit(session)
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="NOTIFY"):
            await session.execute("prepare transaction 'rings'")
        await session.execute("rollback")
        await session.execute("begin; set local webhooks.bell = off")
        await producers.emit(session, mark="silent")
        await session.execute("prepare transaction 'silent'")
        await session.execute("commit prepared 'silent'")
        await producers.emit(session, mark="rings")
        await until(lambda: {"silent-1", "rings-1"} <= sleeper.read_at.keys(), 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("fallback_s", [0, 3600])
async def test_a_sleeper_says_that_it_lives_however_rarely_it_polls(database, until, fallback_s):
    """Else systemd's watchdog would take it for one that hangs."""
    beats = []
    async with sleeping(
        database, fallback_s=fallback_s, beat=lambda: beats.append(sleeper.cycles)
    ) as sleeper:
        await until(lambda: beats.count(1) >= 3, 5.0)


async def test_events_without_the_trigger_are_found_by_the_poll(database, session, until):
    async with living(database, poll={"fallback_s": 0.1}) as life:
        await life.diary.wait_for("bell.slept")
        await session.execute("set webhooks.bell = off")
        [event_id] = await producers.emit(session)
        await until(
            lambda: session.fetchval(
                "select exists (select from webhooks.attempts where event_id = $1)", event_id
            )
        )


# Drowsy -----------------------------------------------------------------------------------------------------------


async def test_rows_that_keep_coming_beside_a_long_producer_end_the_wait(
    database, session, connect, ears, until
):
    long_one = await connect(database)
    async with sleeping(database) as sleeper:
        await until(lambda: sleeper.cycles >= 1)
        await producers.emit(session, mark="wakes")
        await _hold_off(long_one, session, until, "long")
        await until(lambda: _asked(session))
        first, began = sleeper.bell.session.pid, time.monotonic()
        await ears.count()
        rang = 0
        while sleeper.bell.session.pid == first:
            await producers.emit(session, mark="keeps coming")
            rang += 1
            assert time.monotonic() - began < 3.0
            await asyncio.sleep(0.002)
        assert 0.9 < time.monotonic() - began < 2.0
        assert await ears.count() > rang * 0.5  # drowsy: it was rung for until it gave up
        slept = sleeper.cycles
        await long_one.execute("commit")
        await until(lambda: "long-1" in sleeper.read_at, 1.0)
        await until(lambda: sleeper.cycles > slept, 2.0)  # a new session asks, and sleeps


@pytest.mark.slow
async def test_giving_up_does_not_end_the_epoch(database, session, connect, until):
    """The bell's session is the one that may be ended on purpose: a loop that pings it meanwhile must know."""
    long_one = await connect(database)
    async with living(database, database={"heartbeat_s": 0.002}) as life:
        await life.diary.wait_for("bell.slept")
        await _hold_off(long_one, session, until)
        backends = set()
        until_at = time.monotonic() + 7.0
        while time.monotonic() < until_at and len(backends) < 2:
            for _ in range(60):  # a second and more of rows, then a lull in which it asks again
                await producers.emit(session)
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.35)
            backends |= {
                row[0]
                for row in await session.fetch(
                    "select pid from pg_stat_activity where application_name = 'pghookd/bell'"
                    " and datname = current_database()"
                )
            }
            assert not life.ended, await life.ending()
        assert len(backends) == 2
        await long_one.execute("commit")


async def test_stopping_while_drowsy_leaves_nobody_waiting(database, session, connect, until):
    long_one = await connect(database)
    await long_one.execute("begin")
    await producers.emit(long_one)
    async with living(database) as life:
        await until(lambda: _asked(session))
        assert await life.stop(3.0) == epoch.Stopped()
        await until(lambda: _nobody_waits(session), 1.0)


async def _nobody_waits(session):
    return not await _asked(session)


async def test_who_does_not_keep_the_bell_stays_awake_and_touches_no_key(database, session, connect, until):
    keeper = await connect(database)
    await keeper.fetchval(f"select pg_advisory_lock({lock_keys.CLASS}, {lock_keys.BELL_KEEPER})")
    async with sleeping(database) as sleeper:
        await producers.emit(session)
        await until(lambda: "m-1" in sleeper.read_at, 1.0)
        assert not await _asked(session)
        assert await _holders(session) == 0
        assert sleeper.cycles == 0
        await keeper.close()
        await until(lambda: sleeper.cycles >= 1)


# Clients that die ---------------------------------------------------------------------------------------------------


async def _bell_process(url, lease_s):
    """Start another process that asks for the key as the daemon does."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SUPPORT / "crew.py"),
        url,
        str(lease_s),
        stdout=asyncio.subprocess.PIPE,
    )
    assert await process.stdout.readline() == b"asks\n"
    return process


@pytest.mark.slow
async def test_a_killed_waiter_is_gone_within_seconds(database, session, connect, ears, until):
    long_one = await connect(database)
    await long_one.execute("begin")
    await producers.emit(long_one)
    process = await _bell_process(database, 10)
    await until(lambda: _asked(session))
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await until(lambda: _nobody_waits(session), 4.0)
    await ears.count()
    await producers.emit(session)
    assert await ears.count() == 0


@pytest.mark.slow
async def test_a_stopped_sleeper_loses_the_key_with_its_lease(database, session, ears, until):
    process = await _bell_process(database, 1)
    await until(lambda: _holders(session))
    process.send_signal(signal.SIGSTOP)

    async def nobody_sleeps():
        return await _holders(session) == 0

    await until(nobody_sleeps, 4.0)
    process.kill()
    await process.wait()
    await producers.emit(session)
    assert await ears.count() == 0
