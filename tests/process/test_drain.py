"""How the daemon ends: it drains within its grace, records the requests in flight, and notifies systemd."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import time

import pytest

from pghookd.postgres import migrate
from support import checker
from support.daemon import ReceiverProcess
from support.events import emit
from support.receiver import Response

PROMPT_S = 3.0


async def _endpoint(db, url, **columns):
    await db.execute("insert into webhooks.sites (site_id, name) values ('s', 'a site')")
    names = "".join(f", {name}" for name in columns)
    values = "".join(f", {value}" for value in columns.values())
    await db.execute(f"insert into webhooks.endpoints (site_id, url{names}) values ('s', $1{values})", url)


def _seen(socket, line):
    return [message for message in socket.messages() if line in message]


@pytest.mark.slow
async def test_sigterm_lets_requests_in_flight_end_and_nothing_comes_twice(
    db, database, start, tmp_path, until, notify_socket
):
    async with ReceiverProcess(tmp_path / "received.jsonl", "answers:second") as receiving:
        await _endpoint(db, receiving.url("/"), concurrency=20)
        environ = {"NOTIFY_SOCKET": str(notify_socket.path)}
        daemon = await start(database, environ=environ)
        ready = await until(lambda: _seen(notify_socket, "READY=1"))
        assert ready[0][1].startswith("STATUS=reading the log")
        await emit(db, 12)
        # The receiver decides at once and answers after a second, so they are in flight now.
        await until(lambda: len(receiving.entries()) >= 6, 20)
        daemon.stop()
        await until(lambda: _seen(notify_socket, "STOPPING=1"), 1)
        assert await daemon.ended() == 0
        assert not daemon.noise
        events = [line["event"] for line in daemon.lines]
        assert events.index("daemon.draining") < events.index("daemon.stopped")
        arrived = len(receiving.entries())
        assert await db.fetchval("select count(*) from webhooks.attempts where status = 200") == arrived < 12
        await start(database)
        await until(lambda: db.fetchval("select count(*) = 12 from webhooks.attempts"), 20)
        found = await checker.check(db, receiving.entries(), repeats_max=0)
        assert found.received == 12


@pytest.mark.slow
async def test_many_in_flight_and_a_busy_log_drain_without_a_repeat(db, database, start, tmp_path, until):
    async with ReceiverProcess(tmp_path / "received.jsonl", "answers:lively") as receiving:
        await _endpoint(db, receiving.url("/"), concurrency=100)
        await emit(db, 4000)
        for n in range(1, 4):
            daemon = await start(database)
            await until(lambda n=n: len(receiving.entries()) >= n * 700, 30)
            daemon.stop()
            assert await daemon.ended() == 0
            assert not daemon.noise
        await start(database)
        await until(
            lambda: db.fetchval("select count(*) = 4000 from webhooks.attempts where outcome = 'delivered'"),
            30,
        )
        await checker.check(db, receiving.entries(), repeats_max=0)


@pytest.mark.slow
async def test_the_grace_is_bounded_and_what_hangs_is_sent_again(db, database, start, receiver, until):
    receiver.script = lambda _request: Response(delay_s=60)
    await _endpoint(db, receiver.url("/"), timeout_s=30)
    settings = {"delivery_timeout_s": 1, "delivery_connect_timeout_s": 1, "delivery_grace_s": 1.5}
    daemon = await start(database, **settings)
    await emit(db)
    await receiver.wait_for(1)
    daemon.stop()
    asked = time.monotonic()
    assert await daemon.ended() == 0
    assert 1.0 < time.monotonic() - asked < 1.5 + PROMPT_S
    assert daemon.said("shard.lost", in_time=False)
    assert not daemon.noise
    receiver.script = lambda _request: 200
    await start(database)
    await until(lambda: db.fetchval("select count(*) from webhooks.attempts where outcome = 'delivered'"))
    first, second = receiver.requests
    assert (first.attempt, first.webhook_id, first.body) == (second.attempt, second.webhook_id, second.body)
    assert await db.fetchval("select array_agg(attempt) from webhooks.attempts") == [1]


@pytest.mark.slow
async def test_a_second_signal_changes_nothing(db, database, start, receiver):
    answer = asyncio.Event()

    async def when_told(_request):
        await answer.wait()
        return 200

    receiver.script = when_told
    await _endpoint(db, receiver.url("/"))
    daemon = await start(database)
    await emit(db, 2)
    await receiver.wait_for(2)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        daemon.signal(number)
        await daemon.wait_for("daemon.draining")
    assert daemon.running
    answer.set()
    assert await daemon.ended() == 0
    [draining] = daemon.said("daemon.draining")
    assert (draining["in_flight"], draining["at_most_s"]) == (2, 20.0)
    assert not daemon.noise
    rows = await db.fetch("select attempt, outcome from webhooks.attempts")
    assert [tuple(row) for row in rows] == [(1, "delivered")] * 2


async def test_sigint_drains_as_sigterm_does(database, start):
    daemon = await start(database)
    daemon.signal(signal.SIGINT)
    assert await daemon.ended(PROMPT_S) == 0
    assert not daemon.noise


@pytest.mark.slow
async def test_an_idle_daemon_ends_at_once(db, database, start, receiver, until):
    await _endpoint(db, receiver.url("/"))
    daemon = await start(database, log_level="debug")
    await emit(db)
    await until(lambda: db.fetchval("select count(*) from webhooks.attempts"))
    await daemon.wait_for("bell.slept")
    daemon.stop()
    assert await daemon.ended(PROMPT_S) == 0
    assert not daemon.noise


@pytest.mark.slow
async def test_a_standby_ends_at_once_and_says_to_systemd_that_it_stands_by(
    database, start, notify_socket, until
):
    await start(database)
    environ = {"NOTIFY_SOCKET": str(notify_socket.path), "WATCHDOG_USEC": "1000000"}
    second = await start(database, ready="standing by", environ=environ)
    ready = await until(lambda: _seen(notify_socket, "READY=1"))
    assert ready[0][1].startswith("STATUS=standing by")
    await until(lambda: len(_seen(notify_socket, "WATCHDOG=1")) >= 3)
    second.stop()
    assert await second.ended(PROMPT_S) == 0
    assert not second.noise


@pytest.mark.slow
async def test_the_watchdog_is_fed_while_the_loops_move(db, database, start, notify_socket, until, receiver):
    await _endpoint(db, receiver.url("/"))
    environ = {"NOTIFY_SOCKET": str(notify_socket.path), "WATCHDOG_USEC": "4000000"}
    daemon = await start(database, environ=environ)
    times = []
    for n in range(1, 5):
        await until(lambda n=n: len(_seen(notify_socket, "WATCHDOG=1")) >= n)
        times.append(time.monotonic())
        await emit(db)
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 4.0
    daemon.freeze()
    fed = len(_seen(notify_socket, "WATCHDOG=1"))
    daemon.thaw()
    await until(lambda: len(_seen(notify_socket, "WATCHDOG=1")) > fed)


async def test_sigterm_before_the_database_answers_ends_at_once(start):
    """A server that takes connections and says nothing: cut off, or not a Postgres."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # nobody accepts: the kernel does
        port = silent.getsockname()[1]
        daemon = await start(f"postgresql://nobody@127.0.0.1:{port}/none", ready="")
        await daemon.wait_for("daemon.started")
        daemon.stop()
        assert await daemon.ended(PROMPT_S) == 0
        assert not daemon.noise


@pytest.mark.slow
async def test_sigterm_while_the_database_is_away_ends_at_once(own_server, start, notify_socket, until):
    await migrate.migrate(own_server.url())
    environ = {"NOTIFY_SOCKET": str(notify_socket.path)}
    daemon = await start(own_server.url(), environ=environ)
    await asyncio.to_thread(own_server.stop, "immediate")
    await daemon.wait_for("database.lost")
    await until(lambda: any(message[0].startswith("STATUS=waiting") for message in notify_socket.messages()))
    daemon.stop()
    assert await daemon.ended(PROMPT_S) == 0
    assert not daemon.noise


@pytest.mark.slow
async def test_the_database_goes_away_while_the_daemon_drains(own_server, start, receiver, connect):
    await migrate.migrate(own_server.url())
    receiver.script = lambda _request: Response(delay_s=60)
    db = await connect(own_server.url())
    await _endpoint(db, receiver.url("/"))
    daemon = await start(own_server.url())
    await emit(db)
    await receiver.wait_for(1)
    daemon.stop()
    await daemon.wait_for("daemon.draining")
    await asyncio.to_thread(own_server.stop, "immediate")
    assert await daemon.ended(PROMPT_S) == 0
    assert not daemon.noise
