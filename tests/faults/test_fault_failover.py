"""The server goes and its standby is promoted; the daemon has both in its connection string and finds the new one."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from pghookd.postgres import migrate
from support import checker, crew
from support.daemon import BOUNDED, UNRECORDED_MAX
from support.events import emit

SETTINGS = {**BOUNDED, "database_heartbeat_s": 0.5}
CAUGHT_UP = "select count(*) > 0 and bool_and(replay_lsn >= pg_current_wal_lsn()) from pg_stat_replication"


@pytest.mark.short
async def test_failover_through_a_string_of_several_hosts(own_server, start, receiving, until, delivered):
    """The standby missed nothing, as with synchronous replication."""
    await migrate.migrate(own_server.url())
    old = await asyncpg.connect(own_server.url())
    async with receiving(old) as running:
        with crew.standby_of(own_server) as standby:
            hosts = f"host={own_server.sockets},{standby.sockets}&port={own_server.port},{standby.port}"
            daemon = await start(f"postgresql://postgres@/postgres?{hosts}", **SETTINGS)
            await emit(old, 2000)
            await until(lambda: len(running.entries()) > 300)
            daemon.freeze()  # so that the standby can catch up with all that it did
            await until(lambda: old.fetchval(CAUGHT_UP), 20)
            old.terminate()
            await asyncio.to_thread(own_server.stop, "immediate")
            daemon.thaw()
            await daemon.wait_for("database.lost")
            await asyncio.to_thread(standby.run, "pg_ctl", "promote", "-w", "-D", standby.data)
            await daemon.wait_for("database.restored")
            new = await asyncpg.connect(standby.url())
            await emit(new, 100)
            await delivered(new, 2100)
            await checker.check(new, running.entries(), repeats_max=UNRECORDED_MAX)
            await new.close()
            await daemon.kill()
    assert not daemon.noise
