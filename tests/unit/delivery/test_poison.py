"""Which deliveries to suspect after crashes, as a table of crashes."""

from __future__ import annotations

import pytest

from pghookd.delivery import poison
from pghookd.delivery.poison import arrive
from pghookd.model.suspect import Stay, Suspect, read_suspects, write_suspects

HERE = ("here", "db.internal:5432")


def stay(ends=0, named=(), run="before", place=HERE):
    return Stay(*place, run, ends, tuple(named))


def test_the_first_time_nothing_is_suspected():
    assert not arrive([], "now").is_wary
    assert not arrive([stay(run=None)], "now").is_wary
    assert arrive([stay(run="now", ends=2)], "now").unclean_ends == 2


def test_after_few_crashes_all_deliveries_are_named_for_longer_each_time():
    named = [arrive([stay(ends)], "now") for ends in range(16)]
    assert [found.unclean_ends for found in named] == list(range(1, 17))
    assert [found.named_for_s for found in named[:6]] == [0, 0, 60.0, 120.0, 240.0, 480.0]
    assert named[-1].named_for_s == poison.NAMED_FOR_MAX_S


def test_a_delivery_in_flight_at_three_crashes_is_quarantined():
    names = [Suspect(n, 1) for n in range(16)]
    first = arrive([stay(3, names)], "a")
    assert first.suspects == tuple(Suspect(n, 1, 1, in_flight=False) for n in range(16))
    assert first.named_for_s == 0
    second = arrive([stay(4, [Suspect(7, 1, 1), *first.suspects[8:]])], "b")
    assert second.suspects == (Suspect(7, 1, 2, in_flight=False), *first.suspects[8:])
    third = arrive([stay(5, [Suspect(7, 1, 2), *first.suspects[8:]])], "c")
    assert third.quarantined == (Suspect(7, 1, 3, in_flight=False),)
    assert third.suspects == first.suspects[8:]


def test_an_orderly_end_blames_nobody():
    found = arrive([stay(4, [Suspect(1, 1, 1), Suspect(2, 1, 0)], run=None)], "now")
    assert found.quarantined == ()
    assert found.suspects == (Suspect(1, 1, 1),)
    assert found.unclean_ends == 4


def test_ends_on_all_machines_count_together():
    found = arrive([stay(2, run=None), stay(1, place=("there", "db"), run="x")], "now")
    assert found.unclean_ends == 4


@pytest.mark.parametrize("text", ["{}", "[1]", "[[1,2,3]]", '[[1,"x",0,true]]', "null"])
def test_foreign_values_are_left_out(text):
    assert read_suspects(text) == ()


def test_written_values_are_read_back():
    names = (Suspect(5, 6, 1, in_flight=False), Suspect(7, 8))
    assert read_suspects(write_suspects(names)) == names
