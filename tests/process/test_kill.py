"""The daemon is killed and Postgres crashes at random moments: nothing is lost, repeats are few and identical."""

from __future__ import annotations

import asyncio
import os
import random

import asyncpg
import pytest

from pghookd.postgres import migrate
from support import checker
from support.daemon import ReceiverProcess
from support.events import emit

pytestmark = pytest.mark.slow

SITES = 50
EVENTS = 20_000
CHUNK = 40
AHEAD_MAX = 1600  # events in the log that have not arrived yet: work for every moment, and never all of it
KILLS = 10
RESTARTS = 2
MOODS = {"ok": "delivered", "flaky": "delivered", "mute": "delivered", "lost": "dead", "gone": "held"}
EVENTS_EACH = 600
CONCURRENCY = 64
BATCH_MAX = 100

GONE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@pytest.fixture
def rng():
    """Return the run's source of chance; PGHOOKD_TEST_SEED repeats a run."""
    seed = int(os.environ.get("PGHOOKD_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"PGHOOKD_TEST_SEED={seed}")
    return random.Random(seed)


class Producer:
    """Inserts chunk after chunk, each exactly once whatever happens to the server."""

    def __init__(self, url, received, rng, until):
        self._url = url
        self._received = received
        self._rng = rng
        self._until = until
        self._connection = None
        self._committed = 0

    async def run(self):
        for number in range(EVENTS // CHUNK):
            await self._until(lambda: self._committed - self._received() <= AHEAD_MAX, 60)
            sites = [f"site {self._rng.randrange(SITES)}" for _ in range(CHUNK)]
            payloads = [f'{{ "chunk":{number},  "n":{n}e0 }}' for n in range(CHUNK)]
            chunk = (f"chunk/{number}", sites, payloads)
            await self._until(lambda chunk=chunk: self._insert(*chunk), 60)
            self._committed += CHUNK
        await self._connection.close()

    async def _insert(self, subject, sites, payloads):
        """Insert a chunk unless it is there: the result of a COMMIT that was cut off is unknown."""
        try:
            if self._connection is None:
                self._connection = await asyncpg.connect(self._url)
            await self._connection.execute(
                "insert into webhooks.events (site_id, type, payload, subject)"
                " select site_id, 'order_created', payload::json, $3"
                " from unnest($1::text[], $2::text[]) as u(site_id, payload) where not exists"
                " (select from webhooks.events e where e.site_id = any ($1) and e.subject = $3)",
                sites,
                payloads,
                subject,
            )
        except GONE:
            if self._connection is not None:
                self._connection.terminate()
                self._connection = None
            return False
        return True


async def _sites(url, receiving):
    connection = await asyncpg.connect(url)
    await connection.execute(
        "insert into webhooks.sites (site_id, name) select 'site ' || n, 'a site' from generate_series(0, $1) n",
        SITES - 1,
    )
    await connection.execute(
        "insert into webhooks.endpoints (site_id, url, secret)"
        " select site_id, $1 || replace(site_id, ' ', '-'), webhooks.new_secret() from webhooks.sites",
        receiving.url("/"),
    )
    await connection.close()


async def _settled_moody(connection):
    return await connection.fetchval(
        "select count(*) = $1 and bool_and(state <> 'parked' and state <> 'waiting') from webhooks.deliveries",
        len(MOODS) * EVENTS_EACH,
    )


async def _settled(connection):
    return await connection.fetchval(
        "select (select count(*) from webhooks.events) = $1 and not exists (select from webhooks.backlog)"
        " and (select count(*) from webhooks.attempts where outcome = 'delivered') >= $1",
        EVENTS,
    )


async def test_ten_kills_and_two_crashes_of_postgres_lose_nothing(own_server, tmp_path, start, until, rng):
    url = own_server.url()
    await migrate.migrate(url)
    settings = {"delivery_concurrency": CONCURRENCY, "recorder_batch_max": BATCH_MAX}
    async with ReceiverProcess(tmp_path / "received.jsonl", "answers:lively") as receiving:
        await _sites(url, receiving)

        def received():
            return len(receiving.entries())

        daemon = await start(url, **settings)
        producing = asyncio.create_task(Producer(url, received, rng, until).run())
        faults = ["kill"] * KILLS + ["restart"] * RESTARTS
        rng.shuffle(faults)
        for n, fault in enumerate(faults, 1):
            if rng.random() < 0.75:  # at work, after some progress
                share = (n - rng.random()) / (len(faults) + 1)
                await until(lambda share=share: received() >= share * EVENTS, 60)
                await asyncio.sleep(rng.uniform(0, 0.03))
            else:  # while starting or recovering
                await asyncio.sleep(rng.uniform(0, 1.2))
            if fault == "kill":
                await daemon.kill()
                assert not daemon.noise, daemon.told()
                daemon = await start(url, ready=None, **settings)
            else:
                await asyncio.to_thread(own_server.stop, "immediate")
                await asyncio.to_thread(own_server.start)
        async with asyncio.timeout(60):
            await producing
        connection = await asyncpg.connect(url)
        await until(lambda: _settled(connection), 60)
        daemon.stop()
        assert await daemon.ended() == 0
        assert not daemon.noise, daemon.told()
        found = await checker.check(
            connection,
            receiving.entries(),
            repeats_max=(KILLS + RESTARTS) * (CONCURRENCY + BATCH_MAX),
        )
        assert found.deliveries == EVENTS
        print(found)
        await connection.close()


async def test_two_instances_are_killed_among_receivers_that_fail(database, db, tmp_path, start, until, rng):
    """Retries, deaths, parked and held deliveries all have the right state, and each attempt is counted once."""
    kills = 8
    settings = {
        "delivery_concurrency": CONCURRENCY,
        "recorder_batch_max": BATCH_MAX,
        "delivery_timeout_s": 0.5,
        "delivery_connect_timeout_s": 0.5,
        "breaker_share": 0,  # a lost event dies by its schedule
    }
    async with ReceiverProcess(tmp_path / "received.jsonl", "answers:moody") as receiving:
        await db.execute(
            "insert into webhooks.sites (site_id, name) select unnest($1::text[]), 'a site'", list(MOODS)
        )
        await db.execute(
            "insert into webhooks.endpoints (site_id, url) select site_id, $1 || site_id from webhooks.sites",
            receiving.url("/"),
        )
        daemons = [await start(database, ready="", **settings) for _ in range(2)]
        each = EVENTS_EACH // kills
        for _ in range(kills):
            await emit(db, each, site=MOODS)
            await asyncio.sleep(rng.uniform(0.2, 1.2))  # only the moment is random here
            owner = next((d for d in daemons if len(d.said("shard.taken")) and d.running), daemons[0])
            await owner.kill()
            assert not owner.noise, owner.told()
            daemons.remove(owner)
            daemons.append(await start(database, ready="", **settings))
        await until(lambda: _settled_moody(db), 60)
        for daemon in reversed(daemons):
            daemon.stop()
            assert await daemon.ended() == 0
            assert not daemon.noise, daemon.told()
        found = await checker.check(
            db,
            receiving.entries(),
            repeats_max=kills * (CONCURRENCY + BATCH_MAX),
            states=("delivered", "dead", "held"),
        )
        print(found)
        rows = await db.fetch(
            "select site_id, state, reason, count(*) from webhooks.deliveries group by 1, 2, 3"
        )
        reasons = {"delivered": None, "dead": "exhausted", "held": "disabled"}
        expected = [(mood, state, reasons[state], EVENTS_EACH) for mood, state in MOODS.items()]
        assert sorted(map(tuple, rows)) == sorted(expected)
        assert await db.fetchval("select max(attempts) from webhooks.dead") == 4
