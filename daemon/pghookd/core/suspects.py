"""Which deliveries to suspect when the daemon ends without a word, again and again.

An event or an answer that takes the process down must not do so for ever. After a few such ends in a row what is sent
is named in the database before it goes out, a few at a time: those that were on their way at the next such end are
suspects. Suspects are tried one at a time, while all others go as ever. Who is on its way at too many ends is
quarantined.

Never here: SQL, a clock, what is done to a delivery.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

import orjson

NAMED_AFTER: Final = 3  # ends in a row; fewer may have any cause
QUARANTINED_AFTER: Final = 3  # ends at which a delivery was on its way, the last ones as the only suspect
NAMED_AT_ONCE: Final = 16
NAMED_FOR_S: Final = 60.0  # after the start, doubled with each further end
NAMED_FOR_MAX_S: Final = 3600.0
CALM_AFTER_S: Final = 600.0  # without an end, after which nothing of all this is held against anybody


@dataclasses.dataclass(frozen=True, slots=True)
class Suspect:
    """A delivery that was named.

    Attributes:
        event_id: with `endpoint_id`, which one.
        ends: ends without a word at which it was on its way.
        flying: whether it was when this was written.
    """

    event_id: int
    endpoint_id: int
    ends: int = 0
    flying: bool = True

    @property
    def key(self) -> tuple[int, int]:
        """Event and endpoint."""
        return self.event_id, self.endpoint_id


@dataclasses.dataclass(frozen=True, slots=True)
class Stay:
    """One row of `home`.

    Attributes:
        host: the machine.
        server: the address of the database, as given.
        run: of the process that lives there, or ended without a word; None: it ended in order.
        unclean_ends: of processes, in a row.
        suspects: what was named last.
        name: the setting `database.home` there; empty if it was not set.
        started_at_us: when the server started that was seen last, microseconds since 1970; None if not known.
        rival: the address at which the same database may still run, so that this place is no home; None if it is one.
    """

    host: str
    server: str
    run: str | None
    unclean_ends: int
    suspects: tuple[Suspect, ...]
    name: str = ""
    started_at_us: int | None = None
    rival: str | None = None


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
        named = [_blamed(suspect) for suspect in named if suspect.flying or suspect.ends]
    suspects = tuple(suspect for suspect in named if 0 < suspect.ends < QUARANTINED_AFTER)
    quarantined = tuple(suspect for suspect in named if suspect.ends >= QUARANTINED_AFTER)
    return Arrival(ends, suspects, quarantined, 0.0 if suspects else _named_for_s(ends))


def _blamed(suspect: Suspect) -> Suspect:
    return dataclasses.replace(suspect, ends=suspect.ends + suspect.flying, flying=False)


def _named_for_s(ends: int) -> float:
    if ends < NAMED_AFTER:
        return 0.0
    return min(NAMED_FOR_S * 2.0 ** min(ends - NAMED_AFTER, 16), NAMED_FOR_MAX_S)


def read(text: str) -> tuple[Suspect, ...]:
    """Read the column `suspects`; what is none of ours is left out."""
    rows = orjson.loads(text)
    if not isinstance(rows, list):
        return ()
    width = len(dataclasses.fields(Suspect))
    return tuple(
        Suspect(row[0], row[1], row[2], bool(row[3]))
        for row in rows
        if isinstance(row, list) and len(row) == width and all(isinstance(value, int) for value in row)
    )


def write(suspects: Iterable[Suspect]) -> str:
    """Return the column `suspects`."""
    return orjson.dumps([dataclasses.astuple(suspect) for suspect in suspects]).decode("ascii")
