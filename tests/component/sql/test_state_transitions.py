"""Statements move deliveries as the table of their life says; the view, `explain` and commands use its words."""

from __future__ import annotations

import re

import pytest

from pghookd.model.delivery_states import LIFE, End
from pghookd.postgres.client import query
from support.life import PAIRS, is_move

PUT = """
with e as (
  insert into webhooks.events (site_id, type, payload) values ('s', 'order_created', '{}') returning event_id
), b as (
  insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, next_attempt_at)
  select event_id, 1, 's', $1, $2, case $1 when 'waiting' then now() end from e
  where $1 in ('waiting', 'parked', 'held')
), d as (
  insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
  select event_id, 1, 's', $2, 0 from e where $1 = 'dead'
)
insert into webhooks.attempts (event_id, endpoint_id, site_id, attempted_at, duration_ms, attempt, outcome, status)
select event_id, 1, 's', now(), 1, 1, 'delivered', 200 from e where $1 = 'delivered'
"""
STORED = """
select e.event_id, coalesce(b.reason, d.reason) as reason,
  coalesce(b.state, case when d.reason is not null then 'dead' when a.n > 0 then 'delivered' end) as state
from webhooks.events e
left join webhooks.backlog b using (event_id)
left join webhooks.dead d using (event_id)
cross join lateral (select count(*) as n from webhooks.attempts t where t.event_id = e.event_id) a
"""
DISABLE = "select webhooks.disable_endpoint(1)"
REPLAY = "select webhooks.replay(site_id => 's', states => '{dead,delivered,missed}', dry_run => false)"
ADVANCE = (
    "select p.* from webhooks.replays r cross join lateral webhooks.advance_replay(r.replay_id, 100, 100) p"
)


@pytest.fixture
async def con(database, connect):
    """Return a connection; endpoint 1 has a delivery in each state for each reason, and one that has no row."""
    con = await connect(database)
    await con.execute("insert into webhooks.sites (site_id, name) values ('s', 'A shop')")
    await con.execute("insert into webhooks.endpoints (site_id, url) values ('s', 'https://example.com/')")
    await con.executemany(PUT, [*PAIRS, (None, None)])
    await con.execute(query("make_shards"), 1)
    return con


async def stored(con):
    return {row["event_id"]: (row["state"], row["reason"]) for row in await con.fetch(STORED)}


async def of_all(con, call):
    await con.execute(f"select webhooks.{call}(event_id) from webhooks.events")


async def release(con):
    await of_all(con, "release")


async def cancel(con):
    await of_all(con, "cancel")


async def drop(con):
    await con.execute(DISABLE)
    await con.execute("select webhooks.enable_endpoint(1, 'drop')")


async def hold(con):
    await con.execute(DISABLE)
    await con.execute(query("hold_backlog"), 1, 0, 100)


async def expire(con):
    await con.execute("update webhooks.backlog set since = now() - interval '15 days'")
    await con.execute(query("expire_held"), 14.0, 100)


async def replay(con):
    await con.execute("update webhooks.shards set floor = webhooks.newest_event_id()")
    await con.execute(REPLAY)
    await con.execute(ADVANCE)


async def replay_to_a_disabled_endpoint(con):
    await con.execute(REPLAY)
    await con.execute(DISABLE)
    await con.execute(ADVANCE)


async def adopt(con):
    await con.execute(query("adopt_unsettled"))


async def quarantine(con):
    events = list(await stored(con))
    await con.execute(query("quarantine_deliveries"), events, [1] * len(events))


@pytest.mark.parametrize(
    ("act", "reached", "count"),
    [
        (release, ("waiting", "queued"), 1),
        (cancel, ("dead", "cancelled"), 12),
        (drop, ("dead", "dropped"), 11),
        (hold, ("held", "disabled"), 10),
        (expire, ("dead", "expired"), 1),
        (replay, ("waiting", "replay"), 10),
        (replay_to_a_disabled_endpoint, ("held", "disabled"), 9),
        (adopt, ("waiting", "adopted"), 1),
        (quarantine, ("held", "quarantined"), 12),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_statement_moves_deliveries_as_the_table_says(con, act, reached, count):
    before = await stored(con)
    await act(con)
    after = await stored(con)
    moved = [event_id for event_id in after if after[event_id] != before[event_id]]
    assert {after[event_id] for event_id in moved} == {reached}
    assert len(moved) == count
    assert all(is_move(before[event_id][0], *reached) for event_id in moved)


@pytest.mark.parametrize("disabled", [False, True], ids=["enabled", "disabled"])
async def test_the_view_and_explain_show_states_of_the_table(con, disabled):
    if disabled:
        await con.execute(DISABLE)
    rows = await con.fetch("select event_id, state, reason from webhooks.deliveries")
    assert len(rows) == len(LIFE)
    assert {(row["state"], row["reason"]) for row in rows} <= PAIRS
    for row in rows:
        told = await con.fetch("select what, detail from webhooks.explain($1)", row["event_id"])
        assert [each["what"] for each in told] == ["inserted", row["state"]]
        assert told[1]["detail"].partition(",")[0] in {row["reason"], "at attempt 1"}


async def test_backlog_takes_states_of_its_own_only(con):
    check = await con.fetchval(
        "select pg_get_constraintdef(oid) from pg_constraint"
        " where conrelid = 'webhooks.backlog'::regclass and conname = 'state is a known one'"
    )
    assert set(re.findall(r"'(\w+)'", check)) == {move.to.value for move in LIFE} - set(End)


async def test_health_counts_states_of_the_table(con):
    columns = await con.fetch("select * from webhooks.endpoint_health")
    counted = {name: columns[0][name] for name in {move.to for move in LIFE} - {End.DELIVERED}}
    assert sum(counted.values()) == len(LIFE) - 1
