"""The four roles: what each can do, and that it can do nothing more.

Each test connects as a login role of its own, a member of one of the four: a superuser is refused nothing.
"""

from __future__ import annotations

import os
from urllib.parse import urlsplit

import asyncpg
import pytest
import structlog

from pghookd.event_log.reading.reader import read_new_events
from pghookd.postgres import client, migrate
from pghookd.postgres.client import columns, number_literal, query
from pghookd.postgres.owner import as_owner
from pghookd.runtime.upkeep import maintenance
from pghookd.runtime.upkeep.activity import count_hours
from support.logins import as_user

INSERT = "insert into webhooks.events (site_id, type, payload) values ('s', 'order_created', '{}')"
DENIED = asyncpg.InsufficientPrivilegeError
SNAPSHOT = (3, 3, [])


@pytest.fixture
async def con(with_roles, connect):
    connection = await connect(with_roles)
    await connection.execute("insert into webhooks.sites (site_id, name) values ('s', 'A shop')")
    await connection.execute(
        "insert into webhooks.endpoints (site_id, url, secret) values ('s', 'http://x', 'secret')"
    )
    return connection


async def refused(connection, *statements):
    for sql in statements:
        with pytest.raises(DENIED):
            await connection.execute(sql)


# roles.sql itself ----------------------------------------------------------------------------------------------------


async def test_roles_are_made_once_for_a_cluster_and_granted_in_each_database(
    admin, server_url, template, with_roles, connect
):
    await migrate.migrate(with_roles, roles=True)
    name = f"pghookd_roles_{os.getpid()}"
    await admin.execute(f'create database "{name}" template "{template}"')
    try:
        second = urlsplit(server_url)._replace(path=f"/{name}").geturl()
        await migrate.migrate(second, roles=True)
        for url in (with_roles, second):
            connection = await connect(url)
            assert await connection.fetchval(
                "select has_any_column_privilege('webhooks_producer', 'webhooks.events', 'insert')"
            )
            assert await connection.fetchval(
                "select has_table_privilege('webhooks_daemon', 'webhooks.shards', 'update')"
            )
        roles = await admin.fetch(
            "select rolname, rolcanlogin, rolsuper from pg_roles where rolname like 'webhooks\\_%'"
        )
        assert {row["rolname"] for row in roles} == {
            "webhooks_producer", "webhooks_admin", "webhooks_reader", "webhooks_support", "webhooks_site",
            "webhooks_daemon", "webhooks_owner",
        }  # fmt: skip
        assert not any(row["rolcanlogin"] or row["rolsuper"] for row in roles)
    finally:
        await admin.execute(f'drop database if exists "{name}" with (force)')


async def test_the_public_may_do_nothing(con, login, connect):
    stranger = await connect(await login(None))
    await refused(stranger, INSERT, "select 1 from webhooks.events", "select webhooks.new_secret()")
    open_to_all = await con.fetch(
        "select p.oid::regprocedure::text from pg_proc p where pronamespace = 'webhooks'::regnamespace"
        " and exists (select from aclexplode(coalesce(proacl, acldefault('f', proowner))) where grantee = 0)"
    )
    assert open_to_all == []


async def test_functions_that_act_for_others_look_nowhere_else(con):
    """A definer's function that finds its tables by the caller's search_path is the caller's tool."""
    loose = await con.fetch(
        "select oid::regprocedure::text from pg_proc where pronamespace = 'webhooks'::regnamespace and prosecdef"
        " and not coalesce(proconfig, '{}') @> array['search_path=pg_catalog, webhooks, pg_temp']"
    )
    assert loose == []


async def test_objects_in_a_callers_search_path_gain_nothing(con, login, connect):
    """Functions, operators and tables of the same names, in front of everything: none of them ever runs as another."""
    await con.execute("create schema trap; grant usage, create on schema trap to public")
    await con.execute("create table trap.sprung (by text, what text); grant all on trap.sprung to public")
    url = await login("webhooks_admin")
    mallory = await connect(url)
    await mallory.execute(TRAPS)
    await mallory.execute("set search_path = trap, pg_catalog")
    await mallory.execute(
        "create temp table events (event_id bigint); create temp table endpoints (secret text)"
    )
    endpoint_id = await con.fetchval("select endpoint_id from webhooks.endpoints")
    event_id = await mallory.fetchval("select webhooks.emit('s', 'order_created', '{}')")
    for call in (
        f"webhooks.explain({event_id})",
        f"webhooks.disable_endpoint({endpoint_id})",
        f"webhooks.enable_endpoint({endpoint_id}, 'latest_per_key')",
        f"webhooks.rotate_secret({endpoint_id})",
        f"webhooks.send_test({endpoint_id})",
        f"webhooks.cancel({event_id})",
        f"webhooks.replay(endpoint_id => {endpoint_id}, states => '{{dead,missed}}', dry_run => false)",
        f"webhooks.snooze_endpoint({endpoint_id}, now())",
        "webhooks.mute_owner('A@b.example', now())",
    ):
        await mallory.execute(f"select * from {call}")
    await mallory.execute("update webhooks.endpoints set event_types = '{*}'")
    await mallory.execute("select * from webhooks.deliveries")
    await mallory.execute("select * from webhooks.endpoint_health")
    assert await con.fetchval("select count(*) from webhooks.events") == 2
    await mallory.execute("select webhooks.forget('s')")
    me = urlsplit(url).username
    assert await con.fetch("select distinct by, what from trap.sprung where by <> $1", me) == []


TRAPS = (
    "".join(
        f"create function trap.{name}({arguments}) returns {returns} language plpgsql as"
        f" $$ begin insert into trap.sprung values (current_user, '{name}'); return {value}; end $$;"
        for name, arguments, returns, value in (
            ("now", "", "timestamptz", "clock_timestamp()"),
            ("pg_current_xact_id", "", "xid8", "null"),
            ("pg_notify", "text, text", "void", ""),
            ("lpad", "text, int, text", "text", "''"),
            ("to_hex", "bigint", "text", "''"),
            ("format", "text", "text", "''"),
            ("lower", "text", "text", "''"),
            ("right", "text, int", "text", "''"),
            ("current_setting", "text, boolean", "text", "''"),
            ("jsonb_strip_nulls", "jsonb", "jsonb", "null"),
            ("text_eq", "text, text", "boolean", "true"),
            ("int_eq", "bigint, bigint", "boolean", "true"),
        )
    )
    + "create operator trap.= (leftarg = text, rightarg = text, function = trap.text_eq);"
    "create operator trap.= (leftarg = bigint, rightarg = bigint, function = trap.int_eq);"
)


async def test_nobody_was_granted_a_partition(con):
    granted = await con.fetch(
        "select relname from pg_class, aclexplode(relacl) a where relispartition and relkind = 'r'"
        " and a.grantee <> relowner and a.grantee in (select oid from pg_roles where rolname like 'webhooks\\_%')"
    )
    assert granted == []


# Producers ------------------------------------------------------------------------------------------------------------


async def test_a_producer_inserts_only_its_own_columns(con, login, connect):
    producer = await connect(await login("webhooks_producer"))
    first = await producer.fetchval(f"{INSERT} returning event_id")
    second = await producer.fetchval(
        "insert into webhooks.events (site_id, type, payload, subject, ordering_key, dedupe_key, supersede_key,"
        " traceparent, deliver_after, deliver_before)"
        " values ('s', 't', '{}', 'o/1', 'a', 'b', 'c', 'd', now(), now()) returning event_id"
    )
    third = await producer.fetchval("select webhooks.emit('s', 'order_created', '{}')")
    assert [first + 1, first + 2] == [second, third]
    await producer.copy_records_to_table(
        "events", schema_name="webhooks", columns=["site_id", "type", "payload"], records=[("s", "t", "{}")]
    )
    assert (await producer.fetchval("select webhooks.webhook_id(1, now())")).startswith("evt_")
    assert await producer.fetchval("select max(event_id) from webhooks.events") == first + 3
    assert await con.fetchval("select count(*) from webhooks.events") == 4


async def test_a_producer_rings_a_sleeping_daemon(with_roles, login, connect, until):
    heard = []
    sleeper = await connect(with_roles)
    await sleeper.add_listener("pghookd", lambda *args: heard.append(args[-1]))
    await sleeper.execute("select pg_advisory_lock(1885825131, 0)")
    producer = await connect(await login("webhooks_producer"))
    await producer.execute(INSERT)
    await until(lambda: heard)


async def test_a_producer_can_do_nothing_more(con, login, connect):
    producer = await connect(await login("webhooks_producer"))
    for column, value in (("xid", "'5'"), ("created_at", "now()"), ("endpoint_id", "1")):
        await refused(
            producer,
            f"insert into webhooks.events (site_id, type, payload, {column}) values ('s', 't', '{{}}', {value})",
        )
    await refused(
        producer,
        "insert into webhooks.events (event_id, site_id, type, payload) overriding system value"
        " values (5, 's', 't', '{}')",
        f"{INSERT} returning payload",
        f"{INSERT} returning *",
        f"{INSERT} returning type",
        f"{INSERT} on conflict (event_id) do update set payload = '{{}}'",
        "insert into webhooks.events (site_id, type, payload) select site_id, type, payload from webhooks.events",
        "select payload from webhooks.events",
        "select type, site_id from webhooks.events",
        "copy webhooks.events (payload) to stdout",
        "copy webhooks.events from stdin",
        "select count(*) filter (where site_id = 's') from webhooks.events",
        "update webhooks.events set payload = '{}'",
        "delete from webhooks.events",
        "truncate webhooks.events",
        "select nextval('webhooks.events_event_id_seq')",
        "select setval('webhooks.events_event_id_seq', 5)",
        "select last_value from webhooks.events_event_id_seq",
        "select * from webhooks.endpoints",
        "select * from webhooks.sites",
        "select * from webhooks.deliveries",
        "select * from webhooks.attempts",
        "select webhooks.enable_endpoint(1)",
        "select webhooks.attach_day(99)",
        "select webhooks.replay(site_id => 's', dry_run => false)",
        "select webhooks.rotate_secret(1)",
        "select secret from webhooks.endpoints",
        "select * from webhooks.emails",
        "select * from webhooks.operations",
        "select webhooks.enter_day(99)",
        "select webhooks.newest_event_id()",
        "create table webhooks.mine (n int)",
        "do $$ begin lock table webhooks.events in share mode; end $$",
    )
    day = await con.fetchval("select webhooks.day_of()")
    await refused(
        producer,
        f"insert into webhooks.events_{day} (site_id, type, payload) values ('s', 't', '{{}}')",
    )


# Readers and administrators ---------------------------------------------------------------------------------------


async def test_a_reader_sees_what_happened_and_no_secret(con, login, connect):
    event_id = await con.fetchval(f"{INSERT} returning event_id")
    await con.execute(
        "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, status, outcome,"
        " site_id) values ($1, 1, now(), 1, 1, 200, 'delivered', 's')",
        event_id,
    )
    reader = await connect(await login("webhooks_reader"))
    assert await reader.fetchval("select state from webhooks.deliveries") == "delivered"
    assert await reader.fetchval("select outcome from webhooks.attempts") == "delivered"
    assert await reader.fetch("select * from webhooks.explain($1)", event_id)
    await reader.fetch("select at, actor, what from webhooks.operations")
    await reader.fetch("select * from webhooks.audit")
    await reader.fetch("select * from webhooks.event_types")
    webhook_id = await reader.fetchval("select webhook_id from webhooks.deliveries")
    assert await reader.fetchval("select webhooks.event_id($1)", webhook_id) == event_id
    await refused(
        reader,
        INSERT,
        "select payload from webhooks.events",
        "select secret from webhooks.endpoints",
        "select previous_secret, auth, headers from webhooks.endpoints",
        "select response from webhooks.attempts",
        "select evidence from webhooks.attempts",
        "select * from webhooks.attempts",
        "select unsubscribe_token from webhooks.owners",
        "select * from webhooks.shards",
        "select * from webhooks.events",
        "select event_id from webhooks.events",
        "select digest from webhooks.emails",
        "select detail from webhooks.operations",
        "select owner_email from webhooks.sites",
        "select headers from webhooks.endpoints",
        "select spec from webhooks.replays",
        "select webhooks.rotate_secret(1)",
        "select webhooks.forget('s')",
        "select webhooks.plan_replay(site_id => 's')",
        "select webhooks.emit('s', 't', '{}')",
        "select webhooks.new_secret()",
        "select webhooks.disable_endpoint(1)",
        "delete from webhooks.operations",
    )


async def test_no_view_shows_a_secret_or_a_payload(con):
    shown = await con.fetch(
        "select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid"
        " where c.relnamespace = 'webhooks'::regnamespace and c.relkind = 'v'"
        " and a.attname ~ 'secret|payload|auth|headers|token|response'"
    )
    assert shown == []


async def test_an_administrator_registers_and_acts(login, connect):
    admin = await connect(await login("webhooks_admin"))
    await admin.execute("insert into webhooks.sites (site_id, name) values ('t', 'Another')")
    endpoint_id = await admin.fetchval(
        "insert into webhooks.endpoints (site_id, url, secret) values ('t', 'http://y', webhooks.new_secret())"
        " returning endpoint_id"
    )
    await admin.execute("update webhooks.endpoints set enabled = false where endpoint_id = $1", endpoint_id)
    await admin.execute("select webhooks.enable_endpoint($1)", endpoint_id)
    await admin.execute("select webhooks.disable_endpoint($1)", endpoint_id)
    event_id = await admin.fetchval("select webhooks.emit('t', 'order_created', '{}')")
    assert [row["what"] for row in await admin.fetch("select * from webhooks.explain($1)", event_id)][
        -1
    ] == "disabled"
    assert await admin.fetchval("select actor from webhooks.operations limit 1") != "postgres"
    for table in (
        "deliveries",
        "attempts",
        "backlog",
        "dead",
        "events",
        "operations",
        "emails",
        "replays",
        "owners",
    ):
        await admin.fetch(f"select * from webhooks.{table}")
    await admin.execute("delete from webhooks.sites where site_id = 't'")
    await refused(
        admin,
        "delete from webhooks.operations",
        "update webhooks.shards set floor = 0",
        "delete from webhooks.backlog",
        "select setval('webhooks.events_event_id_seq', 5)",
        "update webhooks.events set payload = '{}'",
        "insert into webhooks.events (site_id, type, payload) values ('t', 't', '{}')",
        "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts) values (1, 1, 't', 'x', 1)",
        "update webhooks.attempts set outcome = 'delivered'",
        "update webhooks.emails set state = 'sent'",
        "update webhooks.replays set rate_per_s = 1000",
        "insert into webhooks.operations (what) values ('x')",
        "select webhooks.attach_day(99)",
        "select webhooks.advance_replay(1, 1, 1)",
        "select webhooks.newest_event_id()",
        "select webhooks.forget_page('s', 10)",
        "select webhooks.erase_payloads(1, 10)",
        "alter table webhooks.endpoints add column mine text",
        "create trigger mine after insert on webhooks.endpoints for each row execute function webhooks.ring()",
        "create table webhooks.mine (n int)",
    )


# The daemon -------------------------------------------------------------------------------------------------------


def parameters(day, event_id):
    """Return good parameters for each query; a query that is not here fails the test below."""
    events, endpoints, sites = [event_id], [1], ["s"]
    server = (1, 1, "00000001")
    now, owner = 10**15, "anna@shop.example"
    return {
        "adopt_positions": (event_id,),
        "adopt_sequence": (),
        "adopt_unsettled": (),
        "attach_day": (day,),
        "note_day": (day,),
        "enter_day": (day,),
        "is_in_day": (day,),
        "find_missing_days": (day, 3),
        "find_first_event": (SNAPSHOT, SNAPSHOT, 0, 0),
        "find_gone_days": ([day],),
        "find_parked_endpoints": (0, 10, 16),
        "find_endpoints_with_rows": (endpoints,),
        "hold_backlog": (1, 0, 10),
        "expire_held": (14.0, 10),
        "identify_server": (),
        "load_payload": (event_id, 1000),
        "load_payloads": ([event_id],),
        "lock_shard": (0,),
        "read_home": (),
        "enter_home": ("h", "s", "r", 0, "[]"),
        "name_home": ("",),
        "forget_homes": (64,),
        "mark_copy": ("h", "s", "db:5432"),
        "enter_standby": ("h", "s", ""),
        "find_strangers": (),
        "find_oldest_transactions": (3,),
        "read_days": (),
        "quarantine_deliveries": (events, endpoints),
        "make_shards": (2,),
        "read_shards": (),
        "read_newest_event_id": (),
        "read_new_events": (SNAPSHOT, 0, 0, 10),
        "read_events_page": (SNAPSHOT, SNAPSHOT, 0, event_id, 10, None, 16, []),
        "skim_events": (SNAPSHOT, SNAPSHOT, 0, event_id, 10, None, 16),
        "read_settled": (0, event_id, 9),
        "read_settled_events": (events, event_id, event_id, 0, 9),
        "read_events": (events, event_id, event_id),
        "read_endpoints": (endpoints, 16),
        "read_endpoints_of_sites": (sites, 16, [0], [9], 9),
        "read_due": (0, 0, 0, 10),
        "read_parked": (1, 0, 10),
        "read_line": (1, "k", 10),
        "walk_lines": (1, 0, 10),
        "place_in_line": ([event_id], [1]),
        "record_attempts": (
            *(number_literal(each) for each in (events, endpoints, [1], [10**15], [1.5], [200], [1])),
            ["delivered"], [None], [None], sites, ["live"], None,
        ),
        "put_backlog": columns([(event_id, 1, "s", "waiting", "retry", 1, 5.0, "k", 0, "retry")], 10),
        "put_dead": columns([(event_id, 1, "s", "exhausted", 1)], 5),
        "clear_backlog": (events, endpoints),
        "disable_endpoints": (endpoints, ["gone"]),
        "note_failures": columns([(1, now, now, None, None, 0, "refused", 500, None, event_id, 1)], 11),
        "note_successes": columns([(1, now, now, 1)], 4),
        "read_watched": (),
        "find_firsts": (["s"], ["d"], [0], [event_id], 0, event_id, SNAPSHOT, SNAPSHOT),
        "find_firsts_again": (["s"], ["d"], [0], [event_id], 0, event_id, SNAPSHOT, SNAPSHOT, 100),
        "find_superseded": ([1], ["s"], ["k"], [0], 0, 100, 10**7, 7),
        "match_filter": ([event_id], [1]),
        "find_due_owners": (now, 10),
        "read_cases": ([owner], now, ["s"], ["port"]),
        "find_faults": (now, now, 10),
        "read_reports": (owner, now),
        "read_owners": ([owner], now, [owner]),
        "read_told": (1, now, 0, now),
        "read_waiting": (1,),
        "read_answer": (event_id, 1, 1),
        "step_incidents": ([1], ["failing"], ["{}"], [True], [now], [None], now, now, ["{}"]),
        "end_incidents": ([1], [now]),
        "put_email": (owner, "failing", now, "{}", "{}", "queued", now, owner, "x"),
        "withdraw_emails": (now, None),
        "fold_email": (1,),
        "give_token": (owner,),
        "find_storm_evidence": (now, now),
        "pause_disabling": (1, 1),
        "recall_incidents": (now, True, now),
        "postpone_owners": ([owner], now, ["s"]),
        "read_emails": (now, ["failing"], 10, [], ["storm"]),
        "claim_email": (1, 0, now, "<a@b>", "a subject"),
        "settle_email": (1, "sent", None, now),
        "suspend_owner": (owner, now, "no such address"),
        "find_replays": (),
        "advance_replay": (1, 500, 10),
        "plan_replay": (None, 1, None, None, "2h", None, ["dead"], None),
        "start_replay": (None, 1, None, None, "2h", None, ["dead"], 5.0),
        "read_replay": (1,),
        "find_plain_secrets": (10,),
        "find_secrets": (0, 10),
        "wrap_secrets": ([1], ["secret"], ["enc:v1:a:AAAA"], [None], [None], ["legacy"], [None], [None]),
        "erase_payloads": (30.0, 10),
        "erase_responses": (30.0, 10),
        "forget_sites": (10,),
        "erase_subjects": (),
        "store_positions": ([0], [SNAPSHOT], [None], [0], [0], [0], event_id, *server),
        "find_today": (),
        "find_old_days": (0, 10),
        "find_unjudged": (10, 16),
        "note_readiness": ([1], ["0"], [None]),
        "note_unclaimed": (["site", "type"], ["x", "order_creatd"], [1, 2]),
        "list_unclaimed": (7, 10),
        "leave_day": (0,),
        "roll_up_hour": (600.0,),
        "read_day_tables": (day,),
        "why_kept": (0,),
        "expire_day": (0, 10),
        "read_storage": ("webhooks",),
        "read_archive": (0,),
        "find_events_of_subject": ("s", "order/1", 10),
        "read_event_answers": (event_id,),
        "list_deliveries": ("s", None, None, None, None, None, None, None, 10),
        "why_no_deliveries": ("s", None, None),
        "measure_database": (),
        "analyze_events": (),
        "analyze_attempts": (),
        "analyze_dead": (),
        "clear_home": (),
        "note_adoption": (0, False),
        "find_schema": (),
        "read_migrations": (),
        "read_functions": (),
        "count_signatures": ("emit",),
        "find_lock_holder": (1, 1),
        "find_lacking_privileges": (["events"], ["select"], ["takes"]),
        "find_superuser_owner": (),
        "find_hiding_tables": (),
        "has_next_day": (),
        "find_special_endpoints": (),
        "count_encrypted": (),
        "count_secrets": (),
        "count_shards": (),
        "list_endpoints": (None,),
        "show_endpoint": (1,),
        "read_test": (event_id, 1),
        "read_event": (event_id,),
        "read_event_deliveries": (event_id,),
        "read_event_attempts": (event_id,),
        "read_payload": (event_id,),
        "explain_event": (event_id,),
        "count_delivered": (events,),
        "add_endpoint": ('{"site_id": "s", "url": "https://a.example/"}', True),
        "enable_endpoint": (1, "deliver"),
        "disable_endpoint": (1,),
        "rotate_secret": (1, 60.0),
        "send_test": (1, "webhook_test"),
        "pause_replay": (1,),
        "resume_replay": (1,),
        "cancel_replay": (1,),
        "prune_emails": (400, 10),
        "prune_activity": (400, 10),
        "prune_operations": (400, 10),
        "prune_replays": (400, 10),
        "prune_revisions": (400, 10),
        "note_expired_day": (1, 1),
        "note_left_day": (0, "dropped"),
        "note_archive_dropped": (0,),
        "note_migration": (99, "later", "x", None),
        "note_function": ("later", "x", "1.0"),
        "prepare_days": (),
        "insert_event": ("s", "t", b"{}", None),
        "put_sites": (sites, sites),
        "move_endpoint": ("s", "d", "https://a.example/"),
        "insert_endpoint": ("s", "d", "https://a.example/", ["*"], None),
    }  # fmt: skip


NOT_THE_DAEMONS = {
    # Run by commands, as a member of webhooks_reader.
    "list_deliveries", "why_no_deliveries",
    # Run by commands, as a member of webhooks_admin.
    "plan_replay", "start_replay", "pause_replay", "resume_replay", "cancel_replay", "add_endpoint", "enable_endpoint",
    "disable_endpoint", "rotate_secret", "send_test",
    # By retention, as the owner.
    "prune_activity", "prune_emails", "prune_operations", "prune_replays", "prune_revisions",
    # By `migrate` and the demo, as the owner.
    "note_migration", "note_function", "prepare_days", "insert_event", "put_sites", "move_endpoint", "insert_endpoint",
}  # fmt: skip


# Only by the owner of the tables, whose role the daemon takes for a moment (postgres/owner.py).
THE_OWNERS = {
    "act_as_owner", "detach_partition", "finish_detaching", "drop_partition", "archive_partition", "drop_archived",
}  # fmt: skip


def statement(name):
    """Return the text of a query; one that names its bounds is filled by the reader."""
    return read_new_events(0, 2**62) if name == "read_new_events" else query(name)


@pytest.fixture
async def daemon(login):
    session = await client.connect(await login("webhooks_daemon"), name="daemon")
    yield session
    await session.close()


async def test_the_daemons_role_can_run_every_query(con, daemon):
    event_id = await con.fetchval(f"{INSERT} returning event_id")
    day = await con.fetchval("select max(day) + 1 from webhooks.partitions")
    given = parameters(day, event_id)
    assert given.keys() == client.queries().keys() - THE_OWNERS
    for name, arguments in given.items():
        if name in NOT_THE_DAEMONS:
            with pytest.raises(client.DatabaseError, match=r"permission denied for (function|table)"):
                await daemon.fetch(query(name), *arguments)
        else:
            await daemon.fetch(statement(name), *arguments)
    assert await con.fetchval("select count(*) from webhooks.attempts") == 1
    assert await con.fetchval("select last_value from webhooks.events_event_id_seq") == day * 2**32


async def test_the_daemons_role_removes_a_day_only_as_the_owner(con, daemon):
    """It inherits nothing from the owner: what the daemon runs by mistake or by injection is refused."""
    day = await con.fetchval("select min(day) from webhooks.partitions")
    detach, drop = (
        query(name).format(table="dead", day=day) for name in ("detach_partition", "drop_partition")
    )
    for sql in (detach, drop):
        with pytest.raises(client.DatabaseError, match="must be owner"):
            await daemon.execute(sql)
    async with as_owner(daemon):
        await daemon.execute(detach)
        await daemon.execute(drop)
    with pytest.raises(client.DatabaseError, match="permission denied"):
        await daemon.execute("delete from webhooks.events")


async def test_what_a_superuser_made_belongs_to_a_role_of_its_own(con, database, login):
    """Also what a superuser adds by a later migrate."""
    owners = (
        "select distinct pg_get_userbyid(relowner)::text from pg_class where relnamespace = 'webhooks'::regnamespace"
        " union select pg_get_userbyid(proowner)::text from pg_proc where pronamespace = 'webhooks'::regnamespace"
        " union select pg_get_userbyid(nspowner)::text from pg_namespace where nspname like 'webhooks%'"
    )
    assert [row[0] for row in await con.fetch(owners)] == ["webhooks_owner"]
    await con.execute("drop function webhooks.explain")
    await migrate.migrate(database, roles=True)
    assert [row[0] for row in await con.fetch(owners)] == ["webhooks_owner"]


async def test_the_daemons_role_can_do_nothing_more(con, login, connect):
    """It changes the log only through functions; a program that was taken over can forge and lose nothing."""
    event_id = await con.fetchval(f"{INSERT} returning event_id")
    day = await con.fetchval("select webhooks.day_of()")
    daemon = await connect(await login("webhooks_daemon"))
    await refused(
        daemon,
        INSERT,
        f"update webhooks.events set payload = '{{}}' where event_id = {event_id}",
        f"delete from webhooks.events where event_id = {event_id}",
        "truncate webhooks.attempts",
        "update webhooks.attempts set outcome = 'delivered'",
        "delete from webhooks.attempts",
        "update webhooks.endpoints set url = 'http://elsewhere'",
        "update webhooks.endpoints set secret = 'mine'",
        "insert into webhooks.endpoints (site_id, url) values ('s', 'http://elsewhere')",
        "delete from webhooks.endpoints",
        "update webhooks.sites set owner_email = 'me@elsewhere.example'",
        "delete from webhooks.sites",
        "update webhooks.operations set actor = 'somebody'",
        "delete from webhooks.operations",
        "delete from webhooks.migrations",
        "update webhooks.migrations set sha256 = ''",
        "update webhooks.functions set sha256 = ''",
        f"select from webhooks.events_{day}",
        f"drop table webhooks.events_{day}",
        "drop table webhooks.attempts",
        "alter table webhooks.events disable trigger bell",
        "create table webhooks.mine (n int)",
        "create schema mine",
        "create role mine",
        "alter role current_user superuser",
        "create function webhooks.new_secret(n int) returns text language sql as 'select 1::text'",
        "create or replace function webhooks.new_secret() returns text language sql as 'select 1::text'",
        "copy webhooks.sites to program 'cat'",
        "select pg_read_file('pg_hba.conf')",
        "select rolpassword from pg_authid",
    )


async def test_the_daemons_role_makes_days_and_enters_them(con, daemon):
    day = await con.fetchval("select max(day) + 1 from webhooks.partitions")
    assert await maintenance.step(daemon, logger=structlog.get_logger(), days=2, today=day)
    assert await con.fetchval(f"{INSERT} returning event_id") == day * 2**32
    await daemon.execute("select pg_notify('pghookd', 'echo'); listen pghookd")


async def test_the_daemons_role_counts_hours_and_summarizes_their_pages(con, daemon):
    event_id = await con.fetchval(f"{INSERT} returning event_id")
    await con.execute(
        "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome, site_id)"
        f" values ({event_id}, 1, now() - interval '2 hours', 1, 1, 'refused', 's');"
        "update webhooks.upkeep set next_hour = date_trunc('hour', now() - interval '2 hours') where what = 'activity'"
    )
    await count_hours(daemon, structlog.get_logger())
    assert await con.fetchval("select attempts from webhooks.endpoint_hours") == 1
    summarize = (
        "select brin_summarize_new_values(inhrelid) from pg_inherits where inhparent = $1::text::regclass"
    )
    assert {row[0] for row in await con.fetch(summarize, "webhooks.attempts_by_time")} == {
        0
    }  # nothing is left


async def test_the_daemons_role_reads_the_log_it_did_not_make(daemon, login, connect):
    producer = await connect(await login("webhooks_producer"))
    await producer.execute(INSERT)
    rows = await daemon.fetch(statement("read_new_events"), SNAPSHOT, 0, 0, 10)
    assert [row["payload"] for row in rows] == [b"{}"]


async def test_a_schema_of_a_plain_owner_is_the_daemons_as_well(server_url, admin, connect):
    """No superuser's schema: its owner migrates, makes the roles, and the daemon may drop old days."""
    number = os.getpid()
    owner, name, login = f"pghookd_owner_{number}", f"pghookd_owned_{number}", f"pghookd_runs_{number}"
    await admin.execute(f"create role {owner} login createrole password 'pw-{owner}'")
    await admin.execute(f"create role {login} login password 'pw-{login}'")
    await admin.execute(f'create database "{name}" owner {owner} template template0')
    url = urlsplit(server_url)._replace(path=f"/{name}").geturl()
    try:
        await migrate.migrate(as_user(url, owner), roles=True)
        await migrate.migrate(as_user(url, owner), roles=True)
        await migrate.migrate(url, roles=True)  # a superuser: where the owner may not grant itself
        await admin.execute(f"grant webhooks_daemon to {login}")
        con = await connect(url)
        assert await con.fetchval("select tableowner from pg_tables where tablename = 'events'") == owner
        daemon = await client.connect(as_user(url, login), name="daemon")
        day = await con.fetchval("select max(day) + 1 from webhooks.partitions")
        assert await maintenance.step(daemon, logger=structlog.get_logger(), days=1, today=day)
        assert (
            await con.fetchval("select reltuples from pg_class where oid = 'webhooks.events'::regclass") == 0
        )
        async with as_owner(daemon):
            await daemon.execute(
                f"alter table webhooks.events detach partition webhooks.events_{day - 1} concurrently"
            )
            await daemon.execute(f"drop table webhooks.events_{day - 1}")
        await daemon.close()
        await con.close()
    finally:
        await admin.execute(f'drop database if exists "{name}" with (force)')
        await admin.execute(f"drop owned by {owner}, {login}")
        await admin.execute(f"drop role {owner}, {login}")


async def test_an_owner_that_made_the_roles_itself_is_told_and_not_stopped(own_server, connect):
    """From 16 on who makes a role is a member of it, so that it cannot be made a member of its maker."""
    superuser = await connect(own_server.url())
    await superuser.execute("create role owner login createrole")
    await superuser.execute("create database owned owner owner")
    url = as_user(own_server.url("owned"), "owner")
    for _ in range(2):
        assert (await migrate.migrate(url, roles=True)).roles
    owner = await connect(url)
    assert await owner.fetchval("select has_table_privilege('webhooks_daemon', 'webhooks.shards', 'update')")
    await superuser.execute("create role runs login; grant webhooks_daemon to runs")
    daemon = await client.connect(as_user(own_server.url("owned"), "runs"), name="daemon")
    day = await owner.fetchval("select max(day) + 1 from webhooks.partitions")
    assert await maintenance.step(daemon, logger=structlog.get_logger(), days=1, today=day)
    await daemon.close()


# The pages of a site ------------------------------------------------------------------------------------------------


async def test_a_site_sees_its_own_deliveries_and_nothing_else(con, login, connect):
    await con.execute("insert into webhooks.sites (site_id, name) values ('t', 'Another')")
    await con.execute("insert into webhooks.endpoints (site_id, url) values ('t', 'http://x')")
    mine = await con.fetchval(f"{INSERT} returning event_id")
    theirs = await con.fetchval(
        f"{INSERT.replace(chr(39) + 's' + chr(39), chr(39) + 't' + chr(39))} returning event_id"
    )
    site = await connect(await login("webhooks_site"))
    ask = "select array_agg(event_id) from webhooks.site_deliveries($1)"
    assert [await site.fetchval(ask, each) for each in ("s", "t")] == [None, None]
    await site.execute("set webhooks.site_id = 's'")
    assert [await site.fetchval(ask, each) for each in ("s", "t", None)] == [[mine], None, None]
    await site.execute("set webhooks.site_id = ''")
    assert [await site.fetchval(ask, each) for each in ("s", "t", "")] == [None, None, None]
    await refused(
        site,
        "select * from webhooks.deliveries",
        "select * from webhooks.events",
        "select * from webhooks.sites",
        "select * from webhooks.recent_deliveries('s', null, '{delivered}', 0, 9, 9, 9)",
        "select last_value from webhooks.events_event_id_seq",
        f"select webhooks.explain({mine})",
    )
    both = await connect(await login("webhooks_reader"))
    assert [await both.fetchval(ask, each) for each in ("s", "t")] == [[mine], [theirs]]


async def test_a_site_sees_what_its_own_endpoints_did_and_missed(con, login, connect):
    await con.execute("insert into webhooks.sites (site_id, name) values ('t', 'Another')")
    mine = await con.fetchval("select endpoint_id from webhooks.endpoints")
    theirs = await con.fetchval(
        "insert into webhooks.endpoints (site_id, url) values ('t', 'http://x') returning endpoint_id"
    )
    both = "insert into webhooks.events (site_id, type, payload) values ('s', 't', '1'), ('t', 't', '1')"
    await con.execute(both)
    await con.execute(
        "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome, site_id)"
        " select e.event_id, p.endpoint_id, now() - n * interval '2 hours', 1, n, 'refused', p.site_id"
        " from webhooks.events e join webhooks.endpoints p using (site_id), generate_series(0, 1) n;"
        "update webhooks.upkeep set next_hour = date_trunc('hour', now() - interval '2 hours') where what = 'activity';"
        "select webhooks.roll_up_hour('0')"
    )
    await con.execute(both)
    asked = (
        "select sum(attempts)::int from webhooks.endpoint_activity($1, null, null)",
        "select nullif(count(*)::int, 0) from webhooks.missed_since($1, null)",
    )
    site, reader = await connect(await login("webhooks_site")), await connect(await login("webhooks_reader"))

    async def seen(connection):
        return [[await connection.fetchval(ask, each) for each in (mine, theirs, 999)] for ask in asked]

    assert await seen(site) == [[None] * 3] * 2
    await site.execute("set webhooks.site_id = 's'")
    assert await seen(site) == [[2, None, None], [1, None, None]]
    assert await seen(reader) == [[2, 2, None], [1, 1, None]]
    await refused(
        site,
        "select * from webhooks.endpoint_hours",
        "select * from webhooks.count_attempts('-infinity', 'infinity')",
        "select webhooks.roll_up_hour('0')",
    )


async def test_a_payload_is_for_the_site_and_for_administrators(con, login, connect):
    mine = await con.fetchval(f"{INSERT} returning event_id")
    ask = "select webhooks.event_payload($1)::text"
    both = await connect(await login("webhooks_site, webhooks_support"))
    for site in (await connect(await login("webhooks_site")), both):
        assert await site.fetchval(ask, mine) is None
        await site.execute("set webhooks.site_id = 't'")
        assert await site.fetchval(ask, mine) is None
        await site.execute("set webhooks.site_id = 's'")
        assert [await site.fetchval(ask, each) for each in (mine, mine + 1)] == ["{}", None]
    assert await (await connect(await login("webhooks_admin"))).fetchval(ask, mine) == "{}"
    for role in ("webhooks_reader", "webhooks_support", "webhooks_producer"):
        await refused(await connect(await login(role)), f"select webhooks.event_payload({mine})")


# Operations by hand -------------------------------------------------------------------------------------------------


async def test_only_administrators_test_and_cancel(con, login, connect):
    add = "select webhooks.add_endpoint('s', 'https://a.example/', '{}')"
    acts = (add, "select webhooks.send_test(1)", "select webhooks.cancel(1)")
    for role in ("webhooks_producer", "webhooks_reader"):
        await refused(await connect(await login(role)), *acts)
    admin = await connect(await login("webhooks_admin"))
    endpoint_id = await con.fetchval("select endpoint_id from webhooks.endpoints")
    event_id = await admin.fetchval("select webhooks.send_test($1)", endpoint_id)
    assert await admin.fetchval("select webhooks.cancel($1)", event_id) == 0


async def test_changes_are_emitted_with_the_rights_of_their_author(con, login, connect):
    """Casts of a row's own types run meanwhile: never as the owner of the schema."""
    await con.execute("create table things (shop text); grant insert, trigger on things to public")
    make = (
        "create trigger made after insert on things referencing new table as new_rows"
        " for each statement execute function webhooks.emit_changes('shop', 'a', 'b')"
    )
    await refused(await connect(await login("webhooks_reader")), make)
    producer = await connect(await login("webhooks_producer"))
    await producer.execute(make)
    await producer.execute("insert into things values ('s')")
    assert await con.fetchval("select count(*) from webhooks.events") == 1
    stranger, warnings = await connect(await login(None)), []
    stranger.add_log_listener(lambda _, message: warnings.append(message.message))
    await stranger.execute("insert into things values ('s')")
    assert warnings == ["trigger made on public.things made no events: permission denied for schema webhooks"]
    assert await con.fetchval("select count(*) from webhooks.events") == 1
    await con.execute("drop table things")
