"""Which daemon continues, and which holds still: a failover, a pod that restarts, and a copy beside its original."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
import pytest_asyncio

from pghookd.postgres import migrate
from support import crew, elsewhere
from support.daemon import Daemon
from support.events import emit
from support.fault_server import receiving
from support.proxy_server import pump

pytestmark = pytest.mark.slow

DELIVERED = "select count(*) from webhooks.attempts where outcome = 'delivered'"
CAUGHT_UP = "select count(*) > 0 and bool_and(replay_lsn >= pg_current_wal_lsn()) from pg_stat_replication"
SETTINGS = {"database_heartbeat_s": 0.5, "database_lease_s": 3, "poll_fallback_s": 0.5}


@pytest_asyncio.fixture(loop_scope="session")
async def start_on():
    """Return `await start_on(hostname, url)`: a daemon on a machine of that name; killed at the end."""
    started = []

    async def start(hostname, url, **settings):
        daemon = Daemon(url, program=(elsewhere.__file__, hostname), **{**SETTINGS, **settings})
        started.append(daemon)
        return await daemon.start()

    yield start
    for daemon in started:
        await daemon.kill()
        assert not daemon.noise


@pytest_asyncio.fixture(loop_scope="session")
async def make_shop(receiver_process):
    """Return `await make_shop(url)`: makes the schema, a site and its endpoint, and returns a connection."""
    opened = []

    async def make(url):
        await migrate.migrate(url)
        connection = await asyncpg.connect(url)
        opened.append(connection)
        await connection.execute("insert into webhooks.sites (site_id, name) values ('s', 'a site')")
        await connection.execute(
            "insert into webhooks.endpoints (site_id, url) values ('s', $1)", receiver_process.url("/")
        )
        return connection

    yield make
    for connection in opened:
        connection.terminate()


@pytest.fixture
def arrive(receiver_process, until):
    """Return `await arrive(connection)`: waits until each event of that database has been received."""

    async def wait(connection, seconds=20.0):
        count = await connection.fetchval("select count(*) from webhooks.events")

        async def there():
            received = {entry["webhook-id"] for entry in receiver_process.entries()}
            return len(received) >= count and await connection.fetchval(DELIVERED) >= count

        await until(there, seconds)

    return wait


async def test_a_standby_takes_over_when_owner_and_primary_are_lost(
    own_server, start_on, make_shop, arrive, until
):
    """One zone is lost. In the other zone the standby server is promoted, and the standby daemon goes on by itself."""
    old = await make_shop(own_server.url())
    with crew.standby_of(own_server) as promoted:
        owner = await start_on("zone-a", own_server.url())
        await owner.ready()
        hosts = f"host={own_server.sockets},{promoted.sockets}&port={own_server.port},{promoted.port}"
        standby = await start_on("zone-b", f"postgresql://postgres@/postgres?{hosts}")
        await standby.ready("standing by")
        await emit(old, 100)
        await arrive(old)
        await until(lambda: old.fetchval("select count(*) = 2 from webhooks.home"))
        owner.freeze()
        await emit(old, 50)  # which nobody has read yet
        await until(lambda: old.fetchval(CAUGHT_UP))
        old.terminate()
        await asyncio.to_thread(own_server.stop, "immediate")
        await owner.kill()
        await asyncio.to_thread(promoted.run, "pg_ctl", "promote", "-w", "-D", promoted.data)
        await standby.ready("reading the log")
        new = await asyncpg.connect(promoted.url())
        await emit(new, 50)
        await arrive(new)
        assert not standby.said("database.foreign")
        await new.close()
        await standby.kill()


async def test_a_pod_without_a_machine_id_restarts_behind_a_local_proxy(
    make_server, start_on, make_shop, arrive, unused_tcp_port
):
    """Each pod has a name of its own and the same local address: the server, which has not restarted, is the proof."""
    server = make_server(tcp_port=unused_tcp_port)
    shop = await make_shop(server.url())

    async def visit(proxied):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        there = asyncio.create_task(pump(proxied.reader, writer))
        try:
            await pump(reader, proxied.writer)
        finally:
            there.cancel()
            writer.transport.abort()

    async with receiving(visit) as proxy:
        url = server.tcp_url().replace(f":{server.port}/", f":{proxy.port}/")
        for number in range(1, 4):
            pod = await start_on(f"pod-{number}", url)
            await emit(shop, 20)
            await pod.ready()
            await arrive(shop)
            assert not pod.said("database.foreign")
            if number == 1:
                await pod.kill()
            else:
                pod.stop()
                assert await pod.ended() == 0
    hosts = await shop.fetchval(
        "select count(distinct host) from webhooks.home where server like '127.0.0.1:%'"
    )
    assert hosts == 3


async def test_a_base_backup_beside_its_living_original_holds_still(
    own_server, start_on, make_shop, arrive, receiver_process, until
):
    """Staging runs on the machine of production: it sends nothing, before and after production was restarted."""
    shop = await make_shop(own_server.url())
    original = await start_on("the machine", own_server.url())
    await original.ready()
    await emit(shop, 20)
    await arrive(shop)
    with crew.standby_of(own_server) as copied:
        await asyncio.to_thread(copied.stop)
        (copied.data / "standby.signal").unlink()
        await asyncio.to_thread(copied.start)
        staging = await asyncpg.connect(copied.url())
        await emit(staging, 5)
        copy = await start_on("the machine", copied.url())
        await copy.wait_for("database.foreign", reason="the same database still takes events at")
        await copy.ready("holding still")
        await emit(shop, 20)
        await arrive(shop)
        shop.terminate()
        await asyncio.to_thread(own_server.stop)
        await copy.wait_for("database.foreign", reason="which is only silent now")
        await asyncio.to_thread(own_server.start)
        shop = await asyncpg.connect(own_server.url())
        await emit(shop, 20)
        await arrive(shop)
        assert not original.said("database.foreign")
        assert await staging.fetchval(DELIVERED) <= 20
        assert len({entry["webhook-id"] for entry in receiver_process.entries()}) == 60
        assert not copy.said("delivery.attempted")
        await shop.close()
        await staging.close()
        await copy.kill()
