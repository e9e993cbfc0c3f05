"""When to retry: the schedule, its jitter, and the wait that a receiver requests by `Retry-After`.

Never here: the decision whether to retry at all, a clock, a random source.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

_SECONDS: Final = re.compile(r"([0-9]+)(?:\.[0-9]*)?", re.ASCII)
_DIGITS_MAX: Final = 12  # more than 30,000 years
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH: Final = "|".join(_MONTHS)
_CLOCK: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES: Final = tuple(  # RFC 9110, 5.6.7: senders use the first form, recipients must accept all three
    re.compile(text, re.ASCII | re.IGNORECASE)
    for text in (
        rf"[a-z]{{3}}, (?P<day>[0-9]{{2}}) (?P<month>{_MONTH}) (?P<year>[0-9]{{4}}) {_CLOCK} (?:GMT|UTC)",
        rf"[a-z]{{6,9}}, (?P<day>[0-9]{{2}})-(?P<month>{_MONTH})-(?P<year>[0-9]{{2}}) {_CLOCK} (?:GMT|UTC)",
        rf"[a-z]{{3}} (?P<month>{_MONTH}) (?P<day>[ 0-9][0-9]) {_CLOCK} (?P<year>[0-9]{{4}})",
    )
)


def wait(failure_n: int, schedule: Sequence[float], jitter: float, random01: float) -> float | None:
    """Return the seconds to wait after a failure, or None if the schedule is used up.

    Args:
        failure_n: 1 for the first failure.
        schedule: the waits, in seconds.
        jitter: 0.2 spreads a wait evenly over 80 to 120 % of its length.
        random01: a random number from 0 to 1.
    """
    if failure_n > len(schedule):
        return None
    return schedule[max(failure_n, 1) - 1] * (1.0 + jitter * (2.0 * random01 - 1.0))


def retry_after_s(value: str | None, now_s: float) -> float | None:
    """Return the seconds that a `Retry-After` requests (RFC 9110, 10.2.3), or None if it has no valid value.

    A fraction of a second is dropped; a date in the past gives 0. The function never raises, whatever the text.
    The caller limits the result.

    Args:
        value: the header's value, as received.
        now_s: Unix seconds.
    """
    text = (value or "").strip()
    seconds = _SECONDS.fullmatch(text)
    if seconds is not None:
        digits = seconds[1].lstrip("0") or "0"
        return float(digits) if len(digits) <= _DIGITS_MAX else 10.0**_DIGITS_MAX
    for pattern in _DATES:
        date = pattern.fullmatch(text)
        if date is not None:
            return _until_s(date, now_s)
    return None


def _until_s(date: re.Match[str], now_s: float) -> float | None:
    year = int(date["year"])
    if len(date["year"]) == 2:  # noqa: PLR2004 - RFC 850 writes two digits
        year = _full_year(year, now_s)
    try:
        then = datetime(
            year,
            _MONTHS.index(date["month"].title()) + 1,
            int(date["day"]),
            int(date["hour"]),
            int(date["minute"]),
            min(int(date["second"]), 59),  # datetime has no leap second (60)
            tzinfo=UTC,
        )
    except ValueError:
        return None
    return max(0.0, then.timestamp() - now_s)


def _full_year(two_digits: int, now_s: float) -> int:
    """Return the latest year with these last two digits that is at most 50 years ahead (RFC 9110, 5.6.7)."""
    this_year = 1970 + int(now_s // 31_556_952)
    latest = this_year + 50
    return latest - (latest - two_digits) % 100
