"""Ramp-up and rate limit: how often deliveries may start.

A pace keeps a receiver that has just recovered from being overwhelmed. Each success adds the same amount. So the pace
grows by a factor of e every `grow_s` seconds if all succeed, and no faster than the receiver answers. A failure halves
it, at most once in `grow_s` seconds. So it falls if more than 3 in 10 fail, and grows otherwise: it is halved, and
multiplied by e to the power of the share of successes.

A rate is the endpoint's own limit, its column `rate_per_s`. Neither successes nor failures change it.

Never here: a clock, the deliveries.
"""

from __future__ import annotations

import dataclasses
from typing import Final

START_PER_S: Final = 5.0
LEAST_PER_S: Final = 1.0
ENOUGH_PER_S: Final = 1000.0  # beyond this a pace is dropped: the lane's width is the limit
CREDIT_S: Final = 0.05  # a start that is late by up to this much is made up for
RATE_CREDIT_S: Final = 0.1  # the same for a rate, so that any second has at most a tenth too many starts


@dataclasses.dataclass(slots=True, eq=False)
class Pace:
    """A time before which nothing may start, and the interval to the next.

    Attributes:
        not_before: monotonic seconds before which nothing may start.
        per_s: starts per second.
        grow_s: seconds in which it grows by a factor of e.
        halved_at: monotonic seconds at which a failure last halved it.
    """

    not_before: float
    per_s: float = START_PER_S
    grow_s: float = 10.0
    halved_at: float = float("-inf")

    def started(self, now: float) -> None:
        """Set the time of the next start."""
        self.not_before = max(self.not_before, now - CREDIT_S) + 1.0 / self.per_s

    def grow(self) -> bool:
        """Count a success; return True if the pace is no longer needed."""
        self.per_s += 1.0 / self.grow_s
        return self.per_s > ENOUGH_PER_S

    def halve(self, now: float) -> None:
        """Halve the pace after a failure, at most once in `grow_s` seconds."""
        if now - self.halved_at >= self.grow_s:
            self.halved_at = now
            self.per_s = max(LEAST_PER_S, self.per_s / 2)


@dataclasses.dataclass(slots=True, eq=False)
class Rate:
    """An even rate limit: each start delays the next one by 1 / per_s seconds (GCRA, ITU-T I.371).

    Attributes:
        per_s: starts per second, above 0.
        not_before: monotonic seconds before which nothing may start.
    """

    per_s: float
    not_before: float = float("-inf")

    def started(self, now: float) -> None:
        """Set the time of the next start."""
        self.not_before = max(self.not_before, now - RATE_CREDIT_S) + 1.0 / self.per_s

    def is_used_up(self, now: float) -> bool:
        """Return True if this rate holds deliveries back; False if starts are late for another reason."""
        return self.not_before > now - RATE_CREDIT_S
