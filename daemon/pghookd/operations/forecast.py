"""Estimates when a database reaches a size: it grows as in the last week, and old days leave it.

Never here: SQL, a clock, the size of a disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

WEEK: Final = 7  # complete days that the growth is taken from
HORIZON_DAYS: Final = 3650


def growth(days: Mapping[int, int], today: int) -> float:
    """Return the mean bytes of the complete days of the last week; of today alone on the first day.

    Args:
        days: bytes by day.
        today: not complete yet.
    """
    week = [size for day, size in days.items() if today - WEEK <= day < today]
    return sum(week) / len(week) if week else float(days.get(today, 0))


def day_reached(
    days: Mapping[int, int], today: int, *, total: float, limit: float, keep_days: int
) -> int | None:
    """Return the first day on which the database is larger than a limit; None if this is not foreseen.

    Args:
        days: bytes by day, without days to come.
        today: the current day.
        total: bytes of the database now.
        limit: bytes.
        keep_days: setting `retention.days`; 0 keeps all.
    """
    daily = growth(days, today)
    size = total - days.get(today, 0)
    for day in range(today, today + HORIZON_DAYS):
        size += daily if day > today else max(daily, days.get(today, 0))
        if size > limit:
            return day
        leaves = day - keep_days
        if keep_days:
            size -= days.get(leaves, daily if leaves > today else 0)
    return None
