"""The network between the daemon and Postgres breaks: silence on one connection, one way, delays, cuts at a COMMIT."""

from __future__ import annotations

import asyncio
import time

import pytest

from support import checker
from support.daemon import UNRECORDED_MAX, VIGILANT
from support.events import emit

NOTICED_S = 15.0  # a heartbeat, then an answer within 5 s (10 s where a statement runs), and a loaded machine
# A session in the middle of a statement is not pinged: there the time that the statement itself may take counts.
SILENT_S = {
    "read": 62.0 + 8,
    "record": NOTICED_S,
    "work": NOTICED_S,
    "tend": NOTICED_S,
    "care": 35.0 + 8,
    "bell": NOTICED_S,
}


WHEN = [(name, asleep) for name in SILENT_S for asleep in (False, True) if asleep or name != "bell"]
WHEN[WHEN.index(("read", True))] = pytest.param("read", True, marks=pytest.mark.short)


@pytest.mark.parametrize(("name", "asleep"), WHEN)
async def test_one_connection_goes_silent(network, direct, start, receiving, until, delivered, name, asleep):
    daemon = await start(network.url, log_level="debug", **VIGILANT)
    async with receiving(direct) as running:
        if asleep:
            await daemon.wait_for("bell.slept")
        else:
            await emit(direct, 1000)
            await until(lambda: len(running.entries()) > 100)
        network.silence(network.of(name))
        await daemon.wait_for("database.lost", seconds=SILENT_S[name])
        await daemon.wait_for("database.restored")
        await emit(direct, 10)
        await delivered(direct, 10 if asleep else 1010)
        await checker.check(direct, running.entries(), repeats_max=0 if asleep else UNRECORDED_MAX)
    assert not daemon.noise


async def test_the_bell_goes_silent_while_it_is_asked_for(
    network, own_server, direct, connect, start, receiving, until, delivered
):
    """It may wait for ever, and nobody asks a session that waits: the daemon stays half awake, and reads."""
    daemon = await start(network.url, **VIGILANT)
    producer = await connect(own_server.url())
    asked = (
        "select exists (select from pg_locks l join pg_stat_activity a using (pid)"
        " where a.application_name = 'pghookd/bell' and not l.granted)"
    )
    async with receiving(direct) as running:
        async with producer.transaction():
            await emit(producer)
            await until(lambda: direct.fetchval(asked))
            network.silence(network.of("bell"))
        for n in range(2, 8):
            started = time.monotonic()
            await emit(direct)
            assert time.monotonic() - started < 1, "no producer waits"
            await delivered(direct, n, 5)
            await asyncio.sleep(1)  # beyond the lease, at which the server ends the silent one
        await checker.check(direct, running.entries(), repeats_max=0)
    assert not daemon.noise


@pytest.mark.parametrize("way", ["up", pytest.param("down", marks=pytest.mark.short)])
async def test_only_one_way_is_open(network, direct, start, receiving, until, delivered, way):
    daemon = await start(network.url, **VIGILANT)
    async with receiving(direct) as running:
        await emit(direct, 2000)
        await until(lambda: len(running.entries()) > 100)
        network.partition(**{way: True})
        await daemon.wait_for("database.lost", seconds=NOTICED_S)
        network.heal()
        await daemon.wait_for("database.restored")
        await delivered(direct, 2000)
        await checker.check(direct, running.entries(), repeats_max=UNRECORDED_MAX)
    assert not daemon.noise


@pytest.mark.parametrize("seconds", [12, pytest.param(60, id="a minute")])
async def test_a_partition_of_many_leases_is_survived(
    network, direct, start, receiving, until, delivered, seconds
):
    """Nothing is sent once the lease of 4 s has run out, and all once the network is whole again."""
    daemon = await start(network.url, **VIGILANT)
    async with receiving(direct) as running:
        await emit(direct, 3000)
        await until(lambda: len(running.entries()) > 300)
        network.partition()
        await asyncio.sleep(VIGILANT["database_lease_s"])
        sent = len(running.entries())
        await asyncio.sleep(seconds - VIGILANT["database_lease_s"])
        assert len(running.entries()) == sent < 3000
        network.heal()
        healed = time.monotonic()
        await daemon.wait_for("database.restored")
        print(f"normal {time.monotonic() - healed:.1f} s after {seconds} s")
        await delivered(direct, 3000)
        await checker.check(direct, running.entries(), repeats_max=UNRECORDED_MAX)
    assert not daemon.noise


async def test_a_slow_database_costs_time_and_nothing_else(network, direct, start, receiving, delivered):
    daemon = await start(network.url, **VIGILANT)
    network.delay_s = 0.25
    async with receiving(direct) as running:
        await emit(direct, 300)
        await delivered(direct, 300)
        await checker.check(direct, running.entries(), repeats_max=0)
    assert not daemon.said("database.lost")
    assert not daemon.noise


@pytest.mark.short
async def test_the_result_of_a_commit_is_never_known(network, direct, start, receiving, until, delivered):
    """The connection is cut once COMMIT has gone through: the outcomes are recorded, and not recorded twice."""
    daemon = await start(network.url, **VIGILANT)
    async with receiving(direct, "answers:lively") as running:
        await emit(direct, 2000)
        for n in range(1, 6):
            await until(lambda n=n: len(running.entries()) > n * 50)
            network.of("record").cut_after = b"commit\0"
            await daemon.wait_for("database.lost", count=n, seconds=NOTICED_S)
            await daemon.wait_for("database.restored", count=n)
        await delivered(direct, 2000)
        await checker.check(direct, running.entries(), repeats_max=5 * UNRECORDED_MAX)
    assert not daemon.noise


async def test_connections_are_reset_again_and_again(network, direct, start, receiving, until, delivered):
    daemon = await start(network.url, **VIGILANT)
    async with receiving(direct) as running:
        await emit(direct, 2000)
        for n in range(1, 6):
            await until(lambda n=n: len(running.entries()) > n * 100)
            for link in network.links:
                link.cut()
            await daemon.wait_for("database.lost", count=n, seconds=NOTICED_S)
            await daemon.wait_for("database.restored", count=n)
        await delivered(direct, 2000)
        await checker.check(direct, running.entries(), repeats_max=5 * UNRECORDED_MAX)
    assert not daemon.noise
