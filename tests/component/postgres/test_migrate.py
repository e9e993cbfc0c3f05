"""Migrations and functions on a real Postgres: in order, all or none, and only to a schema of ours."""

from __future__ import annotations

import asyncio

import pytest

from pghookd import __version__
from pghookd.postgres import client, lock_keys, migrate, migration_plan

FIRST = """-- A small schema with what every schema of ours has.
-- min_daemon: 0.1.0
create schema webhooks;
comment on schema webhooks is 'pghookd: made by a test';
create table webhooks.migrations (version int primary key, name text not null, sha256 text not null,
  min_daemon text, applied_at timestamptz not null default now());
create table webhooks.functions (name text primary key, sha256 text not null, applied_by text not null,
  applied_at timestamptz not null default now());
create table webhooks.prepared (n int);
"""
SECOND = "create table webhooks.second (n int);\n"
ROLES = "create table if not exists webhooks.roles_were_made (n int);\n"
PREPARE = """create or replace function webhooks.prepare_days(days int default 8) returns void language sql as
$$ insert into webhooks.prepared select 1 where not exists (select from webhooks.prepared) $$;
"""
TWICE = """-- needs: half
create or replace view webhooks.doubled as select n, webhooks.half(n) as half from webhooks.prepared;
"""
TELL = """create or replace function webhooks.tell() returns trigger language plpgsql as
$$ begin notify told; return null; end $$;
"""
TOLD = """-- needs: tell
create or replace trigger told after insert on webhooks.prepared for each statement execute function webhooks.tell();
"""
HALF = "create or replace function webhooks.half(n int) returns int language sql as $$ select n / 2 $$;\n"


def make_folder(root, functions=(), triggers=(), **files):
    """Write migrations, and functions and triggers by their names; what an earlier call wrote stays."""
    for name in ("migrations", "functions", "triggers"):
        (root / name).mkdir(exist_ok=True)
    for name, text in {"0001_first": FIRST, **files}.items():
        (root / "migrations" / f"{name.removeprefix('m')}.sql").write_text(text)
    for name, text in {"prepare_days": PREPARE, **dict(functions)}.items():
        (root / "functions" / f"{name}.sql").write_text(text)
    for name, text in dict(triggers).items():
        (root / "triggers" / f"{name}.sql").write_text(text)
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


async def test_a_migration_is_applied_once_with_its_row(database_url, session, folder):
    first = await migrate.migrate(database_url, folder=folder)
    again = await migrate.migrate(database_url, folder=folder)
    assert [each.name for each in first.applied] == ["first"]
    assert (again.applied, again.version) == ((), 1)
    row = await session.fetchrow("select version, name, sha256, min_daemon from webhooks.migrations")
    assert tuple(row) == (1, "first", migrate.load(folder).migrations[0].sha256, "0.1.0")
    assert await session.fetchval("select count(*) from webhooks.prepared") == 1


async def test_a_dry_run_changes_nothing(database_url, session, folder):
    report = await migrate.migrate(database_url, folder=folder, dry_run=True)
    assert [each.version for each in report.applied] == [1]
    assert await session.fetchval("select to_regnamespace('webhooks')") is None


async def test_a_failing_migration_leaves_all_as_it_was(database_url, session, tmp_path):
    await migrate.migrate(database_url, folder=make_folder(tmp_path))
    faulty = {"m0002_second": SECOND, "m0003_third": "select 1 / 0;\n"}
    folder = make_folder(tmp_path, {"half": HALF}, **faulty)
    with pytest.raises(client.DatabaseError) as raised:
        await migrate.migrate(database_url, folder=folder)
    assert raised.value.sqlstate == "22012"
    assert await session.fetchval("select max(version) from webhooks.migrations") == 1
    assert await session.fetchval("select to_regclass('webhooks.second')") is None
    make_folder(tmp_path, m0003_third="create table webhooks.third (n int);\n")
    report = await migrate.migrate(database_url, folder=folder)
    assert (report.version, [each.name for each in report.functions]) == (3, ["half"])


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


async def test_a_schema_without_its_table_of_functions_is_left_alone(database_url, session, folder):
    await migrate.migrate(database_url, folder=folder)
    await session.execute("drop table webhooks.functions")
    with pytest.raises(migrate.SchemaFault, match="lost its table functions"):
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
    await session.execute(lock_keys.WAIT, lock_keys.MIGRATE)
    said: list[str] = []
    with pytest.raises(migrate.SchemaFault, match=f"backend {session.pid}. has not ended within 0.1 s"):
        await migrate.migrate(database_url, folder=folder, say=said.append, lock_wait_s=0.1)
    assert said == [f"another migrate (backend {session.pid}) is at work: waiting up to 0.1 s"]


async def test_a_missing_database_is_reported_as_such(folder):
    with pytest.raises(client.DatabaseAway):
        await migrate.migrate("postgresql://nobody@127.0.0.1:1/none", folder=folder)


@pytest.mark.parametrize("shipped", [False, True])
async def test_the_script_does_the_same_as_the_command(database_url, session, tmp_path, shipped):
    functions = {"half": HALF, "doubled": TWICE}
    folder = None if shipped else make_folder(tmp_path, functions, m0002_second=SECOND)
    await session.execute(migrate.script(folder))
    found = await migrate.look(session, migrate.load(folder))
    assert found.is_usable
    report = await migrate.migrate(database_url, folder=folder)
    assert (report.applied, report.functions) == ((), ())


# Functions and views ------------------------------------------------------------------------------------------------


@pytest.fixture
def with_view(tmp_path):
    """Return a folder with a view whose function comes after it in the alphabet."""
    return make_folder(tmp_path, {"doubled": TWICE, "half": HALF})


async def test_functions_are_applied_in_the_order_of_their_needs(database_url, session, with_view):
    dry = await migrate.migrate(database_url, folder=with_view, dry_run=True)
    report = await migrate.migrate(database_url, folder=with_view)
    names = [each.name for each in report.functions]
    assert names == [each.name for each in dry.functions]
    assert names.index("half") < names.index("doubled")
    rows = await session.fetch("select name, sha256, applied_by from webhooks.functions order by name")
    assert [row["name"] for row in rows] == ["doubled", "half", "prepare_days"]
    assert {row["applied_by"] for row in rows} == {__version__}
    assert {row["sha256"] for row in rows} == {each.sha256 for each in report.functions}
    assert await session.fetchval("select half from webhooks.doubled") == 0
    assert (await migrate.migrate(database_url, folder=with_view)).functions == ()


async def test_a_changed_function_is_replaced_and_keeps_its_grants(database_url, session, with_view):
    await migrate.migrate(database_url, folder=with_view)
    await session.execute("grant execute on function webhooks.half to pg_monitor")
    granted = "select proacl::text from pg_proc where oid = 'webhooks.half'::regproc"
    before = await session.fetchval(granted)
    make_folder(with_view, {"half": HALF.replace("n / 2", "n + 41")})
    found = await migrate.look(session, migrate.load(with_view))
    assert (found.is_usable, [each.name for each in found.functions.pending]) == (False, ["half"])
    await migrate.migrate(database_url, folder=with_view)
    assert await session.fetchval("select half from webhooks.doubled") == 42
    assert await session.fetchval(granted) == before
    assert "pg_monitor" in before


async def test_nobody_else_may_call_a_new_function(database_url, session, with_view):
    await migrate.migrate(database_url, folder=with_view)
    assert not await session.fetchval(
        "select has_function_privilege('pg_monitor', 'webhooks.half(int)', 'execute')"
    )


async def test_a_function_without_a_file_stays_until_a_migration_drops_it(database_url, session, with_view):
    await migrate.migrate(database_url, folder=with_view)
    for name in ("doubled", "half"):
        (with_view / "functions" / f"{name}.sql").unlink()
    assert (await migrate.migrate(database_url, folder=with_view)).functions == ()
    assert await session.fetchval("select count(*) from webhooks.doubled") == 1
    make_folder(with_view, m0002_drop="drop view webhooks.doubled; drop function webhooks.half;\n")
    await migrate.migrate(database_url, folder=with_view)
    assert await session.fetchval("select to_regclass('webhooks.doubled')") is None
    assert (await migrate.look(session, migrate.load(with_view))).is_usable


async def test_a_view_that_a_migration_drops_is_made_again(database_url, session, with_view):
    """Its own text is unchanged; it had to go so that the function could get another type."""
    await migrate.migrate(database_url, folder=with_view)
    changed = HALF.replace("returns int", "returns numeric")
    make_folder(
        with_view, {"half": changed}, m0002_drop="drop view webhooks.doubled; drop function webhooks.half;\n"
    )
    report = await migrate.migrate(database_url, folder=with_view)
    assert [each.name for each in report.functions] == ["half", "doubled"]
    assert await session.fetchval("select pg_typeof(half)::text from webhooks.doubled") == "numeric"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "half",
            HALF.replace("returns int", "returns text").replace("n / 2", "'x'"),
            "cannot change return type",
        ),
        (
            "half",
            HALF.replace("n int", "m int").replace("n / 2", "m"),
            "cannot change name of input parameter",
        ),
        ("half", HALF.replace("n int", "n int, by int"), "exists with a signature"),
        ("doubled", TWICE.replace("n, webhooks", "webhooks"), "cannot (drop columns|change name)"),
    ],
)
async def test_another_signature_is_refused(database_url, session, with_view, name, text, message):
    await migrate.migrate(database_url, folder=with_view)
    make_folder(with_view, {name: text}, m0002_second=SECOND)
    with pytest.raises(migrate.SchemaFault, match=message) as raised:
        await migrate.migrate(database_url, folder=with_view)
    assert f"functions/{name}.sql" in str(raised.value)
    assert str(raised.value).endswith("drop the old one in a migration")
    assert await session.fetchval("select to_regclass('webhooks.second')") is None
    assert await session.fetchval("select half from webhooks.doubled") == 0


async def test_a_function_of_a_later_version_is_left_alone(database_url, session, with_view):
    await migrate.migrate(database_url, folder=with_view)
    await session.execute(
        "update webhooks.functions set sha256 = 'other', applied_by = '99.0' where name = 'half'"
    )
    found = await migrate.look(session, migrate.load(with_view))
    assert (found.is_usable, found.functions.newer) == (True, ("half",))
    assert (await migrate.migrate(database_url, folder=with_view)).functions == ()
    assert await session.fetchval("select sha256 from webhooks.functions where name = 'half'") == "other"


async def test_a_function_that_a_later_migration_dropped_is_not_missed(database_url, session, with_view):
    await migrate.migrate(database_url, folder=with_view)
    await session.execute("drop view webhooks.doubled")
    assert not (await migrate.look(session, migrate.load(with_view))).is_usable
    await session.execute("insert into webhooks.migrations values (2, 'later', 'abc', null)")
    assert (await migrate.look(session, migrate.load(with_view))).is_usable
    assert (await migrate.migrate(database_url, folder=with_view)).functions == ()


async def test_a_function_is_expanded_by_its_fragments(database_url, session, with_view):
    (with_view / "fragments").mkdir()
    (with_view / "fragments" / "answer.sql").write_text("-- An expression.\n42\n")
    make_folder(with_view, {"half": HALF.replace("select n / 2", "select\n  --include answer\n")})
    await migrate.migrate(database_url, folder=with_view)
    (with_view / "fragments" / "answer.sql").write_text("-- The same.\n42\n")
    assert (await migrate.migrate(database_url, folder=with_view)).functions == ()
    (with_view / "fragments" / "answer.sql").write_text("43\n")
    await migrate.migrate(database_url, folder=with_view)
    assert await session.fetchval("select half from webhooks.doubled") == 43


# Triggers and tables in use -------------------------------------------------------------------------------------------


@pytest.fixture
async def in_use(database_url, session, tmp_path):
    """A schema with a trigger, and a producer whose transaction has written to the trigger's table."""
    folder = make_folder(tmp_path, {"tell": TELL}, {"told": TOLD})
    await migrate.migrate(database_url, folder=folder)
    assert (
        await session.fetchval("select tgname from pg_trigger where tgrelid = 'webhooks.prepared'::regclass")
        == "told"
    )
    producer = await client.connect(database_url, name="producer")
    await producer.execute("begin")
    await producer.execute("insert into webhooks.prepared values (7)")
    yield folder, producer
    await producer.close()


async def test_a_changed_function_of_a_trigger_waits_for_no_producer(database_url, in_use):
    folder, _ = in_use
    make_folder(folder, {"tell": TELL.replace("notify told", "notify otherwise")})
    report = await migrate.migrate(database_url, folder=folder, table_wait_s=0)
    assert [each.name for each in report.functions] == ["tell"]


async def test_a_changed_trigger_keeps_no_producer_waiting(database_url, session, in_use):
    """It is tried again until the open transaction has ended; others write meanwhile."""
    folder, producer = in_use
    make_folder(
        folder, triggers={"told": TOLD.replace("for each statement", "for each row")}, m0002_second=SECOND
    )
    said = asyncio.Queue()
    under_way = asyncio.create_task(migrate.migrate(database_url, folder=folder, say=said.put_nowait))
    assert "keep a table in use" in await said.get()
    await session.execute("set statement_timeout = '1s'")
    await session.execute("insert into webhooks.prepared values (8)")
    assert await session.fetchval("select to_regclass('webhooks.second')") is None
    await producer.execute("commit")
    report = await under_way
    assert [each.name for each in report.functions] == ["told"]
    assert await session.fetchval("select count(*) from webhooks.second") == 0
    assert (await migrate.migrate(database_url, folder=folder)).functions == ()


async def test_a_table_in_use_for_too_long_is_reported(database_url, session, in_use):
    folder, _ = in_use
    make_folder(
        folder, triggers={"told": TOLD.replace("for each statement", "for each row")}, m0002_second=SECOND
    )
    with pytest.raises(migrate.SchemaFault, match="open transactions have kept a table in use for 0 s"):
        await migrate.migrate(database_url, folder=folder, table_wait_s=0)
    assert await session.fetchval("select to_regclass('webhooks.second')") is None


async def test_a_trigger_that_goes_with_its_table_is_made_again(database_url, session, tmp_path):
    folder = make_folder(tmp_path, {"tell": TELL}, {"told": TOLD})
    await migrate.migrate(database_url, folder=folder)
    make_folder(
        folder, m0002_again="drop table webhooks.prepared; create table webhooks.prepared (n int, at int);\n"
    )
    report = await migrate.migrate(database_url, folder=folder)
    assert [each.name for each in report.functions] == ["told"]


# The shipped schema -------------------------------------------------------------------------------------------------


async def test_the_shipped_schema_takes_an_event_at_once(database_url, session):
    report = await migrate.migrate(database_url, roles=True)
    assert report.applied[0].version == 1
    await session.execute(
        "insert into webhooks.events (site_id, type, payload) values ('s1', 'order_created', '{}')"
    )
    assert await session.fetchval("select count(*) from webhooks.events") == 1


def test_shipped_migrations_are_in_order_and_name_the_daemon_they_need():
    available = migrate.load().migrations
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
