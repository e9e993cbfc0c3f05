"""Receivers fail, Postgres restarts, daemon and mail server break off: owners get one report of each failure."""

from __future__ import annotations

import asyncio
import collections

import asyncpg
import pytest
import pytest_asyncio

from pghookd.postgres import migrate
from support import checker
from support.daemon import BOUNDED, UNRECORDED_MAX
from support.events import emit
from support.mail_server import DROP, Mailbox
from support.receiver import Receiver, read_log

SETTINGS = {
    **BOUNDED,
    "database_heartbeat_s": 0.5,
    "retry_schedule": "0.2s,0.4s",
    "retry_jitter": 0,
    "breaker_share": 0,
    "storm_share": 0,
    "mail_sender": "hooks@platform.example",
    "mail_first_wait_s": 1,
    "mail_gap_s": 0.5,
    "mail_urgent_gap_s": 0.5,
    "mail_recovered_after_s": 2,
    "mail_reminders": ",".join(f"{n}s" for n in range(2, 60, 2)),
    "mail_daily_max": 1000,
    "mail_rate_per_min": 6000,
    "mail_check_s": 0.1,
    "smtp_tls": "none",
    "smtp_host": "127.0.0.1",
}
SITES = {"anna": ("/a", "/b"), "bert": ("/c", "/d")}
FAILING = ("/a", "/b", "/c")
BURST = 4  # events at once


@pytest.fixture
async def box():
    async with Mailbox() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def failing(tmp_path):
    """Return a receiver that refuses all that is sent to FAILING."""
    async with Receiver(log=tmp_path / "received.jsonl") as running:
        for path in FAILING:
            running.paths[path] = lambda _request: 500
        yield running


async def _open_sites(db, receiver):
    for site, paths in SITES.items():
        await db.execute(
            "insert into webhooks.sites (site_id, name, owner_email) values ($1, $1, $1 || '@shop.example')",
            site,
        )
        for path in paths:
            await db.execute(
                "insert into webhooks.endpoints (site_id, url, secret) values ($1, $2, webhooks.new_secret())",
                site,
                receiver.url(path),
            )


async def _told(db):
    """Return True if owners know of everything that was given up, and that it works again.

    Minutes pass here: the one after which a mail in doubt is sent again, the ten after which its owner is checked.
    """
    await db.execute(
        "update webhooks.emails set next_attempt_at = now() where next_attempt_at > now() + interval '9 s'"
    )
    await db.execute(
        "update webhooks.incidents set next_look_at = now() where next_look_at > now() + interval '9 s'"
    )
    return await db.fetchval(
        "select not exists (select from webhooks.emails where state = 'queued')"
        " and not exists (select from webhooks.backlog)"
        " and not exists (select from webhooks.endpoint_health where health <> 'healthy')"
    )


@pytest.mark.short
async def test_owners_get_reports_of_failures_despite_other_faults(
    own_server, start, failing, box, until, tmp_path
):
    await migrate.migrate(own_server.url())
    db = await asyncpg.connect(own_server.url())
    await _open_sites(db, failing)
    smtp = {**SETTINGS, "smtp_port": box.port}
    daemons = [await start(own_server.url(), **smtp)]
    given_up = "select count(*) >= $1 from webhooks.dead"

    await emit(db, BURST, site=SITES)
    await until(lambda: len(box.accepted) >= 2, 20)  # both owners
    await emit(db, BURST, site=SITES)
    db.terminate()
    await asyncio.to_thread(own_server.stop, "immediate")
    await daemons[0].wait_for("database.lost")
    await asyncio.to_thread(own_server.start)
    await daemons[0].wait_for("database.restored")
    db = await asyncpg.connect(own_server.url())
    await until(lambda: db.fetchval(given_up, 2 * BURST * len(FAILING)), 30)

    box.script["content"] = [DROP]  # the next mail is taken and its answer lost: in doubt
    await emit(db, BURST, site=SITES)
    await daemons[0].wait_for("email.failed", seconds=30)
    await daemons[0].kill()
    daemons.append(await start(own_server.url(), **smtp))
    await until(lambda: db.fetchval(given_up, 3 * BURST * len(FAILING)), 30)

    failing.paths.clear()  # all works again
    await emit(db, site=SITES)
    await until(lambda: _told(db), 60)
    lost = sum(len(each.said("database.lost")) for each in daemons)
    entries = read_log(tmp_path / "received.jsonl")
    await checker.check(db, entries, repeats_max=(lost + 1) * UNRECORDED_MAX, states=("delivered", "dead"))
    # Of the kill, the crash and the cut each may have left one mail in doubt.
    told = await checker.check_mails(db, box.accepted, repeats_max=3, under_way_max=BURST)
    assert told.deliveries >= 2 * BURST * len(FAILING)
    assert {mail.recipients[0] for mail in box.accepted} == {"anna@shop.example", "bert@shop.example"}
    await db.close()
    assert not any(each.noise for each in daemons)


async def test_a_flood_of_failures_is_two_mails(database, db, start, failing, box, until, tmp_path):
    """6,000 deliveries fail within seconds, each of them twice: one mail says so, with counts, and one at the end."""
    await _open_sites(db, failing)
    daemon = await start(
        database, smtp_port=box.port, **{**SETTINGS, "mail_reminders": "6h", "retry_schedule": "0.2s"}
    )
    await emit(db, 2000, site=SITES)
    dead = "select count(*) = 6000 from webhooks.dead"
    await until(lambda: db.fetchval(dead), 100)
    failing.paths.clear()
    await emit(db, site=SITES)
    await until(lambda: _told(db), 60)
    entries = read_log(tmp_path / "received.jsonl")
    await checker.check(db, entries, repeats_max=0, states=("delivered", "dead"))
    told = await checker.check_mails(db, box.accepted, under_way_max=UNRECORDED_MAX)
    assert 6_000 - 3 * UNRECORDED_MAX <= told.deliveries <= 6_000
    assert collections.Counter(mail.recipients[0] for mail in box.accepted) == {
        "anna@shop.example": 2,
        "bert@shop.example": 2,
    }
    assert not daemon.said("database.lost")
    assert not daemon.noise
