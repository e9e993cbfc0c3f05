"""Two copies on one database: one owns, the other stands by and takes over, however the first one fails."""

from __future__ import annotations

import asyncio
import time

import pytest

from support import checker
from support.daemon import UNRECORDED_MAX, VIGILANT, ReceiverProcess
from support.events import emit

pytestmark = pytest.mark.slow

LEASE_S = 3
SLACK_S = 3  # the second looks twice a second, opens its sessions, and the machine may be busy
SETTINGS = {**VIGILANT, "database_lease_s": LEASE_S}


@pytest.fixture
async def receiving(db, tmp_path):
    """Return a receiver that takes its time, and an endpoint for it."""
    async with ReceiverProcess(tmp_path / "received.jsonl", "answers:slow") as running:
        await db.execute("insert into webhooks.sites (site_id, name) values ('s', 'a site')")
        await db.execute(
            "insert into webhooks.endpoints (site_id, url, concurrency) values ('s', $1, 32)",
            running.url("/"),
        )
        yield running


@pytest.fixture
def both(database, start):
    """Return `await both()`: the owner, and a second one that stands by."""

    async def start_both():
        first = await start(database, delivery_user_agent="first", **SETTINGS)
        second = await start(database, delivery_user_agent="second", ready="standing by", **SETTINGS)
        return first, second

    return start_both


def all_delivered(db, count):
    async def held():
        return count == await db.fetchval(
            "select count(*) from webhooks.attempts where outcome = 'delivered'"
        )

    return held


async def test_the_second_stands_by_and_takes_over_within_seconds_of_a_kill(db, both, receiving, until):
    first, second = await both()
    await emit(db, 2000)
    await until(lambda: len(receiving.entries()) > 300)
    assert not second.said("shard.taken")
    await first.kill()
    killed = time.monotonic()
    await second.ready("reading the log")
    assert time.monotonic() - killed < SLACK_S
    await until(all_delivered(db, 2000), 30)
    owners = ("first", "second")
    await checker.check(db, receiving.entries(), repeats_max=UNRECORDED_MAX, owners=owners)
    assert not second.said("database.lost")


async def test_the_second_takes_over_at_once_when_the_first_gets_sigterm(db, both, receiving, until):
    first, second = await both()
    await emit(db, 1000)
    await until(lambda: len(receiving.entries()) > 200)
    first.stop()
    assert await first.ended() == 0
    await second.ready("reading the log", seconds=SLACK_S)
    await until(all_delivered(db, 1000), 30)
    await checker.check(db, receiving.entries(), repeats_max=0)


async def test_a_frozen_owner_loses_its_lease_and_never_acts_as_an_owner_again(db, both, receiving, until):
    first, second = await both()
    await emit(db, 2000)
    await until(lambda: len(receiving.entries()) > 300)
    first.freeze()
    frozen = time.monotonic()
    await second.wait_for("shard.taken", seconds=LEASE_S + SLACK_S)
    assert time.monotonic() - frozen < LEASE_S + SLACK_S
    await second.ready("reading the log")
    # While it is still at work, so that whatever the first did would collide with it.
    await until(lambda: any(entry["user-agent"] == "second" for entry in receiving.entries()))
    by_first = sum(entry["user-agent"] == "first" for entry in receiving.entries())
    rows = await db.fetchval("select count(*) from webhooks.attempts")
    first.thaw()
    await first.wait_for("database.lost")
    await first.wait_for("daemon.ready", count=1, status="standing by")
    await until(all_delivered(db, 2000), 30)
    assert sum(entry["user-agent"] == "first" for entry in receiving.entries()) == by_first
    assert rows < 2000
    owners = ("first", "second")
    await checker.check(db, receiving.entries(), repeats_max=UNRECORDED_MAX, owners=owners)
    assert len(first.said("shard.taken")) == 1
    # And the other way round: it is a standby like any other.
    await second.kill()
    await first.wait_for("shard.taken", count=2, seconds=SLACK_S)
    await emit(db, 100)
    await until(all_delivered(db, 2100))


async def test_an_idle_owner_that_is_frozen_hands_over_too(db, both, receiving, until):
    first, second = await both()
    await emit(db)
    await until(all_delivered(db, 1))
    first.freeze()
    await second.ready("reading the log", seconds=LEASE_S + SLACK_S)
    await emit(db, 200)
    await until(all_delivered(db, 201))
    first.thaw()
    await first.wait_for("daemon.ready", status="standing by")
    await checker.check(db, receiving.entries(), repeats_max=0)
    assert {entry["user-agent"] for entry in receiving.entries()[1:]} == {"second"}


async def test_two_that_start_together_agree_on_one_owner(db, database, start, receiving, until):
    daemons = await asyncio.gather(*(start(database, ready="", **SETTINGS) for _ in range(3)))
    await asyncio.gather(*(daemon.ready("") for daemon in daemons))
    owners = [daemon for daemon in daemons if daemon.said("daemon.ready", status="reading the log")]
    assert len(owners) == 1
    await emit(db, 300)
    await until(all_delivered(db, 300))
    await checker.check(db, receiving.entries(), repeats_max=0)
