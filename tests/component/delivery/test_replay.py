"""Replays: which deliveries they are, at what rate they go, and that a dry run counts what a run delivers."""

from __future__ import annotations

from collections import Counter

import asyncpg
import pytest

from pghookd.delivery.replays import Replays
from pghookd.postgres import client
from pghookd.runtime.sessions import PLANS
from pghookd.scheduling.lane import LaneTerms
from pghookd.scheduling.lanes import Lanes
from support.crew import Diary, living
from support.events import Sql, emit

DAY = 2**32  # ids
REPLAY = "select replay_id, deliveries from webhooks.replay({}, dry_run => {})"
PROGRESS = "select state, done, total from webhooks.replays order by replay_id"


@pytest.fixture
async def con(database, connect, receiver):
    """Return a connection; sites a and b with an endpoint each, 1 and 2, at the receiver's paths /a and /b."""
    con = await connect(database)
    for site in ("a", "b"):
        await con.execute("insert into webhooks.sites (site_id, name) values ($1, $1)", site)
        await endpoint(con, receiver, site, f"/{site}")
    return con


async def endpoint(con, receiver, site, path, types=("*",)):
    return await con.fetchval(
        "insert into webhooks.endpoints (site_id, url, event_types) values ($1, $2, $3) returning endpoint_id",
        site,
        receiver.url(path),
        list(types),
    )


async def insert(con, count=1, site="a", kind="order_created", only=-1):
    """Insert events; `only` an endpoint that does not exist keeps the daemon from delivering them by itself."""
    ids = await emit(con, count, site=site, kind=kind, payload=Sql("to_json(n)"), endpoint_id=only)
    await con.execute("update webhooks.events set endpoint_id = null where event_id = any ($1)", ids)
    return ids


async def kill_off(con, ids, number=1, site="a", reason="exhausted", attempts=10):
    await con.execute(
        "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)"
        " select i, $2, $3, $4, $5 from unnest($1::bigint[]) i",
        ids, number, site, reason, attempts,
    )  # fmt: skip


async def attempt(con, ids, number=1, site="a", n=1, outcome="delivered"):
    await con.execute(
        "insert into webhooks.attempts"
        " (event_id, endpoint_id, attempted_at, duration_ms, attempt, status, outcome, site_id)"
        " select i, $2, now(), 1, $4, 200, $5, $3 from unnest($1::bigint[]) i",
        ids, number, site, n, outcome,
    )  # fmt: skip


async def dry(con, what, *args):
    row = await con.fetchrow(REPLAY.format(what, "true"), *args)
    assert row["replay_id"] is None
    return row["deliveries"]


async def go(con, what, *args):
    return (await con.fetchrow(REPLAY.format(what, "false"), *args))["replay_id"]


def ended(con, state="done"):
    """Return a condition: all replays have ended so, and nothing is in flight any more."""

    async def holds():
        states = {row["state"] for row in await con.fetch(PROGRESS)}
        return states == {state} and not await con.fetchval("select count(*) from webhooks.backlog")

    return holds


# Which deliveries -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "fault", "words"),
    [
        ("null", asyncpg.InvalidParameterValueError, "event_ids, endpoint_id, site_id, types, since or until"),
        ("site_id => 'a', states => '{lost}'", asyncpg.InvalidParameterValueError, "delivered, missed, not lost"),
        ("site_id => 'a', states => '{}'", asyncpg.InvalidParameterValueError, "dead, delivered, missed"),
        ("site_id => 'a', rate_per_s => 1001", asyncpg.InvalidParameterValueError, "at most 1000"),
        ("site_id => 'a', rate_per_s => 0", asyncpg.InvalidParameterValueError, "more than 0"),
        ("site_id => 'a', rate_per_s => 'NaN'", asyncpg.InvalidParameterValueError, "at most 1000"),
        ("endpoint_id => 99", asyncpg.NoDataFoundError, "no endpoint 99"),
    ],
)  # fmt: skip
async def test_nonsense_is_refused_in_words(con, what, fault, words):
    with pytest.raises(fault, match=words):
        await dry(con, what)


async def test_each_condition_narrows_it(con):
    a, b = await insert(con, 5), await insert(con, 3, "b", "form_submitted")
    await kill_off(con, a)
    await kill_off(con, b, 2, "b")
    await con.execute(
        "update webhooks.events set created_at = now() - '3 hours'::interval where event_id = any ($1)", a[:2]
    )
    assert await dry(con, "since => '-infinity'") == 8
    assert await dry(con, "event_ids => $1", [a[0], b[0], 77]) == 2
    assert await dry(con, "event_ids => '{}'") == 0
    assert await dry(con, "endpoint_id => 2") == 3
    assert await dry(con, "endpoint_id => 2, site_id => 'a'") == 0
    assert await dry(con, "site_id => 'a'") == 5
    assert await dry(con, "types => '{form_submitted,x}'") == 3
    assert await dry(con, "until => now() - '1 hour'::interval") == 2
    assert await dry(con, "since => now() - '1 hour'::interval") == 6
    assert (
        await dry(
            con, "since => now() - '4 hours'::interval, until => now() - '1 hour'::interval, site_id => 'b'"
        )
        == 0
    )
    await con.execute("update webhooks.endpoints set enabled = false where endpoint_id = 2")
    assert await dry(con, "since => '-infinity'") == 5


async def test_states_are_those_of_the_deliveries_view(con):
    """Backlog before dead before delivered; a missed event has no row at all."""
    dead, delivered, twice, waiting, missed = [(await insert(con))[0] for _ in range(5)]
    await attempt(con, [dead, waiting], outcome="refused")
    await attempt(con, [delivered, twice, waiting], n=2)
    await kill_off(con, [dead, twice])
    await con.execute(
        "insert into webhooks.backlog values ($1, 1, 'a', 'waiting', 'retry', 1, now())", waiting
    )
    await con.execute("update webhooks.endpoints set from_event_id = $1", missed)
    views = {row["event_id"]: row["state"] for row in await con.fetch("select * from webhooks.deliveries")}
    assert views == {dead: "dead", delivered: "delivered", twice: "dead", waiting: "waiting"}
    for states, count in (
        ("dead", 2),
        ("delivered", 1),
        ("missed", 1),
        ("dead,delivered", 3),
        ("missed,delivered,dead", 4),
    ):
        assert await dry(con, f"site_id => 'a', states => '{{{states}}}'") == count, states
    assert await dry(con, "event_ids => $1, states => '{missed}'", [dead, waiting, missed]) == 1


@pytest.mark.parametrize("reason", ["cancelled", "superseded", "duplicate", "dropped"])
async def test_what_nobody_lost_is_left_unless_it_is_named(con, reason):
    ids = await insert(con, 2)
    await kill_off(con, ids[:1], reason=reason)
    await kill_off(con, ids[1:])
    for states in ("{dead}", "{dead,delivered}"):
        assert (
            await dry(
                con,
                "site_id => 'a', states => $1",
                [states[1:-1]] if "," not in states else ["dead", "delivered"],
            )
            == 1
        )
        assert await dry(con, "event_ids => $1", ids) == 2


async def test_a_younger_endpoint_missed_what_it_takes_but_not_what_is_in_flight(con, receiver):
    await insert(con, 4)
    await insert(con, 2, kind="product_created")
    await insert(con, 3, "b")
    mine = await insert(con, 1, only=1)
    await con.execute("update webhooks.events set endpoint_id = 1 where event_id = any ($1)", mine)
    number = await endpoint(con, receiver, "a", "/new", ["order_created"])
    await insert(con, 5)  # the daemon may have them in its hands
    assert await dry(con, "endpoint_id => $1, states => '{missed}'", number) == 4
    await con.execute(
        "insert into webhooks.shards (shard, floor) select 0, max(event_id) from webhooks.events"
    )
    assert await dry(con, "endpoint_id => $1, states => '{missed}'", number) == 9


async def test_a_day_that_the_sequence_entered_late_is_searched_from_its_events(con):
    """The daemon was down over midnight: today's first events have yesterday's ids."""
    today = await con.fetchval("select webhooks.day_of()")
    await con.execute("select webhooks.attach_day($1)", today - 1)
    await con.execute(
        "insert into webhooks.events (event_id, site_id, type, payload, created_at) overriding system value"
        " select $1::bigint + n, 'a', 'x', '1', now() - case n when 0 then '1 day 3 hours' else '3 hours' end::interval"
        " from generate_series(0, 4) n",
        (today - 1) * DAY,
    )
    ids = [row[0] for row in await con.fetch("select event_id from webhooks.events")] + await insert(con)
    await kill_off(con, ids)
    assert await dry(con, "since => now() - '4 hours'::interval") == 5
    assert (
        await con.fetchval("select webhooks.first_event_id(now() - '4 hours'::interval)") == (today - 1) * DAY
    )


async def test_an_administrator_may_and_the_operation_is_recorded(con):
    ids = await insert(con, 3)
    await kill_off(con, ids)
    number = await go(con, "site_id => 'a', rate_per_s => 7")
    for act in ("pause", "resume", "cancel"):
        await con.execute(f"select webhooks.{act}_replay($1)", number)
    rows = await con.fetch("select what, detail::text from webhooks.operations order by at, what")
    assert Counter(row["what"] for row in rows) == Counter(
        ("replay", "pause_replay", "resume_replay", "cancel_replay")
    )
    assert [tuple(row) for row in await con.fetch(PROGRESS)] == [("cancelled", 0, 3)]
    with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="is cancelled"):
        await con.execute("select webhooks.resume_replay($1)", number)
    with pytest.raises(asyncpg.NoDataFoundError):
        await con.execute("select webhooks.pause_replay(99)")


# How they go out ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_run_delivers_what_the_dry_run_counted(database, con, receiver, until):
    """All states at once, over more pages than one, and nothing else."""
    dead, delivered = await insert(con, 700, kind="dead"), await insert(con, 600, kind="delivered")
    missed = await insert(con, 500, kind="missed")
    await kill_off(con, dead, attempts=4)
    await attempt(con, delivered)
    await con.execute("update webhooks.endpoints set from_event_id = $1", missed[-1])
    for states, ids in (("dead", dead), ("delivered", delivered), ("missed", missed)):
        what = f"types => '{{{states}}}', rate_per_s => 1000, states => '{{{states}}}'"
        before = len(receiver.requests)
        assert await dry(con, what) == len(ids)
        async with living(database):
            await go(con, what)
            await until(ended(con), 20.0)
        sent = receiver.requests[before:]
        assert sorted(request.event_id for request in sent) == ids
        assert {request.attempt for request in sent} == {{"dead": 5, "delivered": 2, "missed": 1}[states]}
    assert [tuple(row) for row in await con.fetch(PROGRESS)] == [
        ("done", 700, 700),
        ("done", 600, 600),
        ("done", 500, 500),
    ]
    assert await con.fetchval("select count(*) from webhooks.dead") == 0
    assert {row[0] for row in await con.fetch("select state from webhooks.deliveries")} == {"delivered"}


@pytest.mark.slow
async def test_attempts_number_on_and_the_schedule_begins_again(database, con, receiver, until):
    """Ten attempts are behind it and it is older than age_max_s: it gets all of the schedule once more."""
    receiver.script = lambda _request: 500
    ids = await insert(con, 2)
    await kill_off(con, ids)
    await con.execute("update webhooks.events set created_at = now() - '30 days'::interval")
    async with living(database, retry={"schedule": (0.02,) * 3}, breaker={"share": 0}):
        await go(con, "site_id => 'a'")
        await until(ended(con))
    assert Counter(request.attempt for request in receiver.requests) == {11: 2, 12: 2, 13: 2, 14: 2}
    rows = await con.fetch("select reason, attempts from webhooks.dead")
    assert [tuple(row) for row in rows] == [("exhausted", 14)] * 2


async def test_replayed_events_of_an_endpoint_disabled_meanwhile_are_held(database, con, receiver, until):
    await kill_off(con, await insert(con, 3))
    number = await go(con, "site_id => 'a'")
    await con.execute("update webhooks.endpoints set enabled = false")
    async with living(database):

        async def held():
            found = await con.fetch("select state, reason, count(*) from webhooks.backlog group by 1, 2")
            return [tuple(row) for row in found] == [("held", "disabled", 3)]

        await until(held)
        assert not receiver.requests
        await con.execute("update webhooks.endpoints set enabled = true")
        await until(ended(con))
    assert len(receiver.requests) == 3
    assert await con.fetchval("select done from webhooks.replays where replay_id = $1", number) == 3


@pytest.mark.slow
async def test_a_replay_to_a_failing_endpoint_is_parked_until_it_recovers(database, con, receiver, until):
    ill = True
    receiver.script = lambda _request: 500 if ill else 200
    await kill_off(con, await insert(con, 300))
    async with living(database, breaker={"probe_s": 0.3}, retry={"schedule": (0.2,) * 20}) as life:
        await go(con, "site_id => 'a', rate_per_s => 1000")
        await life.diary.wait_for("breaker.opened")
        ill = False
        await until(ended(con), 30.0)
    delivered = [request.event_id for request in receiver.requests if request.status == 200]
    assert len(delivered) == len(set(delivered)) == 300


async def test_live_traffic_overtakes_a_replay(database, con, receiver, until):
    """A lane with one request at a time, a thousand replayed deliveries before it, and then an event."""
    await con.execute("update webhooks.endpoints set concurrency = 1")
    await kill_off(con, await insert(con, 900))
    async with living(database):
        await go(con, "site_id => 'a', rate_per_s => 1000")
        await receiver.wait_for(50)
        sent = len(receiver.requests)
        [live] = await insert(con, 1, only=None)
        await until(lambda: any(request.event_id == live for request in receiver.requests))
        overtook = [r.event_id for r in receiver.requests[sent:]].index(live)
        assert overtook < 400
        await until(ended(con), 20.0)
    assert len(receiver.requests) == 901


@pytest.mark.slow
async def test_kill_and_resume_lose_nothing_and_repeat_only_requests_in_flight(
    database, con, receiver, until
):
    ids = await insert(con, 1500)
    await kill_off(con, ids)
    await go(con, "site_id => 'a', rate_per_s => 1000")
    in_flight = 0
    for wanted in (100, 500, 900):
        async with living(database) as life:
            await receiver.wait_for(wanted)
            await life.kill()
            in_flight += 16 + 500  # the lane's width, and a batch that was not written
    async with living(database):
        await until(ended(con), 20.0)
    times = Counter(request.event_id for request in receiver.requests)
    assert sorted(times) == ids
    assert times.total() - len(ids) <= in_flight
    assert [tuple(row) for row in await con.fetch(PROGRESS)] == [("done", 1500, 1500)]


# Rate, pause, resume, cancel: with a clock of our own --------------------------------------------------------------


@pytest.fixture
async def desk(database):
    """Return `await step(now)` and the Replays behind it, on a session like the recorder's."""
    session = await client.connect(database, name="record", settings=PLANS)
    lanes = Lanes(LaneTerms(concurrency=512, endpoint_concurrency=16, queue_bytes_max=10**9))
    replays = Replays(
        lanes.capacity,
        made_due=lambda: None,  # rows stay where they were put
        logger=Diary().logger,
        monotonic=lambda: 0.0,
    )

    async def step(now):
        await replays.step(session, now, lambda _write, _now: None)

    yield step, replays
    await session.close()


@pytest.mark.parametrize(("rate", "tick"), [(500, 0.01), (500, 0.25), (1000, 0.06), (30, 0.1), (3, 0.25)])
async def test_the_rate_is_kept(con, desk, rate, tick):
    step, _ = desk
    await kill_off(con, await insert(con, 4000))
    await go(con, f"site_id => 'a', rate_per_s => {rate}")
    seconds = 3.0 if rate > 100 else 30.0
    for n in range(int(seconds / tick) + 1):
        await step(1000.0 + n * tick)
    done = await con.fetchval("select done from webhooks.replays")
    assert done == pytest.approx(rate * seconds, rel=0.05)
    assert done == await con.fetchval(
        "select count(*) from webhooks.backlog where state = 'waiting' and reason = 'replay'"
    )
    assert done == 4000 - await con.fetchval("select count(*) from webhooks.dead")


async def test_time_in_which_nobody_asked_is_not_made_up_for(con, desk):
    step, _ = desk
    await kill_off(con, await insert(con, 2000))
    await go(con, "site_id => 'a', rate_per_s => 100")
    await step(1000.0)
    await step(1060.0)
    assert await con.fetchval("select done from webhooks.replays") == 100


async def test_pause_resume_and_cancel_are_heeded_at_the_next_page(con, desk):
    step, replays = desk
    now = 1000.0
    await kill_off(con, await insert(con, 1000))
    number = await go(con, "site_id => 'a', rate_per_s => 100")

    async def a_second():
        nonlocal now
        for _ in range(10):
            await step(now)
            now += 0.1
        return await con.fetchval("select done from webhooks.replays")

    assert await a_second() == 90
    await con.execute("select webhooks.pause_replay($1)", number)
    assert await a_second() == 90
    assert await a_second() == 90
    await con.execute("select webhooks.resume_replay($1)", number)
    replays.ring()  # as the notification does
    assert await a_second() == 180
    await con.execute("select webhooks.cancel_replay($1)", number)
    assert await a_second() == 180
    assert await con.fetchval("select count(*) from webhooks.dead") == 820
    assert [tuple(row) for row in await con.fetch(PROGRESS)] == [("cancelled", 180, 1000)]


async def test_replays_run_beside_each_other_and_none_needs_a_bell(con, desk):
    step, _ = desk
    await step(1000.0)
    await con.execute("set webhooks.bell = off")
    await kill_off(con, await insert(con, 50))
    await kill_off(con, await insert(con, 50, "b"), 2, "b")
    await go(con, "site_id => 'a'")
    await go(con, "site_id => 'b'")
    await step(1004.9)
    assert [row["done"] for row in await con.fetch(PROGRESS)] == [0, 0]
    for n in range(20):
        await step(1005.0 + n * 0.1)
    assert [tuple(row) for row in await con.fetch(PROGRESS)] == [("done", 50, 50)] * 2


async def test_rows_in_backlog_already_are_left_unchanged(con, desk):
    step, _ = desk
    ids = await insert(con, 10)
    await kill_off(con, ids)
    await go(con, "site_id => 'a'")
    await con.execute("insert into webhooks.backlog values ($1, 1, 'a', 'held', 'quarantined', 3)", ids[4])
    for n in range(20):
        await step(1000.0 + n * 0.1)
    assert [tuple(row) for row in await con.fetch(PROGRESS)] == [("done", 9, 10)]
    assert [row[0] for row in await con.fetch("select event_id from webhooks.dead")] == [ids[4]]
