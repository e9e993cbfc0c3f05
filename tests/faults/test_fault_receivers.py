"""The network before the receivers breaks: a thin line, a silent one, none at all, half the addresses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time

import pytest
from network import WayOut

from pghookd.egress.resolver import GuardedResolver
from pghookd.egress.sender import Sender
from pghookd.model.delivery import Fault, Outcome, Reply
from pghookd.settings.network import EgressPolicy, parse_places
from support import checker
from support.events import emit
from support.fault_server import answering, naming
from support.fault_server import receiving as listening
from support.mail_server import Mailbox

SETTINGS = {
    "retry_schedule": ",".join(["1s"] * 60),
    "retry_jitter": 0,
    "breaker_probe_s": 1,
    "breaker_probe_max_s": 2,
}
MODEM = 64_000 // 8  # bytes a second
HEAD = b"webhook-id: evt_1\r\ncontent-length: 2\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def _through(db, way_out, path="/"):
    await db.execute("update webhooks.endpoints set url = $1", f"http://127.0.0.1:{way_out.port}{path}")


@pytest.fixture
async def way_out(db, receiving):
    """Return the line to a receiver process, and that receiver; the endpoint of site `s` is behind it."""
    async with receiving(db, "answers:lively") as running, WayOut(running.port) as line:
        await _through(db, line)
        yield line, running


async def test_a_thin_and_long_line(database, db, start, way_out, until, delivered):
    """64 kbit/s and 300 ms: requests that fit into the time arrive, others time out, and arrive once they fit."""
    line, running = way_out
    daemon = await start(database, delivery_timeout_s=4, delivery_connect_timeout_s=4, **SETTINGS)
    line.bytes_per_s, line.delay_s = MODEM, 0.15
    await emit(db, 20)
    await delivered(db, 20)
    await emit(db, 3, payload=json.dumps("x" * 200_000))
    timeouts = "select count(*) from webhooks.attempts where outcome = 'timeout'"
    await until(lambda: db.fetchval(timeouts), 30)
    line.bytes_per_s, line.delay_s = 0, 0.0
    await delivered(db, 23)
    await checker.check(db, running.entries(), repeats_max=await db.fetchval(timeouts))
    assert not daemon.said("database.lost")
    assert not daemon.noise


@pytest.mark.short
async def test_a_line_that_stalls(database, db, start, way_out, until, delivered):
    line, running = way_out
    daemon = await start(database, delivery_timeout_s=2, delivery_connect_timeout_s=2, **SETTINGS)
    await emit(db, 1000)
    await until(lambda: len(running.entries()) > 200)
    line.stall()
    timeouts = "select count(*) from webhooks.attempts where outcome = 'timeout'"
    await until(lambda: db.fetchval(timeouts), 20)
    line.reset()
    line.go_on()
    await delivered(db, 1000)
    failed = "select count(*) from webhooks.attempts where outcome in ('timeout', 'unreachable')"
    await checker.check(db, running.entries(), repeats_max=await db.fetchval(failed))
    assert not daemon.noise


# The way out is cut for all ---------------------------------------------------------------------------------------


HOSTS = [f"127.0.{n}.2" for n in range(1, 31)]  # a network each, as those of strangers are
SITES = [f"s{n}" for n in range(1, len(HOSTS) + 1)]
SITE_EACH = """
with sites as (
  insert into webhooks.sites (site_id, name, owner_email)
  select 's' || endpoint_id, 'a site', 'anna@shop.example' from webhooks.endpoints)
update webhooks.endpoints
set site_id = 's' || endpoint_id, url = 'http://127.0.' || endpoint_id || '.2:' || $1::int || '/' || endpoint_id
"""
MAILS = {
    "mail_sender": "hooks@platform.example",
    "mail_operator": "ops@platform.example",
    "mail_first_wait_s": 4,
    "mail_gap_s": 0.5,
    "mail_urgent_gap_s": 0.5,
    "mail_recovered_after_s": 1,
    "mail_check_s": 0.2,
    "smtp_tls": "none",
    "smtp_host": "127.0.0.1",
}


@pytest.mark.short
async def test_the_way_out_is_cut_for_all(database, db, start, receiving, until, delivered):
    """No attempt is the last one, no owner gets a mail, the operator does; once it is back all arrives."""
    async with (
        receiving(db, "answers:lively", len(HOSTS)) as running,
        WayOut(running.port, HOSTS) as line,
        Mailbox() as box,
    ):
        await db.execute(SITE_EACH, line.port)
        daemon = await start(database, smtp_port=box.port, **MAILS, **SETTINGS)
        await emit(db, 5, site=SITES)
        await delivered(db, 5 * len(HOSTS))
        line.cut = True
        line.reset()
        await emit(db, 5, site=SITES)
        await daemon.wait_for("storm.suspected", seconds=30)
        await asyncio.sleep(MAILS["mail_first_wait_s"] + 1)
        line.cut = False
        await delivered(db, 10 * len(HOSTS), 60)
        calm = "select not exists (select from webhooks.incidents where state <> 'healthy')"
        await until(lambda: db.fetchval(calm), 30)
        await checker.check(db, running.entries(), repeats_max=0)
        told = await checker.check_mails(db, box.accepted)
        assert [mail.recipients for mail in box.accepted] == [["ops@platform.example"]]
        assert told.deliveries == 0
        assert await db.fetchval("select count(*) from webhooks.endpoints where not enabled") == 0
    assert not daemon.noise


# Half of the addresses --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _silent(family, host, port):
    """Take connections of an address family and never answer, as where packets are dropped: its queue is full."""
    with socket.socket(family) as full, contextlib.ExitStack() as fillers:
        full.bind((host, port))
        full.listen(0)
        for _ in range(8):
            filler = fillers.enter_context(socket.socket(family))
            filler.settimeout(0)
            filler.connect_ex((host, port))
        with socket.socket(family) as tried:
            tried.settimeout(0.2)
            with pytest.raises(TimeoutError):
                tried.connect((host, port))
        yield


@contextlib.contextmanager
def _refusing(_family, _host, _port):
    yield


FAMILIES = {4: (socket.AF_INET, "127.0.0.1"), 6: (socket.AF_INET6, "::1")}


def _has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.short
@pytest.mark.skipif(not _has_ipv6(), reason="no IPv6 on this machine's loopback")
@pytest.mark.parametrize("breaks", [_silent, _refusing], ids=["silent", "refusing"])
@pytest.mark.parametrize("broken", [4, 6])
async def test_one_family_of_addresses_is_broken(broken, breaks):
    """The name has an address of each; whichever is tried first, the other answers within a second."""
    table = {"shop.example.com": ["127.0.0.1", "::1"]}
    policy = EgressPolicy(allow=parse_places(["127.0.0.1", "::1"]))
    async with listening(answering(OK), host=FAMILIES[10 - broken][1]) as fine, naming(table) as (server, _):
        with breaks(*FAMILIES[broken], fine.port):
            async with Sender(
                policy=policy,
                connections_max=8,
                connect_timeout_s=5.0,
                response_bytes_max=4096,
                resolver=GuardedResolver(policy, nameservers=[server]),
            ) as sender:
                started = time.monotonic()
                target = sender.target_of(f"http://shop.example.com:{fine.port}/")
                answer = await sender.post(target, HEAD, b"{}", 10.0)
                assert time.monotonic() - started < 1.0
        assert answer == Reply(200, b"ok")


# Names that nobody answers for ------------------------------------------------------------------------------------


async def test_dead_zones_keep_no_other_name_waiting():
    """A hundred names whose servers are silent, queried at once: one that is answered is as quick as before."""
    dead = {f"dead{n}.example.com": None for n in range(100)}
    policy = EgressPolicy(allow=parse_places(["127.0.0.1"]))
    async with (
        listening(answering(OK)) as fine,
        naming({"fine.example.com": ["127.0.0.1"], **dead}) as (server, _),
    ):
        async with Sender(
            policy=policy,
            connections_max=200,
            connect_timeout_s=5.0,
            response_bytes_max=4096,
            resolver=GuardedResolver(policy, nameservers=[server]),
        ) as sender:

            async def post(name):
                target = sender.target_of(f"http://{name}:{fine.port}/")
                return await sender.post(target, HEAD, b"{}", 10.0)

            waiting = [asyncio.ensure_future(post(name)) for name in dead]
            for _ in range(20):
                await asyncio.sleep(0.1)
                sender._connector.clear_dns_cache()
                started = time.monotonic()
                assert await post("fine.example.com") == Reply(200, b"ok")
                assert time.monotonic() - started < 1.0
            answers = {await each for each in waiting}
        assert answers == {Fault(Outcome.UNREACHABLE, "dns")}
