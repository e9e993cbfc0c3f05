"""The recorder: writes outcomes in batches, keeps the lease, stores how far the log is settled, and takes due rows.

All of this runs on one session, the one that holds the shard locks, one step after another. So rows are taken as due
only if no outcome about them is unwritten, and only the owner of the shards writes.

The session never waits for a row that others can lock, and at most 100 ms for a locked table. A blocked write is set
aside by its endpoint, which is sent nothing until it is written; all other endpoints continue (pending.py,
batch_writer.py).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator
from typing import Final

from pghookd.delivery.recording.batch_writer import BatchWriter, Written
from pghookd.delivery.recording.chores import Chore, Chores, unless_refused
from pghookd.delivery.recording.notes import Notes
from pghookd.delivery.recording.pending import DelayedOutcomes, Pending
from pghookd.delivery.recording.positions import PositionStore
from pghookd.event_log.position import EventLog, settle
from pghookd.model.delivery import Delivery, Reason, State
from pghookd.model.outcome import BacklogWrite, Write
from pghookd.postgres.client import PING, Session
from pghookd.process.context import Context
from pghookd.process.logs import LogEvent
from pghookd.scheduling.lane import NEVER
from pghookd.scheduling.lanes import Lanes
from pghookd.scheduling.ordering import Order

ANSWER_MAX_AGE: Final = 0.6  # part of the lease: no POST starts unless the session answered within it
OUTCOME_MAX_AGE_S: Final = 5.0  # nor while an outcome older than this is unrecorded
CHECKPOINT_AFTER_S: Final = 10.0  # a delivery unsettled for this long gets a row of its own
UPKEEP_EVERY_S: Final = 0.25
PENDING_MAX: Final = 5000  # waiting writes that are not outcomes; beyond this, callers of `room` wait
LOCKED_AGAIN_S: Final = 1.0  # after a row was locked, until its write is tried again
LOCKED_PAUSE_S: Final = 2.0  # its endpoint is sent nothing for this long: longer than until the next try
REFUSED_AGAIN_S: Final = 60.0  # after Postgres rejected a row: the operator has to change something
REFUSED_PAUSE_S: Final = 90.0
RETRIES_A_STEP: Final = 20  # endpoints whose delayed writes are tried between two batches
FINISH_WITHIN_S: Final = 10.0  # at a clean stop, while a table is locked

_AGAIN_S: Final = {DelayedOutcomes.LOCKED: LOCKED_AGAIN_S, DelayedOutcomes.REFUSED: REFUSED_AGAIN_S}
_PAUSE_S: Final = {DelayedOutcomes.LOCKED: LOCKED_PAUSE_S, DelayedOutcomes.REFUSED: REFUSED_PAUSE_S}


@dataclasses.dataclass(frozen=True, slots=True)
class RecorderTerms:
    """The settings of the recorder."""

    batch_max: int
    batch_wait_s: float
    heartbeat_s: float
    lease_s: float = 10.0


@dataclasses.dataclass(frozen=True, slots=True)
class RecorderHooks:
    """Callbacks that connect the recorder to other loops.

    Attributes:
        recorded: called when outcomes have become durable: there may be room for further requests.
        failed: called when some of them were failures.
        beat: called while the recorder is alive.
    """

    recorded: Callable[[], None]
    beat: Callable[[], None]
    failed: Callable[[], None] = lambda: None


class Recorder:
    """Collects writes for a few milliseconds and makes them durable."""

    def __init__(
        self,
        session: Session,
        log: EventLog,
        lanes: Lanes,
        order: Order,
        positions: PositionStore,
        terms: RecorderTerms,
        context: Context,
        hooks: RecorderHooks,
    ) -> None:
        self._session = session
        self._log = log
        self._lanes = lanes
        self._index = lanes.backlog_index
        self._order = order
        self._chores = Chores(session, context.logger)
        self._terms = terms
        self._logger = context.logger
        self._monotonic = context.monotonic
        self._recorded = hooks.recorded
        self._failed = hooks.failed
        self._beat = hooks.beat
        self.notes = Notes(session, logger=context.logger)
        self._writer = BatchWriter(session, self.notes, logger=context.logger, monotonic=context.monotonic)
        self._positions = positions
        self._pending = Pending()
        self._writing: list[Write] = []
        self._writing_outcomes = 0
        self._writing_since: float | None = None  # when the oldest write of this batch was put
        self._outcome_since: float | None = None  # when its oldest outcome was put
        self._wake = asyncio.Event()
        self._roomy = asyncio.Event()
        self._roomy.set()
        self._answered_at = context.monotonic()
        self._check_at = 0.0
        self._retry_at = 0.0
        self._stopping = False

    def apply(self, *, batch_max: int, batch_wait_s: float) -> None:
        """Apply changed bounds to the next batches."""
        self._terms = dataclasses.replace(self._terms, batch_max=batch_max, batch_wait_s=batch_wait_s)

    def take_on(self, *chores: Chore) -> None:
        """Run these chores between two batches, one after the other, from now on."""
        self._chores.take_on(*chores)

    # For other loops ------------------------------------------------------------------------------------------------

    def put(self, write: Write, now: float) -> None:
        """Hand over an outcome or a change of state; it is durable within milliseconds."""
        pending = self._pending
        before = pending.takeable
        pending.put(write, now)
        if not before or before + 1 >= self._terms.batch_max:
            self._wake.set()
        if write.delivery.line is not None:
            for other in self._order.note(write, now):
                self.put(other, now)

    def wake(self) -> None:
        """Run the chores between two batches at once."""
        self._wake.set()

    async def room(self, most: int = PENDING_MAX) -> None:
        """Wait until fewer than `most` writes that are not outcomes wait."""
        while self._pending.others >= most:
            self._roomy.clear()
            await self._roomy.wait()

    @property
    def unrecorded(self) -> int:
        """Return the number of outcomes that are not durable yet, except those set aside."""
        return self._pending.outcomes + self._writing_outcomes

    @property
    def waiting(self) -> int:
        """Return the number of writes of any kind that are not durable yet."""
        return self._pending.outcomes + self._pending.others + len(self._writing) + self._pending.aside

    def behind_s(self, now: float) -> float:
        """Return how long the oldest write has waited; all earlier ones are recorded, except those set aside."""
        since = self._pending.oldest_at if self._writing_since is None else self._writing_since
        return 0.0 if since is None else max(0.0, now - since)

    def closed(self, now: float) -> str | None:
        """Return why no POST may start now: the lease is not proven, or outcomes pile up. None if it may."""
        if now - self._answered_at > ANSWER_MAX_AGE * self._terms.lease_s:
            return "lease"
        since = self._pending.oldest_outcome_at if self._outcome_since is None else self._outcome_since
        if since is not None and now - since > OUTCOME_MAX_AGE_S:
            return "unrecorded"
        return "delayed" if self._pending.aside and self._pending.is_full else None

    def unwatch(self, endpoint_id: int, last_failure_us: int) -> None:
        """Forget an endpoint whose trouble is over, unless it has failed again."""
        self.notes.unwatch(endpoint_id, last_failure_us)

    # The loop ---------------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Read which endpoints are in trouble before anything is sent: a lock may delay it."""
        await self.notes.begin()

    async def run(self) -> None:
        """Write, and run chores, until stopped."""
        while not self._stopping:
            await self._gather()
            await self._flush(self._terms.batch_max)
            await self._upkeep()
            self._recorded()
            self._beat()

    def stop(self) -> None:
        """End the loop after its current round."""
        self._stopping = True
        self._wake.set()

    async def finish(self) -> None:
        """Write everything that is pending, make no checkpoint, and store the position: the clean stop.

        Writes that stay locked for longer are left; the next run repeats them.
        """
        until = self._monotonic() + FINISH_WITHIN_S
        while self._pending.outcomes + self._pending.others and self._monotonic() < until:
            self._rest_others()
            if not self._pending.takeable:
                await asyncio.sleep(UPKEEP_EVERY_S)
            await self._flush(self._terms.batch_max)
        await self._retry(NEVER, self._pending.endpoints_aside)
        await unless_refused(self._positions.store(self._monotonic()), self._logger)

    def _rest_others(self) -> None:
        """Leave other writes in their queue while a table that they need is locked."""
        self._pending.others_rest = self._writer.is_table_locked(self._monotonic())

    async def _gather(self) -> None:
        pending = self._pending
        self._rest_others()
        if self._chores.more_to_do:
            return
        if not pending.takeable:
            self._wake.clear()
            try:
                async with asyncio.timeout(UPKEEP_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                return
        if pending.takeable < self._terms.batch_max:
            self._wake.clear()
            try:
                async with asyncio.timeout(self._terms.batch_wait_s):
                    await self._wake.wait()
            except TimeoutError:
                return

    async def _flush(self, rows: int) -> None:
        """Write a batch of at most `rows` rows."""
        pending = self._pending
        self._writing_since, self._outcome_since = pending.oldest_at, pending.oldest_outcome_at
        before = pending.outcomes
        self._writing = pending.take(rows)
        self._writing_outcomes = before - pending.outcomes
        if self._writing:
            await self._write(self._writing)
        self._writing, self._writing_outcomes = [], 0
        self._writing_since = self._outcome_since = None
        self._roomy.set()

    async def _write(self, writes: list[Write]) -> None:
        """Make a batch durable, then note the troubles of its endpoints; it fails only if the session is lost."""
        started = self._monotonic()
        written = await self._writer.write(writes)
        if written.done:
            self._answered_at = started
        for write, reason in written.aside:
            self._set_aside(write, reason)
        self._pending.put_back(written.later, started)
        await self._conclude(written)

    async def _conclude(self, written: Written) -> None:
        for troubles in written.troubles:
            self.notes.take(troubles)
        now = self._monotonic()
        if self.notes.is_due(now) and await self.notes.write(now):
            self._failed()
        for write in written.done:
            self._settle(write)

    def _settle(self, write: Write) -> None:
        settle(write.delivery)
        if write.delivery.in_backlog:
            self._index.in_memory.discard(write.delivery)
        if write.delivery.line is not None:
            now = self._monotonic()
            for other in self._order.settled(write.delivery, now):
                self.put(other, now)
        if isinstance(write, BacklogWrite) and write.state is State.PARKED:
            self._index.parked.note(write.delivery.endpoint_id, write.delivery.event.event_id)

    # Outcomes set aside -----------------------------------------------------------------------------------------------

    def _set_aside(self, write: Write, reason: DelayedOutcomes) -> None:
        """Keep a write for later; an endpoint with an outcome set aside is sent nothing meanwhile."""
        now = self._monotonic()
        endpoint_id = write.delivery.endpoint_id
        if self._pending.set_aside(write, reason, now + _AGAIN_S[reason]):
            self._logger.warning(
                LogEvent.OUTCOME_DELAYED,
                endpoint_id=endpoint_id,
                site_id=write.delivery.event.site_id,
                reason=reason.value,
            )
        self._pause(endpoint_id, reason, now)

    def _pause(self, endpoint_id: int, reason: DelayedOutcomes, now: float) -> None:
        lane = self._lanes.known.by_endpoint.get(endpoint_id)
        if lane is None or not self._pending.is_aside(endpoint_id):
            return
        for delivery in self._lanes.pause(lane, _PAUSE_S[reason], now, asked=False):
            self._index.parked.add(endpoint_id)
            self.put(BacklogWrite(delivery, State.PARKED, Reason.PAUSED), now)

    async def _retry(self, now: float, most: int = RETRIES_A_STEP) -> bool:
        """Try the delayed writes of a few endpoints again, each alone, since others may still be locked.

        Returns:
            True if all of them were written, so that more may be tried at once.
        """
        ready = self._pending.ready(now, most)
        stuck = len(ready) < most
        for endpoint_id in ready:
            tried = self._pending.retry(endpoint_id, self._terms.batch_max)
            written = await self._writer.retry(tried)
            done = {id(write) for write in written.done}
            stay = [write for write in tried if id(write) not in done]
            is_refused = any(reason is DelayedOutcomes.REFUSED for _, reason in written.aside)
            reason = DelayedOutcomes.REFUSED if is_refused else DelayedOutcomes.LOCKED
            again_at = self._monotonic() + (_AGAIN_S[reason] if stay else 0.0)
            if self._pending.retried(endpoint_id, len(tried), stay, reason, again_at):
                site_id = tried[0].delivery.event.site_id
                self._logger.info(LogEvent.OUTCOME_RESUMED, endpoint_id=endpoint_id, site_id=site_id)
            self._pause(endpoint_id, reason, self._monotonic())
            await self._conclude(written)
            stuck = stuck or bool(stay)
            if written.waited:
                break
        return not stuck

    # Between batches --------------------------------------------------------------------------------------------------

    async def _upkeep(self) -> None:
        """Run the tasks that can wait; a refused statement affects no other, and is tried again a second later."""
        now = self._monotonic()
        if self._pending.aside and now >= self._retry_at:
            self._retry_at = now if await self._retry(now) else now + UPKEEP_EVERY_S
        if self.notes.is_due(now) and await self.notes.write(now):
            self._failed()
        if now >= self._check_at:
            self._check_at = now + await self._checkpoint(now)
        await self._chores.run(now, self.put)
        if await unless_refused(self._positions.step(now), self._logger):
            self._answered_at = now
        if now - self._answered_at >= self._terms.heartbeat_s:
            await self._session.fetchval(PING)
            self._answered_at = now

    async def _checkpoint(self, now: float) -> float:
        """Give deliveries unsettled for ten seconds rows of their own; they stay in memory.

        If outcomes wait, the next page is left for the next round.

        Returns:
            Seconds until the next checkpoint.
        """
        late = self._log.overdue(now - CHECKPOINT_AFTER_S)
        if not late or self._writer.is_table_locked(now):
            return UPKEEP_EVERY_S
        spoken_for = {id(delivery) for delivery in self._pending.deliveries()}
        late = [delivery for delivery in late if id(delivery) not in spoken_for]
        for page in _pages(late, self._terms.batch_max):
            for delivery in page:  # marked before the write: an outcome that arrives then must clear the row
                delivery.in_backlog = True
                self._index.in_memory.add(delivery)
            written = await self._writer.write([BacklogWrite(d, State.WAITING, Reason.QUEUED) for d in page])
            refused = [write for write, reason in written.aside if reason is DelayedOutcomes.REFUSED]
            for write in (
                *written.done,
                *(w for w, reason in written.aside if reason is DelayedOutcomes.LOCKED),
            ):
                settle(write.delivery)  # a locked delivery already has a row
            if refused:
                return REFUSED_AGAIN_S
            if self._pending.outcomes:
                return 0.0
        return UPKEEP_EVERY_S


def _pages(deliveries: list[Delivery], size: int) -> Iterator[list[Delivery]]:
    """Yield pages of deliveries; each page leaves out those settled by then."""
    for start in range(0, len(deliveries), size):
        yield [delivery for delivery in deliveries[start : start + size] if delivery.ticket is not None]
