"""Every receiver that misbehaves, all at once, beside one that does not: each by name, and the checker afterwards."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from zoo import OK, SAID, Zoo

from support import checker
from support.events import emit
from support.fault_server import Certificates, answering
from support.fault_server import receiving as listening

FIRST = """
select distinct substring(p.url from '[0-9](/.*)$'), a.outcome, a.status, split_part(coalesce(a.error, ''), ':', 1)
from webhooks.attempts a join webhooks.endpoints p using (endpoint_id) where attempt = 1
"""
SETTINGS = {
    "delivery_timeout_s": 2,
    "delivery_connect_timeout_s": 2,
    "retry_schedule": "0.3s,0.3s,0.3s",
    "retry_retry_after_max_s": 1,
    "breaker_share": 0,
}
DELIVERED = ("delivered", 200, "")  # the head decides
# What the first attempt comes to, by name: outcome, status, error. A connection that the cage before it has ended may
# be found so at the next request: stale_connection.
FOUND = {
    "a flood of 1xx": ("unreachable", None, "too_much_response"),
    "an alert of tls": ("unreachable", None, "bad_response"),
    "bomb": DELIVERED,
    "broken chunks": DELIVERED,
    "closed in the race": DELIVERED,
    "cookies": ("refused", 401, ""),
    "dripped head": ("timeout", None, "response"),
    "endless body": DELIVERED,
    "escapes": ("refused", 500, ""),
    "garbage": ("unreachable", None, "bad_response"),
    "half a body": DELIVERED,
    "half a head": ("unreachable", None, "reset"),
    "http 0.9": ("unreachable", None, "bad_response"),
    "http 2": ("unreachable", None, "bad_response"),
    "huge headers": ("unreachable", None, "too_much_response"),
    "itself": ("refused", 307, "redirect"),
    "metadata": ("refused", 302, "redirect"),
    "reset": ("unreachable", None, "reset"),
    "silence": ("timeout", None, "response"),
    "stalled body": DELIVERED,
    "status 099": ("unreachable", None, "bad_response"),
    "too long an answer": DELIVERED,
    "wait backwards": ("refused", 503, ""),
    "wait for ever": ("refused", 429, ""),
    "wait for nan": ("refused", 503, ""),
    "wait until": ("refused", 429, ""),
    "expired": ("unreachable", None, "tls_expired"),
    "self-signed": ("unreachable", None, "tls_untrusted"),
    "another name": ("unreachable", None, "tls_name"),
    "old": ("unreachable", None, "tls"),
}
PASSING = {("unreachable", None, "stale_connection"), ("unreachable", None, "reset")}


@pytest.fixture
def certificates(tmp_path):
    return Certificates(tmp_path)


def _wrong(certificates):
    """Return contexts of servers that no request may be sent to."""
    make, here = certificates.server_context, "IP:127.0.0.1"
    old = make("old", here)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    return {
        "expired": make("expired", here, expired=True),
        "self-signed": make("own", here, self_signed=True),
        "another name": make("other", "DNS:other.example.com"),
        "old": old,
    }


def _path(name):
    return "/" + name.replace(" ", "_")


async def _open_endpoint(db, url):
    await db.execute(
        "insert into webhooks.endpoints (site_id, url, secret) values ('s', $1, webhooks.new_secret())", url
    )


@pytest.mark.short
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_receivers_that_misbehave_in_every_way(database, db, start, until, certificates):
    zoo = Zoo()
    await db.execute("insert into webhooks.sites (site_id, name) values ('s', 'a site')")
    async with contextlib.AsyncExitStack() as stack:
        cages = await stack.enter_async_context(listening(zoo))
        for cage in SAID:
            await _open_endpoint(db, f"http://127.0.0.1:{cages.port}{_path(cage)}")
        wrong = _wrong(certificates)
        for name, context in wrong.items():
            server = await stack.enter_async_context(listening(answering(OK), tls=context))
            await _open_endpoint(db, f"https://127.0.0.1:{server.port}{_path(name)}")
        daemon = await start(database, egress_ca_file=str(certificates.ca_file), **SETTINGS)
        await emit(db, 3)
        whole = (
            "select (select count(*) from webhooks.deliveries where state = 'delivered') = $1::int * 3"
            " and (select count(*) from webhooks.dead where reason = 'exhausted') = $2::int * 3"
        )
        await until(lambda: db.fetchval(whole, len(SAID), len(wrong)), 30)
        found = {tuple(row) for row in await db.fetch(FIRST)}
        expected = {(_path(name), *what) for name, what in FOUND.items()}
        assert {row[0] for row in expected - found} <= {"/old", "/an_alert_of_tls"}, (
            "the alert may come too late"
        )
        assert {row[1:] for row in found - expected} <= PASSING
        assert {row[0] for row in found} == {row[0] for row in expected}
        twice = await db.fetchval(
            "select count(*) from webhooks.attempts where outcome in ('timeout', 'unreachable')"
        )
        await checker.check(db, zoo.entries, repeats_max=twice, states=("delivered", "dead"))
    assert not daemon.said("database.lost")
    assert not daemon.noise
