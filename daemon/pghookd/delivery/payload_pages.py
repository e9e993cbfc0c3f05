"""Loads the payloads that do not fit into a page of due rows, in results that a socket takes at once.

A process that freezes while a large result is being sent to it keeps its session, and with it the shards. Postgres
waits for its client to read, and no timeout ends that on a local socket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pghookd.postgres.client import Row, Session, query

ANSWER_BYTES_MAX: Final = 100_000  # payload bytes in one result; a local socket takes about 200,000


async def load_payloads(session: Session, rows: Iterable[Row]) -> dict[int, bytes]:
    """Load the payloads that rows of read_due, read_parked or read_line left out, except those over 16 KB.

    Returns:
        Payloads by event_id.
    """
    found: dict[int, bytes] = {}
    missing = {
        row["event_id"]: row["payload_bytes"]
        for row in rows
        if row["payload"] is None and row["payload_bytes"] is not None
    }
    for ids in _pages(missing.items()):
        for row in await session.fetch(query("load_payloads"), ids):
            found[row["event_id"]] = row["payload"]
    return found


def _pages(sizes: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """Yield event ids in pages of at most ANSWER_BYTES_MAX payload bytes, and at least one id."""
    page: list[int] = []
    total = 0
    for event_id, size in sizes:
        if page and total + size > ANSWER_BYTES_MAX:
            yield page
            page, total = [], 0
        page.append(event_id)
        total += size
    if page:
        yield page
