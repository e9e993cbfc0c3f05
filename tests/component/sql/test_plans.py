"""The plans of the hot statements, on 90 days of log: which tables and indexes they touch, and how many pages.

Never here: times. A page count is the same on every machine.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from pghookd.event_log.reading.reader import read_new_events, upper_end
from pghookd.event_log.supersede import DEDUPE_DAYS
from pghookd.postgres import client
from pghookd.postgres.client import number_literal, query
from pghookd.runtime.sessions import PLANS

DAY = 2**32  # ids
DAYS = 90
A_DAY = 1_000  # events in each of the past days
TODAY = 40_000  # events so far today
FIRST_XID = 1_000_000  # made up: one transaction each, none of them of this server's own counting
LAST_XID = FIRST_XID + (DAYS - 1) * A_DAY + TODAY - 1
ENDPOINTS = 100_000

FILL = f"""
set webhooks.bell = off;
do $$ begin
  for day in webhooks.day_of() - {DAYS - 1} .. webhooks.day_of() - 1 loop
    perform webhooks.attach_day(day);
  end loop;
end $$;
insert into webhooks.sites (site_id, name) select 's' || n, 'a site' from generate_series(0, {ENDPOINTS // 2 - 1}) n;
alter table webhooks.endpoints disable trigger user;
insert into webhooks.endpoints (site_id, url)
select 's' || n % {ENDPOINTS // 2}, 'http://127.0.0.1/' || n from generate_series(1, {ENDPOINTS}) n;
alter table webhooks.endpoints enable trigger user;
insert into webhooks.events (xid, event_id, site_id, type, payload) overriding system value
select ({FIRST_XID} + n)::text::xid8,
  (webhooks.day_of() - {DAYS - 1} + least(n / {A_DAY}, {DAYS - 1})) * {DAY}
    + n - least(n / {A_DAY}, {DAYS - 1}) * {A_DAY},
  's' || n % 5000, 'order_created', json_build_object('id', n, 'text', repeat('x', 150))
from generate_series(0, {LAST_XID - FIRST_XID}) n;
insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, status, outcome, site_id)
select event_id, 1 + event_id % 5000, now(), 12, 1, 200, 'delivered', site_id from webhooks.events;
insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
select event_id, 1 + event_id % 5000, site_id, 'exhausted', 10 from webhooks.events where event_id % 50 = 0;
"""
ANALYZE = "analyze webhooks.events; analyze webhooks.attempts; analyze webhooks.dead; analyze"


# A plan, taken apart ------------------------------------------------------------------------------------------


class Plan:
    """The output of EXPLAIN (ANALYZE, BUFFERS)."""

    def __init__(self, explained):
        self.nodes = list(_ran(explained["Plan"]))
        self.run_pages = _pages(explained["Plan"])

    def scans(self, table, today=None):
        """Return (kind, relation, index) of a table's scans; a read of a later day, still empty, does not count."""
        return {
            (node["Node Type"], node["Relation Name"], node.get("Index Name", ""))
            for node in self.nodes
            if re.fullmatch(rf"{table}(_\d+)?", node.get("Relation Name", ""))
            and not _is_empty_day(node, today)
        }

    def kinds(self):
        return {node["Node Type"] for node in self.nodes}


def _ran(node):
    if node["Actual Loops"]:
        yield node
        for child in node.get("Plans", []):
            yield from _ran(child)


def _is_empty_day(node, today):
    day = node["Relation Name"].partition("_")[2]
    return today is not None and int(day) > today and not node["Actual Rows"]


def _pages(node):
    return sum(node.get(f"Shared {what} Blocks", 0) for what in ("Hit", "Read"))


_names = itertools.count(1)


def literal(value):
    """Return a value as an SQL literal: EXPLAIN EXECUTE takes no parameters."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return "array[" + ",".join(literal(each) for each in value) + "]"
    if isinstance(value, tuple):  # a snapshot
        return literal(f"{value[0]}:{value[1]}:{','.join(str(xid) for xid in value[2])}")
    if isinstance(value, bytes):
        return literal("\\x" + value.hex()) + "::bytea"
    return str(value) if isinstance(value, int | float) else "'" + value.replace("'", "''") + "'"


async def explain(session, sql, *args):
    """Run a statement as the daemon's sessions do: planned once, whatever the arguments."""
    name = f"statement_{next(_names)}"
    await session.execute(f"prepare {name} as {sql}")
    arguments = f"({', '.join(literal(each) for each in args)})" if args else ""
    text = await session.fetchval(f"explain (analyze, buffers, format json) execute {name}{arguments}")
    return Plan(json.loads(text)[0])


async def explain_new_events(session, since, floor, front, newest):
    return await explain(session, read_new_events(floor, upper_end(newest)), since, floor, front, 1000)


# The filled database --------------------------------------------------------------------------------------------


async def make_filled(admin, server_url, template, name):
    await admin.execute(f'drop database if exists "{name}" with (force)')
    await admin.execute(f'create database "{name}" template "{template}"')
    url = urlsplit(server_url)._replace(path=f"/{name}").geturl()
    connection = await asyncpg.connect(url)
    # nobody but the test may analyze: a plan must not depend on when autovacuum came by
    await connection.execute(
        FILL.replace("set webhooks.bell = off;", "set webhooks.bell = off;\n" + NO_AUTOVACUUM)
    )
    return url, connection


NO_AUTOVACUUM = """
alter table webhooks.endpoints set (autovacuum_enabled = off);
alter table webhooks.sites set (autovacuum_enabled = off);
alter table webhooks.backlog set (autovacuum_enabled = off);
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def filled(admin, server_url, template):
    name = f"pghookd_plans_{os.getpid()}"
    url, connection = await make_filled(admin, server_url, template, name)
    await connection.execute(ANALYZE)
    await connection.close()
    yield url
    await admin.execute(f'drop database if exists "{name}" with (force)')


@pytest.fixture
async def session(filled):
    """Return a session like the daemon's; what a test writes is rolled back."""
    session = await client.connect(filled, name="plans", settings=PLANS)
    await session.execute("begin; set local webhooks.bell = off")
    yield session
    await session.execute("rollback")
    await session.close()


@pytest.fixture
async def today(session):
    return await session.fetchval("select webhooks.day_of()")


def id_of(today, n):
    """Return the id of the event that is n before the newest of today."""
    return today * DAY + TODAY - 1 - n


# The reader -------------------------------------------------------------------------------------------------------


async def test_nothing_new_costs_a_few_pages_however_old_the_log(session, today):
    since = (LAST_XID + 1, LAST_XID + 1, [])
    plan = await explain_new_events(session, since, id_of(today, 3000), id_of(today, 3000), id_of(today, 0))
    assert {relation for _, relation, _ in plan.scans("events", today)} <= {f"events_{today}"}
    assert plan.run_pages < 40


async def test_new_events_are_found_by_their_xid(session, today):
    running = list(range(LAST_XID - 3000, LAST_XID - 2000, 100))
    since = (running[0], LAST_XID - 9, running)
    plan = await explain_new_events(session, since, id_of(today, 5000), id_of(today, 3000), id_of(today, 0))
    assert plan.scans("events", today) == {("Index Scan", f"events_{today}", f"events_{today}_xid_idx")}
    assert plan.run_pages < 100


async def test_an_old_transaction_lowers_the_floor_and_no_more(session, today):
    """One that began yesterday: two days are touched, by xid, and not the 40,000 events since."""
    since = (LAST_XID - TODAY - 10, LAST_XID - 9, [LAST_XID - TODAY - 10])
    plan = await explain_new_events(
        session, since, (today - 1) * DAY + 900, id_of(today, 3000), id_of(today, 0)
    )
    assert {relation for _, relation, _ in plan.scans("events", today)} <= {
        f"events_{today}",
        f"events_{today - 1}",
    }
    assert plan.run_pages < 60


async def test_a_burst_since_the_last_analyze_changes_no_plan(session, today):
    """Two days of 100,000 each that no ANALYZE has ever seen; the reader is at the end of the second."""
    for day, xid in ((today + 3, LAST_XID + 1), (today + 4, LAST_XID + 100_001)):
        await session.execute(
            f"""insert into webhooks.events (xid, event_id, site_id, type, payload) overriding system value
            select ({xid} + n)::text::xid8, {day * DAY} + n, 's' || n % 5000, 'order_created', '{{}}'
            from generate_series(0, 99999) n"""
        )
    newest = LAST_XID + 200_000
    running = [LAST_XID + 100]
    since = (running[0], newest - 9, running)
    plan = await explain_new_events(
        session, since, (today + 3) * DAY, (today + 4) * DAY + 97_000, (today + 4) * DAY + 99_999
    )
    assert {index.split("_", 2)[2] for _, _, index in plan.scans("events", today + 4)} == {"xid_idx"}
    assert plan.run_pages < 100
    upto = (newest + 1, newest + 1, [])
    page = await explain(
        session,
        query("read_events_page"),
        since,
        upto,
        (today + 4) * DAY,
        (today + 5) * DAY,
        1000,
        None,
        16,
        ["behind"],
    )
    assert page.scans("events", today + 4) == {
        ("Index Scan", f"events_{today + 4}", f"events_{today + 4}_pkey")
    }
    assert not page.kinds() & {"Sort", "Seq Scan", "Bitmap Heap Scan"}


@pytest.mark.parametrize("shards", [None, [3], [1, 5, 9]])
async def test_a_page_walks_the_primary_key_and_stops(session, today, shards):
    """From the beginning of the log: a page of all shards reads a page of rows, of one shard sixteen times that."""
    since, upto = (1, 1, []), (LAST_XID + 1, LAST_XID + 1, [])
    plan = await explain(
        session, query("read_events_page"), since, upto, 0, id_of(today, 0), 200, shards, 16, ["behind"]
    )
    scans = plan.scans("events", today)
    assert {kind for kind, _, _ in scans} == {"Index Scan"}
    assert {index.split("_", 2)[2] for _, _, index in scans} == {"pkey"}
    assert len(scans) <= (1 if shards is None else 5)
    assert not plan.kinds() & {"Sort", "Incremental Sort", "Seq Scan", "Bitmap Heap Scan"}
    assert plan.run_pages < (30 if shards is None else 400)


async def test_deferred_events_are_skimmed_along_the_primary_key(session, today):
    since, upto = (1, 1, []), (LAST_XID + 1, LAST_XID + 1, [])
    plan = await explain(session, query("skim_events"), since, upto, 0, id_of(today, 0), 200, None, 16)
    scans = plan.scans("events", today)
    assert {(kind, index.split("_", 2)[2]) for kind, _, index in scans} == {("Index Scan", "pkey")}
    assert not plan.kinds() & {"Sort", "Incremental Sort", "Seq Scan", "Bitmap Heap Scan"}
    assert plan.run_pages < 30


async def test_pages_with_hundreds_of_old_transactions_cost_the_same(session, today):
    running = list(range(LAST_XID - 30_000, LAST_XID - 29_000, 2))
    since, upto = (running[0], LAST_XID - 20_000, running), (LAST_XID + 1, LAST_XID + 1, [])
    begin = query("find_first_event")
    first = await explain(session, begin, since, upto, id_of(today, 31_000), id_of(today, 20_500))
    assert {index for _, _, index in first.scans("events", today)} == {f"events_{today}_xid_idx"}
    assert first.run_pages < 20 * len(
        running
    )  # before 17 Postgres searches each xid by itself in each day from the floor on
    at = await session.fetchval(begin, since, upto, id_of(today, 31_000), id_of(today, 20_500))
    assert at == id_of(today, 30_000) - 1
    plan = await explain(
        session,
        query("read_events_page"),
        since,
        upto,
        id_of(today, 20_500),
        id_of(today, 0),
        1000,
        None,
        16,
        ["behind"],
    )
    assert plan.scans("events", today) == {("Index Scan", f"events_{today}", f"events_{today}_pkey")}
    assert plan.run_pages < 120


async def test_settled_deliveries_are_read_from_one_day_by_ids(session, today):
    """Of 50 events with 1,000 others between them."""
    ids = [id_of(today, 1000 + n * 20) for n in range(50)][::-1]
    everything = (ids, ids[0], ids[-1], 0, 2**63 - 1)
    await session.fetch(query("read_settled_events"), *everything)  # so that catalogues are read
    plan = await explain(session, query("read_settled_events"), *everything)
    assert plan.scans("attempts", today) == {
        ("Index Scan", f"attempts_{today}", f"attempts_{today}_event_id_endpoint_id_attempt_idx")
    }
    assert {relation for _, relation, _ in plan.scans("dead", today)} <= {f"dead_{today}"}
    assert {index for _, _, index in plan.scans("backlog")} == {"backlog_pkey"}
    assert {index.split("_", 2)[2] for _, _, index in plan.scans("dead", today)} <= {"pkey"}
    assert "Seq Scan" not in plan.kinds()
    assert plan.run_pages < 500


async def test_settled_deliveries_are_read_from_one_day_by_range(session, today):
    bounds = (id_of(today, 2000), id_of(today, 1000), 2000)
    await session.fetch(query("read_settled"), *bounds)  # so that catalogues are read
    plan = await explain(session, query("read_settled"), *bounds)
    assert plan.scans("attempts", today) == {
        ("Index Scan", f"attempts_{today}", f"attempts_{today}_event_id_endpoint_id_attempt_idx")
    }
    assert {index for _, _, index in plan.scans("backlog")} == {"backlog_pkey"}
    assert {index.split("_", 2)[2] for _, _, index in plan.scans("dead", today)} <= {"pkey"}
    assert not plan.kinds() & {"Seq Scan", "Sort"}
    assert plan.run_pages < 150


async def test_endpoints_of_a_page_are_found_by_their_sites(session):
    sites = [f"s{n * 7}" for n in range(50)]
    sql = query("read_endpoints_of_sites")
    plan = await explain(session, sql, sites, 16, [0] * 50, [2**63 - 1] * 50, 500)
    assert plan.scans("endpoints") == {("Index Scan", "endpoints", "endpoints_of_site")}
    assert not plan.kinds() & {"Seq Scan", "Sort"}
    assert plan.run_pages < 600


async def test_endpoints_by_id_are_found_by_their_key(session):
    plan = await explain(session, query("read_endpoints"), list(range(1, ENDPOINTS, 1000)), 16)
    assert plan.scans("endpoints") == {("Index Scan", "endpoints", "endpoints_pkey")}
    assert plan.run_pages < 1000


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("read_endpoints", ([1], 16)),
        ("read_endpoints_of_sites", (["s1"], 16, [0], [9], 9)),
        ("read_events_page", ((1, 1, []), (9, 9, []), 0, 9, 9, [1], 16, ["s1"])),
        ("skim_events", ((1, 1, []), (9, 9, []), 0, 9, 9, [1], 16)),
        ("find_parked_endpoints", (0, 9, 16)),
        ("adopt_unsettled", ()),
    ],
)
async def test_the_shard_of_a_site_costs_no_call(session, name, arguments):
    await session.execute(f"prepare of_shard as {query(name)}")
    call = f"({', '.join(literal(each) for each in arguments)})" if arguments else ""
    rows = await session.fetch(f"explain (verbose, costs off) execute of_shard{call}")
    plan = "\n".join(row[0] for row in rows)
    assert "hashtextextended(" in plan
    assert "shard_of" not in plan


async def test_plans_made_on_empty_tables_serve_many_endpoints_of_one_site(database):
    """A generic plan is made once, right after the start: on a new database, of a table without rows."""
    session = await client.connect(database, name="plans", settings=PLANS)
    await session.execute(NO_AUTOVACUUM)
    by_id, by_site = query("read_endpoints"), query("read_endpoints_of_sites")
    await session.execute(f"prepare by_id as {by_id}")
    await session.execute(f"prepare by_site as {by_site}")
    ids = list(range(1, 5001))
    calls = (
        f"by_id({literal(ids[:500])}, 16)",
        f"by_site(array['many'], 16, array[{ids[2000]}], array[{2**62}], 500)",
    )
    for call in calls:
        await session.fetch(f"execute {call}")
    await session.execute(
        "insert into webhooks.sites (site_id, name, endpoints_max) values ('many', 'M', null)"
    )
    await session.execute(
        "insert into webhooks.endpoints (site_id, url) select 'many', 'http://a/' from generate_series(1, 5000)"
    )
    for call, index in zip(calls, ("endpoints_pkey", "endpoints_of_site"), strict=True):
        text = await session.fetchval(f"explain (analyze, buffers, format json) execute {call}")
        plan = Plan(json.loads(text)[0])
        assert plan.scans("endpoints") == {("Index Scan", "endpoints", index)}
        assert plan.run_pages < 4 * 500
        assert max(node.get("Rows Removed by Filter", 0) for node in plan.nodes) == 0
    await session.close()


# The backlog ----------------------------------------------------------------------------------------------------

BACKLOG = """
insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, attempts, next_attempt_at)
select event_id, 1 + event_id % 1000, site_id, 'waiting', 'retry', 1, now() - interval '1 hour' + n * interval '10 ms'
from (select *, row_number() over (order by event_id) n from webhooks.events) e where n <= {rows}
"""


@pytest.mark.parametrize("analyzed", [False, True])
async def test_a_due_page_steps_into_each_events_own_day(session, today, analyzed):
    await session.execute(BACKLOG.format(rows=20_000))
    if analyzed:
        await session.execute("analyze webhooks.backlog")
    rows = 200
    plan = await explain(session, query("read_due"), "-infinity", 0, 0, rows)
    assert ("Index Scan", "backlog", "backlog_due") in plan.scans("backlog")
    assert {kind for kind, _, _ in plan.scans("events", today)} == {"Index Scan"}
    assert plan.run_pages < 8 * rows


async def test_a_due_page_does_not_pay_for_rows_that_were_cleared(filled, session, connect):
    """100,000 dead rows before the cursor that no vacuum may take, since an old snapshot could still see them."""
    writer, holder = await connect(filled), await connect(filled)
    await writer.execute(BACKLOG.format(rows=100_000))
    cursor = await writer.fetchrow(
        "select next_attempt_at::text, event_id, endpoint_id"
        " from webhooks.backlog order by next_attempt_at desc offset 500 limit 1"
    )
    await holder.execute("begin isolation level repeatable read; select count(*) from webhooks.backlog")
    try:
        await writer.execute(
            "delete from webhooks.backlog"
            " where (next_attempt_at, event_id, endpoint_id) <= ($1::text::timestamptz, $2, $3)",
            *cursor,
        )
        plan = await explain(session, query("read_due"), *cursor, 200)
        from_the_start = await explain(session, query("read_due"), "-infinity", 0, 0, 200)
        assert plan.run_pages < 8 * 200
        assert from_the_start.run_pages > 5 * plan.run_pages  # so that only the cursor makes it cheap
    finally:
        for each in (holder, session):
            await each.execute("rollback")
        await writer.execute("truncate webhooks.backlog")


async def test_parked_rows_are_found_among_many_that_wait(session, today):
    """An endpoint with thousands of rows to be retried, and a few parked ones at the end."""
    await session.execute(BACKLOG.format(rows=30_000))
    await session.execute("update webhooks.backlog set endpoint_id = 7")
    await session.execute(
        "update webhooks.backlog set state = 'parked', reason = 'lane_full', next_attempt_at = null"
        " where event_id in (select event_id from webhooks.backlog order by event_id desc limit 50)"
    )
    plan = await explain(session, query("read_parked"), 7, 0, 500)
    assert {index for _, _, index in plan.scans("backlog")} == {"backlog_aside"}
    assert {kind for kind, _, _ in plan.scans("events", today)} == {"Index Scan"}
    assert plan.run_pages < 400
    await session.execute("update webhooks.endpoints set enabled = false where endpoint_id = 7")
    off = await explain(session, query("read_parked"), 7, 0, 500)
    assert off.run_pages < 20
    assert await session.fetch(query("read_parked"), 7, 0, 500) == []


async def test_endpoints_with_parked_rows_are_found_by_one_index_step_each(session):
    await session.execute(BACKLOG.format(rows=40_000))  # of a thousand endpoints
    await session.execute(
        "update webhooks.backlog set state = 'parked', reason = 'breaker_open', next_attempt_at = null"
        " where endpoint_id in (7, 9)"
    )
    page = 500
    plan = await explain(session, query("find_parked_endpoints"), 5, page, 16)
    scans = plan.scans("backlog")
    assert {index for _, _, index in scans} == {"backlog_of_endpoint", "backlog_aside"}
    assert {kind for kind, _, _ in scans} <= {"Index Scan", "Index Only Scan"}
    assert "Seq Scan" not in plan.kinds()
    assert plan.run_pages < 20 * page
    rows = await session.fetch(query("find_parked_endpoints"), 5, page, 16)
    assert [row["endpoint_id"] for row in rows] == list(range(6, 6 + page))
    assert {row["endpoint_id"] for row in rows if row["reason"] == "breaker_open"} == {7, 9}


async def test_endpoints_with_rows_are_found_with_a_step_for_each_id(session):
    await session.execute(BACKLOG.format(rows=40_000))  # of a thousand endpoints
    ids = [*range(1, 11), *range(10**6, 10**6 + 990)]
    plan = await explain(session, query("find_endpoints_with_rows"), ids)
    assert {index for _, _, index in plan.scans("backlog")} == {"backlog_of_endpoint"}
    assert "Seq Scan" not in plan.kinds()
    assert plan.run_pages < 5 * len(ids)
    found = await session.fetch(query("find_endpoints_with_rows"), ids)
    assert {row["endpoint_id"] for row in found} == set(range(1, 11))


@pytest.mark.slow
async def test_a_line_is_read_by_its_own_index_and_walked_in_pages(session, today):
    """However much the endpoint has, and however much is before it."""
    await session.execute(BACKLOG.format(rows=60_000))
    await session.execute("update webhooks.backlog set endpoint_id = 7; analyze webhooks.backlog")
    page = 500
    plan = await explain(session, query("walk_lines"), 7, 0, page)
    assert "Seq Scan" not in plan.kinds()
    read = {scan for scan in plan.scans("backlog") if scan[0] != "ModifyTable"}
    assert {index for _, _, index in read} <= {"backlog_of_endpoint", "backlog_pkey"}
    assert plan.run_pages < 40 * page
    await session.execute(
        "update webhooks.backlog set line = (event_id % 100)::text; analyze webhooks.backlog"
    )
    plan = await explain(session, query("read_line"), 7, "5", 100)
    assert {index for _, _, index in plan.scans("backlog")} == {"backlog_in_line"}
    assert plan.run_pages < 1000
    ids = [id_of(today, k) for k in range(10)]
    plan = await explain(session, query("place_in_line"), ids, [7] * 10)
    assert "Seq Scan" not in plan.kinds()


@pytest.mark.slow
async def test_held_rows_of_one_endpoint_are_written_and_expire_in_pages(session):
    """A million would be as cheap a page as these."""
    await session.execute(BACKLOG.format(rows=60_000))
    await session.execute("update webhooks.backlog set endpoint_id = 7; analyze webhooks.backlog")
    await session.execute("update webhooks.endpoints set enabled = false where endpoint_id = 7")
    page = 500
    plan = await explain(session, query("hold_backlog"), 7, 0, page)
    assert "Seq Scan" not in plan.kinds()
    read = {scan for scan in plan.scans("backlog") if scan[0] != "ModifyTable"}
    assert {index for _, _, index in read} <= {"backlog_of_endpoint", "backlog_pkey"}
    assert plan.run_pages < 40 * page
    held = "select count(*) from webhooks.backlog where state = 'held' and reason = 'disabled'"
    assert await session.fetchval(held) == page
    await session.execute(
        "update webhooks.backlog set state = 'held', reason = 'disabled', since = now() - '15 d'::interval"
    )
    await session.execute("analyze webhooks.backlog")
    plan = await explain(session, query("expire_held"), 14.0, page)
    read = {scan for scan in plan.scans("backlog") if scan[0] != "ModifyTable"}
    assert {kind for kind, _, _ in read} == {"Index Scan"}
    assert {index for _, _, index in read} <= {"backlog_held", "backlog_pkey", "backlog_of_endpoint"}
    assert plan.run_pages < 60 * page
    assert await session.fetchval("select count(*) from webhooks.dead where reason = 'expired'") == page


# The recorder -----------------------------------------------------------------------------------------------------


def batch(today, n):
    ids = [id_of(today, k) for k in range(n)]
    return ids, [1 + k for k in range(n)], [f"s{k}" for k in range(n)]


async def test_a_batch_of_attempts_costs_by_its_rows(session, today):
    n = 500
    events, endpoints, sites = batch(today, n)
    plan = await explain(
        session, query("record_attempts"),
        *(number_literal(each) for each in (events, endpoints, [2] * n, [10**15] * n, [1.5] * n, [500] * n, [1] * n)),
        ["refused"] * n, ["reset"] * n, [b"no"] * n, sites, ["live"] * n, ['{"ms": {}}'] * n,
    )  # fmt: skip
    assert "Seq Scan" not in plan.kinds()
    assert plan.run_pages < 25 * n


async def test_a_batch_into_the_backlog_and_out_of_it_costs_by_its_rows(session, today):
    n = 500
    events, endpoints, sites = batch(today, n)
    await session.execute(BACKLOG.format(rows=100_000))
    await session.execute("analyze webhooks.backlog")
    put = await explain(
        session, query("put_backlog"), events, endpoints, sites, ["waiting"] * n, ["retry"] * n, [1] * n, [5.0] * n,
        ["k"] * n, [0] * n, ["retry"] * n,
    )  # fmt: skip
    assert not put.kinds() & {"Seq Scan"}
    assert put.run_pages < 40 * n
    cleared = await explain(session, query("clear_backlog"), events, endpoints)
    assert not cleared.kinds() & {"Seq Scan"}
    assert cleared.run_pages < 20 * n
    dead = await explain(session, query("put_dead"), events, endpoints, sites, ["exhausted"] * n, [9] * n)
    assert dead.run_pages < 25 * n


async def test_positions_are_stored_without_touching_an_index(session):
    """HOT: else the key's index grows with every second; with the snapshots that busy systems have."""
    shards = 64
    await session.execute(query("make_shards"), shards)
    for n in range(3):
        running = list(range(1000, 1000 + 40 * n, 2))
        snapshot = (1000 if running else 2000, 2000, running)
        await session.fetch(
            query("store_positions"), list(range(shards)), [snapshot] * shards, [None] * shards, [0] * shards,
            [n] * shards, [n] * shards, n, 1, 1, "00000001",
        )  # fmt: skip
    updates, hot = await session.fetchrow(
        "select pg_stat_get_xact_tuples_updated(c), pg_stat_get_xact_tuples_hot_updated(c)"
        " from (select 'webhooks.shards'::regclass::oid c) t"
    )
    assert updates == 3 * shards
    assert hot >= 2 * shards


# Care -----------------------------------------------------------------------------------------------------------

TROUBLE = """
insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, status, outcome, site_id)
select event_id, 1 + event_id % 200, now() - interval '1 hour', 12, 2, 500, 'refused', site_id
from webhooks.events where event_id >= webhooks.day_of()::bigint << 32 and event_id % 20 = 0;
insert into webhooks.incidents (endpoint_id, state, first_failure_at, last_failure_at, window_at, last_outcome,
  last_event_id, last_attempt, next_look_at)
select n, 'shaky', now() - interval '2 hours', now(), now() - interval '2 hours', 'refused', 1, 1, now()
from generate_series(1, 200) n;
"""


async def test_care_touches_the_failures_of_an_incident_and_no_others(session, today):
    """200 incidents beside 130,000 attempts of 90 days: failures by endpoint, in the days that may still be alive."""
    await session.execute(TROUBLE)
    await session.execute(
        "update webhooks.sites set owner_email = site_id || '@shop.example' where site_id < 's1'"
    )
    owners = [row[0] for row in await session.fetch(query("find_due_owners"), 4_000_000_000_000_000, 100)]
    assert set(owners) == {""}  # sites without an owner are read one by one
    await session.execute(
        "update webhooks.sites set owner_email = 'one@shop.example' where site_id in ('s1', 's2')"
    )
    cases = await explain(
        session, query("read_cases"), ["one@shop.example"], "2100-01-01", ["none"], ["port"]
    )
    assert {kind for kind, _, _ in cases.scans("attempts")} == {"Index Scan"}
    assert {index.split("_", 2)[2] for _, _, index in cases.scans("attempts")} == {"endpoint_id_event_id_idx"}
    assert len({table for _, table, _ in cases.scans("attempts")}) <= 42
    assert cases.run_pages < 3000
    told = await explain(session, query("read_told"), 1, "2000-01-01", "2000-01-01", "2100-01-01")
    assert "Seq Scan" not in {kind for kind, _, _ in told.scans("attempts")}
    assert told.run_pages < 4000


# Replays ----------------------------------------------------------------------------------------------------------

REPLAY = """
insert into webhooks.replays (replay_id, spec, last_event_id, after_event_id, settled_event_id) overriding system value
values (1, '{spec}', {last}, {after}, {last})
"""


async def replay_of(session, spec, after, last, looks, most=200):
    """Run a page of a replay for its costs; return the plan, and its output."""
    await session.execute(REPLAY.format(spec=json.dumps(spec), after=after, last=last))
    sql = "select p.* from webhooks.replays r, webhooks.replay_page(r, $1, $2) p where r.replay_id = 1"
    page = await session.fetchrow(
        sql, looks, most
    )  # so that catalogues are read that the plan's pages would count
    return await explain(session, sql, looks, most), page


@pytest.mark.parametrize(
    ("spec", "taken", "pages"),
    [
        ({"states": ["dead"]}, 200, 4000),
        ({"states": ["dead"], "site_id": "s7"}, 0, 1000),
        ({"states": ["dead"], "types": ["product_created"]}, 0, 6000),
        ({"states": ["delivered"], "endpoint_id": 51}, 0, 6000),
        ({"states": ["missed"], "site_id": "s51"}, 0, 2000),
        ({"states": ["dead", "delivered"]}, 0, 12_000),  # each of 500 events with its two endpoints
    ],
)
@pytest.mark.parametrize("days_ago", [0, 40])
async def test_a_page_of_a_replay_costs_by_the_rows_it_reads(session, today, spec, taken, pages, days_ago):
    """From the middle of today, and from 40 days ago, with 40,000 events and more before its end."""
    after = (today - days_ago) * DAY if days_ago else id_of(today, 30_000)
    plan, page = await replay_of(session, spec, after, id_of(today, 0), 500)
    assert plan.run_pages < pages
    assert len(page["events"] or ()) == taken
    assert not page["ended"]


async def test_the_dead_of_one_endpoint_are_found_by_it(session, today):
    """Some 16 (it depends on the date) among 1,600 of 50 days, each of which is read once."""
    spec = {"states": ["dead"], "endpoint_id": 51}
    after, last = (today - 40) * DAY, id_of(today, 0)
    plan, page = await replay_of(session, spec, after, last, 500)
    count = "select count(*) from webhooks.dead where endpoint_id = 51 and event_id > $1 and event_id <= $2"
    assert len(page["events"]) == await session.fetchval(count, after, last) > 10
    assert page["ended"]
    assert plan.run_pages < 1500


async def test_a_page_of_a_replay_reads_one_day_by_its_indexes(session, today):
    await session.execute("set local plan_cache_mode = force_custom_plan")
    after, to = id_of(today, 30_000), id_of(today, 29_500)
    dead = await explain(
        session,
        "select * from webhooks.replay_dead(null, $1, null, null, null, null, now(), $2, 0, $3, 200)",
        51,
        after,
        to,
    )
    every = await explain(
        session,
        "select * from webhooks.replay_any(null, null, null, '{order_created}', $1, null, '{dead,delivered,missed}',"
        " now(), $3, $2, 0, $3, 200)",
        "2020-01-01",
        after,
        to,
    )
    for plan in (dead, every):
        assert not plan.kinds() & {"Seq Scan", "Bitmap Heap Scan", "Sort"}
        for table in ("events", "attempts", "dead"):
            assert {relation for _, relation, _ in plan.scans(table)} <= {f"{table}_{today}"}
    assert {index for _, _, index in every.scans("endpoints")} == {"endpoints_of_site"}
    assert every.run_pages < 12_000
    assert dead.run_pages < 50


# Keys of events -------------------------------------------------------------------------------------------------

KEYED = """
insert into webhooks.events (event_id, site_id, type, payload, supersede_key, dedupe_key) overriding system value
select (webhooks.day_of() - d) * 4294967296 + 100000 + n, 's' || n % 20, 'order_created', '{}',
  case when n <= 200 then 'k' || n end, case when n > 200 then 'k' || n - 200 end
from generate_series(0, 89) d, generate_series(1, 400) n
"""


def window(today, days):
    """Return the arguments of find_firsts that say which events count, for keys of events of these days."""
    from_ids = [(day - DEDUPE_DAYS) * DAY for day in days]
    to_ids = [(day + DEDUPE_DAYS + 1) * DAY - 1 for day in days]
    return from_ids, to_ids, min(from_ids), max(to_ids)


async def test_keys_are_looked_up_in_their_index_of_the_days_that_count(session, today):
    """200 keys that 90 days have, and 200 that nobody has: a step into each of at most eight days."""
    await session.execute(KEYED)
    now = await session.fetchval("select pg_current_snapshot()")
    week_ago = [(today - 7) * DAY + 100_000 + n for n in range(1, 201)]
    sites, keys = [f"s{n % 20}" for n in range(1, 201)], [f"k{n}" for n in range(1, 201)]
    counts = window(today, [today] * 200)
    everything = (now[1] + 1, now[1] + 1, [])
    nothing = (1, 1, [])
    for name, arguments, pages in (
        ("find_superseded", ([1] * 200, sites, keys, week_ago, week_ago[0], 100, 10**7, 7), 5_000),
        ("find_firsts", (sites, keys, *counts, everything, everything), 1_200),
        ("find_firsts", (sites, ["none"] * 200, *counts, everything, everything), 6_500),
        ("find_firsts", (sites, keys, *counts, nothing, everything), 12_000),
        ("find_firsts_again", (sites, keys, *counts, nothing, everything, 100), 40_000),
    ):
        plan = await explain(session, query(name), *arguments)
        scans = plan.scans("events")
        key = "supersede_key" if name == "find_superseded" else "dedupe_key"
        sql = "select bool_and(indexdef like $1) from pg_indexes where indexname = any ($2)"
        assert await session.fetchval(sql, f"%{key} IS NOT NULL%", [index for _, _, index in scans])
        assert {kind for kind, _, _ in scans} <= {"Index Scan", "Index Only Scan"}
        days = {int(relation.partition("_")[2]) for _, relation, _ in scans}
        assert days <= set(range(today - DEDUPE_DAYS, today + DEDUPE_DAYS + 1))
        assert plan.run_pages < pages, (name, plan.run_pages)


async def test_a_key_that_everybody_has_costs_one_query(session, today):
    """30,000 events of one key: the first and the newest are found at once, wherever the requested one lies."""
    await session.execute(
        f"""insert into webhooks.events (event_id, site_id, type, payload, supersede_key, dedupe_key)
        overriding system value
        select {today * DAY} + 100000 + n, 's1', 'order_created', '{{}}', case when n % 2 = 0 then 'same' end,
          case when n % 2 = 1 then 'same' end
        from generate_series(1, 60000) n"""
    )
    now = await session.fetchval("select pg_current_snapshot()")
    everything, nothing = (now[1] + 1, now[1] + 1, []), (1, 1, [])
    counts = window(today, [today])
    middle = today * DAY + 130_000
    one = ["s1"], ["same"]
    for name, arguments in (
        ("find_superseded", ([1], *one, [middle], middle, 100, 10**7, 7)),
        ("find_firsts", (*one, *counts, everything, everything)),
        ("find_firsts_again", (*one, *counts, everything, everything, 100)),
    ):
        await explain(session, query(name), *arguments)  # so that catalogues are read
        plan = await explain(session, query(name), *arguments)
        assert plan.run_pages < 100, (name, plan.run_pages)
    walked = await explain(session, query("find_firsts"), *one, *counts, nothing, everything)
    assert walked.run_pages < 2 * 30_000  # once for all pages of a difference


async def test_a_filter_is_asked_for_by_a_step_into_each_events_own_day(session, today):
    await session.execute("update webhooks.endpoints set filter = '$.id < 0' where endpoint_id = 1")
    ids = [id_of(today, n) for n in range(100)]
    await session.fetch(query("match_filter"), ids, [1] * 100)  # so that catalogues are read
    plan = await explain(session, query("match_filter"), ids, [1] * 100)
    assert {kind for kind, _, _ in plan.scans("events", today)} == {"Index Scan"}
    assert plan.run_pages < 8 * 100


# Activity -------------------------------------------------------------------------------------------------------

COUNT = (
    "select count(*) from webhooks.count_attempts($1::text::timestamptz, $2::text::timestamptz, $3::bigint)"
)


async def test_the_attempts_of_an_hour_are_found_by_their_pages(session, today):
    """20,000 of a later hour, half of them of yesterday's events, and one endpoint has a tenth; 90 days before them."""
    await session.execute(
        f"""insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome, site_id)
        select {today * DAY} - n % 2 * {DAY} + 100000 + n, case when n % 10 = 0 then 7 else n % 5000 end,
          date_trunc('hour', now()) + interval '3 hours' + n * interval '0.1 s', 12, 1, 'delivered', 's7'
        from generate_series(0, 19999) n"""
    )
    summarize = (
        "select brin_summarize_new_values(inhrelid) from pg_inherits where inhparent = $1::text::regclass"
    )
    await session.fetch(summarize, "webhooks.attempts_by_time")
    pages_of_them = 20_000 // 80
    hours = [
        await session.fetchval(f"select (date_trunc('hour', now()) + interval '{n} hours')::text")
        for n in (3, 4)
    ]
    for low, high, which, most in (
        (*hours, None, pages_of_them),
        (*hours, 7, pages_of_them),
        (*hours, 8, 40),
        (hours[1], "infinity", None, 0),
        (hours[1], "infinity", 7, 0),
    ):
        await explain(session, COUNT, low, high, which)  # so that catalogues are read
        plan = await explain(session, COUNT, low, high, which)
        assert plan.run_pages < most + 12 * (DAYS + 8), (which, plan.run_pages)


async def test_an_endpoint_shows_its_hours_at_one_index_step_each(session):
    """30 days of 200 endpoints."""
    await session.execute(
        """insert into webhooks.endpoint_hours
        select hour, n, 1, 1, '{10}', '{1}', 's' || n from generate_series(1, 200) n,
          generate_series(date_trunc('hour', now()) - interval '30 days', now() - interval '2 hours', '1 hour') hour
        order by 1, 2"""
    )
    since, until = "now() - interval '10 days'", "now() - interval '2 hours'"
    ask = f"select count(*) from webhooks.endpoint_activity(7, {since}, {until}, $1)"
    await session.execute("update webhooks.upkeep set next_hour = now() where what = 'activity'")
    for unit, rows in (("hour", 10 * 24 - 1), ("day", 11)):
        assert await session.fetchval(ask, unit) in {rows, rows + 1}
        plan = await explain(session, ask, unit)
        assert plan.run_pages < 4 * 10 * 24 + 12 * (DAYS + 8)


# The log of a site ------------------------------------------------------------------------------------------------

LOG = f"""
set webhooks.bell = off;
insert into webhooks.sites (site_id, name, endpoints_max) values ('log', 'L', null), ('wide', 'W', null);
insert into webhooks.endpoints (endpoint_id, site_id, url)
select 900000 + n, case when n <= 3 then 'log' else 'wide' end, 'http://x' from generate_series(1, 103) n;
insert into webhooks.events (xid, event_id, site_id, type, payload, created_at, subject) overriding system value
select '{FIRST_XID}', (webhooks.day_of() - d) * {DAY} + 500000 + n * 2000,
  case when n <= 100 then 'log' else 'wide' end,
  case n % 2 when 0 then 'order_created' else 'order_updated' end, '{{}}',
  date_trunc('day', now(), 'UTC') - d * interval '1 day' + n * interval '10 minutes', 'order/' || n % 4
from generate_series(0, {DAYS - 1}) d, generate_series(1, 101) n;
insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, status, outcome, site_id)
select e.event_id, p.endpoint_id, e.created_at, 12, 1, 200, 'delivered', e.site_id
from webhooks.events e join webhooks.endpoints p using (site_id)
where e.site_id in ('log', 'wide') and e.event_id % {DAY} % 100000 <> 0;
insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
select e.event_id, p.endpoint_id, e.site_id, 'exhausted', 10
from webhooks.events e join webhooks.endpoints p using (site_id)
where e.site_id in ('log', 'wide') and e.event_id % {DAY} % 100000 = 0;
insert into webhooks.shards (shard, snapshot)
select 0, format('%1$s:%1$s:', greatest({LAST_XID + 1}, pg_snapshot_xmax(now.snapshot)::text::bigint))::pg_snapshot
from pg_current_snapshot() now(snapshot);
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def logged(filled):
    """Two sites whose events are settled: 3 endpoints with 100 deliveries a day each, and 100 endpoints with one.

    For the last tests here: the others count pages in the same tables.
    """
    connection = await asyncpg.connect(filled)
    await connection.execute(LOG)
    for table in ("events", "attempts", "dead", "backlog"):
        await connection.execute(
            f"vacuum webhooks.{table}"
        )  # tests before, whichever ran here, have left dead rows
    await connection.close()


@pytest.fixture
async def log(logged, session):
    return session


async def page_of(session, site, before, **asked):
    """Return the plan of a page, and its rows."""
    names = "".join(f", {name} => {literal(value)}" for name, value in asked.items())
    sql = f"select * from webhooks.site_deliveries('{site}', before => $1{names})"
    return await cheapest(session, sql, before), await session.fetch(sql, before)


async def cheapest(session, sql, *args):
    """Return the plan of the cheapest of three runs: others may have to be planned, which reads catalogues."""
    return min([await explain(session, sql, *args) for _ in range(3)], key=lambda plan: plan.run_pages)


async def test_a_page_of_a_site_costs_the_same_wherever_it_is(log, today):
    """The first page, and those 16 and 80 days back: page 100, and one of the last."""
    for asked, most in (
        ({}, 1_500),
        ({"state": "delivered"}, 1_500),
        ({"state": "pending"}, 4_000),  # the unread events of each day, in each of three rounds
        ({"state": "failed"}, 1_500),
        ({"endpoint_id": 900_002}, 1_500),
        ({"type": "order_created"}, 3_000),
        ({"subject": "order/3"}, 3_000),
    ):
        first, rows = await page_of(log, "log", None, **asked)
        assert first.run_pages < most, (asked, first.run_pages)
        for days in (16, 80):
            at = f"{(today - days) * DAY + 500_000 + 50 * 2_000}.900001"
            later, more = await page_of(log, "log", at, **asked)
            assert later.run_pages < 1.2 * first.run_pages + 200, (asked, days, later.run_pages)
            assert len(more) == len(rows)


async def test_a_page_reads_the_newest_days_if_they_have_enough(log):
    """Not of each endpoint as many as the page has: that would be 50 days of a hundred endpoints."""
    plan, rows = await page_of(log, "wide", None)
    assert len(rows) == 50
    assert plan.run_pages < 4_000


async def test_unread_events_are_looked_up_until_the_page_is_full(log, today):
    """2,000 unread events of three endpoints."""
    await log.execute(
        f"""insert into webhooks.events (xid, event_id, site_id, type, payload) overriding system value
        select pg_snapshot_xmax(snapshot), {today * DAY} + 900000 + n, 'log', 'order_created', '{{}}'
        from webhooks.shards, generate_series(1, 2000) n"""
    )
    await log.execute("update webhooks.endpoints set from_event_id = 0 where site_id = 'log'")
    plan, rows = await page_of(log, "log", None, state="pending")
    assert [row["detail"] for row in rows] == ["unread"] * 50
    assert plan.run_pages < 3_000


async def test_the_end_of_a_time_is_searched_by_halves(log):
    sql = "select webhooks.last_event_id(now() - interval '30 days')"
    plan = await cheapest(log, sql)
    assert plan.run_pages < 200
