"""Whose database is this? What a server says of itself, held against what was stored when the log was last read.

A restored copy on a test machine must not post to real customers: where this cannot be the database that we ran in
before, nothing is delivered until somebody says `pghookd adopt`. A standby that takes over at a failover must deliver:
where the evidence proves the database, nobody has to say anything.

Never here: how the evidence is gathered (event_log/former_server.py), SQL, a clock.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Final

from pghookd.event_log.position import Mark, Position, Snapshot
from pghookd.model.suspect import Stay

_LOCAL = ("/", "@", "localhost:", "127.", "[::1]:", "::1:")


class ForeignDatabase(Exception):  # noqa: N818 - a state of the world, not a mistake
    """This is not the database that the stored positions were written in."""


class RivalDatabase(ForeignDatabase):
    """The database may still run elsewhere: only a person can say which of the two is the copy."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What one session says of its server; all sessions of an epoch must say the same.

    Attributes:
        system_identifier: of the cluster; kept by standbys and base backups, changed by initdb and pg_upgrade.
        database_oid: of the database in it.
        timeline: eight hex digits; a promotion begins a new one. Empty on a standby.
        started_at_us: when the postmaster started, microseconds since 1970.
        in_recovery: a standby: its snapshots know no running transactions, so it cannot be read.
    """

    system_identifier: int
    database_oid: int
    timeline: str
    started_at_us: int
    in_recovery: bool


@dataclasses.dataclass(frozen=True, slots=True)
class StoredShard:
    """One row of `shards`; `position` is None before the first store."""

    shard: int
    position: Position | None
    floor: int
    front: int
    mark: Mark | None
    system_identifier: int | None
    database_oid: int | None
    timeline: str | None


def why_foreign(
    server: ServerIdentity, stored: Sequence[StoredShard], now: Snapshot, newest: int
) -> str | None:
    """Say why this cannot be the database that the positions were stored in, or None.

    Args:
        server: what this server says of itself.
        stored: the rows of `shards`.
        now: a snapshot taken now.
        newest: the newest event_id handed out, read now.
    """
    for row in stored:
        if row.position is None:
            continue
        if row.system_identifier != server.system_identifier:
            return "another server"
        if row.database_oid != server.database_oid:
            return "another database of the server"
        furthest = row.position.upto or row.position.snapshot
        if furthest.xmax > now.xmax or (row.mark is not None and row.mark.xid > now.xmax):
            return "its transactions are older than the stored position"
        if row.mark is not None and newest < row.mark.event_id:
            return "its event ids are older than the stored position"
    return None


def forked_from(server: ServerIdentity, stored: Sequence[StoredShard]) -> str | None:
    """Return the timeline that the positions were stored on, if history has forked since."""
    for row in stored:
        if row.position is not None and row.timeline and row.timeline != server.timeline:
            return row.timeline
    return None


def check_newest(newest: int, last: Mark | None) -> None:
    """Hold a newly read id against the last mark.

    Raises:
        ForeignDatabase: it is lower: the sequence went back, which only another database's does.
    """
    if last is not None and newest < last.event_id:
        raise ForeignDatabase("its event ids went back")


# The place ------------------------------------------------------------------------------------------------------------
# A copy of the data folder looks like the original from within. What it cannot copy is where the daemon met it.


@dataclasses.dataclass(frozen=True, slots=True)
class Here:
    """Where an instance is about to move in.

    Attributes:
        host: this machine.
        server: the address of the database as given: `host:port`, or the path of a socket.
        started_at_us: when the server started, microseconds since 1970.
        name: the setting `database.home`; empty if it is not set.
    """

    host: str
    server: str
    started_at_us: int
    name: str = ""


class HomeEvidence(enum.Enum):
    """What the rows of `home` say of a place, the strongest evidence first."""

    FIRST = enum.auto()  # no rows: the daemon has never run
    SAME_SERVER = enum.auto()  # this server has not restarted since an instance saw it; a copy has
    SAME_PLACE = enum.auto()  # this machine and this address were seen together
    HALF_KNOWN = enum.auto()  # this machine was seen, or this address, which is not a local one
    LOCAL = enum.auto()  # the machine is new; the address is known, but each machine has its own server there
    NEW = enum.auto()  # neither was seen


class Naming(enum.Enum):
    """How `database.home` compares with the stored name."""

    UNNAMED = enum.auto()  # no name is stored
    SAME = enum.auto()
    OTHER = enum.auto()  # the names differ, or one is stored and the setting is missing


class Verdict(enum.Enum):
    """What follows from place and name."""

    GO = enum.auto()  # this is the database
    ASK = enum.auto()  # it is, unless the database still answers at another address where it was
    HOLD = enum.auto()  # it may be a copy


class Answer(enum.Enum):
    """What the server says at an address where the database was before."""

    GONE = enum.auto()  # nothing answers within the time, or no Postgres does
    OTHER = enum.auto()  # another database
    STANDBY = enum.auto()  # a standby: it follows a primary and takes no events
    HERE = enum.auto()  # the very server that this instance is connected to
    RIVAL = enum.auto()  # the same database on another server that takes writes
    UNCLEAR = enum.auto()  # a Postgres that does not let this role in
    STARTING = enum.auto()  # a Postgres that takes no sessions yet, or none any more


PLACES_MAX: Final = 64  # rows of `home` that are kept: machines and addresses seen last
ADDRESSES_ASKED_MAX: Final = 8  # all at once, each within a bounded time

#            place              no name stored   the stored name is database.home
_VERDICTS: Final = {
    HomeEvidence.FIRST:       (Verdict.GO,   Verdict.GO),
    HomeEvidence.SAME_SERVER: (Verdict.GO,   Verdict.GO),
    HomeEvidence.SAME_PLACE:  (Verdict.GO,   Verdict.GO),
    HomeEvidence.HALF_KNOWN:  (Verdict.ASK,  Verdict.ASK),
    HomeEvidence.LOCAL:       (Verdict.HOLD, Verdict.ASK),
    HomeEvidence.NEW:         (Verdict.HOLD, Verdict.ASK),
}  # fmt: skip
# A stored name that is not database.home: HOLD, wherever it is. ASK holds for an address that may be the original, and,
# once it was one, until that address says it is none: a stopped original leaves its copy no heir.

_WHY_HELD: Final = {
    HomeEvidence.LOCAL: "this machine has not been seen before, and a local address is another server on each machine",
    HomeEvidence.NEW: "neither this machine nor this address of the database has been seen before",
}
_WHY_RIVAL: Final = {
    Answer.RIVAL:    "the same database still takes events at {}: one of the two is a copy",
    Answer.UNCLEAR:  "a server at {} answers but does not let this role in: it may be the original",
    Answer.STARTING: "a server at {} is starting or stopping: it may be the original",
}  # fmt: skip
_WHY_STILL_RIVAL: Final = (
    "the same database was in use at {}, which is only silent now: one of the two is a copy"
)
_STAYS_RIVAL: Final = {Answer.RIVAL, Answer.UNCLEAR}  # also when it is stopped for a moment later
_NO_RIVAL: Final = {Answer.STANDBY, Answer.OTHER}


def to_ask(here: Here, stays: Sequence[Stay]) -> tuple[str, ...]:
    """Return the addresses to ask before `why_moved` can decide; none if what is stored suffices.

    A local address of another machine leads nowhere near the server that was meant, so it is left out.

    Args:
        here: where this instance is.
        stays: the rows of `home`, the newest first; of their addresses only the newest are returned.
    """
    if _verdict(here, stays) is not Verdict.ASK:
        return ()
    rivals = [(stay.host, stay.rival) for stay in stays if stay.rival is not None]
    homes = [(stay.host, stay.server) for stay in stays if stay.rival is None]
    found = [server for host, server in (*rivals, *homes) if host == here.host or not is_local(server)]
    return tuple(server for server in dict.fromkeys(found) if server != here.server)[:ADDRESSES_ASKED_MAX]


def why_moved(here: Here, stays: Sequence[Stay], answers: Mapping[str, Answer]) -> str | None:
    """Say why this is probably a copy of the database, or return None.

    Args:
        here: where this instance is.
        stays: the rows of `home`.
        answers: what the addresses of `to_ask` answered.
    """
    verdict = _verdict(here, stays)
    if verdict is Verdict.HOLD:
        if naming_of(here, stays) is Naming.OTHER:
            given = repr(here.name) if here.name else "not set"
            return (
                f"the stored name of this database is {_stored_name(stays)!r}, and database.home is {given}"
            )
        return _WHY_HELD[place_of(here, stays)]
    if verdict is Verdict.GO or Answer.HERE in answers.values():
        return None
    for address, answer in answers.items():
        if answer in _WHY_RIVAL:
            return _WHY_RIVAL[answer].format(address)
    for stay in stays:
        if stay.rival not in {None, here.server} and answers.get(stay.rival) not in _NO_RIVAL:
            return _WHY_STILL_RIVAL.format(stay.rival)
    return None


def rival_of(answers: Mapping[str, Answer]) -> str | None:
    """Return an address at which the database runs or may run, to be stored; None if there is none."""
    return next((address for address, answer in answers.items() if answer in _STAYS_RIVAL), None)


def _verdict(here: Here, stays: Sequence[Stay]) -> Verdict:
    naming = naming_of(here, stays)
    if naming is Naming.OTHER:
        return Verdict.HOLD
    unnamed, named = _VERDICTS[place_of(here, stays)]
    return named if naming is Naming.SAME else unnamed


def place_of(here: Here, stays: Sequence[Stay]) -> HomeEvidence:
    """Hold a place against the rows of `home`."""
    if not stays:
        return HomeEvidence.FIRST
    homes = [stay for stay in stays if stay.rival is None]
    if any(stay.started_at_us == here.started_at_us for stay in homes):
        return HomeEvidence.SAME_SERVER
    if any((stay.host, stay.server) == (here.host, here.server) for stay in homes):
        return HomeEvidence.SAME_PLACE
    if any(stay.host == here.host for stay in homes):
        return HomeEvidence.HALF_KNOWN
    if not any(stay.server == here.server for stay in homes):
        return HomeEvidence.NEW
    return HomeEvidence.LOCAL if is_local(here.server) else HomeEvidence.HALF_KNOWN


def naming_of(here: Here, stays: Sequence[Stay]) -> Naming:
    """Compare `database.home` with the stored name."""
    stored = _stored_name(stays)
    if not stored:
        return Naming.UNNAMED
    return Naming.SAME if stored == here.name else Naming.OTHER


def _stored_name(stays: Sequence[Stay]) -> str:
    """Return the name that the operator gave the database; empty if none."""
    return next((stay.name for stay in stays if stay.name), "")


def is_local(server: str) -> bool:
    """Return True if an address leads to another server on each machine."""
    return server.startswith(_LOCAL)
