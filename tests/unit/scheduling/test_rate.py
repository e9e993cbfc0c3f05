"""A meter: with any steps between two readings, the rate is kept, and idle time is not made up for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghookd.scheduling.rate import METER_CREDIT_S, Meter


@given(
    rate=st.floats(0.1, 1000),
    steps=st.lists(st.floats(0.001, 0.9), min_size=5, max_size=300),
)
def test_the_rate_is_kept_to_one(rate, steps):
    meter, now, taken = Meter(rate, 50.0), 50.0, 0
    for step in steps:
        now += step
        due = meter.due(now)
        assert due >= 0
        meter.taken += due
        taken += due
    assert taken == pytest.approx((now - 50.0) * rate, abs=1.01)


@given(rate=st.floats(0.1, 1000), idle_s=st.floats(10.0, 1e6))
def test_after_a_stop_a_second_is_made_good_and_no_more(rate, idle_s):
    meter = Meter(rate, 50.0)
    assert meter.due(50.0 + idle_s) <= rate * METER_CREDIT_S + 1 + 1e-3  # give or take a rounding
    assert meter.due(50.0 + idle_s) >= 1


def test_what_was_not_taken_is_still_due():
    meter = Meter(100.0, 0.0)
    assert meter.due(0.5) == 50
    meter.taken += 20
    assert meter.due(0.5) == 30
    assert meter.due(0.51) == 31
