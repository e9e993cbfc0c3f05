"""Chores: work on the recorder's session between two batches, in a fixed order.

A chore whose statement is refused affects no other chore; it is tried again a second later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol, TypeAlias

from structlog.typing import FilteringBoundLogger

from pghookd.model.outcome import Write
from pghookd.postgres.client import DatabaseError, Session
from pghookd.process.logs import LogEvent

Put: TypeAlias = Callable[[Write, float], None]

AGAIN_S: Final = 1.0  # after Postgres refused a statement of a chore


class Chore(Protocol):
    """Work on the recorder's session that is done between two batches."""

    async def step(self, session: Session, now: float, put: Put) -> bool:
        """Do a bounded piece of work, if it is time; `put` takes the writes.

        Returns:
            True if there is more to do at once.
        """
        ...


class Chores:
    """The chores of a recorder.

    Attributes:
        more_to_do: True if one of them has more to do at once.
    """

    def __init__(self, session: Session, logger: FilteringBoundLogger) -> None:
        self.more_to_do = False
        self._session = session
        self._logger = logger
        self._again_at: dict[
            Chore, float
        ] = {}  # in their order; with the time of the next step, monotonic seconds

    def take_on(self, *chores: Chore) -> None:
        """Add chores, which run one after the other."""
        self._again_at |= dict.fromkeys(chores, 0.0)

    async def run(self, now: float, put: Put) -> None:
        """Run one step of each chore."""
        self.more_to_do = False
        for chore, again_at in self._again_at.items():
            if now >= again_at:
                done = await unless_refused(self._step(chore, now, put), self._logger)
                self._again_at[chore] = now if done else now + AGAIN_S

    async def _step(self, chore: Chore, now: float, put: Put) -> bool:
        if await chore.step(self._session, now, put):
            self.more_to_do = True
        return True


async def unless_refused(work: Awaitable[bool], logger: FilteringBoundLogger) -> bool:
    """Await some work; return its result, or False if Postgres refused a statement."""
    try:
        return await work
    except DatabaseError as error:
        logger.warning(LogEvent.DATABASE_REFUSED, error=str(error))
        return False
