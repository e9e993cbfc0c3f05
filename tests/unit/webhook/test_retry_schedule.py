"""Waits: the schedule as written, jitter within its bounds, and a Retry-After that may say anything."""

from __future__ import annotations

import math
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghookd.settings import durations
from pghookd.webhook import retry_schedule

NOW_S = 1_764_000_000.0  # 2025-11-24 16:00:00 UTC
STANDARD = "5s,5m,30m,2h,5h,10h,14h,20h,24h"


def test_the_standards_schedule():
    waits = durations.parse_schedule(STANDARD)
    assert waits == (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
    assert sum(waits) == (75 * 60 + 35) * 60 + 5


@pytest.mark.parametrize(
    ("text", "waits"),
    [("1d", (86400,)), (" 250ms , 1.5h,", (0.25, 5400)), ("30d", (2_592_000,)), (" none ", ())],
)
def test_schedules(text, waits):
    assert durations.parse_schedule(text) == waits


NO_SCHEDULE = [
    "",
    ",",
    "5",
    "5 s",
    "none,5s",
    "None",
    "-5s",
    "5S",
    "5w",
    "s",
    "1e3s",
    "0s",
    "0.0000001s",
    "31d",
    "nan",
    "\N{ARABIC-INDIC DIGIT FIVE}s",
    "1" * 5000 + "s",
]


def test_an_invalid_schedule_is_refused():
    for text in NO_SCHEDULE:
        with pytest.raises(ValueError, match="duration"):
            durations.parse_schedule(text)


def test_a_schedule_is_bounded():
    assert len(durations.parse_schedule(",".join(["1s"] * 100))) == 100
    with pytest.raises(ValueError, match="at most 100"):
        durations.parse_schedule(",".join(["1s"] * 101))


@given(st.text())
def test_any_text_is_a_schedule_or_a_fault(text):
    try:
        waits = durations.parse_schedule(text)
    except ValueError:
        return
    assert all(0 < each <= durations.WAIT_S_MAX for each in waits)


def test_waits_follow_the_schedule_until_it_is_used_up():
    schedule = (1.0, 10.0)
    assert [retry_schedule.wait(n, schedule, 0.0, 0.9) for n in (1, 2, 3, 4)] == [1.0, 10.0, None, None]


@given(st.integers(1, 9), st.floats(0, 1), st.floats(0, 1))
def test_jitter_stays_within_its_share(failure_n, jitter, random01):
    schedule = durations.parse_schedule(STANDARD)
    base = schedule[failure_n - 1]
    waited = retry_schedule.wait(failure_n, schedule, jitter, random01)
    assert base * (1 - jitter) - 1e-6 <= waited <= base * (1 + jitter) + 1e-6


RETRY_AFTER = [
    (None, None),
    ("", None),
    ("0", 0),
    ("120", 120),
    (" 120 ", 120),
    ("0120", 120),
    ("1.9", 1),
    ("1.", 1),
    ("-1", None),
    ("+1", None),
    ("1e308", None),
    ("NaN", None),
    ("inf", None),
    ("120, 60", None),
    ("120 s", None),
    ("٣", None),
    ("1000000000", 1e9),
    ("9" * 5000, 1e12),
    ("0" * 5000 + "7", 7),
    ("Mon, 24 Nov 2025 16:02:00 GMT", 120),
    ("Monday, 24-Nov-25 16:02:00 GMT", 120),
    ("Mon Nov 24 16:02:00 2025", 120),
    ("Sat Nov  1 16:02:00 2025", 0),
    ("mon, 24 nov 2025 16:02:00 gmt", 120),
    ("Mon, 24 Nov 2025 16:00:60 GMT", 59),
    ("Mon, 24 Nov 2025 15:00:00 GMT", 0),
    ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
    ("Fri, 31 Dec 9999 23:59:59 GMT", 253_402_300_799 - NOW_S),
    ("Mon, 31 Feb 2025 16:02:00 GMT", None),
    ("Mon, 24 Nov 0000 16:02:00 GMT", None),
    ("Mon, 24 Nov 2025 25:02:00 GMT", None),
    ("Mon, 24 Nov 2025 16:02:00 +0100", None),
    ("2025-11-24T16:02:00Z", None),
]


def test_retry_after():
    assert [(value, retry_schedule.retry_after_s(value, NOW_S)) for value, _ in RETRY_AFTER] == RETRY_AFTER


def test_two_digits_of_a_year_are_not_far_ahead():
    assert retry_schedule.retry_after_s("Monday, 24-Nov-76 16:00:00 GMT", NOW_S) == 0  # 1976
    assert retry_schedule.retry_after_s("Monday, 24-Nov-30 16:00:00 GMT", NOW_S) > 0  # 2030


@given(st.text() | st.from_regex(r"[0-9]+(\.[0-9]*)?") | st.integers(0, 2**40).map(lambda s: f"{s}"))
def test_no_text_raises(value):
    found = retry_schedule.retry_after_s(value, NOW_S)
    assert found is None or (found >= 0 and math.isfinite(found))


@given(st.integers(0, 253_402_300_799))
def test_every_date_that_can_be_sent_is_read(then_s):
    found = retry_schedule.retry_after_s(formatdate(then_s, usegmt=True), NOW_S)
    assert found == max(0, then_s - NOW_S)
