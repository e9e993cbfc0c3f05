"""The outbox and its mailer: order, pace, second tries, and mails left behind by a killed mailer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal

import orjson
import pytest

from pghookd.owner_mail.digest import Kind
from pghookd.owner_mail.mailer import BACKOFF_S, BURST, DOUBTS_MAX, HOLD_S, LOOK_EVERY_S, Bucket, Shares
from pghookd.process import beating, fail_points
from pghookd.process.logs import LogEvent
from support.mail_server import DROP, HANG, Mailbox
from support.outbox import NOON_US, Clock, digest, office, run_until_killed

ANNA = "anna@shop.example"
MINUTE_US = 60_000_000


async def test_a_mail_is_sent_and_written_down(database):
    async with Mailbox() as box, office(database, box) as desk:
        email_id = await desk.queue(ANNA)
        assert await desk.step() == LOOK_EVERY_S
        (mail,) = box.mails
        row = await desk.row(email_id)
        assert await desk.step() == LOOK_EVERY_S
        assert len(box.mails) == 1
    assert mail.recipients == [ANNA]
    assert mail.message_id == f"<digest.{email_id}@platform.example>" == row["message_id"]
    assert mail.subject == "Webhook failing: shop.example [Shop]" == row["subject"]
    assert (row["state"], row["attempts"], row["error"]) == ("sent", 1, None)
    assert (row["sent_at"], row["next_attempt_at"]) == (NOON_US, None)
    (line,) = desk.diary.of(LogEvent.EMAIL_SENT)
    assert line["domain"] == "shop.example"
    assert line["answer"].startswith("OK queued")
    assert ANNA not in repr(desk.diary.lines)
    assert "https://shop.example/hook" not in repr(desk.diary.lines)


async def test_the_gravest_goes_first(database):
    kinds = [
        "storm",
        "faults",
        "disabled",
        "failing",
        "warning",
        "held_expiring",
        "flapping",
        "recovered",
        "reminder",
    ]
    assert sorted(kinds) == sorted(Kind)
    async with Mailbox() as box, office(database, box) as desk:
        for number, kind in enumerate(reversed(kinds)):
            await desk.queue(f"owner{number}@shop.example", kind)
        await desk.drain()
        assert [mail.message["X-Pghookd-Kind"] for mail in box.mails] == kinds


async def test_the_oldest_of_a_kind_goes_first(database):
    async with Mailbox() as box, office(database, box) as desk:
        for number in range(3):
            await desk.queue(f"owner{number}@shop.example")
            desk.clock.pass_s(1)
        await desk.drain()
        assert [mail.recipients for mail in box.mails] == [
            [f"owner{number}@shop.example"] for number in range(3)
        ]


async def test_no_more_in_a_minute_than_the_settings_say(database):
    async with Mailbox() as box, office(database, box, mail={"rate_per_min": 30}) as desk:
        for number in range(10):
            await desk.queue(f"owner@shop{number}.example")
        assert await desk.step() == pytest.approx(2)
        assert len(box.mails) == BURST
        desk.clock.pass_s(1)
        assert await desk.step() == pytest.approx(1)
        assert len(box.mails) == BURST
        desk.clock.pass_s(3)
        assert await desk.step() == pytest.approx(2)
        assert len(box.mails) == BURST + 2
        desk.clock.pass_s(3600)
        await desk.step()
        assert len(box.mails) == 10
        assert box.connections == 2


async def test_nobody_waits_behind_a_bomb_to_one_domain(database):
    """150 mails to one domain are older: the mail to another goes with the first, and the domain gets its share."""
    async with Mailbox() as box, office(database, box, mail={"rate_per_min": 60}) as desk:
        for number in range(150):
            await desk.queue(f"victim{number}@mx{number}.bank.example")
        desk.clock.pass_s(1)
        await desk.queue("good@x.example")
        await desk.step()
        domains = [mail.recipients[0].rpartition("@")[2] for mail in box.mails]
        assert "x.example" in domains[:2]
        for _ in range(120):
            desk.clock.pass_s(1)
            await desk.step()
        to_bank = [mail for mail in box.mails if mail.recipients[0].endswith("bank.example")]
        assert len(box.mails) == len(to_bank) + 1
        assert len(to_bank) == BURST + 12, "five at once, then a tenth of the rate"


async def test_fifty_shops_at_one_domain_get_their_mails_later(database):
    async with Mailbox() as box, office(database, box, mail={"rate_per_min": 60}) as desk:
        for number in range(50):
            await desk.queue(f"shop{number}@company.example")
        begun = desk.clock.seconds
        await desk.drain()
        assert len(box.mails) == 50
        assert 440 < desk.clock.seconds - begun < 480


async def test_a_provider_of_strangers_has_no_share_of_its_own(database):
    async with Mailbox() as box, office(database, box, mail={"rate_per_min": 60}) as desk:
        for number in range(30):
            await desk.queue(f"stranger{number}@gmail.com")
        begun = desk.clock.seconds
        await desk.drain()
        assert len(box.mails) == 30
        assert desk.clock.seconds - begun < 30


async def test_the_operators_mail_waits_for_no_domain(database):
    async with Mailbox() as box, office(database, box, mail={"rate_per_min": 60}) as desk:
        for number in range(30):
            await desk.queue(f"shop{number}@platform.example")
        while len(box.mails) < BURST:
            await desk.step()
        desk.clock.pass_s(2)
        await desk.queue("ops@platform.example", "storm")
        await desk.step()
        assert box.mails[int(BURST)].recipients == ["ops@platform.example"]


def test_only_domains_that_got_mails_lately_are_remembered():
    shares = Shares(6)
    for number in range(1000):
        shares.take(f"d{number}.example", number)
        shares.waits(number)
    assert len(shares._buckets) <= 11
    assert shares.waits(2000) == {}
    assert shares._buckets == {}


def test_a_bucket_is_full_after_a_quiet_time_and_no_fuller():
    bucket = Bucket(60, 3, now=0)
    assert [bucket.take(0) for _ in range(4)] == [0, 0, 0, 1]
    assert bucket.take(0.25) == 0.75
    assert bucket.take(1) == 0
    assert [bucket.take(1000) for _ in range(4)] == [0, 0, 0, 1]
    assert bucket.take(999) == 1  # a clock that goes back gives nothing
    assert Bucket(0.5, 1, now=0).take(0) == 0


# Second tries -----------------------------------------------------------------------------------------------------


async def test_a_deferred_mail_is_tried_again_ever_later(database):
    async with Mailbox() as box, office(database, box) as desk:
        email_id = await desk.queue(ANNA)
        box.script["RCPT"] = "451 4.7.1 Greylisted"
        waits = []
        for attempt in range(1, 7):
            await desk.step()
            row = await desk.row(email_id)
            assert (row["state"], row["attempts"]) == ("queued", attempt)
            assert row["error"] == "RCPT TO: 451 4.7.1 Greylisted"
            waits.append((row["next_attempt_at"] - desk.clock.wall_us()) / 1_000_000)
            desk.clock.pass_s(waits[-1] - 1)
            await desk.step()
            assert (await desk.row(email_id))["attempts"] == attempt
            desk.clock.pass_s(1)
        assert waits == [*BACKOFF_S, BACKOFF_S[-1], BACKOFF_S[-1]]
        del box.script["RCPT"]
        await desk.step()
        row = await desk.row(email_id)
    assert (row["state"], row["error"], row["attempts"]) == ("sent", None, 7)
    assert [mail.message_id for mail in box.mails] == [row["message_id"]]
    lines = desk.diary.of(LogEvent.EMAIL_FAILED)
    assert len(lines) == 6
    assert lines[0]["again_at"] == "2027-01-15T08:01:00+00:00"


async def test_a_mail_that_was_perhaps_taken_is_sent_again_as_it_was(database):
    async with Mailbox() as box, office(database, box) as desk:
        email_id = await desk.queue(ANNA)
        box.script["content"] = [DROP]
        await desk.step()
        row = await desk.row(email_id)
        assert (row["state"], row["attempts"], row["error"]) == (
            "queued",
            1,
            None,
        )  # so that nobody replaces it
        desk.clock.pass_s(BACKOFF_S[0])
        await desk.step()
        assert (await desk.row(email_id))["state"] == "sent"
    first, second = box.mails
    assert first.content == second.content
    assert (first.accepted, second.accepted) == (False, True)


async def test_doubt_outlasts_a_later_try_that_is_put_off(database):
    async with Mailbox() as box, office(database, box) as desk:
        email_id = await desk.queue(ANNA)
        box.script["content"] = [DROP, "451 later"]
        for attempt in (1, 2):
            await desk.step()
            row = await desk.row(email_id)
            assert (row["state"], row["attempts"], row["error"]) == ("queued", attempt, None)
            desk.clock.pass_s(BACKOFF_S[1])
        await desk.step()
        assert (await desk.row(email_id))["state"] == "sent"
    assert len({mail.message_id for mail in box.mails}) == 1


async def test_doubt_does_not_last_for_ever(database):
    async with Mailbox() as box, office(database, box) as desk:
        email_id = await desk.queue(ANNA)
        box.script["content"] = DROP
        for attempt in range(1, DOUBTS_MAX + 2):
            await desk.step()
            row = await desk.row(email_id)
            assert row["attempts"] == attempt
            assert (row["error"] is None) == (attempt <= DOUBTS_MAX)
            desk.clock.pass_s(BACKOFF_S[-1])


async def test_a_mail_refused_for_good_is_given_up(database):
    async with Mailbox() as box, office(database, box) as desk:
        refused, other = await desk.queue(ANNA), await desk.queue("bert@shop.example")
        box.script["content"] = ["554 5.6.0 no"]
        await desk.drain()
        row = await desk.row(refused)
        assert (row["state"], row["error"], row["next_attempt_at"]) == ("failed", "DATA: 554 5.6.0 no", None)
        assert (await desk.row(other))["state"] == "sent"
        assert not await desk.session.fetchval("select count(*) from webhooks.owners")
        (line,) = desk.diary.of(LogEvent.EMAIL_FAILED)
    assert (line["email_id"], line["error"]) == (refused, "DATA: 554 5.6.0 no")


async def test_an_address_that_does_not_exist_gets_nothing_for_a_week(database):
    async with Mailbox() as box, office(database, box) as desk:
        await desk.session.execute(
            "insert into webhooks.owners (owner_email, unsubscribe_token) values ('anna@shop.example', 'token')"
        )
        first = await desk.queue("Anna@Shop.example")
        box.script["RCPT"] = ["550 5.1.1 <ANNA@shop.example> unknown"]
        await desk.step()
        assert (await desk.row(first))["state"] == "failed"
        (line,) = desk.diary.of(LogEvent.EMAIL_FAILED)
        assert line["error"] == "RCPT TO: 550 5.1.1 <(address)> unknown"
        assert line["suspended_until"] == "2027-01-22T08:00:00+00:00"
        owner = await desk.session.fetchrow("select * from webhooks.owners")
        assert owner["owner_email"] == ANNA
        assert owner["suspended_until"] == NOON_US + 7 * 24 * 60 * MINUTE_US
        assert owner["suspended_reason"] == "RCPT TO: 550 5.1.1 <ANNA@shop.example> unknown"
        assert owner["unsubscribe_token"] == "token"
        second = await desk.queue("Anna@Shop.example", window_us=1)
        await desk.step()
        assert (await desk.row(second))["state"] == "suppressed"
        desk.clock.pass_s(8 * 86_400)
        third = await desk.queue("Anna@Shop.example", window_us=2)
        await desk.step()
        assert (await desk.row(third))["state"] == "sent"


# Owners who want no mails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "at_us", "kind", "state"),
    [
        ("muted_until", NOON_US + 1, "failing", "suppressed"),
        ("muted_until", NOON_US - 1, "failing", "sent"),
        ("suspended_until", NOON_US + 1, "failing", "suppressed"),
        ("unsubscribed_at", NOON_US - 1, "failing", "suppressed"),
        ("unsubscribed_at", NOON_US - 1, "storm", "sent"),
        ("suspended_until", NOON_US + 1, "storm", "suppressed"),
        ("muted_until", NOON_US + 1, "faults", "sent"),
    ],
)
async def test_who_wants_no_mail_gets_none(database, column, at_us, kind, state):
    async with Mailbox() as box, office(database, box) as desk:
        await desk.session.execute(
            f"insert into webhooks.owners (owner_email, {column}) values ('anna@shop.example', $1)", at_us
        )
        email_id = await desk.queue("Anna@shop.example", kind)
        await desk.step()
        row = await desk.row(email_id)
        assert (row["state"], row["next_attempt_at"]) == (state, None)
        assert len(box.mails) == (state == "sent")


# One faulty mail, a faulty server -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "faulty",
    [
        {"digest_text": orjson.dumps(dataclasses.asdict(digest("nobody"))).decode()},
        {"digest_text": "{}"},
        {"digest_text": "[1]"},
        {"digest_text": '{"kind": "failing", "sections": [1]}'},
        {"digest_text": '{"kind": "no such", "sections": []}'},
    ],
)
async def test_a_mail_that_cannot_be_rendered_harms_no_other(database, faulty):
    async with Mailbox() as box, office(database, box) as desk:
        bad, good = await desk.queue(ANNA, **faulty), await desk.queue("bert@shop.example")
        await desk.drain()
        row = await desk.row(bad)
        assert row["state"] == "failed"
        assert row["error"].startswith("cannot be rendered: ")
        assert (await desk.row(good))["state"] == "sent"


async def test_an_unreachable_server_is_logged_once_and_nothing_is_worked_off(database):
    async with Mailbox() as box:
        pass
    async with office(database, box) as desk:
        ids = [await desk.queue(f"owner{number}@shop.example") for number in range(5)]
        assert await desk.step() == HOLD_S[0]
        rows = [await desk.row(email_id) for email_id in ids]
        assert [row["attempts"] for row in rows] == [1, 0, 0, 0, 0]
        assert rows[0]["error"].startswith("connection: ")
        desk.clock.pass_s(1)
        assert await desk.step() == pytest.approx(HOLD_S[0] - 1)
        for hold_s in HOLD_S:
            desk.clock.pass_s(60)
            assert await desk.step() in {hold_s, HOLD_S[1], HOLD_S[2]}
        assert len(desk.diary.of(LogEvent.EMAIL_FAILED)) == 1
        async with Mailbox(port=box.port) as box_again:
            desk.clock.pass_s(BACKOFF_S[-1])
            await desk.drain()
            assert len(box_again.mails) == 5
    assert len(desk.diary.of(LogEvent.EMAIL_SENT)) == 5


async def test_a_faulty_template_is_logged_once(database, tmp_path):
    (tmp_path / "digest.txt.j2").write_text("{% if %}")
    async with Mailbox() as box, office(database, box, mail={"templates": str(tmp_path)}) as desk:
        for number in range(3):
            await desk.queue(f"owner{number}@shop.example")
        await desk.drain()
        assert len(box.mails) == 3
    (line,) = desk.diary.of(LogEvent.SETTINGS_REJECTED)
    assert "digest.txt.j2" in line["faults"]


async def test_nothing_goes_out_in_clear(database):
    async with Mailbox() as box, office(database, box, smtp={"tls": "starttls"}) as desk:
        email_id = await desk.queue(ANNA)
        await desk.step()
        row = await desk.row(email_id)
        assert not box.mails
    assert (row["state"], row["attempts"]) == ("queued", 1)
    assert "STARTTLS" in row["error"]


# Beside others ------------------------------------------------------------------------------------------------------


async def test_a_mail_that_was_replaced_meanwhile_is_not_sent(database, connect):
    beside = await connect(database)

    async def meanwhile(name):
        if name == "mail.read":
            await beside.execute("update webhooks.emails set state = 'superseded' where attempts = 0")

    async with Mailbox() as box, office(database, box) as desk:
        email_id = await desk.queue(ANNA)
        with fail_points.interrupted_by(meanwhile):
            await desk.step()
        row = await desk.row(email_id)
        assert (row["state"], row["attempts"], row["message_id"]) == ("superseded", 0, None)
        assert not box.mails


async def test_the_steps_of_a_mails_way(database):
    passed = []

    async def note(name):
        passed.append((name, desk.mailer.sending))

    async with Mailbox() as box, office(database, box) as desk:
        email_id = await desk.queue(ANNA)
        with fail_points.interrupted_by(note):
            await desk.step()
    assert passed == [
        ("mail.read", None),
        *((f"mail.{step}", email_id) for step in ("claimed", "connected", "accepted", "recorded")),
    ]
    assert desk.mailer.sending is None


async def test_it_runs_wakes_at_once_and_ends(database, until):
    async with Mailbox() as box, office(database, box) as desk:
        running = asyncio.create_task(desk.mailer.run())
        await until(lambda: desk.beats)
        await desk.queue(ANNA)
        desk.wake.set()
        await box.wait_for(1)
        desk.mailer.stop()
        async with asyncio.timeout(5):
            await running
        await until(lambda: not box._open)


async def test_it_beats_while_an_admin_has_locked_the_mails(database, connect, until, monkeypatch):
    """The watchdog must not end deliveries because mails wait."""
    monkeypatch.setattr(beating, "BEAT_S", 0.01)
    admin = await connect(database)
    async with Mailbox() as box, office(database, box) as desk:
        await admin.execute("begin; lock table webhooks.emails in access exclusive mode")
        running = asyncio.create_task(desk.mailer.run())
        waits = "select exists (select from pg_locks where pid = $1 and not granted)"
        await until(lambda: admin.fetchval(waits, desk.session.pid))
        beats = desk.beats
        await until(lambda: desk.beats > beats + 10)
        assert await admin.fetchval(waits, desk.session.pid)
        await admin.execute("rollback")
        desk.mailer.stop()
        await running


async def test_it_beats_while_a_server_is_slow(database, until):
    async with Mailbox() as box, office(database, box, within_s=30) as desk:
        email_id = await desk.queue(ANNA)
        box.script["RCPT"] = [HANG]
        running = asyncio.create_task(desk.mailer.run())
        await until(lambda: any(command.startswith("RCPT") for command in box.commands))
        assert desk.mailer.sending == email_id
        beats = desk.beats
        await until(lambda: desk.beats > beats)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        row = await desk.row(email_id)
        assert (row["attempts"], row["error"], row["state"]) == (1, None, "queued")
        await until(lambda: not box._open)


async def test_a_statement_that_is_refused_ends_nothing(database, connect, until):
    beside = await connect(database)
    await beside.execute("alter table webhooks.emails rename column subject to topic")
    async with Mailbox() as box, office(database, box) as desk:
        await desk.queue(ANNA)
        running = asyncio.create_task(desk.mailer.run())
        await desk.diary.wait_for(LogEvent.DATABASE_REFUSED)
        assert not running.done()
        assert not box.mails
        await beside.execute("alter table webhooks.emails rename column topic to subject")
        desk.wake.set()
        await box.wait_for(1)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


# Killed -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "before"),
    [
        ("mail.read", 0),
        ("mail.claimed", 0),
        ("mail.connected", 0),
        ("mail.accepted", 1),
        ("mail.recorded", 1),
    ],
)
async def test_a_kill_loses_nothing_and_repeats_at_most_the_mail_in_flight(database, where, before):
    async with Mailbox() as box, office(database, box) as desk:
        email_id = await desk.queue(ANNA)
        assert await run_until_killed(database, box.port, where) == -signal.SIGKILL
        assert len(box.mails) == before
        row = await desk.row(email_id)
        assert row["state"] == ("sent" if where == "mail.recorded" else "queued")
        assert row["error"] is None
    clock = Clock()
    clock.pass_s(86_400)
    async with box, office(database, box, clock=clock) as desk:
        await desk.step()
        assert (await desk.row(email_id))["state"] == "sent"
    assert len(box.mails) == (2 if where == "mail.accepted" else 1)
    assert {mail.content for mail in box.mails} == {box.mails[0].content}
    assert box.mails[0].message_id == f"<digest.{email_id}@platform.example>"
