"""Keys of events under strain: floods of one key, waits and crashes, newer events that can never be delivered."""

from __future__ import annotations

import asyncio
import random

import pytest

from pghookd.event_log.supersede import DEDUPE_DAYS
from pghookd.postgres.client import query
from support import crew
from support.crew import desk, living, serving
from support.events import Sql, emit

DAY = 2**32  # ids
FLOOD = 15_000


@pytest.fixture
async def con(database, connect, receiver):
    con = await connect(database)
    await con.execute("insert into webhooks.sites (site_id, name) values ('s', 'S'), ('t', 'T')")
    await con.execute(
        "insert into webhooks.endpoints (site_id, url) values ('s', $1), ('t', $2)",
        receiver.url("/s"),
        receiver.url("/t"),
    )
    return con


def state_of(con, event_id, *wanted):
    """Return a condition: the view's row of an event's delivery."""

    async def holds():
        sql = "select state, reason from webhooks.deliveries where event_id = $1"
        return [tuple(row) for row in await con.fetch(sql, event_id)] == [wanted]

    return holds


# dedupe_key -------------------------------------------------------------------------------------------------------


async def test_a_flood_of_one_key_while_nobody_ran_holds_up_nobody(database, con, receiver, until):
    async with serving(database) as daemon:
        await daemon.diary.wait_for("daemon.ready")
        await daemon.stop()
    await emit(con, FLOOD, dedupe_key="same")
    other = await emit(con, site="t")
    async with serving(database) as daemon:
        await until(state_of(con, other, "delivered", None), 20)

        async def all_found():
            sql = "select count(*) from webhooks.dead where reason = 'duplicate'"
            return await con.fetchval(sql) == FLOOD - 1

        await until(all_found, 30)
        assert not daemon.diary.of("database.lost")
    assert len(receiver.of("/s")) == 1


async def test_a_flood_of_one_key_holds_up_nobody_while_it_is_read(database, con, receiver, until):
    async with living(database):
        for site in "stst":  # so that both have traffic
            await emit(con, site=site)
        await receiver.wait_for(4)
        await emit(con, FLOOD, dedupe_key="same")
        others = [await emit(con, site="t") for _ in range(10)]
        for event_id in others:
            await until(state_of(con, event_id, "delivered", None), 20)

        async def all_found():
            sql = "select count(*) from webhooks.dead where reason = 'duplicate'"
            return await con.fetchval(sql) == FLOOD - 1

        await until(all_found, 30)
    assert len(receiver.of("/s")) == 3


async def test_a_key_is_looked_up_once_for_all_pages_of_a_difference(database, con):
    await emit(con, 5_000, dedupe_key="same")
    async with desk(database) as it:
        looks = []
        fetch = it.read_session.fetch

        async def counted(sql, *args, **kwargs):
            looks.append(sql in {query("find_firsts"), query("find_firsts_again")})
            return await fetch(sql, *args, **kwargs)

        it.read_session.fetch = counted
        recording = asyncio.create_task(it.recorder.run())
        await it.recover()
        recording.cancel()
    assert sum(looks) == 1
    assert len(it.seen) == 1


async def test_a_duplicate_stays_one_through_a_checkpoint_and_a_crash(database, con, receiver, until):
    """The page waits for room for long: the slots are taken, and memory is full."""
    gate = asyncio.Event()

    async def slow(_request):
        await gate.wait()
        return 200

    receiver.paths["/s"] = receiver.paths["/u"] = slow
    await con.execute("insert into webhooks.sites (site_id, name) values ('u', 'U')")
    await con.execute("insert into webhooks.endpoints (site_id, url) values ('u', $1)", receiver.url("/u"))
    clock = crew.Clock()
    scarce = {"concurrency": 2, "queue_bytes_max": 20_000}
    async with living(database, clock=clock, delivery=scarce) as life:
        async with con.transaction():
            await emit(con, site="u")
            for _ in range(14):
                await emit(con, payload=f'"{"x" * 10_000}"')
            first, second = [await emit(con, site="t", dedupe_key="k") for _ in range(2)]
        await receiver.wait_for(2)
        await until(state_of(con, second, "dead", "duplicate"))
        clock.ahead_s += 11
        await until(state_of(con, first, "waiting", "queued"))
        assert not receiver.of("/t")
        await life.kill()
    gate.set()
    async with living(database):
        last = await emit(con, site="t")
        await until(state_of(con, first, "delivered", None))
        await until(state_of(con, last, "delivered", None))
    assert {request.event_id for request in receiver.of("/t")} == {first, last}


async def test_the_first_of_a_key_counts_although_it_dies(database, con, receiver, until):
    expired = await emit(con, dedupe_key="k", deliver_before=Sql("now() - '1 s'::interval"))
    second = await emit(con, dedupe_key="k")
    async with living(database):
        await until(state_of(con, expired, "dead", "expired"))
        await until(state_of(con, second, "dead", "duplicate"))
        third = await emit(con, dedupe_key="k")
        await until(state_of(con, third, "dead", "duplicate"))
    assert not receiver.requests


@pytest.mark.parametrize("live", [False, True])
async def test_a_key_counts_for_a_week(database, con, live):
    today = await con.fetchval("select webhooks.day_of()")
    for ago in (DEDUPE_DAYS, DEDUPE_DAYS + 1):
        await con.execute("select webhooks.attach_day($1)", today - ago)

    async def fill():
        async with con.transaction():
            for key, ago in (("near", DEDUPE_DAYS), ("far", DEDUPE_DAYS + 1)):
                await con.execute(
                    "insert into webhooks.events (event_id, site_id, type, payload, dedupe_key)"
                    " overriding system value values ($1, 's', 'a', '{}', $2)",
                    (today - ago) * DAY + 1,
                    key,
                )
            return [await emit(con, dedupe_key=key) for key in ("near", "far")]

    await con.execute("update webhooks.endpoints set from_event_id = 0")
    near, far = (0, 0) if live else await fill()
    async with desk(database) as it:
        await it.recover()
        if live:
            near, far = await fill()
            await it.read()
        seen = {event.event_id for event in it.seen}
    assert (near in seen, far in seen, len(seen)) == (False, True, 3)


async def test_keys_that_differ_only_at_their_ends_are_different_keys(database, con):
    keys = ["k" * 499 + end for end in "abc"] + ["\\", "\\\\", "x\\134", "ä" * 500]
    events = [await emit(con, dedupe_key=key) for key in keys for _ in range(2)]
    async with desk(database) as it:
        await it.recover()
        assert [event.event_id for event in it.seen] == events[::2]


# supersede_key ----------------------------------------------------------------------------------------------------

NEVER = {
    "too large": {"payload": f'"{"x" * 3000}"'},
    "too large to travel": {"payload": f'"{"x" * 30_000}"'},
    "expired": {"deliver_before": Sql("now() - '1 s'::interval")},
    "invalid": {"kind": "order updated"},
    "scheduled": {"deliver_after": Sql("now() + '1 day'::interval")},
}
LIMITS = {"delivery": {"payload_bytes_max": 2000}, "retry": {"schedule": (0.5,)}}


@pytest.mark.parametrize("never", NEVER.values(), ids=NEVER)
async def test_a_newer_event_that_cannot_go_replaces_none_of_its_page(database, con, receiver, until, never):
    async with con.transaction():
        older = await emit(con, supersede_key="k")
        newer = await emit(con, supersede_key="k", **never)
    async with living(database, **LIMITS):
        await until(state_of(con, older, "delivered", None))
    assert newer not in {request.event_id for request in receiver.requests}


@pytest.mark.parametrize("never", NEVER.values(), ids=NEVER)
async def test_a_newer_event_that_cannot_go_replaces_no_retry(database, con, receiver, until, never):
    receiver.script = lambda request: 500 if request.attempt == 1 else 200
    async with living(database, **LIMITS):
        older = await emit(con, supersede_key="k")
        await until(state_of(con, older, "waiting", "retry"))
        newer = await emit(con, supersede_key="k", **never)
        if "deliver_after" in never:
            await until(state_of(con, newer, "waiting", "deliver_after"))
            await con.execute("select webhooks.cancel($1)", newer)
        await until(state_of(con, older, "delivered", None))
    assert {request.event_id for request in receiver.requests} == {older}


@pytest.mark.slow
async def test_a_scheduled_event_replaces_older_ones_when_its_time_has_come(database, con, receiver, until):
    receiver.script = lambda request: 500 if request.event_id == older else 200
    async with living(database, retry={"schedule": (0.8,) * 9}, breaker={"share": 0}):
        older = await emit(con, supersede_key="k")
        await until(state_of(con, older, "waiting", "retry"))
        newer = await emit(con, supersede_key="k", deliver_after=Sql("now() + '1.5 s'::interval"))
        await until(state_of(con, newer, "delivered", None))
        await until(state_of(con, older, "dead", "superseded"))
    assert len([each for each in receiver.requests if each.event_id == older]) >= 2


DEATHS = {
    "exhausted": True, "too_old": True, "aborted": True,
    "expired": False, "too_large": False, "blocked": False, "invalid": False, "no_endpoint": False,
    "superseded": False, "duplicate": False, "dropped": False, "cancelled": False,
}  # fmt: skip


async def replaced_by(con, *older):
    """Return the result of find_superseded for the events of site s with the key k after each of these."""
    found = await con.fetch(
        query("find_superseded"), [1] * len(older), ["s"] * len(older), ["k"] * len(older), list(older),
        min(older), 100, 10_000_000, DEDUPE_DAYS,
    )  # fmt: skip
    return [row["newest_event_id"] for row in found]


@pytest.mark.parametrize("reason", DEATHS)
async def test_a_dead_event_replaces_only_if_its_attempts_were_used_up(con, reason):
    older, newer = [await emit(con, supersede_key="k") for _ in range(2)]
    assert await replaced_by(con, older) == [newer]
    await con.execute(
        "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts) values ($1, 1, 's', $2, 0)",
        newer,
        reason,
    )
    assert await replaced_by(con, older) == ([newer] if DEATHS[reason] else [])


async def test_a_delivered_event_replaces_although_its_end_has_passed(con):
    older = await emit(con, supersede_key="k")
    newer = await emit(con, supersede_key="k", deliver_before=Sql("now()"))
    assert await replaced_by(con, older) == []
    await con.execute(
        "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome, site_id)"
        " values ($1, 1, now(), 1, 1, 'delivered', 's')",
        newer,
    )
    assert await replaced_by(con, older) == [newer]


async def test_the_first_of_a_dedupe_key_replaces_once_it_is_known_to_be(con):
    older = await emit(con, supersede_key="k")
    first, _ = [await emit(con, supersede_key="k", dedupe_key="d") for _ in range(2)]
    assert await replaced_by(con, older) == []
    await con.execute(
        "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason)"
        " values ($1, 1, 's', 'parked', 'lane_full')",
        first,
    )
    assert await replaced_by(con, older) == [first]


# Keys that no index may refuse, and types -------------------------------------------------------------------------


async def test_the_longest_keys_and_site_are_taken(con):
    rnd = random.Random(7)

    def text(length):
        return "".join(chr(rnd.randrange(0x10000, 0x10FFFF)) for _ in range(length))

    site = text(200)
    await con.execute("insert into webhooks.sites (site_id, name) values ($1, 'S')", site)
    names = ("subject", "ordering_key", "dedupe_key", "supersede_key")
    await emit(con, site=site, **{name: text(500) for name in names})


async def test_an_invalid_type_is_dead_at_once_whatever_it_asks_for(database, con, until):
    later = await emit(con, kind="no type", deliver_after=Sql("now() + '1 hour'::interval"))
    await con.execute("update webhooks.endpoints set enabled = false where site_id = 't'")
    held = await emit(con, site="t", kind="no type")
    adopted = await emit(con, kind="no\ttype")
    await con.execute(
        "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, next_attempt_at)"
        " values ($1, 1, 's', 'waiting', 'adopted', now())",
        adopted,
    )
    async with living(database):
        for event_id in (later, held, adopted):
            await until(state_of(con, event_id, "dead", "invalid"))
    assert not await con.fetchval("select count(*) from webhooks.attempts")
