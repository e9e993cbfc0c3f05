"""Every act leaves exactly one row in `operations`: of people, of their commands, and of the daemon itself."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import hashlib
import json

import pytest
from click.testing import CliRunner

from pghookd.cli.main import cli
from pghookd.postgres import client
from pghookd.postgres.client import query
from pghookd.process.unix_user import unix_user
from pghookd.runtime.upkeep.retention import Policy, Retention
from support.crew import Diary
from support.events import emit

LATER_US = 1_900_000_000_000_000
SUBJECT_SHA256 = hashlib.sha256(b"ada").hexdigest()
ACTS = [
    ("update webhooks.sites set name = 'B' where site_id = 's'", "site_changed", {"site_id": "s", "columns": ["name"]}),
    ("update webhooks.endpoints set url = 'https://b.example/'", "endpoint_changed", {"endpoint_id": 1, "revision": 2}),
    (
        "update webhooks.endpoints set enabled = false",
        "endpoint_changed",
        {"endpoint_id": 1, "revision": 2, "reason": "owner"},
    ),
    ("delete from webhooks.endpoints", "endpoint_deleted", {"endpoint_id": 1, "site_id": "s"}),
    ("delete from webhooks.sites where site_id = 'empty'", "site_deleted", {"site_id": "empty"}),
    ("select webhooks.add_endpoint('s', 'https://b.example/')", "add_endpoint", {"endpoint_id": 2, "site_id": "s"}),
    ("select webhooks.disable_endpoint(1)", "disable_endpoint", {"endpoint_id": 1, "reason": "operator"}),
    ("select webhooks.enable_endpoint(1)", "enable_endpoint", {"endpoint_id": 1, "held": "deliver", "released": 0}),
    ("select webhooks.rotate_secret(1)", "rotate_secret", {"endpoint_id": 1, "overlap": "24:00:00"}),
    ("select webhooks.snooze_endpoint(1, null)", "snooze_endpoint", {"endpoint_id": 1, "until": None}),
    ("select webhooks.mute_owner('A@b.example', null)", "mute_owner", {"owner_email": "a@b.example", "until": None}),
    ("select webhooks.unsubscribe('t')", "unsubscribe", {"owner_email": "o@b.example"}),
    ("select webhooks.send_test(1)", "send_test", {"endpoint_id": 1, "type": "webhook_test"}),
    ("select webhooks.send_again({dead}, 1)", "replay", {"endpoint_id": 1, "deliveries": 1}),
    ("select webhooks.cancel({waiting})", "cancel", {"endpoint_id": None, "cancelled": 1}),
    ("select webhooks.release({quarantined})", "release", {"endpoint_id": None, "released": 1}),
    ("select webhooks.replay(site_id => 's', dry_run => false)", "replay", {"site_id": "s", "deliveries": 1}),
    ("select webhooks.pause_replay(1)", "pause_replay", {"replay_id": 1}),
    (
        "update webhooks.replays set state = 'paused'; select webhooks.resume_replay(1)",
        "resume_replay",
        {"replay_id": 1},
    ),
    ("select webhooks.cancel_replay(1)", "cancel_replay", {"replay_id": 1}),
    (
        "select webhooks.erase('s', 'ada')",
        "erase",
        {"site_id": "s", "pending": "deliver", "subject_sha256": SUBJECT_SHA256},
    ),
    ("select webhooks.forget('s')", "forget", {"site_sha256": hashlib.sha256(b"s").hexdigest(), "endpoints": 1}),
]  # fmt: skip
COMMANDS = [
    ("endpoint add s https://b.example/", "add_endpoint", "endpoint"),
    ("endpoint disable 1", "disable_endpoint", "endpoint"),
    ("endpoint enable 1", "enable_endpoint", "endpoint"),
    ("endpoint test 1 --wait 0", "send_test", "endpoint"),
    ("secret rotate 1", "rotate_secret", "secret"),
    ("replay --site s --go --json", "replay", "replay"),
    ("replay pause 1", "pause_replay", "replay"),
    ("replay cancel 1", "cancel_replay", "replay"),
    ("archive drop 2020-01-02", "archive_dropped", "storage"),
    ("adopt", "adopt", "adopt"),
]


@pytest.fixture
async def con(database, connect):
    connection = await connect(database, server_settings={"application_name": "shop-web"})
    await connection.execute(
        "insert into webhooks.sites (site_id, name) values ('s', 'A shop'), ('empty', 'Another');"
        "insert into webhooks.endpoints (site_id, url) values ('s', 'https://a.example/');"
        "insert into webhooks.owners (owner_email, unsubscribe_token) values ('o@b.example', 't');"
        "insert into webhooks.replays (spec) values ('{}');"
        "create table webhooks_archive.events_1 (like webhooks.events)"
    )
    return connection


@pytest.fixture
async def ids(con):
    """Return the ids of events: one whose delivery is dead, one waiting, one quarantined."""
    dead, waiting, quarantined = [await emit(con) for _ in range(3)]
    await con.execute(
        "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)"
        " values ($1, 1, 's', 'exhausted', 1)",
        dead,
    )
    await con.execute(
        "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, next_attempt_at)"
        " values ($1, 1, 's', 'waiting', 'retry', now()), ($2, 1, 's', 'held', 'quarantined', null)",
        waiting,
        quarantined,
    )
    return {"dead": dead, "waiting": waiting, "quarantined": quarantined}


@pytest.fixture
async def daemon(database, con, ids):
    session = await client.connect(database, name="tend")
    yield session
    await session.close()


async def the_operation(con):
    """Return the only row of operations, which is of this minute: its actor, what, and detail."""
    (row,) = await con.fetch("select * from webhooks.operations")
    assert dt.datetime.now(dt.UTC) - row["at"] < dt.timedelta(minutes=1)
    return row["actor"], row["what"], json.loads(row["detail"])


@pytest.mark.parametrize(
    ("statement", "what", "detail"), ACTS, ids=[f"{n}-{act[1]}" for n, act in enumerate(ACTS)]
)
async def test_an_act_of_a_session_is_an_operation(con, ids, statement, what, detail):
    await con.execute("set webhooks.actor = 'anna'")
    await con.execute(statement.format(**ids))
    actor, done, found = await the_operation(con)
    assert (actor, done) == (f"{await con.fetchval('select session_user')} (shop-web, anna)", what)
    assert found | detail == found


@pytest.mark.parametrize(("words", "what", "name"), COMMANDS, ids=[command[0] for command in COMMANDS])
async def test_an_act_of_a_command_names_the_unix_user(con, ids, database, words, what, name):
    run = functools.partial(CliRunner().invoke, cli, words.split(), env={"PGHOOKD_DATABASE_URL": database})
    done = await asyncio.to_thread(run)
    assert not done.stderr or what == "send_test", done.stderr
    actor, found, _ = await the_operation(con)
    assert (actor, found) == (f"postgres (pghookd/{name}, {unix_user()})", what)


@pytest.mark.parametrize(
    ("name", "arguments", "what", "detail"),
    [
        ("disable_endpoints", ([1], ["gone"]), "endpoint_changed", {"reason": "gone"}),
        (
            "suspend_owner",
            ("A@b.example", LATER_US, "why"),
            "suspend_owner",
            {"owner_email": "a@b.example"},
        ),
        ("note_left_day", (1, "dropped"), "day_dropped", {"day": "2020-01-02"}),
        ("note_left_day", (1, "archived"), "day_archived", {"day": "2020-01-02"}),
    ],
)
async def test_an_act_of_the_daemon_is_an_operation(con, daemon, name, arguments, what, detail):
    await daemon.fetch(query(name), *arguments)
    actor, done, found = await the_operation(con)
    assert (actor, done) == ("postgres (pghookd/tend)", what)
    assert found | detail == found


async def test_the_end_of_an_erasure_names_the_person_that_asked_for_it(con, daemon, until):
    await con.execute("set webhooks.actor = 'anna'; select webhooks.erase('s', 'ada')")
    await con.execute("update webhooks.erasures set asked_at = now() - interval '1 hour'")

    async def over():
        await daemon.fetch(query("erase_subjects"))
        return await con.fetchval("select count(*) = 0 from webhooks.erasures")

    await until(over)
    rows = await con.fetch("select actor, what from webhooks.operations order by at")
    assert [row["what"] for row in rows] == ["erase", "erased"]
    assert {row["actor"] for row in rows} == {f"{await con.fetchval('select session_user')} (shop-web, anna)"}


async def test_deliveries_given_up_with_their_day_are_an_operation(con, daemon, ids):
    day = ids["waiting"] // 2**32
    retention = Retention(daemon, Diary().logger, monotonic=lambda: 0.0)
    await retention.step(Policy(days=1, unsettled_days=1), day + 10)
    actor, what, detail = await the_operation(con)
    assert (actor, what) == ("postgres (pghookd/tend)", "day_expired")
    assert detail == {"day": str(dt.date(2020, 1, 1) + dt.timedelta(days=day)), "deliveries": 2}


async def test_the_actor_of_operations_is_that_of_revisions(con):
    for name in ("shop-web", ""):
        for user in ("anna", ""):
            await con.execute(f"set application_name = '{name}'; set webhooks.actor = '{user}'")
            await con.execute("insert into webhooks.operations (what) values ('test')")
            ours = "select count(*) from webhooks.operations where actor = webhooks.current_actor()"
            assert await con.fetchval(ours) == 1
            await con.execute("delete from webhooks.operations")
