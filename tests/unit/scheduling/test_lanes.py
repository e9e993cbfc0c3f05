"""Lanes: pace, turns, bounds, and which deliveries are parked or waited for when lanes are full."""

from __future__ import annotations

import random
from collections import deque

import hypothesis
import pytest

from pghookd.model.delivery import Delivery, Endpoint, Event, State
from pghookd.model.endpoint_options import EndpointOptions
from pghookd.model.event_options import EventOptions
from pghookd.scheduling.breaker import BreakerPolicy
from pghookd.scheduling.capacity import RESERVE, SITE_LEAST, SITE_PAGE_MAX
from pghookd.scheduling.intake import SHED_MAX, STUCK_QUEUE_MAX, Offer, not_yet
from pghookd.scheduling.lane import (
    EASE_EVERY_S,
    HANGS_MAX,
    LANE_QUEUE_MAX,
    PAUSE_PARKS_S,
    START_WIDTH,
    LaneTerms,
)
from pghookd.scheduling.lanes import Lanes


def endpoint(number=1, *, site=None, concurrency=None, url=None, enabled=True, **options):
    made = EndpointOptions(**options) if options else None
    url = url or f"https://h{number}.example/"
    return Endpoint(
        number, site or f"s{number}", 0, url, ("*",), enabled, 0, concurrency=concurrency, options=made
    )


def delivery(number=1, *, event_id=1, since=0.0, payload=b"{}", late=False):
    event = Event(event_id, f"s{number}", "order_created", 0, payload)
    return Delivery(event, number, 0, since, in_backlog=late, late=late)


IDLE = 50  # lanes whose pace is remembered, here


def make(concurrency=512, endpoint_concurrency=16, queue_bytes_max=10**9, policy=None, **bounds):
    policy = policy or BreakerPolicy()
    return Lanes(
        LaneTerms(concurrency, endpoint_concurrency, queue_bytes_max, policy, idle_max=IDLE, **bounds)
    )


def fill(lanes, number, count, **options):
    lane = lanes.lane(endpoint(number, **options))
    for n in range(count):
        assert lanes.intake.offer(lane, delivery(number, event_id=n), 0.0) is Offer.QUEUED
    return lane


def answer(lanes, lane, which=None, now=0.0):
    return lanes.succeeded(lane, which or delivery(), now)


def fail(lanes, lane, which=None, now=0.0, **options):
    return lanes.failed(lane, which or delivery(), now, 0.5, **options)


def start(lanes, now=0.0):
    """Start all that may start."""
    started = []
    while (taken := lanes.turns.next(now)) is not None:
        started.append(taken)
    return started


# Pace -------------------------------------------------------------------------------------------------------


def test_a_new_lane_starts_with_few():
    lanes = make()
    fill(lanes, 1, 10)
    assert len(start(lanes)) == START_WIDTH


def test_each_success_makes_room_for_one_more():
    lanes = make()
    lane = fill(lanes, 1, 100)
    widths = []
    start(lanes)
    for _ in range(6):
        answer(lanes, lane)
        widths.append(len(start(lanes)))
    assert widths == [2] * 6
    assert lane.in_flight == 8


def test_a_lane_grows_up_to_the_endpoints_concurrency_and_no_further():
    lanes = make(endpoint_concurrency=4)
    lane = fill(lanes, 1, 100)
    own = fill(lanes, 2, 100, concurrency=3)
    for each in [lane, own] * 20:
        start(lanes)
        answer(lanes, each)
    start(lanes)
    assert (lane.in_flight, own.in_flight) == (4, 3)


def test_a_failure_halves_and_one_remains():
    lanes = make()
    lane = fill(lanes, 1, 200)
    for _ in range(14):
        start(lanes)
        answer(lanes, lane)
    assert lane.width == 16
    seen = []
    start(lanes)
    for _ in range(6):
        fail(lanes, lane)
        seen.append(lane.width)
    assert seen == [8, 4, 2, 1, 1, 1]
    assert lane.allowed == 1


def test_a_lane_that_fails_goes_on_with_one_at_a_time():
    lanes = make()
    lane = fill(lanes, 1, 10)
    for _ in range(10):
        assert start(lanes)
        while lane.in_flight:
            fail(lanes, lane, counts=False)
        if not lane.queue:
            break
    assert (lane.queue, lanes.capacity.queued, lanes.turns.in_flight) == (deque(), 0, 0)


# Bounds and turns -------------------------------------------------------------------------------------------


def test_no_more_than_the_bound_fly_in_all():
    lanes = make(concurrency=5)
    for number in range(1, 10):
        fill(lanes, number, 3)
    assert len(start(lanes)) == 5
    assert lanes.turns.next(0.0) is None
    assert lanes.turns.in_flight == 5


def test_other_bounds_hold_for_lanes_that_exist():
    lanes = make(concurrency=40, endpoint_concurrency=8)
    lane, own = fill(lanes, 1, 100), fill(lanes, 2, 100, concurrency=6)
    for _ in range(5):
        for each, sent in start(lanes):
            answer(lanes, each, sent)
    lanes.apply(LaneTerms(12, 2, 10**9, BreakerPolicy(attempts=2, share=1.0)))
    assert (lane.limit, own.limit) == (2, 3)  # a lane has at most a quarter of the slots
    assert lane.allowed <= 2
    assert len(start(lanes)) == 5
    assert lane.breaker.policy.attempts == own.breaker.policy.attempts == 2


def test_lanes_take_turns():
    lanes = make()
    for number in (1, 2, 3):
        fill(lanes, number, 5)
    order = [lane.key.endpoint_id for lane, _ in start(lanes)]
    assert order == [1, 2, 3, 1, 2, 3]


def test_sites_take_turns_and_within_a_site_its_lanes():
    lanes = make(concurrency=100, endpoint_concurrency=16)
    for number in range(1, 9):
        lane = fill(lanes, number, 20, site="many")
        lane.resize(16)
    fill(lanes, 9, 20, site="one").resize(16)
    began = [lane.key.endpoint_id for lane, _ in start(lanes)]
    assert began[1:33:2] == [9] * 16
    assert began[0:16:2] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(began) == 50 + 16  # a site has at most a half of all slots


def use_up(lanes, site, endpoints=9):
    """Queue for a site whatever memory has room for."""
    number = len(lanes.known.by_endpoint) + 1
    while (room := lanes.capacity.room_for(site, endpoints)) > 0:
        fill(lanes, number, room, site=site)
    return lanes.known.by_endpoint[number].site.queued


def test_a_site_alone_has_a_quarter_of_the_memory_at_most():
    lanes = make(queue_max=4000)
    assert lanes.capacity.room_for("unknown", 1) == lanes.capacity.room_for("unknown", 50) == SITE_PAGE_MAX
    fill(lanes, 1, 400, site="s")
    assert lanes.capacity.room_for("s", 1) == LANE_QUEUE_MAX // 2 - 400
    alone = use_up(make(queue_max=4000), "t")
    assert (4000 - 4000 // RESERVE) // 4 <= alone <= 4000 // 4
    assert use_up(lanes, "t") < alone
    start(lanes)
    assert lanes.capacity.room_for("s", 9) > 0


def test_however_many_sites_use_up_their_part_another_has_room():
    lanes = make(queue_max=4000)
    for number in range(15):
        assert use_up(lanes, f"s{number}") >= SITE_LEAST
    assert not lanes.capacity.full
    assert lanes.capacity.room_for("quiet", 1) == SITE_LEAST


def test_the_log_is_read_again_for_a_site_if_much_of_its_share_is_free():
    lanes = make(concurrency=400, endpoint_concurrency=100)
    fill(lanes, 1, LANE_QUEUE_MAX // 2 - 200, site="s").resize(100)
    assert (lanes.capacity.room_for("s", 1), lanes.capacity.refill_for("s", 1)) == (200, 0)
    start(lanes)
    assert lanes.capacity.refill_for("s", 1) == lanes.capacity.room_for("s", 1) == 300


def test_a_site_has_its_part_of_the_bytes():
    lanes = make(queue_bytes_max=400)
    lane = lanes.lane(endpoint(1, site="s"))
    lanes.intake.offer(lane, delivery(payload=b"x" * 99), 0.0)
    assert lanes.capacity.room_for("s", 1) > 0
    lanes.intake.offer(lane, delivery(payload=b"x"), 0.0)
    assert lanes.capacity.room_for("s", 1) == 0
    assert lanes.capacity.room_for("other", 1) > 0


def test_lanes_that_do_not_keep_up_give_way_to_others_of_their_site():
    lanes = make(endpoint_concurrency=2)
    fill(lanes, 1, 90, site="s")
    fill(lanes, 2, 90, site="other")
    start(lanes)
    assert lanes.intake.shed_for("s", 1, 5.0) == []  # the site has no lane that waits for room
    lanes.lane(endpoint(3, site="s"))
    shed = lanes.intake.shed_for("s", 1, 5.0)
    assert len(shed) == 84
    assert lanes.known.by_endpoint[1].queued == 4
    assert lanes.known.by_endpoint[2].queued == 88


def test_a_lane_with_little_work_waits_for_one_turn_of_each_other_at_most():
    lanes = make(concurrency=4, endpoint_concurrency=512)
    big = fill(lanes, 1, 900)
    for _ in range(300):
        start(lanes)
        answer(lanes, big)
    small = fill(lanes, 2, 1)
    answer(lanes, big)
    taken = [lane for lane, _ in start(lanes)]
    if small not in taken:
        answer(lanes, big)
        taken += [lane for lane, _ in start(lanes)]
    assert small in taken


def test_deliveries_of_a_lane_go_in_the_order_in_which_they_came():
    lanes = make(endpoint_concurrency=1)
    lane = fill(lanes, 1, 20)
    order = []
    while (taken := lanes.turns.next(0.0)) is not None:
        order.append(taken[1].event.event_id)
        answer(lanes, lane)
    assert order == list(range(20))


def test_the_books_balance_whatever_happens():
    """Live and late, failures of the endpoint and of ours, breakers, paces, rates, pauses: nothing is forgotten."""
    for seed in range(hypothesis.settings.default.max_examples // 4):
        balance(random.Random(seed))


def balance(rnd):
    lanes = make(
        concurrency=7, endpoint_concurrency=3, policy=BreakerPolicy(attempts=6, share=0.5, probe_s=2.0)
    )
    in_flight, inside, now = [], 0, 0.0
    rates = {4: 7.0, 5: 30.0}
    for _ in range(1000):
        what, number, now = rnd.randrange(10), rnd.randrange(1, 6), now + 0.02
        rates[number] = rates.get(number) if rnd.random() < 0.99 else rnd.choice((None, 5.0, 40.0))
        lane = lanes.lane(endpoint(number, rate_per_s=rates[number]))
        if what < 4:
            each = delivery(number, late=rnd.random() < 0.3, since=now)
            inside += lanes.intake.offer(lane, each, now) is Offer.QUEUED
        elif what < 7 and (taken := lanes.turns.next(now)) is not None:
            in_flight.append(taken)
            assert taken[0].throttle.paused_until <= now
        elif what < 9 and in_flight:
            lane, each = in_flight.pop(rnd.randrange(len(in_flight)))
            inside -= 1
            if rnd.random() < 0.5:
                lanes.succeeded(lane, each, now, rnd.random())
            else:
                wait_s = rnd.choice((0.0, 0.0, 0.0, 0.5, 1.0, 2 * PAUSE_PARKS_S))
                inside -= len(lanes.pause(lane, wait_s, now))
                opened = lanes.failed(lane, each, now, rnd.random(), counts=rnd.random() < 0.9)
                inside -= len(opened or ())
        elif what == 9 and rnd.random() < 0.1:
            inside -= len(lanes.turns.withdraw(lane))
        elif what == 9:
            rnd.choice((lanes.backlog_index.parked.add, lanes.caught_up))(number)
            lane.catch_up(now)
        assert lanes.turns.in_flight == len(in_flight) <= 7
        assert lanes.capacity.queued + lanes.turns.in_flight == inside
        assert all(lane.in_flight <= 3 for lane in lanes.known.busy())
        probes = [lane.probe for lane in lanes.known.busy() if lane.breaker.is_open and lane.queued]
        assert all(probe is not None for probe in probes)  # an open lane holds nothing else
        assert all(lane.queued <= 1 for lane in lanes.known.busy() if lane.breaker.is_open)
    while inside:  # nothing is ever forgotten in a queue
        in_flight.extend(start(lanes, now))
        assert in_flight or lanes.turns.rests_until > now
        now = lanes.turns.rests_until or now
        while in_flight:
            lanes.succeeded(*in_flight.pop(), now)
            inside -= 1
    assert (lanes.capacity.queued, lanes.capacity.queued_bytes, list(lanes.known.busy())) == (0, 0, [])


# Rates and pauses -------------------------------------------------------------------------------------------


def test_a_rate_holds_for_live_and_late_work_despite_a_late_timer():
    lanes, rnd, now = make(endpoint_concurrency=100), random.Random(9), 0.0
    lane, started = lanes.lane(endpoint(rate_per_s=50.0)), []
    while now < 20.0:
        while len(lane.queue) < 20:
            lanes.intake.offer(lane, delivery(since=now), now)
        for _ in range(lanes.backlog_index.refill_quota(1, now)):
            lanes.intake.offer(lane, delivery(since=now, late=True), now)
        while (taken := lanes.turns.next(now)) is not None:
            started.append(taken[1].late)
            answer(lanes, *taken, now)
        assert now < lanes.turns.rests_until <= now + 0.02
        now = lanes.turns.rests_until + rnd.random() * 0.06
    assert 990 < len(started) <= 20 * 50 + 6
    assert sum(started) == pytest.approx(len(started) / 4, abs=2)


def test_after_a_rest_no_more_than_a_tenth_of_a_second_is_made_good():
    lanes = make(endpoint_concurrency=1000)
    lane = fill(lanes, 1, 900, rate_per_s=100.0)
    lane.resize(1000)
    assert len(start(lanes, 60.0)) == 11
    assert len(start(lanes, 60.5)) == 11


def test_a_lane_with_a_rate_does_not_keep_up_while_that_holds_it_back():
    lanes = make()
    lane = fill(lanes, 1, LANE_QUEUE_MAX, rate_per_s=3000.0)
    assert lanes.intake.offer(lane, delivery(), 0.0) is Offer.WAIT
    answer(lanes, lane, lanes.turns.next(0.0)[1])
    lanes.intake.offer(lane, delivery(), 0.0)
    assert lanes.intake.offer(lane, delivery(), 0.0) is Offer.PARK
    assert lanes.backlog_index.refill_quota(1, 0.0) == LANE_QUEUE_MAX // 2
    lanes.lane(endpoint(2, rate_per_s=3000.0))
    assert lanes.backlog_index.refill_quota(2, 0.0) == 32  # it has not proved itself
    lane = lanes.lane(endpoint(1, rate_per_s=3.0))
    assert lanes.backlog_index.refill_quota(1, 0.0) == 6


def test_a_changed_rate_applies_at_once_and_an_unchanged_one_goes_on():
    lanes = make()
    lane = fill(lanes, 1, 9, rate_per_s=0.001)
    assert len(start(lanes)) == 1
    lanes.lane(endpoint(1, rate_per_s=0.001, url="https://b.example/"))
    assert start(lanes, 1.0) == []
    assert lanes.turns.rests_until == pytest.approx(999.9)
    lanes.lane(endpoint(1, rate_per_s=2.0))
    assert len(start(lanes, 1.0)) == 1
    answer(lanes, lane)
    assert len(start(lanes, 2.0)) == 1
    lanes.lane(endpoint(1))
    answer(lanes, lane)
    assert len(start(lanes, 2.0)) == 3


def test_in_a_pause_nothing_starts_and_afterwards_it_goes_on():
    lanes = make()
    lane = fill(lanes, 1, 6)
    (_, first), (_, second) = start(lanes)
    assert lanes.pause(lane, 4.0, 0.0) == []
    assert lanes.pause(lane, 2.0, 1.0) == []  # asked for less: the first word counts
    fail(lanes, lane, first)
    answer(lanes, lane, second)  # was sent before
    assert (start(lanes, 3.9), lanes.turns.rests_until) == ([], 4.0)
    assert (lanes.backlog_index.refill_quota(1, 3.9), lanes.backlog_index.probe_at(1)) == (0, 4.0)
    assert len(start(lanes, 4.0)) == lane.allowed == 2
    assert (lanes.backlog_index.probe_at(1), lanes.turns.rests_until) == (None, None)
    assert lane.throttle.pace is None


def test_a_long_pause_empties_memory_and_parked_rows_return_at_a_rate():
    lanes = make()
    lane = fill(lanes, 1, 6)
    [(_, each), _] = start(lanes)
    assert [each.event.event_id for each in lanes.pause(lane, 60.0, 0.0)] == [2, 3, 4, 5]
    lanes.backlog_index.parked.add(1)
    fail(lanes, lane, each)
    assert lanes.intake.offer(lane, delivery(), 54.0) is Offer.PAUSED
    assert lanes.intake.offer(lane, delivery(event_id=7), 56.0) is Offer.QUEUED  # soon over
    assert (start(lanes, 59.9), lanes.backlog_index.refill_quota(1, 59.9)) == ([], 0)
    assert lanes.backlog_index.refill_quota(1, 60.0) == 10
    assert lane.throttle.pace.per_s == 5.0
    lanes.intake.offer(lane, delivery(late=True), 60.0)
    answer(lanes, lane, now=60.0)
    assert [each.late for _, each in start(lanes, 60.0)] == [False, True]


def test_after_a_pause_that_nobody_asked_for_a_lane_goes_on_at_full_speed():
    lanes = make()
    lane = fill(lanes, 1, 5)
    lanes.pause(lane, 60.0, 0.0, asked=False)
    lanes.backlog_index.parked.add(1)
    assert lanes.turns.next(60.0) is None
    assert (lane.throttle.paused_until, lane.throttle.pace) == (0.0, None)


def test_a_lane_that_waits_out_a_short_pause_does_not_keep_up():
    lanes = make()
    lane = fill(lanes, 1, STUCK_QUEUE_MAX)
    for each in [each for _, each in start(lanes)]:
        answer(lanes, lane, each)
    lanes.pause(lane, 4.0, 0.0)
    fill(lanes, 1, 2)
    assert lanes.intake.offer(lane, delivery(), 1.1) is Offer.PARK
    assert lanes.intake.shed(1.1) == []


def test_a_pause_outlives_an_idle_lane_and_is_dropped_at_its_end():
    lanes = make()
    lane = fill(lanes, 1, 1)
    [(_, each)] = start(lanes)
    lanes.pause(lane, 60.0, 0.0)
    fail(lanes, lane, each)
    for number in range(2, IDLE + 3):
        lanes.lane(endpoint(number))
    assert lanes.lane(endpoint(1)) is lane
    assert lanes.turns.next(60.0) is None
    assert lane in lanes.known._idle
    assert (lane.throttle.active, lanes.turns.rests_until) == (False, None)


def test_a_changed_endpoint_ends_a_pause_and_an_ended_rotation_does_not():
    lanes = make()
    lane = fill(lanes, 1, 2, previous_secret="old", previous_until_s=9.0)
    [(_, each), _] = start(lanes)
    lanes.pause(lane, 60.0, 0.0)
    fail(lanes, lane, each)
    lanes.lane(endpoint(1))
    assert lane.throttle.paused_until == 60.0
    lanes.lane(endpoint(1, url="https://b.example/"))
    assert lane.throttle.paused_until == 0.0
    fill(lanes, 1, 1, url="https://b.example/")
    assert start(lanes, 1.0) == []  # at its width
    answer(lanes, lane)
    assert len(start(lanes, 1.0)) == 1
    lanes.pause(lane, 60.0, 1.0)
    lanes.forget(lane)  # deleted
    assert (lane.throttle.paused_until, lane.throttle.active) == (0.0, False)


def test_no_probe_goes_out_before_a_pause_is_over():
    lanes = make(policy=SOON)
    lane, _ = opened(lanes)
    lanes.pause(lane, 60.0, 0.0)
    lanes.backlog_index.parked.add(1)
    assert lanes.intake.offer(lane, delivery(late=True), 59.9) is Offer.OPEN
    assert (lanes.backlog_index.refill_quota(1, 59.9), lanes.backlog_index.probe_at(1)) == (0, 60.0)
    assert lanes.backlog_index.refill_quota(1, 60.0) == 1
    probe = delivery(late=True)
    assert lanes.intake.offer(lane, probe, 60.0) is Offer.QUEUED
    lanes.pause(lane, 4.0, 60.0)  # in the answer to a request sent long ago
    assert start(lanes, 63.9) == []
    assert start(lanes, 64.0) == [(lane, probe)]


# Answers that become slow -----------------------------------------------------------------------------------


def receive(lane, lanes, count, took_s, now=0.0, *, one_by_one=False):
    """Answer so many, each after a time; with `one_by_one` after those before it. Return when that was done."""
    agenda = deque()
    for _ in range(count):
        while len(lane.queue) < 20:
            lanes.intake.offer(lane, delivery(), now)
        for _, each in start(lanes, now):
            begun = max(now, agenda[-1][0]) if agenda and one_by_one else now
            agenda.append((begun + took_s, now, each))
        now, sent, each = agenda.popleft()
        lanes.succeeded(lane, each, now, now - sent)
    for _, _, each in agenda:
        lanes.succeeded(lane, each, now, took_s)
    return now


@pytest.mark.parametrize(
    ("before_s", "after_s", "one_by_one", "least", "most"),
    [(0.001, 0.003, False, 16, 16), (0.4, 0.4, False, 16, 16), (0.02, 0.3, False, 16, 16), (0.1, 0.1, True, 4, 10)],
    ids=["fast either way", "always slow", "slow now whatever we do", "more at once only wait longer"],
)  # fmt: skip
def test_a_lane_narrows_if_its_own_requests_make_answers_slow(before_s, after_s, one_by_one, least, most):
    lanes = make()
    lane = lanes.lane(endpoint())
    now = receive(lane, lanes, 100, before_s, one_by_one=one_by_one)
    receive(lane, lanes, 900, after_s, now, one_by_one=one_by_one)
    assert least <= lane.allowed <= most


def test_slow_answers_halve_a_lane_down_to_a_quarter_of_its_limit():
    lanes = make()
    lane = fill(lanes, 1, 200)
    while lane.allowed < 16:
        start(lanes)
        lanes.succeeded(lane, delivery(), 0.0, 0.01)
    widths = []
    for n in range(60):
        start(lanes)
        lanes.succeeded(lane, delivery(), n / 10 * EASE_EVERY_S, 0.3)
        widths.append(lane.allowed)
    assert sorted(set(widths)) == [4, 8, 16]
    lanes.measure(0.0)
    lanes.delivered += 10_000  # as many as a machine can: it is us who are slow
    lanes.measure(1.0)
    start(lanes)
    lanes.succeeded(lane, delivery(), 99.0, 5.0)
    assert lane.allowed == 5


# Not yet ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("enabled", "wait_s", "state"),
    [(False, 9.0, State.HELD), (True, 9.0, State.WAITING), (True, 2.0, None), (True, 0.0, None)],
)
def test_a_delivery_waits_for_its_endpoint_and_then_for_its_time(enabled, wait_s, state):
    """It came into memory at 1.0; now it is 3.0."""
    event = Event(1, "s1", "order_created", 0, b"{}", options=EventOptions(wait_s=wait_s))
    row = not_yet(endpoint(enabled=enabled), Delivery(event, 1, 0, 1.0), 3.0)
    assert (row and row.state) == state
    if state is State.WAITING:
        assert row.wait_s == 7.0


# Full -------------------------------------------------------------------------------------------------------


def test_the_surplus_of_a_lane_that_never_answered_is_parked():
    lanes = make()
    lane = fill(lanes, 1, LANE_QUEUE_MAX)
    assert lanes.intake.offer(lane, delivery(), 0.0) is Offer.WAIT  # it got no request
    start(lanes)
    fill(lanes, 1, 2)
    assert lanes.intake.offer(lane, delivery(), 0.0) is Offer.PARK


def test_nothing_is_parked_while_no_slot_is_free():
    lanes = make(concurrency=2)
    lane = fill(lanes, 1, LANE_QUEUE_MAX)
    start(lanes)
    lane = fill(lanes, 2, LANE_QUEUE_MAX)
    assert lanes.intake.offer(lane, delivery(2), 99.0) is Offer.WAIT


def test_a_lane_that_keeps_up_is_waited_for():
    lanes = make(endpoint_concurrency=3)
    lane = fill(lanes, 1, LANE_QUEUE_MAX)
    start(lanes)
    answer(lanes, lane)
    start(lanes)
    while len(lane.queue) < LANE_QUEUE_MAX:
        lanes.intake.offer(lane, delivery(), 0.0)
    assert lane.proved
    # Its head has waited for less than a second; then it is at its width and does not keep up.
    assert lanes.intake.offer(lane, delivery(), 0.9) is Offer.WAIT
    assert lanes.intake.offer(lane, delivery(), 1.1) is Offer.PARK


def test_a_proved_lane_below_its_width_is_waited_for():
    lanes = make()
    lane = fill(lanes, 1, LANE_QUEUE_MAX)
    lanes.turns.next(0.0)
    answer(lanes, lane)
    lanes.intake.offer(lane, delivery(), 0.0)
    assert lane.in_flight < lane.allowed
    assert lanes.intake.offer(lane, delivery(), 99.0) is Offer.WAIT


@pytest.mark.parametrize("by", ["rows", "bytes"])
def test_memory_is_bounded_in_rows_and_in_bytes(by):
    rows = 3 * LANE_QUEUE_MAX
    lanes = make(queue_bytes_max=10**9 if by == "rows" else 100, queue_max=rows)
    number, queued = 0, 0
    while not lanes.capacity.full:
        number += 1
        payload = b"{}" if by == "rows" else b"x" * 40
        for _ in range(LANE_QUEUE_MAX):
            queued += (
                lanes.intake.offer(lanes.lane(endpoint(number)), delivery(number, payload=payload), 0.0)
                is Offer.QUEUED
            )
            if lanes.capacity.full:
                break
    assert queued == (rows if by == "rows" else 3)
    assert lanes.intake.offer(lanes.lane(endpoint(999)), delivery(999), 0.0) is Offer.WAIT


def test_bytes_are_given_back_when_a_delivery_leaves_the_queue():
    lanes = make(queue_bytes_max=100)
    lane = lanes.lane(endpoint())
    for _ in range(3):
        lanes.intake.offer(lane, delivery(payload=b"x" * 40), 0.0)
    assert lanes.capacity.full
    lanes.turns.next(0.0)
    assert not lanes.capacity.full
    assert lanes.capacity.queued_bytes == 80


def test_full_memory_sheds_the_surplus_of_lanes_that_do_not_keep_up():
    lanes = make(endpoint_concurrency=4, queue_bytes_max=2000)
    stuck, good = fill(lanes, 1, 900, site="s"), fill(lanes, 2, 90, site="s")
    start(lanes)
    answer(lanes, good)
    assert lanes.intake.shed(0.5) == []
    while not lanes.capacity.full:
        lanes.intake.offer(good, delivery(2, since=9.0), 9.0)
    good.queue[0].since = 9.0
    shed = lanes.intake.shed(9.5)
    assert {each.endpoint_id for each in shed} == {1}
    assert [each.event.event_id for each in shed] == list(range(900 - SHED_MAX, 900))  # the newest, in order
    assert not lanes.capacity.full
    assert lanes.intake.shed(9.5) == []
    while not lanes.capacity.full:
        lanes.intake.offer(good, delivery(2, since=9.0), 9.0)
    lanes.intake.shed(9.5)
    assert len(stuck.queue) == 8


def test_no_lane_is_blamed_that_might_start_more_if_it_were_let():
    """Something else holds it back: the recorder, or the machine."""
    lanes = make(endpoint_concurrency=4, queue_bytes_max=400)
    fill(lanes, 1, 100, site="s")
    lane = fill(lanes, 2, 100, site="s")
    answer(lanes, lane, next(each for of, each in start(lanes) if of is lane))
    while not lanes.capacity.full:
        lanes.intake.offer(lane, delivery(2), 0.0)
    assert lane.in_flight < lane.allowed
    assert {each.endpoint_id for each in lanes.intake.shed(99.0)} == {1}


def test_a_lane_that_does_not_keep_up_takes_few_parked_rows_back():
    lanes = make(endpoint_concurrency=4, queue_bytes_max=2000)
    assert lanes.backlog_index.refill_quota(1, 0.0) == 8  # not known: it has not proved itself
    lane = fill(lanes, 1, 3)
    lanes.intake.offer(lane, delivery(late=True), 0.0)
    assert lanes.backlog_index.refill_quota(1, 0.0) == 7
    start(lanes)
    answer(lanes, lane)
    assert lanes.backlog_index.refill_quota(1, 0.5) == LANE_QUEUE_MAX // 2
    fill(lanes, 1, 10)
    # The one at the head waits too long; live ones do not count.
    assert lanes.backlog_index.refill_quota(1, 9.0) == 7
    for _ in range(4):
        lanes.intake.offer(lane, delivery(late=True), 0.0)
    assert lanes.backlog_index.refill_quota(1, 9.0) == 0  # enough late ones are queued
    assert lanes.backlog_index.refill_quota(1, 0.5) == LANE_QUEUE_MAX // 2
    while not lanes.capacity.full:
        lanes.intake.offer(lane, delivery(), 0.5)
    assert lanes.backlog_index.refill_quota(1, 0.5) == 0
    assert lanes.backlog_index.refill_quota(2, 0.5) == 0


def test_nothing_is_shed_while_every_slot_is_taken():
    lanes = make(concurrency=2, queue_bytes_max=204)
    fill(lanes, 1, 100)
    fill(lanes, 2, 1)
    start(lanes)
    while not lanes.capacity.full:
        lanes.intake.offer(lanes.lane(endpoint()), delivery(), 0.0)
    assert lanes.intake.shed(99.0) == []


# Endpoints that change, lanes that idle ---------------------------------------------------------------------


def test_a_changed_endpoint_keeps_its_lane_and_loses_prepared_requests():
    lanes = make()
    lane = fill(lanes, 1, 5)
    lane.keep("prepared")
    assert lanes.lane(endpoint(1)) is lane
    assert lane.prepared == "prepared"
    assert lanes.lane(endpoint(1, url="https://b.example/", concurrency=1)) is lane
    assert (lane.prepared, lane.limit, lane.endpoint.url) == (None, 1, "https://b.example/")
    assert len(start(lanes)) == 1


def test_emptying_returns_everything_in_order_and_leaves_what_flies():
    lanes = make()
    lane = fill(lanes, 1, 10)
    start(lanes)
    assert [each.event.event_id for each in lanes.turns.withdraw(lane)] == list(range(2, 10))
    assert (lanes.capacity.queued, lanes.capacity.queued_bytes, lane.in_flight) == (0, 0, 2)
    assert lanes.turns.next(0.0) is None
    fail(lanes, lane)
    answer(lanes, lane)
    assert list(lanes.known.busy()) == []


def test_lanes_without_work_are_forgotten_oldest_first():
    lanes = make()
    busy = fill(lanes, 1, 1)
    lanes.turns.next(0.0)
    for number in range(2, IDLE + 7):
        lanes.lane(endpoint(number))
    kept = range(7, IDLE + 7)
    assert busy.in_flight == 1
    assert lanes.known.by_endpoint.keys() == {1, *kept}
    assert lanes.known._lanes.keys() == {lane.key for lane in lanes.known.by_endpoint.values()}
    answer(lanes, busy)  # now it idles as well, and the oldest has to go
    assert lanes.known.by_endpoint.keys() == {1, *kept[1:]}
    first = lanes.lane(endpoint(7))  # a new lane, without a past
    assert (first.width, first.proved, first in lanes.known.busy()) == (2.0, False, False)


def test_a_lane_evicted_between_lookup_and_work_is_known_again():
    lanes = make()
    first = lanes.lane(endpoint(1))
    for number in range(2, IDLE + 3):
        lanes.lane(endpoint(number))
    assert 1 not in lanes.known.by_endpoint
    lanes.intake.offer(first, delivery(1), 0.0)
    assert lanes.known.by_endpoint[1] is first
    [(lane, _)] = start(lanes)
    answer(lanes, lane)
    assert list(lanes.known.busy()) == []


def test_a_lane_with_work_outlives_an_idle_one_of_its_endpoint():
    lanes = make()
    first = lanes.lane(endpoint(1))
    for number in range(2, IDLE + 3):
        lanes.lane(endpoint(number))
    assert lanes.lane(endpoint(1)) is not first  # it was evicted before it got work
    lanes.intake.offer(first, delivery(1), 0.0)
    for number in range(IDLE + 3, 2 * IDLE + 5):
        lanes.lane(endpoint(number))
    assert lanes.known.by_endpoint[1] is first
    assert list(lanes.known.busy()) == [first]


def test_traffic_is_the_sites_that_had_some_lately():
    lanes = make()
    lanes.measure(600.0)
    for number in (1, 2, 2, 3):
        lanes.intake.offer(lanes.lane(endpoint(number)), delivery(number), 600.0)
    start(lanes, 600.0)
    assert lanes.turns.traffic.sites() == 3
    lanes.measure(1200.0)
    assert lanes.turns.traffic.sites() == 3
    for now in (1800.0, 2400.0):
        lanes.measure(now)
    assert lanes.turns.traffic.sites() == 0
    lanes.intake.offer(lanes.lane(endpoint(4)), delivery(4), 2400.0)
    start(lanes, 2400.0)
    assert lanes.turns.traffic.sites() == 1
    lanes.measure(9999.0)  # nobody asked for hours
    assert lanes.turns.traffic.sites() == 0


# The breaker ------------------------------------------------------------------------------------------------


SOON = BreakerPolicy(attempts=4, share=0.5, probe_s=10.0, probe_max_s=40.0)


def opened(lanes, number=1, queued=0):
    """Return a lane whose breaker has opened at 0, and the deliveries queued then."""
    lane = fill(lanes, number, 2 + queued)
    first, second = (delivery for _, delivery in start(lanes))
    assert fail(lanes, lane, first) is None
    return lane, fail(lanes, lane, second)


def test_an_open_breaker_parks_the_queue_and_takes_nothing_more():
    lanes = make(policy=SOON)
    lane, parked = opened(lanes, queued=5)
    assert [each.event.event_id for each in parked] == [2, 3, 4, 5, 6]
    assert lane.breaker.is_open
    assert (lanes.capacity.queued, lanes.backlog_index.refill_quota(1, 9.9)) == (0, 0)
    assert lanes.intake.offer(lane, delivery(), 9.9) is Offer.OPEN


def test_the_first_request_after_the_wait_is_the_only_probe():
    lanes = make(policy=SOON)
    lane, _ = opened(lanes)
    probe = delivery()
    assert lanes.intake.offer(lane, probe, 10.0) is Offer.QUEUED
    assert lanes.intake.offer(lane, delivery(), 10.0) is Offer.OPEN
    assert start(lanes, 10.0) == [(lane, probe)]
    assert lanes.intake.offer(lane, delivery(), 99.0) is Offer.OPEN
    assert fail(lanes, lane, probe, 12.0) is None
    assert lanes.backlog_index.probe_at(1) == 32.0
    assert lanes.intake.offer(lane, delivery(), 31.0) is Offer.OPEN
    assert lanes.intake.offer(lane, delivery(), 32.0) is Offer.QUEUED


def test_the_probe_is_the_oldest_parked_one_where_there_are_any():
    lanes = make(policy=SOON)
    lane, _ = opened(lanes)
    lanes.backlog_index.parked.add(1)
    assert lanes.intake.offer(lane, delivery(), 10.0) is Offer.OPEN
    assert lanes.backlog_index.refill_quota(1, 10.0) == 1
    assert lanes.intake.offer(lane, delivery(late=True), 10.0) is Offer.QUEUED
    assert lanes.backlog_index.refill_quota(1, 10.0) == 0


def test_answers_to_requests_sent_before_it_opened_change_nothing():
    lanes = make(policy=SOON)
    lane = fill(lanes, 1, 9)
    answer(lanes, lane, start(lanes)[0][1])
    old = [each for _, each in start(lanes)]
    start(lanes)
    for _ in range(2):
        fail(lanes, lane, old.pop())
    assert lane.breaker.is_open
    assert answer(lanes, lane, now=20.0) is False
    assert lanes.backlog_index.probe_at(1) == 10.0
    assert not lane.proved


def test_a_probe_that_is_taken_out_or_proves_nothing_does_not_count():
    lanes = make(policy=SOON)
    lane, _ = opened(lanes)
    lanes.intake.offer(lane, delivery(), 10.0)
    assert len(lanes.turns.withdraw(lane)) == 1
    probe = delivery()
    assert lanes.intake.offer(lane, probe, 10.0) is Offer.QUEUED
    start(lanes, 10.0)
    fail(lanes, lane, probe, 10.0, counts=False)
    assert lanes.backlog_index.probe_at(1) == 20.0  # not twice as long


def test_a_probe_that_ended_without_a_request_moves_no_wait():
    lanes = make(policy=SOON)
    lane, _ = opened(lanes)
    lanes.backlog_index.parked.add(1)
    assert lanes.backlog_index.parked.take(10.0, 60.0) == 1
    probe = delivery(late=True)
    assert lanes.intake.offer(lane, probe, 10.0) is Offer.QUEUED
    start(lanes, 10.0)
    width = lane.width
    lanes.unsent(lane, probe)
    assert (lane.width, lane.in_flight, lanes.turns.in_flight) == (width, 0, 0)
    assert lanes.backlog_index.probe_at(1) == 10.0
    assert lanes.backlog_index.parked.take(10.0, 60.0) == 1  # checked again at once
    assert lanes.intake.offer(lane, delivery(late=True), 10.0) is Offer.QUEUED


def test_an_endpoint_that_has_changed_is_checked_before_all_others():
    lanes = make(policy=SOON)
    for number in (1, 2, 3):
        opened(lanes, number)
        lanes.backlog_index.parked.add(number)
    assert [lanes.backlog_index.parked.take(1.0, 60.0) for _ in range(3)] == [1, 2, 3]
    lanes.lane(endpoint(2))
    assert lanes.backlog_index.parked.take(1.0, 60.0) is None  # nothing is new
    lanes.lane(endpoint(2, concurrency=7))
    assert (lanes.backlog_index.parked.take(1.0, 60.0), lanes.backlog_index.refill_quota(2, 1.0)) == (2, 1)


def test_an_open_breaker_is_kept_and_probes_at_once_after_a_change():
    lanes = make(policy=SOON)
    lane, _ = opened(lanes)
    for number in range(2, IDLE + 3):
        lanes.lane(endpoint(number))
    assert lanes.known.by_endpoint[1] is lane
    lanes.lane(endpoint(1, url="https://b.example/"))
    assert lanes.intake.offer(lane, delivery(), 0.1) is Offer.QUEUED
    assert lanes.turns.withdraw(lane)
    lanes.forget(lane)  # deleted: as any other lane from now on
    assert not lane.breaker.is_open
    assert lane in lanes.known._idle


def test_a_breaker_that_was_open_before_a_restart_is_open():
    lanes = make(policy=SOON)
    lanes.backlog_index.reopen(1, 7.0)
    lanes.backlog_index.parked.add(1)
    assert [lanes.backlog_index.refill_quota(1, now) for now in (6.9, 7.0)] == [0, 1]
    lane = lanes.lane(endpoint(1))
    assert lanes.intake.offer(lane, delivery(), 7.0) is Offer.OPEN
    assert lanes.intake.offer(lane, delivery(late=True), 7.0) is Offer.QUEUED
    assert lanes.backlog_index.refill_quota(1, 7.0) == 0


def test_a_breaker_that_was_switched_off_meanwhile_is_closed():
    lanes = make(policy=BreakerPolicy(share=0.0))
    lanes.backlog_index.reopen(1, 7.0)
    assert lanes.backlog_index.probe_at(1) is None
    assert lanes.backlog_index.refill_quota(1, 0.0) > 1


def test_an_unproved_lane_opens_after_few_timeouts_a_proved_one_later():
    lanes = make()
    new, old = fill(lanes, 1, 30), fill(lanes, 2, 30)
    start(lanes)
    answer(lanes, old)
    for lane, failures in ((new, HANGS_MAX), (old, 10)):
        seen = []
        while not lane.breaker.is_open:
            start(lanes)
            seen.append(fail(lanes, lane, hung=True))
        assert (len(seen), seen[-1] != []) == (failures, True)
    assert lanes.backlog_index.probe_at(1) == 30.0


@pytest.mark.parametrize("policy", [BreakerPolicy(), BreakerPolicy(share=0.0)])
def test_other_failures_between_timeouts_keep_a_breaker_closed(policy):
    lanes = make(policy=policy)
    lane = fill(lanes, 1, 30)
    for n in range(9):
        start(lanes)
        fail(lanes, lane, hung=policy.share == 0.0 or n % HANGS_MAX > 0)
    assert not lane.breaker.is_open


# Late work --------------------------------------------------------------------------------------------------


def closed(lanes, late=100, now=10.0):
    """Return a lane whose probe was answered, with late work queued."""
    lane, _ = opened(lanes)
    lanes.backlog_index.parked.add(1)
    probe = delivery(late=True)
    lanes.intake.offer(lane, probe, now)
    start(lanes, now)
    assert answer(lanes, lane, probe, now)
    for n in range(late):
        lanes.intake.offer(lane, delivery(event_id=n, late=True), now)
    return lane


def test_after_an_answered_probe_only_late_work_is_ramped_up():
    lanes = make(policy=SOON)
    lane = closed(lanes)
    for _ in range(3):
        lanes.intake.offer(lane, delivery(event_id=1000), 10.0)
    assert [each.late for _, each in start(lanes, 10.0)] == [False, False]  # slow start
    answer(lanes, lane, now=10.0)
    assert [each.late for _, each in start(lanes, 10.0)] == [False, True]
    answer(lanes, lane, now=10.0)
    assert start(lanes, 10.1) == []
    assert lanes.turns.rests_until == pytest.approx(10.2)
    assert len(start(lanes, 10.21)) == 1
    lane.throttle.pace.per_s = 100.0
    fail(lanes, lane, now=11.0)
    assert lane.throttle.pace.per_s == 50.0
    lanes.caught_up(1)
    assert (lane.throttle.pace, lanes.backlog_index.parked) == (None, set())


def test_a_pace_that_has_become_needless_is_dropped():
    lanes = make(policy=SOON)
    lane = closed(lanes)
    lane.throttle.pace.per_s = 999.95
    [(_, each)] = start(lanes, 10.0)
    answer(lanes, lane, each)
    assert lane.throttle.pace is None
    assert len(start(lanes, 10.0)) == lane.allowed == 3


def test_without_a_pace_late_work_has_one_turn_in_four():
    lanes = make(endpoint_concurrency=1)
    lane = fill(lanes, 1, 8)
    for n in range(100, 103):
        lanes.intake.offer(lane, delivery(event_id=n, late=True), 0.0)
    order = []
    while (taken := lanes.turns.next(0.0)) is not None:
        order.append(taken[1].event.event_id)
        answer(lanes, lane)
    assert order == [0, 1, 2, 100, 3, 4, 5, 101, 6, 7, 102]


def test_a_lane_with_a_pace_takes_little_into_memory():
    lanes = make(policy=SOON)
    lane = closed(lanes, late=0)
    assert lanes.backlog_index.refill_quota(1, 10.0) == 10
    for n in range(6):
        lanes.intake.offer(lane, delivery(event_id=n, late=True), 10.0)
    assert lanes.backlog_index.refill_quota(1, 10.0) == 0
    lane.throttle.pace.per_s = 700.0
    assert lanes.backlog_index.refill_quota(1, 10.0) == LANE_QUEUE_MAX // 2 - 6


def test_switched_on_again_goes_at_a_pace_unless_its_breaker_decides():
    lanes = make(policy=SOON)
    other, _ = opened(lanes, 2)
    lane = fill(lanes, 1, 1)
    lane.catch_up(5.0)
    assert lane.throttle.pace.not_before == 5.0
    other.catch_up(5.0)
    assert other.throttle.pace is None


# Lanes that do not keep up ----------------------------------------------------------------------------------


def test_an_unproved_lane_queues_little_after_its_patience():
    lanes = make()
    lane = fill(lanes, 1, STUCK_QUEUE_MAX + 50)
    start(lanes)
    assert lanes.intake.offer(lane, delivery(), 0.9) is Offer.QUEUED
    assert lanes.intake.offer(lane, delivery(), 1.1) is Offer.PARK
    answer(lanes, lane)  # it may start more
    assert lanes.intake.offer(lane, delivery(), 1.1) is Offer.QUEUED


def test_a_full_pool_waits_for_a_hanging_lane_only_with_much_else_to_do():
    lanes = make(concurrency=16, endpoint_concurrency=2)
    hanging = fill(lanes, 1, LANE_QUEUE_MAX)
    for number in range(2, 8):
        fill(lanes, number, 2)
    start(lanes)
    for number in (8, 9):  # the last slots are for sites with nothing in flight
        fill(lanes, number, 1)
    start(lanes)
    fill(lanes, 1, 2)
    assert (lanes.turns.in_flight, lanes.turns.starving) == (16, True)
    assert lanes.intake.offer(hanging, delivery(), 0.0) is Offer.PARK
    for number in range(10, 20):
        fill(lanes, number, 900)
    assert lanes.intake.offer(hanging, delivery(), 0.0) is Offer.WAIT


def test_where_the_daemon_itself_is_the_bottleneck_patience_is_longer():
    lanes = make()
    lane = fill(lanes, 1, 600)
    lanes.measure(0.0)
    lanes.delivered += 10_000
    for number in range(2, 20):
        fill(lanes, number, 900)
    lanes.measure(1.0)
    assert lanes.capacity.patience_s == pytest.approx(2 * lanes.capacity.queued / 10_000)
    assert not lane.waits_longer(lanes.capacity.patience_s, 2.0)
    lanes.measure(1.2)  # too soon to tell
    assert lanes.capacity.patience_s > 3
    lanes.delivered += 100
    lanes.measure(2.0)
    assert lanes.capacity.patience_s == 1.0
