"""The outcomes of a delivery that the recorder writes: an attempt, a row of `backlog`, or a dead delivery.

Never here: batches of outcomes (delivery/batch).
"""

from __future__ import annotations

import dataclasses
from typing import Final, TypeAlias

from pghookd.model.delivery import Delivery, Outcome, Reason, State
from pghookd.model.verdict import Verdict

UNSENT: Final = "unsent"  # stored as the outcome if there was no attempt; the error is then the reason


@dataclasses.dataclass(slots=True, eq=False)
class AttemptWrite:
    """A request was made, or refused before it was sent."""

    delivery: Delivery
    outcome: Outcome
    status: int | None
    error: str | None
    response: bytes | None
    attempted_at_us: int
    duration_ms: float
    verdict: Verdict
    revision: int  # of the endpoint, as the request was made
    evidence: str | None = (
        None  # JSON text (egress/evidence); None if it succeeded, or no connection was begun
    )


@dataclasses.dataclass(slots=True, eq=False)
class BacklogWrite:
    """A delivery gets a row in `backlog` without an attempt: it is waiting, parked or held."""

    delivery: Delivery
    state: State
    reason: Reason
    wait_s: float | None = None  # seconds until a waiting delivery is due; None if at once


@dataclasses.dataclass(slots=True, eq=False)
class DeadWrite:
    """A delivery is given up without an attempt."""

    delivery: Delivery
    reason: Reason


Write: TypeAlias = AttemptWrite | BacklogWrite | DeadWrite
