"""Postgres itself is in trouble: no connections left, locks held, statements cancelled, read-only, its disk full."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

import asyncpg
import pytest

from pghookd.cli.devtools import embedded_postgres
from pghookd.postgres import migrate
from support import checker
from support.daemon import UNRECORDED_MAX, VIGILANT
from support.events import emit

NAMES = ("read", "record", "work", "tend", "care", "bell", "mail")
DISK_MB = 96


# No connections left ------------------------------------------------------------------------------------------


class Greedy:
    """Takes every connection that becomes free, until `end`."""

    def __init__(self, url):
        self._url = url
        self._held = []
        self.refused = 0

    async def __aenter__(self):
        self._task = asyncio.create_task(self._take())
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.wait({self._task})
        for each in self._held:
            each.terminate()

    async def _take(self):
        while True:
            try:
                self._held.append(await asyncpg.connect(self._url))
            except asyncpg.TooManyConnectionsError:
                self.refused += 1
                await asyncio.sleep(0.002)


async def test_too_many_connections_while_running(make_server, start, receiving, until, delivered):
    server = make_server(max_connections="20", superuser_reserved_connections="0")
    await migrate.migrate(server.url())
    db = await asyncpg.connect(server.url())
    async with receiving(db) as running:
        daemon = await start(server.url(), **VIGILANT)
        await emit(db, 2000)
        await until(lambda: len(running.entries()) > 300)
        async with Greedy(server.url()) as greedy:
            await until(lambda: greedy.refused)
            await db.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'pghookd/read'"
            )
            await daemon.wait_for("database.lost", reason="too many clients")
        await daemon.wait_for("database.restored")
        await delivered(db, 2000)
        await checker.check(db, running.entries(), repeats_max=UNRECORDED_MAX)
    await db.close()
    assert not daemon.noise


# Locks and statements -----------------------------------------------------------------------------------------


TABLES = ("events", "attempts", "endpoints", "backlog", "dead", "shards", "sites", "incidents")
MOST = [pytest.param(name, marks=pytest.mark.short) if name == "incidents" else name for name in TABLES]
HELD_S = 6.0  # three times as long as the daemon waits for a lock


@contextlib.asynccontextmanager
async def holding(url, table):
    """Hold what a migration holds while it changes a table."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute(f"lock webhooks.{table} in access exclusive mode")
            yield connection
    finally:
        await connection.close()


@pytest.mark.parametrize("table", MOST)
async def test_a_migration_holds_a_lock_while_running(
    own_server, direct, start, receiving, until, delivered, table
):
    daemon = await start(own_server.url(), **VIGILANT)
    async with receiving(direct, "answers:lively") as running:
        await emit(direct, 2000)
        await until(lambda: len(running.entries()) > 100)
        async with holding(own_server.url(), table):
            await asyncio.sleep(HELD_S)
        await delivered(direct, 2000)
        lost = len(daemon.said("database.lost"))
        await checker.check(direct, running.entries(), repeats_max=lost * UNRECORDED_MAX)
    assert not daemon.noise


@pytest.mark.parametrize("table", TABLES)
async def test_a_migration_holds_a_lock_at_the_start(own_server, direct, start, receiving, delivered, table):
    async with receiving(direct) as running:
        await emit(direct, 100)
        async with holding(own_server.url(), table):
            daemon = await start(own_server.url(), ready="", **VIGILANT)
            await daemon.wait_for("daemon.started")
            await asyncio.sleep(HELD_S)
        await delivered(direct, 100)
        await checker.check(direct, running.entries(), repeats_max=UNRECORDED_MAX)
    assert not daemon.noise


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bell"])
async def test_statements_are_cancelled(own_server, direct, start, receiving, until, delivered, name):
    """As a timeout of the server's does it (57014), again and again, wherever that connection is."""
    daemon = await start(own_server.url(), **VIGILANT)
    sql = (
        "select pg_cancel_backend(pid) from pg_stat_activity where application_name = $1 and state = 'active'"
    )
    async with receiving(direct, "answers:lively") as running:
        await emit(direct, 3000)
        await until(lambda: len(running.entries()) > 100)
        for n in range(2, 12):
            await until(lambda n=n: len(running.entries()) > n * 100, 30)
            for _ in range(50):
                await direct.execute(sql, f"pghookd/{name}")
        await delivered(direct, 3000)
        lost = len(daemon.said("database.lost"))
        await checker.check(direct, running.entries(), repeats_max=lost * UNRECORDED_MAX)
    assert not daemon.noise


# Read-only ----------------------------------------------------------------------------------------------------


@pytest.mark.short
async def test_read_only_for_a_while(own_server, direct, start, receiving, until, delivered):
    daemon = await start(own_server.url(), **VIGILANT)
    async with receiving(direct) as running:
        await emit(direct, 2000)
        await until(lambda: len(running.entries()) > 100)
        await direct.execute("alter system set default_transaction_read_only = on")
        await direct.execute("select pg_reload_conf()")
        await daemon.wait_for("database.refused", error="25006")
        await direct.execute("set default_transaction_read_only = off")
        await direct.execute("alter system reset default_transaction_read_only")
        await direct.execute("select pg_reload_conf()")
        await delivered(direct, 2000)
        lost = len(daemon.said("database.lost"))
        await checker.check(direct, running.entries(), repeats_max=lost * UNRECORDED_MAX)
    assert not daemon.noise


async def test_read_only_at_the_start(own_server, direct, start, receiving, delivered):
    await direct.execute("alter system set default_transaction_read_only = on")
    await direct.execute("select pg_reload_conf()")
    daemon = await start(own_server.url(), ready="", **VIGILANT)
    await daemon.wait_for("database.lost")
    await direct.execute("set default_transaction_read_only = off")
    await direct.execute("alter system reset default_transaction_read_only")
    await direct.execute("select pg_reload_conf()")
    await daemon.ready()
    async with receiving(direct) as running:
        await emit(direct, 10)
        await delivered(direct, 10)
        await checker.check(direct, running.entries(), repeats_max=0)
    assert not daemon.noise


# Disk full ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk():
    """Return a folder on a disk of its own of DISK_MB megabytes."""
    folder = Path(tempfile.mkdtemp(prefix="pghookd-disk-"))
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "none", folder], check=False
    ).returncode:
        folder.rmdir()
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
    folder.rmdir()


@pytest.fixture
def server_on_small_disk(small_disk):
    options = {"max_wal_size": "32MB", "min_wal_size": "32MB", "wal_keep_size": "0", "max_connections": "30"}
    made = embedded_postgres.EmbeddedServer(small_disk / "server", options=options)
    made.start()
    yield made
    made.stop("immediate")


def _fill(folder):
    """Take all that is left of a disk."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(folder).f_bavail == 0
    return ballast


@pytest.mark.short
async def test_the_servers_disk_is_full(server_on_small_disk, small_disk, start, receiving, until, delivered):
    server = server_on_small_disk
    await migrate.migrate(server.url())
    db = await asyncpg.connect(server.url())
    async with receiving(db) as running:
        daemon = await start(server.url(), **VIGILANT)
        await emit(db, 4000)
        await until(lambda: len(running.entries()) > 200)
        ballast = await asyncio.to_thread(_fill, small_disk)
        await daemon.wait_for("database.refused", error="53100", seconds=60)
        await asyncio.sleep(4)
        sent = len(running.entries())
        await asyncio.sleep(3)
        assert len(running.entries()) == sent < 4000, "what cannot be recorded is not sent"
        ballast.unlink()
        await delivered(db, 4000, 60)
        lost = len(daemon.said("database.lost"))
        await checker.check(db, running.entries(), repeats_max=lost * UNRECORDED_MAX)
    await db.close()
    assert not daemon.noise
