"""When the id clock may move to a day, as a table of clock readings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghookd.model.day import STEP_DAYS_MAX, Reminder, day_of, why_refuse

NOON_US = 12 * 3_600_000_000
TODAY = 2500

# id_day, today, own_day, event_day, and a part of the reason
STEPS = {
    "the next day": (TODAY, TODAY + 1, 0, 0, None),
    "two days": (TODAY, TODAY + STEP_DAYS_MAX, 0, 0, None),
    "back": (TODAY, TODAY - 5, TODAY, TODAY, None),
    "after a week, all agree": (TODAY, TODAY + 7, TODAY + 7, TODAY + 7, None),
    "after a week, just at midnight": (TODAY, TODAY + 7, TODAY + 6, TODAY + 8, None),
    "after a week without any event": (TODAY, TODAY + 7, TODAY + 7, None, None),
    "the server is ten years ahead": (TODAY, TODAY + 3650, TODAY, TODAY, "the daemon's clock 2026-11-05"),
    "all clocks of the machine are ahead": (
        TODAY,
        TODAY + 3650,
        TODAY + 3650,
        TODAY,
        "newest event 2026-11-05",
    ),
    "beyond the calendar": (TODAY, 10**7, TODAY, TODAY, "day 10000000"),
}


@pytest.mark.parametrize(("id_day", "today", "own_day", "event_day", "why"), STEPS.values(), ids=STEPS)
def test_a_long_step_needs_witnesses(id_day, today, own_day, event_day, why):
    found = why_refuse(id_day=id_day, today=today, own_day=own_day, event_day=event_day)
    assert (found is None) if why is None else (why in found)


days = st.integers(0, 10_000)


@given(days, days, days, st.none() | days)
def test_one_clock_alone_never_moves_the_ids_far(id_day, today, own_day, event_day):
    refused = why_refuse(id_day=id_day, today=today, own_day=own_day, event_day=event_day)
    if refused is None:
        assert today - id_day <= STEP_DAYS_MAX or abs(today - own_day) <= 1


def test_days_are_counted_as_in_sql():
    assert day_of(1_577_836_800_000_000) == 0
    assert day_of(1_577_836_800_000_000 - 1) == -1
    assert day_of(1_577_836_800_000_000 + 86_400_000_000 + NOON_US) == 1


def test_a_lasting_state_is_reminded_of_now_and_then():
    reminder = Reminder(10.0, 60.0)
    assert [now for now in range(0, 200, 5) if reminder.is_due(float(now), lasts=True)] == [10, 70, 130, 190]
    assert not reminder.is_due(200.0, lasts=False)
    assert [now for now in range(300, 400, 5) if reminder.is_due(float(now), lasts=True)] == [310, 370]
