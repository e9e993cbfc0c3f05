"""Decides which deliveries to suspect after the daemon has crashed several times in a row.

An event or a response that crashes the process must not do so for ever. After a few crashes in a row, deliveries are
named in the database before they are sent, a few at a time. Those in flight at the next crash are suspects. Suspects
are tried one at a time, while all other deliveries continue normally. A delivery in flight at too many crashes is
quarantined.

Never here: SQL, a clock, a change to a delivery.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from pghookd.model.suspect import Stay, Suspect

NAMED_AFTER: Final = 3  # crashes in a row; fewer may have any cause
QUARANTINED_AFTER: Final = 3  # crashes with a delivery in flight, at the last ones as only suspect
NAMED_AT_ONCE: Final = 16
NAMED_FOR_S: Final = 60.0  # after the start, doubled with each further crash
NAMED_FOR_MAX_S: Final = 3600.0
CALM_AFTER_S: Final = 600.0  # without a crash for this long, earlier crashes and suspects are forgotten


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """Conclusions from the earlier crashes.

    Attributes:
        unclean_ends: number of crashes in a row, until now.
        suspects: deliveries to be tried one at a time.
        quarantined: deliveries not to be tried any more.
        named_for_s: for how long every delivery is named before it is sent; 0 if none is.
    """

    unclean_ends: int
    suspects: tuple[Suspect, ...]
    quarantined: tuple[Suspect, ...]
    named_for_s: float

    @property
    def is_wary(self) -> bool:
        """Return True if there are suspects, or deliveries must be named."""
        return bool(self.suspects) or self.named_for_s > 0


def arrive(stays: Sequence[Stay], run: str) -> Arrival:
    """Draw the conclusions at the start of an epoch.

    Args:
        stays: all rows of `home`.
        run: the id of this process; its own epochs never count as crashes, however they ended.
    """
    ends = sum(stay.unclean_ends for stay in stays)
    named = [suspect for stay in stays for suspect in stay.suspects]
    if any(stay.run not in {None, run} for stay in stays):
        ends += 1
        named = [_blamed(suspect) for suspect in named if suspect.in_flight or suspect.ends]
    suspects = tuple(suspect for suspect in named if 0 < suspect.ends < QUARANTINED_AFTER)
    quarantined = tuple(suspect for suspect in named if suspect.ends >= QUARANTINED_AFTER)
    return Arrival(ends, suspects, quarantined, 0.0 if suspects else _named_for_s(ends))


def _blamed(suspect: Suspect) -> Suspect:
    return dataclasses.replace(suspect, ends=suspect.ends + suspect.in_flight, in_flight=False)


def _named_for_s(ends: int) -> float:
    if ends < NAMED_AFTER:
        return 0.0
    return min(NAMED_FOR_S * 2.0 ** min(ends - NAMED_AFTER, 16), NAMED_FOR_MAX_S)
