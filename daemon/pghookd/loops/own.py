"""Owns the shards: takes their locks, all or none, and stands by while another instance has them.

The locks' session is the recorder's. Postgres ends it when it has been silent for the lease, whatever happened to the
process or the network, and another instance takes over.

An instance that stands by enters itself in `home`, so that it is known at a failover. Any role can take the locks: if
the holder is no instance, standing by would be silence, so a warning names the holder every minute.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.core.home import Here
from pghookd.edge.journal import LogEvent
from pghookd.edge.postgres import Session, query
from pghookd.edge.rows import holder_of

STAND_BY_S: Final = 0.5
LOOK_S: Final = (
    60.0  # between two looks at the holders while everything is as it should be, and between warnings
)
LOOK_AGAIN_S: Final = 2.0  # the owner has not moved in yet
_FREE: Final = "select pg_advisory_unlock_all()"


async def own(
    session: Session,
    shards: int,
    place: Here,
    *,
    standing_by: Callable[[str], None],
    logger: FilteringBoundLogger,
    monotonic: Callable[[], float],
) -> None:
    """Return once every shard is owned.

    Args:
        session: the recorder's.
        shards: how many there are.
        place: where this instance is.
        standing_by: called with a status at each try that fails.
        logger: warns of holders that are no instances.
        monotonic: seconds.
    """
    look_at = monotonic()
    status = ""
    while not await _take(session, shards):
        if monotonic() >= look_at:
            looked = await _look(session, shards, place)
            if looked.strangers:
                logger.warning(LogEvent.SHARD_WITHHELD, holders=list(looked.strangers))
            status = looked.status
            look_at = monotonic() + (LOOK_S if looked.entered or looked.strangers else LOOK_AGAIN_S)
        standing_by(status)
        await asyncio.sleep(STAND_BY_S)


@dataclasses.dataclass(frozen=True, slots=True)
class _Looked:
    """Who holds the locks.

    Attributes:
        entered: whether this instance is now known as a standby of the owner.
        strangers: the holders that are no instances, a text each.
    """

    entered: bool
    strangers: tuple[str, ...]

    @property
    def status(self) -> str:
        if self.strangers:
            return f"waiting: {self.strangers[0]} holds the locks of the shards and is no instance of pghookd"
        return "standing by: another instance owns the shards"


async def _look(session: Session, shards: int, place: Here) -> _Looked:
    entered = await session.fetchval(query("enter_standby"), place.host, place.server, place.name)
    found = await session.fetch(query("find_strangers"))
    holders = (holder_of(row) for row in found if 0 < row["key"] <= shards)
    return _Looked(bool(entered), tuple(dict.fromkeys(holders)))


async def _take(session: Session, shards: int) -> bool:
    for shard in range(shards):
        if not await session.fetchval(query("lock_shard"), shard):
            if shard:
                await session.fetchval(_FREE)
            return False
    return True
