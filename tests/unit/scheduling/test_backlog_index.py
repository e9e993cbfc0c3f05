"""Which endpoints have parked rows: turns, hastened looks, the cursor, and a heap that does not grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pghookd.model.delivery import Delivery, Event
from pghookd.scheduling.backlog_index import _STALE_MAX, FIRST, InMemory, Parked


def of(*endpoint_ids):
    parked = Parked()
    for endpoint_id in endpoint_ids:
        parked.add(endpoint_id)
    return parked


def taken(parked, now, count):
    return [parked.take(now, now + 0.1) for _ in range(count)]


def test_it_is_a_set_of_endpoints():
    parked = of(1, 2, 2)
    assert parked == {1, 2}
    assert (2 in parked, 3 in parked, len(parked)) == (True, False, 2)
    parked.discard(2)
    parked.discard(3)
    assert parked == {1}
    assert taken(parked, 5.0, 2) == [1, None]


def test_endpoints_take_turns_however_often_they_are_added():
    parked = of(1, 2, 3)
    assert taken(parked, 0.0, 2) == [1, 2]
    parked.add(1)
    assert taken(parked, 0.1, 4) == [3, 1, 2, None]


def test_a_check_may_be_put_off_put_forward_and_put_first():
    parked = of(1, 2, 3)
    assert taken(parked, 0.0, 3) == [1, 2, 3]
    parked.look(1, 60.0)
    parked.probe_now(2, 70.0)  # it comes earlier anyway
    parked.look(3, FIRST)
    parked.look(4, FIRST)  # has no rows
    assert taken(parked, 0.1, 3) == [3, 2, None]
    parked.probe_now(1, 0.2)
    assert parked.take(0.2, 60.0) in {1, 2, 3}
    assert 4 not in parked


def test_a_row_parked_below_the_cursor_is_read_next():
    parked = of(1)
    assert parked.after(1) == 0
    parked.read(1, 100)
    parked.note(1, 101)
    assert parked.after(1) == 100
    parked.note(1, 40)
    parked.note(1, 70)
    assert parked.after(1) == 39
    parked.rewind(1)
    assert parked.after(1) == 0
    parked.read(1, 100)
    parked.rewind_all()
    assert parked.after(1) == 0
    parked.note(2, 5)
    assert 2 in parked


def test_an_endpoint_that_comes_back_is_read_from_the_beginning():
    parked = of(1)
    parked.read(1, 100)
    parked.discard(1)
    parked.add(1)
    assert parked.after(1) == 0


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0.0, 100.0)), max_size=300))
def test_checks_that_were_planned_again_do_not_pile_up(plans):
    parked = of(*range(1, 6))
    for endpoint_id, at in plans * 3:
        parked.look(endpoint_id, at)
    assert len(parked._heap) <= 2 * len(parked) + _STALE_MAX
    assert sorted(taken(parked, 100.0, 5)) == [1, 2, 3, 4, 5]


@given(st.lists(st.tuples(st.sampled_from("+-?"), st.integers(1, 3), st.integers(1, 3)), max_size=40))
def test_deliveries_in_memory_are_counted_by_endpoint(steps):
    in_memory, model = InMemory(), {}
    for step, event_id, endpoint_id in steps:
        key = (event_id, endpoint_id)
        delivery = Delivery(Event(event_id, "s", "t", 0, b"{}"), endpoint_id, 0, 0.0)
        if step == "+":
            in_memory.add(delivery)
            model[key] = delivery
        elif step == "-":
            in_memory.discard(model.pop(key, delivery))
        else:
            in_memory.discard(delivery)  # another one of the same row
        assert (key in in_memory) == (key in model)
    assert in_memory._deliveries == model
    assert len(in_memory) == len(model)
    for endpoint_id in range(1, 4):
        assert in_memory.count(endpoint_id) == sum(key[1] == endpoint_id for key in model)
    assert len(in_memory._counts) == len({key[1] for key in model})
