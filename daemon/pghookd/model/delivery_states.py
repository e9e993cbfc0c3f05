"""The life of a delivery as one table: every way into a state, with its reason and the states before it.

    state      its row is in         it goes on
    (none)     not written yet       with its first attempt
    waiting    `backlog`             with an attempt at a time
    parked     `backlog`             as soon as there is room in memory
    held       `backlog`             once its endpoint is enabled, or it is released
    delivered  `attempts`            no more
    dead       `dead`                no more

Only a replay begins a delivery again that has ended. Rows follow the switch of their endpoint page by page, and
`deliveries` and `explain` show the state that a row will have.

Never here: a decision, SQL, a clock.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Final, TypeAlias

from pghookd.model.delivery import Reason, State


class End(enum.StrEnum):
    """How a delivery ended. A closed set: with State, the column `state` of the view `deliveries`."""

    DELIVERED = "delivered"
    DEAD = "dead"


Stage: TypeAlias = State | End | None  # None if the delivery has no row
_NEW: Final[frozenset[Stage]] = frozenset({None})
_ROWS: Final[frozenset[Stage]] = frozenset(State)
_OPEN: Final = _NEW | _ROWS
_ENDED: Final[frozenset[Stage]] = frozenset(End)


@dataclasses.dataclass(frozen=True, slots=True)
class Move:
    """One way into a state.

    Attributes:
        to: the state after it.
        reason: stored with the state; None for `delivered`, which has none.
        when: the condition, in the words of sql/README.md.
        before: the states that the delivery may be in before it.
        is_intended: True if the producer, the owner or the operator wanted this end: the delivery is not lost.
    """

    to: State | End
    reason: Reason | None
    when: str
    before: frozenset[Stage] = _OPEN
    is_intended: bool = False


LIFE: Final[tuple[Move, ...]] = (
    Move(End.DELIVERED, None, "its receiver accepted it"),
    Move(State.WAITING, Reason.RETRY, "an attempt failed, and the next one has a time"),
    Move(State.WAITING, Reason.QUEUED, "it has been in memory for ten seconds, or has just been released"),
    Move(State.WAITING, Reason.ADOPTED, "`pghookd adopt` found it unsettled", _NEW),
    Move(State.WAITING, Reason.DELIVER_AFTER, "its `deliver_after` has not come yet"),
    Move(State.WAITING, Reason.REPLAY, "a replay sends it once more, or for the first time", _NEW | _ENDED),
    Move(State.PARKED, Reason.LANE_FULL, "its endpoint does not keep up"),
    Move(State.PARKED, Reason.BREAKER_OPEN, "its endpoint fails, and gets a probe from time to time"),
    Move(State.PARKED, Reason.PAUSED, "its receiver asked for a pause, or outcomes of its endpoint are delayed"),
    Move(State.PARKED, Reason.FILTER_SLOW, "its endpoint's filter takes too long"),
    Move(State.PARKED, Reason.ORDERING, "an earlier delivery of its `ordering_key` is unsettled"),
    Move(State.HELD, Reason.DISABLED, "its endpoint is disabled", _OPEN | _ENDED),
    Move(State.HELD, Reason.QUARANTINED, "it was in flight at each of several crashes"),
    Move(End.DEAD, Reason.EXHAUSTED, "its last attempt failed"),
    Move(End.DEAD, Reason.TOO_OLD, "an attempt failed after `retry.age_max_s`"),
    Move(End.DEAD, Reason.EXPIRED, "its `deliver_before` or `retention.held_days` is over, or its day was dropped"),
    Move(End.DEAD, Reason.TOO_LARGE, "its payload is larger than `delivery.payload_bytes_max`"),
    Move(End.DEAD, Reason.BLOCKED, "its URL is one that no request may go to"),
    Move(End.DEAD, Reason.ABORTED, "its receiver answered `webhook-delivery: abort-message`"),
    Move(End.DEAD, Reason.INVALID, "its type, or an option of its endpoint, cannot be used"),
    Move(End.DEAD, Reason.NO_ENDPOINT, "its endpoint was deleted", _ROWS),
    Move(End.DEAD, Reason.CANCELLED, "`webhooks.cancel` gave it up", _ROWS, is_intended=True),
    Move(End.DEAD, Reason.SUPERSEDED, "a newer event of its `supersede_key` replaced it", is_intended=True),
    Move(End.DEAD, Reason.DUPLICATE, "an earlier event has its `dedupe_key`", _NEW, is_intended=True),
    Move(End.DEAD, Reason.DROPPED, "`enable_endpoint` dropped it, or a filter excludes it", _ROWS, is_intended=True),
)  # fmt: skip

NOT_LOST: Final = frozenset(move.reason for move in LIFE if move.is_intended)
