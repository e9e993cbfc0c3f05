"""A site that floods the log holds up nobody else, loses nothing of its own, and keeps its order."""

from __future__ import annotations

import asyncio
import collections

import pytest

from pghookd.event_log.reading.refill import ASIDE_FOR_S
from pghookd.scheduling import capacity
from support.crew import living
from support.events import emit

ENDPOINTS, FLOOD = 20, 400
UNSETTLED = (
    "select (select count(*) from webhooks.events where site_id = 'flood') * $1"
    " - (select count(*) from webhooks.attempts where site_id = 'flood' and outcome = 'delivered')"
)

# By how many places an event of an endpoint was started sooner or later than its id says, at most.
DISORDER = """
select max(abs(by_id - by_start)) from (
  select row_number() over (partition by endpoint_id order by event_id) as by_id,
    row_number() over (partition by endpoint_id order by attempted_at, event_id) as by_start
  from webhooks.attempts where site_id = 'flood') places
"""


@pytest.fixture
async def session(database, connect, receiver):
    session = await connect(database)
    await session.execute("insert into webhooks.sites (site_id, name) values ('flood', 'F'), ('other', 'O')")
    await session.execute(
        "insert into webhooks.endpoints (site_id, url) values ('other', $1)", receiver.url("/other")
    )
    await session.execute(
        "insert into webhooks.endpoints (site_id, url) select 'flood', $1 || n from generate_series(1, $2) n",
        receiver.url("/flood/"),
        ENDPOINTS,
    )
    return session


def of(receiver, path):
    return [request for request in receiver.requests if request.path.startswith(path)]


async def settled(session):
    return await session.fetchval(UNSETTLED, ENDPOINTS) == 0


async def test_others_overtake_a_flood_and_it_is_delivered_whole(
    database, session, receiver, until, monkeypatch
):
    monkeypatch.setattr(
        capacity, "STUCK_AFTER_S", 60.0
    )  # on a loaded machine lanes are slow, and parking costs order
    async with living(database, delivery={"concurrency": 32}) as life:
        await emit(session, site="flood")
        await emit(session, 2, site="other")
        await until(lambda: len(of(receiver, "/other")) == 2)
        await emit(session, FLOOD, site="flood")
        others = await emit(session, 50, site="other")
        await until(lambda: len(of(receiver, "/other")) == 52)
        assert len(of(receiver, "/flood")) < ENDPOINTS * FLOOD / 2
        await until(lambda: settled(session), 60)
        await life.stop()
    assert {request.event_id for request in of(receiver, "/other")} >= set(others)
    seen = collections.Counter((request.path, request.event_id) for request in of(receiver, "/flood"))
    assert set(seen.values()) == {1}
    assert len(seen) == ENDPOINTS * (FLOOD + 1)
    assert not await session.fetchval("select count(*) from webhooks.backlog")
    assert await session.fetchval(DISORDER) < 32  # as many as may be in flight together


@pytest.mark.slow
async def test_a_crash_in_the_middle_of_a_flood_loses_nothing(database, session, receiver, until):
    async with living(database, delivery={"concurrency": 32}) as life:
        await emit(session, site="flood")
        await emit(session, 2, site="other")
        await until(lambda: len(of(receiver, "/other")) == 2)
        await emit(session, FLOOD, site="flood")
        await emit(session, 50, site="other")
        await until(lambda: len(of(receiver, "/flood")) > 1500)
        await life.kill()
    before = len(of(receiver, "/flood"))
    assert before < ENDPOINTS * FLOOD
    async with living(database, delivery={"concurrency": 32}) as life:
        await until(lambda: settled(session), 60)
        await life.stop()
    seen = collections.Counter((request.path, request.event_id) for request in of(receiver, "/flood"))
    assert len(seen) == ENDPOINTS * (FLOOD + 1)
    assert sum(seen.values()) - len(seen) <= 512 + 500


async def test_long_waiting_events_are_parked_so_that_the_position_advances(
    database, session, receiver, until
):
    hanging = asyncio.Event()

    async def hang(_request):
        await hanging.wait()
        return 200

    async with living(database, delivery={"timeout_s": 30.0, "grace_s": 31.0}) as life:
        await emit(session, site="flood")
        await emit(session, 2, site="other")
        await until(lambda: len(of(receiver, "/other")) == 2)
        for n in range(1, ENDPOINTS + 1):
            receiver.paths[f"/flood/{n}"] = hang
        await emit(session, FLOOD, site="flood")
        others = await emit(session, 50, site="other")
        await until(lambda: {each.event_id for each in of(receiver, "/other")} >= set(others))
        count = "select count(*) from webhooks.backlog where site_id = 'flood'"
        assert await session.fetchval(count) < ENDPOINTS * FLOOD / 2
        life.clock.ahead_s += ASIDE_FOR_S + 1
        await until(lambda: all_parked(session, count), 60)
        hanging.set()
        await life.kill()


async def all_parked(session, count):
    return await session.fetchval(count) >= ENDPOINTS * FLOOD
