"""Deliveries that were in flight when a daemon ended, as the row of `home` keeps them.

Never here: who is quarantined (delivery/poison).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import orjson


@dataclasses.dataclass(frozen=True, slots=True)
class Suspect:
    """A delivery that was named.

    Attributes:
        event_id: with `endpoint_id`, which one.
        ends: ends without a word at which it was on its way.
        in_flight: whether it was when this was written.
    """

    event_id: int
    endpoint_id: int
    ends: int = 0
    in_flight: bool = True

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


def read_suspects(text: str) -> tuple[Suspect, ...]:
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


def write_suspects(suspects: Iterable[Suspect]) -> str:
    """Return the column `suspects`."""
    return orjson.dumps([dataclasses.astuple(suspect) for suspect in suspects]).decode("ascii")
