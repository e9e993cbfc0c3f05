"""What follows from an answer: delivered, try again, dead, switch the endpoint off.

Never here: how an answer is judged (webhook/judge).
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from pghookd.model.delivery import DisabledReason, Reason


@dataclasses.dataclass(frozen=True, slots=True)
class Delivered:
    """A 2xx: done."""


@dataclasses.dataclass(frozen=True, slots=True)
class Retry:
    """Try again after `wait_s` seconds.

    Attributes:
        wait_s: seconds.
        is_spared: the attempt failed by a fault of our own: the schedule does not count it.
    """

    wait_s: float
    is_spared: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Dead:
    """Never try again."""

    reason: Reason


@dataclasses.dataclass(frozen=True, slots=True)
class Disable:
    """Switch the endpoint off; this delivery and its others are held."""

    reason: DisabledReason


Verdict: TypeAlias = Delivered | Retry | Dead | Disable
