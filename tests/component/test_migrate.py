"""Migrations on a real Postgres: once, in order, whole or not at all, and only to a schema of ours."""

from __future__ import annotations

import asyncio

import pytest

from pghookd.postgres import client, migrate, migration_plan

FIRST = """-- A small schema with what every schema of ours has.
-- min_daemon: 0.1.0
create schema webhooks;
comment on schema webhooks is 'pghookd: made by a test';
create table webhooks.migrations (version int primary key, name text not null, sha256 text not null,
  min_daemon text, applied_at timestamptz not null default now());
create table webhooks.prepared (n int);
create function webhooks.prepare_days(days int default 8) returns void language sql as
$$ insert into webhooks.prepared select 1 where not exists (select from webhooks.prepared) $$;
"""
SECOND = "create table webhooks.second (n int);\n"
ROLES = "create table if not exists webhooks.roles_were_made (n int);\n"


def make_folder(root, **files):
    folder = root / "migrations"
    folder.mkdir(exist_ok=True)
    for name, text in {"0001_first": FIRST, **files}.items():
        (folder / f"{name.removeprefix('m')}.sql").write_text(text)
    (root / "roles.sql").write_text(ROLES)
    return root


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path)


@pytest.fixture
async def session(database_url):
    session = await client.connect(database_url, name="test")
    yield session
    await session.close()


async def test_a_schedule_from_before_the_bound_is_lifted_to_it(database_url, session, folder):
    bound = next(each for each in migrate.load() if each.name == "rights")
    migrations = folder / "migrations"
    for file in migrations.iterdir():
        file.unlink()
    for each in migrate.load():
        if each.version < bound.version:
            (migrations / f"{each.version:04}_{each.name}.sql").write_text(each.sql)
    await migrate.migrate(database_url, folder=folder)
    await session.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    before = ["250ms, 5s ,0.5s,0.01m", "0.017m,1s", "999ms", "1000ms,2h,1d", None]
    for text in before:
        await session.execute(
            "insert into webhooks.endpoints (site_id, url, retry_schedule) values ('s', 'http://x', $1)", text
        )
    await migrate.migrate(database_url)
    rows = await session.fetch("select retry_schedule from webhooks.endpoints order by endpoint_id")
    after = ["1s,5s,1s,1s", "0.017m,1s", "1s", "1000ms,2h,1d", None]
    assert [row["retry_schedule"] for row in rows] == after


async def test_a_migration_is_applied_once_with_its_row(database_url, session, folder):
    first = await migrate.migrate(database_url, folder=folder)
    again = await migrate.migrate(database_url, folder=folder)
    assert [each.name for each in first.applied] == ["first"]
    assert (again.applied, again.version) == ((), 1)
    row = await session.fetchrow("select version, name, sha256, min_daemon from webhooks.migrations")
    assert tuple(row) == (1, "first", migrate.load(folder)[0].sha256, "0.1.0")
    assert await session.fetchval("select count(*) from webhooks.prepared") == 1


async def test_a_dry_run_changes_nothing(database_url, session, folder):
    report = await migrate.migrate(database_url, folder=folder, dry_run=True)
    assert [each.version for each in report.applied] == [1]
    assert await session.fetchval("select to_regnamespace('webhooks')") is None


async def test_a_failing_migration_leaves_those_before_it(database_url, session, tmp_path):
    folder = make_folder(tmp_path, m0002_second=SECOND + "select 1 / 0;\n")
    with pytest.raises(client.DatabaseError) as raised:
        await migrate.migrate(database_url, folder=folder)
    assert raised.value.sqlstate == "22012"
    assert await session.fetchval("select max(version) from webhooks.migrations") == 1
    assert await session.fetchval("select to_regclass('webhooks.second')") is None
    make_folder(tmp_path, m0002_second=SECOND)
    assert (await migrate.migrate(database_url, folder=folder)).version == 2


async def test_roles_are_made_on_request_and_again(database_url, session, folder):
    await migrate.migrate(database_url, folder=folder)
    assert await session.fetchval("select to_regclass('webhooks.roles_were_made')") is None
    for _ in range(2):
        assert (await migrate.migrate(database_url, folder=folder, roles=True)).roles
    assert await session.fetchval("select to_regclass('webhooks.roles_were_made')") is not None


async def test_a_schema_of_somebody_else_is_left_alone(database_url, session, folder):
    await session.execute("create schema webhooks; create table webhooks.theirs (n int)")
    with pytest.raises(migrate.SchemaFault, match="is not pghookd's"):
        await migrate.migrate(database_url, folder=folder, roles=True)
    assert await session.fetchval("select count(*) from pg_tables where schemaname = 'webhooks'") == 1


async def test_an_altered_schema_is_left_alone(database_url, session, tmp_path):
    folder = make_folder(tmp_path)
    await migrate.migrate(database_url, folder=folder)
    make_folder(tmp_path, m0001_first=FIRST + "-- edited\n", m0002_second=SECOND)
    with pytest.raises(migrate.SchemaFault, match="0001_first was applied with another content"):
        await migrate.migrate(database_url, folder=folder)
    assert await session.fetchval("select to_regclass('webhooks.second')") is None


async def test_a_schema_without_its_table_of_migrations_is_left_alone(database_url, session, folder):
    await migrate.migrate(database_url, folder=folder)
    await session.execute("drop table webhooks.migrations")
    with pytest.raises(migrate.SchemaFault, match="lost its table migrations"):
        await migrate.migrate(database_url, folder=folder)


async def test_a_newer_schema_is_accepted_unless_it_says_no(database_url, session, tmp_path):
    folder = make_folder(tmp_path)
    await migrate.migrate(database_url, folder=folder)
    available = migrate.load(folder)
    await session.execute("insert into webhooks.migrations values (2, 'later', 'abc', null)")
    found = await migrate.look(session, available, "0.1.0")
    assert (found.is_usable, found.version, found.plan.newer) == (True, 2, (2,))
    await session.execute("update webhooks.migrations set min_daemon = '0.2.0' where version = 2")
    found = await migrate.look(session, available, "0.1.0")
    assert not found.is_usable
    assert found.plan.faults == ("migration 0002_later needs pghookd 0.2.0 or later, this is 0.1.0",)
    assert (await migrate.look(session, available, "0.2.0")).is_usable


async def test_two_at_once_apply_each_migration_once(database_url, session, folder):
    reports = await asyncio.gather(*(migrate.migrate(database_url, folder=folder) for _ in range(3)))
    assert sorted(len(report.applied) for report in reports) == [0, 0, 1]
    assert await session.fetchval("select count(*) from webhooks.migrations") == 1


async def test_another_migrate_is_waited_for_within_bounds(database_url, session, folder):
    await session.execute("select pg_advisory_lock($1, $2)", migrate.LOCK_CLASS, migrate.LOCK_KEY)
    said: list[str] = []
    with pytest.raises(migrate.SchemaFault, match=f"backend {session.pid}. has not ended within 0.1 s"):
        await migrate.migrate(database_url, folder=folder, say=said.append, lock_wait_s=0.1)
    assert said == [f"another migrate (backend {session.pid}) is at work: waiting up to 0.1 s"]


async def test_a_missing_database_is_reported_as_such(folder):
    with pytest.raises(client.DatabaseAway):
        await migrate.migrate("postgresql://nobody@127.0.0.1:1/none", folder=folder)


@pytest.mark.parametrize("shipped", [False, True])
async def test_the_script_does_the_same_as_the_command(database_url, session, tmp_path, shipped):
    folder = None if shipped else make_folder(tmp_path, m0002_second=SECOND)
    await session.execute(migrate.script(folder))
    found = await migrate.look(session, migrate.load(folder))
    assert found.is_usable
    assert (await migrate.migrate(database_url, folder=folder)).applied == ()


async def test_the_shipped_schema_takes_an_event_at_once(database_url, session):
    report = await migrate.migrate(database_url, roles=True)
    assert report.applied[0].version == 1
    await session.execute(
        "insert into webhooks.events (site_id, type, payload) values ('s1', 'order_created', '{}')"
    )
    assert await session.fetchval("select count(*) from webhooks.events") == 1


def test_shipped_migrations_are_in_order_and_name_the_daemon_they_need():
    available = migrate.load()
    assert available[0].min_daemon is not None
    assert [each.version for each in available] == list(range(1, len(available) + 1))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["0001_a.sql", "0003_c.sql"], "without a gap"),
        (["0001_a.sql", "0001_b.sql"], "without a gap"),
        (["0002_b.sql"], "without a gap"),
        (["1_a.sql"], "not named as a migration"),
        (["0001_A.sql"], "not named as a migration"),
    ],
)
def test_a_folder_out_of_order_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        migration_plan.parse(dict.fromkeys(names, b"select 1;"))


def test_an_invalid_version_is_refused():
    with pytest.raises(ValueError, match="no version"):
        migration_plan.parse({"0001_a.sql": b"-- min_daemon: soon\n"})


def test_a_gap_in_the_applied_migrations_is_a_fault():
    available = migration_plan.parse({"0001_a.sql": b"a", "0002_b.sql": b"b", "0003_c.sql": b"c"})
    rows = [migration_plan.Applied(m.version, m.name, m.sha256, None) for m in (available[0], available[2])]
    plan = migration_plan.plan(available, rows, "0.1.0")
    assert plan.faults == ("migration 0002_b is missing in the middle",)
    assert plan.pending == ()


@pytest.mark.parametrize(
    ("version", "usable"),
    [("0.9", False), ("1.0.0.dev3", True), ("1.0", True), ("1.0.1", True), ("0.10.0", False), ("10.0", True)],
)
def test_versions_are_compared_as_numbers(version, usable):
    row = migration_plan.Applied(1, "a", "x", "1.0.0")
    assert (migration_plan.plan((), [row], version).faults == ()) == usable
