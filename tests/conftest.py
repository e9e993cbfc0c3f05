"""What all tests share: one loop, a Postgres, a fresh database for each test that asks, an HTTP receiver.

Postgres comes from the embedded wheel, or from PGHOOKD_TEST_DATABASE_URL (a superuser's URI) where it is set.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import hypothesis
import pytest
import pytest_asyncio
import uvloop

from pghookd.cli.devtools import embedded_postgres
from pghookd.postgres import migrate
from support.receiver import Receiver

SLOW_S = 2.0  # a test that takes longer needs the marker `slow`
FOR_TESTS = {"max_connections": "200", "max_prepared_transactions": "10"}

# No deadline: a loaded machine is no bug. Few examples, so that the core's tests stay under a second;
# PGHOOKD_TEST_PROFILE set to `thorough` tries a thousand, as CI does.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=12)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("PGHOOKD_TEST_PROFILE", "quick"))

_numbers = itertools.count(1)


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


def pytest_terminal_summary(terminalreporter):
    """List the tests without the marker `slow` that took long; a busy machine may be the cause."""
    took = {
        report.nodeid: report.duration
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call" and "slow" not in report.keywords
    }
    unmarked = sorted((test for test, took_s in took.items() if took_s > SLOW_S), key=took.get, reverse=True)
    if unmarked:
        terminalreporter.section(f"over {SLOW_S:.0f} s without the marker `slow`")
        for test in unmarked:
            terminalreporter.line(f"{took[test]:.1f}s {test}")


PREFIX = "pghookd-test-"


def _folder():
    made = Path(tempfile.mkdtemp(prefix=PREFIX))  # short, since a socket lies in it
    (made / "owner").write_text(str(os.getpid()))
    return made


def _sweep():
    """Remove the servers of test runs that were killed."""
    for owner in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/owner"):
        try:
            os.kill(int(owner.read_text()), 0)
        except (ProcessLookupError, ValueError):
            embedded_postgres.remove(embedded_postgres.EmbeddedServer(owner.parent))
        except (PermissionError, FileNotFoundError):
            continue  # somebody else's, or just ended


def with_database(url, name):
    """Return the URL of another database of the same server."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@pytest.fixture(scope="session")
def server():
    """Return the session's embedded server, or None where PGHOOKD_TEST_DATABASE_URL names another one.

    It is fast and would not survive a crash of the machine: tests that crash Postgres take `own_server`.
    """
    if os.environ.get("PGHOOKD_TEST_DATABASE_URL"):
        yield None
        return
    _sweep()
    made = embedded_postgres.EmbeddedServer(
        _folder(), options={**FOR_TESTS, **embedded_postgres.FAST_AND_LOOSE}
    )
    made.start()
    yield made
    embedded_postgres.remove(made)


@pytest.fixture(scope="session")
def server_url(server):
    """Return the URL by which databases are made: the server's first database, a superuser."""
    return os.environ["PGHOOKD_TEST_DATABASE_URL"] if server is None else server.url()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def admin(server_url):
    connection = await asyncpg.connect(server_url)
    yield connection
    await connection.close()


async def _make(admin, name, template="template0"):
    await admin.execute(f'drop database if exists "{name}" with (force)')
    await admin.execute(f'create database "{name}" template "{template}"')


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def template(admin, server_url):
    """Return the name of a database with the migrated schema; others are copied from it."""
    name = f"pghookd_template_{os.getpid()}"
    await _make(admin, name)
    await migrate.migrate(with_database(server_url, name))
    yield name
    await admin.execute(f'drop database if exists "{name}" with (force)')


@pytest_asyncio.fixture(loop_scope="session")
async def database_url(admin, server_url):
    """Return the URL of a fresh empty database."""
    name = f"pghookd_test_{os.getpid()}_{next(_numbers)}"
    await _make(admin, name)
    yield with_database(server_url, name)
    await admin.execute(f'drop database if exists "{name}" with (force)')


@pytest_asyncio.fixture(loop_scope="session")
async def database(admin, server_url, template):
    """Return the URL of a fresh database with the migrated schema."""
    name = f"pghookd_test_{os.getpid()}_{next(_numbers)}"
    await _make(admin, name, template)
    yield with_database(server_url, name)
    await admin.execute(f'drop database if exists "{name}" with (force)')


@pytest_asyncio.fixture(loop_scope="session")
async def connect():
    """Return `await connect(url, **options)`: plain asyncpg connections, ended with the test."""
    opened = []

    async def open_one(url, **options):
        opened.append(await asyncpg.connect(url, **options))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.terminate()


@pytest.fixture
def make_server():
    """Return `make_server(**options)`: servers of the test's own, durable, started; deleted with the test.

    It may be stopped (`stop("immediate")` is a crash), started again, copied; see cli/devtools/embedded_postgres.py.
    """
    made = []

    def make(*, tcp_port=None, **options):
        made.append(
            embedded_postgres.EmbeddedServer(_folder(), options={**FOR_TESTS, **options}, tcp_port=tcp_port)
        )
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        embedded_postgres.remove(each)


@pytest.fixture
def own_server(make_server):
    """Return one durable server of the test's own."""
    return make_server()


@pytest_asyncio.fixture(loop_scope="session")
async def receiver():
    """Return a running HTTP receiver on 127.0.0.1; see tests/support/receiver.py."""
    async with Receiver() as running:
        yield running


@pytest.fixture
def until():
    """Return `await until(condition, seconds)`: waits until a condition (plain or async) holds, or fails."""

    async def wait(condition, seconds=10.0):
        async with asyncio.timeout(seconds):
            while True:
                held = condition()
                if asyncio.iscoroutine(held):
                    held = await held
                if held:
                    return held
                await asyncio.sleep(0.005)

    return wait
