"""`storage` and `archive` as an operator types them, on days that retention has kept, dropped and archived."""

from __future__ import annotations

import functools

import pytest

from pghookd.postgres import client
from pghookd.runtime.upkeep.retention import Policy, Retention
from support.command import command
from support.crew import Diary
from support.events import emit

DAY = 2**32


@pytest.fixture
def pghookd(database):
    """Return `await pghookd(*words)`: a command on the test's database."""
    return functools.partial(command, url=database)


@pytest.fixture
async def today(db):
    await db.execute("insert into webhooks.sites (site_id, name) values ('s', 'A shop')")
    await emit(db, 100)
    await db.execute("analyze webhooks.events")
    return await db.fetchval("select webhooks.day_of()")


@pytest.fixture
async def archived(database, db, today):
    """Return the date of a day that was moved to the archive: tomorrow, so that today stays as it is."""
    await db.execute("insert into webhooks.shards (shard, floor) values (0, 9e15)")
    await db.execute("delete from webhooks.partitions where day <> $1", today + 1)
    session = await client.connect(database, name="tend")
    await session.execute("update webhooks.partitions set leaving_at = now()")
    await Retention(session, Diary().logger, monotonic=lambda: 0.0).step(
        Policy(days=0, action="detach"), today
    )
    await session.close()
    return str(await db.fetchval("select date '2020-01-01' + $1::int", today + 1))


async def test_storage_lists_each_day_until_today(pghookd, db, today):
    done = await pghookd("storage", "--size", "1TB", "--json")
    assert done.status == 0
    (day,) = done.told["days"]
    assert day["date"] == str(await db.fetchval("select current_date"))
    assert day["events"] == 100
    assert 8192 <= day["event_bytes"] < done.told["database_bytes"]
    assert day["kept_by"] == []
    assert day["leaves_on"] == str(await db.fetchval("select current_date + 91"))
    assert (done.told["limit_bytes"], done.told["full_on"]) == (10**12, None)


async def test_storage_foresees_when_a_size_is_reached(pghookd, today):
    done = await pghookd("storage", "--size", "20MB", PGHOOKD_RETENTION_DAYS="0")
    assert "kept for ever" in done.out
    assert "it reaches 20.0 MB on 20" in done.out
    done = await pghookd("storage", "--size", "1 parsec")
    assert done.status == 2
    assert "is not a size such as 500GB" in done.err


async def test_storage_says_why_an_old_day_is_kept(pghookd, db, today):
    await db.execute("insert into webhooks.shards (shard, floor) values (0, 0)")
    await db.execute("select webhooks.attach_day($1), webhooks.note_day($1)", today - 100)
    done = await pghookd("storage")
    assert "kept: unread" in done.out


async def test_the_archive_is_listed_and_dropped(pghookd, db, archived):
    done = await pghookd("archive", "list", "--json")
    assert [day["date"] for day in done.told["days"]] == [archived]
    assert archived in (await pghookd("archive", "list")).out
    done = await pghookd("archive", "drop", archived)
    assert (done.status, done.out) == (0, f"dropped {archived}\n")
    assert (await pghookd("archive", "list")).out == "the archive is empty\n"
    acts = [row["what"] for row in await db.fetch("select what from webhooks.operations order by at")]
    assert acts == ["day_archived", "archive_dropped"]


async def test_a_day_outside_the_archive_is_not_dropped(pghookd, archived, db):
    done = await pghookd("archive", "drop", "2020-01-05")
    assert (done.status, done.err) == (1, "2020-01-05 is not in the archive\n")
    assert (await pghookd("archive", "drop", "yesterday")).status == 2
