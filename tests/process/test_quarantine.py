"""A delivery that takes the daemon down is found, held, and released by a function; nothing else waits for long."""

from __future__ import annotations

from functools import partial

import pytest

from support import poison
from support.events import emit

pytestmark = pytest.mark.slow

ENDS_MAX = 8
AROUND = 60  # events before and after the one, of several sites
STATE = "select state, reason, attempts from webhooks.deliveries where event_id = $1"
COUNTS = (
    "select count(*) as settled, count(*) filter (where state = 'held') as held,"
    " count(*) filter (where state <> 'delivered') as left_over,"
    " (select count(*) from webhooks.events) as events from webhooks.deliveries"
)
LEFT = "select count(*) from webhooks.deliveries where state <> 'delivered'"


@pytest.fixture
async def sites(db, receiver_process):
    for n in range(6):
        await db.execute("insert into webhooks.sites (site_id, name) values ($1, 'a site')", f"s{n}")
        await db.execute(
            "insert into webhooks.endpoints (site_id, url) values ($1, $2)",
            f"s{n}",
            receiver_process.url("/"),
        )
    return [f"s{n}" for n in range(6)]


async def insert(db, sites, count):
    return [await emit(db, site=sites[n % 6], payload=f'{{"n": {n}}}') for n in range(count)]


async def run_until_it_stays(url, db, start, until, left):
    """Start it again each time that it has been taken down, as systemd would; return it and the ends before."""
    for ends in range(ENDS_MAX + 1):
        daemon = await start(url, ready=False, program=(poison.__file__,))
        await until(partial(_ended_or_done, daemon, db, left), 60)
        if daemon.running:
            return daemon, ends
        assert await daemon.ended() < 0
    raise AssertionError(f"it was taken down {ENDS_MAX + 1} times")


def received(receiver_process):
    return [int(entry["webhook-id"][4:18], 16) for entry in receiver_process.entries()]


async def _ended_or_done(daemon, db, left):
    """Return True if it has ended, or if all events are settled and so many of them are left."""
    counts = await db.fetchrow(COUNTS)
    return not daemon.running or (
        counts["settled"] == counts["events"] and counts["left_over"] == counts["held"] == left
    )


@pytest.mark.parametrize("retried", [False, True], ids=["fresh from the log", "due in backlog"])
async def test_a_delivery_that_crashes_the_daemon_is_held_and_the_log_moves_on(
    database, db, sites, receiver_process, start, until, retried
):
    before = await insert(db, sites, AROUND)
    culprit = await emit(db, site="s3", payload=f'{{"n": "{poison.POISON.decode()}"}}')
    after = await insert(db, sites, AROUND)
    if retried:
        [endpoint_id] = [
            row[0]
            for row in await db.fetch("select endpoint_id from webhooks.endpoints where site_id = 's3'")
        ]
        await db.execute(
            "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, next_attempt_at)"
            " values ($1, $2, 's3', 'waiting', 'retry', now())",
            culprit,
            endpoint_id,
        )
    daemon, ends = await run_until_it_stays(database, db, start, until, left=1)
    assert 5 <= ends <= ENDS_MAX
    print(f"held after {ends} ends")
    assert tuple(await db.fetchrow(STATE, culprit)) == ("held", "quarantined", 0)
    line = await daemon.wait_for("row.quarantined")
    assert line["event_id"] == culprit
    assert line["unclean_ends"] == ends
    later = await insert(db, sites, 6)
    await until(lambda: _all_received(receiver_process, {*before, *after, *later}), 20)
    assert daemon.running
    daemon.stop()
    assert await daemon.ended() == 0
    await _release(database, db, start, until, culprit, receiver_process)


async def _all_received(receiver_process, event_ids):
    return set(received(receiver_process)) == event_ids


async def _release(database, db, start, until, culprit, receiver_process):
    """Send it with a daemon that it does no harm to."""
    await start(database)
    assert await db.fetchval("select webhooks.release($1)", culprit) == 1
    assert await db.fetchval("select webhooks.release($1)", culprit) == 0
    await until(lambda: _delivered(db), 20)
    assert received(receiver_process)[-1] == culprit
    assert await db.fetchval("select count(*) from webhooks.operations where what = 'release'") == 1


async def _delivered(db):
    return await db.fetchval(LEFT) == 0


async def test_kills_for_no_reason_hold_nothing(database, db, sites, receiver_process, start, until):
    for _ in range(8):
        await insert(db, sites, AROUND)
        before = len(set(received(receiver_process)))
        daemon = await start(database)
        await until(partial(_more_received, receiver_process, before + AROUND - 15), 20)
        await daemon.kill()
    daemon = await start(database)
    await until(partial(_ended_or_done, daemon, db, 0), 60)
    assert daemon.said("delivery.suspected", unclean_ends=8)
    assert len(set(received(receiver_process))) == 8 * AROUND


async def _more_received(receiver_process, count):
    return len(set(received(receiver_process))) >= count
