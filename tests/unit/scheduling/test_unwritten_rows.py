"""The recorder's share of a site: rows not durable yet use up its room, and the others keep theirs."""

from __future__ import annotations

from pghookd.model.delivery import Delivery, Event
from pghookd.scheduling.hands import UNWRITTEN_LEAST, UNWRITTEN_MAX, Unwritten


def delivery(site_id):
    return Delivery(Event(1, site_id, "t", 0, b"{}"), 1, 0, 0.0, ticket=object())


def use_up(unwritten, site_id):
    taken = []
    while unwritten.room_for(site_id) > 0:
        taken.append(delivery(site_id))
        unwritten.note(taken[-1])
    return taken


def test_a_site_has_half_of_the_free_room_until_its_rows_are_durable():
    unwritten = Unwritten()
    taken = use_up(unwritten, "s")
    assert UNWRITTEN_MAX // 3 <= len(taken) <= UNWRITTEN_MAX // 3 + 1
    assert unwritten.room_for("other") == (UNWRITTEN_MAX - len(taken)) // 2
    for each in taken[:10]:
        each.ticket = None
    assert unwritten.room_for("s") <= 0
    unwritten.sweep()
    assert unwritten.room_for("s") > 0


def test_a_site_that_has_nothing_always_has_room():
    unwritten = Unwritten()
    for number in range(100):
        use_up(unwritten, f"s{number}")
    assert unwritten.room_for("quiet") >= UNWRITTEN_LEAST
