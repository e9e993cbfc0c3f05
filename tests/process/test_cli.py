"""The commands as an operator types them: what they print, and the exit status."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pghookd import __version__
from pghookd.cli.main import cli
from pghookd.postgres import client
from pghookd.webhook.envelope import webhook_id
from support.events import emit

NOBODY = "postgresql://nobody@127.0.0.1:1/none"


def pghookd(*args, url=None, **variables):
    """Run a command as a process of its own; of our variables its environment holds only the given ones."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PGHOOKD_", "PG"))}
    environ |= variables | ({"PGHOOKD_DATABASE_URL": url} if url else {})
    return subprocess.run(
        [sys.executable, "-m", "pghookd", *args],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def invoke(*args, **variables):
    """Run a command that needs no database in this process."""
    return CliRunner().invoke(cli, args, env={"PGHOOKD_DATABASE_URL": None, **variables}, prog_name="pghookd")


@pytest.fixture
async def session(database):
    session = await client.connect(database, name="test")
    yield session
    await session.close()


# Without a database -----------------------------------------------------------------------------------------


def test_version_is_printed_without_expensive_imports():
    code = (
        "import sys; from pghookd.cli.main import cli; cli(['--version'], standalone_mode=False);"
        "print(sorted({'aiohttp', 'asyncpg', 'pydantic', 'rich', 'structlog'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"pghookd {__version__}\n[]\n"


COMMANDS = [
    ("migrate",), ("run",), ("demo",), ("check",), ("adopt",), ("url", "check"), ("event", "why"),
    ("email", "preview"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_config_and_all_but_run_and_demo_json(command):
    shown = invoke(*command, "--help").output
    assert "--config FILE" in shown
    assert ("--json" in shown) == (command[0] not in {"run", "demo"})


@pytest.mark.parametrize("command", [("urls", "check"), ("events", "why"), ("emails", "preview")])
def test_plurals_work_too(command):
    assert invoke(*command, "--help").exit_code == 0
    assert invoke("runs").exit_code == 2


@pytest.mark.parametrize(
    "command",
    [
        ("run", "--nope"),
        ("fly",),
        ("event", "why", "evt_1"),
        ("event", "why", "-1"),
        ("demo", "--events", "0"),
    ],
)
def test_usage_exits_2(command):
    assert invoke(*command).exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("run",),
        ("check",),
        ("migrate",),
        ("adopt",),
        ("url", "check", "https://x.example"),
        ("event", "why", "1"),
    ],
)
def test_wrong_settings_exit_78_with_every_fault_in_one_message(command, tmp_path):
    file = tmp_path / "pghookd.toml"
    file.write_text("[delivery]\ntimeout = 3\n")
    done = pghookd(*command, "--config", str(file), url="mysql://u:hunter2@h/d", PGHOOKD_STORM_SHARE="3")
    assert done.returncode == 78
    told = done.stdout + done.stderr
    for part in (
        "delivery.timeout in",
        "PGHOOKD_DATABASE_URL must start with",
        "PGHOOKD_STORM_SHARE must be 1 or less",
    ):
        assert part in told
    assert "hunter2" not in told
    assert "Traceback" not in told


def test_a_config_file_that_is_not_there_exits_78():
    done = invoke("url", "check", "https://x.example", "--config", "/nowhere/pghookd.toml")
    assert done.exit_code == 78
    assert "No such file" in done.stderr


def test_wrong_settings_as_json_leave_nothing_else_on_stdout():
    done = invoke("migrate", "--json", PGHOOKD_STORM_SHARE="3")
    assert done.exit_code == 78
    assert json.loads(done.stdout) == {
        "status": 78,
        "faults": ["PGHOOKD_STORM_SHARE must be 1 or less (it is '3')"],
    }
    assert done.stderr == ""


@pytest.mark.parametrize("command", [("check",), ("migrate",), ("adopt",), ("event", "why", "1")])
def test_a_database_out_of_reach_exits_3(command):
    done = pghookd(*command, url=NOBODY)
    assert done.returncode == 3
    assert "cannot be reached" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_migrate_sql_needs_no_database():
    done = invoke("migrate", "--sql", "--roles")
    assert done.exit_code == 0
    assert "create schema webhooks;" in done.stdout
    assert "insert into webhooks.migrations" in done.stdout
    assert "webhooks_producer" in done.stdout
    assert "-- 0001_" in json.loads(invoke("migrate", "--sql", "--json").stdout)["sql"]
    assert invoke("migrate", "--sql", "--dry-run").exit_code == 2


# Destinations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (("https://hooks.example.org/x", "--address", "93.184.216.34"), 0, {"verdict": "allowed"}),
        (
            ("https://hooks.example.org/x", "--address", "10.0.0.1"),
            1,
            {"verdict": "blocked", "reason": "address"},
        ),
        (
            ("https://hooks.example.org/x", "--address", "93.184.216.34", "--address", "::1"),
            1,
            {"verdict": "blocked", "reason": "address", "address": "::1"},
        ),
        (("ftp://hooks.example.org/",), 1, {"verdict": "blocked", "reason": "scheme"}),
        (("http://127.0.0.1/",), 1, {"verdict": "blocked", "reason": "literal"}),
        (("http://hooks.example.org:5432/",), 1, {"verdict": "blocked", "reason": "port"}),
        (("no url at all",), 1, {"verdict": "blocked", "reason": "url"}),
        (("",), 1, {"verdict": "blocked", "reason": "url"}),
        (("https://93.184.216.34/",), 0, {"verdict": "allowed", "addresses": ["93.184.216.34"]}),
    ],
)
def test_url_check_decides(args, status, told):
    done = invoke("url", "check", *args, "--json")
    answer = json.loads(done.stdout)
    assert done.exit_code == status
    assert {key: answer[key] for key in told} == told
    assert answer["url"] == args[0]


def test_url_check_follows_the_settings():
    assert invoke("url", "check", "http://127.0.0.1/").exit_code == 1
    assert invoke("url", "check", "http://127.0.0.1/", PGHOOKD_EGRESS_ALLOW="127.0.0.0/8").exit_code == 0


def test_url_check_asks_the_resolver_where_no_address_is_given():
    done = invoke("url", "check", "http://localhost/", "--json", PGHOOKD_EGRESS_ALLOW="localhost")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["addresses"]


def test_what_is_shown_cannot_act_on_a_terminal():
    done = invoke("url", "check", "http://x.example/", "--address", "\x1b[2J")
    assert done.exit_code == 1
    assert "\x1b" not in done.output


# Mails ------------------------------------------------------------------------------------------------------


def test_a_preview_is_shown_as_text():
    done = invoke("email", "preview", "--kind", "disabled")
    assert done.exit_code == 0
    assert done.stdout.startswith(
        "disabled  Webhook switched off: shop.example.com, 512 order events held until"
    )
    assert "512 of 512 deliveries" in done.stdout


def test_a_preview_of_all_is_written_as_files(tmp_path):
    done = invoke("email", "preview", "--to", str(tmp_path / "new"), "--json")
    told = json.loads(done.stdout)
    assert done.exit_code == 0
    assert sorted(told["files"]) == sorted(map(str, (tmp_path / "new").iterdir()))
    assert {Path(file).name for file in told["files"]} >= {
        "failing.en.txt",
        "storm.de.html",
        "recovered.de.eml",
    }
    assert told["faults"] == []


def test_a_preview_names_faults_of_the_operators_templates(tmp_path):
    (tmp_path / "digest.txt.j2").write_text("{{ nothing }}")
    done = invoke("email", "preview", "--language", "de", PGHOOKD_MAIL_TEMPLATES=str(tmp_path))
    assert done.exit_code == 1
    assert "digest.txt.j2: 'nothing' is undefined" in done.stderr
    assert "Ihr Webhook" in done.stdout
    done = invoke("check", "--json", PGHOOKD_MAIL_TEMPLATES=str(tmp_path), PGHOOKD_DATABASE_URL=NOBODY)
    assert "digest.txt.j2: 'nothing' is undefined; the built-in one is used instead" in done.stdout


@pytest.mark.parametrize("wrong", [("--kind", "odd"), ("--language", "xx"), ("--to", "/dev/null/x")])
def test_a_preview_of_what_there_is_not_is_usage(wrong):
    done = invoke("email", "preview", *wrong)
    assert done.exit_code == 2
    assert wrong[0] in done.stderr


# With a database --------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_migrate_reports_its_work(database_url):
    dry = json.loads(pghookd("migrate", "--dry-run", "--json", url=database_url).stdout)
    done = json.loads(pghookd("migrate", "--json", url=database_url).stdout)
    again = pghookd("migrate", "--roles", url=database_url)
    assert dry["dry_run"]
    assert dry["applied"] == done["applied"] != []
    assert dry["functions"] == done["functions"] != []
    assert (again.returncode, again.stderr) == (0, "")
    assert "the roles are made" in again.stdout


@pytest.mark.slow
async def test_a_foreign_schema_exits_3(database_url, connect):
    await (await connect(database_url)).execute("create schema webhooks")
    done = pghookd("migrate", url=database_url)
    assert done.returncode == 3
    assert "is not pghookd's" in done.stderr
    assert pghookd("check", url=database_url).returncode == 3


def findings_of(done):
    return {(each["grade"], each["what"]): each["text"] for each in json.loads(done.stdout)["findings"]}


@pytest.mark.slow
async def test_check_finds_a_new_schema_in_order(database):
    done = pghookd("check", "--json", url=database)
    found = findings_of(done)
    assert done.returncode == 0, found
    assert {grade for grade, _ in found} <= {"ok", "warning"}
    assert ("ok", "schema") in found
    assert ("ok", "privileges") in found
    assert pghookd("check", url=database).stdout.startswith("ok")


async def test_check_without_a_schema_exits_3(database_url):
    done = pghookd("check", "--json", url=database_url)
    assert done.returncode == 3
    assert "run pghookd migrate" in findings_of(done)["blocked", "schema"]


@pytest.mark.slow
async def test_check_names_functions_that_are_out_of_date(database, session):
    await session.execute("delete from webhooks.functions where name = 'emit'")
    await session.execute("update webhooks.functions set sha256 = 'other' where name = 'takes'")
    done = pghookd("check", "--json", url=database)
    assert done.returncode == 1
    told = findings_of(done)["fault", "schema"]
    assert "with functions missing or out of date (emit, takes): run pghookd migrate" in told
    assert "applied functions and views: emit, takes" in pghookd("migrate", url=database).stdout
    await session.execute(
        "update webhooks.functions set sha256 = 'x', applied_by = '99.0' where name = 'takes'"
    )
    found = findings_of(pghookd("check", "--json", url=database))
    assert found["ok", "schema"].endswith("of a later version and compatible: takes")


@pytest.mark.slow
async def test_check_reports_all_faults_of_a_database_at_once(database, session):
    await session.execute("update webhooks.migrations set sha256 = 'other' where version = 1")
    await session.execute(
        "insert into webhooks.shards (shard, snapshot, system_identifier, database_oid)"
        " select s, pg_current_snapshot(), 42, 1 from generate_series(0, 3) s"
    )
    await session.execute("alter sequence webhooks.events_event_id_seq restart with 1")
    await session.execute("select pg_advisory_lock(1885825131, -2)")
    await session.execute("set application_name = 'stranger'")
    done = pghookd("check", "--json", url=database, PGHOOKD_STORM_SHARE="x", PGHOOKD_SMTP_PASSWORD="x")
    found = findings_of(done)
    assert done.returncode == 78
    assert "PGHOOKD_STORM_SHARE" in found["settings", "settings"]
    assert "PGHOOKD_SMTP_PASSWORD contains a secret" in found["warning", "settings"]
    assert "another content" in found["blocked", "schema"]
    assert "another server" in found["fault", "home"]
    assert "set it to 4" in found["fault", "shards"]
    assert "no partition takes the next event" in found["fault", "days"]
    assert "(1885825131, -2) is held by backend" in found["fault", "locks"]
    assert "'stranger'" in found["fault", "locks"]
    assert pghookd("check", url=database).returncode == 3


def as_role(url, role):
    return f"{url}{'&' if '?' in url else '?'}role={role}"


@pytest.mark.slow
async def test_check_names_the_rights_that_a_role_lacks(database, session):
    await session.execute("drop role if exists check_guest; create role check_guest")
    try:
        lacking = findings_of(pghookd("check", "--json", url=as_role(database, "check_guest")))
        assert "may not use the schema webhooks" in lacking["fault", "privileges"]
        await session.execute("grant usage on schema webhooks to check_guest")
        done = pghookd("check", "--json", url=as_role(database, "check_guest"))
        assert done.returncode == 1
        for part in (
            "insert on attempts",
            "update on sequence events_event_id_seq",
            "execute on function attach_day",
        ):
            assert part in findings_of(done)["fault", "privileges"]
    finally:
        await session.execute("drop owned by check_guest; drop role check_guest")


@pytest.mark.slow
async def test_check_accepts_the_role_made_for_the_daemon(database, session):
    assert pghookd("migrate", "--roles", url=database).returncode == 0
    await session.execute(
        "drop role if exists check_daemon; create role check_daemon in role webhooks_daemon"
    )
    try:
        done = pghookd("check", "--json", url=as_role(database, "check_daemon"))
    finally:
        await session.execute("drop role check_daemon")
    assert done.returncode == 0, done.stdout
    assert ("ok", "privileges") in findings_of(done)


@pytest.mark.slow
async def test_event_why_takes_a_number_and_a_webhook_id(database, session):
    event_id = await emit(session, site="s1")
    created_at_us = await session.fetchval("select created_at from webhooks.events")
    by_number = pghookd("event", "why", str(event_id), "--json", url=database)
    by_name = pghookd("events", "why", webhook_id(event_id, created_at_us), "--json", url=database)
    assert (by_number.returncode, by_name.returncode) == (0, 0)
    assert json.loads(by_number.stdout) == json.loads(by_name.stdout)
    steps = json.loads(by_number.stdout)["steps"]
    assert [step["what"] for step in steps] == ["inserted", "no_site"]
    assert steps[0]["at"].endswith("Z")
    assert "site s1 is not known" in pghookd("event", "why", str(event_id), url=database).stdout
    other = pghookd("event", "why", webhook_id(event_id, created_at_us + 1), url=database)
    assert other.returncode == 1
    assert "is another" in other.stdout


async def test_event_why_of_an_unknown_event_exits_1(database):
    done = pghookd("event", "why", "9223372036854775807", "--json", url=database)
    assert done.returncode == 1
    assert json.loads(done.stdout)["steps"][0]["what"] == "unknown"


async def test_event_why_without_a_schema_exits_3(database_url):
    done = pghookd("event", "why", "1", url=database_url)
    assert done.returncode == 3
    assert "pghookd migrate" in done.stderr


# The daemon as systemd sees it ------------------------------------------------------------------------------


def until_told(manager, state):
    while state not in manager.recv(4096):
        pass


@pytest.fixture
def manager(tmp_path):
    """A stand-in for systemd: the socket that gets the daemon's states."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(30)
        yield listener


@pytest.fixture
def start_into_full_disk(manager):
    """Return `start(url)`: `pghookd run` with a standard output that takes nothing."""
    started = []
    with Path("/dev/full").open("wb") as full:

        def start(url):
            environ = os.environ | {"NOTIFY_SOCKET": manager.getsockname(), "PGHOOKD_DATABASE_URL": url}
            started.append(
                subprocess.Popen([sys.executable, "-m", "pghookd", "run"], env=environ, stdout=full)
            )
            return started[-1]

        yield start
    for each in started:
        each.kill()
        each.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_is_ready_and_ends_with_0_though_nothing_takes_its_lines(
    database, manager, start_into_full_disk, number
):
    daemon = start_into_full_disk(database)
    until_told(manager, b"READY=1")
    daemon.send_signal(number)
    until_told(manager, b"STOPPING=1")
    assert daemon.wait(30) == 0
