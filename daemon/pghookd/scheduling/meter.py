"""How many of something have come due at a steady rate: a replay's deliveries.

What was missed while nobody asked is made good up to a second; beyond that the time is lost, not crowded together.

Never here: a clock, what is taken.
"""

from __future__ import annotations

import dataclasses
from typing import Final

CREDIT_S: Final = 1.0


@dataclasses.dataclass(slots=True, eq=False)
class Meter:
    """A rate, since when, and what has been taken of it.

    Attributes:
        per_s: more than 0.
        began: monotonic seconds.
        taken: since it began.
    """

    per_s: float
    began: float
    taken: int = 0

    def due(self, now: float) -> int:
        """Return how many may be taken now."""
        behind = now - self.began - self.taken / self.per_s
        if behind > CREDIT_S + 1.0 / self.per_s:  # what has not come to a whole one is not missed
            self.began += behind - max(CREDIT_S, 1.0 / self.per_s)
        return int((now - self.began) * self.per_s + 1e-6) - self.taken
