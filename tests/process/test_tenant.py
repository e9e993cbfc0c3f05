"""No tenant stops another: each attack of attacks.py against a real daemon, while a healthy site is watched."""

from __future__ import annotations

import asyncio
import math
import statistics
import sys
import time
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from support import SUPPORT
from support.attacks import ATTACKS, Tenant, under_attack
from support.daemon import Daemon
from support.events import emit
from support.receiver import Receiver, Response

EVENTS, EVERY_S = 120, 0.05  # of the healthy site, while it is watched
TIMES_ALONE, MEDIAN_S, P99_S = 3.0, 0.1, 1.0
LATE_S = 10.0  # an event not arrived by then is lost
MEMORY_MB = 300


@pytest_asyncio.fixture(loop_scope="session")
async def hostile():
    """Return the ports of a hostile receiver: answering, silent."""
    script = SUPPORT / "hostile_receiver.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    yield [int(port) for port in (await process.stdout.readline()).split()]
    process.kill()
    await process.wait()


@pytest_asyncio.fixture(loop_scope="session")
async def healthy():
    """Return the healthy site's receiver; other paths of its host are slow."""
    async with Receiver(lambda _: Response(delay_s=28.0)) as receiver:
        receiver.paths["/good"] = lambda _: Response()
        yield receiver


async def watch(session, receiver):
    """Write events of the healthy site and return for each how many seconds after its commit it arrived."""
    written = {}
    for n in range(EVENTS):
        due = time.monotonic() + EVERY_S
        event_id = await emit(session, site="good", payload=f'{{"n": {n}}}')
        written[event_id] = time.monotonic()
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    deadline = time.monotonic() + LATE_S
    arrived = {}
    while len(arrived) < EVENTS and time.monotonic() < deadline:
        arrived = {each.event_id: each.arrived for each in receiver.of("/good") if each.event_id in written}
        await asyncio.sleep(0.02)
    assert len(arrived) == EVENTS, f"{EVENTS - len(arrived)} of {EVENTS} events did not arrive"
    return sorted(max(0.0, arrived[event_id] - at) for event_id, at in written.items())


def p99(seconds):
    return seconds[math.ceil(0.99 * len(seconds)) - 1]


def memory_mb(pid):
    """Return the most that the process has ever held."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) // 1024


_alone: list[float] = []


async def alone(session, receiver):
    """Return the healthy site's median when nothing else happens; measured once."""
    if not _alone:
        await watch(session, receiver)  # warm
        _alone.append(statistics.median(await watch(session, receiver)))
    return _alone[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
async def test_others_go_on_under(name, database, db, hostile, healthy, record_property):
    await db.execute("insert into webhooks.sites (site_id, name) values ('good', 'Good'), ('evil', 'Evil')")
    await db.execute("update webhooks.sites set owner_email = site_id || '@shops.example'")
    await db.execute("update webhooks.sites set endpoints_max = null where site_id = 'evil'")
    await db.execute(
        "insert into webhooks.endpoints (site_id, url) values ('good', $1)", healthy.url("/good")
    )
    connection = await asyncpg.connect(database)
    tenant = Tenant(connection, *hostile, healthy.url(""))
    attack = ATTACKS[name]
    daemon = Daemon(database, RETRY_SCHEDULE="5s,5m,30m,2h", EGRESS_PORTS="1-65535")
    try:
        if not _alone or not attack.cold:
            await daemon.start()
            await daemon.ready()
            median_alone = await alone(db, healthy)
        if attack.cold and daemon.lines:
            await daemon.kill()
        async with under_attack(attack, tenant) as strike:
            if attack.cold:
                daemon = Daemon(database, RETRY_SCHEDULE="5s,5m,30m,2h", EGRESS_PORTS="1-65535")
                await daemon.start()
                await daemon.ready()
                median_alone = _alone[0]
            striking = asyncio.create_task(strike())
            found = await watch(db, healthy)
            held_mb = memory_mb(daemon.pid)
            if striking.done():
                striking.result()
            striking.cancel()
            await asyncio.wait([striking])
    finally:
        await daemon.kill()
        connection.terminate()
    median = statistics.median(found)
    line = f"median {median * 1e3:.0f} ms (alone {median_alone * 1e3:.1f}), p99 {p99(found) * 1e3:.0f} ms, {held_mb} MB"
    record_property("latency", line)
    print(name, line)
    assert median <= max(TIMES_ALONE * median_alone, MEDIAN_S), line
    assert p99(found) <= P99_S, line
    assert held_mb < MEMORY_MB, line
