"""What one delivery came to: an attempt, a row of `backlog`, a death.

Never here: batches of them (delivery/batch).
"""

from __future__ import annotations

import dataclasses
from typing import Final, TypeAlias

from pghookd.model.delivery import Delivery, Outcome, Reason, State
from pghookd.model.verdict import Verdict

UNSENT: Final = "unsent"  # stands where an outcome would: there was no attempt, and the error is the reason


@dataclasses.dataclass(slots=True, eq=False)
class AttemptWrite:
    """One request was made, or refused before it left."""

    delivery: Delivery
    outcome: Outcome
    status: int | None
    error: str | None
    response: bytes | None
    attempted_at_us: int
    duration_ms: float
    verdict: Verdict


@dataclasses.dataclass(slots=True, eq=False)
class BacklogWrite:
    """A delivery gets a row in `backlog` without an attempt: queued for long, parked, or held."""

    delivery: Delivery
    state: State
    reason: Reason
    wait_s: float | None = None  # seconds until it is due, of one that waits; None: at once


@dataclasses.dataclass(slots=True, eq=False)
class DeadWrite:
    """A delivery is given up without an attempt."""

    delivery: Delivery
    reason: Reason


Write: TypeAlias = AttemptWrite | BacklogWrite | DeadWrite
