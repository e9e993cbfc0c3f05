"""PgBouncer in transaction mode on the path: refused by the daemon in clear words, fine for producers."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from pathlib import Path

import asyncpg
import checker
import pytest
import pytest_asyncio

INSERT = "insert into webhooks.events (site_id, type, payload) values ('s', 'order_created', '{}')"
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="no pgbouncer here: apt-get install pgbouncer")


def _free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _configured(folder, sockets, port):
    (folder / "users").write_text('"postgres" ""\n')
    file = folder / "pgbouncer.ini"
    file.write_text(
        f"[databases]\npostgres = host={sockets} port=5432 user=postgres\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
        f"auth_file = {folder}/users\npool_mode = transaction\ndefault_pool_size = 3\n"
        "ignore_startup_parameters = extra_float_digits,search_path,statement_timeout,lock_timeout,"
        "idle_session_timeout,idle_in_transaction_session_timeout,plan_cache_mode,enable_seqscan,"
        "enable_bitmapscan,enable_sort,jit,row_security,tcp_keepalives_idle,tcp_keepalives_interval,tcp_keepalives_count,"
        "tcp_user_timeout,client_connection_check_interval\n"
    )
    folder.chmod(0o755)
    return file


async def _answers(port):
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest_asyncio.fixture(loop_scope="session")
async def pooler(own_server, until):
    """Return the URL of a pooler before `own_server`."""
    folder = Path(tempfile.mkdtemp(prefix="pghookd-pooler-"))
    port = _free_port()
    user = ["-u", own_server.sockets.owner()] if os.geteuid() == 0 else []  # it refuses to run as root
    file = _configured(folder, own_server.sockets, port)
    process = await asyncio.create_subprocess_exec(PGBOUNCER, "-q", *user, file)
    await until(lambda: _answers(port))
    yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    process.terminate()
    await process.wait()
    shutil.rmtree(folder)


@pytest.mark.short
@pytest.mark.usefixtures("direct")
async def test_the_daemon_refuses_a_transaction_pooler(pooler, start):
    daemon = await start(pooler, ready="")
    assert await daemon.ended(30) == 78
    assert "transaction pooler" in daemon.told()
    assert not daemon.noise


@pytest.mark.short
async def test_producers_go_through_a_transaction_pooler(
    pooler, own_server, direct, start, receiving, delivered
):
    await start(own_server.url())
    async with receiving(direct) as running:
        producers = [await asyncpg.connect(pooler, statement_cache_size=0) for _ in range(10)]
        for _ in range(10):
            await asyncio.gather(*(each.execute(INSERT) for each in producers))
        await delivered(direct, 100)
        await checker.check(direct, running.entries(), repeats_max=0)
        for each in producers:
            await each.close()
