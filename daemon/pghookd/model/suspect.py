"""Deliveries that were in flight when a daemon crashed, as a row of `home` stores them.

Never here: which deliveries are quarantined (delivery/poison).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import orjson


@dataclasses.dataclass(frozen=True, slots=True)
class Suspect:
    """A delivery that was named in the database before it was sent.

    Attributes:
        event_id: identifies the delivery, together with `endpoint_id`.
        endpoint_id: its endpoint.
        ends: number of crashes during which it was in flight.
        in_flight: True if it was in flight when this was written.
    """

    event_id: int
    endpoint_id: int
    ends: int = 0
    in_flight: bool = True

    @property
    def key(self) -> tuple[int, int]:
        """The event_id and the endpoint_id."""
        return self.event_id, self.endpoint_id


@dataclasses.dataclass(frozen=True, slots=True)
class Stay:
    """One row of `home`.

    Attributes:
        host: the id of the machine.
        server: the address of the database, as the daemon connected to it.
        run: the id of the process that runs there or crashed; None if it ended normally.
        unclean_ends: number of crashes in a row.
        suspects: the deliveries named last.
        name: the setting `database.home` there; empty if it was not set.
        started_at_us: start time of the server seen last, microseconds since 1970; None if not known.
        rival: the address at which the same database may still run, which bars this place as home; None if not barred.
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
    """Parse the column `suspects`; entries of another shape are ignored."""
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
    """Return the text for the column `suspects`."""
    return orjson.dumps([dataclasses.astuple(suspect) for suspect in suspects]).decode("ascii")
