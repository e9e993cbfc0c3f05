"""Ordered endpoints, with receivers that fail, a daemon that is killed, replays, and producers that overlap.

The promise: an event that was inserted after another of its key was committed is never delivered before it. So
the moments at which each insert began and each commit ended are noted, and held against the order in which the
receiver saw each event first.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import defaultdict

import asyncpg
import pytest

from support.daemon import ReceiverProcess
from support.events import emit

KILLS = 8
PRODUCERS = 4
EVENTS_EACH = 250
KEYS = ("a", "b", "c", "d", "e", None)
SETTINGS = {
    "retry_schedule": ",".join(["0.05s"] * 80),  # none of them dies
    "delivery_timeout_s": 1,
    "delivery_connect_timeout_s": 1,
    "breaker_share": 0,
}


@pytest.fixture
def rng():
    """Return the run's source of chance; PGHOOKD_TEST_SEED repeats a run."""
    seed = int(os.environ.get("PGHOOKD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"PGHOOKD_TEST_SEED={seed}")
    return random.Random(seed)


async def produce(url, rng, inserted):
    """Insert events in transactions that stay open for a while; note by event_id: key, insert begun, commit ended."""
    connection = await asyncpg.connect(url)
    for _ in range(EVENTS_EACH):
        key = rng.choice(KEYS)
        began = time.monotonic()
        async with connection.transaction():
            event_id = await emit(connection, ordering_key=key)
            await asyncio.sleep(rng.random() * 0.02)
        inserted[event_id] = (key, began, time.monotonic())
        await asyncio.sleep(rng.random() * 0.02)
    await connection.close()


def broken(entries, inserted):
    """Return the pairs of events of a key that were seen in the wrong order."""
    seen = defaultdict(dict)
    for entry in entries:
        event_id = int(entry["webhook-id"][4:18], 16)
        seen[inserted[event_id][0]].setdefault(event_id)
    found = []
    for events in seen.values():
        latest, latest_id = float("-inf"), None
        for event_id in events:
            _, began, committed = inserted[event_id]
            if committed < latest:
                found.append((event_id, latest_id))
            if began > latest:
                latest, latest_id = began, event_id
    return found


def test_the_check_finds_events_out_of_order():
    def entries(*ids):
        return [{"webhook-id": f"evt_{n:014x}{0:014x}"} for n in ids]

    inserted = {1: ("a", 0, 1), 2: ("a", 2, 3), 3: ("a", 2.5, 4), 4: ("b", 9, 10)}
    assert broken(entries(4, 1, 3, 2, 1), inserted) == []  # 2 and 3 overlap, 1 is a repeat
    assert broken(entries(2, 1), inserted) == [(1, 2)]


@pytest.mark.slow
async def test_no_key_is_seen_out_of_order(database, db, tmp_path, start, until, rng):
    async with ReceiverProcess(tmp_path / "received.jsonl", "answers:fickle") as receiving:
        await db.execute("insert into webhooks.sites (site_id, name) values ('s', 'a site')")
        await db.execute(
            "insert into webhooks.endpoints (site_id, url, ordered) values ('s', $1, true)",
            receiving.url("/"),
        )
        inserted = {}
        daemon = await start(database, **SETTINGS)
        async with asyncio.TaskGroup() as producing:
            for _ in range(PRODUCERS):
                producing.create_task(produce(database, random.Random(rng.random()), inserted))
            for number in range(KILLS):
                await asyncio.sleep(rng.uniform(0.1, 1.2))  # only the moment is random here
                if number % 2:
                    await db.execute(
                        "select webhooks.replay(site_id => 's', states => '{delivered}', dry_run => false)"
                    )
                await daemon.kill()
                assert not daemon.noise, daemon.told()
                daemon = await start(database, ready="", **SETTINGS)

        async def settled():
            return await db.fetchval(
                "select count(distinct event_id) = $1 and not exists (select from webhooks.backlog)"
                " and not exists (select from webhooks.replays where state = 'running')"
                " from webhooks.attempts where outcome = 'delivered'",
                len(inserted),
            )

        await until(settled, 90)
        daemon.stop()
        assert await daemon.ended() == 0
        assert len(inserted) == PRODUCERS * EVENTS_EACH
        assert not broken(receiving.entries(), inserted)
        attempts, replayed = await db.fetchrow(
            "select count(*), count(*) filter (where outcome = 'delivered') from webhooks.attempts"
        )
        print(*await db.fetch("select total, done, state, rate_per_s from webhooks.replays"), sep="\n")
        print(f"{len(inserted)} events, {attempts} attempts, {replayed} of them delivered")
        assert attempts > len(inserted) * 1.1
