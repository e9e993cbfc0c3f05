"""Whose database is this? What a server says of itself, held against what was stored when the log was last read.

A restored copy on a test machine must not post to real customers: where this cannot be the database that we ran in
before, nothing is delivered until somebody says `pghookd adopt`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pghookd.core.snapshot import Mark, Position, Snapshot
from pghookd.core.suspects import Stay

_LOCAL = ("/", "@", "localhost:", "127.", "[::1]:", "::1:")


class ForeignDatabase(Exception):  # noqa: N818 - a state of the world, not a mistake
    """This is not the database that the stored positions were written in."""


@dataclasses.dataclass(frozen=True, slots=True)
class Server:
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


def why_foreign(server: Server, stored: Sequence[StoredShard], now: Snapshot, newest: int) -> str | None:
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


def forked_from(server: Server, stored: Sequence[StoredShard]) -> str | None:
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


def why_moved(host: str, server: str, stays: Sequence[Stay]) -> str | None:
    """Say why this is probably a copy, or None: neither the machine nor the server's address has been seen before.

    A server that is reached by a local address is another one on each machine.

    Args:
        host: this machine.
        server: the address of the database as given, `host:port` or the path of a socket.
        stays: where the daemon has run; none: this is the first time.
    """
    if not stays or any(stay.host == host for stay in stays):
        return None
    if not server.startswith(_LOCAL) and any(stay.server == server for stay in stays):
        return None
    return "neither this machine nor this address of the database has been seen before"
