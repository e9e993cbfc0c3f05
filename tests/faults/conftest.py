"""Shared by the faults: the stories' daemons, receivers and databases, and a network that can be broken.

These tests take minutes and break what they run on, so a plain `pytest` leaves them out: run `pytest tests/faults`.
"""

from __future__ import annotations

import time

import asyncpg
import booted
import installation
import pytest
import pytest_asyncio
from network import Network

from pghookd.postgres import migrate
from support.daemon import ReceiverProcess
from support.fixtures import db, receiver_process, start

__all__ = ["db", "receiver_process", "start"]


def pytest_configure(config):
    """Run them one by one: they take the machine's memory, addresses and processors from each other."""
    config.option.dist = "no"


@pytest_asyncio.fixture(loop_scope="session")
async def network(own_server):
    """Return a network before `own_server`, whose database is migrated."""
    await migrate.migrate(own_server.url())
    async with Network(own_server.sockets) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def direct(own_server, network):
    """Return a connection to `own_server` that does not pass the network."""
    connection = await asyncpg.connect(own_server.url())
    yield connection
    await connection.close()


@pytest.fixture
def receiving(tmp_path):
    """Return `async with receiving(db, script, endpoints)`: a receiver process, and endpoints of site `s` for it."""
    return lambda connection, script="answers:slow", endpoints=1: _Receiving(
        connection, tmp_path / "received.jsonl", script, endpoints
    )


class _Receiving(ReceiverProcess):
    def __init__(self, connection, log, script, endpoints):
        super().__init__(log, script)
        self._connection = connection
        self._endpoints = endpoints

    async def __aenter__(self):
        await super().__aenter__()
        await self._connection.execute("insert into webhooks.sites (site_id, name) values ('s', 'a site')")
        await self._connection.execute(
            "insert into webhooks.endpoints (site_id, url, secret, concurrency)"
            " select 's', $1 || n, webhooks.new_secret(), 100 from generate_series(1, $2::int) n",
            self.url("/"),
            self._endpoints,
        )
        return self


@pytest.fixture
def delivered(until):
    """Return `await delivered(db, count, seconds)`: waits until so many deliveries have succeeded."""

    async def wait(connection, count, seconds=40.0):
        sql = "select count(*) from webhooks.attempts where outcome = 'delivered'"

        async def there():
            return await connection.fetchval(sql) >= count

        await until(there, seconds)

    return wait


@pytest.fixture(scope="module")
def boot(tmp_path_factory):
    """Return `boot(sockets)`: boots a systemd that is ready for the guide, with the socket of the tests' Postgres."""
    made = []

    def start(sockets):
        made.append(booted.Booted(tmp_path_factory.mktemp("booted"), sockets))
        made[-1].boot()
        _wait(lambda: made[-1].state() == "running")
        installation.prepare(made[-1])
        return made[-1]

    yield start
    for each in made:
        each.close()
        _wait(each.gone)


def _wait(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.01)
