"""The recorder: writes outcomes in batches, keeps the lease, stores how far the log is settled, takes due rows.

All of it on one session, the one that holds the shard locks, one step after another: rows are due only when no
outcome about them is still unwritten, and nobody writes who does not own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Protocol

from structlog.typing import FilteringBoundLogger

from pghookd.core.home import Server, check_newest
from pghookd.core.lanes import Lanes
from pghookd.core.model import Reason, State
from pghookd.core.order import Order
from pghookd.core.snapshot import Log, Mark, Position, settle
from pghookd.core.writes import Attempted, Batch, Kept, Write, batch_of
from pghookd.edge.journal import LogEvent
from pghookd.edge.postgres import DatabaseError, Row, Session, columns, number_literal, query

ANSWER_MAX_AGE: Final = 0.6  # of the lease: no POST starts unless its session answered within this
OUTCOME_MAX_AGE_S: Final = 5.0  # nor while an outcome older than this is unrecorded
CHECKPOINT_AFTER_S: Final = 10.0  # a delivery unsettled for this long gets a row of its own
STORE_EVERY_S: Final = 1.0
STORE_IDLE_EVERY_S: Final = 30.0  # where nothing but other people's transactions has moved
TEND_EVERY_S: Final = 0.25
PENDING_MAX: Final = 5000  # writes waiting; who wants to add more waits
RETRY_WAIT_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)


class Due(Protocol):
    """What takes due rows back into memory, between two batches."""

    def step(self, session: Session, now: float, put: Callable[[Write, float], None]) -> Awaitable[None]:
        """Take a bounded page if there is one to take; `put` takes what is to be written instead."""
        ...

    def endpoints_changed(self, endpoint_ids: Iterable[int] | None) -> None:
        """Look at endpoints that were perhaps switched; None: at all."""
        ...


class Recorder:
    """Gathers writes for a few milliseconds and makes them durable."""

    def __init__(
        self,
        session: Session,
        log: Log,
        lanes: Lanes,
        order: Order,
        server: Server,
        due: Due,
        *,
        logger: FilteringBoundLogger,
        monotonic: Callable[[], float],
        batch_max: int,
        batch_wait_s: float,
        heartbeat_s: float,
        lease_s: float = 10.0,
        recorded: Callable[[], None],
        failed: Callable[[], None] = lambda: None,
        beat: Callable[[], None],
    ) -> None:
        self._session = session
        self._log = log
        self._lanes = lanes
        self._order = order
        self._server = server
        self._due = due
        self._logger = logger
        self._monotonic = monotonic
        self._batch_max = batch_max
        self._batch_wait_s = batch_wait_s
        self._heartbeat_s = heartbeat_s
        self._answer_max_age_s = ANSWER_MAX_AGE * lease_s
        self._recorded = recorded
        self._failed = failed
        self._beat = beat
        self._pending: list[Write] = []
        self._put_at: list[float] = []  # when each of them was put
        self._writing: list[Write] = []
        self._oldest_at: float | None = None
        self._wake = asyncio.Event()
        self._roomy = asyncio.Event()
        self._roomy.set()
        self._answered_at = monotonic()
        self._stored_at = 0.0
        self._stored: dict[int, Position] = {}
        self._stored_rows = -1
        self._checked_at = 0.0
        self._watched: dict[int, int] | None = (
            None  # endpoints in trouble, and their latest failure; None: ask
        )
        self._stopping = False

    # What others may ask and say ------------------------------------------------------------------------------------

    def put(self, write: Write, now: float) -> None:
        """Hand over an outcome or a change of state; it is durable within milliseconds."""
        self._pending.append(write)
        self._put_at.append(now)
        if self._oldest_at is None:
            self._oldest_at = now
            self._wake.set()
        if len(self._pending) >= self._batch_max:
            self._wake.set()
        if write.delivery.line is not None:
            for other in self._order.note(write, now):
                self.put(other, now)

    def hurry(self) -> None:
        """Go on at once with what is done between two batches."""
        self._wake.set()

    async def room(self, most: int = PENDING_MAX) -> None:
        """Wait until fewer writes than so many are waiting."""
        while len(self._pending) >= most:
            self._roomy.clear()
            await self._roomy.wait()

    @property
    def unrecorded(self) -> int:
        """Writes that are not durable yet."""
        return len(self._pending) + len(self._writing)

    def behind_s(self, now: float) -> float:
        """Say for how long the oldest outcome has been waiting to be durable: up to there everything is recorded."""
        return 0.0 if self._oldest_at is None else max(0.0, now - self._oldest_at)

    def closed(self, now: float) -> str | None:
        """Say why no POST may start now, if so: the lease is not proven, or outcomes are piling up."""
        if now - self._answered_at > self._answer_max_age_s:
            return "lease"
        if self._oldest_at is not None and now - self._oldest_at > OUTCOME_MAX_AGE_S:
            return "unrecorded"
        return None

    def heal(self, endpoint_ids: Iterable[int] | None) -> None:
        """Endpoints have changed: rows of those that are off are held, those of others go out; None: any of them."""
        self._due.endpoints_changed(endpoint_ids)

    def unwatch(self, endpoint_id: int, last_failure_us: int) -> None:
        """An endpoint's trouble is over, unless it has failed again."""
        if self._watched is not None and self._watched.get(endpoint_id) == last_failure_us:
            del self._watched[endpoint_id]

    # The loop ---------------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Learn which endpoints are in trouble, before anything is sent: a lock may stand in the way."""
        rows = await self._session.fetch(query("read_watched"))
        self._watched = {row["endpoint_id"]: row["last_failure_at"] for row in rows}

    async def run(self) -> None:
        """Write and tend until told to stop."""
        while not self._stopping:
            await self._gather()
            await self._flush(self._batch_max)
            await self._tend()
            self._recorded()
            self._beat()

    def stop(self) -> None:
        """End the loop after its present round."""
        self._stopping = True
        self._wake.set()

    async def finish(self) -> None:
        """Write everything that is pending, checkpoint nothing, and store the position: the orderly end."""
        while self._pending:
            await self._flush(self._batch_max)
        self._stored_rows = -1
        await self._store(self._monotonic())

    async def _gather(self) -> None:
        if not self._pending:
            self._wake.clear()
            try:
                async with asyncio.timeout(TEND_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                return
        if len(self._pending) < self._batch_max:
            self._wake.clear()
            try:
                async with asyncio.timeout(self._batch_wait_s):
                    await self._wake.wait()
            except TimeoutError:
                return

    async def _flush(self, rows: int) -> None:
        if not self._pending:
            return
        self._writing, self._pending = self._pending[:rows], self._pending[rows:]
        del self._put_at[:rows]
        await self._write(self._writing)
        done, self._writing = self._writing, []
        self._oldest_at = self._put_at[0] if self._put_at else None
        self._roomy.set()
        for write in done:
            self._settle(write)

    def _settle(self, write: Write) -> None:
        settle(write.delivery)
        if write.delivery.in_backlog:
            key = (write.delivery.event.event_id, write.delivery.endpoint_id)
            if self._lanes.aboard.get(key) is write.delivery:  # its row may have been taken anew meanwhile
                del self._lanes.aboard[key]
        if write.delivery.line is not None:
            now = self._monotonic()
            for other in self._order.settled(write.delivery, now):
                self.put(other, now)
        if isinstance(write, Kept) and write.state is State.PARKED:
            self._lanes.parked.note(write.delivery.endpoint_id, write.delivery.event.event_id)

    # Writing ----------------------------------------------------------------------------------------------------------

    async def _write(self, writes: list[Write]) -> None:
        """Make writes durable, whatever it takes; only the loss of the session ends it."""
        for attempt in range(1_000_000):
            try:
                return await self._transact(batch_of(writes, self._watched or ()))
            except DatabaseError as error:
                if error.sqlstate[:2] in ("22", "23"):  # one row's data: find it, the others are not to blame
                    return await self._isolate(writes, error)
                self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error), writes=len(writes))
            await asyncio.sleep(RETRY_WAIT_S[min(attempt, len(RETRY_WAIT_S) - 1)])
        return None

    async def _isolate(self, writes: list[Write], error: DatabaseError) -> None:
        if len(writes) > 1:
            half = len(writes) // 2
            await self._write(writes[:half])
            await self._write(writes[half:])
            return
        write = writes[0]
        if not isinstance(write, Attempted) or (write.response is None and write.error is None):
            raise error
        write.response, write.error = None, "unrecordable" if write.error else None
        await self._write(writes)

    async def _transact(self, batch: Batch) -> None:
        started = self._monotonic()
        failing: list[Row] = []
        if batch.single:
            await self._session.execute(query("record_attempts"), *_attempts(batch))
        else:
            async with self._session.transaction():
                failing = await self._change(batch)
        self._answered_at = started
        for row in failing:
            if self._watched is not None:
                self._watched[row["endpoint_id"]] = row["last_failure_at"]
                self._failed()

    async def _change(self, batch: Batch) -> list[Row]:
        """Write a batch; return the endpoints that failed in it."""
        session = self._session
        if batch.attempts:
            await session.execute(query("record_attempts"), *_attempts(batch))
        if batch.disabled:
            sql = query("disable_endpoints")
            for row in await session.fetch(sql, list(batch.disabled), list(batch.disabled.values())):
                self._logger.warning(
                    LogEvent.ENDPOINT_DISABLED,
                    endpoint_id=row["endpoint_id"],
                    site_id=row["site_id"],
                    reason=row["disabled_reason"],
                )
        if batch.backlog:
            await session.execute(query("put_backlog"), *columns(batch.backlog, 9))
        if batch.dead:
            await session.execute(query("put_dead"), *columns(batch.dead, 5))
        if batch.cleared:
            await session.execute(query("clear_backlog"), *columns(batch.cleared, 2))
        failing: list[Row] = []
        if failures := batch.failures():
            failing = await session.fetch(query("note_failures"), *columns(failures, 11))
        if successes := batch.successes():
            await session.execute(query("note_successes"), *columns(successes, 4))
        return failing

    # Between batches --------------------------------------------------------------------------------------------------

    async def _tend(self) -> None:
        now = self._monotonic()
        if now - self._checked_at >= TEND_EVERY_S:
            self._checked_at = now
            await self._checkpoint(now)
        await self._due.step(self._session, now, self.put)
        if now - self._stored_at >= STORE_EVERY_S:
            await self._store(now)
        if now - self._answered_at >= self._heartbeat_s:
            await self._session.fetchval("select 1")
            self._answered_at = now

    async def _checkpoint(self, now: float) -> None:
        """Give what has been unsettled for ten seconds a row of its own; it stays in memory."""
        late = self._log.overdue(now - CHECKPOINT_AFTER_S)
        if not late:
            return
        spoken_for = {id(write.delivery) for write in self._pending}
        late = [delivery for delivery in late if id(delivery) not in spoken_for]
        for start in range(0, len(late), self._batch_max):
            page = [d for d in late[start : start + self._batch_max] if d.ticket is not None]
            for delivery in page:  # said before it is so: an outcome that comes meanwhile must clear the row
                delivery.in_backlog = True
                self._lanes.aboard[delivery.event.event_id, delivery.endpoint_id] = delivery
            await self._write([Kept(delivery, State.WAITING, Reason.QUEUED) for delivery in page])
            for delivery in page:
                settle(delivery)

    async def _store(self, now: float) -> None:
        """Store each shard's settled position, with a mark; at most once a second, and only if it moved."""
        moved = [s for s in self._log.shards.values() if self._stored.get(s.shard) is not s.settled]
        if not moved or (self._stored_rows == self._log.rows and now - self._stored_at < STORE_IDLE_EVERY_S):
            return
        self._stored_at = now
        self._stored_rows = self._log.rows
        newest: int = await self._session.fetchval(query("read_newest_event_id"))
        check_newest(newest, self._log.marks.newest)
        marks = self._log.marks
        settled = [(shard.shard, shard.settled) for shard in moved]
        rows = [
            (
                number,
                at.snapshot,
                at.upto,
                at.last_event_id,
                marks.floor(at.snapshot),
                marks.front(at.snapshot),
            )
            for number, at in settled
        ]
        server = self._server
        xid: int = await self._session.fetchval(
            query("store_positions"),
            *columns(rows, 6),
            newest,
            server.system_identifier,
            server.database_oid,
            server.timeline,
        )
        self._answered_at = now
        self._stored.update(settled)
        marks.note(Mark(newest, xid))
        marks.forget(self._log.oldest())


def _attempts(batch: Batch) -> list[object]:
    """Return the columns of record_attempts; numbers as literals, which cost a third of the driver's arrays."""
    found = columns(batch.attempts, 10)
    return [*map(number_literal, found[:6]), *found[6:]]
