"""Names deliveries in the database before they are sent, after unexplained crashes of the daemon.

delivery/poison.py makes the decisions. Naming is done on the recorder's session between two batches, like reading due
rows: only the owner of the shards names deliveries. If nothing is suspected, a delivery skips all of this.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from pghookd.delivery import poison
from pghookd.delivery.poison import Arrival
from pghookd.model.delivery import Delivery
from pghookd.model.outcome import Write
from pghookd.model.suspect import Suspect, write_suspects
from pghookd.postgres.client import Session, query

LOOK_S: Final = 0.05
OTHERS_FIRST_S: Final = 5.0  # longest wait for the other suspects: they may not be due


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Our row of `home`."""

    host: str
    server: str
    run: str | None


class PoisonGuard:
    """The gate for named deliveries; writing their names is a chore of the recorder.

    Args:
        place: our row of `home`.
        arrival: the conclusions from earlier crashes.
        wake: has the recorder run its chores at once.
        monotonic: returns seconds.

    Attributes:
        is_wary: True if deliveries must be named before they are sent.
    """

    def __init__(
        self, place: Place, arrival: Arrival, *, wake: Callable[[], None], monotonic: Callable[[], float]
    ) -> None:
        self._place = place
        self.is_wary = arrival.is_wary
        self._ends = arrival.unclean_ends
        self._tried = {suspect.key: suspect for suspect in arrival.suspects}
        self._monotonic = monotonic
        now = monotonic()
        self._named_until = now + arrival.named_for_s
        self._calm_at = now + max(arrival.named_for_s, poison.CALM_AFTER_S)
        self._turns = asyncio.Semaphore(poison.NAMED_AT_ONCE)
        self._alone = asyncio.Semaphore(1)
        self._flights: Final = itertools.count()
        self._flying: dict[int, Suspect] = {}
        self._ended: set[int] = set()  # flights whose outcomes the recorder has
        self._recorded: set[int] = set()  # flights whose outcomes it had one step ago
        self._written: Final = _Written()
        self._wake = wake

    # For the deliverer ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def named(self, delivery: Delivery) -> AsyncIterator[None]:
        """Persist the delivery's name first if required, then hold it as in flight for the body."""
        key = delivery.event.event_id, delivery.endpoint_id
        suspect = self._tried.get(key)
        if suspect is None and self._monotonic() >= self._named_until:
            yield
            return
        if suspect is not None:
            await self._after_others(suspect)
        await (self._turns if suspect is None else self._alone).acquire()  # until the outcome is durable
        flight = next(self._flights)
        self._flying[flight] = dataclasses.replace(suspect or Suspect(*key), in_flight=True)
        written = self._written.next()
        self._wake()
        try:
            await written
            yield
        finally:
            self._ended.add(flight)
            self._wake()

    async def _after_others(self, suspect: Suspect) -> None:
        """Wait for suspects seen at fewer crashes: if they are innocent, they are cleared before the next crash."""
        for _ in range(int(OTHERS_FIRST_S / LOOK_S)):
            if all(other.ends >= suspect.ends for other in self._tried.values()):
                return
            await asyncio.sleep(LOOK_S)

    # For the recorder -------------------------------------------------------------------------------------------------

    async def step(self, session: Session, now: float, _put: Callable[[Write, float], None]) -> bool:
        """Write the names if they have changed."""
        self._forget(now)
        if self._written.awaited:
            with self._written:
                await self._write(session)
        return False

    def _forget(self, now: float) -> None:
        """Remove deliveries whose outcome is durable: it was handed over before the batch that was just written."""
        for flight in self._recorded:
            suspect = self._flying.pop(flight)
            self._tried.pop(suspect.key, None)
            (self._alone if suspect.ends else self._turns).release()
        changed = bool(self._recorded)
        self._recorded, self._ended = self._ended, set()
        if self._ends and now >= self._calm_at:
            self._ends, changed = 0, True
            self._tried.clear()
        if changed:
            self._written.next()

    async def enter(self, session: Session) -> None:
        """Record that this run uses the database now; of the names stored before, only suspects are kept."""
        await self._write(session)

    async def leave(self, session: Session) -> None:
        """Record that this run ends cleanly: no delivery in flight is to blame."""
        self._place = dataclasses.replace(self._place, run=None)
        await self._write(session)

    async def _write(self, session: Session) -> None:
        in_flight = {suspect.key: suspect for suspect in self._flying.values()}
        text = write_suspects({**self._tried, **in_flight}.values())
        await session.execute(query("enter_home"), *dataclasses.astuple(self._place), self._ends, text)


class _Written:
    """The tasks that wait until their changes are written; a context manager around the write.

    If Postgres refuses the write, they wait for the next one.
    """

    def __init__(self) -> None:
        self._next: list[asyncio.Future[None]] = []
        self._current: list[asyncio.Future[None]] = []

    @property
    def awaited(self) -> bool:
        """Return True if there is anything to write."""
        return bool(self._next)

    def next(self) -> asyncio.Future[None]:
        """Return the future of the next write that begins."""
        if not self._next:
            self._next.append(asyncio.get_running_loop().create_future())
        return self._next[-1]

    def __enter__(self) -> None:
        self._current, self._next = self._next, []

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._next = [*self._current, *self._next]
            return
        for written in self._current:
            if not written.done():
                written.set_result(None)
