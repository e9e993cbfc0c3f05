"""The daemon remembers where it ran. A physical copy of the database, on another machine, sends nothing to anybody."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from pghookd.cli.devtools import embedded_postgres
from pghookd.event_log import former_server, rows
from pghookd.event_log.identity import Answer, Here
from pghookd.model.suspect import Stay
from pghookd.operations import check
from pghookd.postgres.client import query
from pghookd.process import host_id
from pghookd.runtime import adopt
from support import crew, producers
from support.crew import serving
from support.mail_server import Mailbox

HOMES = "select host, server, run is not null as lived_in from webhooks.home order by seen_at"
RESTARTED = "update webhooks.home set started_at = started_at - interval '1 s'"  # as a copy finds it, too
QUEUED = (
    "insert into webhooks.emails (owner_email, kind, window_start, message_id, subject, digest, state, next_attempt_at)"
    " values ('anna@shop.example', 'failing', now(), '<1@x.example>', 'x', '{}', 'queued', now())"
)
WAITING = "select count(*) from webhooks.deliveries where state = 'waiting'"
UNDELIVERED = (
    "select count(*) from webhooks.events e where not exists (select from webhooks.attempts a"
    " where a.event_id = e.event_id and a.outcome = 'delivered')"
)


@pytest.fixture
async def session(database, connect, receiver):
    session = await connect(database)
    await producers.make_sites(session, receiver.url("/"))
    return session


async def deliver(url, session, until, host, count=3):
    """Run there until some events are delivered, and end in order."""
    async with serving(url, host=host) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        await producers.emit(session, count)
        await until(lambda: nothing_left(session))
        assert await daemon.stop() == 0


async def nothing_left(session):
    return await session.fetchval(UNDELIVERED) == 0


async def test_it_remembers_where_it_lives_and_that_it_left_in_order(database, session, until):
    async with serving(database, host="ours") as daemon:
        await daemon.diary.wait_for("daemon.ready", seconds=15.0)
        [home] = await session.fetch(HOMES)
        assert (home["host"], home["lived_in"]) == ("ours", True)
        assert home["server"].endswith(".s.PGSQL.5432") or ":" in home["server"]
        await daemon.stop()
    assert [row["lived_in"] for row in await session.fetch(HOMES)] == [False]


async def test_another_address_alone_is_nothing_to_speak_of(database, session, receiver, until):
    await deliver(database, session, until, "ours")
    await session.execute("update webhooks.home set server = 'db.old:5432'")
    await deliver(database, session, until, "ours")
    assert {row["host"] for row in await session.fetch(HOMES)} == {"ours"}
    assert len(receiver.requests) == 6


@pytest.mark.slow
async def test_another_machine_alone_is_nothing_to_speak_of(
    make_server, connect, receiver, until, unused_tcp_port
):
    server = make_server(tcp_port=unused_tcp_port)  # by a spelling that is not taken for a local one
    url = server.tcp_url().replace("127.0.0.1", "2130706433")
    await crew.migrated(server.url())
    session = await connect(server.url())
    await producers.make_sites(session, receiver.url("/"))
    await deliver(url, session, until, "ours")
    await deliver(url, session, until, "another of ours")
    assert [row["host"] for row in await session.fetch(HOMES)] == ["ours", "another of ours"]
    assert len(receiver.requests) == 6


@pytest.fixture
def copy_of():
    """Return `copy_of(server)`: the same files in another folder, as of a disk that was copied; started."""
    made = []

    def make(server):
        server.stop("fast")
        copy = embedded_postgres.EmbeddedServer(
            Path(tempfile.mkdtemp(prefix="pghookd-test-")), options=server._options
        )
        copy._find_user()
        copy.folder.chmod(0o777)
        shutil.copytree(server.data, copy.data)
        for path in (copy.data, *copy.data.rglob("*")):
            shutil.chown(path, *(copy._user.pw_uid, copy._user.pw_gid) if copy._user else (None, None))
        copy.start()
        server.start()
        made.append(copy)
        return copy

    yield make
    for each in made:
        embedded_postgres.remove(each)


@pytest.mark.slow
async def test_a_copy_of_production_holds_still_until_it_is_adopted(
    own_server, copy_of, connect, receiver, until
):
    url = own_server.url()
    await crew.migrated(url)
    session = await connect(url)
    await producers.make_sites(session, receiver.url("/"))
    await deliver(url, session, until, "production")
    await producers.emit(session, 4)
    await session.execute(QUEUED)
    await session.close()
    copied = copy_of(own_server)
    copy = await connect(copied.url())
    async with Mailbox() as box:
        smtp = {"host": "127.0.0.1", "port": box.port, "tls": "none"}
        async with serving(
            copied.url(), host="laptop", smtp=smtp, mail={"sender": "hooks@x.example"}
        ) as daemon:
            [line] = await daemon.diary.wait_for("database.foreign")
            assert (
                line["reason"] == "neither this machine nor this address of the database has been seen before"
            )
            fresh = await producers.emit(copy, 2)
            await daemon.diary.wait_for("daemon.ready")
            assert not daemon.diary.of("shard.lost")
            assert len(receiver.requests) == 3
            assert not box.mails
            assert await copy.fetchval("select state from webhooks.emails") == "queued"
            found = await adopt.adopt(crew.settings_of(copied.url()), skip_backlog=True, host="laptop")
            assert found["queued"] == 0
            fresh += await producers.emit(copy, 2)
            await until(lambda: len(receiver.requests) >= 5)
    assert sorted(request.event_id for request in receiver.requests[3:]) == fresh[2:]
    assert {row["host"] for row in await copy.fetch(HOMES)} == {"laptop"}


@pytest.mark.slow
async def test_the_original_goes_on_meanwhile(own_server, copy_of, connect, receiver, until):
    url = own_server.url()
    await crew.migrated(url)
    session = await connect(url)
    await producers.make_sites(session, receiver.url("/"))
    await deliver(url, session, until, "production")
    await session.close()
    copied = copy_of(own_server)
    assert "home" in {
        f.what for f in await check.check(crew.settings_of(copied.url())) if f.grade is check.Grade.FAULT
    }
    await deliver(url, await connect(url), until, "production")
    assert len(receiver.requests) == 6


async def test_auto_adopts_a_copy_by_itself(database, session, receiver, until):
    await deliver(database, session, until, "ours")
    await producers.emit(session, 2)
    await session.execute(RESTARTED)
    async with serving(database, host="theirs", database={"adopt": "auto"}) as daemon:
        await daemon.diary.wait_for("log.reanchored")
        await until(lambda: nothing_left(session))
    assert len(receiver.requests) == 5
    assert {row["host"] for row in await session.fetch(HOMES)} == {"theirs"}


# Standbys, pods and names ---------------------------------------------------------------------------------------------


async def test_a_standby_is_known_before_it_ever_owns(database, session, receiver, until):
    async with serving(database, host="owner") as owner:
        await owner.diary.wait_for("shard.taken")
        await until(lambda: session.fetchval("select run from webhooks.home"))
        async with serving(database, host="standby") as standby:
            await until(lambda: session.fetchval("select true from webhooks.home where host = 'standby'"))
            row = await session.fetchrow("select * from webhooks.home where host = 'standby'")
            assert row["run"] is None
            assert row["beside"] == await session.fetchval(
                "select run from webhooks.home where host = 'owner'"
            )
            await owner.kill()
            await session.execute(RESTARTED)
            await producers.emit(session, 3)
            await until(lambda: len(receiver.requests) == 3)
            assert not standby.diary.of("database.foreign")
            assert await session.fetchval("select beside from webhooks.home where host = 'standby'") is None


async def test_a_standby_does_not_enter_beside_a_run_that_was_copied_along(database, session, until, connect):
    await deliver(database, session, until, "production")
    await session.execute(RESTARTED)
    await session.execute("update webhooks.home set run = 'of production'")
    holder = await connect(database, server_settings={"application_name": "pghookd/record"})
    await holder.execute("select pg_advisory_lock(1885825131, 1)")
    async with serving(database, host="laptop") as standby:
        await standby.diary.wait_for("daemon.ready")
        await holder.close()
        await standby.diary.wait_for("database.foreign")
    assert [row["host"] for row in await session.fetch(HOMES)] == ["production"]


async def test_a_pod_with_a_new_name_goes_on_where_the_server_has_not_restarted(
    database, session, receiver, until
):
    await deliver(database, session, until, "pod-1")
    await deliver(database, session, until, "pod-2")
    assert len(receiver.requests) == 6
    await session.execute(RESTARTED)
    async with serving(database, host="pod-3") as daemon:
        [line] = await daemon.diary.wait_for("database.foreign")
    assert line["reason"].startswith("this machine has not been seen before, and a local address")


async def test_a_named_database_is_known_by_its_name_alone(database, session, receiver, until):
    async with serving(database, host="pod-1", database={"home": "shop"}) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        await until(lambda: session.fetchval("select true from webhooks.home where name = 'shop'"))
        await daemon.stop()
    await session.execute(RESTARTED)
    await producers.emit(session, 1)
    async with serving(database, host="pod-2", database={"home": "shop"}):
        await until(lambda: len(receiver.requests) == 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["staging", ""])
async def test_another_name_holds_still_until_it_is_adopted(database, session, receiver, until, name):
    async with serving(database, database={"home": "shop"}) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        await until(lambda: session.fetchval("select true from webhooks.home where name = 'shop'"))
        await daemon.stop()
    async with serving(database, database={"home": name}) as daemon:
        [line] = await daemon.diary.wait_for("database.foreign")
        assert line["reason"].startswith("the stored name of this database is 'shop', and database.home is ")
        await producers.emit(session, 1)
        found = await check.check(crew.settings_of(database, database={"home": name}))
        assert "home" in {each.what for each in found if each.grade is check.Grade.FAULT}
        assert not receiver.requests
        await adopt.adopt(crew.settings_of(database, database={"home": name}), skip_backlog=False)
        await until(lambda: len(receiver.requests) == 1)
    assert await session.fetchval("select distinct name from webhooks.home") == name


async def test_old_places_are_forgotten_and_the_lived_in_stays(database, session):
    await session.execute(
        "insert into webhooks.home (host, server, seen_at) select 'pod-' || n, 'pg:5432', now() - n * interval '1 h'"
        " from generate_series(1, 200) n"
    )
    await session.execute(
        "insert into webhooks.home (host, server, run, seen_at) values ('a', 'b', 'c', '2020-01-01')"
    )
    await session.execute(query("forget_homes"), 64)
    assert await session.fetchval("select count(*) from webhooks.home where host like 'pod-%'") == 64
    assert await session.fetchval("select count(*) from webhooks.home where run = 'c'") == 1
    assert (
        await session.fetchval("select max(substr(host, 5)::int) from webhooks.home where host like 'pod-%'")
        == 64
    )


# The old address ------------------------------------------------------------------------------------------------------


def words(server):
    """Return the options of a server that `pg_ctl` starts without waiting."""
    options = {"listen_addresses": "", "unix_socket_directories": server.sockets, **server._options}
    return " ".join(f"-c {name}='{value}'" for name, value in options.items())


@pytest.fixture
async def moved(own_server, copy_of, connect, receiver, until):
    """Return the URLs of an original, which still runs, and of its copy on the same machine."""
    await crew.migrated(own_server.url())
    session = await connect(own_server.url())
    await producers.make_sites(session, receiver.url("/"))
    await deliver(own_server.url(), session, until, "ours")
    await session.close()
    copied = copy_of(own_server)
    return own_server, copied, await connect(copied.url())


@pytest.mark.slow
async def test_a_copy_beside_the_living_original_holds_still(moved, receiver, until):
    original, copied, copy = moved
    async with serving(copied.url(), host="ours") as daemon:
        [line] = await daemon.diary.wait_for("database.foreign")
        assert line["reason"] == (
            f"the same database still takes events at {original.sockets}/.s.PGSQL.5432: one of the two is a copy"
        )
        await producers.emit(copy, 2)
        await daemon.diary.wait_for("daemon.ready")
        assert len(receiver.requests) == 3
        original.stop()  # for an upgrade, say: it does not inherit
        await daemon.diary.wait_for("database.foreign", count=2)
        assert "which is only silent now" in daemon.diary.of("database.foreign")[1]["reason"]
        assert len(receiver.requests) == 3
    async with serving(copied.url(), host="ours") as daemon:
        await daemon.diary.wait_for("database.foreign")
        await adopt.adopt(crew.settings_of(copied.url()), skip_backlog=False, host="ours")
        await until(lambda: len(receiver.requests) == 5)


async def test_an_original_that_refuses_the_role_is_not_taken_for_gone(moved, receiver):
    original, copied, _ = moved
    (original.data / "pg_hba.conf").write_text("local all all reject\n")
    original.run("pg_ctl", "reload", "-D", original.data)
    async with serving(copied.url(), host="ours") as daemon:
        [line] = await daemon.diary.wait_for("database.foreign")
        assert "answers but does not let this role in: it may be the original" in line["reason"]
    assert len(receiver.requests) == 3


async def test_check_names_the_address_of_the_living_original(moved):
    original, copied, copy = moved
    await copy.execute("update webhooks.home set host = $1", host_id.host_id())
    found = await check.check(crew.settings_of(copied.url()))
    [text] = [each.text for each in found if each.what == "home"]
    assert f"the same database still takes events at {original.sockets}" in text


async def test_a_living_original_is_not_adopted_away_automatically(moved, receiver):
    _, copied, _ = moved
    async with serving(copied.url(), host="ours", database={"adopt": "auto"}) as daemon:
        await daemon.diary.wait_for("database.foreign")
        assert not daemon.diary.of("log.reanchored")
    assert len(receiver.requests) == 3


@pytest.mark.slow
async def test_what_an_old_address_answers_is_understood(moved, until, unused_tcp_port):
    original, copied, _ = moved
    session = await crew.session_on(copied.url())
    ours = rows.server_of(await session.fetchrow(query("identify_server")))
    here = Here("ours", session.address, ours.started_at_us)
    await session.close()

    async def answer(address):
        found = await former_server.ask(copied.url(), here, ours, [Stay("ours", address, None, 0, ())])
        return found[address]

    async def starting(address):
        return await answer(address) is Answer.STARTING

    where = f"{original.sockets}/.s.PGSQL.5432"
    assert await answer(where) is Answer.RIVAL
    with crew.standby_of(original) as standby:
        theirs = f"{standby.sockets}/.s.PGSQL.5432"
        assert await answer(theirs) is Answer.STANDBY
        standby.stop()
        standby._options["hot_standby"] = "off"
        standby.run("pg_ctl", "start", "-W", "-D", standby.data, "-l", standby.log, "-o", words(standby))
        await until(lambda: starting(theirs))
    original.stop()
    for silent in (where, f"127.0.0.1:{unused_tcp_port}", "no-such-host.invalid:5432"):
        assert await answer(silent) is Answer.GONE


async def test_another_database_at_an_old_address_is_not_a_rival(database, moved):
    _, copied, _ = moved
    session = await crew.session_on(copied.url())
    ours = rows.server_of(await session.fetchrow(query("identify_server")))
    other = await crew.session_on(database)
    found = await former_server.ask(
        copied.url(),
        Here("ours", session.address, ours.started_at_us),
        ours,
        [Stay("ours", other.address, None, 0, ())],
    )
    assert found == {other.address: Answer.OTHER}
    await session.close()
    await other.close()


@pytest.mark.slow
async def test_the_same_server_by_another_address_is_not_a_rival(
    make_server, connect, receiver, until, unused_tcp_port
):
    server = make_server(tcp_port=unused_tcp_port)
    await crew.migrated(server.url())
    session = await connect(server.url())
    await producers.make_sites(session, receiver.url("/"))
    await deliver(server.url(), session, until, "ours")
    await session.execute(RESTARTED)
    await deliver(server.tcp_url(), session, until, "ours")
    assert len(receiver.requests) == 6


# The machine ---------------------------------------------------------------------------------------------------------


def test_a_machine_is_known_by_its_id_and_does_not_show_it(tmp_path):
    file = tmp_path / "machine-id"
    file.write_text("0123456789abcdef0123456789abcdef\n")
    assert host_id.host_id([file]) == host_id.host_id([tmp_path / "none", file])
    assert len(host_id.host_id([file])) == 32
    assert "0123456789" not in host_id.host_id([file])


@pytest.mark.parametrize("text", ["", "uninitialized\n", "0" * 32, "abc"])
def test_without_an_id_its_name_counts(tmp_path, text):
    file = tmp_path / "machine-id"
    file.write_text(text)
    assert host_id.host_id([file]) == host_id.host_id([]) != host_id.host_id()


# The clock, and the loop ---------------------------------------------------------------------------------------


async def test_a_wrong_clock_is_logged(database, session):
    async with serving(database, wall_us=lambda: time.time_ns() // 1000 + 3_600_000_000) as daemon:
        [line] = await daemon.diary.wait_for("clock.skewed")
    assert line["skew_s"] == pytest.approx(3600, abs=5)


async def test_a_stalled_loop_is_logged(database, session):
    async with serving(database) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        time.sleep(1.6)  # noqa: ASYNC251 - the test provokes a stall
        [line] = await daemon.diary.wait_for("loop.stalled")
    assert 1.0 <= line["for_s"] < 10


async def test_a_new_machine_that_adopts_by_itself_makes_no_producer_wait(database, session, connect, until):
    """A pod with another name, a local address of the database, and a producer whose transaction stays open."""
    await deliver(database, session, until, "pod-1")
    open_one = await connect(database)
    await open_one.execute("begin")
    await producers.emit(open_one)
    async with serving(database, host="pod-2", database={"adopt": "auto"}) as daemon:
        slowest = 0.0
        while not daemon.diary.of("daemon.ready"):
            began = time.monotonic()
            await producers.emit(session)
            slowest = max(slowest, time.monotonic() - began)
            await asyncio.sleep(0.01)
            assert time.monotonic() - began < 10
        assert slowest < 0.2
        assert [line["status"] for line in daemon.diary.of("daemon.ready")] == ["reading the log, 4 shards"]
        await open_one.execute("commit")
        await until(lambda: nothing_left(session))
