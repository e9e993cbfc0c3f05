"""Lanes: pace, turns, bounds, and what is parked or waited for when they are full."""

from __future__ import annotations

import random
from collections import deque

import pytest

from pghookd.core.lanes import IDLE_LANES_MAX, LANE_QUEUE_MAX, QUEUE_MAX, START_WIDTH, Lanes, Offer
from pghookd.core.model import Delivery, Endpoint, Event


def endpoint(number=1, *, concurrency=None, url="https://a.example/", enabled=True):
    return Endpoint(number, f"s{number}", 0, url, ("*",), enabled, 0, concurrency=concurrency)


def delivery(number=1, *, event_id=1, since=0.0, payload=b"{}"):
    return Delivery(Event(event_id, f"s{number}", "order_created", 0, payload), number, 0, since)


def make(concurrency=512, endpoint_concurrency=16, queue_bytes_max=10**9):
    return Lanes(
        concurrency=concurrency, endpoint_concurrency=endpoint_concurrency, queue_bytes_max=queue_bytes_max
    )


def fill(lanes, number, count, **options):
    lane = lanes.lane(endpoint(number, **options))
    for n in range(count):
        assert lanes.offer(lane, delivery(number, event_id=n), 0.0) is Offer.QUEUED
    return lane


def start(lanes):
    """Start whatever may start."""
    started = []
    while (taken := lanes.next()) is not None:
        started.append(taken)
    return started


# Pace -------------------------------------------------------------------------------------------------------


def test_a_new_lane_starts_with_two():
    lanes = make()
    fill(lanes, 1, 10)
    assert len(start(lanes)) == 2


def test_each_success_makes_room_for_one_more():
    lanes = make()
    lane = fill(lanes, 1, 100)
    widths = []
    start(lanes)
    for _ in range(6):
        lanes.done(lane, delivered=True)
        widths.append(len(start(lanes)))
    assert widths == [2] * 6
    assert lane.flying == 8


def test_a_lane_grows_up_to_the_endpoints_concurrency_and_no_further():
    lanes = make(endpoint_concurrency=4)
    lane = fill(lanes, 1, 100)
    own = fill(lanes, 2, 100, concurrency=3)
    for each in [lane, own] * 20:
        start(lanes)
        lanes.done(each, delivered=True)
    start(lanes)
    assert (lane.flying, own.flying) == (4, 3)


def test_a_failure_halves_and_one_remains():
    lanes = make()
    lane = fill(lanes, 1, 200)
    for _ in range(14):
        start(lanes)
        lanes.done(lane, delivered=True)
    assert lane.width == 16
    seen = []
    start(lanes)
    for _ in range(6):
        lanes.done(lane, delivered=False)
        seen.append(lane.width)
    assert seen == [8, 4, 2, 1, 1, 1]
    assert lane.allowed == 1


def test_a_lane_that_fails_goes_on_with_one_at_a_time():
    lanes = make()
    lane = fill(lanes, 1, 10)
    for _ in range(10):
        assert start(lanes)
        while lane.flying:
            lanes.done(lane, delivered=False)
        if not lane.queue:
            break
    assert (lane.queue, lanes.queued, lanes.flying) == (deque(), 0, 0)


# Bounds and turns -------------------------------------------------------------------------------------------


def test_no_more_than_the_bound_fly_in_all():
    lanes = make(concurrency=5)
    for number in range(1, 10):
        fill(lanes, number, 3)
    assert len(start(lanes)) == 5
    assert lanes.next() is None
    assert lanes.flying == 5


def test_lanes_take_turns():
    lanes = make()
    for number in (1, 2, 3):
        fill(lanes, number, 5)
    order = [lane.key.endpoint_id for lane, _ in start(lanes)]
    assert order == [1, 2, 3, 1, 2, 3]


def test_a_lane_with_little_work_waits_for_one_turn_of_each_other_at_most():
    lanes = make(concurrency=4, endpoint_concurrency=512)
    big = fill(lanes, 1, 900)
    for _ in range(300):
        start(lanes)
        lanes.done(big, delivered=True)
    small = fill(lanes, 2, 1)
    lanes.done(big, delivered=True)
    taken = [lane for lane, _ in start(lanes)]
    if small not in taken:
        lanes.done(big, delivered=True)
        taken += [lane for lane, _ in start(lanes)]
    assert small in taken


def test_deliveries_of_a_lane_go_in_the_order_in_which_they_came():
    lanes = make(endpoint_concurrency=1)
    lane = fill(lanes, 1, 20)
    order = []
    while (taken := lanes.next()) is not None:
        order.append(taken[1].event.event_id)
        lanes.done(lane, delivered=True)
    assert order == list(range(20))


@pytest.mark.parametrize("seed", range(8))
def test_the_books_balance_whatever_happens(seed):
    rnd = random.Random(seed)
    lanes, flying, inside = make(concurrency=7, endpoint_concurrency=3), [], 0
    for _ in range(500):
        what = rnd.randrange(10)
        if what < 4:
            number = rnd.randrange(1, 6)
            inside += lanes.offer(lanes.lane(endpoint(number)), delivery(number), 0.0) is Offer.QUEUED
        elif what < 7 and (taken := lanes.next()) is not None:
            flying.append(taken)
        elif what < 9 and flying:
            lane, _ = flying.pop(rnd.randrange(len(flying)))
            lanes.done(lane, delivered=rnd.random() < 0.5)
            inside -= 1
        elif what == 9 and rnd.random() < 0.1:
            inside -= len(lanes.empty(lanes.lane(endpoint(rnd.randrange(1, 6)))))
        assert lanes.flying == len(flying) <= 7
        assert lanes.queued + lanes.flying == inside
        assert all(lane.flying <= 3 for lane in lanes.busy())
    while inside:  # nothing is ever forgotten in a queue
        flying.extend(start(lanes))
        assert flying
        while flying:
            lanes.done(flying.pop()[0], delivered=True)
            inside -= 1
    assert (lanes.queued, lanes.queued_bytes, list(lanes.busy())) == (0, 0, [])


# Full -------------------------------------------------------------------------------------------------------


def test_the_surplus_of_a_lane_that_never_answered_is_parked():
    lanes = make()
    lane = fill(lanes, 1, LANE_QUEUE_MAX)
    assert lanes.offer(lane, delivery(), 0.0) is Offer.PARK


def test_nothing_is_parked_while_no_slot_is_free():
    lanes = make(concurrency=2)
    lane = fill(lanes, 1, LANE_QUEUE_MAX)
    start(lanes)
    lane = fill(lanes, 2, LANE_QUEUE_MAX)
    assert lanes.offer(lane, delivery(2), 99.0) is Offer.WAIT


def test_a_lane_that_keeps_up_is_waited_for():
    lanes = make(endpoint_concurrency=3)
    lane = fill(lanes, 1, LANE_QUEUE_MAX)
    start(lanes)
    lanes.done(lane, delivered=True)
    start(lanes)
    while len(lane.queue) < LANE_QUEUE_MAX:
        lanes.offer(lane, delivery(), 0.0)
    assert lane.proved
    assert lanes.offer(lane, delivery(), 0.9) is Offer.WAIT  # its head has waited for less than a second
    assert lanes.offer(lane, delivery(), 1.1) is Offer.PARK  # at its width, and it does not keep up


def test_a_proved_lane_below_its_width_is_waited_for():
    lanes = make()
    lane = fill(lanes, 1, LANE_QUEUE_MAX)
    lanes.next()
    lanes.done(lane, delivered=True)
    lanes.offer(lane, delivery(), 0.0)
    assert lane.flying < lane.allowed
    assert lanes.offer(lane, delivery(), 99.0) is Offer.WAIT


@pytest.mark.parametrize("by", ["rows", "bytes"])
def test_memory_is_bounded_in_rows_and_in_bytes(by):
    lanes = make(queue_bytes_max=10**9 if by == "rows" else 100)
    number, queued = 0, 0
    while not lanes.full:
        number += 1
        payload = b"{}" if by == "rows" else b"x" * 40
        for _ in range(LANE_QUEUE_MAX):
            queued += (
                lanes.offer(lanes.lane(endpoint(number)), delivery(number, payload=payload), 0.0)
                is Offer.QUEUED
            )
            if lanes.full:
                break
    assert queued == (QUEUE_MAX if by == "rows" else 3)
    assert lanes.offer(lanes.lane(endpoint(999)), delivery(999), 0.0) is Offer.WAIT


def test_bytes_are_given_back_when_a_delivery_leaves_the_queue():
    lanes = make(queue_bytes_max=100)
    lane = lanes.lane(endpoint())
    for _ in range(3):
        lanes.offer(lane, delivery(payload=b"x" * 40), 0.0)
    assert lanes.full
    lanes.next()
    assert not lanes.full
    assert lanes.queued_bytes == 80


def test_shedding_takes_the_surplus_of_lanes_that_do_not_keep_up_and_only_when_memory_is_full():
    lanes = make(endpoint_concurrency=4, queue_bytes_max=2000)
    stuck, good = fill(lanes, 1, 900), fill(lanes, 2, 90)
    start(lanes)
    lanes.done(good, delivered=True)
    assert lanes.shed(0.5) == []
    while not lanes.full:
        lanes.offer(good, delivery(2, since=9.0), 9.0)
    good.queue[0].since = 9.0
    shed = lanes.shed(9.5)
    assert {each.endpoint_id for each in shed} == {1}
    assert len(stuck.queue) == 8
    assert [each.event.event_id for each in shed] == list(range(10, 900))  # the newest of them, in order
    assert not lanes.full


def test_a_lane_that_does_not_keep_up_takes_few_parked_rows_back_and_none_while_memory_is_full():
    lanes = make(endpoint_concurrency=4, queue_bytes_max=2000)
    assert lanes.appetite(1, 0.0) == 8  # not known: it has not proved itself
    lane = fill(lanes, 1, 3)
    assert lanes.appetite(1, 0.0) == 5
    start(lanes)
    lanes.done(lane, delivered=True)
    assert lanes.appetite(1, 0.5) == LANE_QUEUE_MAX // 2
    assert lanes.appetite(1, 9.0) == 7  # the one at the head waits too long
    fill(lanes, 1, 4)
    assert lanes.appetite(1, 9.0) == 0  # enough is queued
    assert lanes.appetite(1, 0.5) == LANE_QUEUE_MAX // 2
    while not lanes.full:
        lanes.offer(lane, delivery(), 0.5)
    assert lanes.appetite(1, 0.5) == 0
    assert lanes.appetite(2, 0.5) == 0


def test_nothing_is_shed_while_every_slot_is_taken():
    lanes = make(concurrency=2, queue_bytes_max=200)
    fill(lanes, 1, 100)
    start(lanes)
    while not lanes.full:
        lanes.offer(lanes.lane(endpoint()), delivery(), 0.0)
    assert lanes.shed(99.0) == []


def test_a_full_lane_has_room_again_once_it_is_half_empty():
    lanes = make(endpoint_concurrency=1000)
    lane = lanes.wanted = fill(lanes, 1, LANE_QUEUE_MAX)
    assert not lanes.has_wanted_room()
    lane.limit = 1000
    lane.resize(1000)
    for _ in range(LANE_QUEUE_MAX // 2):
        assert lanes.next()
    assert lanes.has_wanted_room()
    lanes.wanted = None
    assert not lanes.has_wanted_room()


# Endpoints that change, lanes that idle ---------------------------------------------------------------------


def test_an_endpoint_that_changed_keeps_its_lane_and_loses_what_was_prepared():
    lanes = make()
    lane = fill(lanes, 1, 5)
    lane.cache = "prepared"
    assert lanes.lane(endpoint(1)) is lane
    assert lane.cache == "prepared"
    assert lanes.lane(endpoint(1, url="https://b.example/", concurrency=1)) is lane
    assert (lane.cache, lane.limit, lane.endpoint.url) == (None, 1, "https://b.example/")
    assert len(start(lanes)) == 1


def test_emptying_returns_everything_in_order_and_leaves_what_flies():
    lanes = make()
    lane = fill(lanes, 1, 10)
    start(lanes)
    assert [each.event.event_id for each in lanes.empty(lane)] == list(range(2, 10))
    assert (lanes.queued, lanes.queued_bytes, lane.flying) == (0, 0, 2)
    assert lanes.next() is None
    lanes.done(lane, delivered=False)
    lanes.done(lane, delivered=True)
    assert list(lanes.busy()) == []


def test_lanes_without_work_are_forgotten_oldest_first():
    lanes = make()
    busy = fill(lanes, 1, 1)
    lanes.next()
    for number in range(2, IDLE_LANES_MAX + 7):
        lanes.lane(endpoint(number))
    kept = range(7, IDLE_LANES_MAX + 7)
    assert busy.flying == 1
    assert lanes.by_endpoint.keys() == {1, *kept}
    assert lanes._lanes.keys() == {lane.key for lane in lanes.by_endpoint.values()}
    lanes.done(busy, delivered=True)  # now it idles as well, and the oldest has to go
    assert lanes.by_endpoint.keys() == {1, *kept[1:]}
    first = lanes.lane(endpoint(7))  # a new lane, without a past
    assert (first.width, first.proved, first in lanes.busy()) == (START_WIDTH, False, False)


def test_a_lane_forgotten_between_being_looked_up_and_given_work_is_known_again():
    lanes = make()
    first = lanes.lane(endpoint(1))
    for number in range(2, IDLE_LANES_MAX + 3):
        lanes.lane(endpoint(number))
    assert 1 not in lanes.by_endpoint
    lanes.offer(first, delivery(1), 0.0)
    assert lanes.by_endpoint[1] is first
    [(lane, _)] = start(lanes)
    lanes.done(lane, delivered=True)
    assert list(lanes.busy()) == []
