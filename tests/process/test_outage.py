"""An endpoint that is down for hours: it is left alone, its events are kept, and it is not overwhelmed afterwards.

First a day of a million events on the daemon's own lanes, breaker and verdicts with a clock of the test's, then the
real daemon on a real Postgres, smaller.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, deque

import pytest

from pghookd.model import verdict
from pghookd.model.delivery import Delivery, Endpoint, Event, Reply
from pghookd.scheduling.intake import Offer
from pghookd.scheduling.lane import LaneTerms
from pghookd.scheduling.lanes import Lanes
from pghookd.settings.durations import parse_schedule
from pghookd.settings.schema import Settings
from pghookd.webhook import judge
from support import crew
from support.crew import living
from support.events import Sql, emit
from support.receiver import Response

HOUR = 3600.0
DAY = 24 * HOUR
EVENTS = 1_000_000
AT_ONCE = 25  # events that come together
EVERY_S = DAY * AT_ONCE / EVENTS
ANSWER_S = 0.05
LOOK_S = 0.1
LIMIT = 16


class Day:
    """A virtual day: what the loops and the backlog do, around the real lanes."""

    def __init__(self, down):
        self.down = down
        self.now = 0.0
        self.rnd = random.Random(8)
        self.lanes = Lanes(LaneTerms(concurrency=512, endpoint_concurrency=LIMIT, queue_bytes_max=10**9))
        self.lane = self.lanes.lane(
            Endpoint(1, "s", 0, "https://a.example/", ("*",), enabled=True, from_event_id=0)
        )
        self.policy = judge.RetryPolicy(parse_schedule("5s,5m,30m,2h,5h,10h,14h,20h,24h"))
        self.parked = deque()  # (event_id, attempts)
        self.delivered = bytearray(EVENTS)
        self.tried = []  # when a request failed
        self.late_starts = Counter()  # by second
        self.live_wait_s = 0.0  # the maximum, while late work goes out
        self.most_flying = 0
        self.closed_at = None
        self._agenda = []
        self._numbers = itertools.count()

    def plan(self, at, do, *args):
        heapq.heappush(self._agenda, (at, next(self._numbers), do, args))

    def run(self):
        self.plan(0.0, self.arrive, 0)
        while self._agenda:
            self.now, _, do, args = heapq.heappop(self._agenda)
            do(*args)
            self.start()

    def arrive(self, first):
        for event_id in range(first, first + AT_ONCE):
            self.offer(event_id, 0)
        if first + AT_ONCE < EVENTS:
            self.plan(self.now + EVERY_S, self.arrive, first + AT_ONCE)

    def offer(self, event_id, attempts, *, late=False):
        event = Event(event_id, "s", "a", 0, b"{}")
        each = Delivery(event, 1, attempts, self.now, in_backlog=late, late=late)
        if self.lanes.intake.offer(self.lane, each, self.now) is Offer.QUEUED:
            return True
        self.park([each])
        return False

    def park(self, deliveries):
        if deliveries and 1 not in self.lanes.backlog_index.parked:
            self.lanes.backlog_index.parked.add(1)
            self.plan(self.now + LOOK_S, self.look)
        self.parked.extend((each.event.event_id, each.attempts) for each in deliveries)

    def look(self):
        for _ in range(self.lanes.backlog_index.refill_quota(1, self.now)):
            if not self.parked:
                break
            event_id, attempts = self.parked.popleft()
            self.offer(event_id, attempts, late=True)
        if self.parked:
            self.plan(max(self.now + LOOK_S, self.lanes.backlog_index.probe_at(1) or 0.0), self.look)
        else:
            self.lanes.caught_up(1)

    def start(self):
        while (taken := self.lanes.turns.next(self.now)) is not None:
            _, each = taken
            self.most_flying = max(self.most_flying, self.lane.in_flight)
            if each.late and self.closed_at is not None:
                self.late_starts[int(self.now - self.closed_at)] += 1
            elif self.closed_at is not None:
                self.live_wait_s = max(self.live_wait_s, self.now - each.since)
            self.plan(self.now + ANSWER_S, self.answer, each)
        if self.lanes.turns.rests_until is not None:
            self.plan(max(self.now, self.lanes.turns.rests_until), lambda: None)

    def answer(self, each):
        if self.down[0] <= self.now < self.down[1]:
            self.fail(each)
        else:
            self.delivered[each.event.event_id] += 1
            if self.lanes.succeeded(self.lane, each, self.now):
                self.closed_at = self.now

    def fail(self, each):
        self.tried.append(self.now)
        self.park(self.lanes.failed(self.lane, each, self.now, self.rnd.random()) or [])
        judged = judge.judge(
            Reply(503), each.attempts + 1, self.policy, now_s=0.0, age_from_s=0.0, random01=self.rnd.random()
        )
        assert isinstance(judged, verdict.Retry)
        self.plan(self.now + judged.wait_s, self.offer, each.event.event_id, each.attempts + 1)


@pytest.mark.slow
def test_a_million_events_in_a_day_with_six_hours_down():
    day = Day((6 * HOUR, 12 * HOUR))
    day.run()
    assert 10 <= len(day.tried) < 100
    assert set(day.delivered) == {1}
    assert day.most_flying <= LIMIT
    back_s = day.closed_at - 12 * HOUR
    assert back_s < 1.2 * Settings().breaker.probe_max_s
    assert sum(day.late_starts.values()) > EVENTS / 4 - 100
    for second, count in day.late_starts.items():  # the curve: 5 a second, times e every ten seconds
        assert count <= 5 * math.exp((second + 1) / 10) * 1.1 + 2, second
    assert day.late_starts[40] > 5 * math.exp(40 / 10) / 3  # gentle, not lame
    assert max(day.late_starts) < HOUR
    assert day.live_wait_s < 2.0  # live traffic goes first


# The real daemon ------------------------------------------------------------------------------------------------

BACKLOG = "select count(*) from webhooks.backlog"


async def shop_of(connection, receiver):
    """Make a site with one endpoint; return the endpoint's id."""
    await connection.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    return await connection.fetchval(
        "insert into webhooks.endpoints (site_id, url) values ('s', $1) returning endpoint_id",
        receiver.url("/hook"),
    )


async def emit_numbers(connection, count, *, first=0, keys=None):
    """Insert events numbered from `first`; with keys, their ordering keys take turns."""
    number = f"{first} + n - 1"
    key = {"ordering_key": Sql(f"'key ' || ({number}) % {keys}")} if keys else {}
    await emit(connection, count, payload=Sql(f"to_json({number})"), **key)


def answered(receiver):
    """Return how often each event was answered 2xx."""
    return Counter(request.data for request in receiver.requests if request.status == 200)


def is_count(connection, sql, wanted):
    async def holds():
        return await connection.fetchval(sql) == wanted

    return holds


async def go_down(life, connection, receiver, until, count, **options):
    """Insert events for an endpoint that answers 503 until its breaker is open and all of them are set aside."""
    receiver.script = lambda _request: Response(503)
    await emit_numbers(connection, count, **options)
    await life.diary.wait_for("breaker.opened")
    await until(is_count(connection, BACKLOG, count), 30.0)


QUICK = {"probe_s": 0.3, "probe_max_s": 1.0}
PATIENT = {"schedule": (1.0,) * 60}


@pytest.mark.slow
async def test_twenty_thousand_events_wait_for_an_endpoint_that_is_down(database, db, receiver, until):
    count = 20_000
    await shop_of(db, receiver)
    async with living(database, breaker=QUICK, retry=PATIENT) as life:
        await go_down(life, db, receiver, until, count)
        rows = await db.fetch("select state, reason, attempts from webhooks.backlog")
        recorded = sum(row["attempts"] for row in rows)
        assert recorded <= len(receiver.requests) <= recorded + 1 < 100  # a probe may be in flight
        tried = sum(row["attempts"] > 0 for row in rows)
        aside = [row["reason"] for row in rows if row["state"] == "parked"]
        assert len(aside) >= count - tried
        # In the moment before it opened they may have come too fast.
        assert {"breaker_open"} <= set(aside) <= {"breaker_open", "lane_full"}
        receiver.in_flight_max = 0
        receiver.script = lambda _request: Response(200)
        await life.diary.wait_for("breaker.closed")
        await until(is_count(db, BACKLOG, 0), 60.0)
        assert receiver.in_flight_max <= LIMIT
        assert len(life.diary.of("breaker.opened")) == 1
    assert answered(receiver) == dict.fromkeys(range(count), 1)


@pytest.mark.parametrize("held", ["deliver", "drop", "latest_per_key"])
async def test_events_of_an_endpoint_disabled_in_downtime_are_held(database, db, receiver, until, held):
    count, keys = 600, 7
    endpoint = await shop_of(db, receiver)
    async with living(database, breaker=QUICK, retry=PATIENT) as life:
        await go_down(life, db, receiver, until, count, keys=keys)
        await db.execute("select webhooks.disable_endpoint($1)", endpoint)
        await emit_numbers(db, 50, first=count)  # without a key
        all_held = f"{BACKLOG} where state = 'held' and reason = 'disabled'"
        await until(is_count(db, all_held, count + 50))
        asked = len(receiver.requests)
        receiver.script = lambda _request: Response(200)
        going = {
            "deliver": set(range(count + 50)),
            "drop": set(),
            "latest_per_key": set(range(count - keys, count + 50)),
        }[held]
        said = await db.fetchval("select webhooks.enable_endpoint($1, $2)", endpoint, held)
        assert said == len(going)
        await emit_numbers(db, 5, first=1000)
        going |= set(range(1000, 1005))
        await until(lambda: len(answered(receiver)) >= len(going), 30.0)
        await until(is_count(db, BACKLOG, 0))
        assert answered(receiver) == dict.fromkeys(going, 1)
        assert asked < 100
    dropped = await db.fetchval("select count(*) from webhooks.dead where reason = 'dropped'")
    assert dropped == count + 55 - len(going)


@pytest.mark.slow
async def test_held_events_go_out_gently_and_live_traffic_at_once(database, db, receiver, until):
    endpoint = await shop_of(db, receiver)
    await db.execute("select webhooks.disable_endpoint($1)", endpoint)
    async with living(database) as life:
        await emit_numbers(db, 300)
        await until(is_count(db, f"{BACKLOG} where state = 'held'", 300))
        await db.execute("select webhooks.enable_endpoint($1)", endpoint)
        await receiver.wait_for(1)
        await emit_numbers(db, 100, first=1000)
        await until(lambda: set(range(1000, 1100)) <= answered(receiver).keys())
        assert len(answered(receiver)) < 150
        stands = await db.fetch("select state, reason, count(*) from webhooks.deliveries group by 1, 2")
        assert {tuple(row)[:2] for row in stands} == {("delivered", None), ("waiting", "queued")}
        await receiver.wait_for(110)  # and goes on
        await life.stop()


@pytest.mark.slow
async def test_a_restart_asks_each_open_endpoint_one_thing_and_not_at_once(database, db, receiver, until):
    sites = [f"site {n}" for n in range(12)]
    for site in sites:
        await db.execute("insert into webhooks.sites (site_id, name) values ($1, 'S')", site)
        await db.execute(
            "insert into webhooks.endpoints (site_id, url) values ($1, $2)",
            site,
            receiver.url(f"/{site[5:]}"),
        )
    receiver.script = lambda _request: Response(503)
    patient = {"schedule": (3600.0,) * 5}
    async with living(database, retry=patient) as life:
        await emit(db, 60, site=sites)
        await life.diary.wait_for("breaker.opened", 12)
        await until(is_count(db, BACKLOG, 12 * 60))
    clock, before = crew.Clock(), len(receiver.requests)
    async with living(database, retry=patient, clock=clock) as life:
        await emit(db, 50, site=sites)

        async def the_rest_is_aside():
            aside = await db.fetchval(f"{BACKLOG} where reason = 'breaker_open' and attempts = 0")
            return aside + len(receiver.requests) == 12 * 110

        await until(the_rest_is_aside, 20.0)
        early = len(receiver.requests) - before
        assert early <= 6  # of twelve, spread over half a minute
        clock.ahead_s += 31.0
        await until(lambda: len({r.path for r in receiver.requests[before:]}) == 12)
        assert len(receiver.requests) == before + 12
        await life.diary.wait_for(
            "delivery.attempted", 12
        )  # by the clock as it is: the next wait counts from there
        receiver.script = lambda _request: Response(200)
        clock.ahead_s += 75.0
        await until(lambda: len({r.path for r in receiver.requests if r.status == 200}) == 12)


async def test_the_breaker_can_be_switched_off(database, db, receiver, until):
    await shop_of(db, receiver)
    async with living(database, breaker={"share": 0.0}, retry={"schedule": (60.0,)}) as life:
        receiver.script = lambda _request: Response(503)
        await emit_numbers(db, 100)
        await until(is_count(db, f"{BACKLOG} where reason = 'retry'", 100))
        assert life.diary.of("breaker.opened") == []
