"""Counts and durations of attempts by hour and by day are compared with a list that the test makes of the attempts.

Hours are counted by the daemon's own step, whose grace the test chooses. Attempts are made up over a few days, some of
them of events of earlier days, as retries are.
"""

from __future__ import annotations

import asyncio
import collections
import datetime as dt
import math
import random
import time

import asyncpg
import pytest
import structlog

from pghookd.event_log.reading.unclaimed import Unclaimed
from pghookd.postgres import client
from pghookd.postgres.client import query
from pghookd.runtime.upkeep import activity
from pghookd.runtime.upkeep.maintenance import Duties, maintain, tidy
from pghookd.runtime.upkeep.retention import Policy, Retention
from support.crew import Diary
from support.events import emit

DAY = 2**32
HOUR = dt.timedelta(hours=1)
OFF, OFF_MS = 0.26, 1.3  # by how much a percentile may be off: a share of it, but milliseconds of a short one
ASK = "select * from webhooks.endpoint_activity($1, $2, $3, $4)"


class Attempts:
    """Attempts in the database, and a list of them."""

    def __init__(self, con, endpoints):
        self.con, self.endpoints = con, endpoints
        self.made = []  # (endpoint_id, attempted_at, duration_ms, outcome)
        self._numbers = iter(range(1, 10**9))

    async def add(self, endpoint_id, at, duration_ms=10.0, outcome="delivered", *, days_before=0):
        """Insert one, of an event of so many days before today."""
        self.made.append((endpoint_id, at, duration_ms, outcome))
        await self.con.execute(
            "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome,"
            " site_id) values ((webhooks.day_of() - $6::int) * 4294967296 + $1, $2, $3, $4, 1, $5,"
            " (select site_id from webhooks.endpoints where endpoint_id = $2))",
            next(self._numbers), endpoint_id, at, duration_ms, outcome, days_before,
        )  # fmt: skip

    def expected(self, endpoint_id, unit):
        """Return the rows expected of endpoint_activity by bucket: counts, and the exact percentiles."""
        buckets = collections.defaultdict(list)
        for which, at, duration_ms, outcome in self.made:
            if which == endpoint_id:
                start = {"minute": 0, "second": 0, "microsecond": 0} | ({"hour": 0} if unit == "day" else {})
                buckets[at.replace(**start)].append((duration_ms, outcome))
        return {at: self._row(rows) for at, rows in sorted(buckets.items())}

    @staticmethod
    def _row(rows):
        durations = sorted(duration_ms for duration_ms, _ in rows)
        delivered = sum(outcome == "delivered" for _, outcome in rows)
        p50, p95 = (durations[math.ceil(share * len(rows)) - 1] for share in (0.5, 0.95))
        return len(rows), delivered, len(rows) - delivered, p50, p95

    async def shown(self, endpoint_id, since=None, until=None, unit="hour", con=None):
        return await (con or self.con).fetch(ASK, endpoint_id, since, until, unit)

    async def check(self, unit="hour"):
        """Compare the rows of each endpoint with the list."""
        for endpoint_id in self.endpoints:
            expected = self.expected(endpoint_id, unit)
            shown = await self.shown(endpoint_id, unit=unit)
            assert [row["bucket"] for row in shown] == list(expected)
            for row in shown:
                *counts, p50, p95 = expected[row["bucket"]]
                assert [row["attempts"], row["delivered"], row["failed"]] == counts
                assert abs(row["p50_ms"] - p50) <= max(p50 * OFF, OFF_MS)
                assert abs(row["p95_ms"] - p95) <= max(p95 * OFF, OFF_MS)


@pytest.fixture
async def con(database, connect):
    connection = await connect(database)
    await connection.execute(
        "insert into webhooks.sites (site_id, name) values ('s', 'S'), ('t', 'T');"
        "insert into webhooks.endpoints (site_id, url) values ('s', 'http://x'), ('s', 'http://y'), ('t', 'http://z');"
        "insert into webhooks.shards (shard, floor) values (0, 9e15);"
        "select webhooks.attach_day(webhooks.day_of() - 1), webhooks.attach_day(webhooks.day_of() - 2)"
    )
    return connection


@pytest.fixture
async def attempts(con):
    ids = [row[0] for row in await con.fetch("select endpoint_id from webhooks.endpoints order by 1")]
    return Attempts(con, ids)


@pytest.fixture
async def now(con):
    """Return the beginning of the current hour; counting begins three days before."""
    at = await con.fetchval("select date_trunc('hour', now(), 'UTC')")
    await con.execute("update webhooks.upkeep set next_hour = $1", at - dt.timedelta(days=3))
    return at


@pytest.fixture
async def scattered(attempts, now):
    """Make 400 attempts of all endpoints at random, from three days ago until now."""
    rng = random.Random(20)
    for _ in range(400):
        at = now + HOUR - dt.timedelta(seconds=rng.random() ** 2 * 73 * 3600)
        outcome = rng.choice(["delivered", "delivered", "refused", "timeout"])
        duration_ms = rng.choice([0.2, 1.0, 10 ** rng.uniform(0, 4.5)])
        await attempts.add(
            rng.choice(attempts.endpoints), at, duration_ms, outcome, days_before=rng.randrange(3)
        )
    await attempts.con.execute(
        "select setval('webhooks.events_event_id_seq', (select max(event_id) from webhooks.attempts))"
    )
    return attempts


async def roll_up(con, grace="10 minutes", hours=1000):
    """Count the hours that are due; return them."""
    counted = []
    while len(counted) < hours and (hour := await con.fetchval(f"select webhooks.roll_up_hour('{grace}')")):
        counted.append(hour)
    return counted


# Rows of charts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["hour", "day"])
@pytest.mark.parametrize("hours", [0, 1, 30, 1000])
async def test_counts_and_percentiles_are_those_of_the_attempts(scattered, hours, unit):
    """However many of the hours are counted already: none, a part, or all that are over."""
    await roll_up(scattered.con, hours=hours)
    await scattered.check(unit)


async def test_hours_that_are_counted_need_no_attempts_any_more(scattered, now):
    await roll_up(scattered.con)
    await scattered.con.execute("delete from webhooks.attempts where attempted_at < $1", now - HOUR)
    await scattered.check()


async def test_attempts_of_the_running_hour_are_shown_at_once(attempts, now):
    assert await roll_up(attempts.con)
    for n in range(3):
        await attempts.add(attempts.endpoints[0], now, 10.0 * n)
        await attempts.check()


async def test_buckets_of_both_ends_are_whole(attempts, now):
    endpoint_id = attempts.endpoints[0]
    hours = [now - n * HOUR for n in range(6, 0, -1)]
    for hour in hours:
        await attempts.add(endpoint_id, hour)
        await attempts.add(endpoint_id, hour + HOUR - dt.timedelta(microseconds=1))
    await roll_up(attempts.con, hours=3 * 24 - 3)  # the last three are not counted
    half = HOUR / 2
    for since, until, expected in (
        (hours[1], hours[4], hours[1:4]),
        (hours[1] + half, hours[4] + half, hours[1:5]),
        (hours[1] + half, None, hours[1:]),
        (None, hours[2] + half, hours[:3]),
        (hours[3], hours[3], []),
        (hours[4], hours[1], []),
    ):
        shown = await attempts.shown(endpoint_id, since, until)
        assert [(row["bucket"], row["attempts"]) for row in shown] == [(hour, 2) for hour in expected]
    midnight = hours[0].replace(hour=0)
    shown = await attempts.shown(endpoint_id, hours[3], hours[3] + half, "day")
    assert shown[0]["bucket"] in {midnight, midnight + dt.timedelta(days=1)}
    assert shown[0]["attempts"] == attempts.expected(endpoint_id, "day")[shown[0]["bucket"]][0]


async def test_hours_and_days_are_those_of_utc_whatever_the_session_says(scattered):
    await scattered.con.execute("set time zone 'Asia/Kolkata'")
    await roll_up(scattered.con, hours=30)
    await scattered.check("hour")
    await scattered.check("day")


async def test_durations_at_the_ends_of_the_scale(attempts, now):
    """A duration that is not a number does not stop the counting."""
    for n, duration_ms in enumerate((0.0, -1.0, 1e9, math.inf, math.nan)):
        await attempts.add(attempts.endpoints[0], now - (10 - n) * HOUR, duration_ms)
    await roll_up(attempts.con)
    shown = await attempts.shown(attempts.endpoints[0])
    assert [row["p50_ms"] < 1.3 for row in shown] == [True, True, False, False, False]
    assert max(row["p95_ms"] for row in shown) < 100_001


@pytest.mark.parametrize("bucket", ["week", "", None])
async def test_another_bucket_is_refused(attempts, bucket):
    with pytest.raises(asyncpg.InvalidParameterValueError, match="bucket is hour or day, not"):
        await attempts.shown(1, unit=bucket)


# Counting ------------------------------------------------------------------------------------------------------------


async def test_an_hour_waits_for_its_grace_and_the_next_one_for_it(attempts, now):
    con = attempts.con
    since_the_hour = await con.fetchval("select now() - $1::timestamptz", now)
    counted = await roll_up(con, since_the_hour + dt.timedelta(minutes=1))
    assert counted == [now - n * HOUR for n in range(72, 1, -1)]
    assert await roll_up(con, since_the_hour - dt.timedelta(minutes=1)) == [now - HOUR]
    assert await roll_up(con, "0") == []


async def test_an_attempt_within_the_grace_counts_and_a_later_one_does_not(attempts, now):
    con, endpoint_id = attempts.con, attempts.endpoints[0]
    await attempts.add(endpoint_id, now - HOUR)
    await roll_up(con, "1 hour")
    await attempts.add(endpoint_id, now - HOUR)
    await attempts.check()
    assert await roll_up(con, "0") == [now - HOUR]
    await attempts.check()
    await attempts.add(endpoint_id, now - HOUR)
    assert await roll_up(con, "0") == []
    assert [row["attempts"] for row in await attempts.shown(endpoint_id)] == [2]


async def test_no_hour_of_a_day_is_counted_that_no_ids_are_drawn_from(attempts, now):
    con = attempts.con
    await con.execute("select setval('webhooks.events_event_id_seq', (webhooks.day_of() - 2) * 4294967296)")
    counted = await roll_up(con)
    assert counted[-1] == now.replace(hour=0) - dt.timedelta(days=1) - HOUR
    await con.execute("select webhooks.enter_day(webhooks.day_of())")
    assert (await roll_up(con))[0] == counted[-1] + HOUR


async def test_an_hour_that_was_not_committed_is_counted_again(scattered, database, connect, until):
    dying = await connect(database)
    await dying.execute("begin")
    counted = await roll_up(dying, hours=30)
    backend = dying.get_server_pid()
    dying.terminate()

    async def has_ended():
        found = await scattered.con.fetchval("select count(*) from pg_stat_activity where pid = $1", backend)
        return found == 0

    await until(has_ended)
    assert await roll_up(scattered.con, hours=30) == counted
    await roll_up(scattered.con)
    await scattered.check()


async def test_of_two_at_once_one_counts_and_neither_waits(scattered, database, connect):
    other = await connect(database)
    await other.execute("begin")
    assert await roll_up(other, hours=1)
    assert await roll_up(scattered.con) == []
    await other.execute("commit")
    assert await roll_up(scattered.con)
    await scattered.check()


async def test_a_partition_in_use_stops_no_counting(scattered, database, connect):
    """By a vacuum, for example: its newest pages are left out of the index, and read."""
    other = await connect(database)
    today = await scattered.con.fetchval("select webhooks.day_of()")
    await other.execute(f"begin; lock table webhooks.attempts_{today} in share update exclusive mode")
    assert await roll_up(scattered.con, hours=3)
    await scattered.check()


# The daemon's steps --------------------------------------------------------------------------------------------------


@pytest.fixture
async def session(database):
    session = await client.connect(database, name="tend", settings={"lock_timeout": "2s"})
    yield session
    await session.close()


async def test_the_daemon_counts_a_day_in_a_step(scattered, session, now):
    first = now - dt.timedelta(days=3)
    for step in (1, 2):
        await activity.count_hours(session, Diary().logger)
        next_hour = await scattered.con.fetchval(
            "select next_hour from webhooks.upkeep where what = 'activity'"
        )
        assert next_hour == first + step * 24 * HOUR
    await scattered.check()


async def test_a_running_daemon_counts_by_itself(scattered, session, until):
    upkeep = asyncio.create_task(
        maintain(
            session,
            Duties,
            logger=Diary().logger,
            beat=lambda: None,
            wall_us=lambda: time.time_ns() // 1000,
            monotonic=time.monotonic,
            unclaimed=Unclaimed(),
        )
    )
    await until(
        lambda: scattered.con.fetchval("select count(distinct hour) > 10 from webhooks.endpoint_hours")
    )
    upkeep.cancel()
    await asyncio.wait([upkeep])


async def test_a_refused_statement_is_logged_and_tried_again(scattered, session, database, connect):
    diary = Diary()
    other = await connect(database)
    await other.execute("begin; lock table webhooks.endpoint_hours")
    await activity.count_hours(session, diary.logger)
    assert "lock timeout" in diary.of("database.refused")[0]["error"]
    await other.execute("commit")
    await activity.count_hours(session, diary.logger)
    assert await scattered.con.fetchval("select count(*) from webhooks.endpoint_hours") > 0


async def test_old_hours_are_deleted(scattered, session):
    await roll_up(scattered.con)
    count = "select count(*) from webhooks.endpoint_hours"
    left = await scattered.con.fetchval(f"{count} where hour >= now() - interval '1 day'")
    assert 0 < left < await scattered.con.fetchval(count)
    retention = Retention(session, structlog.get_logger(), monotonic=lambda: 0.0)
    await retention.step(Policy(records_days=1), 10_000)
    assert await scattered.con.fetchval(count) == left


# Sites ---------------------------------------------------------------------------------------------------------------


async def test_nothing_is_left_of_a_site_that_is_forgotten(scattered, session, now):
    con = scattered.con
    await roll_up(con, hours=71)
    await con.execute("select webhooks.forget('s')")
    await con.execute("update webhooks.forgotten set asked_at = now() - interval '1 hour'")
    await tidy(session, Duties(), logger=structlog.get_logger(), beat=lambda: None)
    await roll_up(con)
    assert await con.fetchval("select count(*) from webhooks.forgotten") == 0
    assert [row[0] for row in await con.fetch("select distinct site_id from webhooks.endpoint_hours")] == [
        "t"
    ]
    scattered.endpoints = scattered.endpoints[2:]
    await scattered.check()


async def test_a_site_is_not_forgotten_while_an_hour_is_being_counted(scattered, session, database, connect):
    con, other = scattered.con, await connect(database)
    await con.execute("select webhooks.forget('s')")
    await con.execute("update webhooks.forgotten set walk = 4, asked_at = now() - interval '1 hour'")
    await other.execute("begin")
    assert await roll_up(other)
    forget = query("forget_sites")
    assert [row["erased"] for row in await session.fetch(forget, 1000)] == [None]
    await other.execute("commit")
    await tidy(session, Duties(), logger=structlog.get_logger(), beat=lambda: None)
    assert await con.fetchval("select count(*) from webhooks.endpoint_hours where site_id = 's'") == 0


async def test_an_endpoint_that_moved_shows_what_it_did_for_its_site(attempts, now):
    con, endpoint_id = attempts.con, attempts.endpoints[0]
    for at in (now - 3 * HOUR, now):
        await attempts.add(endpoint_id, at)
    await roll_up(con)
    await con.execute("update webhooks.endpoints set site_id = 't' where endpoint_id = $1", endpoint_id)
    assert await attempts.shown(endpoint_id) == []
    await attempts.add(endpoint_id, now)
    assert [row["attempts"] for row in await attempts.shown(endpoint_id)] == [1]


# Missed deliveries --------------------------------------------------------------------------------------------------

MISSED = "select * from webhooks.missed_since($1, $2, $3, $4)"


async def test_missed_deliveries_come_in_pages(attempts):
    """Of sixty events at random: all that are not delivered, newest first, each once."""
    con, endpoint_id = attempts.con, attempts.endpoints[0]
    rng = random.Random(20)
    missed = []
    for _ in range(60):
        event_id, kind = await emit(con), rng.choice(["delivered", "dead", "backlog", "unread"])
        if kind == "delivered":
            await con.execute(
                "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome,"
                " site_id) values ($1, $2, now(), 1, 1, 'delivered', 's')", event_id, endpoint_id,
            )  # fmt: skip
            continue
        if kind == "dead":
            await con.execute(
                "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)"
                " values ($1, $2, 's', 'exhausted', 3)", event_id, endpoint_id,
            )  # fmt: skip
        elif kind == "backlog":
            await con.execute(
                "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, next_attempt_at)"
                " values ($1, $2, 's', 'waiting', 'retry', now())", event_id, endpoint_id,
            )  # fmt: skip
        missed.append((event_id, "failed" if kind == "dead" else "pending"))
    since = await con.fetchval("select min(created_at) from webhooks.events")
    for lim in (1, 7, 50):
        found, before = [], None
        while rows := await con.fetch(MISSED, endpoint_id, since, before, lim):
            found += [(row["event_id"], row["state"]) for row in rows]
            before = rows[-1]["cursor"]
        assert found == missed[::-1]


async def test_events_before_the_time_are_left_out(attempts):
    con, endpoint_id = attempts.con, attempts.endpoints[0]
    ids = [await emit(con) for _ in range(4)]
    since = await con.fetchval("select created_at from webhooks.events where event_id = $1", ids[2])
    found = await con.fetch(MISSED, endpoint_id, since, None, 50)
    assert [row["event_id"] for row in found] == ids[:1:-1]
    assert await con.fetch(MISSED, attempts.endpoints[2], since, None, 50) == []
    assert await con.fetch(MISSED, 999, since, None, 50) == []
