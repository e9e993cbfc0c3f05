"""Events that nobody takes leave a trace: counted while the log is read, written down by day, logged once an hour."""

from __future__ import annotations

import pytest

from pghookd.event_log.reading import unclaimed
from pghookd.event_log.reading.unclaimed import Unclaimed
from pghookd.postgres import client
from pghookd.runtime.upkeep.unclaimed_reports import REMIND_S, UnclaimedReports
from support.crew import Clock, Diary, desk
from support.events import emit


@pytest.fixture
async def session(database):
    session = await client.connect(database, name="tend")
    await session.execute(
        "insert into webhooks.sites (site_id, name) values ('shop-1', 'A'), ('shop-2', 'B'), ('quiet', 'C');"
        " insert into webhooks.endpoints (site_id, url, event_types)"
        " values ('shop-1', 'http://x', '{order_*}'), ('shop-2', 'http://x', '{*}')"
    )
    yield session
    await session.close()


class Reports:
    def __init__(self, session):
        self.session = session
        self.counted = Unclaimed()
        self.diary, self.clock = Diary(), Clock()
        self._reports = UnclaimedReports(session, self.diary.logger, self.clock)

    async def write(self):
        await self._reports.write(self.counted)

    async def rows(self):
        found = await self.session.fetch(
            "select what, name, nearest, events from webhooks.unclaimed order by what, name"
        )
        return [tuple(row) for row in found]


@pytest.fixture
def reports(session):
    return Reports(session)


async def test_events_that_nobody_takes_are_counted(session, database):
    async with desk(database) as it:
        await it.recover()
        await emit(session, 3, site="shop-3")  # of a site that nobody knows
        await emit(session, 2, site="quiet")
        await emit(session, 2, site="shop-1", kind="order_created")
        await emit(session, 4, site="shop-1", kind="produkt_created")
        await emit(session, 5, site="shop-2", kind="produkt_created")
        await it.read()
        counted = it.engine.fan_out.unclaimed
        assert dict(counted.sites) == {"shop-3": 3, "quiet": 2}
        assert dict(counted.types) == {"produkt_created": 4}


async def test_an_event_for_one_endpoint_is_not_unclaimed(session, database):
    endpoint_id = await session.fetchval("select min(endpoint_id) from webhooks.endpoints")
    async with desk(database) as it:
        await it.recover()
        await emit(session, site="shop-1", kind="webhook_test", endpoint_id=endpoint_id)
        await it.read()
        assert not it.engine.fan_out.unclaimed.types
        assert len(it.seen) == 1


async def test_many_sites_without_endpoints_are_counted_once_each(session, database):
    await session.execute(
        "insert into webhooks.sites (site_id, name) select 'n' || n, 'N' from generate_series(1, 350) n"
    )
    await session.execute(
        "insert into webhooks.endpoints (site_id, url) select 'n' || n, 'http://x' from generate_series(1, 350, 2) n"
    )
    async with desk(database) as it:
        await it.recover()
        await emit(session, 2, site=[f"n{n}" for n in range(1, 351)])
        await it.read()
        counted = it.engine.fan_out.unclaimed
        assert dict(counted.sites) == {f"n{n}": 2 for n in range(2, 351, 2)}
        assert not counted.types


async def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(unclaimed, "KEYS_MAX", 3)
    counted = Unclaimed()
    counted.of_sites("abcdabca")
    for kind in "uvwxu":
        counted.of_type(kind)
    assert counted.take() == [
        ("site", "a", 3), ("site", "b", 2), ("site", "c", 2), ("type", "u", 2), ("type", "v", 1), ("type", "w", 1),
    ]  # fmt: skip
    assert counted.take() == []


# Written down -------------------------------------------------------------------------------------------------------


async def test_unknown_names_are_written_with_the_nearest_known_one(reports):
    reports.counted.of_sites(["shop-3", "quiet", "elsewhere"])
    for kind in ("order_creatd", "order_created", "zzz"):
        reports.counted.of_type(kind)
    await reports.write()
    reports.counted.of_sites(["shop-3"])
    await reports.write()
    assert await reports.rows() == [
        ("site", "elsewhere", None, 1),
        ("site", "shop-3", "shop-2", 2),
        ("type", "order_creatd", "order_created", 1),
        ("type", "zzz", None, 1),
    ]


async def test_each_name_is_logged_once_an_hour(reports):
    for _ in range(3):
        reports.counted.of_sites(["shop-3"])
        await reports.write()
    lines = reports.diary.of("event.unclaimed")
    assert [(line["site"], line["nearest"], line["events"]) for line in lines] == [("shop-3", "shop-2", 1)]
    reports.clock.ahead_s += REMIND_S
    reports.counted.of_sites(["shop-3"])
    await reports.write()
    assert len(reports.diary.of("event.unclaimed")) == 2


async def test_rows_of_a_day_are_bounded(session, reports):
    await session.execute(
        "insert into webhooks.unclaimed_events (day, what, name, events)"
        " select current_date, 'type', 't' || n, 1 from generate_series(1, 10000) n"
    )
    for kind in ("t1", "another"):
        reports.counted.of_type(kind)
    await reports.write()
    assert await session.fetchval("select count(*) from webhooks.unclaimed_events") == 10_000
    assert await session.fetchval("select events from webhooks.unclaimed_events where name = 't1'") == 2
