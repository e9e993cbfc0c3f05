"""Owns the shards: takes their locks, all or none, and stands by while another instance has them.

The recorder's session holds the locks. Postgres ends it after it has been silent for the lease, whatever happened to
the process or the network, and another instance takes over.

A standby instance registers in `home`, so that it is known at a failover. Any role can take the locks. If the holder
is not an instance, the standby would wait unnoticed; so a warning names the holder every minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.event_log.identity import Here
from pghookd.event_log.rows import holder_of
from pghookd.postgres import lock_keys
from pghookd.postgres.client import Session, query
from pghookd.process.logs import LogEvent

STAND_BY_S: Final = 0.5
LOOK_S: Final = 60.0  # between two checks of the holders, and between two warnings
LOOK_AGAIN_S: Final = 2.0  # if the owner has not registered yet


async def own(session: Session, shards: int, *, standing_by: Callable[[], Awaitable[None]]) -> None:
    """Return once every shard is owned; `standing_by` is awaited after each failed try."""
    while not await take(session, shards):
        await standing_by()
        await asyncio.sleep(STAND_BY_S)


class StandBy:
    """The work of an instance while another session holds the locks.

    Args:
        session: the recorder's session.
        shards: number of shards.
        here: where this instance is.
        ready: reports the status.
        logger: logs warnings about holders that are not instances.
        monotonic: returns seconds.
    """

    def __init__(
        self,
        session: Session,
        shards: int,
        here: Here,
        *,
        ready: Callable[[str], None],
        logger: FilteringBoundLogger,
        monotonic: Callable[[], float],
    ) -> None:
        self._session = session
        self._shards = shards
        self._here = here
        self._ready = ready
        self._logger = logger
        self._monotonic = monotonic
        self._look_at = monotonic()
        self._status = ""

    async def step(self) -> None:
        """Report the status; from time to time register this instance in `home` and check the holders."""
        if self._monotonic() >= self._look_at:
            here = self._here
            entered = await self._session.fetchval(query("enter_standby"), here.host, here.server, here.name)
            strangers = await self._strangers()
            if strangers:
                self._logger.warning(LogEvent.SHARD_WITHHELD, holders=strangers)
            self._status = _status(strangers)
            self._look_at = self._monotonic() + (LOOK_S if entered or strangers else LOOK_AGAIN_S)
        self._ready(self._status)

    async def _strangers(self) -> list[str]:
        """Return the holders of the shards' locks that are not instances."""
        found = await self._session.fetch(query("find_strangers"))
        holders = (holder_of(row) for row in found if 0 < row["key"] <= self._shards)
        return list(dict.fromkeys(holders))


def _status(strangers: Sequence[str]) -> str:
    if strangers:
        return f"waiting: {strangers[0]} holds the locks of the shards and is no instance of pghookd"
    return "standing by: another instance owns the shards"


async def take(session: Session, shards: int) -> bool:
    """Take the locks of all shards for the life of the session, or none; return True if they were free."""
    for shard in range(shards):
        if not await session.fetchval(query("lock_shard"), shard):
            if shard:
                await session.fetchval(lock_keys.RELEASE_ALL)
            return False
    return True
