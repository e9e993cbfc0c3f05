"""The command `replay`: it counts first, then goes, is watched, paused and ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
from test_cli import pghookd

DEAD = """with made as (
  insert into webhooks.events (site_id, type, payload, endpoint_id)
  select 's', 'order_created', to_json(n), -1 from generate_series(1, $1::int) n returning event_id)
insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
select event_id, 1, 's', 'exhausted', 10 from made"""


@pytest.fixture
async def dead(db, shop):
    """Return 40 dead deliveries of endpoint 1."""
    await shop.open()
    await db.execute(DEAD, 40)
    return [row[0] for row in await db.fetch("select event_id from webhooks.dead order by 1")]


async def test_a_dry_run_counts_and_changes_nothing(db, database, dead):
    done = pghookd("replay", "--site", "s", "--rate", "8", url=database)
    assert done.stdout.splitlines() == [
        "40 deliveries to 1 endpoint, 5 s at 8 a second",
        "This was a dry run; --go starts the replay.",
    ]
    done = pghookd("replay", "--event", str(dead[0]), "--since", "2h", "--json", url=database)
    told = {"deliveries": 1, "endpoints": 1, "rate_per_s": 100.0, "duration_s": 0.01}
    assert (done.returncode, json.loads(done.stdout)) == (0, told)
    assert await db.fetchval("select count(*) from webhooks.replays") == 0


@pytest.mark.slow
async def test_nonsense_is_a_usage_error(database):
    for args, words in (
        ((), "say what to replay"),
        (("--site", "s", "--state", "lost"), "dead, delivered, missed"),
        (("--since", "soon"), "invalid input syntax"),
        (("--site", "s", "pause", "1"), "no conditions"),
        (("--event", "x"), "event_id"),
    ):
        done = pghookd("replay", *args, url=database)
        assert (done.returncode, done.stdout) == (2, ""), args
        assert words in done.stderr
    assert pghookd("replay", "pause", "7", url=database).returncode == 1


@pytest.mark.slow
async def test_it_goes_and_is_watched_to_its_end(db, database, dead, receiver, start):
    await start(database)
    done = pghookd("replay", "--site", "s", "--go", url=database)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "replay 1 is done: 40 deliveries queued"
    await receiver.wait_for(40)
    assert {request.event_id for request in receiver.requests} == set(dead)


@pytest.mark.slow
async def test_the_end_of_watching_stops_nothing(db, database, dead, until):
    """No daemon runs: it would never end."""
    environ = {**os.environ, "PGHOOKD_DATABASE_URL": database}
    command = [sys.executable, "-m", "pghookd", "replay", "--site", "s", "--go"]
    watching = await asyncio.create_subprocess_exec(*command, env=environ, stdout=subprocess.PIPE)
    looks = """select 1 from pg_stat_activity
        where application_name = 'pghookd/replay' and query like '%where replay_id = $1%'"""
    await until(lambda: db.fetchval(looks), 20.0)
    watching.send_signal(signal.SIGINT)
    said, _ = await asyncio.wait_for(watching.communicate(), 20.0)
    assert watching.returncode == 0
    assert said.decode().splitlines()[-1] == "replay 1 continues; pghookd replay pause 1 pauses it"
    assert await db.fetchval("select state from webhooks.replays") == "running"
    for act, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
        assert pghookd("replay", act, "1", url=database).returncode == 0
        assert await db.fetchval("select state from webhooks.replays") == state


@pytest.mark.slow
async def test_killed_and_started_again_it_goes_on_where_it_was(db, database, shop, receiver, start, until):
    """Nothing is lost; only requests in flight or not yet recorded at a kill may come twice."""
    await shop.open(concurrency=8)
    await db.execute(DEAD, 1500)
    await db.execute("select webhooks.replay(site_id => 's', rate_per_s => 1000, dry_run => false)")
    for wanted in (200, 700):
        daemon = await start(database, delivery_concurrency=16, recorder_batch_max=50)
        await receiver.wait_for(wanted, 20.0)
        await daemon.kill()
    await start(database)

    async def ended():
        row = await db.fetchrow(
            "select state, done, (select count(*) from webhooks.backlog) from webhooks.replays"
        )
        return tuple(row) == ("done", 1500, 0)

    await until(ended, 30.0)
    times = Counter(request.event_id for request in receiver.requests)
    assert len(times) == 1500
    assert times.total() - 1500 <= 2 * (16 + 50)
    assert await db.fetchval("select count(*) from webhooks.dead") == 0
