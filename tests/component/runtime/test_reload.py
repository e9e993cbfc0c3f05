"""SIGHUP: new settings are in force at once, and no site waits for another one's receiver."""

from __future__ import annotations

import asyncio
import time

import pytest
import pytest_asyncio

from support import crew
from support.crew import serving
from support.events import emit
from support.mail_server import Mailbox
from support.receiver import Response

DELIVERED = "select count(*) from webhooks.attempts where outcome = 'delivered'"
LIMIT_S = 0.2  # what a reload may add to a delivery
TRIES = 3  # a shared machine may stall for longer by itself: one quiet try of these is enough
EVERY_S = 0.02
PATIENT = {"timeout_s": 30.0, "grace_s": 31.0}


@pytest_asyncio.fixture(loop_scope="session")
async def db(database, connect, receiver):
    """Return a connection to a database with the sites a and b, whose endpoints are /a and /b."""
    session = await connect(database)
    for site in ("a", "b"):
        await session.execute(
            "insert into webhooks.sites (site_id, name, owner_email) values ($1, $1, $1 || '@example.org')",
            site,
        )
        await session.execute(
            "insert into webhooks.endpoints (site_id, url) values ($1, $2)", site, receiver.url(f"/{site}")
        )
    return session


async def is_count(db, count):
    return await db.fetchval(DELIVERED) == count


async def emit_for(db, seconds, sent):
    """Insert an event of site b every 20 ms; note when each was committed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        event_id = await emit(db, site="b")
        sent[event_id] = time.monotonic()
        await asyncio.sleep(EVERY_S)


def waits(sent, receiver):
    """Return how long each event took from its commit to its receiver."""
    arrived = {request.event_id: request.arrived for request in receiver.of("/b")}
    return [arrived[event_id] - at for event_id, at in sent.items()]


@pytest.mark.slow
async def test_a_reload_under_load_with_a_hanging_request_delays_nobody(database, db, receiver, until):
    answer = asyncio.Event()

    async def hang(_request):
        await answer.wait()
        return 200

    receiver.paths["/a"] = hang
    async with serving(database, delivery=PATIENT) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        await emit(db, site="a")
        await receiver.wait_for(1, path="/a")
        await emit(db, site="b")
        await receiver.wait_for(1, path="/b")
        worst = []
        for number in range(TRIES):
            sent = {}
            load = asyncio.create_task(emit_for(db, 1.5, sent))
            changed = crew.settings_of(database, delivery={**PATIENT, "user_agent": f"reloaded/{number}"})
            await daemon.reload(changed)
            await load
            await until(lambda sent=sent: set(sent) <= {request.event_id for request in receiver.of("/b")})
            worst.append(max(waits(sent, receiver)))
            assert receiver.of("/b")[-1].headers["user-agent"] == f"reloaded/{number}"
        assert min(worst) < LIMIT_S
        answer.set()
        count = 1 + len(receiver.of("/b"))
        await until(lambda: is_count(db, count))
        assert len(receiver.of("/a")) == 1
        assert not daemon.diary.of("shard.lost")
        assert len(daemon.diary.of("shard.taken")) == 1


async def test_a_request_in_flight_ends_as_it_began(database, db, receiver, until):
    """The sender that it began with lives on; the next request has the new timeout and the new policy."""
    answer = asyncio.Event()

    async def hang(request):
        if not answer.is_set():
            await answer.wait()
            return 200
        return Response(delay_s=60) if request.path == "/a" else 200

    receiver.script = hang
    async with serving(database, delivery=PATIENT) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        await emit(db, site="a")
        await receiver.wait_for(1)
        for _ in range(3):
            await daemon.reload(
                crew.settings_of(
                    database,
                    delivery={"timeout_s": 0.3, "connect_timeout_s": 0.3},
                    retry={"schedule": (60.0,)},
                )
            )
        answer.set()
        await until(lambda: is_count(db, 1))
        await emit(db, site="a")
        [line] = await daemon.diary.wait_for("delivery.attempted")
        assert (line["outcome"], line["error"], line["revision"]) == ("timeout", "response", 1)
        assert (line["address"], line["reached"]) == (f"127.0.0.1:{receiver.port}", "sent")
        assert line["duration_ms"] < 5000


async def test_allowed_destinations_change_with_a_reload(database, db, receiver, until):
    async with serving(database) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        await emit(db, site="a")
        await until(lambda: is_count(db, 1))
        await daemon.reload(crew.settings_of(database, egress={"deny": ("127.0.0.0/8",)}))
        await emit(db, site="a")
        [line] = await daemon.diary.wait_for("delivery.attempted")
        assert line["outcome"] == "blocked"
        await daemon.reload(crew.settings_of(database))
        await emit(db, site="a")
        await until(lambda: is_count(db, 2))
    assert len(receiver.requests) == 2


async def test_the_width_of_a_lane_changes_with_a_reload(database, db, receiver, until):
    receiver.script = lambda _request: Response(delay_s=0.01)
    async with serving(database) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        for _ in range(60):
            await emit(db, site="a")
        await until(lambda: is_count(db, 60))
        assert receiver.in_flight_max > 1
        await daemon.reload(crew.settings_of(database, delivery={"endpoint_concurrency": 1}))
        receiver.in_flight_max = 0
        await emit(db, 30, site="a")
        await until(lambda: is_count(db, 90))
        assert receiver.in_flight_max == 1


async def test_a_reload_that_names_a_mail_server_starts_the_mails(database, db, receiver):
    receiver.script = lambda _request: 500
    told = {"first_wait_s": 0, "check_s": 0.1, "sender": "hooks@example.org"}
    async with Mailbox() as box, serving(database, mail=told) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        smtp = {"host": "127.0.0.1", "port": box.port, "tls": "none"}
        await daemon.reload(crew.settings_of(database, mail=told, smtp=smtp))
        await emit(db, site="a")
        [mail] = await box.wait_for(1)
        assert mail.message["from"].addresses[0].addr_spec == "hooks@example.org"
        await daemon.reload(
            crew.settings_of(database, mail={**told, "sender": "other@example.org"}, smtp=smtp)
        )
        await emit(db, site="b")
        mail = (await box.wait_for(2))[-1]
        assert mail.message["from"].addresses[0].addr_spec == "other@example.org"


async def test_faulty_settings_change_nothing_and_the_next_reload_counts(database, db, receiver):
    async with serving(database) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        for number in range(3):
            line = await daemon.reload(ValueError("delivery.timeout_s must be a number"))
            assert line["faults"] == "delivery.timeout_s must be a number"
            await emit(db, site="a")
            *_, request = await receiver.wait_for(2 * number + 1)
            assert request.headers["user-agent"] == (f"agent/{number - 1}" if number else "pghookd/0.1.0")
            await daemon.reload(crew.settings_of(database, delivery={"user_agent": f"agent/{number}"}))
            await emit(db, site="a")
            *_, request = await receiver.wait_for(2 * number + 2)
            assert request.headers["user-agent"] == f"agent/{number}"
        line = await daemon.reload(
            crew.settings_of(database, database={"lease_s": 20}, delivery={"shards": 8})
        )
        assert line["waiting_for_restart"] == ["database.lease_s", "delivery.shards"]
        assert len(daemon.diary.of("daemon.ready")) == 1


@pytest.mark.slow
async def test_a_reload_while_the_database_is_away_holds_for_the_next_epoch(own_server, receiver, connect):
    url = own_server.url()
    await crew.migrated(url)
    db = await connect(url)
    await make_site(db, receiver)
    async with serving(url) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        await asyncio.to_thread(own_server.stop, "immediate")
        await daemon.diary.wait_for("database.lost")
        await daemon.reload(crew.settings_of(url, delivery={"user_agent": "away/1"}))
        await asyncio.to_thread(own_server.start)
        await daemon.diary.wait_for("database.restored")
        await emit(await connect(url), site="a")
        [request] = await receiver.wait_for(1)
        assert request.headers["user-agent"] == "away/1"


async def make_site(db, receiver):
    await db.execute("insert into webhooks.sites (site_id, name) values ('a', 'A')")
    await db.execute("insert into webhooks.endpoints (site_id, url) values ('a', $1)", receiver.url("/a"))


async def test_a_reload_while_an_epoch_is_set_up_is_not_lost(database, db, receiver):
    """A standby has no loops yet: they begin with the settings that came meanwhile."""
    async with serving(database) as first:
        await first.diary.wait_for("daemon.ready")
        async with serving(database) as second:
            await second.diary.wait_for("daemon.ready")  # it stands by
            await second.reload(crew.settings_of(database, delivery={"user_agent": "second/1"}))
            await first.stop()
            await second.diary.wait_for("daemon.ready", 2)
            await emit(db, site="a")
            [request] = await receiver.wait_for(1)
            assert request.headers["user-agent"] == "second/1"
