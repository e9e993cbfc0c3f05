"""Lines in front of lanes: in any history, each key goes one by one, by id, and nothing is left."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pghookd.model.delivery import Delivery, Endpoint, Event, Outcome, Reason, State
from pghookd.model.endpoint_options import EndpointOptions
from pghookd.model.event_options import EventOptions
from pghookd.model.outcome import AttemptWrite, BacklogWrite, DeadWrite
from pghookd.model.verdict import Dead, Delivered, Retry
from pghookd.scheduling.intake import Offer
from pghookd.scheduling.lane import LaneTerms
from pghookd.scheduling.lanes import Lanes
from pghookd.scheduling.ordering import AHEAD_MAX, LINES_MAX, Order, is_ordered, line_of

ENDPOINT = Endpoint(
    1,
    "s",
    0,
    "https://a.example/",
    ("*",),
    enabled=True,
    from_event_id=0,
    options=EndpointOptions(ordered=True),
)
KEYS = ("a", "b", "c", None)


def delivery_of(event_id, key=None):
    event = Event(event_id, "s", "t", 0, b"{}", options=key and EventOptions(ordering_key=key))
    return Delivery(event, 1, 0, 0.0)


class House:
    """The world around the lines: a log, rows, requests, a recorder that is late."""

    def __init__(self, seed):
        self.rnd = random.Random(seed)
        self.lanes = Lanes(
            LaneTerms(concurrency=8, endpoint_concurrency=4, queue_bytes_max=10**6, queue_max=40)
        )
        self.order = Order(self.lanes)
        self.order.recovered = True
        self.lane = self.lanes.lane(ENDPOINT)
        self.now = 0.0
        self.number = 0
        self.rows = {}  # event_id: (key, due: bool), durable
        self.pending = []  # writes that are not
        self.in_memory = set()
        self.in_flight = []
        self.sent = {key: [] for key in KEYS}
        self.unsaid = []  # rows whose time has come, before anybody has seen it

    def put(self, write):
        self.pending.append(write)
        for other in self.order.note(write, self.now):
            self.put(other)

    def arrive(self):
        key = self.rnd.choice(KEYS)
        delivery = delivery_of(self.number, key)
        self.order.assign(delivery)
        offer = self.order.offer(self.lane, delivery, self.now)
        if offer is Offer.WAIT:  # the reader tries again
            for write in self.order.shed(self.now):
                self.put(write)
            return
        self.number += 1
        if offer is not Offer.QUEUED:
            self.put(BacklogWrite(delivery, State.PARKED, Reason.ORDERING))

    def start(self):
        if (taken := self.lanes.turns.next(self.now)) is not None:
            delivery = taken[1]
            key = line_of(delivery.event) or None
            given_up = [w.delivery for w in self.pending if isinstance(getattr(w, "verdict", None), Dead)]
            for other in self.in_flight + given_up:
                assert line_of(other.event) != line_of(delivery.event)
            self.in_flight.append(delivery)
            if delivery.event.event_id not in self.sent[key]:
                self.sent[key].append(delivery.event.event_id)

    def answer(self):
        if not self.in_flight:
            return
        delivery = self.in_flight.pop(self.rnd.randrange(len(self.in_flight)))
        good = self.rnd.random() < 0.8
        verdict = Delivered() if good else self.rnd.choice([Retry(1.0), Retry(1.0), Dead(Reason.EXHAUSTED)])
        outcome = Outcome.DELIVERED if good else Outcome.REFUSED
        if good:
            self.lanes.succeeded(self.lane, delivery, self.now)
            opened = None
        else:
            opened = self.lanes.failed(self.lane, delivery, self.now, 0.5)
        self.put(AttemptWrite(delivery, outcome, 200, None, None, 0, 1.0, verdict, 1))
        for other in opened or ():
            self.put(BacklogWrite(other, State.PARKED, Reason.BREAKER_OPEN))

    def record(self):
        batch = self.rnd.randrange(len(self.pending) + 1)
        writes, self.pending = self.pending[:batch], self.pending[batch:]
        for write in writes:
            event_id = write.delivery.event.event_id
            waits = isinstance(write, AttemptWrite) and isinstance(write.verdict, Retry)
            if waits or isinstance(write, BacklogWrite):
                self.rows[event_id] = (line_of(write.delivery.event), not waits)
            else:
                self.rows.pop(event_id, None)
            self.in_memory.discard(event_id)
            for other in self.order.settled(write.delivery, self.now):
                self.put(other)

    def fall_due(self):
        for event_id, (key, due) in list(self.rows.items()):
            if not due:
                self.rows[event_id] = (key, True)
                self.unsaid.append(event_id)

    def say_due(self):
        """Mark the rows as due that are not in memory already."""
        for event_id in self.unsaid:
            if event_id in self.rows and event_id not in self.in_memory:
                self.order.due(1, self.rows[event_id][0])
        self.unsaid.clear()

    def look(self):
        """Do what delivery/backlog/due does between two batches."""
        self.record()
        lot = self.order.lot(1)
        if lot.walk is not None:
            page = sorted(event_id for event_id in self.rows if event_id > lot.walk - (lot.walk == 0))[:5]
            self.order.walked(1, {self.rows[event_id][0] for event_id in page}, page[-1] if page else None)
        if not lot.sorted or not self.lanes.backlog_index.refill_quota(1, self.now):
            return
        for line in self.order.ripe(1):
            limit = min(3, self.order.room(line)) + len(line.ahead) + 1
            rows = sorted(event_id for event_id, (key, _) in self.rows.items() if key == line.name)[:limit]
            fresh = [event_id for event_id in rows if event_id not in self.in_memory]
            if self.number < 100:
                self.arrive()  # the reader goes on while rows are read, and answers come
                self.answer()
            taken = self._take(line, fresh)
            full, blocked = len(rows) == limit, taken < len(fresh) and not self.rows[fresh[taken]][1]
            self.order.taken(
                1,
                line,
                all_of_it=taken == len(fresh) and not full,
                blocked=blocked,
                again=full or not blocked,
            )

    def _take(self, line, fresh):
        for number, event_id in enumerate(fresh):
            if not self.rows[event_id][1] or not line.sure:
                return number
            delivery = delivery_of(event_id, line.name or None)
            delivery.in_backlog = delivery.late = True
            self.order.assign(delivery)
            if self.order.rejoin(self.lane, delivery, self.now) is not Offer.QUEUED:
                return number
            self.in_memory.add(event_id)
        return len(fresh)


@given(st.integers(0, 2**32))
def test_each_key_goes_one_by_one_by_id(seed):
    house = House(seed)
    house.rows = {
        n: (house.rnd.choice("ab"), True) for n in range(house.rnd.randrange(4))
    }  # of an epoch before
    house.number = 10
    steps = (
        [house.arrive] * 5
        + [house.start] * 5
        + [house.answer] * 4
        + [house.record, house.look, house.fall_due, house.say_due]
    )
    while house.number < 100:
        house.now += 0.2
        house.rnd.choice(steps)()
    for _ in range(3000):  # no more arrives, all of it ends
        house.now += 40.0
        for step in (house.start, house.answer, house.fall_due, house.say_due, house.look):
            step()
        if not house.rows and not house.in_flight and not house.pending and not house.lanes.capacity.queued:
            break
    assert not house.rows
    capacity = house.lanes.capacity
    assert (capacity.queued, capacity.queued_bytes, house.lanes.turns.in_flight) == (0, 0, 0)
    for sent in house.sent.values():
        assert sent == sorted(sent)
    house.look()
    house.look()
    assert house.order.is_clear(1)
    assert not house.order.lot(1).lines


def quiet():
    """Return lines that know that there are no rows."""
    lanes = Lanes(LaneTerms(concurrency=8, endpoint_concurrency=4, queue_bytes_max=10**6))
    order = Order(lanes)
    lane = lanes.lane(ENDPOINT)
    order.walked(1, [], None)
    return order, lanes, lane


def offer(order, lane, delivery, now=0.0):
    order.assign(delivery)
    return order.offer(lane, delivery, now)


def test_memory_takes_so_many_of_a_line_and_few_of_a_slow_one():
    order, lanes, lane = quiet()
    offers = [offer(order, lane, delivery_of(n)) for n in range(AHEAD_MAX + 2)]
    assert offers == [Offer.QUEUED] * (AHEAD_MAX + 1) + [Offer.BEHIND]
    assert lanes.capacity.queued == AHEAD_MAX + 1
    order, lanes, lane = quiet()
    offer(order, lane, delivery_of(1))
    assert offer(order, lane, delivery_of(2), now=lanes.capacity.patience_s + 0.1) is Offer.BEHIND


def test_what_is_unknown_falls_in_behind():
    lanes = Lanes(LaneTerms(concurrency=8, endpoint_concurrency=4, queue_bytes_max=10**6))
    order = Order(lanes)
    assert offer(order, lanes.lane(ENDPOINT), delivery_of(1)) is Offer.BEHIND
    assert lanes.backlog_index.parked == {1}
    assert not order.is_clear(1)


def test_what_is_looked_at_next_waits_for_that_look():
    lanes = Lanes(LaneTerms(concurrency=8, endpoint_concurrency=4, queue_bytes_max=10**6))
    order, lane = Order(lanes), lanes.lane(ENDPOINT)
    order.recovered = True
    assert offer(order, lane, delivery_of(1)) is Offer.WAIT
    order.walked(1, ["a"], None)
    assert offer(order, lane, delivery_of(2, "a")) is Offer.BEHIND
    assert offer(order, lane, delivery_of(3, "b")) is Offer.QUEUED


def test_nothing_waits_for_a_look_that_is_put_off_or_is_one_of_many():
    lanes = Lanes(LaneTerms(concurrency=8, endpoint_concurrency=4, queue_bytes_max=10**6))
    order, lane = Order(lanes), lanes.lane(ENDPOINT)
    order.recovered = True
    lanes.pause(lane, 60.0, 0.0)
    assert offer(order, lane, delivery_of(1)) is Offer.BEHIND
    lanes.forget(lane)
    order.walked(1, [str(n) for n in range(LINES_MAX + 1)], None)
    assert order.lot(1).walk == 0
    assert offer(order, lane, delivery_of(2, "new")) is Offer.BEHIND


def test_of_more_lines_than_are_remembered_each_is_looked_at():
    order, _, _ = quiet()
    order.restart(1)
    names = [str(n) for n in range(LINES_MAX + 500)]
    order.walked(1, names, 7)
    order.walked(1, [], None)
    lot = order.lot(1)
    assert len(lot.lines) == LINES_MAX
    assert lot.unknown
    seen = set()
    for _ in range(3):
        for line in order.ripe(1):
            seen.add(line.name)
            order.taken(1, line, all_of_it=True, blocked=False, again=False)
        order.walked(1, names[len(seen) :], None)
    assert seen == set(names)


def test_a_released_endpoint_gives_back_its_waiting_deliveries():
    order, lanes, lane = quiet()
    deliveries = [delivery_of(n) for n in range(3)]
    for each in deliveries:
        offer(order, lane, each)
    assert order.forget(1) == deliveries[1:]
    assert lanes.capacity.queued == 1
    assert 1 not in order
    assert order.note(DeadWrite(deliveries[0], Reason.EXPIRED), 0.0) == []


def test_ordered_is_an_option():
    assert is_ordered(ENDPOINT)
    assert line_of(delivery_of(1, "a").event) == "a"
    assert line_of(delivery_of(1).event) == ""
