"""Shares of request slots and of payload bytes: what a site and a host may hold, and that nobody waits for ever."""

from __future__ import annotations

import random

import hypothesis
import pytest
from hypothesis import strategies as st

from pghookd.model.delivery import Delivery, Endpoint, Event, Loaded
from pghookd.scheduling.intake import Offer
from pghookd.scheduling.lane import HOST_HANGS_MAX, LaneTerms
from pghookd.scheduling.lanes import LANE_SHARE, Lanes
from pghookd.scheduling.payload_loads import PayloadBudget
from pghookd.scheduling.slots import LONG_S

SLOTS = 64


def lanes_of(concurrency=SLOTS, endpoint_concurrency=16, queue_bytes_max=10**6):
    return Lanes(LaneTerms(concurrency, endpoint_concurrency, queue_bytes_max))


def lane_of(lanes, number, *, site=None, host=None, count=0, width=None, payload=b"{}", concurrency=None):
    """Return an endpoint's lane with so many deliveries queued."""
    url = f"https://{host or f'h{number}'}.example/{number}"
    lane = lanes.lane(
        Endpoint(
            number,
            site or f"s{number}",
            0,
            url,
            ("*",),
            enabled=True,
            from_event_id=0,
            concurrency=concurrency,
        )
    )
    if width is not None:
        lane.resize(width)
    for event_id in range(count):
        event = Event(event_id, lane.key.site_id, "order_created", 0, payload)
        assert lanes.intake.offer(lane, Delivery(event, number, 0, 0.0), 0.0) is Offer.QUEUED
    return lane


def started(lanes, now=0.0):
    """Start all that may start."""
    found = []
    while (taken := lanes.turns.next(now)) is not None:
        found.append(taken)
    return found


def ended(lanes, flights, now=0.0):
    for lane, delivery in flights:
        lanes.succeeded(lane, delivery, now)


def test_one_site_holds_a_half_of_the_slots():
    lanes = lanes_of()
    for number in range(1, 9):
        lane_of(lanes, number, site="big", count=20, width=16)
    assert len(started(lanes)) == SLOTS // 2
    lane_of(lanes, 9, count=1)
    assert [lane.key.endpoint_id for lane, _ in started(lanes)] == [9]


def test_slow_successes_of_one_site_count_twice():
    lanes = lanes_of()
    for number in range(1, 9):
        lane_of(lanes, number, site="slow", count=20, width=16)
    flights = started(lanes)
    lanes.measure(2 * LONG_S)
    for lane, delivery in flights[: SLOTS // 4]:
        lanes.succeeded(lane, delivery, 2 * LONG_S)
    assert lanes.turns.in_flight == SLOTS // 4
    assert not started(lanes, 2 * LONG_S)


def test_a_lane_that_answers_well_goes_on_beside_those_that_hang():
    lanes = lanes_of()
    good = lane_of(lanes, 1, site="mixed", count=5, width=16)
    ended(lanes, started(lanes))
    for number in range(2, 12):
        lane_of(lanes, number, site="mixed", count=10)
    assert len(started(lanes)) == 20
    lanes.measure(2 * LONG_S)
    lane_of(lanes, 1, site="mixed", count=5)
    assert [lane for lane, _ in started(lanes, 2 * LONG_S)] == [good] * 5


def test_one_host_holds_three_quarters_of_the_slots():
    lanes = lanes_of()
    for number in range(1, 3 * SLOTS):
        lane_of(lanes, number, host="shared", count=1)
    assert len(started(lanes)) == 3 * SLOTS // 4
    other = lane_of(lanes, 1000, count=1)
    assert [lane for lane, _ in started(lanes)] == [other]


def test_slow_sites_leave_a_part_of_a_shared_host_to_others():
    lanes = lanes_of()
    for number in range(1, 2 * SLOTS):
        lane_of(lanes, number, site=f"slow{number % 3}", host="shared", count=1)
    assert len(started(lanes)) == SLOTS * 5 // 8
    others = [lane_of(lanes, number, host="shared", count=2) for number in range(1000, 1000 + SLOTS)]
    assert [lane for lane, _ in started(lanes)] == others[: SLOTS // 8]


def test_the_last_slots_are_for_sites_with_nothing_in_flight():
    lanes = lanes_of()
    for number in range(1, SLOTS):
        lane_of(lanes, number, site=f"s{number % 4}", count=2)
    assert len(started(lanes)) == SLOTS * 7 // 8
    for number in range(100, 100 + SLOTS):
        lane_of(lanes, number, count=2)
    found = started(lanes)
    assert len(found) == SLOTS // 8
    assert len({lane.key.site_id for lane, _ in found}) == SLOTS // 8


def test_slow_sites_leave_the_last_quarter_to_quick_ones():
    lanes = lanes_of()
    for number in range(1, SLOTS * 3 // 8 + 1):
        lane_of(lanes, number, site=f"s{number % 3}", count=2)
    assert len(started(lanes)) == SLOTS * 3 // 4
    lanes.measure(2 * LONG_S)
    for number in range(1, 9):
        lane_of(lanes, number, site=f"s{number % 3}", count=2)
    assert not started(lanes, 2 * LONG_S)
    quick = lane_of(lanes, 1000, site="quick", count=2)
    assert [lane for lane, _ in started(lanes, 2 * LONG_S)] == [quick, quick]


def test_an_endpoint_has_a_quarter_whatever_it_asks_for():
    lanes = lanes_of()
    assert lane_of(lanes, 1, concurrency=1000).limit == SLOTS // LANE_SHARE


def test_a_waiting_lane_starts_when_a_request_of_its_site_ends():
    lanes = lanes_of()
    for number in range(1, 41):
        lane_of(lanes, number, site="big", count=1)
    flights = started(lanes)
    assert len(flights) == SLOTS // 2
    ended(lanes, flights[:3])
    assert len(started(lanes)) == 3


def test_a_lane_that_was_emptied_while_it_waits_holds_up_no_other():
    lanes = lanes_of()
    for number in range(1, 41):
        lane_of(lanes, number, site="big", count=1)
    flights = started(lanes)
    waiting = [lane for lane in lanes.known.busy() if lane.waits_for is not None]
    for lane in waiting[:-1]:
        lanes.turns.withdraw(lane)
    ended(lanes, flights[:1])
    assert [lane for lane, _ in started(lanes)] == [waiting[-1]]


def test_timeouts_of_a_host_open_breakers_one_by_one():
    lanes = lanes_of()
    for number in range(1, HOST_HANGS_MAX + 3):
        lane = lane_of(lanes, number, host="dark", count=2)
        lane.proved = True
    opened = 0
    for number in range(1, HOST_HANGS_MAX + 3):
        lane = lanes.known.by_endpoint[number]
        taken = lane.queue[0]
        found = lanes.turns.next(0.0)
        while found is not None and found[1] is not taken:
            ended_now = lanes.failed(found[0], found[1], 0.0, 0.5, hung=True)
            opened += ended_now is not None
            found = lanes.turns.next(0.0)
        if found is not None:
            opened += lanes.failed(lane, taken, 0.0, 0.5, hung=True) is not None
    assert opened > 0
    assert lanes.known.by_endpoint[1].host.hangs > HOST_HANGS_MAX


def test_a_host_that_answers_now_and_then_opens_no_breakers():
    lanes = lanes_of()
    for number in range(1, 4 * HOST_HANGS_MAX):
        lane = lane_of(lanes, number, host="busy", count=1)
        lane.proved = True
        ((_, delivery),) = started(lanes)
        if number % 10:
            assert lanes.failed(lane, delivery, 0.0, 0.5, hung=True) is None
        else:
            lanes.succeeded(lane, delivery, 0.0)


# No share is exceeded and no work is forgotten, in any history -------------------------------------------------------


@hypothesis.given(seed=st.integers(0, 2**32), slots=st.integers(1, 40))
def test_shares_hold_and_all_work_ends(seed, slots):
    rng = random.Random(seed)
    lanes = lanes_of(concurrency=slots, endpoint_concurrency=rng.choice((1, 4, 50)))
    now, flights, left = 0.0, [], 0
    for number in range(rng.randrange(1, 30)):
        count = rng.randrange(5)
        lane_of(lanes, number, site=f"s{rng.randrange(4)}", host=f"h{rng.randrange(4)}", count=count)
        left += count
    for _ in range(100_000):
        flights += started(lanes, now)
        shares = lanes._slots
        for lane, _delivery in flights:
            assert lane.site.in_flight <= max(shares.site_max, 1)
            assert lane.host.in_flight <= shares.host_limit
            assert 0 <= lane.site.long <= lane.site.in_flight
        assert lanes.turns.in_flight == len(flights) <= slots
        if not left:
            break
        now += rng.random()
        if flights and rng.random() < 0.7:
            lane, delivery = flights.pop(rng.randrange(len(flights)))
            left -= 1
            if rng.random() < 0.3:
                left -= len(lanes.failed(lane, delivery, now, 0.5, hung=True) or ())
            else:
                lanes.succeeded(lane, delivery, now)
        elif rng.random() < 0.1:
            left -= len(lanes.turns.withdraw(rng.choice(list(lanes.known.by_endpoint.values()))))
        else:
            lanes.measure(now)
    assert left == 0
    assert lanes.turns.in_flight == lanes.capacity.queued == 0


# Bytes of large payloads ----------------------------------------------------------------------------------------------


def load(lanes, payload_bytes):
    """Load the next payload, if there is room for it; return its lane."""
    wanted = lanes.turns.loads.next()
    if wanted is None:
        return None
    lane, delivery, room = wanted
    cost = lanes.turns.loads.budget.cost(payload_bytes)
    if cost > room:
        lanes.turns.loads.put_back(lane, cost)
        return None
    lanes.turns.loads.put(lane, delivery, Loaded(b"x", None, cost))
    return lane


def test_a_large_payload_is_loaded_before_its_delivery_takes_a_slot():
    lanes = lanes_of()
    lane = lane_of(lanes, 1, count=2, payload=None)
    assert not started(lanes)
    assert lanes.turns.loads
    assert load(lanes, 1000) is lane
    ((_, delivery),) = started(lanes)
    assert delivery.loaded.payload == b"x"
    lanes.succeeded(lane, delivery, 0.0)
    assert delivery.loaded is None
    assert not started(lanes)  # the next one must be loaded first


def test_small_payloads_wait_for_no_large_one():
    lanes = lanes_of()
    lane_of(lanes, 1, count=2, payload=None)
    small = lane_of(lanes, 2, site="s1", count=1)
    assert [lane for lane, _ in started(lanes)] == [small]


def test_a_site_holds_a_half_of_the_bytes_and_others_go_on():
    lanes = lanes_of(queue_bytes_max=1000)
    for number in range(1, 10):
        lane_of(lanes, number, site="big", count=1, payload=None)
    other = lane_of(lanes, 99, count=1, payload=None)
    started(lanes)
    loaded = [load(lanes, 200) for _ in range(10)]
    assert loaded.count(None) >= 7
    assert other in loaded
    assert other.site.loaded_bytes == 200
    assert lanes.known.by_endpoint[1].site.loaded_bytes == 400


def test_bytes_that_come_back_load_the_next():
    lanes = lanes_of(queue_bytes_max=1000)
    for number in range(1, 10):
        lane_of(lanes, number, site="big", count=1, payload=None)
    started(lanes)
    while load(lanes, 200) is not None:
        pass
    ended(lanes, started(lanes)[:1])
    assert load(lanes, 200) is not None


def test_a_payload_larger_than_all_bytes_is_sent_alone():
    lanes = lanes_of(queue_bytes_max=1000)
    lane = lane_of(lanes, 1, count=2, payload=None)
    started(lanes)
    assert load(lanes, 10**9) is lane
    assert len(started(lanes)) == 1


def test_payloads_of_an_emptied_lane_give_their_bytes_back():
    lanes = lanes_of(queue_bytes_max=1000)
    lane = lane_of(lanes, 1, count=3, payload=None)
    started(lanes)
    load(lanes, 100)
    assert len(lanes.turns.withdraw(lane)) == 3
    assert lane.site.loaded_bytes == 0
    assert lane.unloaded == 0


def test_a_payload_that_comes_too_late_is_dropped():
    lanes = lanes_of(queue_bytes_max=1000)
    lane = lane_of(lanes, 1, count=1, payload=None)
    started(lanes)
    _, delivery, _ = lanes.turns.loads.next()
    lanes.turns.withdraw(lane)
    lanes.turns.loads.put(lane, delivery, Loaded(b"x", None, 100))
    assert delivery.loaded is None
    assert lane.site.loaded_bytes == 0


@pytest.mark.parametrize(
    ("used", "held", "room"), [(0, 0, 1000), (900, 0, 100), (600, 100, 150), (0, 100, 400), (800, 1, 0)]
)
def test_room_for_bytes(used, held, room):
    assert PayloadBudget(1000, used).room(held) == room
