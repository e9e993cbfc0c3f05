"""From failure to owner: an endpoint fails, its owner gets a digest, it works again, the owner gets a mail."""

from __future__ import annotations

import asyncio
import json

import pytest

from support import SUPPORT
from support.mail_server import Mailbox
from support.receiver import OK, Response

pytestmark = pytest.mark.slow

QUICK = {
    "MAIL_SENDER": "hooks@platform.example",
    "MAIL_FIRST_WAIT_S": 1,
    "MAIL_GAP_S": 0.5,
    "MAIL_URGENT_GAP_S": 0.5,
    "MAIL_RECOVERED_AFTER_S": 1,
    "MAIL_CHECK_S": 0.1,
    "RETRY_SCHEDULE": "0.2s,0.3s,0.5s,1s,1s,1s,1s,1s,1s,1s,1s,1s",
    "RETRY_JITTER": 0,
    "BREAKER_SHARE": 0,
    "SMTP_TLS": "none",
    "SMTP_HOST": "127.0.0.1",
}
STEPS = (
    "care.decided",
    "care.written",
    "care.committed",
    "mail.read",
    "mail.claimed",
    "mail.connected",
    "mail.accepted",
    "mail.recorded",
)


@pytest.fixture
async def box():
    async with Mailbox() as running:
        yield running


@pytest.fixture
async def owner(db, shop):
    await db.execute(
        "insert into webhooks.sites (site_id, name, url, owner_email, time_zone)"
        " values ('s', 'Anna''s Shop', 'https://shop.example', 'Anna@Shop.example', 'Europe/Berlin')"
    )
    return "anna@shop.example"


def smtp(box):
    return {**QUICK, "SMTP_PORT": box.port}


def kinds(box):
    return [mail.message["X-Pghookd-Kind"] for mail in box.accepted]


async def test_an_owner_gets_mails_of_a_failure_and_of_the_recovery(
    db, database, start, shop, receiver, box, owner, until
):
    endpoint = await shop.open("/a?token=secret")
    other = await shop.open("/b")
    receiver.paths["/a"] = lambda _request: Response(500, body=b"<b>boom</b>")
    await start(database, **smtp(box))
    for _ in range(5):
        await shop.emit(payload='{"card": "payload-marker"}')
    await until(lambda: kinds(box), 15)
    receiver.paths["/a"] = lambda _request: OK
    await until(lambda: len(kinds(box)) == 2, 30)
    assert kinds(box) == ["failing", "recovered"]
    first, second = box.accepted
    assert first.recipients == second.recipients == [owner]
    text = first.message.get_body(("plain",)).get_content()
    assert "500" in text
    assert "order_created" in text
    assert "5" in text
    for secret in ("token", "payload-marker"):
        assert secret not in first.content.decode()
    assert first.message["References"] == second.message["References"]
    rows = await db.fetch("select kind, state from webhooks.emails order by email_id")
    assert [tuple(row) for row in rows] == [("failing", "sent"), ("recovered", "sent")]
    assert await db.fetchval("select count(*) from webhooks.attempts where endpoint_id = $1", other) == 5
    health = await db.fetchrow("select * from webhooks.endpoint_health where endpoint_id = $1", endpoint)
    assert (health["health"], health["waiting"], health["dead"]) == ("healthy", 0, 0)


async def test_an_owner_gets_mails_of_a_slow_filter_and_of_the_recovery(
    db, database, start, shop, box, owner, until
):
    slow = "exists($.a[*] ? (exists($.a[*] ? (@ == -1))))"  # the square of the array's length
    endpoint = await shop.open("/a")
    await db.execute("update webhooks.endpoints set filter = $1::text::jsonpath", slow)
    await start(database, **smtp(box))
    for _ in range(5):
        await shop.emit(payload=json.dumps({"a": list(range(3000)), "total": 101}))
    parked = "select count(*) from webhooks.backlog where reason = 'filter_slow' having count(*) = 5"
    await until(lambda: db.fetchval(parked), 10)
    await until(lambda: db.fetchval("select exists (select from webhooks.incidents)"))
    # The minute in which it may be another's fault has passed.
    await db.execute(
        "update webhooks.incidents set next_look_at = now(), first_failure_at = first_failure_at - interval '1 minute'"
    )
    await until(lambda: kinds(box), 15)
    text = box.accepted[0].message.get_body(("plain",)).get_content()
    for words in ("filter takes too long", "Simplify the filter", "5 order events are waiting"):
        assert words in " ".join(text.split())
    await db.execute("update webhooks.endpoints set filter = '$.total > 100'")
    await until(lambda: len(kinds(box)) == 2, 30)
    assert kinds(box) == ["failing", "recovered"]
    assert await db.fetchval("select count(*) from webhooks.attempts where outcome = 'delivered'") == 5
    health = await db.fetchrow("select * from webhooks.endpoint_health where endpoint_id = $1", endpoint)
    assert (health["health"], health["parked"], health["dead"]) == ("healthy", 0, 0)


async def test_gone_disables_and_the_owner_gets_a_mail_about_held_events(
    db, database, start, shop, receiver, box, owner, until
):
    endpoint = await shop.open("/a")
    receiver.paths["/a"] = lambda _request: Response(410)
    await start(database, **smtp(box))
    await shop.emit()
    await until(lambda: "disabled" in kinds(box), 15)
    health = await db.fetchrow("select * from webhooks.endpoint_health where endpoint_id = $1", endpoint)
    assert (health["health"], health["disabled_reason"], health["held"]) == ("disabled", "gone", 1)
    assert kinds(box) == ["disabled"]


@pytest.mark.parametrize("step", STEPS)
async def test_a_kill_at_any_step_loses_no_digest_and_repeats_at_most_one(
    db, database, start, shop, receiver, box, owner, until, step
):
    await shop.open("/a")
    receiver.paths["/a"] = lambda _request: Response(500)
    await shop.emit()
    program = [str(SUPPORT / "killed_daemon.py")]
    kill = {"PGHOOKD_TEST_KILL_AT": step}
    dying = await start(database, ready=False, environ=kill, program=program, **smtp(box))
    async with asyncio.timeout(30):
        assert await dying.ended() == -9
    # The minute after which a mail in doubt is sent again has passed.
    await db.execute("update webhooks.emails set next_attempt_at = now() where state = 'queued'")
    await start(database, **smtp(box))
    await until(lambda: "failing" in kinds(box), 20)
    sent = "select count(*) from webhooks.emails where state = 'sent'"
    await until(lambda: db.fetchval(f"{sent} and kind = 'failing'"), 20)
    told = [mail for mail in box.accepted if mail.message["X-Pghookd-Kind"] == "failing"]
    assert len({mail.message_id for mail in told}) == 1
    assert len(told) == (2 if step == "mail.accepted" else 1)
    assert len({mail.content for mail in told}) == 1
    assert await db.fetchval("select count(*) from webhooks.emails where kind = 'failing'") == 1


async def test_an_outage_of_the_mail_server_costs_one_mail_and_no_delivery(
    db, database, start, shop, receiver, box, owner, until
):
    await shop.open("/a")
    await shop.open("/b")
    receiver.paths["/a"] = lambda _request: Response(500)
    box.script["connect"] = "421 closed for the night"
    daemon = await start(database, **smtp(box))
    for _ in range(20):
        await shop.emit()
    delivered = "select count(*) from webhooks.attempts where outcome = 'delivered'"
    await until(lambda: db.fetchval(f"{delivered} having count(*) = 20"), 10)
    await daemon.wait_for("email.failed", 15)
    assert not box.accepted
    receiver.paths["/a"] = lambda _request: OK
    # Deferred, so that the mail reports the final state: folded into one mail when there is other news to report.
    await until(lambda: db.fetchval("select count(*) > 1 from webhooks.emails"), 30)
    box.script.clear()
    await until(lambda: box.accepted, 90)
    states = [row[0] for row in await db.fetch("select state from webhooks.emails order by email_id")]
    assert set(states[:-1]) == {"superseded"}
    assert len(box.accepted) == 1
    assert kinds(box) == ["recovered"]
