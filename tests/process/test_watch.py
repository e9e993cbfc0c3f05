"""Connections that are cut without a word: the daemon notices by itself, whatever it was doing, and recovers.

A proxy simulates the network. Muted it keeps every connection open and passes nothing on, as a partition does;
the kernel acknowledges all the same, so that no keepalive can tell.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

import asyncpg
import pytest

from pghookd.postgres import migrate
from support import checker
from support.daemon import UNRECORDED_MAX, VIGILANT, ReceiverProcess
from support.events import emit

DELIVERED = "select count(distinct event_id) from webhooks.attempts where outcome = 'delivered'"
SETTINGS = {
    **VIGILANT,
    "delivery_timeout_s": 2,
    "delivery_connect_timeout_s": 2,
    "delivery_grace_s": 3,
}
NOTICED_S = 15.0  # a statement of 8 s at most, or a ping of 5 s, and a loaded machine


class Network:
    """A TCP proxy before a server's Unix socket. `mute()`: connections stay open, and nothing passes."""

    def __init__(self, sockets):
        self._path = f"{sockets}/.s.PGSQL.5432"
        self._open = []
        self._passing = asyncio.Event()
        self._passing.set()
        self._tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def mute(self):
        self._passing.clear()

    def heal(self):
        """Pass new connections from now on; old ones stay cut, and their server gets no notice."""
        self._passing = asyncio.Event()
        self._passing.set()

    async def _connected(self, reader, writer):
        passing = self._passing
        self._open.append(writer)
        self._tasks.add(asyncio.current_task())
        with contextlib.suppress(asyncio.CancelledError):  # the test is over
            await passing.wait()
            await self._join(reader, writer, passing)

    async def _join(self, reader, writer, passing):
        to_reader, to_writer = await asyncio.open_unix_connection(self._path)
        self._open.append(to_writer)
        with contextlib.suppress(OSError):
            await asyncio.gather(
                self._pass(reader, to_writer, passing), self._pass(to_reader, writer, passing)
            )

    async def _pass(self, reader, writer, passing):
        while data := await reader.read(65536):
            await passing.wait()
            writer.write(data)
            await writer.drain()
        await passing.wait()
        writer.close()


@pytest.fixture
async def network(own_server):
    await migrate.migrate(own_server.url())
    async with Network(own_server.sockets) as made:
        yield made


@pytest.fixture
def through(network):
    return f"postgresql://postgres@127.0.0.1:{network.port}/postgres"


@pytest.fixture
async def direct(own_server):
    connection = await asyncpg.connect(own_server.url())
    yield connection
    await connection.close()


@pytest.fixture
async def receiving(direct, tmp_path):
    async with ReceiverProcess(tmp_path / "received.jsonl", "answers:slow") as running:
        await direct.execute("insert into webhooks.sites (site_id, name) values ('s', 'a site')")
        await direct.execute(
            "insert into webhooks.endpoints (site_id, url) values ('s', $1)", running.url("/")
        )
        yield running


async def _delivered(db, count):
    return count == await db.fetchval(DELIVERED)


@pytest.mark.slow
async def test_a_partition_while_busy_is_noticed_and_healed(
    network, through, direct, start, receiving, until
):
    daemon = await start(through, **SETTINGS)
    await emit(direct, 3000)
    await until(lambda: len(receiving.entries()) > 300)
    network.mute()
    await daemon.wait_for("database.lost", seconds=NOTICED_S)
    sent = len(receiving.entries())
    network.heal()
    await daemon.wait_for("database.restored")
    await until(lambda: _delivered(direct, 3000), 40)
    assert sent < 1500
    await checker.check(direct, receiving.entries(), repeats_max=UNRECORDED_MAX)
    assert not daemon.noise


@pytest.mark.slow
async def test_a_partition_while_asleep_is_noticed_and_healed(
    network, through, direct, start, receiving, until
):
    daemon = await start(through, log_level="debug", **SETTINGS)
    await daemon.wait_for("bell.slept")
    network.mute()
    await daemon.wait_for("database.lost", seconds=NOTICED_S)
    await emit(direct, 10)
    network.heal()
    await until(lambda: _delivered(direct, 10), 20)
    await checker.check(direct, receiving.entries(), repeats_max=0)


@pytest.mark.slow
async def test_while_cut_off_nothing_is_sent_and_another_instance_takes_over(
    network, through, own_server, direct, start, receiving, until
):
    await start(through, delivery_user_agent="cut off", **SETTINGS)
    second = await start(own_server.url(), ready="standing by", delivery_user_agent="second", **SETTINGS)
    await emit(direct, 3000)
    await until(lambda: len(receiving.entries()) > 300)
    network.mute()
    await second.ready("reading the log", seconds=SETTINGS["database_lease_s"] + 4)
    taken = time.time()
    await until(lambda: _delivered(direct, 3000), 40)
    late = [e for e in receiving.entries() if e["user-agent"] == "cut off" and e["wall"] > taken]
    assert not late
    await checker.check(direct, receiving.entries(), repeats_max=UNRECORDED_MAX)


@pytest.mark.slow
async def test_a_standby_that_was_cut_off_takes_over_once_the_network_is_back(
    network, through, own_server, direct, start, receiving, until
):
    first = await start(own_server.url(), **SETTINGS)
    second = await start(through, ready="standing by", **SETTINGS)
    network.mute()
    await second.wait_for("database.lost", seconds=NOTICED_S)
    network.heal()
    await second.wait_for("database.restored")
    await first.kill()
    await second.ready("reading the log")
    await emit(direct, 10)
    await until(lambda: _delivered(direct, 10))
    assert len(receiving.entries()) == 10


@pytest.mark.slow
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
async def test_sigterm_while_cut_off_ends_within_the_grace(
    network, through, direct, start, receiving, until, busy
):
    daemon = await start(through, **SETTINGS)
    await emit(direct, 3000 if busy else 1)
    await until(lambda: len(receiving.entries()) > (300 if busy else 0))
    network.mute()
    daemon.stop()
    assert await daemon.ended(SETTINGS["delivery_grace_s"] + NOTICED_S) == 0
    assert not daemon.noise


@pytest.mark.slow
async def test_every_session_is_pinged_even_while_all_sleeps(database, db, start, until):
    daemon = await start(database, log_level="debug", database_heartbeat_s=0.3, poll_fallback_s=0)
    await daemon.wait_for("bell.slept")
    sql = (
        "select application_name, state_change from pg_stat_activity"
        " where datname = current_database() and application_name like 'pghookd/%'"
    )
    before = dict(await db.fetch(sql))
    assert before.keys() == {
        f"pghookd/{name}" for name in ("read", "record", "work", "tend", "care", "bell", "mail")
    }

    async def all_moved():
        return all(at > before[name] for name, at in await db.fetch(sql))

    await until(all_moved, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["record", "bell"])
async def test_one_backend_that_hangs_is_noticed(own_server, direct, network, start, receiving, until, name):
    """Its connection is open, its server lives, and it answers nothing, perhaps in the middle of a statement.

    The bell's is stopped while the daemon sleeps: while it asks for its key it may wait for a producer for hours.
    """
    daemon = await start(own_server.url(), log_level="debug", **SETTINGS)
    if name == "bell":
        await daemon.wait_for("bell.slept")
    else:
        await emit(direct, 2000)
        await until(lambda: len(receiving.entries()) > 300)
    pid = await direct.fetchval(
        "select pid from pg_stat_activity where application_name = $1", f"pghookd/{name}"
    )
    os.kill(pid, signal.SIGSTOP)
    try:
        await daemon.wait_for("database.lost", seconds=NOTICED_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    await daemon.wait_for("database.restored")
    if name == "bell":
        await emit(direct, 2000)
    await until(lambda: _delivered(direct, 2000), 40)
    await checker.check(direct, receiving.entries(), repeats_max=UNRECORDED_MAX)
