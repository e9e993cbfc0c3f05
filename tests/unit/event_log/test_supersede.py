"""Keys in memory: the newest event of each at each endpoint, and the known first events of a difference."""

from __future__ import annotations

import pytest

from pghookd.event_log.supersede import (
    DAY_BITS,
    DEDUPE_DAYS,
    DedupeKey,
    Firsts,
    Keys,
    dedupe_key_of,
    is_superseded,
    note_sent,
)
from pghookd.model.delivery import Delivery, Event
from pghookd.model.event_options import EventOptions


def delivery(event_id, key="k", endpoint_id=1, payload=b"{}", **options):
    options = None if key is None else EventOptions(supersede_key=key, **options)
    return Delivery(Event(event_id, "s", "a", 0, payload, options=options), endpoint_id, 0, 0.0)


def superseded(made, now_us=0):
    return [is_superseded(each, now_us) for each in made]


# supersede_key ----------------------------------------------------------------------------------------------------


def test_a_newer_event_of_the_key_replaces_older_ones_at_the_same_endpoint():
    keys = Keys()
    made = [delivery(2), delivery(1), delivery(3), delivery(1, "other"), delivery(1, endpoint_id=2)]
    for each in made:
        keys.note(each)
    assert superseded(made) == [True, True, False, False, False]


def test_an_event_without_a_key_is_not_noted():
    keys, plain, odd = Keys(), delivery(1, None), delivery(2, None)
    odd.event.options = EventOptions(dedupe_key="d")
    for each in (plain, odd):
        keys.note(each)
        assert not is_superseded(each, 0)
    assert len(keys) == 0


def test_a_key_is_forgotten_with_the_last_of_its_deliveries():
    keys, older, newer = Keys(), delivery(1), delivery(2)
    keys.note(older)
    keys.note(newer)
    del newer
    assert is_superseded(older, 0)
    del older
    assert len(keys) == 0


@pytest.mark.parametrize(
    "newer",
    [
        delivery(2, payload=b"x" * 101),
        delivery(2, payload=None, payload_bytes=101),
        delivery(2, deliver_before_us=1000),
    ],
    ids=["too large", "too large to travel with its page", "expired"],
)
def test_a_newer_event_that_cannot_be_delivered_replaces_nothing(newer):
    keys, older = Keys(100, lambda: 1000), delivery(1)
    keys.note(older)
    keys.note(newer)
    assert not is_superseded(older, 1000)


def test_a_large_payload_within_the_limit_replaces():
    keys, older, newer = Keys(100), delivery(1), delivery(2, payload=None, payload_bytes=100)
    keys.note(older)
    keys.note(newer)
    assert is_superseded(older, 0)


def test_a_newer_event_replaces_until_its_end_and_beyond_if_it_was_sent():
    keys, older, newer = Keys(), delivery(1), delivery(2, deliver_before_us=1000)
    keys.note(older)
    keys.note(newer)
    assert [is_superseded(older, now_us) for now_us in (999, 1000)] == [True, False]
    note_sent(older)
    assert not is_superseded(older, 1000)
    note_sent(newer)
    assert is_superseded(older, 1000)


# dedupe_key -------------------------------------------------------------------------------------------------------


def test_a_dedupe_key_counts_for_its_own_day_and_a_week_around():
    event = Event((2500 << DAY_BITS) + 7, "s", "a", 0, b"{}", options=EventOptions(dedupe_key="d"))
    key = dedupe_key_of(event)
    assert key == DedupeKey("s", "d", 2500)
    assert key.from_event_id == 2500 - DEDUPE_DAYS << DAY_BITS
    assert key.to_event_id == (2501 + DEDUPE_DAYS << DAY_BITS) - 1
    assert DedupeKey("s", "d", 0).from_event_id == 0
    assert dedupe_key_of(Event(1, "s", "a", 0, b"{}", options=EventOptions())) is None
    assert dedupe_key_of(Event(1, "s", "a", 0, b"{}")) is None


def test_firsts_forget_the_key_that_was_used_least():
    firsts = Firsts(most=2)
    one, two, three = (DedupeKey("s", name, 1) for name in "abc")
    firsts.put(one, 0)
    firsts.put(two, 5)
    assert firsts.get(one) == 0
    firsts.put(three, 7)
    assert [firsts.get(key) for key in (one, two, three)] == [0, None, 7]
    assert len(firsts) == 2
