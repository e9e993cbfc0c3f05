"""Parses the times that operators type: 9:00, today 9:00, yesterday, 2h, 3d, or a date with or without a time.

Never here: a clock; the current time and the time zone are arguments.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

_AGE: Final = re.compile(r"([0-9]{1,6})(s|m|h|d)")
_CLOCK: Final = re.compile(r"(?:(today|yesterday)\s*)?(?:([0-9]{1,2}):([0-9]{2}))?")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_time(text: str, now: dt.datetime) -> dt.datetime:
    """Return the time that a text means.

    Args:
        text: an age (`2h`, `3d`), a time of today or of the last day (`9:00`, `yesterday 17:30`, `today`), or ISO 8601.
        now: the current time with the operator's time zone, which applies where the text names none. A time of day
            without `today` or `yesterday` is the latest one that has passed.

    Raises:
        ValueError: the text is none of these; the message names the formats.
    """
    text = text.strip()
    if age := _AGE.fullmatch(text):
        return now - dt.timedelta(**{_UNITS[age[2]]: int(age[1])})
    clock = _CLOCK.fullmatch(text)
    if text and clock:
        return _on_the_clock(clock, now)
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not a time such as 9:00, yesterday 17:30, 2h, 3d or 2026-11-30 09:00"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=now.tzinfo)


def _on_the_clock(clock: re.Match[str], now: dt.datetime) -> dt.datetime:
    hour, minute = int(clock[2] or 0), int(clock[3] or 0)
    if hour > 23 or minute > 59:  # noqa: PLR2004 - a clock
        raise ValueError(f"{hour}:{minute:02} is no time of a day")
    found = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if clock[1] == "yesterday" or (clock[1] is None and found > now):
        found -= dt.timedelta(days=1)
    return found
