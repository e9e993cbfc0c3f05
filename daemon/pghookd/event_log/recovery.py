"""Where recovery begins: the log and its walks, from the stored rows of `shards`."""

from __future__ import annotations

from collections.abc import Sequence

from pghookd.event_log.identity import StoredShard
from pghookd.event_log.position import BEGINNING, EventLog, Position, ShardLog, Snapshot, XidMarks
from pghookd.event_log.supersede import Keys


def log_of(now: Snapshot, stored: Sequence[StoredShard], keys: Keys) -> EventLog:
    """Return the log as it was stored; it is read on from a current snapshot."""
    shards = {row.shard: ShardLog(row.shard, row.position or Position(BEGINNING)) for row in stored}
    return EventLog(now, shards, marks_of(stored), keys=keys)


def marks_of(stored: Sequence[StoredShard]) -> XidMarks:
    """Use the lowest floor: a higher one would skip events of a shard that is behind, and would be stored for it.

    The stored marks add floors for later snapshots.
    """
    marks = XidMarks(min(row.floor for row in stored), min(row.front for row in stored))
    for mark in sorted({row.mark for row in stored if row.mark is not None}, key=lambda mark: mark.xid):
        marks.note(mark)
    return marks


def walks_of(stored: Sequence[StoredShard]) -> dict[tuple[Position, int, int], list[int]]:
    """Group shards that have the same position, floor and front: they are recovered together."""
    walks: dict[tuple[Position, int, int], list[int]] = {}
    for row in stored:
        position = row.position or Position(BEGINNING)
        walks.setdefault((position, row.floor, row.front), []).append(row.shard)
    return walks
