"""A session of one site learns nothing of another one: by no function, table, error, sequence, plan, or count of pages.

All that the other site has carries a word that no row of the first one has. The session calls each function that it may
call, with each argument that it could know or guess, and reads each relation; the word must not appear.
"""

from __future__ import annotations

import itertools
import json

import asyncpg
import pytest

WORD = "zebra"
FILL = f"""
insert into webhooks.sites (site_id, name, owner_email)
values ('s', 'A shop', 'ada@example.com'), ('theirs', '{WORD}', '{WORD}@example.com');
insert into webhooks.endpoints (site_id, url, secret, description, event_types)
values ('s', 'http://x', 'secret', 'mine', '{{*}}'), ('theirs', 'http://{WORD}.example/', '{WORD}', '{WORD}', '{{*}}');
update webhooks.endpoints set url = 'http://{WORD}.example/2' where site_id = 'theirs';
insert into webhooks.events (site_id, type, payload, subject)
select s, word || '_created', to_json(word), word || '/' || n
from (values ('s', 'order'), ('theirs', '{WORD}')) sites(s, word), generate_series(1, 4) n order by s;
insert into webhooks.attempts
  (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome, error, response, site_id)
select e.event_id, p.endpoint_id, now(), 1, 1, case when e.event_id % 2 = 0 then 'delivered' else 'refused' end,
  e.type, convert_to(e.type, 'UTF8'), e.site_id
from webhooks.events e join webhooks.endpoints p using (site_id);
insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, attempts, next_attempt_at)
select e.event_id, p.endpoint_id, e.site_id, 'waiting', 'retry', 1, now() + interval '1 hour'
from webhooks.events e join webhooks.endpoints p using (site_id) where e.subject like '%/1';
insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
select e.event_id, p.endpoint_id, e.site_id, 'exhausted', 1
from webhooks.events e join webhooks.endpoints p using (site_id) where e.subject like '%/3';
"""


@pytest.fixture
async def con(with_roles, connect):
    connection = await connect(with_roles)
    await connection.execute(FILL)
    return connection


@pytest.fixture
async def site(con, login, connect):
    """Return a session of site s, beside another site."""
    session = await connect(await login("webhooks_site"))
    await session.execute("set webhooks.site_id = 's'")
    return session


@pytest.fixture
async def guesses(con):
    """Return arguments to try, by the type of the parameter, as texts."""
    rows = await con.fetch("select event_id, endpoint_id from webhooks.attempts order by 1")
    ids = [str(row["event_id"]) for row in (rows[0], rows[-1])]  # of each site one
    endpoints = [str(row["endpoint_id"]) for row in (rows[0], rows[-1])]
    cursor = f"{rows[-1]['event_id']}.{rows[-1]['endpoint_id']}"
    return {
        "bigint": [None, *endpoints, *ids, "999"],
        "int": ["50", "1", None],
        "text": [None, "s", "theirs", f"{WORD}/1", f"{WORD}_created", "failed", "hour", cursor],
        "timestamptz": [None, "-infinity", "2020-01-01"],
        "boolean": [None, "true"],
    }


async def may_call(con):
    """Return name and parameter types of the functions that a site may call."""
    rows = await con.fetch(
        "select p.proname, array(select format_type(t, null) from unnest(p.proargtypes) t) as types from pg_proc p"
        " where p.pronamespace = 'webhooks'::regnamespace"
        " and has_function_privilege('webhooks_site', p.oid, 'execute') order by 1"
    )
    plain = {"integer": "int", "timestamp with time zone": "timestamptz"}
    return [(row["proname"], [plain.get(each, each) for each in row["types"]]) for row in rows]


def calls(types, guesses):
    """Return lists of arguments: each combination for up to three parameters, else each two of them changed."""
    pools = [guesses[each] for each in types]
    if len(types) <= 3:
        return [list(each) for each in itertools.product(*pools)]
    found = []
    for one, two in itertools.combinations(range(len(types)), 2):
        for a, b in itertools.product(pools[one], pools[two]):
            args = [pools[0][1], *[None] * (len(types) - 1)]
            args[one], args[two] = a, b
            found.append(args)
    return found


async def shown(session, sql, *args):
    """Return all that a statement shows, without its own arguments: its rows, or its error with all fields."""
    try:
        answer = repr([tuple(row) for row in await session.fetch(sql, *args)])
    except asyncpg.InvalidParameterValueError as error:  # an argument that the function refuses
        answer = f"invalid_parameter: {error}, {error.as_dict()}"
    except asyncpg.PostgresError as error:
        answer = repr(error.as_dict())
    for arg in sorted((str(each) for each in args), key=len, reverse=True):
        if len(arg) >= 5:
            answer = answer.replace(arg, "")
    return answer


async def answers(site, con, guesses):
    """Yield the result of each function that a site may call, for many arguments."""
    for name, types in await may_call(con):
        called = ", ".join(f"${n}::text::{each}" for n, each in enumerate(types, 1))
        for args in calls(types, guesses):
            yield name, args, await shown(site, f"select * from webhooks.{name}({called})", *args)


async def test_no_function_reveals_another_site(site, con, guesses):
    theirs = await con.fetchval(
        "select array_agg(event_id::text) from webhooks.events where site_id = 'theirs'"
    )
    found = set()
    async for name, args, answer in answers(site, con, guesses):
        assert WORD not in answer, (name, args)
        assert not [each for each in theirs if each in answer], (name, args)
        if answer != "[]" and "sqlstate" not in answer:
            found.add(name)
    assert found == {
        "site_deliveries", "delivery_detail", "missed_since", "endpoint_activity", "event_payload", "send_again"
    }  # fmt: skip


async def test_another_sites_ids_are_answered_as_unknown_ones(site, con, guesses):
    rows = await con.fetch("select event_id, endpoint_id from webhooks.attempts where site_id = 'theirs'")
    unknown = {str(row[name]): f"9{row[name]}" for row in rows for name in ("event_id", "endpoint_id")}
    asked = 0
    for name, types in await may_call(con):
        called = ", ".join(f"${n}::text::{each}" for n, each in enumerate(types, 1))
        sql = f"select * from webhooks.{name}({called})"
        for args in calls(types, guesses):
            others = [unknown.get(str(arg), "nobodys" if arg == "theirs" else arg) for arg in args]
            if others != args:
                asked += 1
                assert await shown(site, sql, *args) == await shown(site, sql, *others), (name, args)
    assert asked


async def test_without_a_site_no_function_reveals_any(site, con, guesses):
    for value in ("''", "default", "'S'"):
        await site.execute(f"set webhooks.site_id = {value}")
        async for name, args, answer in answers(site, con, guesses):
            assert answer in {"[]", "[(False,)]", "[(None,)]"} or "invalid_parameter" in answer, (
                name,
                args,
                answer,
            )


async def test_no_relation_and_no_sequence_can_be_read(site, con):
    names = await con.fetch(
        "select c.oid::regclass::text as name, c.relkind::text as kind from pg_class c"
        " join pg_namespace n on n.oid = c.relnamespace and n.nspname like 'webhooks%'"
        " where c.relkind in ('r', 'p', 'v', 'm', 'S')"
    )
    assert {"S", "p", "r", "v"} <= {row["kind"] for row in names}
    for name, kind in names:
        assert "permission denied" in await shown(site, f"select * from {name}"), name
        if kind == "S":
            assert "permission denied" in await shown(site, f"select nextval('{name}')"), name
    seen = await site.fetchval("select count(*) from pg_stats where schemaname like 'webhooks%'")
    assert seen == 0


async def test_a_condition_of_the_caller_runs_on_its_own_rows_only(site, con):
    """A cheap function in a condition, which a planner would like to run first, and joins, see no other row."""
    await con.execute("create schema mine; grant usage, create on schema mine to public")
    await site.execute(
        "create function mine.spies(text) returns boolean language plpgsql cost 0.0000001 as"
        " $$ begin raise notice 'saw %', $1; return true; end $$"
    )
    seen = []
    site.add_log_listener(lambda _session, message: seen.append(message.message))
    for call in ("site_deliveries('s')", "site_deliveries('theirs')"):
        await site.fetch(f"select * from webhooks.{call} d where mine.spies(d.subject || d.type)")
        await site.fetch(
            f"select a.* from webhooks.{call} a join webhooks.{call} b on mine.spies(a.type || b.subject)"
        )
    assert seen
    assert not [each for each in seen if WORD in each]


async def test_the_plan_for_another_site_is_that_for_an_unknown_one(site, con):
    """Rows and pages read are the same for both, once the catalogues have been read; the text names nothing."""

    async def plan(call):
        for _ in range(8):  # the first five runs are planned, which reads catalogues
            text = await site.fetchval(
                f"explain (analyze, verbose, buffers, costs off, timing off, summary off, format json)"
                f" select from webhooks.{call}"
            )
        assert WORD not in text
        found = json.loads(text)[0]["Plan"]
        return found["Actual Rows"], found["Shared Hit Blocks"] + found["Shared Read Blocks"]

    other = await con.fetchval("select endpoint_id from webhooks.endpoints where site_id = 'theirs'")
    event = await con.fetchval("select max(event_id) from webhooks.events where site_id = 'theirs'")
    for call, theirs, nobodys in (
        ("site_deliveries('%s')", "theirs", "nobodys"),
        ("site_deliveries('%s', state => 'failed')", "theirs", "nobodys"),
        ("endpoint_activity(%s, null, null)", other, 999),
        ("missed_since(%s, null)", other, 999),
        (f"delivery_detail({event}, %s)", other, 999),
        (f"delivery_detail(%s, {other})", event, event + 999),
    ):
        (rows, pages), (no_rows, no_pages) = await plan(call % theirs), await plan(call % nobodys)
        assert rows == no_rows == 0
        assert abs(pages - no_pages) <= 12, (call, pages, no_pages)
