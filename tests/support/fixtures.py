"""Fixtures of the stories and the faults: daemons and receivers as processes that end with the test."""

from __future__ import annotations

import json
import re

import asyncpg
import pytest_asyncio

from support.daemon import Daemon, ReceiverProcess

# Whatever a daemon does in whatever story, it says no secret, neither in the clear nor encrypted.
SECRET = re.compile(r"whs(ec|k)_[A-Za-z0-9+/]{8}|enc:v1:\w+:[A-Za-z0-9+/]{8}|PRIVATE KEY")


@pytest_asyncio.fixture(loop_scope="session")
async def start():
    """Return `await start(url, **settings)`: a daemon, ready unless `ready=False`; killed at the end."""
    started = []

    async def start_one(url, *, ready="reading the log", environ=None, **settings):
        daemon = Daemon(url, environ=environ, **settings)
        started.append(daemon)
        await daemon.start()
        if ready:
            await daemon.ready(ready)
        return daemon

    yield start_one
    for daemon in started:
        await daemon.kill()
        told = [json.dumps(line) for line in daemon.lines] + daemon.noise
        sabotaged = daemon.program != Daemon.PROGRAM
        assert sabotaged or not [line for line in told if SECRET.search(line)], "a secret was said"


@pytest_asyncio.fixture(loop_scope="session")
async def receiver_process(tmp_path):
    """Return a receiver that is a process of its own and answers 200."""
    async with ReceiverProcess(tmp_path / "received.jsonl") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def db(database):
    """Return a plain connection to `database`."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()
