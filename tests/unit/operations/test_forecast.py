"""When a database reaches a size: it grows as in the last week, and loses a day for each that comes."""

from __future__ import annotations

import pytest

from pghookd.operations.forecast import day_reached, growth

TODAY = 1000
YEAR = dict.fromkeys(range(TODAY - 365, TODAY), 10) | {TODAY: 3}


def test_growth_is_the_mean_of_the_complete_days_of_a_week():
    days = {TODAY - 9: 10**6, TODAY - 7: 10, TODAY - 6: 30, TODAY - 1: 50, TODAY: 5, TODAY + 1: 10**6}
    assert growth(days, TODAY) == 30


def test_growth_on_the_first_day_is_that_of_the_day_so_far():
    assert growth({TODAY: 5}, TODAY) == 5
    assert growth({}, TODAY) == 0


@pytest.mark.parametrize(
    ("limit", "day"),
    [(3659, TODAY), (3660, TODAY + 1), (3669, TODAY + 1), (3670, TODAY + 2), (4660, TODAY + 101)],
)
def test_without_an_end_it_grows_by_a_day_a_day(limit, day):
    assert day_reached(YEAR, TODAY, total=3653, limit=limit, keep_days=0) == day


def test_with_an_end_it_stays_as_large_as_the_days_that_are_kept():
    days = dict.fromkeys(range(TODAY - 90, TODAY + 1), 10)
    assert day_reached(days, TODAY, total=910, limit=920, keep_days=90) is None
    assert day_reached(days, TODAY, total=910, limit=905, keep_days=90) == TODAY


def test_a_young_log_grows_until_its_first_day_leaves():
    days = {TODAY - 1: 10, TODAY: 10}
    assert day_reached(days, TODAY, total=20, limit=305, keep_days=30) == TODAY + 29
    assert day_reached(days, TODAY, total=20, limit=315, keep_days=30) is None


def test_small_days_leave_while_large_ones_come():
    days = dict.fromkeys(range(TODAY - 30, TODAY - 7), 1) | dict.fromkeys(range(TODAY - 7, TODAY + 1), 100)
    assert day_reached(days, TODAY, total=823, limit=1500, keep_days=30) == TODAY + 7


def test_nothing_that_is_not_foreseen_in_ten_years():
    assert day_reached(YEAR, TODAY, total=3653, limit=10**9, keep_days=0) is None
