"""Which deliveries to suspect when the daemon ends without a word, again and again.

An event or an answer that takes the process down must not do so for ever. After a few such ends in a row what is sent
is named in the database before it goes out, a few at a time: those that were on their way at the next such end are
suspects. Suspects are tried one at a time, while all others go as ever. Who is on its way at too many ends is
quarantined.

Never here: SQL, a clock, what is done to a delivery.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

from pghookd.model.suspect import Stay, Suspect

NAMED_AFTER: Final = 3  # ends in a row; fewer may have any cause
QUARANTINED_AFTER: Final = 3  # ends at which a delivery was on its way, the last ones as the only suspect
NAMED_AT_ONCE: Final = 16
NAMED_FOR_S: Final = 60.0  # after the start, doubled with each further end
NAMED_FOR_MAX_S: Final = 3600.0
CALM_AFTER_S: Final = 600.0  # without an end, after which nothing of all this is held against anybody


@dataclasses.dataclass(frozen=True, slots=True)
class Arrival:
    """What is to be thought of the ends before.

    Attributes:
        unclean_ends: in a row, until now.
        suspects: to be tried one at a time.
        quarantined: not to be tried any more.
        named_for_s: for how long everything that is sent is to be named; 0: nothing is.
    """

    unclean_ends: int
    suspects: tuple[Suspect, ...]
    quarantined: tuple[Suspect, ...]
    named_for_s: float

    @property
    def is_wary(self) -> bool:
        """Whether anything is to be done at all."""
        return bool(self.suspects) or self.named_for_s > 0


def arrive(stays: Sequence[Stay], run: str) -> Arrival:
    """Draw the conclusions at the start of an epoch.

    Args:
        stays: all rows of `home`.
        run: of this process; its own epochs follow on each other in order, whatever ended them.
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
