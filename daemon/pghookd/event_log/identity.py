"""Is this the same database as before? Compares a server's identity with the one stored when the log was last read.

A restored copy on a test machine must not post to real customers. If this cannot be the database of the earlier runs,
nothing is delivered until the operator runs `pghookd adopt`. A standby that takes over at a failover must deliver: if
the evidence proves the database, the operator need not do anything.

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
    """The database may still run elsewhere: only the operator can decide which of the two is the copy."""


@dataclasses.dataclass(frozen=True, slots=True)
class ServerIdentity:
    """The identity that one session reads from its server; all sessions of an epoch must read the same.

    Attributes:
        system_identifier: of the cluster; kept by standbys and base backups, changed by initdb and pg_upgrade.
        database_oid: of the database in the cluster.
        timeline: eight hex digits; a promotion begins a new one. Empty on a standby.
        started_at_us: when the postmaster started, microseconds since 1970.
        in_recovery: True on a standby: its snapshots contain no running transactions, so it cannot be read.
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
    """Return why this cannot be the database that the positions were stored in; None if it can be.

    Args:
        server: the identity of this server.
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
    """Return the timeline that the positions were stored on; None if the server is still on it."""
    for row in stored:
        if row.position is not None and row.timeline and row.timeline != server.timeline:
            return row.timeline
    return None


def check_newest(newest: int, last: Mark | None) -> None:
    """Compare a newly read id with the last mark.

    Raises:
        ForeignDatabase: if the id is lower: the sequence moved backwards, which proves another database.
    """
    if last is not None and newest < last.event_id:
        raise ForeignDatabase("its event ids went back")


# The place ------------------------------------------------------------------------------------------------------------
# A copy of the data directory looks like the original from within. It cannot copy the place: machine and address.


@dataclasses.dataclass(frozen=True, slots=True)
class Here:
    """The place where an instance is about to run.

    Attributes:
        host: the id of this machine.
        server: the configured address of the database: `host:port`, or the path of a socket.
        started_at_us: when the server started, microseconds since 1970.
        name: the setting `database.home`; empty if it is not set.
    """

    host: str
    server: str
    started_at_us: int
    name: str = ""


class HomeEvidence(enum.Enum):
    """The evidence that the rows of `home` give about a place, the strongest first."""

    FIRST = enum.auto()  # there are no rows: the daemon has never run
    SAME_SERVER = enum.auto()  # this server has not restarted since an instance saw it; a copy would have
    SAME_PLACE = enum.auto()  # this machine and this address were seen together
    HALF_KNOWN = enum.auto()  # this machine was seen, or this address was, and is not local
    LOCAL = enum.auto()  # a new machine and a known local address: each machine has its own server there
    NEW = enum.auto()  # neither was seen


class Naming(enum.Enum):
    """How `database.home` compares with the stored name."""

    UNNAMED = enum.auto()  # no name is stored
    SAME = enum.auto()
    OTHER = enum.auto()  # the names differ, or a name is stored and the setting is missing


class Verdict(enum.Enum):
    """The conclusion from place and name."""

    GO = enum.auto()  # this is the database
    ASK = enum.auto()  # it is, unless the database still answers at a former address
    HOLD = enum.auto()  # it may be a copy


class Answer(enum.Enum):
    """The result of a query to a former address of the database."""

    GONE = enum.auto()  # nothing answers in time, or the peer is not a Postgres
    OTHER = enum.auto()  # another database
    STANDBY = enum.auto()  # a standby: it follows a primary and takes no events
    HERE = enum.auto()  # the same server that this instance is connected to
    RIVAL = enum.auto()  # the same database on another server that takes writes
    UNCLEAR = enum.auto()  # a Postgres that refuses the login of this role
    STARTING = enum.auto()  # a Postgres that does not accept sessions yet, or no longer does


PLACES_MAX: Final = 64  # rows of `home` that are kept: the machines and addresses seen last
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
# A stored name that differs from database.home: HOLD at any place. ASK holds if an address may be the original. Such an
# address is stored and holds later too, until it answers that it is not: a stopped original must not free its copy.

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
_STAYS_RIVAL: Final = {Answer.RIVAL, Answer.UNCLEAR}  # it also holds later, when the address is silent
_NO_RIVAL: Final = {Answer.STANDBY, Answer.OTHER}


def to_ask(here: Here, stays: Sequence[Stay]) -> tuple[str, ...]:
    """Return the addresses to query before `why_moved` can decide; none if the stored rows suffice.

    A local address of another machine would lead to a different server here, so it is left out.

    Args:
        here: where this instance is.
        stays: the rows of `home`, the newest first; only their newest addresses are returned.
    """
    if _verdict(here, stays) is not Verdict.ASK:
        return ()
    rivals = [(stay.host, stay.rival) for stay in stays if stay.rival is not None]
    homes = [(stay.host, stay.server) for stay in stays if stay.rival is None]
    found = [server for host, server in (*rivals, *homes) if host == here.host or not is_local(server)]
    return tuple(server for server in dict.fromkeys(found) if server != here.server)[:ADDRESSES_ASKED_MAX]


def why_moved(here: Here, stays: Sequence[Stay], answers: Mapping[str, Answer]) -> str | None:
    """Return why this is probably a copy of the database; None if it is not.

    Args:
        here: where this instance is.
        stays: the rows of `home`.
        answers: the answers of the addresses that `to_ask` returned.
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
    """Compare a place with the rows of `home`."""
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
    """Return the name that the operator gave the database; empty if it has none."""
    return next((stay.name for stay in stays if stay.name), "")


def is_local(server: str) -> bool:
    """Return True if an address leads to a different server on each machine."""
    return server.startswith(_LOCAL)
