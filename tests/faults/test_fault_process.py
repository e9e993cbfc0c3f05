"""The process itself is in trouble: killed with a thousand in flight, frozen, out of descriptors, its clock stepped."""

from __future__ import annotations

import asyncio
import collections
import os
import random
import resource
import time
from pathlib import Path

import pytest

from support import checker
from support.daemon import UNRECORDED_MAX, VIGILANT, Daemon
from support.events import emit

# A site may have half of the request slots, and a host five eighths.
THOUSAND = {"delivery_concurrency": 2000, "delivery_endpoint_concurrency": 100}
ENDPOINTS = 12  # each takes a hundred at once
FAKETIME = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")]
if os.environ.get("PGHOOKD_TEST_FAKETIME"):
    FAKETIME = [Path(os.environ["PGHOOKD_TEST_FAKETIME"])]


def _in_flight(entries, rows):
    return len(entries) - rows


async def _attempts(db):
    return await db.fetchval("select count(*) from webhooks.attempts")


SHORT = pytest.mark.short


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
async def test_a_thousand_in_flight(database, db, start, receiving, until, delivered, signal):
    async with receiving(db, "answers:second", ENDPOINTS) as running:
        daemon = await start(database, **THOUSAND)
        await emit(db, 250)

        async def thousand():  # arrived and not answered: the receiver takes a second
            return len(running.entries()) - await _attempts(db) >= 950

        await until(thousand, 30)
        if signal == "SIGKILL":
            await daemon.kill()
        else:
            daemon.stop()
            assert await daemon.ended() == 0
        assert not daemon.noise
        hidden = len(running.entries()) - await _attempts(db)
        await start(database, **THOUSAND)
        await delivered(db, 250 * ENDPOINTS)
        repeats_max = hidden if signal == "SIGKILL" else 0
        found = await checker.check(db, running.entries(), repeats_max=repeats_max)
        assert found.repeats == repeats_max


KILLS = int(os.environ.get("PGHOOKD_TEST_KILLS", "100"))


@pytest.mark.timeout(60 + 6 * KILLS)
async def test_a_hundred_kills_at_any_moment(database, db, start, receiving, delivered):
    """One of two instances, whatever it is about to do: starting, standing by, taking over, recovering, sending."""
    seed = int(os.environ.get("PGHOOKD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"PGHOOKD_TEST_SEED={seed}")
    chance = random.Random(seed)
    daemons = [await start(database, ready="", **VIGILANT) for _ in range(2)]
    async with receiving(db, "answers:lively", 2) as running:
        for _ in range(KILLS):
            await emit(db, 20)
            await asyncio.sleep(chance.uniform(0, 1.5))
            victim = chance.randrange(2)
            await daemons[victim].kill()
            assert not daemons[victim].noise
            daemons[victim] = await start(database, ready="", **VIGILANT)
        await delivered(db, 40 * KILLS, 60)
        found = await checker.check(db, running.entries(), repeats_max=KILLS * UNRECORDED_MAX)
        print(f"{KILLS} kills: {found}")


@pytest.mark.short
async def test_killed_while_it_waits_for_the_bell(database, db, start, receiving, until, delivered):
    """Nobody rings for a dead daemon, no producer waits for it, and the next one finds the events of the meantime."""
    daemon = await start(database, log_level="debug")
    async with receiving(db) as running:
        for n in range(1, 4):
            await daemon.wait_for("bell.slept")
            await daemon.kill()
            started = time.monotonic()
            await emit(db, 10)
            assert time.monotonic() - started < 1
            daemon = await start(database, log_level="debug")
            await delivered(db, 10 * n)
        await checker.check(db, running.entries(), repeats_max=0)


@pytest.mark.parametrize("seconds", [3 * VIGILANT["database_lease_s"], pytest.param(60, id="a minute")])
async def test_frozen_for_longer_than_its_lease(database, db, start, receiving, until, delivered, seconds):
    """Alone: it wakes up without its sessions, sends nothing on their strength, and recovers."""
    daemon = await start(database, **VIGILANT)
    async with receiving(db) as running:
        await emit(db, 2000)
        await until(lambda: len(running.entries()) > 300)
        daemon.freeze()
        await asyncio.sleep(seconds)
        daemon.thaw()
        await daemon.wait_for("database.lost")
        await daemon.wait_for("database.restored")
        await delivered(db, 2000)
        await checker.check(db, running.entries(), repeats_max=UNRECORDED_MAX)
    assert not daemon.noise


async def test_frozen_for_moments(database, db, start, receiving, until, delivered):
    daemon = await start(database, **VIGILANT)
    async with receiving(db) as running:
        await emit(db, 2000)
        for n in range(1, 6):
            await until(lambda n=n: len(running.entries()) > n * 200)
            daemon.freeze()
            await asyncio.sleep(1)
            daemon.thaw()
        await delivered(db, 2000)
        await checker.check(db, running.entries(), repeats_max=0)
    assert not daemon.said("database.lost")
    assert not daemon.noise


def _descriptors(daemon):
    return len([*Path(f"/proc/{daemon.pid}/fd").iterdir()])


@pytest.mark.parametrize(
    "warm", [pytest.param(True, marks=SHORT, id="later"), pytest.param(False, id="at first")]
)
async def test_no_descriptor_is_left(database, db, start, receiving, until, delivered, warm):
    """Our own fault: no outcome is lost, no endpoint is blamed, no tight loop, and it goes on once there are some."""
    daemon = await start(database, **THOUSAND)
    async with receiving(db, "answers:lively", ENDPOINTS) as running:
        if warm:
            await emit(db, 40)
            await until(lambda: _settled(db, 40 * ENDPOINTS), 30)
        count = 40 if warm else 0
        _, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (_descriptors(daemon) + 20, hard))
        await emit(db, 100)
        await until(
            lambda: db.fetchval("select exists (select from webhooks.attempts where outcome = 'failed')"), 20
        )
        before = _cpu_s(daemon)
        await asyncio.sleep(2)
        busy = _cpu_s(daemon) - before
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (hard, hard))
        await until(lambda: _settled(db, (count + 100) * ENDPOINTS), 60)
        await checker.check(db, running.entries(), repeats_max=0, states=("delivered", "dead"))
        assert await db.fetchval("select count(*) from webhooks.endpoints where not enabled") == 0
        await emit(db, 10)
        await until(lambda: _settled(db, (count + 110) * ENDPOINTS), 60)
        outcomes = await db.fetch("select outcome, error, count(*) from webhooks.attempts group by 1, 2")
        assert {row["outcome"] for row in outcomes} <= {"delivered", "failed", "refused"}
        assert busy < 1.5
    assert not daemon.noise


def _cpu_s(daemon):
    fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _settled(db, count):
    return await db.fetchval(
        "select count(*) = $1 and bool_and(state in ('delivered', 'dead')) from webhooks.deliveries", count
    )


@pytest.mark.parametrize("step", [pytest.param("+3600", marks=SHORT), "-3600"])
@pytest.mark.skipif(not FAKETIME, reason="no libfaketime here: apt-get install faketime")
async def test_the_clock_steps(database, db, tmp_path, receiving, until, delivered, step):
    """The daemon's wall clock jumps by an hour: waits are those of a clock that does not."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environ = {
        "LD_PRELOAD": str(FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    daemon = Daemon(database, environ=environ, **VIGILANT)
    await daemon.start()
    try:
        await daemon.ready()
        async with receiving(db, "answers:lively") as running:
            await emit(db, 1000)
            await until(lambda: len(running.entries()) > 300)
            clock.write_text(step)
            await emit(db, 1000)
            await delivered(db, 2000)
            entries = running.entries()
            shift = [int(e["webhook-timestamp"]) - e["wall"] for e in entries if e["webhook-timestamp"]]
            assert abs(shift[-1] - int(step)) < 60, "the step was seen"
            # Not by the checker: signatures and starts are as wrong as the clock is.
            taken = collections.Counter(e["webhook-id"] for e in entries if e["status"] == 200)
            assert len(taken) == taken.total() == 2000
            states = await db.fetch("select state, count(*) from webhooks.deliveries group by 1")
            assert [tuple(row) for row in states] == [("delivered", 2000)]
        assert not daemon.said("database.lost")
        assert not daemon.noise
    finally:
        await daemon.kill()


CHANGES = {
    "spring": 1774746000,
    "autumn": 1792890000,
}  # of daylight saving in Berlin in 2026, in Unix seconds
LEAD_S = 15  # the daemon starts so long before


@pytest.mark.parametrize("season", CHANGES)
@pytest.mark.skipif(not FAKETIME, reason="no libfaketime here: apt-get install faketime")
async def test_daylight_saving_begins_or_ends(database, db, receiving, delivered, season):
    """The daemon's machine is in Berlin, and the clocks there are changed: nothing notices."""
    change, began = CHANGES[season], time.time()
    environ = {
        "LD_PRELOAD": str(FAKETIME[0]),
        "FAKETIME": f"{change - LEAD_S - began:+.0f}",
        "DONT_FAKE_MONOTONIC": "1",
        "TZ": "Europe/Berlin",
    }
    daemon = Daemon(database, environ=environ, **{**VIGILANT, "retry_schedule": "1s,1s,1s,1s"})
    await daemon.start()
    try:
        await daemon.ready()
        async with receiving(db, "answers:fickle") as running:
            count = 0
            while time.time() < began + LEAD_S + 5:
                await emit(db, 10)
                count += 10
                await asyncio.sleep(0.2)
            await delivered(db, count, 20)
            entries = running.entries()
            told = [int(e["webhook-timestamp"]) for e in entries]
            assert change - LEAD_S - 1 < min(told) < change < max(told) < change + 60
            offsets = [at - e["wall"] for at, e in zip(told, entries, strict=True)]
            assert max(offsets) - min(offsets) < 10, "seconds went on as seconds do"
            taken = {e["webhook-id"] for e in entries if e["status"] == 200 and not e["cut"]}
            assert len(taken) == count
        assert not daemon.said("database.lost")
        assert not daemon.noise
    finally:
        await daemon.kill()
