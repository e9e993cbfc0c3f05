"""Owns the shards: takes their locks, all or none, and stands by while another instance has them.

The locks' session is the recorder's. Postgres ends it when it has been silent for the lease, whatever happened to the
process or the network, and another instance takes over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from pghookd.edge.postgres import Session, query

STAND_BY_S: Final = 0.5
_FREE: Final = "select pg_advisory_unlock_all()"


async def own(session: Session, shards: int, *, standing_by: Callable[[], None]) -> None:
    """Return once every shard is owned; `standing_by` is called each time that another instance is found owning."""
    while not await _take(session, shards):
        standing_by()
        await asyncio.sleep(STAND_BY_S)


async def _take(session: Session, shards: int) -> bool:
    for shard in range(shards):
        if not await session.fetchval(query("lock_shard"), shard):
            if shard:
                await session.fetchval(_FREE)
            return False
    return True
