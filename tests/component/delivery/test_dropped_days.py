"""A day is dropped, or rows are forbidden: unrecordable deliveries are never sent again, and no other site notices."""

from __future__ import annotations

import asyncio

import pytest

from pghookd.model.delivery import Delivery, Event, Outcome
from pghookd.model.outcome import AttemptWrite
from pghookd.model.verdict import Retry
from support import crew
from support.crew import desk, living
from support.events import emit

ALL = ("events", "attempts", "dead")


@pytest.fixture
async def con(database, connect, receiver):
    con = await connect(database)
    for site in "ab":
        await con.execute("insert into webhooks.sites (site_id, name) values ($1, $1)", site)
        await con.execute(
            "insert into webhooks.endpoints (site_id, url) values ($1, $2)", site, receiver.url(f"/{site}")
        )
    return con


async def next_day(con, life):
    """Draw ids from the next day's partitions, once the daemon has made them; return the day that is over."""
    day = await con.fetchval("select webhooks.day_of()")
    async with asyncio.timeout(10.0):
        while not await con.fetchval("select webhooks.enter_day($1)", day + 1):
            assert not life.ended
            await asyncio.sleep(0.01)
    return day


async def drop(con, day, tables):
    for table in tables:
        await con.execute(f"alter table webhooks.{table} detach partition webhooks.{table}_{day}")
        await con.execute(f"drop table webhooks.{table}_{day}")


async def goes_on(con, receiver, until, count=5):
    """Deliver and record events of the other site."""
    for _ in range(count):
        event = await emit(con, site="b")
        await until(lambda event=event: _recorded(con, event))
    assert len({request.event_id for request in receiver.of("/b")}) == len(receiver.of("/b"))


async def _recorded(con, event):
    return await con.fetchval("select count(*) from webhooks.attempts where event_id = $1", event)


async def _backlog(con, state=None):
    return await con.fetchval(
        "select count(*) from webhooks.backlog where $1::text is null or state = $1", state
    )


@pytest.mark.parametrize("tables", [ALL, ("attempts",), ("dead",)], ids=", ".join)
async def test_a_held_delivery_of_a_dropped_day_is_never_sent(tables, database, con, receiver, until):
    await con.execute("update webhooks.endpoints set enabled = false where site_id = 'a'")
    async with living(database) as life:
        await emit(con, site="a")
        await until(lambda: _backlog(con, "held"))
        day = await next_day(con, life)
        await drop(con, day, tables)
        await con.execute("update webhooks.endpoints set enabled = true where site_id = 'a'")
        [line] = await life.diary.wait_for("day.gone")
        assert line["day"] == day
        await until(lambda: _is_empty(con))
        await goes_on(con, receiver, until)
        assert not life.ended
    assert receiver.of("/a") == []


async def _is_empty(con):
    return not await _backlog(con)


async def test_an_attempt_of_a_day_dropped_meanwhile_is_logged_and_forgotten(
    database, con, connect, receiver, until
):
    """The request is in flight when the partition goes; its retry has a row, and so has another endpoint's outcome."""
    answers = [500, 500]
    gate = asyncio.Event()

    async def slow(_request):
        if len(answers) == 1:
            await gate.wait()
        return answers.pop(0) if answers else 200

    receiver.paths["/a"] = slow
    retry = {"schedule": (0.05, 0.05, 0.05), "jitter": 0.0, "throttle_floor_s": 0}
    async with living(database, retry=retry) as life:
        event = await emit(con, site="a")
        await until(lambda: len(receiver.of("/a")) == 2)
        day = await next_day(con, life)
        await drop(con, day, ("attempts",))
        gate.set()
        [line] = await life.diary.wait_for("day.gone")
        assert (line["day"], line["table"]) == (day, "attempts")
        await until(lambda: _is_empty(con))
        await goes_on(con, receiver, until)
        assert not life.ended
    assert len(receiver.of("/a")) == 2
    assert not await con.fetchval("select count(*) from webhooks.dead where event_id = $1", event)


async def test_one_batch_with_a_dropped_day_records_the_others(database, con):
    gone = 5 * 2**32 + 1
    event = await emit(con, site="b")
    async with desk(database) as it:
        for number in (gone, event, gone + 1):
            delivery = Delivery(Event(number, "b", "order_created", 0, b"{}"), 2, 0, 0.0)
            write = AttemptWrite(delivery, Outcome.REFUSED, 500, None, None, 1, 1.0, Retry(5.0), 1)
            it.recorder.put(write, it.clock())
        await it.recorder._flush(500)
        assert it.recorder.waiting == 0
    assert await con.fetch("select event_id from webhooks.attempts") == [(event,)]
    assert await con.fetch("select event_id from webhooks.backlog") == [(event,)]


FORBIDDEN = {
    "a constraint": "alter table webhooks.attempts add constraint not_a check (site_id <> 'a') not valid",
    "a trigger": "create function refuse() returns trigger language plpgsql as"
    " $$ begin if new.site_id = 'a' then raise exception 'no a'; end if; return new; end $$;"
    " create trigger refuse before insert on webhooks.attempts for each row execute function refuse()",
}
ALLOWED = {
    "a constraint": "alter table webhooks.attempts drop constraint not_a",
    "a trigger": "drop trigger refuse on webhooks.attempts",
}


@pytest.mark.parametrize("name", FORBIDDEN)
async def test_a_row_that_postgres_rejects_stops_only_its_endpoint(name, database, con, receiver, until):
    clock = crew.Clock()
    async with living(database, clock=clock) as life:
        await goes_on(con, receiver, until, 1)
        await con.execute(FORBIDDEN[name])
        event = await emit(con, site="a")
        [line] = await life.diary.wait_for("outcome.refused")
        assert line["event_id"] == event
        sent = len(receiver.of("/a"))
        later = await emit(con, site="a")
        await goes_on(con, receiver, until)
        clock.ahead_s += 5.5
        await goes_on(con, receiver, until)
        assert not life.ended
        assert len(receiver.of("/a")) == sent == 1
        await con.execute(ALLOWED[name])
        clock.ahead_s += 61.0
        await until(lambda: _recorded(con, event))
        clock.ahead_s += 91.0
        await until(lambda: _recorded(con, later))
        assert not life.ended
    assert len(receiver.of("/a")) == 2
