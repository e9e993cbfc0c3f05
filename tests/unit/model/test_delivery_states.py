"""The table of a delivery's life: complete, without contradictions, and final where it says so."""

from __future__ import annotations

from collections import Counter

from pghookd.model.delivery import Reason, State
from pghookd.model.delivery_states import LIFE, NOT_LOST, End
from pghookd.scheduling.intake import PARKED_FOR


def test_each_reason_belongs_to_one_state():
    assert Counter(move.reason for move in LIFE) == Counter([*Reason, None])
    assert [move.to for move in LIFE if move.reason is None] == [End.DELIVERED]


def test_each_state_can_be_reached_and_left_unless_it_is_final():
    assert {move.to for move in LIFE if None in move.before} == {*State, *End}
    for state in State:
        assert {move.to for move in LIFE if state in move.before} == {*State, *End}


def test_only_a_replay_begins_an_ended_delivery_again():
    again = {(move.to, move.reason) for move in LIFE if move.before & set(End)}
    assert again == {(State.WAITING, Reason.REPLAY), (State.HELD, Reason.DISABLED)}


def test_only_the_dead_can_be_meant_to_end():
    assert {move.to for move in LIFE if move.is_intended} == {End.DEAD}
    assert {Reason.CANCELLED, Reason.SUPERSEDED, Reason.DUPLICATE, Reason.DROPPED} == NOT_LOST


def test_lanes_park_for_reasons_of_parked_rows():
    assert set(PARKED_FOR.values()) <= {move.reason for move in LIFE if move.to is State.PARKED}
