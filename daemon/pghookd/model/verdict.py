"""The verdicts on an answer: delivered, retry, dead, or disable the endpoint.

Never here: how an answer is judged (webhook/judge).
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

from pghookd.model.delivery import DisabledReason, Reason


@dataclasses.dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver accepted the delivery."""


@dataclasses.dataclass(frozen=True, slots=True)
class Retry:
    """Try again after `wait_s` seconds.

    Attributes:
        wait_s: seconds to wait.
        is_spared: True if the attempt failed through our own fault, so that the schedule does not count it.
    """

    wait_s: float
    is_spared: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Dead:
    """Give the delivery up."""

    reason: Reason


@dataclasses.dataclass(frozen=True, slots=True)
class Disable:
    """Disable the endpoint; this delivery and its others are held."""

    reason: DisabledReason


Verdict: TypeAlias = Delivered | Retry | Dead | Disable
