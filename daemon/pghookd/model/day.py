"""Decides whether the id clock may move: event ids carry the day, and they never go back.

A step of at most two days needs the server's clock alone. For a longer step the daemon's own clock and the newest
events must agree with it. Otherwise one wrong reading of a clock would move the ids for good.

Never here: SQL, a clock, moving the id clock.
"""

from __future__ import annotations

import datetime as dt
from typing import Final

STEP_DAYS_MAX: Final = 2  # a weekend's clock error is harmless: the calendar catches up with the ids
AGREE_DAYS: Final = 1  # two clocks may read midnight at different moments
DAY_US: Final = 86_400_000_000
_FIRST: Final = dt.date(2020, 1, 1)
_FIRST_US: Final = 1_577_836_800_000_000  # the same day, in microseconds since 1970


def day_of(wall_us: int) -> int:
    """Return the day of a time in microseconds since 1970, counted as `webhooks.day_of()` does."""
    return (wall_us - _FIRST_US) // DAY_US


def why_refuse(*, id_day: int, today: int, own_day: int, event_day: int | None) -> str | None:
    """Return why the ids must not move to `today` yet; None if they may.

    Args:
        id_day: the day of the ids given out now.
        today: the day by the server's clock.
        own_day: the day by the daemon's clock.
        event_day: the latest day on which one of the newest events was created; None if there are no events.
    """
    if today - id_day <= STEP_DAYS_MAX:
        return None
    if abs(today - own_day) > AGREE_DAYS:
        return f"the server's clock says {date_of(today)} and the daemon's clock {date_of(own_day)}"
    if event_day is not None and abs(today - event_day) > AGREE_DAYS:
        return f"the clocks say {date_of(today)} and the newest event {date_of(event_day)}"
    return None


def date_of(day: int) -> str:
    """Return a day as an ISO date, or as its number if the calendar has no such date."""
    try:
        return (_FIRST + dt.timedelta(days=day)).isoformat()
    except OverflowError:
        return f"day {day}"


class Reminder:
    """Limits warnings about a lasting state: the first comes after a delay, the next ones at an interval.

    Args:
        first_s: how long the state must last before the first warning, seconds.
        every_s: the time between warnings, seconds.
    """

    def __init__(self, first_s: float, every_s: float) -> None:
        self._first_s = first_s
        self._every_s = every_s
        self._due_at: float | None = None

    def is_due(self, now: float, *, lasts: bool) -> bool:
        """Record whether the state lasts; return True if a warning is due.

        Args:
            now: monotonic seconds.
            lasts: True if the state holds now; False resets the delay.
        """
        if not lasts:
            self._due_at = None
            return False
        if self._due_at is None:
            self._due_at = now + self._first_s
        if now < self._due_at:
            return False
        self._due_at = now + self._every_s
        return True
