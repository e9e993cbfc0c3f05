"""Converts rows into the values of model/delivery: the one place where query columns meet fields."""

from __future__ import annotations

from typing import TypeAlias

from pghookd.event_log.identity import ServerIdentity, StoredShard
from pghookd.event_log.position import Mark, Position, Snapshot
from pghookd.model import endpoint_options, event_options
from pghookd.model.delivery import Endpoint, Event
from pghookd.model.suspect import Stay, read_suspects
from pghookd.postgres.client import Row

# event_id, site_id, type, created_at in microseconds, its only endpoint (or null), payload (null if large), options
EventRow: TypeAlias = tuple[int, str, str, int, int | None, bytes | None, str | None]


def event_of(row: EventRow) -> Event:
    """Make an Event from a row of the log."""
    event_id, site_id, kind, created_at_us, only, payload, told = row
    event = Event(event_id, site_id, kind, created_at_us, payload, only)
    if told is not None:
        event.options = event_options.read(told)
    return event


def endpoint_of(row: Row) -> Endpoint:
    """Make an Endpoint from a row of read_endpoints or read_endpoints_of_sites."""
    return Endpoint(
        endpoint_id=row["endpoint_id"],
        site_id=row["site_id"],
        shard=row["shard"],
        url=row["url"],
        event_types=tuple(kind for kind in row["event_types"] if kind is not None),
        enabled=row["enabled"],
        from_event_id=row["from_event_id"],
        secret=row["secret"],
        source=row["source"],
        concurrency=row["concurrency"],
        timeout_s=row["timeout_s"],
        options=None if row["options"] is None else endpoint_options.read(row["options"]),
        revision=row["revision"],
    )


def stay_of(row: Row) -> Stay:
    """Make a Stay from a row of read_home."""
    named = read_suspects(row["suspects"])
    return Stay(
        host=row["host"],
        server=row["server"],
        run=row["run"],
        unclean_ends=row["unclean_ends"],
        suspects=named,
        name=row["name"],
        started_at_us=row["started_at"],
        rival=row["rival"],
    )


def server_of(row: Row) -> ServerIdentity:
    """Make a ServerIdentity from the row of identify_server."""
    return ServerIdentity(
        system_identifier=row["system_identifier"],
        database_oid=row["database_oid"],
        timeline=row["timeline"] or "",
        started_at_us=row["started_at"],
        in_recovery=row["in_recovery"],
    )


def holder_of(row: Row) -> str:
    """Return a description of the session in a row of find_strangers or find_oldest_transactions."""
    return f"role {row['role']}, backend {row['pid']}, application {row['application']!r}"


def shard_of(row: Row) -> StoredShard:
    """Make a StoredShard from a row of read_shards."""
    position = None
    if row["snapshot"] is not None:
        upto = None if row["upto"] is None else Snapshot(*row["upto"])
        position = Position(Snapshot(*row["snapshot"]), upto, row["last_event_id"])
    mark = None if row["mark_xid"] is None else Mark(row["mark_event_id"], row["mark_xid"])
    return StoredShard(
        shard=row["shard"],
        position=position,
        floor=row["floor"],
        front=row["front"],
        mark=mark,
        system_identifier=row["system_identifier"],
        database_oid=row["database_oid"],
        timeline=row["timeline"],
    )


# Incidents ------------------------------------------------------------------------------------------------------------
