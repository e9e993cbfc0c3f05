"""Adopts a database that is not the one pghookd ran in before: a restored copy, an upgraded or replaced cluster.

What the old positions say is settled stays settled; the rest is queued, or, where the operator says so, left alone.
Producers wait meanwhile: everything happens in one transaction under a lock on `events`. It never prompts.
"""

from __future__ import annotations

import asyncio
from typing import Final

from pghookd.core import suspects
from pghookd.core.settings import Settings
from pghookd.edge.machine import host_id
from pghookd.edge.postgres import DatabaseError, Session, connect, query

LOOKS: Final = 20
LOOK_AGAIN_S: Final = 0.1

_LOCK = "select pg_try_advisory_xact_lock(1885825131, s + 1) from generate_series(0, $1::int - 1) s"


async def adopt(settings: Settings, *, skip_backlog: bool, host: str | None = None) -> dict[str, int]:
    """Take this database for ours and say how many deliveries were queued.

    Args:
        settings: for `database.url` and `delivery.shards`.
        skip_backlog: queue nothing: what was not settled in the other database is never sent from this one.
        host: the machine to be at home on; None: this one.

    Raises:
        DatabaseAway: it cannot be reached.
        DatabaseError: a running daemon owns the shards, or the role may not do this.
    """
    session = await connect(
        settings.database.url.get_secret_value(), name="adopt", settings={"lock_timeout": "30s"}
    )
    try:
        async with session.transaction():
            await _own(session, settings.delivery.shards)
            await session.execute("lock table webhooks.events in share mode")
            queued = 0
            if not skip_backlog:
                queued = await session.fetchval(query("adopt_unsettled"))
            highest = await session.fetchval(query("adopt_sequence"))
            await session.execute(query("adopt_positions"), highest)
            await session.execute("delete from webhooks.home")
            await session.execute(
                query("enter_home"), host or host_id(), session.address, None, 0, suspects.write(())
            )
            await session.execute(query("name_home"), settings.database.home)
            await session.execute(
                "insert into webhooks.operations (what, detail)"
                " values ('adopt', jsonb_build_object('queued', $1::bigint, 'skip_backlog', $2::bool))",
                queued,
                skip_backlog,
            )
        return {"queued": queued, "max_event_id": highest}
    finally:
        await session.close()


async def _own(session: Session, shards: int) -> None:
    """Take the shards' locks before the one that producers wait for; a daemon that holds still has them for moments."""
    for _ in range(LOOKS):
        if all(row[0] for row in await session.fetch(_LOCK, shards)):
            return
        await asyncio.sleep(LOOK_AGAIN_S)
    raise DatabaseError("55P03", "an instance owns the shards and is reading: there is nothing to adopt")
