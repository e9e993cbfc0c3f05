"""The rights of each role, as one list: everything that is not on it is tried and refused.

A new function, table or column for a role is added to sql/roles.sql and to the lists here.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
from urllib.parse import urlsplit

import asyncpg
import pytest
from click.testing import CliRunner

from pghookd.cli.main import cli
from pghookd.operations.check import check
from pghookd.postgres import migrate
from pghookd.settings.schema import Settings
from support.events import emit

ROLES = (
    "webhooks_daemon", "webhooks_producer", "webhooks_reader", "webhooks_support", "webhooks_site", "webhooks_admin",
    None,
)  # fmt: skip
PRIVILEGES = ("select", "insert", "update", "delete", "truncate", "references", "trigger")
DENIED = asyncpg.InsufficientPrivilegeError
LOOKUPS = {"webhook_id", "event_id", "explain", "nearest_name"}
SITE_LOG = {"site_deliveries", "missed_since", "endpoint_activity", "delivery_detail"}
FUNCTIONS = {
    None: set(),
    "webhooks_producer": {"emit", "emit_changes", "watch_table", "webhook_id", "explain"},
    "webhooks_reader": LOOKUPS | SITE_LOG,
    "webhooks_support": LOOKUPS | SITE_LOG | {
        "enable_endpoint", "plan_replay", "replay", "pause_replay", "resume_replay", "cancel_replay", "send_again",
    },
    "webhooks_site": SITE_LOG | {"send_again", "event_payload"},
    "webhooks_daemon": LOOKUPS | {
        "day_of", "attach_day", "note_day", "enter_day", "leave_day", "why_kept", "takes", "matches", "shard_of",
        "nearest_name",
        "advance_replay", "replay_page", "replay_any", "replay_dead", "is_erased",
        "wrap_secrets", "erase_payloads", "erase_responses", "erase_subject", "forget_page", "roll_up_hour",
        "delivery_detail",
    },
    "webhooks_admin": LOOKUPS | SITE_LOG | {
        "emit", "emit_changes", "watch_table", "takes", "new_secret", "rotate_secret", "wrap_secrets", "add_endpoint",
        "enable_endpoint", "disable_endpoint", "snooze_endpoint", "mute_owner", "unsubscribe", "send_test", "cancel",
        "release", "why_kept", "plan_replay", "replay", "pause_replay", "resume_replay", "cancel_replay", "forget",
        "erase", "send_again", "event_payload",
    },
}  # fmt: skip
EVENT = "site_id type payload subject traceparent ordering_key dedupe_key supersede_key deliver_after deliver_before"
EMAIL = "email_id owner_email kind window_start message_id subject state attempts next_attempt_at created_at sent_at"
EMAIL += " error"
ATTEMPT = "event_id endpoint_id attempted_at duration_ms attempt status outcome error site_id revision cause"
# Of whole tables; the daemon reads all of them. A letter each: select, insert, update, delete.
TABLES = {
    None: {},
    "webhooks_producer": {},
    "webhooks_support": dict.fromkeys(
        ("deliveries", "endpoint_health", "event_types", "audit", "unclaimed", "attempts"), "s"),
    "webhooks_site": {},
    "webhooks_reader": dict.fromkeys(("deliveries", "endpoint_health", "event_types", "audit", "unclaimed"), "s"),
    "webhooks_daemon": {
        "attempts": "i", "dead": "id", "partitions": "id", "emails": "iu", "owners": "iu", "replays": "u",
        "backlog": "iud", "shards": "iud", "incidents": "iud", "home": "iud", "unclaimed_events": "iu",
    },
    "webhooks_admin": {
        **dict.fromkeys(
            ("deliveries", "endpoint_health", "attempts", "backlog", "dead", "events", "operations", "audit", "emails",
             "replays", "unclaimed", "endpoint_revisions"), "s"),
        **dict.fromkeys(("sites", "endpoints", "owners", "event_types"), "siud"),
    },
}  # fmt: skip
COLUMNS = {
    ("webhooks_producer", "events", "insert"): EVENT,
    ("webhooks_producer", "events", "select"): "event_id created_at xid",
    ("webhooks_reader", "attempts", "select"): ATTEMPT,
    ("webhooks_support", "emails", "select"): EMAIL,
    ("webhooks_reader", "operations", "select"): "at actor what",
    ("webhooks_daemon", "operations", "insert"): "what detail",
    ("webhooks_daemon", "endpoints", "update"): "enabled disabled_reason ready why judged_at",
}
RELATIONS = """
select c.oid, c.relname as name, c.relispartition and c.relkind = 'r' as is_partition, c.relkind::text as kind,
  array(select attname::text from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped) as columns
from pg_class c where c.relnamespace = 'webhooks'::regnamespace and c.relkind in ('r', 'p', 'v', 'S') order by c.relname
"""
CALLS = """
select p.proname as name, has_function_privilege(p.oid, 'execute') as may,
  format('select webhooks.%I(%s)', p.proname,
    (select string_agg(format('(select null::%s)', t::regtype), ', ') from unnest(p.proargtypes) t)) as call
from pg_proc p where p.pronamespace = 'webhooks'::regnamespace order by 1
"""
_numbers = itertools.count(1)


@pytest.fixture
async def login(admin, database):
    """Return `await login(role)`: the URL of a new login that is a member of it; None: of nothing."""
    await migrate.migrate(database, roles=True)
    made = []

    async def make(role):
        name = f"pghookd_test_{os.getpid()}_granted_{next(_numbers)}"
        made.append(name)
        await admin.execute(f"create role {name} login password 'pw-{name}'")
        if role:
            await admin.execute(f"grant {role} to {name}")
        parts = urlsplit(database)
        host = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=f"{name}:pw-{name}@{host}").geturl()

    yield make
    for name in made:
        await admin.execute(f"drop role {name}")


@pytest.fixture
async def login_as(login, connect):
    """Return `await login_as(role)`: a connection of such a login."""

    async def make(role):
        return await connect(await login(role))

    return make


async def is_denied(connection, statement):
    """Try a statement and undo it; other errors than a refused right mean that the right is there."""
    attempt = connection.transaction()
    await attempt.start()
    try:
        await connection.execute(statement)
    except DENIED:
        return True
    except asyncpg.PostgresError:
        return False
    finally:
        await attempt.rollback()
    return False


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_can_call_its_functions_and_no_other(login_as, role):
    connection = await login_as(role)
    calls = await connection.fetch(CALLS) if role else []
    assert {row["name"] for row in calls if row["may"]} == FUNCTIONS[role]
    for row in calls:
        if not row["may"]:
            assert await is_denied(connection, row["call"]), row["call"]


async def test_a_login_without_a_role_reaches_nothing_at_all(login_as, database, connect):
    calls = [row["call"] for row in await (await connect(database)).fetch(CALLS)]
    nobody = await login_as(None)
    for call in calls:
        assert await is_denied(nobody, call), call
    assert not await nobody.fetchval("select has_schema_privilege('webhooks', 'usage')")


def expected(role, relation, privilege, column=None):
    """Return True if the lists give the right, on the table or on the column."""
    if role == "webhooks_daemon" and privilege == "select":
        return not relation["is_partition"]
    named = COLUMNS.get((role, relation["name"], privilege), "").split()
    return (privilege[0] in TABLES[role].get(relation["name"], "") and privilege in {
        "select", "insert", "update", "delete"
    }) or column in named  # fmt: skip


def trying(relation, privilege, column):
    """Return a statement that needs one right alone; None: only asking for it can tell."""
    name, kind = f"webhooks.{relation['name']}", relation["kind"]
    return {
        "select": f"select {column} from {name} limit 0",
        "insert": None if kind == "v" else f"insert into {name} ({column}) values (default)",
        "update": None if kind == "v" else f"update {name} set {column} = default where false",
        "delete": None if kind == "v" else f"delete from {name} where false",
        "truncate": None if kind == "v" else f"truncate {name}",
    }.get(privilege)


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_has_its_rights_on_tables_and_no_other(login_as, database, connect, role):
    relations = await (await connect(database)).fetch(RELATIONS)
    connection = await login_as(role)
    for relation, privilege in itertools.product(relations, PRIVILEGES):
        if relation["kind"] == "S":
            continue
        by_column = privilege in {"select", "insert", "update", "references"}
        for column in relation["columns"] if by_column else [None]:
            wanted = expected(role, relation, privilege, column)
            which = (role, relation["name"], privilege, column)
            if column is None:
                ask = "select has_table_privilege($1::oid, $2)"
                assert await connection.fetchval(ask, relation["oid"], privilege) == wanted, which
            else:
                ask = "select has_column_privilege($1::oid, $3::text, $2)"
                assert await connection.fetchval(ask, relation["oid"], privilege, column) == wanted, which
            statement = trying(relation, privilege, column)
            if statement is not None and not wanted:
                assert await is_denied(connection, statement), statement


@pytest.mark.parametrize("role", ROLES)
async def test_only_the_daemon_reaches_sequences(login_as, role):
    connection = await login_as(role)
    for sequence in ("events_event_id_seq", "endpoints_endpoint_id_seq", "replays_replay_id_seq"):
        may = role == "webhooks_daemon" and sequence == "events_event_id_seq"
        assert await is_denied(connection, f"select nextval('webhooks.{sequence}')") != may
        assert await is_denied(connection, f"select setval('webhooks.{sequence}', 1)") != may


# Refusals of the daemon's functions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("days", ["0", "-1", "'-infinity'", "'nan'", "null"])
@pytest.mark.parametrize("what", ["erase_payloads", "erase_responses"])
async def test_nothing_is_erased_for_an_invalid_age(login_as, what, days):
    daemon = await login_as("webhooks_daemon")
    with pytest.raises(asyncpg.PostgresError, match="days is a number above 0"):
        await daemon.execute(f"select webhooks.{what}({days}, 10)")


async def test_the_daemon_can_only_erase_a_site_that_is_forgotten(login_as, database, connect):
    owner = await connect(database)
    await owner.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    await emit(owner)
    daemon = await login_as("webhooks_daemon")
    assert await daemon.fetchval("select webhooks.forget_page('s', 10)") is None
    assert await owner.fetchval("select count(*) from webhooks.events") == 1


# Errors for operators ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "command", "needed"),
    [
        ("webhooks_daemon", "endpoint add s https://a.example/", "webhooks_admin"),
        ("webhooks_daemon", "endpoint disable 1", "webhooks_admin"),
        ("webhooks_daemon", "endpoint test 1", "webhooks_admin"),
        ("webhooks_daemon", "secret rotate 1", "webhooks_admin"),
        ("webhooks_daemon", "replay --site s", "webhooks_admin"),
        ("webhooks_reader", "endpoint show 1", "webhooks_admin"),
        ("webhooks_producer", "endpoint list", "webhooks_reader"),
        ("webhooks_producer", "delivery list --site s", "webhooks_reader"),
    ],
)
async def test_a_command_that_is_refused_names_the_role_it_needs(login, role, command, needed):
    url = await login(role)
    runner = CliRunner()
    run = functools.partial(runner.invoke, cli, command.split(), env={"PGHOOKD_DATABASE_URL": url})
    done = await asyncio.to_thread(run)
    assert done.exit_code == 1
    assert "permission denied" in done.stderr
    assert f"GRANT {needed} TO the login" in done.stderr


async def test_the_daemons_login_can_look_up_events(login, database, connect):
    owner = await connect(database)
    event_id = await emit(owner, kind="t")
    url = await login("webhooks_daemon")
    for command, said in (("why", "t of site s"), ("show", "site id: s")):
        run = functools.partial(
            CliRunner().invoke, cli, ["event", command, str(event_id)], env={"PGHOOKD_DATABASE_URL": url}
        )
        assert said in (await asyncio.to_thread(run)).stdout


async def test_check_names_a_function_that_the_daemon_may_not_call(login, database, connect):
    await (await connect(database)).execute(
        "revoke execute on function webhooks.attach_day from webhooks_daemon"
    )
    settings = Settings(database={"url": await login("webhooks_daemon")})
    faults = [each.text for each in await check(settings) if each.what == "privileges"]
    assert any("lacks execute on function attach_day:" in each for each in faults), faults


# Two-phase producers -------------------------------------------------------------------------------------------------

PREPARE = (
    "insert into webhooks.events (site_id, type, payload) values ('s', 't', '{}'); prepare transaction 'one'"
)


@pytest.mark.parametrize("way", ["nothing", "role", "options"])
async def test_a_two_phase_producer_passes_with_its_bell_off(login, database, connect, admin, way):
    sleeper = await connect(database)
    await sleeper.execute("select pg_advisory_lock(1885825131, 0)")
    url = await login("webhooks_producer")
    if way == "role":
        await admin.execute(f"alter role {urlsplit(url).username} set webhooks.bell = off")
    producer = await connect(
        url, server_settings={"options": "-c webhooks.bell=off"} if way == "options" else {}
    )
    await producer.execute("begin")
    if way == "nothing":
        with pytest.raises(asyncpg.FeatureNotSupportedError, match="NOTIFY"):
            await producer.execute(PREPARE)
    else:
        await producer.execute(PREPARE)
        await producer.execute("rollback prepared 'one'")


async def test_check_says_what_two_phase_producers_need(login, database):
    settings = Settings(database={"url": await login("webhooks_daemon")})
    told = [each.text for each in await check(settings) if each.what == "two_phase"]
    assert "SET webhooks.bell = off" in told[0]
    assert "options='-c webhooks.bell=off'" in told[0]


# The view of readers -------------------------------------------------------------------------------------------------

URLS = {
    "https://shop.example/hook/secret-path?token=t": "https://shop.example",
    "http://user:pw@shop.example:8080/x": "http://shop.example:8080",
    "https://shop.example?token=t": "https://shop.example",
    "https://shop.example#t": "https://shop.example",
    "HTTPS://[2001:db8::1]:444/x@y": "HTTPS://[2001:db8::1]:444",
}


@pytest.fixture
async def endpoints(database, connect):
    """Make an endpoint for each URL, each with a filter; return the owner's connection."""
    owner = await connect(database)
    await owner.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    for url in URLS:
        await owner.execute(
            "insert into webhooks.endpoints (site_id, url, filter) values ('s', $1, '$.email == \"a@b.example\"')",
            url,
        )
    return owner


async def test_a_reader_sees_scheme_and_host_of_a_url(endpoints, login_as):
    shown = "select url from webhooks.endpoint_health order by endpoint_id"
    for role, expected in (
        ("webhooks_reader", list(URLS.values())),
        ("webhooks_admin", list(URLS)),
        ("webhooks_daemon", list(URLS)),
    ):
        assert [row["url"] for row in await (await login_as(role)).fetch(shown)] == expected


async def test_a_reader_sees_no_text_of_a_filter(endpoints, login_as, database):
    event_id = await emit(endpoints)
    ask = "select distinct detail from webhooks.explain($1) where endpoint_id is not null"
    reader, admin = await login_as("webhooks_reader"), await login_as("webhooks_admin")
    assert await reader.fetchval(ask, event_id) == "the filter of the endpoint leaves it out"
    assert "a@b.example" in await admin.fetchval(ask, event_id)


async def test_explain_shows_a_producer_no_more_than_the_reason(endpoints, login_as):
    event_id = await emit(endpoints, payload='{"email": "a@b.example", "n": "canary"}')
    await endpoints.execute(
        "insert into webhooks.attempts"
        " (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome, error, site_id, response)"
        " select $1, min(endpoint_id), now(), 1, 1, 'unreachable', 'dns: canary.example', 's', 'canary'"
        " from webhooks.endpoints",
        event_id,
    )
    await endpoints.execute(
        "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)"
        " select $1, min(endpoint_id), 's', 'exhausted', 1 from webhooks.endpoints",
        event_id,
    )
    ask = "select detail from webhooks.explain($1)"
    producer, reader = await login_as("webhooks_producer"), await login_as("webhooks_reader")
    told = [row["detail"] for row in await producer.fetch(ask, event_id)]
    assert "exhausted, 1 attempts, last answer unreachable dns" in told
    hidden = ("canary", "a@b.example", *(urlsplit(url).hostname for url in URLS))
    assert not [text for text in told if any(word in text for word in hidden)]
    assert "dns: canary.example" in str(await reader.fetch(ask, event_id))


async def test_a_reader_sees_no_address_of_an_owner(endpoints, login_as):
    admin, reader = await login_as("webhooks_admin"), await login_as("webhooks_reader")
    await admin.execute("select webhooks.mute_owner('anna@shop.example', now())")
    assert "anna@shop.example" in await admin.fetchval("select detail::text from webhooks.operations")
    row = await reader.fetchrow("select what, actor, detail::text from webhooks.audit")
    assert row["what"] == "mute_owner"
    assert row["actor"].startswith("pghookd_test_")
    assert "anna" not in row["detail"]
