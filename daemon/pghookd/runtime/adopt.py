"""Adopts a database in which pghookd did not run before: a restored copy, an upgraded or replaced cluster.

Deliveries that the old positions prove settled stay settled. The rest is queued, or left alone if the operator requests
that.

No lock on `events` is taken, so that no producer waits. The new positions need an id below which every event is visible
in their snapshot. A mark gives it, as for every floor (event_log/position). The newest id is read, then an xid is
assigned. A snapshot in which every transaction up to that xid has ended contains every event up to that id. So adopting
waits for the transactions that were open when it began, and nothing waits for it.

It never prompts.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from pghookd.event_log import identity
from pghookd.event_log.position import Snapshot
from pghookd.event_log.rows import server_of, shard_of
from pghookd.model.suspect import write_suspects
from pghookd.postgres.client import DatabaseAway, DatabaseError, Session, connect, query
from pghookd.process.host_id import host_id
from pghookd.process.unix_user import unix_user
from pghookd.runtime import ownership
from pghookd.settings.schema import Settings

LOOKS: Final = 20  # tries to lock the shards, which a daemon on hold locks for moments
LOOK_AGAIN_S: Final = 0.1
WAIT_S: Final = 60.0  # for transactions that were open before; then adopt reports one that is still open

_SNAPSHOT: Final = "select pg_current_snapshot()"
_XID: Final = "select pg_current_xact_id()"
_ONE_SNAPSHOT: Final = "set transaction isolation level repeatable read"
_LOCK_NOT_AVAILABLE: Final = "55P03"


class Home(NamedTuple):
    """The home to store: a machine, and the operator's name for the database (`database.home`)."""

    host: str
    name: str


async def adopt(settings: Settings, *, skip_backlog: bool, host: str | None = None) -> dict[str, int]:
    """Mark this database as ours and return the number of deliveries queued and the highest event_id.

    On the server that the positions were stored on, they are valid: then only the new machine is noted.

    Args:
        settings: for `database.url`, `database.home` and `delivery.shards`.
        skip_backlog: True to queue nothing: deliveries not settled in the other database are never sent from this one.
        host: the machine to store; None for this one.

    Raises:
        DatabaseAway: if the database cannot be reached.
        DatabaseError: if a running daemon owns the shards, a transaction stays open for WAIT_S, or the role lacks a
            privilege.
    """
    session = await connect(
        settings.database.url.get_secret_value(),
        name="adopt",
        settings={"lock_timeout": "2s", "webhooks.actor": unix_user()},
    )
    try:
        await _own(session, settings.delivery.shards)
        place = Home(host or host_id(), settings.database.home)
        if not skip_backlog and await _is_ours(session):
            async with session.transaction():
                await _enter(session, place, 0, skip_backlog=False)
            return {"queued": 0, "max_event_id": await session.fetchval(query("read_newest_event_id"))}
        return await _anchor(session, place, skip_backlog=skip_backlog)
    finally:
        await session.close()


async def _own(session: Session, shards: int) -> None:
    """Lock the shards for the rest of the session."""
    for _ in range(LOOKS):
        if await ownership.take(session, shards):
            return
        await asyncio.sleep(LOOK_AGAIN_S)
    raise DatabaseError(
        _LOCK_NOT_AVAILABLE, "an instance owns the shards and is reading: there is nothing to adopt"
    )


async def _is_ours(session: Session) -> bool:
    """Return True if the stored positions are valid on this server."""
    row = await session.fetchrow(query("identify_server"))
    if row is None:
        raise DatabaseAway("the server does not say who it is")
    stored = [shard_of(row) for row in await session.fetch(query("read_shards"))]
    now = Snapshot(*await session.fetchval(_SNAPSHOT))
    newest = await session.fetchval(query("read_newest_event_id"))
    return identity.why_foreign(server_of(row), stored, now, newest) is None


async def _anchor(session: Session, place: Home, *, skip_backlog: bool) -> dict[str, int]:
    """Queue the unsettled deliveries, and store new positions, all in one snapshot."""
    highest = await session.fetchval(query("adopt_sequence"))
    newest = await session.fetchval(query("read_newest_event_id"))
    xid = await session.fetchval(_XID)  # after the id was read, in a transaction of its own
    for _ in range(int(WAIT_S / LOOK_AGAIN_S)):
        async with session.transaction():
            await session.execute(_ONE_SNAPSHOT)
            now = Snapshot(*await session.fetchval(_SNAPSHOT))
            if now.xmin > xid:
                queued = 0 if skip_backlog else await session.fetchval(query("adopt_unsettled"))
                await session.execute(query("adopt_positions"), newest)
                await _enter(session, place, queued, skip_backlog=skip_backlog)
                return {"queued": queued, "max_event_id": highest}
        await asyncio.sleep(LOOK_AGAIN_S)
    raise DatabaseError(
        _LOCK_NOT_AVAILABLE,
        f"a transaction that began before is still open after {WAIT_S:g} s: end it, or try again later",
    )


async def _enter(session: Session, place: Home, queued: int, *, skip_backlog: bool) -> None:
    """Store the new home of the daemon, and that the database was adopted there."""
    await session.execute(query("clear_home"))
    await session.execute(query("enter_home"), place.host, session.address, None, 0, write_suspects(()))
    await session.execute(query("name_home"), place.name)
    await session.execute(query("note_adoption"), queued, skip_backlog)
