"""The checker is checked: each way of cheating is found by the invariant that is meant for it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json

import pytest
from standardwebhooks.webhooks import Webhook

from support import checker
from support.events import emit
from support.mail_server import Mail

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def _entry(event, attempt, status):
    body = b'{"id":"%s","data":%s}' % (event["webhook_id"].encode(), event["payload"].encode())
    timestamp = event["now"]
    signature = Webhook(SECRET).sign(event["webhook_id"], timestamp, body.decode())
    return {
        "path": "/hook",
        "status": status,
        "sha256": hashlib.sha256(body).hexdigest(),
        "body": base64.b64encode(body).decode(),
        "webhook-id": event["webhook_id"],
        "webhook-timestamp": str(int(timestamp.timestamp())),
        "webhook-signature": signature,
        "x-webhook-attempt": str(attempt),
    }


@pytest.fixture
async def run(db):
    """Return the receiver's entries of an honest run: three events, the second of which failed once."""
    await db.execute("insert into webhooks.sites (site_id, name) values ('s', 'a site')")
    await db.execute(
        "insert into webhooks.endpoints (site_id, url, secret) values ('s', 'http://127.0.0.1/hook', $1)",
        SECRET,
    )
    await emit(db, 3, kind="a", payload="{ }")
    events = await db.fetch(
        "select event_id, payload::text, webhooks.webhook_id(event_id, created_at), now() from webhooks.events"
        " order by event_id"
    )
    entries = []
    for event, statuses in zip(events, [(200,), (500, 200), (200,)], strict=True):
        for attempt, status in enumerate(statuses, 1):
            entries.append(_entry(event, attempt, status))
            await db.execute(
                "insert into webhooks.attempts"
                " (event_id, endpoint_id, attempted_at, duration_ms, attempt, status, outcome, site_id)"
                " values ($1, (select endpoint_id from webhooks.endpoints), clock_timestamp(), 1, $2, $3, $4, 's')",
                event["event_id"],
                attempt,
                status,
                "delivered" if status == 200 else "refused",
            )
    return entries


async def test_an_honest_run_passes(db, run):
    found = await checker.check(db, run, repeats_max=0)
    assert (found.deliveries, found.attempts, found.received, found.repeats, found.hidden) == (3, 4, 4, 0, 0)


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        (
            "delete from webhooks.attempts where event_id = (select max(event_id) from webhooks.events)",
            "lost 1",
        ),
        ("delete from webhooks.attempts where status = 500", r"is numbered \[2\]"),
        ("update webhooks.attempts set attempted_at = now() + attempt * interval '-1 hour'", "out of order"),
        ("update webhooks.attempts set status = 204 where attempt = 2", "a phantom"),
        ("update webhooks.attempts set outcome = 'delivered' where status = 500", "a false outcome"),
        ("update webhooks.attempts set status = null where attempt = 2", "a false outcome"),
        (
            "insert into webhooks.dead select event_id, endpoint_id, 's', 'x', 1 from webhooks.attempts limit 1",
            "two states",
        ),
        ("update webhooks.events set payload = '{}'", "other bytes than the producer's"),
        (
            "delete from webhooks.events where event_id = (select max(event_id) from webhooks.events)",
            "not for",
        ),
    ],
)
async def test_rows_that_lie(db, run, sql, fault):
    await db.execute(sql)
    with pytest.raises(AssertionError, match=fault):
        await checker.check(db, run, repeats_max=0)


async def test_success_that_the_receiver_never_decided_on(db, run):
    run[0]["status"] = 500
    with pytest.raises(AssertionError, match="a phantom"):
        await checker.check(db, run, repeats_max=0)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, "more repeats"),
        ({"sha256": "0"}, "different bytes"),
        ({"x-webhook-attempt": "9", "status": 500}, "more sends without a row"),
    ],
    ids=["twice", "other bytes", "an attempt without a row"],
)
async def test_sends_that_nobody_speaks_of(db, run, change, fault):
    with pytest.raises(AssertionError, match=fault):
        await checker.check(db, [*run, run[0] | change], repeats_max=0)


async def test_an_attempt_that_came_too_soon(db, run):
    with pytest.raises(checker.BrokenError) as caught:
        await checker.check(db, run, repeats_max=0, waits_s=(5.0,))
    assert caught.value.checks == {"schedule"}


@pytest.mark.parametrize(
    ("agents", "holds"), [("aabb", True), ("aaaa", True), ("aaba", False), ("abab", False)]
)
async def test_instances_that_send_in_turn(db, run, agents, holds):
    entries = [entry | {"user-agent": agent} for entry, agent in zip(run, agents, strict=True)]
    with contextlib.nullcontext() if holds else pytest.raises(checker.BrokenError, match="exclusion:"):
        await checker.check(db, entries, repeats_max=0, owners=("a", "b"))


@pytest.mark.parametrize(("after_s", "holds"), [(0.1, True), (2.0, False)])
async def test_a_first_send_that_came_late(db, run, after_s, holds):
    created_at = await db.fetchval("select max(created_at) from webhooks.events")
    entries = [entry | {"wall": created_at.timestamp() + after_s} for entry in run]
    with contextlib.nullcontext() if holds else pytest.raises(checker.BrokenError, match="wake_up:"):
        await checker.check(db, entries, repeats_max=0, awake_within_s=1.0)


async def test_all_that_does_not_hold_is_named(db, run):
    run[0]["status"] = 500
    with pytest.raises(checker.BrokenError) as caught:
        await checker.check(db, [*run, run[3]], repeats_max=0)
    named = {"no_phantom", "at_least_once", "bounded_duplicates", "no_hidden_sends"}
    assert caught.value.checks == named


async def test_a_signature_that_is_not_ours(db, run):
    run[0]["webhook-signature"] = "v1,AAAA"
    with pytest.raises(Exception, match="No matching signature"):
        await checker.check(db, run, repeats_max=0)


# Mails to owners ------------------------------------------------------------------------------------------------


OWNER = "anna@shop.example"


def _mail(number, body="text", to=OWNER, kind="failing"):
    content = (
        f"Message-ID: <digest.{number}@p.example>\r\nX-Pghookd-Kind: {kind}\r\nSubject: s\r\n\r\n{body}\r\n"
    )
    return Mail("hooks@p.example", [to], content.encode(), 1, secure=False, accepted=True)


@pytest.fixture
async def told(db, run):
    """Return the mails of an honest run: the second event was given up, and its owner notified once."""
    await db.execute("update webhooks.sites set owner_email = $1", OWNER)
    await db.execute("delete from webhooks.attempts where attempt = 2")
    await db.execute(
        "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts, since)"
        " select event_id, endpoint_id, 's', 'exhausted', 1, now() from webhooks.attempts where status = 500"
    )
    lost = await db.fetchrow(
        "select endpoint_id, webhooks.webhook_id(event_id, now()) as webhook_id from webhooks.dead"
    )
    for number, ids in ((1, [lost["webhook_id"]]), (2, [])):
        section = {"endpoint_id": lost["endpoint_id"], "event_ids": ids, "types": [["a", len(ids)]]}
        await db.execute(
            "insert into webhooks.emails (owner_email, kind, window_start, message_id, state, digest)"
            " values ($1, 'failing', now() + $2 * interval '1 s', $3, 'sent', $4::text::jsonb)",
            OWNER,
            number,
            f"<digest.{number}@p.example>",
            json.dumps({"sections": [section]}),
        )
    return [_mail(1), _mail(2)]


async def test_honest_mails_pass(db, told):
    found = await checker.check_mails(db, told)
    assert (found.mails, found.repeats, found.deliveries) == (2, 0, 1)


@pytest.mark.parametrize(
    ("sql", "fault"),
    [
        (
            "update webhooks.emails set state = 'superseded' where message_id like '%.2@%'",
            "was taken and is superseded",
        ),
        ("update webhooks.emails set state = 'queued' where message_id like '%.2@%'", "is queued"),
        (
            "update webhooks.emails set digest = (select digest from webhooks.emails where message_id like '%.2@%')",
            "given up",
        ),
        (
            "update webhooks.emails set digest = (select digest from webhooks.emails where message_id like '%.1@%')",
            "of twice",
        ),
        ("update webhooks.attempts set outcome = 'delivered', status = 200", "never failed"),
        ("update webhooks.sites set owner_email = null", "not theirs"),
        ("update webhooks.emails set owner_email = 'bert@shop.example'", "went to"),
    ],
)
async def test_mails_that_lie(db, told, sql, fault):
    await db.execute(sql)
    with pytest.raises(AssertionError, match=fault):
        await checker.check_mails(db, told)


@pytest.mark.parametrize(
    ("mails", "fault"),
    [
        ((1, 2, 2), "1 mails came again"),
        ((1,), "counted as sent, and never taken"),
        ((1, 2, 3), "nobody meant to send"),
    ],
)
async def test_mails_too_many_or_too_few(db, told, mails, fault):
    with pytest.raises(AssertionError, match=fault):
        await checker.check_mails(db, [_mail(number) for number in mails])


async def test_a_mail_that_says_something_else_the_second_time(db, told):
    with pytest.raises(AssertionError, match="something else"):
        await checker.check_mails(db, [*told, _mail(2, body="other")], repeats_max=1)
