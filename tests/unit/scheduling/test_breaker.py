"""Breakers: when they open, probe and close; and the pace of deliveries afterwards."""

from __future__ import annotations

import pytest

from pghookd.scheduling.breaker import Breaker, BreakerPolicy
from pghookd.scheduling.rate import CREDIT_S, ENOUGH_PER_S, START_PER_S, Pace


def fed(answers, **policy):
    """Return the breaker after answers: `+` a success, `-` a failure; it is fed until it opens."""
    breaker = Breaker(BreakerPolicy(**policy))
    for each in answers:
        if each == "+":
            breaker.succeeded()
        elif breaker.failed(0.0, 0.5):
            break
    return breaker


OPENS = [
    ("-" * 9, False), ("-" * 10, True),  # from a cold start as from a warm one
    ("+" * 100 + "-" * 9, False), ("+" * 100 + "-" * 10, True),
    ("-+" * 9, False), ("-+" * 10, True), ("-++" * 100, False),
    ("-" * 9 + "+" * 12 + "-", False),  # the first ones have left the window
]  # fmt: skip


def test_half_of_the_last_twenty_open_it_and_no_blip_does():
    for answers, is_open in OPENS:
        assert fed(answers).is_open is is_open


def test_how_many_failures_open_it():
    for attempts, share, failures in [
        (20, 0.5, 10),
        (30, 0.1, 3),
        (10, 1.0, 10),
        (1, 0.01, 1),
        (3, 0.5, 2),
        (100, 0.07, 7),
    ]:
        assert not fed("-" * (failures - 1), attempts=attempts, share=share).is_open
        assert fed("-" * failures, attempts=attempts, share=share).is_open


def test_a_share_of_0_is_off():
    assert not fed("-" * 1000, share=0.0).is_open


def test_the_window_is_empty_again_after_as_many_successes():
    assert fed("-" * 5 + "+" * 19).window != 0
    assert fed("-" * 5 + "+" * 20).window == 0


def test_each_failed_probe_doubles_the_wait_up_to_a_bound_with_jitter():
    breaker = fed("-" * 10)
    waits = [breaker.probe_at]
    for _ in range(7):
        breaker.probe_failed(0.0, 0.5)
        waits.append(breaker.probe_at)
    assert waits == [30, 60, 120, 240, 480, 600, 600, 600]
    for random01, wait in ((0.0, 480.0), (1.0, 720.0)):
        breaker.probe_failed(0.0, random01)
        assert breaker.probe_at == pytest.approx(wait)


def test_a_probe_that_proves_nothing_is_repeated_after_the_same_wait():
    breaker = fed("-" * 10)
    breaker.probe_failed(0.0, 0.5)
    breaker.probe_proved_nothing(100.0, 0.5)
    assert breaker.probe_at == 160.0


def test_closed_it_counts_afresh_and_reopened_it_waits_as_at_first():
    breaker = fed("-" * 10)
    breaker.close()
    assert [breaker.failed(0.0, 0.5) for _ in range(10)] == [False] * 9 + [True]
    breaker.close()
    breaker.reopen(7.0)
    assert (breaker.is_open, breaker.window != 0, breaker.probe_at) == (True, True, 7.0)
    breaker.probe_failed(10.0, 0.5)
    assert breaker.probe_at == 70.0
    breaker.probe_now()
    assert breaker.probe_at == 0.0


# The pace -----------------------------------------------------------------------------------------------------


def starts(pace, seconds, fails=lambda _n: False):
    """Start and answer at once all that may start, a step every millisecond; return the starts of each second."""
    counts = [0] * seconds
    for ms in range(1000 * seconds):
        now = ms / 1000
        while pace.not_before <= now:
            pace.started(now)
            counts[ms // 1000] += 1
            if fails(sum(counts)):
                pace.halve(now)
            else:
                pace.grow()
    return counts


def test_a_pace_grows_by_e_in_its_time_while_successes_come():
    counts = starts(Pace(0.0), 30)
    assert 4 <= counts[0] <= 7
    for second in range(10, 30):
        assert counts[second] / counts[second - 10] == pytest.approx(2.718, rel=0.25)


def test_a_failure_halves_it_and_those_that_follow_do_not():
    pace = Pace(0.0, 100.0)
    for now in (0.0, 1.0, 9.0):
        pace.halve(now)
    assert pace.per_s == 50.0
    pace.halve(pace.grow_s)
    assert pace.per_s == 25.0


def test_it_falls_where_more_than_three_in_ten_fail():
    for share, falls in [(10, False), (4, False), (2, True)]:
        counts = starts(Pace(0.0, 40.0), 40, lambda n, share=share: n % share == 0)
        assert (counts[-1] < counts[0]) is falls


def test_it_never_stops_and_is_needless_above_a_bound():
    pace = Pace(0.0)
    for n in range(20):
        pace.halve(n * pace.grow_s)
    assert pace.per_s >= 1.0
    pace.per_s = ENOUGH_PER_S - 0.05
    assert pace.grow()


def test_lateness_is_made_up_a_little_and_no_more():
    pace = Pace(0.0)
    pace.started(9.0)
    assert pace.not_before == pytest.approx(9.0 - CREDIT_S + 1 / START_PER_S)
