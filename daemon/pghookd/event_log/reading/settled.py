"""Reads which deliveries of some events are settled already.

Never here: the choice of the events (pages, refill).
"""

from __future__ import annotations

from typing import Final

from pghookd.event_log.reading.takers import ENDPOINT_ID_MAX, Span
from pghookd.postgres.client import Session, query

SETTLED_MAX: Final = 2000  # settled deliveries read by the range of event ids; if there are more, by the ids
SPARSE: Final = 20  # ids per event; in a sparser range the settled deliveries are read by ids


async def read_settled(session: Session, event_ids: list[int], span: Span) -> set[tuple[int, int]]:
    """Read which deliveries of some events are settled: by range, or by ids if others fill the range."""
    first, last = min(event_ids), max(event_ids)
    if last - first < SPARSE * len(event_ids):
        rows = await session.fetch(query("read_settled"), first, last, SETTLED_MAX)
        if len(rows) < SETTLED_MAX:
            return {(event_id, endpoint_id) for event_id, endpoint_id in rows}
    upto = ENDPOINT_ID_MAX if span.upto is None else span.upto
    sql = query("read_settled_events")
    rows = await session.fetch(sql, event_ids, first, last, span.after, upto)
    return {(event_id, endpoint_id) for event_id, endpoint_id in rows}
