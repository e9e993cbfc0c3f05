"""The schema is what others were promised: tables and columns, checks, triggers, functions, views.

Never here: plans, partitions, rights; each has a file of its own.
"""

from __future__ import annotations

import asyncio
import json
import re

import asyncpg
import pytest

from pghookd.model.event_type import valid_type
from pghookd.webhook import envelope, signing
from support.events import emit

PROMISED = {
    "sites": "site_id text, name text, url text, owner_email text, language text, time_zone text,"
    " created_at timestamptz",
    "owners": "owner_email text, muted_until timestamptz, suspended_until timestamptz, suspended_reason text,"
    " unsubscribe_token text, unsubscribed_at timestamptz",
    "endpoints": "endpoint_id int8, site_id text, url text, event_types text[], secret text, description text,"
    " enabled bool, created_at timestamptz, from_event_id int8, disabled_at timestamptz, disabled_reason text,"
    " snoozed_until timestamptz, concurrency int4, rate_per_s float4, ordered bool, filter jsonpath,"
    " timeout_s float4, retry_schedule text, headers jsonb, success_statuses text, profile text,"
    " profile_spec jsonb, auth jsonb, previous_secret text, previous_secret_until timestamptz",
    "event_types": "name text, category text, title text, description text, example json",
    "events": "xid xid8, event_id int8, site_id text, type text, payload json, created_at timestamptz,"
    " subject text, ordering_key text, dedupe_key text, supersede_key text, traceparent text,"
    " deliver_after timestamptz, deliver_before timestamptz, endpoint_id int8",
    "attempts": "event_id int8, endpoint_id int8, attempt int2, attempted_at timestamptz, duration_ms float4,"
    " outcome text, status int2, error text, response bytea, site_id text, revision int4, cause text",
    "endpoint_revisions": "endpoint_id int8, revision int4, changed_at timestamptz, actor text, changed jsonb",
    "dead": "event_id int8, endpoint_id int8, site_id text, reason text, attempts int2, since timestamptz",
    "backlog": "event_id int8, endpoint_id int8, site_id text, state text, reason text, attempts int2,"
    " next_attempt_at timestamptz, since timestamptz",
    "shards": "shard int2, snapshot pg_snapshot",
    "emails": "email_id int8, owner_email text, kind text, window_start timestamptz, message_id text,"
    " subject text, digest jsonb, state text, attempts int2, next_attempt_at timestamptz,"
    " created_at timestamptz, sent_at timestamptz, error text",
    "replays": "replay_id int8, spec jsonb, rate_per_s float4, total int8, done int8, state text,"
    " created_at timestamptz",
    "operations": "at timestamptz, actor text, what text, detail jsonb",
    "incidents": "endpoint_id int8, state text",
    "home": "host text, server text, unclean_ends int4",
    "migrations": "version int4, name text, sha256 text, min_daemon text, applied_at timestamptz",
    "functions": "name text, sha256 text, applied_by text, applied_at timestamptz",
    "deliveries": "event_id int8, webhook_id text, endpoint_id int8, site_id text, type text, subject text,"
    " state text, reason text, attempts int2, created_at timestamptz, last_attempt_at timestamptz,"
    " last_outcome text, last_status int2, last_error text, next_attempt_at timestamptz",
}
SECRET = "whsec_" + "A" * 32  # 24 bytes
ATTEMPT = """insert into webhooks.attempts
(event_id, endpoint_id, attempted_at, duration_ms, attempt, status, outcome, error, site_id)
values ($1, $2, now(), 12.4, $3, $4, $5, $6, 's')"""


@pytest.fixture
async def con(database, connect):
    connection = await connect(database)
    await connection.execute("insert into webhooks.sites (site_id, name) values ('s', 'A shop')")
    return connection


@pytest.fixture
async def endpoint_id(con):
    return await con.fetchval(
        "insert into webhooks.endpoints (site_id, url) values ('s', 'https://example.com/') returning endpoint_id"
    )


async def hold(con, endpoint_id, event_id, state="held", reason="disabled", attempts=0):
    await con.execute(
        "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, attempts, next_attempt_at)"
        " values ($1, $2, 's', $3, $4, $5, case when $3 = 'waiting' then now() end)",
        event_id, endpoint_id, state, reason, attempts,
    )  # fmt: skip


async def bury(con, endpoint_id, event_id, reason="exhausted", attempts=10):
    await con.execute(
        "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts) values ($1, $2, 's', $3, $4)",
        event_id, endpoint_id, reason, attempts,
    )  # fmt: skip


# Tables and columns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", PROMISED)
async def test_every_promised_column_is_there(con, table):
    rows = await con.fetch(
        "select attname, typname from pg_attribute join pg_type t on t.oid = atttypid"
        " where attrelid = to_regclass($1) and attnum > 0 and not attisdropped",
        f"webhooks.{table}",
    )
    found = {row["attname"]: re.sub("^_(.*)", r"\1[]", row["typname"]) for row in rows}
    promised = dict(column.rsplit(" ", 1) for column in PROMISED[table].split(", "))
    assert {name: found.get(name) for name in promised} == promised


async def test_the_log_draws_its_xid_before_its_id(con):
    first = await con.fetchval(
        "select attname from pg_attribute where attrelid = 'webhooks.events'::regclass and attnum = 1"
    )
    assert first == "xid"
    cache, cycle = await con.fetchrow(
        "select seqcache, seqcycle from pg_sequence where seqrelid = 'webhooks.events_event_id_seq'::regclass"
    )
    assert (cache, cycle) == (1, False)


async def test_there_are_the_six_types_and_their_examples_are_objects(con):
    rows = await con.fetch("select name, example from webhooks.event_types")
    assert {row["name"] for row in rows} == {
        "order_created", "order_updated", "product_created", "product_updated", "form_submitted", "contact_updated",
    }  # fmt: skip
    assert all(isinstance(json.loads(row["example"]), dict) for row in rows)


async def test_nothing_but_the_bell_is_set_off_by_an_event(con):
    triggers = await con.fetch("select tgname from pg_trigger where tgrelid = 'webhooks.events'::regclass")
    assert [row[0] for row in triggers] == ["bell"]
    keys = "select count(*) from pg_constraint where conrelid = 'webhooks.events'::regclass and contype = 'f'"
    assert await con.fetchval(keys) == 0


async def test_shards_are_laid_out_for_updates_in_place(con):
    options = await con.fetchval("select reloptions from pg_class where oid = 'webhooks.shards'::regclass")
    assert {"fillfactor=20", "autovacuum_vacuum_threshold=500", "autovacuum_vacuum_scale_factor=0"} <= set(
        options
    )
    options = await con.fetchval("select reloptions from pg_class where oid = 'webhooks.backlog'::regclass")
    assert {"fillfactor=70", "autovacuum_vacuum_scale_factor=0.02", "autovacuum_vacuum_cost_delay=0"} <= set(
        options
    )


# Checks -------------------------------------------------------------------------------------------------------------

SECRETS = {
    None: True,
    SECRET: True,
    "whsec_" + "A" * 31 + "=": False,  # 23 bytes
    "whsec_" + "+/" * 16: True,
    "whsec_" + "-_" * 16: False,  # that is base64url
    "whsec_" + "A" * 32 + "\n": False,
    "whsec_" + "A" * 16 + "\n" + "A" * 16: False,
    "whsec_": False,
    "whsec_not base64": False,
    "": False,
    "old secret": True,
    "x": True,
    "whsk_" + "A" * 43 + "=": True,  # 32 bytes
    "whsk_" + "A" * 86 + "==": True,  # 64
    "whsk_" + "A" * 44: False,  # 33
    "whsk_": False,
    "whsk_not base64": False,
    "enc:v1:abc": True,
    "WHSEC_abc": True,
}


@pytest.mark.parametrize("length", [23, 24, 25, 32, 63, 64, 65, 200])
async def test_a_whsec_secret_is_24_to_64_bytes(con, length):
    secret = await con.fetchval(
        "select 'whsec_' || translate(encode($1, 'base64'), E'\\n', '')", b"k" * length
    )
    assert await _accepts_secret(con, secret) == (24 <= length <= 64)
    assert _key_length(secret) == (length if 24 <= length <= 64 else None)


@pytest.mark.parametrize("secret", SECRETS)
async def test_secrets_that_cannot_sign_are_refused(con, secret):
    assert await _accepts_secret(con, secret) == SECRETS[secret]
    if secret is not None and not secret.startswith(("whsk_", "enc:")):
        assert (_key_length(secret) is not None) == SECRETS[secret], "the daemon and the table must agree"


async def _accepts_secret(con, secret):
    return await _accepts(
        con, "insert into webhooks.endpoints (site_id, url, secret) values ('s', 'http://x', $1)", secret
    )


def _key_length(secret):
    try:
        return len(signing.key_of(secret))
    except ValueError:
        return None


async def _accepts(con, sql, *args):
    """Return True if a row is accepted; a refusal is a sentence: the name of a constraint, or a trigger's message."""
    transaction = con.transaction()
    await transaction.start()
    try:
        await con.execute(sql, *args)
    except asyncpg.CheckViolationError as error:
        if " " not in (error.constraint_name or str(error)):
            raise
        return False
    finally:
        await transaction.rollback()
    return True


@pytest.mark.parametrize(
    ("url", "accepted"),
    [
        ("http://example.com", True),
        ("HTTPS://Example.com/a?b=c#d", True),
        ("http://127.0.0.1:8080/", True),  # judged when sending
        ("http://user:pw@host/", True),  # the same
        ("http://" + "a" * 2041, True),
        ("http://" + "a" * 2042, False),
        ("ftp://example.com", False),
        ("example.com", False),
        (" http://example.com", False),
        ("http://example.com/a b", False),
        ("http://example.com/\n", False),
        ("http://example.com/\x01", False),
        ("http://example.com/\x7f", False),
        ("http://example.com/ü", True),
        ("", False),
    ],
)
async def test_urls(con, url, accepted):
    assert (
        await _accepts(con, "insert into webhooks.endpoints (site_id, url) values ('s', $1)", url) == accepted
    )


@pytest.mark.parametrize(
    ("email", "accepted"),
    [
        (None, True),
        ("ada@example.com", True),
        ("Ada+shop@Example.co.uk", True),
        ("ada@exämple.com", True),
        ("a@b.c,d@e.f", False),
        ("a@b.c d@e.f", False),
        ("a@b.c\nbcc:d@e.f", False),
        ("a@b@c", False),
        ("ada", False),
        ("@example.com", False),
        ("ada@", False),
        ("", False),
        ("ada@" + "x" * 316, True),
        ("ada@" + "x" * 317, False),
    ],
)
async def test_owners_addresses(con, email, accepted):
    sql = "insert into webhooks.sites (site_id, name, owner_email) values ('t', 'T', $1)"
    assert await _accepts(con, sql, email) == accepted


@pytest.mark.parametrize(
    ("column", "value", "accepted"),
    [
        ("concurrency", 1, True), ("concurrency", 0, False), ("concurrency", 1001, False),
        ("rate_per_s", 0.5, True), ("rate_per_s", 0, False),
        ("timeout_s", 30, True), ("timeout_s", 0, False), ("timeout_s", 31, False),
        ("headers", '{"a": "b"}', True), ("headers", "[]", False),
        ("event_types", ["x" * 129] * 200, True), ("event_types", ["x"] * 201, False), ("event_types", [], False),
        ("event_types", ["x", "y" * 130], False), ("event_types", ["a", None], True),
        ("event_types", ["x\n" * 20_000], False),
        ("disabled_reason", "gone", True), ("disabled_reason", "because", False),
    ],
)  # fmt: skip
async def test_options_of_endpoints(con, column, value, accepted):
    sql = f"insert into webhooks.endpoints (site_id, url, enabled, {column}) values ('s', 'http://x', false, $1)"
    assert await _accepts(con, sql, value) == accepted


@pytest.mark.parametrize(
    ("types", "message"),
    [
        (["order-created"], "'order-created' can never match; the nearest known type is order_created"),
        (
            ["order_created", "order *"],
            "'order \\*' can never match; the nearest known type is order_created",
        ),
        (["?"], "event_types: '\\?' can never match$"),
        (["*_created"], "can never match"),
        ([None], "event_types is empty"),
        ([], "event_types is empty: the endpoint would get no event"),
    ],
)
async def test_types_that_can_never_match_are_refused_with_the_nearest(con, endpoint_id, types, message):
    for sql in (
        "insert into webhooks.endpoints (site_id, url, event_types) values ('s', 'http://x', $1)",
        "update webhooks.endpoints set event_types = $1",
    ):
        with pytest.raises(asyncpg.CheckViolationError, match=message):
            await con.execute(sql, types)


async def test_types_and_prefixes_are_accepted(con, endpoint_id):
    types = ["*", "order_*", "order.*", "a.b_c", "webhook_*", "Order1", "a.b*", None]
    await con.execute("update webhooks.endpoints set event_types = $1", types)
    assert await con.fetchval("select event_types from webhooks.endpoints") == types


@pytest.mark.parametrize(
    ("column", "longest"),
    [
        ("site_id", 200), ("type", 128), ("subject", 500), ("ordering_key", 500), ("dedupe_key", 500),
        ("supersede_key", 500), ("traceparent", 100),
    ],
)  # fmt: skip
async def test_texts_of_events_are_bounded_and_that_is_all(con, column, longest):
    """Aborting the shop's order is the worse fault: an unknown site and an odd type are let through."""
    values = {"site_id": "nobody's", "type": "odd type!", "payload": "{}"}
    for text, accepted in (("ü" * longest, True), ("x" * (longest + 1), False), ("", False)):
        row = {**values, column: text}
        places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
        sql = f"insert into webhooks.events ({', '.join(row)}) values ({places})"
        assert await _accepts(con, sql, *row.values()) == accepted


async def test_times_of_events_are_finite_where_they_are_sent(con):
    sql = "insert into webhooks.events (site_id, type, payload, {}) values ('s', 't', '{{}}', 'infinity')"
    assert not await _accepts(con, sql.format("created_at"))
    assert await _accepts(con, sql.format("deliver_before"))


@pytest.mark.parametrize(
    ("name", "accepted"),
    [("a", True), ("order.created_2", True), ("a..b", False), (".a", False), ("a b", False), ("é", False),
     ("a" * 128, True), ("a" * 129, False), ("", False)],
)  # fmt: skip
async def test_types_of_the_catalogue_are_types(con, name, accepted):
    sql = "insert into webhooks.event_types values ($1, 'c', 't', 'd', '{}')"
    assert await _accepts(con, sql, name) == accepted
    assert valid_type(name) == accepted


@pytest.mark.parametrize(
    ("sql", "accepted"),
    [
        ("insert into webhooks.backlog values (1, 1, 's', 'waiting', 'retry', 1, now())", True),
        ("insert into webhooks.backlog values (1, 1, 's', 'waiting', 'retry', 1, null)", False),
        ("insert into webhooks.backlog values (1, 1, 's', 'held', 'disabled', 1, null)", True),
        ("insert into webhooks.backlog values (1, 1, 's', 'dead', 'x', 1, null)", False),
        ("insert into webhooks.owners values ('Ada@example.com')", False),
        ("insert into webhooks.sites values ('', 'x')", False),
        ("insert into webhooks.emails (state, owner_email, kind, window_start, digest) select 'x', '', '', now(), '{}'",
         False),
        ("insert into webhooks.replays (spec, state) values ('{}', 'lost')", False),
    ],
)  # fmt: skip
async def test_states_are_known_ones(con, sql, accepted):
    assert await _accepts(con, sql) == accepted


async def test_outcomes_are_known_ones(con, endpoint_id):
    event_id = await emit(con)
    for outcome in ("delivered", "refused", "timeout", "unreachable", "blocked", "failed"):
        assert await _accepts(con, ATTEMPT, event_id, endpoint_id, 1, None, outcome, None)
    assert not await _accepts(con, ATTEMPT, event_id, endpoint_id, 1, None, "lost", None)


# Payloads -----------------------------------------------------------------------------------------------------------


async def test_a_payload_comes_back_as_the_bytes_that_went_in(con):
    text = '  {"b":1.50, "a" : "\\u00e9\\u0000", "a": [1e2,\n-0.0, "ü💶"]} '
    event_id = await emit(con, payload=text)
    assert (
        await con.fetchval("select payload::text from webhooks.events where event_id = $1", event_id) == text
    )
    long = json.dumps({"text": "x" * 100_000})
    event_id = await emit(con, payload=long)
    assert (
        await con.fetchval("select payload::text from webhooks.events where event_id = $1", event_id) == long
    )


async def test_jsonb_is_taken_as_a_payload(con):
    await con.execute(
        'create table public.orders (doc jsonb); insert into public.orders values (\'{"b": 1, "a": 2}\')'
    )
    event_id = await con.fetchval(
        "insert into webhooks.events (site_id, type, payload) select 's', 'order_created', doc from public.orders"
        " returning event_id"
    )
    assert json.loads(
        await con.fetchval("select payload from webhooks.events where event_id = $1", event_id)
    ) == {
        "a": 2,
        "b": 1,
    }


async def test_invalid_json_is_refused(con):
    with pytest.raises(asyncpg.InvalidTextRepresentationError):
        await emit(con, payload="{")


# Identity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event_id", "created_at_us"),
    [
        (0, 0), (1, 1), (2520 * 2**32 + 7, 1_764_000_000_123_456), (2**53 - 1, 2**56 - 1), (2**53 - 1, 2**56),
        (5, 9_000_000_000_000_000_000), (5, -1), (5, -62_000_000_000_000_000),
    ],
)  # fmt: skip
async def test_database_and_daemon_make_the_same_webhook_id(con, event_id, created_at_us):
    made = await con.fetchval(
        "select webhooks.webhook_id($1, timestamptz 'epoch' + make_interval(days => ($2::bigint / 86400000000)::int)"
        " + ($2::bigint % 86400000000) * interval '1 microsecond')",
        event_id, created_at_us,
    )  # fmt: skip
    assert made == envelope.webhook_id(event_id, created_at_us)
    assert await con.fetchval("select webhooks.event_id($1)", made) == event_id == envelope.event_id_of(made)


@pytest.mark.parametrize(
    "text", ["", "evt_", "evt_" + "0" * 27, "evt_" + "0" * 29, "EVT_" + "0" * 28, "evt_" + "G" * 28]
)
async def test_an_invalid_webhook_id_has_no_event(con, text):
    assert await con.fetchval("select webhooks.event_id($1)", text) is None


async def test_infinite_times_make_an_id_as_well(con):
    for text, us in (("infinity", 2**63), ("-infinity", -(2**63))):
        made = await con.fetchval("select webhooks.webhook_id(5, $1::text::timestamptz)", text)
        assert made == envelope.webhook_id(5, us)


async def test_emit_does_what_an_insert_does(con):
    first = await con.fetchval("select webhooks.emit('s', 'order_created', '{\"a\" : 1}')")
    second = await con.fetchval(
        "select webhooks.emit(site_id => 's', type => 't', payload => '{}', subject => 'order/1', ordering_key => 'o',"
        " dedupe_key => 'd', supersede_key => 'p', traceparent => 'tp', deliver_after => '2030-01-01+00',"
        " deliver_before => '2031-01-01+00')"
    )
    assert second == first + 1
    rows = await con.fetch("select * from webhooks.events order by event_id")
    assert rows[0]["payload"] == '{"a" : 1}'
    named = ("site_id", "type", "subject", "ordering_key", "dedupe_key", "supersede_key", "traceparent")
    assert [rows[1][name] for name in named] == ["s", "t", "order/1", "o", "d", "p", "tp"]
    assert (rows[1]["deliver_after"].year, rows[1]["deliver_before"].year, rows[1]["endpoint_id"]) == (
        2030,
        2031,
        None,
    )


async def test_new_secrets_are_good_and_differ(con):
    secrets = [row[0] for row in await con.fetch("select webhooks.new_secret() from generate_series(1, 50)")]
    assert len(set(secrets)) == 50
    assert {len(signing.key_of(secret)) for secret in secrets} == {32}
    assert await _accepts_secret(con, secrets[0])


# Endpoints ----------------------------------------------------------------------------------------------------------


async def test_a_new_endpoint_begins_after_the_newest_event(con, endpoint_id):
    event_id = await emit(con)
    later = await con.fetchval(
        "insert into webhooks.endpoints (site_id, url, from_event_id) values ('s', 'http://x', 0)"
        " returning from_event_id"
    )
    assert later == event_id
    earlier = await con.fetchval(
        "select from_event_id from webhooks.endpoints where endpoint_id = $1", endpoint_id
    )
    assert earlier < event_id
    assert await emit(con) > later


async def test_the_first_endpoint_of_all_gets_the_first_event_of_all(con, endpoint_id):
    """The sequence is at its first value and has not handed it out."""
    begin = await con.fetchval(
        "select from_event_id from webhooks.endpoints where endpoint_id = $1", endpoint_id
    )
    assert await emit(con) == begin + 1


async def test_switching_sets_time_and_reason(con, endpoint_id):
    look = "select enabled, disabled_at is not null, disabled_reason from webhooks.endpoints where endpoint_id = $1"
    assert tuple(await con.fetchrow(look, endpoint_id)) == (True, False, None)
    await con.execute("update webhooks.endpoints set enabled = false")
    assert tuple(await con.fetchrow(look, endpoint_id)) == (False, True, "owner")
    at = await con.fetchval("select disabled_at from webhooks.endpoints")
    await con.execute("update webhooks.endpoints set description = 'still off'")
    assert await con.fetchval("select disabled_at from webhooks.endpoints") == at
    await con.execute("update webhooks.endpoints set enabled = true")
    assert tuple(await con.fetchrow(look, endpoint_id)) == (True, False, None)
    for reason in ("operator", "gone", "failing", "receiver"):
        await con.execute("select webhooks.disable_endpoint($1, $2)", endpoint_id, reason)
        assert tuple(await con.fetchrow(look, endpoint_id)) == (False, True, reason)
        await con.execute("select webhooks.enable_endpoint($1)", endpoint_id)
    off = await con.fetchrow(
        "insert into webhooks.endpoints (site_id, url, enabled) values ('s', 'http://x', false) returning *"
    )
    assert (off["disabled_reason"], off["disabled_at"] is not None) == ("owner", True)


async def test_a_disabled_endpoints_rows_are_held_and_go_out_again(con, endpoint_id):
    """From the moment of the switch on, whether or not the daemon has come to write it."""
    events = [await emit(con) for _ in range(5)]
    await hold(con, endpoint_id, events[0], "waiting", "retry", 3)
    await hold(con, endpoint_id, events[1], "parked", "lane_full")
    await hold(con, endpoint_id, events[2], "held", "quarantined")
    other = await con.fetchval(
        "insert into webhooks.endpoints (site_id, url) values ('s', 'http://y') returning endpoint_id"
    )
    await hold(con, other, events[0], "waiting", "retry", 1)
    look = """select event_id, state, reason, attempts, next_attempt_at is null
        from webhooks.deliveries where endpoint_id = $1"""
    await con.execute("update webhooks.endpoints set enabled = false where endpoint_id = $1", endpoint_id)
    await hold(con, endpoint_id, events[3])
    assert {tuple(row) for row in await con.fetch(look, endpoint_id)} == {
        (events[0], "held", "disabled", 3, True),
        (events[1], "held", "disabled", 0, True),
        (events[2], "held", "quarantined", 0, True),
        (events[3], "held", "disabled", 0, True),
    }
    told = await explain(con, events[0])
    assert told["held"].startswith("disabled, 3 attempts")
    assert [tuple(row) for row in await con.fetch(look, other)] == [(events[0], "waiting", "retry", 1, False)]
    await con.execute("update webhooks.endpoints set enabled = true where endpoint_id = $1", endpoint_id)
    assert {tuple(row) for row in await con.fetch(look, endpoint_id)} == {
        (events[0], "waiting", "retry", 3, False),
        (events[1], "parked", "lane_full", 0, True),
        (events[2], "held", "quarantined", 0, True),
        (events[3], "waiting", "queued", 0, True),
    }
    assert (await explain(con, events[3]))["waiting"].startswith("queued, 0 attempts")


@pytest.mark.parametrize("written", [("held", "disabled"), ("parked", "lane_full"), ("waiting", "retry", 2)])
@pytest.mark.parametrize(
    ("held", "going", "dropped"),
    [
        ("deliver", {0, 1, 2, 3, 4, 5}, set()),
        ("drop", set(), {0, 1, 2, 3, 4, 5}),
        ("latest_per_key", {2, 3, 4, 5}, {0, 1}),
    ],
)
async def test_enabling_decides_the_fate_of_held_rows(con, endpoint_id, held, going, dropped, written):
    """Also of rows that the daemon has not come to write as held."""
    await con.execute("select webhooks.disable_endpoint($1)", endpoint_id)
    keys = ["a", "a", "a", "b", None, None]
    events = [await emit(con, ordering_key=key) for key in keys]
    for event_id in events:
        await hold(con, endpoint_id, event_id, *written)
    sick = await emit(con, ordering_key="a")
    await hold(con, endpoint_id, sick, "held", "quarantined")
    assert await con.fetchval("select webhooks.enable_endpoint($1, $2)", endpoint_id, held) == len(going)
    there = await con.fetch("select event_id from webhooks.deliveries where state in ('waiting', 'parked')")
    assert {events.index(row[0]) for row in there} == going
    dead = await con.fetch("select event_id from webhooks.dead where reason = 'dropped'")
    assert {events.index(row[0]) for row in dead} == dropped
    assert await con.fetchval("select enabled from webhooks.endpoints")
    assert await con.fetchval("select state from webhooks.backlog where event_id = $1", sick) == "held"
    told = await con.fetchval("select detail from webhooks.operations where what = 'enable_endpoint'")
    assert json.loads(told) == {"endpoint_id": endpoint_id, "held": held, "released": len(going)}


async def test_switching_writes_no_rows_and_enabling_touches_only_held_ones(con, endpoint_id):
    """However many rows there are, a switch is one row: the daemon turns them over in pages."""
    for n in range(3):
        await hold(
            con, endpoint_id, await emit(con), *(("waiting", "retry", 1) if n else ("held", "disabled"))
        )
    before = await con.fetch("select * from webhooks.backlog order by event_id")
    for switch in ("false", "true"):
        await con.execute(f"update webhooks.endpoints set enabled = {switch}")
        assert await con.fetch("select * from webhooks.backlog order by event_id") == before
    assert await con.fetchval("select webhooks.enable_endpoint($1, 'drop')", endpoint_id) == 0
    assert [row["state"] for row in await con.fetch("select state from webhooks.backlog")] == ["waiting"] * 2


async def test_operations_say_who_did_what(con, endpoint_id):
    await con.execute("select webhooks.disable_endpoint($1, 'failing')", endpoint_id)
    await con.execute("select webhooks.disable_endpoint($1)", endpoint_id)  # it is off: nothing happened
    await con.execute("select webhooks.enable_endpoint($1)", endpoint_id)
    rows = await con.fetch("select actor, what, detail from webhooks.operations order by at")
    assert [row["what"] for row in rows] == ["disable_endpoint", "enable_endpoint"]
    assert {row["actor"] for row in rows} == {await con.fetchval("select webhooks.current_actor()")}
    assert json.loads(rows[0]["detail"]) == {"endpoint_id": endpoint_id, "reason": "failing"}


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        ("select webhooks.enable_endpoint(77)", "there is no endpoint 77"),
        ("select webhooks.disable_endpoint(77)", "there is no endpoint 77"),
        ("select webhooks.enable_endpoint(77, 'burn')", "held is deliver, drop or latest_per_key, not burn"),
    ],
)
async def test_wrong_arguments_are_refused_in_a_sentence(con, sql, error):
    with pytest.raises(asyncpg.PostgresError, match=error):
        await con.execute(sql)


async def test_changes_of_endpoints_notify_the_daemon(con, database, connect, endpoint_id, until):
    heard = []
    listener = await connect(database)
    await listener.add_listener("pghookd", lambda *args: heard.append(args[-1]))
    await con.execute("update webhooks.endpoints set url = 'http://other'")
    await con.execute(
        "set webhooks.bell = off; update webhooks.endpoints set url = 'http://silent'; reset webhooks.bell"
    )
    await con.execute("update webhooks.sites set endpoints_max = null")
    await con.execute(
        "insert into webhooks.endpoints (site_id, url) select 's', 'http://z' from generate_series(1, 300)"
    )
    await con.execute("update webhooks.endpoints set url = 'http://many'")
    await con.execute("delete from webhooks.endpoints where endpoint_id = $1", endpoint_id)
    await until(lambda: len(heard) >= 4)
    assert heard == [f"endpoints:{endpoint_id}", "endpoints", "endpoints", f"endpoints:{endpoint_id}"]


# How many endpoints a site may have ------------------------------------------------------------------------------

ADD = "insert into webhooks.endpoints (site_id, url) select $1, 'http://z' from generate_series(1, $2::int)"


async def test_a_site_has_at_most_as_many_endpoints_as_it_may(con):
    await con.execute("insert into webhooks.sites (site_id, name) values ('new', 'N')")
    await con.execute(ADD, "new", 100)
    sentence = "^site new may have 100 endpoints: delete one, or raise sites.endpoints_max$"
    with pytest.raises(asyncpg.ProgramLimitExceededError, match=sentence):
        await con.execute(ADD, "new", 1)
    await con.execute("update webhooks.sites set endpoints_max = 101 where site_id = 'new'")
    await con.execute(ADD, "new", 1)
    with pytest.raises(asyncpg.ProgramLimitExceededError):
        await con.execute(ADD, "new", 1)
    await con.execute("update webhooks.sites set endpoints_max = null where site_id = 'new'")
    await con.execute(ADD, "new", 500)
    await con.execute("alter table webhooks.sites alter column endpoints_max set default 1")
    await con.execute("insert into webhooks.sites (site_id, name) values ('small', 'S')")
    with pytest.raises(asyncpg.ProgramLimitExceededError):
        await con.execute(ADD, "small", 2)


async def test_an_endpoint_does_not_move_to_a_site_that_has_all_it_may(con):
    await con.execute(
        "insert into webhooks.sites (site_id, name, endpoints_max) values ('from', 'F', null), ('to', 'T', 2)"
    )
    await con.execute(ADD, "from", 3)
    move = """update webhooks.endpoints set site_id = 'to' where endpoint_id in (
      select endpoint_id from webhooks.endpoints where site_id = 'from' limit $1)"""
    with pytest.raises(asyncpg.ProgramLimitExceededError, match="site to may have 2 endpoints"):
        await con.execute(move, 3)
    await con.execute(move, 2)


async def test_two_who_add_at_once_do_not_pass_the_limit_together(con, database, connect):
    await con.execute("insert into webhooks.sites (site_id, name, endpoints_max) values ('s2', 'S', 1)")
    other = await connect(database)
    await other.execute("begin")
    await other.execute(ADD, "s2", 1)
    adding = asyncio.create_task(con.execute(ADD, "s2", 1))
    await other.execute("commit")
    with pytest.raises(asyncpg.ProgramLimitExceededError):
        await adding


async def test_a_deleted_site_takes_its_endpoints_with_it(con, endpoint_id):
    await con.execute("delete from webhooks.sites")
    assert (
        await con.fetchval("select count(*) from webhooks.endpoints where endpoint_id = $1", endpoint_id) == 0
    )


@pytest.mark.parametrize(
    ("types", "kind", "taken"),
    [
        ("{*}", "order_created", True), ("{*}", "webhook_test", False), ("{webhook_test}", "webhook_test", True),
        ("{a,b}", "b", True), ("{a,b}", "c", False), ("{}", "a", False), ("{NULL,a}", "a", True),
        ("{NULL}", "a", False), ("{*,webhook_test}", "webhook_test", True), ("{webhook*}", "webhook_x", False),
    ],
)  # fmt: skip
async def test_which_types_are_taken(con, types, kind, taken):
    assert await con.fetchval("select webhooks.takes($1::text::text[], $2)", types, kind) is taken


# Why it went, or did not --------------------------------------------------------------------------------------------


async def explain(con, event_id):
    rows = await con.fetch("select endpoint_id, what, detail from webhooks.explain($1)", event_id)
    return {row["what"]: row["detail"] for row in rows}


async def test_explain_an_event_that_nobody_was_to_get(con):
    assert await explain(con, 5) == {"unknown": "there is no event 5"}
    event_id = await emit(con, site="elsewhere")
    told = await explain(con, event_id)
    assert told["no_site"] == "site elsewhere is not known"
    near = await explain(con, await emit(con, site="s-1"))
    assert near["no_site"] == "site s-1 is not known; the nearest is s"
    webhook_id = await con.fetchval("select webhooks.webhook_id(event_id, created_at) from webhooks.events")
    assert told["inserted"] == f"order_created of site elsewhere, {webhook_id}"
    assert (await explain(con, await emit(con)))["no_endpoint"] == "site s has no endpoint"


async def test_explain_an_event_that_no_endpoint_takes(con, endpoint_id):
    await con.execute("update webhooks.endpoints set event_types = '{product_created,order_created}'")
    told = await explain(con, await emit(con, kind="order_creatd"))
    assert (
        told["no_taker"]
        == "no endpoint of site s takes order_creatd; the nearest type that one takes is order_created"
    )
    assert told["type_not_taken"] == "the endpoint takes product_created, order_created"
    assert endpoint_id


async def test_explain_an_event_that_is_not_settled(con, endpoint_id):
    old = await emit(con)
    await con.execute("insert into webhooks.endpoints (site_id, url) values ('s', 'http://young')")
    told = await explain(con, old)
    assert told["too_young"] == "the endpoint was made after the event"
    assert told["not_read_yet"] == "the daemon has not settled it yet"
    await con.execute("select webhooks.disable_endpoint($1, 'gone')", endpoint_id)
    assert (await explain(con, old))["disabled"] == "the endpoint is disabled (gone): the event will be held"
    only = await emit(con, kind="webhook_test", endpoint_id=endpoint_id + 1)
    assert set(await explain(con, only)) == {"inserted", "not_addressed", "not_read_yet"}


async def test_explain_an_event_that_is_settled(con, endpoint_id):
    event_id = await emit(con)
    await con.execute(ATTEMPT, event_id, endpoint_id, 1, 500, "refused", None)
    await hold(con, endpoint_id, event_id, "waiting", "retry", 1)
    told = await explain(con, event_id)
    assert re.fullmatch("retry, 1 attempts, next at .*, last answer refused 500", told["waiting"])
    await con.execute("delete from webhooks.backlog")
    await bury(con, endpoint_id, event_id, "exhausted", 1)
    assert (await explain(con, event_id))["dead"] == "exhausted, 1 attempts, last answer refused 500"
    await con.execute("update webhooks.attempts set revision = 2")
    assert (await explain(con, event_id))["dead"].endswith("last answer refused 500, revision 2")
    await con.execute("update webhooks.attempts set revision = null")
    await con.execute("delete from webhooks.dead")
    await con.execute(ATTEMPT, event_id, endpoint_id, 2, 204, "delivered", None)
    assert (await explain(con, event_id))["delivered"] == "at attempt 2, answered 204 in 12 ms"


async def test_explain_an_event_of_an_invalid_type(con, endpoint_id):
    event_id = await emit(con, kind="Order-Created!")
    await bury(con, endpoint_id, event_id, "invalid", 0)
    why = "invalid, a type is letters, digits and _, joined by dots, 0 attempts"
    assert (await explain(con, event_id))["dead"] == why


# The view of deliveries ------------------------------------------------------------------------------------------


async def deliveries(con):
    rows = await con.fetch("select * from webhooks.deliveries order by event_id, endpoint_id")
    assert len({(row["event_id"], row["endpoint_id"]) for row in rows}) == len(rows), "one row for each"
    return rows


async def test_the_view_goes_by_backlog_then_dead_then_delivered(con, endpoint_id):
    event_id = await emit(con, subject="order/1")
    await con.execute(ATTEMPT, event_id, endpoint_id, 1, None, "timeout", "response")
    assert await deliveries(con) == []  # an attempt alone settles nothing
    await con.execute(ATTEMPT, event_id, endpoint_id, 2, 200, "delivered", None)
    (row,) = await deliveries(con)
    assert (row["state"], row["reason"], row["attempts"], row["last_status"]) == ("delivered", None, 2, 200)
    assert (row["site_id"], row["type"], row["subject"]) == ("s", "order_created", "order/1")
    assert row["webhook_id"] == await con.fetchval(
        "select webhooks.webhook_id(event_id, created_at) from webhooks.events"
    )
    await con.execute(ATTEMPT, event_id, endpoint_id, 3, 201, "delivered", None)  # a replay
    (row,) = await deliveries(con)
    assert (row["attempts"], row["last_status"]) == (3, 201)
    await bury(con, endpoint_id, event_id)
    (row,) = await deliveries(con)
    assert (row["state"], row["reason"], row["attempts"], row["last_outcome"]) == (
        "dead",
        "exhausted",
        10,
        "delivered",
    )
    await hold(con, endpoint_id, event_id, "waiting", "replay", 3)
    (row,) = await deliveries(con)
    assert (row["state"], row["reason"], row["attempts"]) == ("waiting", "replay", 3)
    assert row["next_attempt_at"] is not None


async def test_the_view_has_a_row_for_each_endpoint(con, endpoint_id):
    second = await con.fetchval(
        "insert into webhooks.endpoints (site_id, url) values ('s', 'http://y') returning endpoint_id"
    )
    one, two = await emit(con), await emit(con)
    await con.execute(ATTEMPT, one, endpoint_id, 1, 200, "delivered", None)
    await con.execute(ATTEMPT, one, second, 1, None, "unreachable", "refused")
    await hold(con, second, one, "waiting", "retry", 1)
    await hold(con, endpoint_id, two, "held", "disabled")
    await bury(con, second, two, "no_endpoint", 0)
    await con.execute("select webhooks.disable_endpoint($1)", endpoint_id)
    assert [
        (row["event_id"], row["endpoint_id"], row["state"], row["last_error"])
        for row in await deliveries(con)
    ] == [
        (one, endpoint_id, "delivered", None),
        (one, second, "waiting", "refused"),
        (two, endpoint_id, "held", None),
        (two, second, "dead", None),
    ]


async def test_an_event_is_counted_once_however_often_its_attempt_is_recorded(con, endpoint_id):
    event_id = await emit(con)
    await con.execute(ATTEMPT, event_id, endpoint_id, 1, 200, "delivered", None)
    with pytest.raises(asyncpg.UniqueViolationError):
        await con.execute(ATTEMPT, event_id, endpoint_id, 1, 200, "delivered", None)
