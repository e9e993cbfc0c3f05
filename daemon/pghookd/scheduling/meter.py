"""Counts how many deliveries of a replay are due at a steady rate.

Time missed between two calls is made up for, up to one second. The rest is lost, so that no burst follows.

Never here: a clock, the deliveries.
"""

from __future__ import annotations

import dataclasses
from typing import Final

CREDIT_S: Final = 1.0


@dataclasses.dataclass(slots=True, eq=False)
class Meter:
    """A rate, its start, and the number taken since.

    Attributes:
        per_s: deliveries per second, more than 0.
        began: monotonic seconds from which the rate counts.
        taken: deliveries taken since `began`.
    """

    per_s: float
    began: float
    taken: int = 0

    def due(self, now: float) -> int:
        """Return how many may be taken now."""
        behind = now - self.began - self.taken / self.per_s
        if behind > CREDIT_S + 1.0 / self.per_s:  # a fraction of a delivery is not missed yet
            self.began += behind - max(CREDIT_S, 1.0 / self.per_s)
        return int((now - self.began) * self.per_s + 1e-6) - self.taken
