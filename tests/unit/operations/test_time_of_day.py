"""The times that operators type, in their own time zone."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest

from pghookd.operations.time_of_day import parse_time

NOW = dt.datetime(2026, 11, 30, 14, 5, 59, 7, ZoneInfo("Europe/Sofia"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("9:00", "2026-11-30T09:00:00+02:00"),
        ("09:00", "2026-11-30T09:00:00+02:00"),
        ("14:05", "2026-11-30T14:05:00+02:00"),
        ("14:06", "2026-11-29T14:06:00+02:00"),  # the latest that has passed
        ("today 9:00", "2026-11-30T09:00:00+02:00"),
        ("today 23:59", "2026-11-30T23:59:00+02:00"),
        ("today", "2026-11-30T00:00:00+02:00"),
        ("yesterday", "2026-11-29T00:00:00+02:00"),
        ("yesterday 17:30", "2026-11-29T17:30:00+02:00"),
        ("90s", "2026-11-30T14:04:29.000007+02:00"),
        ("2h", "2026-11-30T12:05:59.000007+02:00"),
        ("3d", "2026-11-27T14:05:59.000007+02:00"),
        ("2026-11-01", "2026-11-01T00:00:00+02:00"),
        ("2026-07-01 08:15", "2026-07-01T08:15:00+03:00"),  # in summer time
        ("2026-11-30T07:00:00Z", "2026-11-30T07:00:00+00:00"),
        (" 2h ", "2026-11-30T12:05:59.000007+02:00"),
    ],
)
def test_times(text, wanted):
    assert parse_time(text, NOW).isoformat() == wanted


@pytest.mark.parametrize(
    "text", ["", "soon", "25:00", "9:60", "9", "tomorrow 9:00", "2w", "-2h", "2026-13-01"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"is (not a time such as|no time of a day)"):
        parse_time(text, NOW)
