"""Rows that are set aside: how they are held, released and given up, in pages, and by any next instance."""

from __future__ import annotations

import pytest

from pghookd.delivery.backlog.held import HOLD_PAGE
from pghookd.postgres.client import columns, query
from support import crew
from support.crew import living

ROWS = 2 * HOLD_PAGE + 500


@pytest.fixture
async def con(database, connect, receiver):
    con = await connect(database)
    await con.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    await con.execute("insert into webhooks.endpoints (site_id, url) values ('s', $1)", receiver.url("/"))
    return con


async def put(con, count=ROWS, state="waiting", reason="retry", since="0 s"):
    """Insert events that the daemon has no more to read, each with a row in backlog."""
    await con.execute(
        """with made as (
             insert into webhooks.events (site_id, type, payload, endpoint_id)
             select 's', 'a', to_json(n), -1 from generate_series(1, $1::int) n returning event_id)
           insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, next_attempt_at, since)
           select event_id, 1, 's', $2, $3, case when $2 = 'waiting' then now() + '1 hour' end,
             now() - $4::text::interval
           from made""",
        count,
        state,
        reason,
        since,
    )


def stand(con, *wanted):
    """Return a condition: rows of backlog as (state, reason, how many)."""

    async def holds():
        rows = await con.fetch(
            "select state, reason, count(*) from webhooks.backlog group by 1, 2 order by 1, 2"
        )
        return [tuple(row) for row in rows] == list(wanted)

    return holds


SWITCH = "update webhooks.endpoints set enabled = {}"


@pytest.mark.slow
async def test_a_switch_turns_all_rows_over_in_pages(database, con, receiver, until):
    async with living(database, breaker={"probe_s": 0.3}):
        await put(con)
        await con.execute(SWITCH.format("false"))
        await until(stand(con, ("held", "disabled", ROWS)))
        assert not receiver.requests
        await con.execute(SWITCH.format("true"))
        await until(stand(con), 30.0)
        assert await con.fetchval("select count(distinct event_id) from webhooks.attempts") == ROWS
    assert len(receiver.requests) == ROWS


@pytest.mark.slow
async def test_switches_made_in_downtime_are_applied_at_the_start(database, con, receiver, until):
    await put(con)
    await put(con, 100, "parked", "lane_full")
    await con.execute(SWITCH.format("false"))
    async with living(database):
        await until(stand(con, ("held", "disabled", ROWS + 100)))
    await con.execute(SWITCH.format("true"))
    async with living(database, breaker={"probe_s": 0.3}):
        await until(stand(con), 30.0)
    assert len(receiver.requests) == ROWS + 100


async def test_a_switch_without_a_bell_is_seen_within_a_minute(database, con, receiver, until):
    clock = crew.Clock()
    async with living(database, clock=clock) as life:
        await put(con, 10, "held", "disabled")
        await life.diary.wait_for("bell.slept")
        assert await stand(con, ("held", "disabled", 10))()
        clock.ahead_s += 61.0
        await receiver.wait_for(1)
        await con.execute("set webhooks.bell = off")
        await con.execute(SWITCH.format("false"))
        await put(con, 10)
        clock.ahead_s += 61.0

        async def all_held():
            sql = "select count(*) from webhooks.backlog where state <> 'held'"
            return await con.fetchval(sql) == 0

        await until(all_held)


async def test_rows_to_hold_for_an_enabled_endpoint_go_out(con):
    """It was off when the delivery came, and on again when the row was written."""
    await put(con, 2, "held", "disabled")
    ids = [row[0] for row in await con.fetch("select event_id from webhooks.backlog order by 1")]
    rows = [(event_id, 1, "s", "held", "disabled", 3, None, None, 0, "live") for event_id in ids]
    await con.execute(query("put_backlog"), *columns(rows[:1], 10))
    await con.execute(SWITCH.format("false"))
    await con.execute(query("put_backlog"), *columns(rows[1:], 10))
    found = await con.fetch(
        "select state, reason, attempts, next_attempt_at <= now(), released_at is not null"
        " from webhooks.backlog order by event_id"
    )
    assert [tuple(row) for row in found] == [
        ("waiting", "queued", 3, True, True),
        ("held", "disabled", 3, None, False),
    ]


async def test_deliveries_held_for_too_long_are_dead_and_no_others_are(database, con, receiver, until):
    await con.execute(SWITCH.format("false"))
    await put(con, 1200, "held", "disabled", since="14 days 1 minute")
    await put(con, 10, "held", "quarantined", since="15 days")
    await put(con, 20, "held", "disabled", since="13 days 23 hours")
    await con.execute(
        "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, since)"
        " values (5, 1, 's', 'held', 'disabled', now() - '20 days'::interval)"  # of a day that was dropped
    )
    async with living(database) as life:
        await until(stand(con, ("held", "disabled", 20)))
        died = life.diary.of("delivery.died")
        assert {line["reason"] for line in died} == {"expired"}
        assert sum(line["deliveries"] for line in died) == 1211
    assert await con.fetchval("select count(*) from webhooks.dead where reason = 'expired'") == 1210
    assert not receiver.requests


async def test_held_rows_of_an_enabled_endpoint_do_not_expire(con):
    await put(con, 5, "held", "disabled", since="20 days")
    assert await con.fetch(query("expire_held"), 14.0, 100) == []


async def test_the_age_of_held_deliveries_counts_from_their_release(database, con, receiver, until):
    """Older than age_max_s when it was held: it is tried again all the same, after a failure too."""
    receiver.script = lambda request: 500 if request.attempt == 1 else 200
    await put(con, 3, "held", "disabled")
    await con.execute("update webhooks.events set created_at = now() - interval '30 days'")
    async with living(database, retry={"schedule": (0.05,) * 3}):
        await until(stand(con))
    assert len(receiver.requests) == 6
