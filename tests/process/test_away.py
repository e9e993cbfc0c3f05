"""Postgres away, wrong settings, a schema that is missing: the daemon says so, and waits or ends as it should."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import asyncpg
import pytest

from pghookd.postgres import migrate
from support.events import emit

DELIVERED = "select count(distinct event_id) from webhooks.attempts where outcome = 'delivered'"


async def fill(url, receiver):
    connection = await asyncpg.connect(url)
    await connection.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    await connection.execute(
        "insert into webhooks.endpoints (site_id, url) values ('s', $1)", receiver.url("/")
    )
    return connection


@pytest.mark.slow
async def test_away_at_the_start(own_server, start, receiver):
    await migrate.migrate(own_server.url())
    db = await fill(own_server.url(), receiver)
    await emit(db, 5)
    await db.close()
    await asyncio.to_thread(own_server.stop)
    daemon = await start(own_server.url(), ready="")
    assert (await daemon.wait_for("database.lost"))["reason"]
    await asyncio.to_thread(own_server.start)
    await daemon.wait_for("database.restored")
    await receiver.wait_for(5)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_away_for_a_while(own_server, start, receiver, until, mode):
    await migrate.migrate(own_server.url())
    db = await fill(own_server.url(), receiver)
    daemon = await start(own_server.url())
    await emit(db, 50)
    await receiver.wait_for(20)
    db.terminate()
    await asyncio.to_thread(own_server.stop, mode)
    await daemon.wait_for("database.lost")
    await asyncio.to_thread(own_server.start)
    await daemon.wait_for("database.restored")
    db = await asyncpg.connect(own_server.url())
    await emit(db, 50)
    await until(lambda: _is(db.fetchval(DELIVERED), 100))
    bodies = {}
    for request in receiver.requests:
        assert bodies.setdefault(request.webhook_id, request.body) == request.body
    assert len(bodies) == 100
    await db.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["read", "record", "bell", "work", "tend"])
async def test_one_session_ended(database, db, start, receiver, until, name):
    connection = await fill(database, receiver)
    daemon = await start(database)
    sql = (
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name = $1 and datname = current_database()"
    )
    assert await db.fetchval(sql, f"pghookd/{name}")
    await daemon.wait_for("database.lost")
    await daemon.wait_for("database.restored")
    await emit(db, 20)
    await until(lambda: _is(db.fetchval(DELIVERED), 20))
    assert len(receiver.requests) == 20
    await connection.close()


async def test_no_schema_is_exit_3(database_url, start):
    daemon = await start(database_url, ready="")
    line = await daemon.wait_for("database.lost")
    assert "pghookd migrate" in line["reason"]
    assert await daemon.ended() == 3
    assert not daemon.noise


@pytest.mark.slow
async def test_functions_out_of_date_are_waited_for(database, db, start, receiver, until):
    await (await fill(database, receiver)).close()
    await db.execute("update webhooks.functions set sha256 = 'of an earlier one' where name = 'takes'")
    daemon = await start(database, ready="")
    looking = (
        "select exists (select from pg_stat_activity where datname = current_database()"
        " and application_name = 'pghookd/look' and state = 'idle')"
    )
    await until(lambda: db.fetchval(looking))
    assert [each.name for each in (await migrate.migrate(database)).functions] == ["takes"]
    await daemon.wait_for("daemon.ready")
    await emit(db)
    await receiver.wait_for(1)


async def test_wrong_settings_are_reported_all_at_once(database, start):
    daemon = await start(
        database, ready="", delivery_timeout_s="soon", retry_schedule="5 minutes", delivry_concurrency=3
    )
    assert await daemon.ended() == 78
    told = daemon.told()
    for name in ("PGHOOKD_DELIVERY_TIMEOUT_S", "PGHOOKD_RETRY_SCHEDULE", "PGHOOKD_DELIVRY_CONCURRENCY"):
        assert name in told
    assert "Traceback" not in told


@pytest.mark.slow
async def test_another_number_of_shards_is_exit_78(database, start):
    daemon = await start(database)
    daemon.stop()
    await daemon.ended()
    other = await start(database, ready="", delivery_shards=8)
    assert "delivery.shards" in (await other.wait_for("settings.rejected"))["faults"]
    assert await other.ended() == 78


@pytest.mark.slow
async def test_too_many_connections_are_waited_for(make_server, start, receiver, until):
    server = make_server(max_connections="12", superuser_reserved_connections="0")
    await migrate.migrate(server.url())
    db = await fill(server.url(), receiver)
    limit = int(await db.fetchval("show max_connections"))
    others = [await asyncpg.connect(server.url()) for _ in range(limit - 1)]
    daemon = await start(server.url(), ready="")
    await daemon.wait_for("database.lost")
    for each in others:
        await each.close()
    await daemon.wait_for("database.restored")
    await emit(db, 3)
    await until(lambda: _is(db.fetchval(DELIVERED), 3))
    await db.close()


async def _is(found, wanted):
    return await found == wanted


# New settings while it runs -----------------------------------------------------------------------------------


async def test_a_reload_takes_new_settings_and_keeps_the_old_if_they_are_faulty(
    database, start, receiver, tmp_path
):
    db = await fill(database, receiver)
    agent = tmp_path / "delivery.user_agent"
    agent.write_text("one/1")
    daemon = await start(database, environ={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    await emit(db)
    await receiver.wait_for(1)
    agent.write_text("two/2")
    daemon.signal(signal.SIGHUP)
    await daemon.wait_for("settings.reloaded")
    await emit(db)
    await receiver.wait_for(2)
    (tmp_path / "delivery.timeout_s").write_text("soon")
    agent.write_text("three/3")
    daemon.signal(signal.SIGHUP)
    assert "timeout_s" in (await daemon.wait_for("settings.rejected"))["faults"]
    await emit(db)
    await receiver.wait_for(3)
    assert [request.headers["user-agent"] for request in receiver.requests] == ["one/1", "two/2", "two/2"]
    daemon.stop()
    assert await daemon.ended() == 0
    await db.close()


def _handles(pid, number):
    """Return True if a process catches or ignores a signal."""
    lines = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(lines["SigCgt"], 16) | int(lines["SigIgn"], 16)) >> (number - 1) & 1)


@pytest.mark.slow
async def test_signals_in_the_first_moments_do_no_harm(database, start, until, notify_socket):
    """Until it is ready a reload, and signals that mean nothing to it, come again and again."""
    daemon = await start(database, ready="", environ={"NOTIFY_SOCKET": str(notify_socket.path)})
    await until(lambda: _handles(daemon.pid, signal.SIGHUP), 20)
    assert "uvloop" not in Path(f"/proc/{daemon.pid}/maps").read_text(), (
        "it was not ready for signals at once"
    )
    while not daemon.said("daemon.ready"):
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            daemon.signal(number)
        await asyncio.sleep(0.02)
        assert daemon.running, daemon.told()
    await daemon.wait_for("settings.reloaded")
    first = next(message for message in notify_socket.messages() if "READY=1" in message)
    assert first[1].startswith("STATUS=reading the log")
    daemon.signal(signal.SIGUSR1)
    daemon.stop()
    assert await daemon.ended() == 0
    assert not daemon.noise
