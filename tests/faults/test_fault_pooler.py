"""PgBouncer in transaction mode on the path: refused by the daemon in clear words, fine for producers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from support import checker

INSERT = "insert into webhooks.events (site_id, type, payload) values ('s', 'order_created', '{}')"
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="no pgbouncer here: apt-get install pgbouncer")


def _free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


IGNORED = (
    "ignore_startup_parameters = extra_float_digits,search_path,statement_timeout,lock_timeout,"
    "idle_session_timeout,idle_in_transaction_session_timeout,plan_cache_mode,enable_seqscan,"
    "enable_bitmapscan,enable_sort,jit,row_security,tcp_keepalives_idle,tcp_keepalives_interval,tcp_keepalives_count,"
    "tcp_user_timeout,client_connection_check_interval\n"
)


def _configured(folder, sockets, port, more):
    (folder / "users").write_text('"postgres" ""\n')
    file = folder / "pgbouncer.ini"
    file.write_text(
        f"[databases]\npostgres = host={sockets} port=5432 user=postgres\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
        f"auth_file = {folder}/users\npool_mode = transaction\ndefault_pool_size = 3\n{more}"
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


@contextlib.asynccontextmanager
async def _pooling(own_server, until, more):
    """Run a pooler before `own_server`; yields its URL."""
    folder = Path(tempfile.mkdtemp(prefix="pghookd-pooler-"))
    port = _free_port()
    user = ["-u", own_server.sockets.owner()] if os.geteuid() == 0 else []  # it refuses to run as root
    file = _configured(folder, own_server.sockets, port, more)
    process = await asyncio.create_subprocess_exec(PGBOUNCER, "-q", *user, file)
    await until(lambda: _answers(port))
    yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    process.terminate()
    await process.wait()
    shutil.rmtree(folder)


@pytest_asyncio.fixture(loop_scope="session")
async def pooler(own_server, until):
    """Return the URL of a pooler that ignores what it does not know."""
    async with _pooling(own_server, until, IGNORED) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="session")
async def stock_pooler(own_server, until):
    """Return the URL of a pooler as it is installed."""
    async with _pooling(own_server, until, "") as url:
        yield url


async def _check(url):
    """Run `pghookd check`; return its status and everything that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pghookd", "check"),
        env={**os.environ, "PGHOOKD_DATABASE_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    return process.returncode, told.decode()


def _is_one_sentence(told):
    """Return True if the pooler is named once, without a traceback and without a library's advice."""
    strange = ("Traceback", "statement_cache_size", "startup parameter", "__asyncpg")
    return told.count("transaction pooler") == 1 and not any(word in told for word in strange)


@pytest.mark.short
@pytest.mark.usefixtures("direct")
async def test_the_daemon_refuses_a_transaction_pooler(pooler, start):
    for _ in range(3):  # from the second on, statements of the one before lie in the pool
        daemon = await start(pooler, ready="")
        assert await daemon.ended(30) == 78
        assert _is_one_sentence(daemon.told())
        assert not daemon.noise


@pytest.mark.usefixtures("direct")
async def test_the_daemon_refuses_a_pooler_as_it_is_installed(stock_pooler, start):
    daemon = await start(stock_pooler, ready="")
    assert await daemon.ended(30) == 78
    assert _is_one_sentence(daemon.told())
    assert not daemon.noise


@pytest.mark.usefixtures("direct")
async def test_check_names_a_transaction_pooler(pooler):
    for _ in range(3):
        status, told = await _check(pooler)
        assert (status, _is_one_sentence(told)) == (78, True), told


@pytest.mark.usefixtures("direct")
async def test_check_names_a_pooler_as_it_is_installed(stock_pooler):
    status, told = await _check(stock_pooler)
    assert (status, _is_one_sentence(told)) == (78, True), told


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
