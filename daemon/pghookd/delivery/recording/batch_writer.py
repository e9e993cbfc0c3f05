"""Makes batches of writes durable, without waiting for rows that other sessions hold.

A batch is one transaction, or one statement if nothing has failed. Writes on locked rows, and writes that Postgres
rejects, are given back, and the rest is written. While a whole table is locked, all writes that need it are given back.
A write that can never succeed, since its day was dropped, is logged and forgotten.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Collection, Container
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.delivery.recording.batch import Batch, Trouble, batch_of, is_plain, key_of
from pghookd.delivery.recording.pending import DelayedOutcomes
from pghookd.model.delivery import DAY_IDS
from pghookd.model.outcome import AttemptWrite, Write
from pghookd.model.verdict import Disable
from pghookd.postgres.client import DatabaseError, Session, columns, number_literal, query
from pghookd.process.logs import LogEvent

RETRY_WAIT_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
TABLE_AGAIN_S: Final = 1.0  # after a table was locked, until the next try
UNRECORDABLE: Final = "unrecordable"  # replaces an error text that Postgres does not accept

_ATTEMPT_COLUMNS: Final = 12
_NUMBER_COLUMNS: Final = 7
_BACKLOG_COLUMNS: Final = 10
_DEAD_COLUMNS: Final = 5
_KEY_COLUMNS: Final = 2


class _Locked(Exception):  # noqa: N818 - it ends a transaction, and is not an error
    """Other sessions hold rows that the transaction needs.

    Attributes:
        keys: events and endpoints whose row in `backlog` is locked.
        endpoints: ids of endpoints that the transaction disables, and whose row is locked.
    """

    def __init__(self, keys: Collection[tuple[int, int]] = (), endpoints: Collection[int] = ()) -> None:
        super().__init__()
        self.keys = keys
        self.endpoints = endpoints

    def stops(self, write: Write) -> bool:
        """Return True if the write must wait for a locked row."""
        if key_of(write) in self.keys:
            return True
        disables = isinstance(write, AttemptWrite) and isinstance(write.verdict, Disable)
        return disables and write.delivery.endpoint_id in self.endpoints


@dataclasses.dataclass(slots=True)
class Written:
    """The results of some writes.

    Attributes:
        done: writes that are durable, or never will be.
        aside: writes to be set aside, each with the reason.
        later: writes that need a locked table; no outcome is among them.
        troubles: the troubles of endpoints in the durable writes.
        is_retry: True if the writes had been set aside for one endpoint: a lock on them says nothing about others.
        waited: True if a wait for a lock timed out.
    """

    done: list[Write] = dataclasses.field(default_factory=list)
    aside: list[tuple[Write, DelayedOutcomes]] = dataclasses.field(default_factory=list)
    later: list[Write] = dataclasses.field(default_factory=list)
    troubles: list[dict[int, Trouble]] = dataclasses.field(default_factory=list)
    is_retry: bool = False
    waited: bool = False


class BatchWriter:
    """Writes batches on the recorder's session."""

    def __init__(
        self,
        session: Session,
        watched: Container[int],
        *,
        logger: FilteringBoundLogger,
        monotonic: Callable[[], float],
    ) -> None:
        self._session = session
        self._watched = watched
        self._logger = logger
        self._monotonic = monotonic
        self._locked_until = 0.0
        self._gone_days: set[int] = set()  # days already logged as dropped

    def is_table_locked(self, now: float) -> bool:
        """Return True if a table that writes other than plain outcomes need was locked recently."""
        return now < self._locked_until

    async def write(self, writes: list[Write]) -> Written:
        """Write a batch; locked and rejected writes are given back.

        Raises:
            DatabaseAway: if the session is lost.
        """
        written = Written()
        if self.is_table_locked(self._monotonic()):
            writes = self._leave_out(writes, written)
        if writes:
            await self._write(writes, written)
        return written

    async def retry(self, writes: list[Write]) -> Written:
        """Write the outcomes set aside for one endpoint."""
        written = Written(is_retry=True)
        await self._write(writes, written)
        return written

    async def _write(self, writes: list[Write], written: Written) -> None:
        for attempt in itertools.count():
            batch = batch_of(writes, self._watched)
            try:
                await self._transact(batch)
            except _Locked as found:
                held = [write for write in writes if found.stops(write)]
                written.aside += [(write, DelayedOutcomes.LOCKED) for write in held]
                writes = [write for write in writes if not found.stops(write)]
                if not writes:
                    return
                continue
            except DatabaseError as error:
                if error.is_about_data:
                    await self._isolate(writes, error, written)
                    return
                if error.is_about_a_lock and not batch.single:
                    await self._without_states(writes, error, written)
                    return
                self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error), writes=len(writes))
            else:
                written.done += writes
                if batch.troubles:
                    written.troubles.append(batch.troubles)
                return
            await asyncio.sleep(RETRY_WAIT_S[min(attempt, len(RETRY_WAIT_S) - 1)])

    # A batch that was not written -------------------------------------------------------------------------------------

    async def _without_states(self, writes: list[Write], error: DatabaseError, written: Written) -> None:
        """Handle a locked table: write the rows that need only `attempts`, and give back the rest."""
        self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error), writes=len(writes))
        written.waited = True
        if not written.is_retry:
            self._locked_until = self._monotonic() + TABLE_AGAIN_S
        if plain := self._leave_out(writes, written):
            await self._write(plain, written)

    def _leave_out(self, writes: list[Write], written: Written) -> list[Write]:
        """Give back the writes that need a table other than `attempts`; return the rest."""
        stateful = {id(write.delivery) for write in writes if not is_plain(write)}
        for write in writes:
            if id(write.delivery) in stateful:
                if isinstance(write, AttemptWrite):
                    written.aside.append((write, DelayedOutcomes.LOCKED))
                else:
                    written.later.append(write)
        return [write for write in writes if id(write.delivery) not in stateful]

    async def _isolate(self, writes: list[Write], error: DatabaseError, written: Written) -> None:
        """Find the row that Postgres rejects, and write the others."""
        if error.may_be_a_missing_partition and (gone := await self._find_gone_days(writes)):
            lost = {id(w.delivery) for w in writes if isinstance(w, AttemptWrite) and _day_of(w) in gone}
            await self._forget([write for write in writes if id(write.delivery) in lost], written)
            if rest := [write for write in writes if id(write.delivery) not in lost]:
                await self._write(rest, written)
            return
        if len(writes) > 1:
            half = len(writes) // 2
            await self._write(writes[:half], written)
            await self._write(writes[half:], written)
            return
        [write] = writes
        if isinstance(write, AttemptWrite) and (
            (write.response, write.evidence) != (None, None) or write.error not in {None, UNRECORDABLE}
        ):
            write.response = write.evidence = None
            write.error = UNRECORDABLE if write.error else None
            await self._write(writes, written)
            return
        event_id, endpoint_id = key_of(write)
        self._logger.error(
            LogEvent.OUTCOME_REFUSED, event_id=event_id, endpoint_id=endpoint_id, error=str(error)
        )
        written.aside.append((write, DelayedOutcomes.REFUSED))

    # Days that were dropped ------------------------------------------------------------------------------------------

    async def _find_gone_days(self, writes: list[Write]) -> set[int]:
        days = {_day_of(write) for write in writes if isinstance(write, AttemptWrite)}
        rows = await self._session.fetch(query("find_gone_days"), sorted(days))
        return {row["day"] for row in rows}

    async def _forget(self, writes: list[Write], written: Written) -> None:
        """Delete the rows of deliveries whose attempts can no longer be recorded: none is sent again."""
        for write in writes:
            self._say_gone(_day_of(write), "attempts")
        kept = [key_of(write) for write in writes if write.delivery.in_backlog]
        rows = await self._session.fetch(query("clear_backlog"), *columns(kept, _KEY_COLUMNS)) if kept else []
        locked = {(row["event_id"], row["endpoint_id"]) for row in rows}
        for write in writes:
            if key_of(write) in locked:
                written.aside.append((write, DelayedOutcomes.LOCKED))
            else:
                written.done.append(write)

    def _say_gone(self, day: int, table: str) -> None:
        if day not in self._gone_days:
            self._gone_days.add(day)
            self._logger.error(LogEvent.DAY_GONE, day=day, table=table)

    # Statements -------------------------------------------------------------------------------------------------------

    async def _transact(self, batch: Batch) -> None:
        """Write a batch, whole or not at all.

        Raises:
            _Locked: if other sessions hold rows that it needs.
        """
        if batch.single:
            if batch.attempts:
                await self._session.execute(query("record_attempts"), *_attempts(batch))
            return
        async with self._session.transaction():
            off = await self._disable(batch) if batch.disabled else []
            await self._change_backlog(batch)
            if batch.dead:
                rows = await self._session.fetch(query("put_dead"), *columns(batch.dead, _DEAD_COLUMNS))
                for row in rows:
                    self._say_gone(row["day"], "dead")
            if batch.attempts:
                await self._session.execute(query("record_attempts"), *_attempts(batch))
        for endpoint_id, site_id, reason in off:
            self._logger.warning(
                LogEvent.ENDPOINT_DISABLED, endpoint_id=endpoint_id, site_id=site_id, reason=reason
            )

    async def _disable(self, batch: Batch) -> list[tuple[int, str, str]]:
        """Disable endpoints in the same transaction as the outcomes that require it: neither is lost alone."""
        sql = query("disable_endpoints")
        rows = await self._session.fetch(sql, list(batch.disabled), list(batch.disabled.values()))
        if locked := {row["endpoint_id"] for row in rows if row["locked"]}:
            raise _Locked(endpoints=locked)
        return [(row["endpoint_id"], row["site_id"], row["disabled_reason"]) for row in rows]

    async def _change_backlog(self, batch: Batch) -> None:
        locked: set[tuple[int, int]] = set()
        for name, rows, width in (
            ("put_backlog", batch.backlog, _BACKLOG_COLUMNS),
            ("clear_backlog", batch.cleared, _KEY_COLUMNS),
        ):
            if rows:
                found = await self._session.fetch(query(name), *columns(rows, width))
                locked.update((row["event_id"], row["endpoint_id"]) for row in found)
        if locked:
            raise _Locked(keys=locked)


def _day_of(write: Write) -> int:
    return write.delivery.event.event_id // DAY_IDS


def _attempts(batch: Batch) -> list[object]:
    """Return the columns of record_attempts; numbers as literals, at a third of the cost of the driver's arrays."""
    found = columns(batch.attempts, _ATTEMPT_COLUMNS)
    return [*map(number_literal, found[:_NUMBER_COLUMNS]), *found[_NUMBER_COLUMNS:], _evidence(batch)]


def _evidence(batch: Batch) -> list[str | None] | None:
    """Return the column of evidence up to the last row that has any; None if no row has."""
    evidence = batch.evidence
    return [evidence.get(row) for row in range(max(evidence) + 1)] if evidence else None
