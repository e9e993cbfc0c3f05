"""Parses retry schedules, as written in settings and endpoints."""

from __future__ import annotations

import re
from typing import Final

from pghookd.settings.wrong_values import quoted

NO_RETRY: Final = "none"  # a schedule without waits: a single attempt
SCHEDULE_STEPS_MAX: Final = 100
WAIT_S_MAX: Final = 30 * 86400.0
_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_STEP: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)", re.ASCII)


def parse_schedule(text: str) -> tuple[float, ...]:
    """Parse `5s,5m,2h,1d` (also `250ms`, `1.5h`) into the waits after failure 1, 2, ..., in seconds; `none` into ().

    Raises:
        ValueError: a step is not a duration with a unit, or is 0 or over 30 days; or there are no steps or over 100.
    """
    if text.strip() == NO_RETRY:
        return ()
    steps = [part.strip() for part in text.split(",") if part.strip()]
    if not steps:
        raise ValueError("it has no duration; write durations as in 5s,5m,2h,1d, or none")
    if len(steps) > SCHEDULE_STEPS_MAX:
        raise ValueError(f"it has {len(steps)} durations; at most {SCHEDULE_STEPS_MAX} are allowed")
    return tuple(_step_s(step) for step in steps)


def _step_s(step: str) -> float:
    match = _STEP.fullmatch(step)
    if match is None:
        raise ValueError(f"{quoted(step)} is not a duration such as 5s, 5m, 2h or 1d")
    seconds = float(match[1]) * _UNITS_S[match[2]]
    if not 0.0 < seconds <= WAIT_S_MAX:
        raise ValueError(f"{quoted(step)} is not a duration of more than 0 and at most 30 days")
    return seconds
