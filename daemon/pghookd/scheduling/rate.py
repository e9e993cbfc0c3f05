"""How often something may start: a rate that grows while answers are good, so that who has just got up is not run over.

Each success adds the same amount, so that the rate grows by e every `grow_s` seconds while all of them come, and no
faster than the receiver answers. A failure halves it, once in `grow_s` seconds at the most: it falls where more than 3
in 10 fail, and grows elsewhere (halved, and grown by e to the power of the share that succeeds).

Beside it, how often an endpoint's own requests may start: its column `rate_per_s`, which nothing moves.

Never here: a clock, what is started.
"""

from __future__ import annotations

import dataclasses
from typing import Final

START_PER_S: Final = 5.0
LEAST_PER_S: Final = 1.0
ENOUGH_PER_S: Final = 1000.0  # from here on a pace is no use: the lane's width decides
CREDIT_S: Final = 0.05  # a timer that comes late by this much costs nothing
RATE_CREDIT_S: Final = (
    0.1  # nor does this much, and no more is made good: a second sees a tenth too many at the most
)


@dataclasses.dataclass(slots=True, eq=False)
class Pace:
    """A time before which nothing may start, and the interval to the next.

    Attributes:
        not_before: monotonic seconds.
        per_s: starts a second.
        grow_s: in which it grows by e.
        halved_at: monotonic seconds, when a failure last counted.
    """

    not_before: float
    per_s: float = START_PER_S
    grow_s: float = 10.0
    halved_at: float = float("-inf")

    def started(self, now: float) -> None:
        """Set the time of the next start."""
        self.not_before = max(self.not_before, now - CREDIT_S) + 1.0 / self.per_s

    def grow(self) -> bool:
        """Take a success; whether the pace has become needless."""
        self.per_s += 1.0 / self.grow_s
        return self.per_s > ENOUGH_PER_S

    def halve(self, now: float) -> None:
        """Take a failure."""
        if now - self.halved_at >= self.grow_s:
            self.halved_at = now
            self.per_s = max(LEAST_PER_S, self.per_s / 2)


@dataclasses.dataclass(slots=True, eq=False)
class Rate:
    """An even rate, kept over any time: a start moves the next one on by its share of a second (GCRA, ITU-T I.371).

    Attributes:
        per_s: starts a second, above 0.
        not_before: monotonic seconds.
    """

    per_s: float
    not_before: float = float("-inf")

    def started(self, now: float) -> None:
        """Set the time of the next start."""
        self.not_before = max(self.not_before, now - RATE_CREDIT_S) + 1.0 / self.per_s

    def is_used_up(self, now: float) -> bool:
        """Whether it is this rate that holds back what waits, and not whoever comes late."""
        return self.not_before > now - RATE_CREDIT_S
