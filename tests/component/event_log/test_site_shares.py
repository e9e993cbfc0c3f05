"""The share of one site in a page, memory and the recorder, so that the reader never waits on its behalf."""

from __future__ import annotations

import asyncio

import pytest

from pghookd.event_log import endpoint_changes
from pghookd.event_log.reading.endpoints import SLICE
from pghookd.event_log.reading.pages import PAGE, PAIRS_A_STEP
from pghookd.postgres.client import query
from pghookd.scheduling.hands import UNWRITTEN_MAX
from support.crew import desk, living
from support.events import Sql, emit

KEYS = Sql("'k' || n")


@pytest.fixture
async def session(database, connect):
    session = await connect(database)
    await session.execute(
        "insert into webhooks.sites (site_id, name, endpoints_max) values ('flood', 'F', null), ('other', 'O', null)"
    )
    await add(session, "other")
    return session


async def add(session, site_id, count=1, *, url="http://127.0.0.1:9/", ordered=False):
    await session.execute(
        "insert into webhooks.endpoints (site_id, url, ordered) select $1, $2 || n, $4 from generate_series(1, $3) n",
        site_id,
        url,
        count,
        ordered,
    )


def nothing_goes_out(it):
    """Keep everything queued, as behind receivers that hang."""
    it.reader._fan_out._kick = lambda: None


def queued_of(it, site_id):
    busy = it.lanes.known.busy()
    return [d.event.event_id for lane in busy if lane.key.site_id == site_id for d in lane.queue]


def spy_on(session):
    """Return the list of (query, arguments, rows) that statements are added to."""
    said, fetch = [], session.fetch

    async def fetch_and_note(sql, *args, **options):
        rows = await fetch(sql, *args, **options)
        said.append((sql, args, rows))
        return rows

    session.fetch = fetch_and_note
    return said


# The reader waits for nobody ------------------------------------------------------------------------------------


@pytest.mark.parametrize("recovering", [False, True], ids=["live", "after a start"])
@pytest.mark.parametrize("ordered", [False, True], ids=["plain", "ordered"])
async def test_a_flood_on_a_quiet_platform_holds_up_nobody(database, session, ordered, recovering):
    await add(session, "flood", ordered=ordered)
    async with desk(database) as it:
        await it.store()
    if recovering:
        await emit(session, 5 * PAGE, site="flood", ordering_key=KEYS)
        others = await emit(session, 1, site="other")
    async with desk(database) as it:
        nothing_goes_out(it)
        async with asyncio.timeout(20):
            if recovering:
                await it.recover_once()
            else:
                await emit(session, 5 * PAGE, site="flood", ordering_key=KEYS)
                others = await emit(session, 1, site="other")
                await it.reader.read()
        assert queued_of(it, "other") == others
        assert it.recorder.unrecorded < UNWRITTEN_MAX
        assert it.reader.refill.deferred.events > PAGE


async def test_a_lane_without_room_holds_up_its_own_site_alone(database, session):
    """Where all slots are taken a full lane is waited for: by its own site."""
    await add(session, "flood", 3)
    await session.execute("update webhooks.endpoints set event_types = '{none}' where url like '%:9/2'")
    async with desk(database) as it:
        nothing_goes_out(it)
        it.lanes._slots.in_flight = 512
        async with asyncio.timeout(20):
            for _ in range(4):
                await emit(session, PAGE, site="flood")
                await it.reader.read()
                for _ in range(20):
                    it.reader.refill._look_at = it.reader.refill._patient_until = 0.0
                    await it.reader.refill.take()
            others = await emit(session, 1, site="other")
            await it.reader.read()
        assert queued_of(it, "other") == others
        it.lanes._slots.in_flight = 0


async def test_a_long_transaction_is_skimmed_up_to_the_first_event_of_others(database, session):
    await add(session, "flood")
    async with desk(database) as it:
        nothing_goes_out(it)
        async with session.transaction():
            flood = await emit(session, 20 * PAGE, site="flood")
            others = await emit(session, 1, site="other")
            flood += await emit(session, 20 * PAGE, site="flood")
        said = spy_on(it.reader._session)
        await it.reader.read()
        assert queued_of(it, "other") == others
        left = [i for part in it.reader.refill.deferred._parts["flood"] for i in part.event_ids]
        assert queued_of(it, "flood") + left == flood
        skims = [rows for sql, _, rows in said if sql == query("skim_events")]
        assert sum(len(row["event_ids"]) for rows in skims for row in rows) > 30 * PAGE
        assert len(said) < 30


# A page and an event are parted ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("recovering", [False, True], ids=["live", "after a start"])
async def test_no_step_makes_more_than_a_few_thousand_deliveries(database, session, recovering):
    await add(session, "flood", 300)
    async with desk(database) as it:
        await it.store()
    if recovering:
        await emit(session, PAGE, site="flood")
    async with desk(database, settling=False) as it:
        made, enter = [], it.reader._fan_out.enter

        async def enter_and_note(work, *args, **options):
            made.append(len(work))
            await enter(work, *args, **options)

        it.reader._fan_out.enter = enter_and_note
        if recovering:
            await it.recover()
        else:
            await emit(session, PAGE, site="flood")
            await it.read()
        assert sum(made) == 300 * PAGE
        assert max(made) < 2 * PAIRS_A_STEP
        it.settle_all()
        assert all(shard.settled.upto is None for shard in it.log.shards.values())


async def test_an_event_with_thousands_of_takers_is_parted(database, session):
    """Its deliveries are never all in memory, and a page is settled only with the last of them."""
    takers = 4 * SLICE + 1
    await add(session, "flood", takers)
    async with desk(database, settling=False) as it:
        nothing_goes_out(it)
        said = spy_on(it.read_session)
        event_id = await emit(session, site="flood")
        others = await emit(session, 1, site="other")
        await it.reader.read()
        assert queued_of(it, "other") == others
        before = {number: shard.settled for number, shard in it.log.shards.items()}
        most = 0
        delivered = []
        while it.reader.refill.is_behind or it.lanes.capacity.queued:
            await it.reader.refill.take()
            most = max(most, it.lanes.capacity.queued)
            it._deliver()
            delivered += [d for d in it.open if d.event.event_id == event_id]
            for delivery in it.open[:]:
                if len(delivered) < takers:
                    it.settle(delivery)
            await asyncio.sleep(0.001)
        assert len({delivery.endpoint_id for delivery in delivered}) == len(delivered) == takers
        assert most <= 2 * SLICE
        assert max(len(rows) for _, _, rows in said) <= SLICE + 1
        (shard,) = [s for n, s in it.log.shards.items() if s.settled == before[n] and s._tickets]
        it.settle_all()
        assert shard.settled != before[shard.shard]


async def test_a_site_with_thousands_of_endpoints_gets_each_event_once(database, session, receiver, until):
    await add(session, "flood", SLICE + 30, url=receiver.url("/"))
    async with living(database):
        await emit(session, 2, site="flood")
        count = "select count(*), count(distinct (event_id, endpoint_id)) from webhooks.attempts"

        async def all_delivered():
            return tuple(await session.fetchrow(count)) == (2 * (SLICE + 30), 2 * (SLICE + 30))

        await until(all_delivered, 60)


# Settled deliveries -----------------------------------------------------------------------------------------------


async def test_recovery_reads_the_settled_deliveries_of_its_own_events_alone(database, session, connect):
    """Between an event that committed late and the next lie others by the thousand, all of them delivered."""
    async with desk(database) as it:
        late = await connect(database)
        await late.execute("begin")
        first = await emit(late, site="other")
        await session.execute(
            """with e as (insert into webhooks.events (site_id, type, payload)
                 select 'flood', 'order_created', '{}' from generate_series(1, 20000) returning event_id)
            insert into webhooks.attempts (event_id, endpoint_id, attempt, attempted_at, duration_ms, outcome, site_id)
            select event_id, 7, 1, now(), 1, 'delivered', 'flood' from e"""
        )
        await it.read()
        await it.store()
    last = await emit(session, site="other")
    await late.execute("commit")
    async with desk(database) as it:
        said = spy_on(it.read_session)
        await it.recover()
        assert [event.event_id for event in it.seen] == [first, last]
        assert max(len(rows) for _, _, rows in said) < 100


# Refills ----------------------------------------------------------------------------------------------------------


async def test_many_sites_in_arrears_are_read_in_whole_chunks(database, session):
    sites, events = 30, 700
    await session.execute(
        "insert into webhooks.sites (site_id, name) select 's' || n, 'S' from generate_series(1, $1) n", sites
    )
    await session.execute(
        "insert into webhooks.endpoints (site_id, url) select site_id, 'http://127.0.0.1:9/' from webhooks.sites"
    )
    async with desk(database) as it:
        said = spy_on(it.read_session)
        await emit(session, events, site=[f"s{n}" for n in range(1, sites + 1)])
        await it.read()
        assert len(it.seen) == sites * events
        chunks = [len(args[0]) for sql, args, _ in said if sql == query("read_events")]
        assert len(chunks) <= sites * events / 300
        for number in range(1, sites + 1):
            ids = [event.event_id for event in it.seen if event.site_id == f"s{number}"]
            assert ids == sorted(ids)


# Busy endpoints ---------------------------------------------------------------------------------------------------


async def test_endpoints_with_work_are_read_again_page_by_page(database, session):
    await add(session, "flood", 3 * endpoint_changes.PAGE)
    async with desk(database) as it:
        nothing_goes_out(it)
        await emit(session, site="flood")
        await it.reader.read()
        while it.reader.refill.is_behind:
            await it.reader.refill.take()
            await asyncio.sleep(0.001)
        said = spy_on(it.read_session)
        it.clock.ahead_s += endpoint_changes.EVERY_S
        for _ in range(4):
            await it.reader._fan_out.attend()
        pages = [args[0] for sql, args, _ in said if sql == query("read_endpoints")]
        assert [len(page) for page in pages] == [endpoint_changes.PAGE] * 3
        assert len({endpoint_id for page in pages for endpoint_id in page}) == 3 * endpoint_changes.PAGE
