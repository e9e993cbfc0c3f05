"""Endpoints read for the events of a snapshot: none is missed, and none is read or made more often than need be."""

from __future__ import annotations

import pytest

from pghookd.event_log.reading import endpoints
from pghookd.event_log.reading.endpoints import FRESH_FOR_S, SLICE, Endpoints
from pghookd.event_log.reading.takers import WHOLE, Span


class Clock:
    """Does not move."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
async def session(database, connect):
    session = await connect(database)
    await session.execute(
        "insert into webhooks.sites (site_id, name, endpoints_max)"
        " select 's' || n, 'S', null from generate_series(0, 4) n"
    )
    return session


async def add(session, site_id, url="https://shop.example/hook", count=1):
    await session.execute(
        "insert into webhooks.endpoints (site_id, url) select $1, $2 from generate_series(1, $3)",
        site_id,
        url,
        count,
    )


class Noting:
    """A session that records its queries."""

    def __init__(self, session):
        self._session = session
        self.reads = []  # the sites of each statement, in turn
        self.answered = lambda: None  # called before an answer is given

    async def fetch(self, sql, sites, *args):
        """Ask, and note the sites."""
        self.reads.append(sites)
        rows = await self._session.fetch(sql, sites, *args)
        self.answered()
        return rows


@pytest.fixture
def noting(session):
    return Noting(session)


@pytest.fixture
def reads(noting):
    return noting.reads


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def found(noting, clock):
    return Endpoints(noting, shards=4, monotonic=clock)


async def of(found, *site_ids):
    return await found.of_sites(dict.fromkeys(site_ids, WHOLE))


def urls(takers):
    return {site_id: [each.url for each in of_site.endpoints] for site_id, of_site in takers.items()}


async def test_one_that_was_made_before_a_snapshot_is_seen(session, found):
    assert await of(found, "s0") == {}
    await add(session, "s0", "https://shop.example/1")
    found.ask_again()
    assert urls(await of(found, "s0", "s1")) == {"s0": ["https://shop.example/1"]}
    await add(session, "s0", "https://shop.example/2")
    found.ask_again()
    assert urls(await of(found, "s0")) == {"s0": ["https://shop.example/1", "https://shop.example/2"]}
    await session.execute("delete from webhooks.endpoints")
    found.ask_again()
    assert await of(found, "s0") == {}


async def test_a_site_is_read_once_for_one_snapshot(session, found, reads):
    await add(session, "s0")
    await add(session, "s1")
    await of(found, "s0")
    await of(found, "s0", "s1")
    await of(found, "s0", "s1")
    assert reads == [["s0"], ["s1"]]
    found.ask_again()
    await of(found, "s0")
    assert reads[2:] == [["s0"]]


async def test_nothing_stays_fresh_for_long(session, found, reads, clock):
    await add(session, "s0")
    await of(found, "s0")
    clock.now += FRESH_FOR_S
    await of(found, "s0")
    assert len(reads) == 2


async def test_of_rows_that_are_the_same_nothing_is_made_again(session, found):
    await add(session, "s0")
    before = (await of(found, "s0"))["s0"]
    found.ask_again()
    assert (await of(found, "s0"))["s0"] is before
    await session.execute("update webhooks.endpoints set event_types = '{order_*}'")
    found.ask_again()
    after = (await of(found, "s0"))["s0"]
    assert after is not before
    assert after.of("form_submitted") == []


async def test_a_change_while_the_statement_runs_asks_again(session, found, noting):
    await add(session, "s0")
    noting.answered = found.ask_again
    await of(found, "s0")
    noting.answered = lambda: None
    await of(found, "s0")
    assert noting.reads == [["s0"], ["s0"]]


async def test_a_site_with_very_many_comes_in_slices_and_is_not_remembered(session, found, reads):
    await add(session, "s0", count=SLICE + 1)
    first = (await of(found, "s0"))["s0"]
    assert len(first.endpoints) == SLICE
    rest = (await found.of_sites({"s0": Span(first.slice_end)}))["s0"]
    assert len(rest.endpoints) == 1
    assert rest.slice_end is None
    again = (await found.of_sites({"s0": Span(0, first.slice_end)}))["s0"]
    assert [e.endpoint_id for e in again.endpoints] == [e.endpoint_id for e in first.endpoints]
    await of(found, "s0")
    assert len(reads) == 4


async def test_only_so_many_are_remembered(session, found, reads, monkeypatch):
    monkeypatch.setattr(endpoints, "KNOWN_MAX", 5)
    for number in range(5):
        await add(session, f"s{number}", count=2)
        await of(found, f"s{number}")
    reads.clear()
    await of(found, "s0", "s1", "s2", "s3", "s4")
    assert reads == [["s0", "s1", "s2"]]
