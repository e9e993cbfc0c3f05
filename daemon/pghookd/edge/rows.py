"""Rows as the values of core/model: the one place where a column of a query meets a field."""

from __future__ import annotations

from pghookd.core.home import Server, StoredShard
from pghookd.core.model import Endpoint
from pghookd.core.snapshot import Mark, Position, Snapshot
from pghookd.edge.postgres import Row


def endpoint_of(row: Row) -> Endpoint:
    """Make an Endpoint of a row of read_endpoints or read_endpoints_of_sites."""
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
    )


def server_of(row: Row) -> Server:
    """Make a Server of the row of identify_server."""
    return Server(
        system_identifier=row["system_identifier"],
        database_oid=row["database_oid"],
        timeline=row["timeline"] or "",
        started_at_us=row["started_at"],
        in_recovery=row["in_recovery"],
    )


def shard_of(row: Row) -> StoredShard:
    """Make a StoredShard of a row of read_shards."""
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
