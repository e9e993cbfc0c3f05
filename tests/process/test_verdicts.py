"""The outcome of each answer, seen from both ends: the receiver's requests, and the rows."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac

import pytest

from support.events import emit
from support.receiver import Response


@pytest.mark.slow
async def test_a_success_is_one_request_and_one_row(database, shop, start, receiver, reaches):
    endpoint = await shop.open(secret="whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    await start(database)
    payload = '{"b" : 1e2,  "a":[1,2] , "a": "\\u00e9"}'
    event = await shop.emit(payload=payload)
    assert await reaches(event, endpoint, "delivered") == ("delivered", None, 1)
    assert await shop.attempts(event) == [(1, "delivered", 200, None)]
    (request,) = receiver.requests
    webhook_id = await shop.db.fetchval(
        "select webhooks.webhook_id(event_id, created_at) from webhooks.events"
    )
    assert request.webhook_id == webhook_id
    assert request.body.endswith(b'"data":' + payload.encode() + b"}")
    assert request.headers["x-webhook-topic"] == "order_created"
    assert request.headers["x-webhook-source"] == "https://shop.example"
    assert request.headers["webhook-signature"].startswith("v1,")


@pytest.mark.slow
async def test_a_failure_is_tried_again_on_the_schedule_with_the_same_bytes(
    database, shop, start, receiver, reaches
):
    receiver.script = lambda request: 500 if request.attempt < 3 else 200
    endpoint = await shop.open()
    await start(database, retry_schedule="0.3s,0.6s", retry_jitter=0)
    event = await shop.emit()
    assert await reaches(event, endpoint, "delivered") == ("delivered", None, 3)
    assert [row[:3] for row in await shop.attempts(event)] == [
        (1, "refused", 500),
        (2, "refused", 500),
        (3, "delivered", 200),
    ]
    first, second, third = receiver.requests
    assert first.body == second.body == third.body
    assert {r.webhook_id for r in receiver.requests} == {first.webhook_id}
    assert "webhook-signature" not in first.headers
    assert second.arrived - first.arrived >= 0.3
    assert third.arrived - second.arrived >= 0.6


@pytest.mark.slow
async def test_what_never_succeeds_is_dead_and_says_why(database, shop, start, receiver, reaches):
    receiver.script = lambda _request: Response(404, body=b"nothing here")
    endpoint = await shop.open()
    daemon = await start(database, retry_schedule="0.1s,0.1s")
    event = await shop.emit()
    assert await reaches(event, endpoint, "dead") == ("dead", "exhausted", 3)
    assert len(receiver.requests) == 3
    assert await shop.db.fetchval("select response from webhooks.attempts limit 1") == b"nothing here"
    assert await shop.db.fetchval("select count(*) from webhooks.backlog") == 0
    await daemon.wait_for("delivery.died", event_id=event, reason="exhausted")


@pytest.mark.slow
async def test_a_redirect_is_not_followed(database, shop, start, receiver, reaches):
    receiver.script = lambda _request: Response(302, headers=(("location", receiver.url("/elsewhere")),))
    endpoint = await shop.open()
    await start(database, retry_schedule="0.1s")
    event = await shop.emit()
    await reaches(event, endpoint, "dead")
    assert {request.path for request in receiver.requests} == {"/a"}
    assert {row[1:3] for row in await shop.attempts(event)} == {("refused", 302)}


@pytest.mark.slow
async def test_retry_after_is_obeyed(database, shop, start, receiver, reaches):
    receiver.script = lambda r: Response(429, headers=(("retry-after", "2"),)) if r.attempt == 1 else 200
    endpoint = await shop.open()
    await start(database, retry_schedule="0.1s", retry_jitter=0)
    event = await shop.emit()
    await reaches(event, endpoint, "delivered")
    first, second = receiver.requests
    assert second.arrived - first.arrived >= 2.0


@pytest.mark.slow
async def test_the_receiver_may_give_one_event_up(database, shop, start, receiver, reaches):
    receiver.script = lambda _request: Response(500, headers=(("webhook-delivery", "abort-message"),))
    endpoint = await shop.open()
    await start(database)
    event = await shop.emit()
    assert await reaches(event, endpoint, "dead") == ("dead", "aborted", 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "reason"),
    [(Response(410), "gone"), (Response(500, headers=(("webhook-delivery", "disable"),)), "receiver")],
    ids=["410", "webhook-delivery"],
)
@pytest.mark.parametrize("way", ["function", "update"])
async def test_gone_holds_everything_until_enabled(
    database, shop, start, receiver, reaches, answer, reason, way
):
    receiver.script = lambda _request: answer
    endpoint = await shop.open()
    daemon = await start(database)
    first = await shop.emit()
    assert await reaches(first, endpoint, "held") == ("held", "disabled", 1)
    await daemon.wait_for("endpoint.disabled", endpoint_id=endpoint, reason=reason)
    row = await shop.db.fetchrow("select enabled, disabled_reason, disabled_at from webhooks.endpoints")
    assert (row["enabled"], row["disabled_reason"]) == (False, reason)
    assert row["disabled_at"] is not None
    later = [await shop.emit() for _ in range(5)]
    for event in later:
        assert await reaches(event, endpoint, "held") == ("held", "disabled", 0)
    asked = len(receiver.requests)
    receiver.script = lambda _request: 200
    if way == "function":
        assert await shop.db.fetchval("select webhooks.enable_endpoint($1, 'deliver')", endpoint) == 6
    else:
        await shop.db.execute("update webhooks.endpoints set enabled = true")
    for event in (first, *later):
        await reaches(event, endpoint, "delivered")
    assert len(receiver.requests) == asked + 6
    assert await shop.db.fetchval("select count(*) from webhooks.backlog") == 0


@pytest.mark.slow
async def test_an_endpoint_disabled_by_its_owner_holds_its_queue(database, shop, start, receiver, until):
    """Hundreds are queued behind a slow receiver: within a second nothing more goes out, and all are kept."""
    receiver.script = lambda _request: Response(delay_s=0.2)
    endpoint = await shop.open()
    await start(database)
    await emit(shop.db, 400)
    await receiver.wait_for(5)
    await shop.db.execute("update webhooks.endpoints set enabled = false")
    await until(
        lambda: shop.db.fetchval(
            "select count(*) filter (where state = 'held' and reason = 'disabled') + count(distinct a.event_id) = 400"
            " from webhooks.backlog b full join (select event_id from webhooks.attempts where outcome = 'delivered') a"
            " using (event_id)"
        )
    )
    assert len(receiver.requests) < 200
    assert await shop.db.fetchval("select disabled_reason from webhooks.endpoints") == "owner"
    asked = len(receiver.requests)
    await shop.db.execute("select webhooks.enable_endpoint($1, 'drop')", endpoint)
    assert (
        await shop.db.fetchval("select count(*) from webhooks.dead where reason = 'dropped'") == 400 - asked
    )


@pytest.mark.slow
async def test_queued_work_uses_the_url_and_secret_of_now(database, shop, start, receiver, until):
    receiver.script = lambda _request: Response(delay_s=0.2)
    await shop.open(secret="old secret")
    await start(database)
    await emit(shop.db, 300)
    await receiver.wait_for(5)
    await shop.db.execute(
        "update webhooks.endpoints set url = $1, secret = 'new secret'", receiver.url("/new")
    )
    await until(lambda: any(request.path == "/new" for request in receiver.requests), 3.0)
    request = next(request for request in receiver.requests if request.path == "/new")
    signed = f"{request.webhook_id}.{request.headers['webhook-timestamp']}.".encode() + request.body
    digest = hmac.new(b"new secret", signed, hashlib.sha256).digest()
    assert request.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


async def test_each_endpoint_gets_what_it_asked_for(database, shop, start, receiver, reaches):
    everything = await shop.open("/all")
    orders = await shop.open("/orders", event_types=["order_created", "order_updated"])
    await start(database)
    order, form = await shop.emit("order_updated"), await shop.emit("form_submitted")
    await reaches(order, everything, "delivered")
    await reaches(order, orders, "delivered")
    await reaches(form, everything, "delivered")
    assert set(await shop.stands(form)) == {everything}
    late = await shop.open("/late")
    after = await shop.emit()
    await reaches(after, late, "delivered")
    assert {request.event_id for request in receiver.requests if request.path == "/late"} == {after}


@pytest.mark.slow
async def test_work_of_a_deleted_endpoint_goes_nowhere(database, shop, start, receiver, until):
    receiver.script = lambda _request: Response(delay_s=0.2)
    endpoint = await shop.open()
    other = await shop.open("/other")
    await start(database)
    await emit(shop.db, 300)
    await receiver.wait_for(5)
    await shop.db.execute("delete from webhooks.endpoints where endpoint_id = $1", endpoint)
    done = "select count(*) from webhooks.attempts where endpoint_id = $1 and outcome = 'delivered'"
    await until(lambda: _is(shop.db.fetchval(done, other), 300), 30.0)
    assert sum(request.path == "/a" for request in receiver.requests) < 100
    assert (
        await shop.db.fetchval("select count(*) from webhooks.backlog where endpoint_id = $1", endpoint) == 0
    )


@pytest.mark.slow
async def test_a_hanging_endpoint_keeps_no_other_waiting(database, shop, start, receiver, until):
    """Twice as many as its lane holds are for an endpoint that hangs: they are parked, the others go out."""
    hang = asyncio.Event()

    async def hanging(_request):
        await hang.wait()
        return 200

    receiver.paths["/hangs"] = hanging
    bad = await shop.open("/hangs", event_types=["bad"])
    good = await shop.open("/good", event_types=["good"])
    daemon = await start(database, delivery_endpoint_concurrency=4, delivery_concurrency=16)
    await emit(shop.db, 2500, kind="bad")
    await emit(shop.db, 300, kind="good")
    done = "select count(*) from webhooks.attempts where endpoint_id = $1 and outcome = 'delivered'"
    await until(lambda: _is(shop.db.fetchval(done, good), 300), 15.0)
    await daemon.wait_for("delivery.parked", endpoint_id=bad)
    assert await shop.db.fetchval("select count(*) from webhooks.backlog where state = 'parked'") > 1000
    assert receiver.in_flight_max <= 16
    hang.set()
    await until(lambda: _is(shop.db.fetchval(done, bad), 2500), 30.0)
    await until(lambda: _is(shop.db.fetchval("select count(*) from webhooks.backlog"), 0))
    assert len(receiver.requests) == 2800


async def _is(found, wanted):
    return await found == wanted
