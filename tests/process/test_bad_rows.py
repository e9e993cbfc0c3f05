"""A row that cannot be delivered never stops the log: its neighbours flow, and it ends with a reason that says why."""

from __future__ import annotations

import json

import pytest

from support.events import Sql, emit
from support.receiver import Response


@pytest.fixture
async def shop(db, receiver):
    """Return an endpoint that takes everything of site `s`."""
    await db.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    return await db.fetchval(
        "insert into webhooks.endpoints (site_id, url) values ('s', $1) returning endpoint_id",
        receiver.url("/good"),
    )


@pytest.fixture
def neighbours(db, until):
    """Return `await neighbours()`: inserts three events behind the bad one and waits for their delivery."""

    async def flow():
        ids = [await emit(db) for _ in range(3)]

        async def there():
            sql = (
                "select count(distinct event_id) from webhooks.attempts"
                " where outcome = 'delivered' and event_id = any($1)"
            )
            return await db.fetchval(sql, ids) == 3

        await until(there)

    return flow


async def stands(db, event, endpoint):
    row = await db.fetchrow(
        "select state, reason, last_outcome, last_error from webhooks.deliveries"
        " where event_id = $1 and endpoint_id = $2",
        event,
        endpoint,
    )
    return None if row is None else tuple(row)


@pytest.mark.slow
async def test_nobody_to_deliver_to(db, database, shop, start, neighbours):
    await db.execute("insert into webhooks.sites (site_id, name) values ('empty', 'E')")
    await start(database)
    strays = [await emit(db, site=site) for site in ("nowhere", "empty")]
    await neighbours()
    for table in ("attempts", "backlog", "dead"):
        assert (
            await db.fetchval(f"select count(*) from webhooks.{table} where event_id = any($1)", strays) == 0
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["no spaces", "a..b", "é", "x\u0007"])
async def test_a_type_outside_the_pattern_is_dead(db, database, shop, start, neighbours, kind):
    await start(database)
    event = await emit(db, kind=kind)
    await neighbours()
    assert (await stands(db, event, shop))[:2] == ("dead", "invalid")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("ftp://127.0.0.1/", "scheme"),
        ("http://", "url"),
        ("http://u:p@127.0.0.1/", "userinfo"),
        ("http://10.0.0.1/", "literal"),
        ("http://[::1]/", "literal"),
        ("http://localhost/", "name"),
        ("http://shop.example:5432/", "port"),
    ],
)
async def test_a_destination_that_is_refused_is_dead_at_once(
    db, database, shop, start, neighbours, receiver, url, error
):
    await db.execute(
        'alter table webhooks.endpoints drop constraint "url is http or https without blanks, at most 2048 characters"'
    )
    bad = await db.fetchval(
        "insert into webhooks.endpoints (site_id, url) values ('s', $1) returning endpoint_id", url
    )
    await start(database)
    event = await emit(db)
    await neighbours()
    state, reason, outcome, why = await stands(db, event, bad)
    assert (state, reason, outcome) == ("dead", "blocked", "blocked")
    assert why.partition(":")[0] == error


@pytest.mark.slow
async def test_a_name_that_is_nowhere_is_tried_again(db, database, shop, start, neighbours, until):
    bad = await db.fetchval(
        "insert into webhooks.endpoints (site_id, url) values ('s', 'http://nowhere.example/') returning endpoint_id"
    )
    await start(database, retry_schedule="1h")
    event = await emit(db)
    await neighbours()
    await until(lambda: stands(db, event, bad))
    state, reason, outcome, why = await stands(db, event, bad)
    assert (state, reason) == ("waiting", "retry")
    assert (outcome, why) in {("unreachable", "dns"), ("timeout", "connect")}


@pytest.mark.slow
async def test_an_invalid_secret_is_dead(db, database, shop, start, neighbours):
    await db.execute(
        'alter table webhooks.endpoints drop constraint "a whsec_ secret is base64 of 24 to 64 bytes"'
    )
    bad = await db.fetchval(
        "insert into webhooks.endpoints (site_id, url, secret)"
        " values ('s', 'http://127.0.0.1:9/', 'whsec_!') returning endpoint_id"
    )
    daemon = await start(database)
    event = await emit(db)
    await neighbours()
    assert (await stands(db, event, bad))[:2] == ("dead", "invalid")
    assert "whsec_" not in daemon.told()


@pytest.mark.slow
@pytest.mark.parametrize(
    "payload",
    [
        '{"a": "\\u0000"}',
        '{"a": "\\ud800"}',
        '{"a": 1, "a": 2}',
        "1e400",
        "[" * 3000 + "]" * 3000,
        '"' + "x" * 3_000_000 + '"',
        '"' + "é" * 10_000 + '"',
    ],
    ids=["nul", "surrogate", "twice", "huge number", "deep", "3 MB", "just over 16 KiB"],
)
async def test_a_payload_is_opaque(db, database, shop, start, receiver, payload):
    await start(database)
    await emit(db, payload=payload)
    await receiver.wait_for(1)
    assert receiver.requests[0].body.partition(b'"data":')[2] == payload.encode() + b"}"


async def test_a_payload_over_the_limit_is_dead(db, database, shop, start, neighbours):
    await start(database, delivery_payload_bytes_max=20_000)
    small, large = (
        await emit(db, payload=json.dumps("x" * 17_000)),
        await emit(db, payload=json.dumps("x" * 20_000)),
    )
    await neighbours()
    assert (await stands(db, large, shop))[:2] == ("dead", "too_large")
    assert (await stands(db, small, shop))[0] == "delivered"


@pytest.mark.slow
@pytest.mark.parametrize("at", ["20000-01-01", "1901-01-01", "0044-03-15 BC"])
async def test_a_time_from_another_age_is_delivered(db, database, shop, start, receiver, at):
    await start(database)
    await emit(db, created_at=Sql(f"'{at}'"))
    await receiver.wait_for(1)
    sql = "select webhooks.webhook_id(event_id, created_at) from webhooks.events"
    assert receiver.requests[0].webhook_id == await db.fetchval(sql)


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        Response(500, body=b"a\x00b"),
        Response(500, body=b"\xff\xfe\xed\xa0\x80"),
        Response(500, body=b"x" * 1_000_000),
        Response(302, headers=(("location", "http://\xed\xa0\x80/\x1b[31m"),)),
        Response(500, headers=tuple((f"x-{n}", "y" * 100) for n in range(100))),
        Response(500, headers=(("webhook-delivery", "\xff"), ("retry-after", "1" * 5000))),
    ],
    ids=["nul", "not utf-8", "1 MB", "location", "headers", "odd values"],
)
async def test_whatever_a_receiver_says_can_be_recorded(db, database, shop, start, receiver, until, answer):
    receiver.script = lambda request: answer if request.attempt == 1 else 200
    await start(database, retry_schedule="0.1s")
    event = await emit(db)
    await until(lambda: _delivered(db, event, shop))
    first = await db.fetchrow(
        "select outcome, octet_length(response) as bytes from webhooks.attempts where attempt = 1"
    )
    assert first["outcome"] in {"refused", "unreachable"}
    assert (first["bytes"] or 0) <= 4096


async def _delivered(db, event, endpoint):
    found = await stands(db, event, endpoint)
    return found is not None and found[0] == "delivered"
