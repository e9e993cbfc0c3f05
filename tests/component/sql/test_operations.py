"""Operations by hand, and a table's changes as events: the functions behind them.

The roles that may call them, their rows in `operations`, and that a statement's rows become events in one go.
"""

from __future__ import annotations

import json

import asyncpg
import pytest

from pghookd.cli.constraints import RULES, explained
from pghookd.operations import endpoints
from pghookd.postgres.client import DatabaseError
from support.crew import settings_of
from support.events import emit

DENIED = asyncpg.InsufficientPrivilegeError
GIVEN = "'shop', 'thing_created', 'thing_updated'"


@pytest.fixture
async def con(database, connect):
    connection = await connect(database)
    await connection.execute("insert into webhooks.sites (site_id, name) values ('s', 'A shop')")
    return connection


@pytest.fixture
async def endpoint_id(con):
    return await con.fetchval(
        "insert into webhooks.endpoints (site_id, url, event_types, secret)"
        " values ('s', 'https://example.com/', '{order_updated}', 'hunter2') returning endpoint_id"
    )


async def operations(con):
    rows = await con.fetch("select what, detail from webhooks.operations order by at")
    return [(row["what"], json.loads(row["detail"])) for row in rows]


# send_test ------------------------------------------------------------------------------------------------------------


async def test_a_test_is_an_event_for_one_endpoint_that_says_so(con, endpoint_id):
    event_id = await con.fetchval("select webhooks.send_test($1)", endpoint_id)
    row = await con.fetchrow("select * from webhooks.events")
    assert (row["event_id"], row["site_id"], row["type"]) == (event_id, "s", "webhook_test")
    assert row["endpoint_id"] == endpoint_id
    assert json.loads(row["payload"])["test"] is True
    assert await operations(con) == [
        ("send_test", {"endpoint_id": endpoint_id, "type": "webhook_test", "event_id": event_id})
    ]


async def test_a_test_of_a_known_type_is_its_example(con, endpoint_id):
    await con.fetchval("select webhooks.send_test($1, 'order_created')", endpoint_id)
    payload = json.loads(await con.fetchval("select payload from webhooks.events"))
    assert payload.pop("test") is True
    example = await con.fetchval("select example from webhooks.event_types where name = 'order_created'")
    assert payload == json.loads(example)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("send_test(-1)", "there is no endpoint -1"),
        ("send_test(null)", "there is no endpoint null"),
        ("send_test({0}, 'no type')", "not no type"),
        ("send_test({0}, null)", "not null"),
        ("cancel(-1)", "there is no event -1"),
        ("cancel(null)", "wants an event"),
    ],
)
async def test_what_there_is_not_is_said(con, endpoint_id, call, told):
    with pytest.raises(asyncpg.PostgresError, match=told):
        await con.fetchval(f"select webhooks.{call.format(endpoint_id)}")
    assert await operations(con) == []


async def test_a_disabled_endpoint_is_not_tested(con, endpoint_id):
    await con.execute("select webhooks.disable_endpoint($1, 'gone')", endpoint_id)
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match=r"is disabled \(gone\)"):
        await con.fetchval("select webhooks.send_test($1)", endpoint_id)


# cancel ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def waiting(con, endpoint_id):
    """Return an event that two endpoints have not got yet."""
    event_id = await emit(con, kind="order_updated")
    await con.execute(
        "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, attempts, next_attempt_at)"
        " values ($1, $2, 's', 'waiting', 'retry', 3, now()), ($1, $2 + 1, 's', 'held', 'disabled', 0, null)",
        event_id,
        endpoint_id,
    )
    return event_id


async def dead(con):
    return [tuple(row) for row in await con.fetch("select endpoint_id, reason, attempts from webhooks.dead")]


async def test_cancel_gives_up_one_endpoints_delivery(con, endpoint_id, waiting):
    assert await con.fetchval("select webhooks.cancel($1, $2)", waiting, endpoint_id) == 1
    assert await dead(con) == [(endpoint_id, "cancelled", 3)]
    assert await con.fetchval("select count(*) from webhooks.backlog") == 1
    assert await con.fetchval("select webhooks.cancel($1, $2)", waiting, endpoint_id) == 0
    assert await operations(con) == [
        ("cancel", {"event_id": waiting, "endpoint_id": endpoint_id, "cancelled": 1})
    ]


async def test_cancel_gives_up_all_that_is_left_of_an_event(con, endpoint_id, waiting):
    assert await con.fetchval("select webhooks.cancel($1)", waiting) == 2
    assert sorted(await dead(con)) == [(endpoint_id, "cancelled", 3), (endpoint_id + 1, "cancelled", 0)]
    assert await con.fetchval("select count(*) from webhooks.backlog") == 0


# emit_changes ---------------------------------------------------------------------------------------------------------


async def watch(con, *omitted, table="things"):
    """Make the two triggers as their documentation has them."""
    arguments = ", ".join([GIVEN, *(f"'{name}'" for name in omitted)])
    await con.execute(
        f"create trigger made after insert on {table} referencing new table as new_rows"
        f" for each statement execute function webhooks.emit_changes({arguments});"
        f"create trigger changed after update on {table} referencing old table as old_rows new table as new_rows"
        f" for each statement execute function webhooks.emit_changes({arguments})"
    )


@pytest.fixture
async def things(con):
    await con.execute(
        "create table things (id int primary key, shop text, name text, price numeric, token text, seen_at timestamptz,"
        " extra json)"
    )
    return con


async def told(con):
    rows = await con.fetch("select site_id, type, payload from webhooks.events order by event_id")
    return [(row["site_id"], row["type"], json.loads(row["payload"])) for row in rows]


async def test_ten_thousand_rows_of_one_statement_are_as_many_events(things):
    await watch(things, "token")
    await things.execute(
        "insert into things select n, 's' || n % 7, 'Thing ' || n, n / 100.0, 'secret', now(), '{\"a\":  1}'"
        " from generate_series(1, 10000) n"
    )
    count, sites, ids, xids = await things.fetchrow(
        "select count(*), count(distinct site_id), count(distinct payload ->> 'id'), count(distinct xid::text)"
        " from webhooks.events where type = 'thing_created'"
    )
    assert (count, sites, ids, xids) == (10000, 7, 10000, 1)
    assert not await things.fetchval(
        "select count(*) from webhooks.events where payload::text like '%secret%'"
    )
    assert await things.fetchval("select payload ->> 'extra' from webhooks.events limit 1") == '{"a":  1}'
    await things.execute("update things set price = price + 1")
    assert await things.fetchval("select count(*) from webhooks.events where type = 'thing_updated'") == 10000


async def test_a_payload_is_the_row_with_its_nulls_and_columns_in_order(things):
    await watch(things, "token", "seen_at")
    await things.execute("insert into things (id, shop, token) values (1, 's', 'secret')")
    payload = await things.fetchval("select payload from webhooks.events")
    assert list(json.loads(payload).items()) == [
        ("id", 1), ("shop", "s"), ("name", None), ("price", None), ("extra", None),
    ]  # fmt: skip


async def test_an_update_makes_events_of_rows_that_look_different(things):
    await watch(things, "token", "seen_at")
    await things.execute(
        "insert into things (id, shop, name) values (1, 's', 'a'), (2, 's', 'b'), (3, 's', 'c')"
    )
    await things.execute("delete from webhooks.events")
    await things.execute("update things set seen_at = now(), token = 'x'")
    await things.execute("update things set name = 'a'")
    found = await told(things)
    assert sorted(row["id"] for _, _, row in found) == [2, 3]
    assert {kind for _, kind, _ in found} == {"thing_updated"}
    await things.execute("update things set name = null where id = 1")
    assert (await told(things))[-1][2]["name"] is None


async def test_a_row_without_a_site_makes_no_event_and_harms_no_other(things):
    await watch(things)
    await things.execute(
        "insert into things (id, shop) values (1, null), (2, ''), (3, repeat('x', 201)), (4, 's')"
    )
    await things.execute("insert into things select 9, 's' where false")
    assert [row["id"] for _, _, row in await told(things)] == [4]


async def test_what_postgres_cannot_hold_as_jsonb_passes(things):
    await watch(things, "token")
    await things.execute(r"""insert into things (id, shop, extra) values (1, 's', '{"a": "\u0000"}')""")
    payload = await things.fetchval("select payload::text from webhooks.events")
    assert r"\u0000" in payload


async def test_columns_may_have_any_name(con):
    await con.execute(
        'create table things (r int, s text, said text, site_id text, kind text, n int, "A b" int, gone int);'
        "alter table things drop column gone"
    )
    await con.execute(
        "create trigger t after insert on things referencing new table as new_rows"
        " for each statement execute function webhooks.emit_changes('site_id', 'a', 'b', 'n')"
    )
    await con.execute("insert into things values (1, 's', 'x', 'site', 'k', 2, 3)")
    payload = {"r": 1, "s": "s", "said": "x", "site_id": "site", "kind": "k", "A b": 3}
    assert await told(con) == [("site", "a", payload)]


async def test_all_columns_may_be_left_out(con):
    await con.execute("create table things (shop text)")
    await watch(con, "shop")
    await con.execute("insert into things values ('s')")
    await con.execute("update things set shop = 't'")
    assert await told(con) == [("s", "thing_created", {}), ("t", "thing_updated", {})]


async def test_upsert_and_copy_and_a_numeric_site(con):
    await con.execute("create table things (id int primary key, shop int, name text)")
    await watch(con)
    await con.copy_records_to_table("things", records=[(1, 7, "a"), (2, 8, "b")])
    await con.execute(
        "insert into things values (2, 8, 'B'), (3, 9, 'c') on conflict (id) do update set name = excluded.name"
    )
    assert sorted((site, kind) for site, kind, _ in await told(con)) == [
        ("7", "thing_created"), ("8", "thing_created"), ("8", "thing_updated"), ("9", "thing_created"),
    ]  # fmt: skip


# add_endpoint -----------------------------------------------------------------------------------------------------


async def test_an_endpoint_is_added_with_options_by_name_and_no_others(con):
    row = await con.fetchrow(
        "select * from webhooks.add_endpoint('s', 'https://a.example/', $1::jsonb)",
        '{"ordered": true, "rate_per_s": 5, "filter": "$.a > 1"}',
    )
    made = await con.fetchrow("select * from webhooks.endpoints where endpoint_id = $1", row["endpoint_id"])
    assert (made["ordered"], made["rate_per_s"], made["event_types"]) == (True, 5.0, ["*"])
    assert made["filter"] == '($."a" > 1)'
    assert row["secret"] is None
    for options, told in (
        ('{"endpoint_id": 1, "xid": 2}', "endpoint_id, xid"),
        ('{"rate_per_s": 0}', "rate_per_s"),
    ):
        with pytest.raises(asyncpg.PostgresError, match=told):
            await con.execute("select webhooks.add_endpoint('s', 'https://a.example/', $1::jsonb)", options)


# Names of constraints on the command line -------------------------------------------------------------------------

NOT_OPTIONS = {
    "disabled_reason is a known one",
    "previous_secret has an end, previous_secret_until",
    "previous_secret is as good as a secret",
    "secret_kind is a known one",
}
VIOLATIONS = [
    ({"url": "ftp://a.example/"}, "URL must start with http:// or https://", "(it is 'ftp://a.example/')"),
    ({"url": "ftp://u:canary@a.example/?key=canary"}, "URL must", "(it is '***@a.example/')"),
    ({"url": "https://a.example/" + "x" * 2048}, "at most 2048 characters", "..')"),
    ({"event_types": ["x" * 130]}, "--types must have at most 200 types of at most 129 characters", ""),
    ({"concurrency": 0}, "--concurrency must be 1 to 1000", "(it is '0')"),
    ({"rate_per_s": 0}, "--rate-per-s must be 0.001 to 10000", "(it is '0')"),
    ({"timeout_s": 31}, "--timeout-s must be more than 0 and at most 30", "(it is '31')"),
    ({"retry_schedule": "5x"}, "--retry-schedule must be none, or durations", "(it is '5x')"),
    ({"success_statuses": "404"}, "--success-statuses must be 2xx", "(it is '404')"),
    ({"headers": ["canary"]}, "--header must", ""),
    ({"headers": {f"x-{n}": "canary" for n in range(21)}}, "--header must be given at most 20 times", ""),
    ({"headers": {"x canary": "1"}}, "--header must have a name of letters", ""),
    ({"headers": {"x": "canary\n"}}, "--header must have a value of printable ASCII", ""),
    ({"headers": {"Host": "canary"}}, "--header must not set a reserved name", ""),
    ({"profile": "githb"}, "--profile must be one of standard, plain, simvoly, github,", "(it is 'githb')"),
    ({"profile": "custom"}, "--profile-spec must be given with --profile custom", "(--profile is 'custom')"),
    ({"profile_spec": {}}, "--profile-spec must be given with --profile custom", "(there is no --profile)"),
    ({"profile": "custom", "profile_spec": {"colour": "red"}}, "no names but header, algorithm,", ""),
    ({"profile": "custom", "profile_spec": {"algorithm": "md5"}}, "algorithm is sha1, sha256 or sha512", ""),
    ({"profile": "custom", "profile_spec": {"header": "host"}}, "must not set a reserved header", ""),
    ({"secret": "whsec_canary"}, "--secret must not be empty; after whsec_ it must be base64", ""),
    ({"secret": "whsk_canary"}, "--secret must be base64 of 32 or 64 bytes after whsk_", ""),
    ({"auth": {"bearer": {"token": "canary" * 4000}}}, "--auth must have at most 16000 bytes", ""),
    ({"auth": {"canary": {}}}, "--auth must have one of basic, bearer and oauth2", ""),
    ({"auth": {"basic": {"username": "canary"}}}, "--auth must have username and password in basic", ""),
    ({"auth": {"bearer": {"token": "canary canary"}}}, "--auth must have token in bearer", ""),
    ({"auth": {"oauth2": {"client_id": "canary"}}}, "--auth must have token_url (https://)", ""),
    ({"auth": {"client_certificate": {"key": "canary"}}}, "--auth must have certificate and key", ""),
]  # fmt: skip


async def test_each_constraint_is_explained_by_its_option_without_a_secret(con, database):
    settings, met = settings_of(database), set()
    for columns, demand, found in VIOLATIONS:
        given = {"site_id": "s", "url": "https://a.example/"} | columns
        with pytest.raises(DatabaseError) as caught:
            await endpoints.add_endpoint(settings, given, new_secret=False)
        assert caught.value.sqlstate == "23514"
        text = explained(caught.value.constraint, given)
        assert text is not None, (columns, str(caught.value))
        assert demand in text, columns
        assert text.endswith(found), text
        assert "canary" not in text, columns
        met.add(caught.value.constraint)
    assert met == set(RULES)
    assert explained("another", {}) is None


async def test_no_constraint_of_endpoints_is_without_an_explanation(con):
    rows = await con.fetch(
        "select conname from pg_constraint where conrelid = 'webhooks.endpoints'::regclass and contype = 'c'"
    )
    assert {row["conname"] for row in rows} == RULES.keys() | NOT_OPTIONS
