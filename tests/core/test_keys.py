"""Keys in memory: the newest event of each at each endpoint, and nothing is kept of what has left."""

from __future__ import annotations

from pghookd.core.event_options import EventOptions
from pghookd.core.keys import Keys, is_superseded
from pghookd.core.model import Delivery, Event


def delivery(event_id, key="k", endpoint_id=1):
    options = None if key is None else EventOptions(supersede_key=key)
    return Delivery(Event(event_id, "s", "a", 0, b"{}", options=options), endpoint_id, 0, 0.0)


def test_a_newer_event_of_the_key_replaces_older_ones_at_the_same_endpoint():
    keys = Keys()
    made = [delivery(2), delivery(1), delivery(3), delivery(1, "other"), delivery(1, endpoint_id=2)]
    for each in made:
        keys.note(each)
    assert [is_superseded(each) for each in made] == [True, True, False, False, False]


def test_what_has_no_key_is_not_noted():
    keys, plain, odd = Keys(), delivery(1, None), delivery(2, None)
    odd.event.options = EventOptions(dedupe_key="d")
    for each in (plain, odd):
        keys.note(each)
        assert not is_superseded(each)
    assert len(keys) == 0


def test_a_key_is_forgotten_with_the_last_of_its_deliveries():
    keys, older, newer = Keys(), delivery(1), delivery(2)
    keys.note(older)
    keys.note(newer)
    del newer
    assert is_superseded(older)
    del older
    assert len(keys) == 0
