"""Payloads, destinations and neighbours: bytes delivered as sent, destinations refused, neighbours undisturbed."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from support.events import Sql, emit
from support.receiver import Response
from support.shop import Shop

KIB = 1024


def _text(rng, size):
    """Return JSON of about that many bytes that does not compress, with odd blanks and characters in it."""
    filler = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789äß€ ", k=size // 2))
    return json.dumps({"a": filler}, ensure_ascii=False)[:-1] + ' ,\n "a" : 1.50e+01 }'


# Payloads -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("size", [15 * KIB, 16 * KIB, 20 * KIB, 300 * KIB, 3_000 * KIB])
async def test_a_large_payload_arrives_byte_for_byte(database, shop, start, receiver, reaches, size):
    endpoint = await shop.open()
    await start(database)
    payload = _text(random.Random(size), size)
    event = await shop.emit(payload=payload)
    await reaches(event, endpoint, "delivered")
    (request,) = receiver.requests
    assert request.body.endswith(b'"data":' + payload.encode() + b"}")


@pytest.mark.slow
async def test_a_large_payload_is_the_same_on_each_attempt_and_to_each_endpoint(
    database, shop, start, receiver, reaches
):
    receiver.script = lambda request: 500 if request.attempt == 1 else 200
    endpoints = [await shop.open("/a"), await shop.open("/b")]
    await start(database)
    event = await shop.emit(payload=json.dumps("x" * 100_000))
    for endpoint in endpoints:
        assert await reaches(event, endpoint, "delivered") == ("delivered", None, 2)
    assert len(receiver.requests) == 4
    assert len({request.body for request in receiver.requests}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1000, 50_000], ids=["read with its page", "loaded when sent"])
async def test_a_payload_over_the_limit_is_dead_and_its_neighbours_are_not(
    database, shop, start, receiver, reaches, limit
):
    endpoint = await shop.open()
    daemon = await start(database, delivery_payload_bytes_max=limit)
    fits, too_large = json.dumps("x" * (limit - 2)), json.dumps("x" * (limit - 1))
    events = [await shop.emit(payload=each) for each in (fits, too_large, fits)]
    assert await reaches(events[1], endpoint, "dead") == ("dead", "too_large", 0)
    for event in (events[0], events[2]):
        await reaches(event, endpoint, "delivered")
    assert len(receiver.requests) == 2
    assert await shop.attempts(events[1]) == []
    await daemon.wait_for("delivery.died", event_id=events[1], reason="too_large")


@pytest.mark.slow
async def test_many_large_payloads_pass_one_small_memory(database, shop, start, receiver, until):
    await shop.open()
    await start(database, delivery_payload_bytes_max=100_000, delivery_queue_bytes_max=200_000)
    payload = Sql("to_json(repeat(md5(n::text), case when n % 3 = 0 then 2000 else 300 end))")
    await emit(shop.db, 150, payload=payload)
    await until(
        lambda: shop.db.fetchval("select count(*) = 150 from webhooks.deliveries where state = 'delivered'"),
        30,
    )
    assert len(receiver.requests) == 150


# Destinations -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://10.1.2.3/hook", "literal"),
        ("http://[::1]/hook", "literal"),
        ("http://169.254.169.254/latest", "literal"),
        ("http://127.0.0.1:5432/", "port"),
        ("http://user:secret@127.0.0.1:8080/", "userinfo"),
        ("http://localhost:8080/", "name"),
        ("http://0x7f.1:8080/", "literal"),
    ],
)
async def test_a_url_that_is_not_allowed_is_dead_at_once(database, shop, start, reaches, url, error):
    endpoint = await shop.open(url=url)
    fine = await shop.open("/fine")
    daemon = await start(database)
    event = await shop.emit()
    assert await reaches(event, endpoint, "dead") == ("dead", "blocked", 1)
    await reaches(event, fine, "delivered")
    rows = await shop.db.fetch(
        "select outcome, status, error, response from webhooks.attempts where endpoint_id = $1", endpoint
    )
    (row,) = [tuple(row) for row in rows]
    assert row[:2] == ("blocked", None)
    assert row[2].partition(":")[0] == error
    assert row[3] is None
    assert "secret" not in daemon.told() + row[2]


@pytest.mark.slow
async def test_without_allow_this_machine_is_refused(database, shop, start, receiver, reaches):
    endpoint = await shop.open()
    await start(database, egress_allow="")
    event = await shop.emit()
    assert await reaches(event, endpoint, "dead") == ("dead", "blocked", 1)
    assert not receiver.connections


@pytest.mark.slow
async def test_a_port_that_nobody_listens_on_is_tried_again(database, shop, start, reaches):
    endpoint = await shop.open(url="http://127.0.0.1:61999/")
    await start(database, retry_schedule="0.1s,0.1s")
    event = await shop.emit()
    assert await reaches(event, endpoint, "dead") == ("dead", "exhausted", 3)
    assert {row[1:] for row in await shop.attempts(event)} == {("unreachable", None, "refused")}


@pytest.mark.slow
async def test_a_connection_that_is_cut_is_an_attempt_of_its_own(database, shop, start, receiver, reaches):
    receiver.script = lambda request: Response(cut=request.attempt == 1)
    endpoint = await shop.open()
    await start(database)
    event = await shop.emit()
    assert await reaches(event, endpoint, "delivered") == ("delivered", None, 2)
    first, second = await shop.attempts(event)
    assert (first[1], first[2]) == ("unreachable", None)
    assert second[:3] == (2, "delivered", 200)
    assert [request.attempt for request in receiver.requests] == [1, 2]


@pytest.mark.slow
async def test_an_endpoints_own_timeout_holds(database, shop, start, receiver, reaches):
    receiver.script = lambda request: Response(delay_s=30 if request.attempt == 1 else 0)
    endpoint = await shop.open(timeout_s=0.5)
    await start(database)
    event = await shop.emit()
    assert await reaches(event, endpoint, "delivered") == ("delivered", None, 2)
    first, _ = await shop.attempts(event)
    assert first == (1, "timeout", None, "response")


# Sites and neighbours -----------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_no_event_reaches_an_endpoint_of_another_site(database, db, start, receiver, until):
    shops = [Shop(db, receiver, until, f"site {n}") for n in range(40)]
    for number, shop in enumerate(shops):
        await shop.open(f"/{number}")
    await start(database)
    await emit(db, 20, site=[shop.site_id for shop in shops], payload=Sql("to_json(substr(site, 6)::int)"))
    await until(lambda: db.fetchval("select count(*) = 800 from webhooks.attempts"), 20)
    assert len(receiver.requests) == 800
    assert all(request.path == f"/{request.data}" for request in receiver.requests)


@pytest.mark.slow
async def test_an_event_for_one_endpoint_goes_to_that_one_only(database, shop, start, receiver, reaches):
    meant = await shop.open("/meant", event_types=["something.else"])
    await shop.open("/other")
    await start(database)
    event = await emit(shop.db, kind="webhook_test", endpoint_id=meant)
    after = await shop.emit("something.else")
    await reaches(event, meant, "delivered")
    await reaches(after, meant, "delivered")
    assert set(await shop.stands(event)) == {meant}
    assert not [request for request in receiver.of("/other") if request.event_id == event]


@pytest.mark.slow
async def test_a_reserved_type_is_not_part_of_the_star(database, shop, start, reaches):
    star = await shop.open("/star")
    named = await shop.open("/named", event_types=["webhook_test"])
    await start(database)
    event = await shop.emit("webhook_test")
    await reaches(event, named, "delivered")
    await reaches(await shop.emit(), star, "delivered")
    assert set(await shop.stands(event)) == {named}


@pytest.mark.slow
async def test_memory_that_a_hanging_endpoint_has_filled_is_given_to_the_others(
    database, shop, start, receiver, until
):
    """The bound is bytes here, not the length of a lane: its surplus is shed, the neighbour does not wait."""
    hang = asyncio.Event()

    async def hanging(_request):
        await hang.wait()
        return 200

    receiver.paths["/hangs"] = hanging
    bad, good = await shop.open("/hangs", event_types=["bad"]), await shop.open("/good", event_types=["good"])
    await start(
        database,
        delivery_concurrency=16,
        delivery_endpoint_concurrency=4,
        delivery_queue_bytes_max=100_000,
        delivery_payload_bytes_max=50_000,
    )
    payload = json.dumps("x" * 1000)
    await emit(shop.db, 600, kind="bad", payload=payload)
    await receiver.wait_for(1)
    await emit(shop.db, 200, kind="good", payload=payload)
    done = "select count(*) = $2 from webhooks.attempts where endpoint_id = $1 and outcome = 'delivered'"
    await until(lambda: shop.db.fetchval(done, good, 200), 8.0)
    assert len(receiver.of("/hangs")) <= 4
    hang.set()
    await until(lambda: shop.db.fetchval(done, bad, 600), 30)
    await until(lambda: shop.db.fetchval("select count(*) = 0 from webhooks.backlog"))
    assert len(receiver.requests) == 800
