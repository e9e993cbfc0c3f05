"""Ordered endpoints: one by one per key, in the log's order, despite failures, ends and switches meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter, defaultdict

import pytest

from pghookd.delivery.backlog.due import Backlog, BacklogTerms
from pghookd.delivery.backlog.lines import LINES_A_LOOK
from pghookd.event_log.payload_filter import Filters
from pghookd.event_log.position import EventLog, Position, ShardLog, Snapshot, XidMarks
from pghookd.postgres import client
from pghookd.postgres.client import query
from pghookd.scheduling.lane import LaneTerms
from pghookd.scheduling.lanes import Lanes
from pghookd.scheduling.ordering import Order
from support import crew
from support.crew import living
from support.events import Sql, emit
from support.receiver import Response

KEYS = "abcd"
QUICK = {"retry": {"schedule": (0.02,) * 60}, "breaker": {"share": 0}}


@pytest.fixture
async def con(database, connect, receiver):
    con = await connect(database)
    await con.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    await con.execute(
        "insert into webhooks.endpoints (site_id, url, ordered) values ('s', $1, true)", receiver.url("/")
    )
    return con


async def emit_of(con, key, n):
    """Insert event number n of a key (None: without one); return its id."""
    return await emit(con, payload=json.dumps({"key": key, "n": n}), ordering_key=key)


def settled(con, events, state="delivered"):
    """Return a condition: so many deliveries are in that state."""

    async def holds():
        return (
            await con.fetchval("select count(*) from webhooks.deliveries where state = $1", state) == events
        )

    return holds


def seen(receiver):
    """Return, by key, the numbers in the order in which they first arrived, and that each went alone."""
    assert not receiver.script.broken
    found = defaultdict(dict)
    for request in receiver.requests:
        found[request.data["key"]].setdefault(request.data["n"])
    return {key: list(numbers) for key, numbers in found.items()}


class OneByOne:
    """A receiver's script that sees whether a key ever has two requests in flight, and answers as set."""

    def __init__(self, answer=lambda _request: 200, delay_s=0.0):
        self.answer = answer
        self.delay_s = delay_s
        self.in_flight = defaultdict(set)  # the requests of each key
        self.broken = []  # keys that had two
        self.most = 0  # in flight together, of all keys

    async def __call__(self, request):
        key = request.data["key"]
        if self.in_flight[key]:
            self.broken.append(key)
        self.in_flight[key].add(request.number)
        self.most = max(self.most, sum(map(len, self.in_flight.values())))
        await asyncio.sleep(self.delay_s)
        self.in_flight[key].discard(request.number)
        return self.answer(request)


async def test_each_key_goes_one_by_one_and_keys_side_by_side(database, con, receiver, until):
    receiver.script = script = OneByOne(delay_s=0.003)
    async with living(database):
        for n in range(60):
            for key in (*KEYS, None):
                await emit_of(con, key, n)
        await until(settled(con, 300))
    assert seen(receiver) == {key: list(range(60)) for key in (*KEYS, None)}
    assert len(receiver.requests) == 300
    assert script.most > 1


@pytest.mark.slow
async def test_more_than_memory_takes_of_a_key_waits_in_rows(database, con, receiver, until):
    await emit(con, 1000, payload=Sql("json_build_object('key', null, 'n', n - 1)"))
    receiver.script = OneByOne()
    async with living(database):
        await until(settled(con, 1000), 30)
        assert await con.fetchval("select count(*) from webhooks.backlog") == 0
        first = await emit_of(con, None, 1000)

        async def arrived():
            return any(request.event_id == first for request in receiver.requests)

        await until(arrived)
        assert await con.fetchval("select count(*) from webhooks.backlog") == 0  # straight from the log again
    assert seen(receiver) == {None: list(range(1001))}


async def test_a_failing_event_holds_up_its_key_and_no_other(database, con, receiver, until):
    fails = [True]
    receiver.script = OneByOne(
        lambda request: 500 if fails[0] and (request.data["key"], request.data["n"]) == ("a", 0) else 200
    )
    async with living(database, **QUICK):
        for n in range(5):
            for key in "ab":
                await emit_of(con, key, n)
        await until(settled(con, 5))
        rows = await con.fetch(
            "select state, reason, count(*) from webhooks.deliveries where state = 'parked' group by 1, 2"
        )
        assert [tuple(row) for row in rows] == [("parked", "ordering", 4)]
        assert set(seen(receiver)["a"]) == {0}
        fails[0] = False
        await until(settled(con, 10))
    assert seen(receiver) == {"a": list(range(5)), "b": list(range(5))}


async def test_a_key_goes_on_when_its_first_event_is_dead_or_cancelled(database, con, receiver, until):
    receiver.script = OneByOne(lambda request: 500 if request.data["n"] == 0 else 200)
    async with living(database, retry={"schedule": (0.05, 3600)}, breaker={"share": 0}):
        first = [await emit_of(con, key, 0) for key in "ab"]
        for key in "ab":
            await emit_of(con, key, 1)
        await until(settled(con, 2, "parked"))

        async def tried_twice():
            return await con.fetchval("select count(*) from webhooks.attempts") == 4

        await until(tried_twice)
        await con.fetchval("select webhooks.cancel($1)", first[0])
        await until(settled(con, 1))
        assert receiver.requests[-1].data == {"key": "a", "n": 1}
    async with living(database, retry={"schedule": (0.05, 0.05)}, breaker={"share": 0}):
        await con.execute("update webhooks.backlog set next_attempt_at = now() where state = 'waiting'")
        await until(settled(con, 2))
    assert await con.fetchval("select count(*) from webhooks.dead") == 2


async def test_a_key_goes_on_only_when_the_death_of_its_first_event_is_durable(
    database, con, connect, receiver, until
):
    """A crash before would try it once more: nothing of its key may have been taken by then."""
    receiver.script = OneByOne(
        lambda request: 500 if (request.data["key"], request.data["n"]) == ("a", 1) else 200
    )
    diary, other = crew.Diary(), await connect(database)
    async with living(database, diary=diary, retry={"schedule": (0.05,)}, breaker={"share": 0}):
        for key in "ab":
            await emit_of(con, key, 0)
        await until(settled(con, 2))
        async with other.transaction():
            await other.execute("lock table webhooks.dead in exclusive mode")
            await emit_of(con, "a", 1)
            await emit_of(con, "a", 2)
            await diary.wait_for("delivery.died")
            await emit_of(con, "b", 1)
            await until(lambda: seen(receiver)["b"] == [0, 1])
            assert seen(receiver)["a"] == [0, 1]
        await until(settled(con, 4))
    assert seen(receiver)["a"] == [0, 1, 2]
    assert await con.fetchval("select count(*) from webhooks.dead") == 1


@pytest.mark.slow
async def test_held_events_go_out_before_later_ones(database, con, receiver, until):
    receiver.script = OneByOne()
    switch = "update webhooks.endpoints set enabled = {}"
    async with living(database):
        await con.execute(switch.format("false"))
        for n in range(30):
            await emit_of(con, "a", n)
        await until(settled(con, 30, "held"))
        await con.execute(switch.format("true"))
        for n in range(30, 60):
            await emit_of(con, "a", n)
        await until(settled(con, 60), 20)
    assert seen(receiver) == {"a": list(range(60))}


class Counting:
    """A session that counts its statements, by the name of their files."""

    def __init__(self, session):
        self._session = session
        self.asked = Counter()

    async def fetch(self, sql, *values):
        name = next(
            name
            for name in ("read_line", "walk_lines", "read_endpoints", "")
            if not name or sql == query(name)
        )
        self.asked[name] += 1
        return await self._session.fetch(sql, *values)

    async def fetchval(self, sql, *values):
        return await self._session.fetchval(sql, *values)


def scheduler():
    """Return a scheduler whose clock is fixed, with its lanes and lines."""
    lanes = Lanes(LaneTerms(concurrency=8, endpoint_concurrency=4, queue_bytes_max=10**6))
    order = Order(lanes)
    context = crew.context_of(lambda: 0.0, wall_us=lambda: 0, random01=lambda: 0.5)
    due = Backlog(
        lanes,
        order,
        EventLog(Snapshot(1, 1, ()), {0: ShardLog(0, Position(Snapshot(1, 1, ())))}, XidMarks()),
        Filters(logger=context.logger, monotonic=context.monotonic),
        context,
        shards=1,
        terms=BacklogTerms(),
    )
    return due, lanes, order


async def test_lines_of_a_disabled_endpoint_are_not_checked_again_and_again(database, con):
    ids = [await emit_of(con, key, 0) for key in KEYS]
    await con.executemany(
        "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, line)"
        " select $1, endpoint_id, 's', 'held', 'disabled', $2 from webhooks.endpoints",
        list(zip(ids, KEYS, strict=True)),
    )
    await con.execute("update webhooks.endpoints set enabled = false")
    session = Counting(await client.connect(database, name="record"))
    due, lanes, order = scheduler()
    order.recovered = True
    endpoint_id = await con.fetchval("select endpoint_id from webhooks.endpoints")
    due.endpoints_changed([endpoint_id])
    for n in range(100):  # half a minute
        await due.step(session, n * 0.3, lambda _write, _now: None)
    assert 0 < session.asked["read_line"] <= len(KEYS)
    await con.execute("update webhooks.endpoints set enabled = true")
    due.endpoints_changed([endpoint_id])
    for n in range(100, 110):
        await due.step(session, n * 0.3, lambda _write, _now: None)
    assert len(lanes.backlog_index.in_memory) == len(KEYS)
    await session._session.close()


async def test_an_endpoint_may_become_ordered_with_rows_and_without(database, con, receiver, until):
    receiver.script = lambda _request: 500
    await con.execute("update webhooks.endpoints set ordered = false")
    async with living(database, retry={"schedule": (3600,) * 5}, breaker={"share": 0}):
        for n in range(20):
            await emit_of(con, "a", n)
        await until(settled(con, 20, "waiting"))
        await con.execute("update webhooks.endpoints set ordered = true")
        for n in range(20, 40):
            await emit_of(con, "a", n)
        await until(settled(con, 20, "parked"))
        receiver.requests.clear()
        receiver.script = OneByOne()
        await con.execute("update webhooks.backlog set next_attempt_at = now() where state = 'waiting'")
        await con.execute("notify pghookd, 'due'")
        await until(settled(con, 40))
        assert seen(receiver) == {"a": list(range(40))}
        await con.execute("update webhooks.endpoints set ordered = false")
        receiver.script = OneByOne(delay_s=0.05)
        for n in range(20):
            await emit_of(con, "b", n)
        await until(settled(con, 60))
        assert receiver.script.most > 1


async def test_an_open_breaker_and_its_catching_up_keep_the_order(database, con, receiver, until):
    up = [False]
    receiver.script = OneByOne(lambda _request: 200 if up[0] else 503)
    patience = {
        "breaker": {"attempts": 4, "probe_s": 0.3, "probe_max_s": 1.0},
        "retry": {"schedule": (0.02,) * 60},
    }
    async with living(database, **patience) as life:
        for n in range(25):
            for key in KEYS:
                await emit_of(con, key, n)
        await life.diary.wait_for("breaker.opened")
        up[0] = True
        await until(settled(con, 100), 30)
    assert seen(receiver) == {key: list(range(25)) for key in KEYS}


@pytest.mark.slow
async def test_no_order_is_broken_by_failures_kills_and_replays(database, con, receiver, until):
    """First sightings of each key rise, despite failures, cuts, kills at any moment, and replays."""
    rng = random.Random(crew.seed())
    receiver.script = OneByOne(
        lambda _request: rng.choice([200] * 6 + [500, Response(cut=True), Response(delay_s=0.02)])
    )
    numbers = Counter()
    events = 0

    async def insert(some):
        for _ in range(some):
            key = rng.choice((*KEYS, None))
            await emit_of(con, key, numbers[key])
            numbers[key] += 1

    for life_number in range(9):
        async with living(database, **QUICK):
            await insert(rng.randrange(30))
            events = numbers.total()
            if life_number % 3 == 2:
                await con.execute(
                    "select webhooks.replay(site_id => 's', states => '{delivered}', dry_run => false)"
                )
            await insert(rng.randrange(30))
            await asyncio.sleep(rng.random() * 0.3)  # into the middle of it
        receiver.script.in_flight.clear()  # cuts off the requests in flight
    events = numbers.total()
    async with living(database, **QUICK):

        async def all_delivered():
            left = await con.fetchval("select count(*) from webhooks.backlog")
            done = await con.fetchval(
                "select count(distinct event_id) from webhooks.attempts where outcome = 'delivered'"
            )
            return (left, done) == (0, events)

        await until(all_delivered, 60)
    assert seen(receiver) == {key: list(range(n)) for key, n in numbers.items()}


async def test_lines_that_wait_for_the_log_are_checked_a_few_at_a_time(database, con):
    """None of them can be taken: the recorder does not go on at once."""
    names = [f"k{n}" for n in range(5 * LINES_A_LOOK)]
    for name in names:
        await con.execute(
            "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, line)"
            " select $1, endpoint_id, 's', 'parked', 'ordering', $2 from webhooks.endpoints",
            await emit_of(con, name, 0),
            name,
        )
    opened = await client.connect(database, name="record")
    session = Counting(opened)
    due, lanes, order = scheduler()
    order.recovered, order.unread = True, {"s"}
    order.restart(await con.fetchval("select endpoint_id from webhooks.endpoints"))
    assert not await due.step(session, 1.0, lambda _write, _now: None)
    assert session.asked["read_line"] == LINES_A_LOOK
    order.unread = set()
    await due.step(session, 2.0, lambda _write, _now: None)
    assert len(lanes.backlog_index.in_memory) >= LINES_A_LOOK
    await opened.close()
