"""The rate of requests to an endpoint: its own rate and concurrency hold under overload, and `Retry-After` is kept to.

Seconds here; a minute of it is measured by tests/bench/pacing.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from email.utils import formatdate

import pytest

from pghookd.delivery.attempt import DeliveryTerms
from pghookd.delivery.deliverer import STARTS_A_TURN, Deliverer
from pghookd.model.delivery import Delivery, Endpoint, Event, Reason, State
from pghookd.model.outcome import BacklogWrite
from pghookd.runtime import app
from pghookd.scheduling.intake import Offer
from pghookd.scheduling.lane import LaneTerms
from pghookd.scheduling.lanes import Lanes
from pghookd.webhook.prepared import Defaults
from support.crew import context_of, living, settings_of
from support.events import emit
from support.receiver import Response

RATE = 50.0
LIMIT = 4
SECONDS = 3.0
PARKED = "select count(*) from webhooks.backlog where state = 'parked' and reason = $1"
BACKLOG = "select count(*) from webhooks.backlog"


class Crowd:
    """A receiver's script that counts how many requests it has at a time."""

    def __init__(self, takes_s):
        self.takes_s = takes_s
        self.most = self.now = 0

    async def __call__(self, _request):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(self.takes_s)
        self.now -= 1
        return 200


async def open_endpoint(db, site_id, url, **columns):
    """Make a site of that name and its endpoint."""
    await db.execute("insert into webhooks.sites (site_id, name) values ($1, 'S')", site_id)
    names = "".join(f", {name}" for name in columns)
    marks = "".join(f", ${n}" for n in range(3, 3 + len(columns)))
    await db.execute(
        f"insert into webhooks.endpoints (site_id, url{names}) values ($1, $2{marks})",
        site_id,
        url,
        *columns.values(),
    )


def busiest(moments, seconds):
    """Return the maximum number of these moments that lie within so many seconds."""
    return max(sum(begin <= each < begin + seconds for each in moments) for begin in moments)


def since(moments, begin, end):
    return sum(begin <= each < end for each in moments)


@pytest.mark.slow
async def test_rate_and_concurrency_hold_under_overload_beside_neighbours(database, db, receiver, until):
    crowd = receiver.paths["/narrow"] = Crowd(0.02)
    await open_endpoint(db, "rated", receiver.url("/rated"), rate_per_s=RATE)
    await open_endpoint(db, "narrow", receiver.url("/narrow"), concurrency=LIMIT)
    await open_endpoint(db, "other", receiver.url("/other"))
    async with living(database):
        for site_id in ("rated", "narrow"):
            await emit(db, 1500, site=site_id)
        await until(
            lambda: len(receiver.of("/rated")) >= RATE
        )  # now it is known, and so is what it cannot take
        begun, waits = time.monotonic(), []
        while time.monotonic() < begun + SECONDS:
            await emit(db, 50, site="rated")  # five times what it may have
            await emit(db, 50, site="narrow")
            before = time.monotonic()
            await emit(db, site="other")
            waits.append((await receiver.wait_for(len(waits) + 1, path="/other"))[-1].arrived - before)
            await asyncio.sleep(0.2)
        assert await db.fetchval(PARKED, "lane_full") > 500
    rated = [request.arrived for request in receiver.of("/rated")]
    assert since(rated, begun, begun + SECONDS) == pytest.approx(RATE * SECONDS, rel=0.05, abs=3)
    assert busiest(rated, 1.0) <= RATE * 1.1 + 3
    assert crowd.most == LIMIT
    narrow = since([request.arrived for request in receiver.of("/narrow")], begun, begun + SECONDS)
    assert narrow > 0.7 * SECONDS * LIMIT / 0.02
    assert max(waits) < 1.0


ASKED = [
    (429, "1", 1.0),
    (503, "999999999999", 1.5),  # as the setting bounds it
    (429, lambda: formatdate(time.time() + 3, usegmt=True), 2.0),  # whole seconds: two to three from now
]


@pytest.mark.slow
@pytest.mark.parametrize(("status", "retry_after", "least_s"), ASKED, ids=["short", "hostile", "date"])
async def test_after_retry_after_nothing_goes_to_that_endpoint_before_its_time(
    database, db, receiver, until, status, retry_after, least_s
):
    def refuse_first(request):
        if request.number > 1:
            return 200
        asked = retry_after() if callable(retry_after) else retry_after
        return Response(status, (("retry-after", asked),))

    receiver.paths["/hook"] = refuse_first
    await open_endpoint(db, "s", receiver.url("/hook"))
    bound_s = 1.5 if least_s == 1.5 else 10.0
    async with living(
        database, retry={"retry_after_max_s": bound_s}, breaker={"attempts": 1, "probe_s": 0.1}
    ):
        await emit(db)
        (first,) = await receiver.wait_for(1)
        await until(lambda: first.status)
        for _ in range(5):
            await emit(db, 40)
            await asyncio.sleep(0.05)
        await until(lambda: len({request.event_id for request in receiver.requests}) == 201, 30.0)
        await until(lambda: is_empty(db))
    second = receiver.requests[1].arrived - first.arrived
    assert least_s - 0.01 <= second < least_s + 2.5
    assert len(receiver.requests) == 202


async def is_empty(db):
    return await db.fetchval(BACKLOG) == 0


@pytest.mark.slow
async def test_a_long_pause_parks_everything_until_the_endpoint_changes(database, db, receiver, until):
    arrived = asyncio.Event()

    async def refuse(_request):
        await arrived.wait()
        return Response(429, (("retry-after", "3600"),))

    receiver.paths["/hook"] = refuse
    await open_endpoint(db, "s", receiver.url("/hook"))
    await open_endpoint(db, "other", receiver.url("/other"))
    async with living(database) as life:
        await emit(db, 50)
        in_flight = len(await receiver.wait_for(2))
        arrived.set()

        async def all_aside():
            return await db.fetchval(BACKLOG) == 70

        await life.diary.wait_for("delivery.parked")
        await emit(db, 20)
        await until(all_aside)
        assert await db.fetchval(PARKED, "paused") == 68
        await emit(db, 20, site="other")
        await receiver.wait_for(20, path="/other")
        assert len(receiver.of("/hook")) == in_flight == 2
        receiver.paths["/hook"] = lambda _request: 200
        await db.execute("update webhooks.endpoints set timeout_s = 10 where site_id = 's'")
        await receiver.wait_for(30, path="/hook")  # at a pace, 5 a second to begin with


class Gate:
    """The recorder's side of the deliverer, which can be shut in the middle of a delivery."""

    unrecorded = 0

    def __init__(self):
        self.shut = False
        self.writes = []

    def closed(self, _now):
        return "shut" if self.shut else None

    def put(self, write, _now):
        self.writes.append(write)


@contextlib.asynccontextmanager
async def delivering(lanes, gate):
    """Run a deliverer that sends what these lanes hold; yields it."""
    settings, beaten = settings_of(""), asyncio.Event()
    async with app.sender_of(settings) as sender:
        deliverer = Deliverer(
            sender, lanes, gate, None, DeliveryTerms(512, 8, 1000, Defaults.of(settings), 0), context_of(),
            beat=beaten.set,
        )  # fmt: skip
        running = asyncio.create_task(deliverer.run())
        await beaten.wait()
        yield deliverer
        running.cancel()


def lane_of(lanes, endpoint_id, url):
    return lanes.lane(Endpoint(endpoint_id, "s", 0, url, ("*",), enabled=True, from_event_id=0))


def queue(lanes, lane):
    """Queue an event for a lane and return the delivery."""
    delivery = Delivery(Event(1, "s", "a", 0, b"{}"), lane.key.endpoint_id, 0, time.monotonic())
    assert lanes.intake.offer(lane, delivery, time.monotonic()) is Offer.QUEUED
    return delivery


async def test_a_delivery_taken_before_a_pause_and_not_sent_yet_stays(receiver, until):
    lanes, gate = Lanes(LaneTerms(concurrency=8, endpoint_concurrency=8, queue_bytes_max=10**6)), Gate()
    lane = lane_of(lanes, 1, receiver.url("/hook"))
    async with delivering(lanes, gate) as deliverer:
        delivery = queue(lanes, lane)
        deliverer.kick()
        gate.shut = True  # it is taken, and checks the gate once more before it leaves
        await asyncio.sleep(0)
        lanes.pause(lane, 60.0, time.monotonic())
        gate.shut = False
        await until(lambda: gate.writes)
    (write,) = gate.writes
    assert isinstance(write, BacklogWrite)
    assert (write.delivery, write.state, write.reason) == (delivery, State.PARKED, Reason.PAUSED)
    assert (lanes.turns.in_flight, lane.allowed, receiver.requests) == (0, 2, [])
    assert lanes.backlog_index.parked == {1}


async def test_a_turn_of_the_event_loop_begins_a_few_requests_only(receiver, until):
    """Else each step towards another site's request waits for all that a site with fast receivers may have."""
    lanes, gate = Lanes(LaneTerms(concurrency=512, endpoint_concurrency=8, queue_bytes_max=10**6)), Gate()
    for endpoint_id in range(1, 201):
        queue(lanes, lane_of(lanes, endpoint_id, receiver.url("/hook")))
    async with delivering(lanes, gate) as deliverer:
        deliverer.kick()
        begun = [0]
        while begun[-1] < 200:
            begun.append(lanes.turns.in_flight + len(gate.writes))
            await asyncio.sleep(0)
        await until(lambda: len(gate.writes) == 200)
    most = max(after - before for before, after in itertools.pairwise(begun))
    assert most <= 2 * STARTS_A_TURN  # the end of one turn, and the beginning of the next
