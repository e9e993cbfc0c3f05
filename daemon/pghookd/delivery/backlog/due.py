"""Takes rows of `backlog` back into the lanes in bounded pages: due rows, parked rows, and held rows that are released.

It has no session and no loop of its own: the recorder calls it between two batches. On another session, rows that had
just been recorded as delivered were sent again. Its parts: admission (the fate of a row), parked, lines (rows of
ordered endpoints), held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

from pghookd.delivery.backlog.admission import Admission, BacklogStep, Put
from pghookd.delivery.backlog.held import HeldRows
from pghookd.delivery.backlog.lines import LineRows
from pghookd.delivery.backlog.parked import ParkedRows
from pghookd.event_log.payload_filter import Filters, filter_of
from pghookd.event_log.position import EventLog
from pghookd.model.delivery import Endpoint, Reason, State
from pghookd.model.outcome import BacklogWrite
from pghookd.postgres.client import DatabaseError, Row, Session, query
from pghookd.process.context import Context
from pghookd.process.logs import LogEvent
from pghookd.scheduling.backlog_index import FIRST
from pghookd.scheduling.lanes import Lanes
from pghookd.scheduling.ordering import Order, is_ordered

DUE_PAGE: Final = 200
LOOK_EVERY_S: Final = 0.5
LOOK_AGAIN_EVERY_S: Final = (
    60.0  # how often all due rows are read again: a clock may have been set back, or a notification lost
)
SHED_EVERY_S: Final = 0.05
ENDPOINTS_PAGE: Final = 1000
CHANGED_MAX: Final = 1000  # changed endpoints remembered; with more, all that have rows are reviewed
CHANGED_EVERY_S: Final = 0.1  # least time between two reviews of changed endpoints
WALK_REST: Final = 10  # after a review of all endpoints, this many times its duration passes before the next
WALK_EVERY_S: Final = 0.5  # least time between two such reviews
_BEGINNING: Final = (0, 0, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class BacklogTerms:
    """The settings of the backlog.

    Attributes:
        probe_s: after a restart, probes of open breakers are spread over this many seconds.
        held_days: rows held for longer are dead, `expired`.
        payload_bytes_max: a larger payload is never sent.
    """

    probe_s: float = 30.0
    held_days: float = 14.0
    payload_bytes_max: int = 1 << 20


class Backlog:
    """Polls for due rows: it remembers its position and continues from there."""

    def __init__(
        self,
        lanes: Lanes,
        order: Order,
        log: EventLog,
        filters: Filters,
        context: Context,
        *,
        shards: int,
        terms: BacklogTerms,
    ) -> None:
        self._lanes = lanes
        self._capacity = lanes.capacity
        self._index = lanes.backlog_index
        self._order = order
        self._log = log
        self._filters = filters
        self._shards = shards
        self._terms = terms
        self._logger = context.logger
        self._monotonic = context.monotonic
        self._random01 = context.random01
        self._admission = Admission(
            lanes, order, log, filters, shards, terms.payload_bytes_max, context.wall_us, context.logger
        )
        lines = LineRows(self._index, order, self._admission)
        self._parked = ParkedRows(self._capacity, self._index, order, filters, self._admission, lines)
        self._held = HeldRows(order, held_days=terms.held_days, logger=context.logger)
        self._cursor: tuple[int, int, int] = _BEGINNING  # next_attempt_at, event_id, endpoint_id
        self._in_pass = False  # there are more due rows after the cursor
        self._rung = False  # the next pass over due rows starts from the first row
        self._look_at = 0.0
        self._look_again_at = 0.0
        self._shed_at = 0.0
        self._walk: int | None = 0  # endpoints with rows are found up to this id; None if all are
        self._walk_is_thorough = False  # each of them is reviewed
        self._walked_s = 0.0  # duration of this walk so far
        self._walk_at = 0.0  # the next thorough walk begins no earlier
        self._changed: set[int] = set()  # endpoints to review, at most CHANGED_MAX
        self._changed_at = 0.0
        self._all_changed = False  # there were more: review all endpoints that have rows

    def apply(self, terms: BacklogTerms) -> None:
        """Continue with changed settings."""
        self._terms = terms
        self._admission.payload_bytes_max = terms.payload_bytes_max
        self._held.held_days = terms.held_days

    def ring(self) -> None:
        """Read due rows from the start: another session has made rows due, perhaps before the cursor."""
        self._rung = True
        self._look_at = 0.0

    def more_due(self) -> None:
        """Read further due rows at once: this session has made rows due, all after the cursor."""
        self._look_at = 0.0

    def endpoints_changed(self, endpoint_ids: Iterable[int] | None) -> None:
        """Review endpoints that may have changed; None stands for any. It may be called at any time, however often."""
        if endpoint_ids is not None and not self._all_changed:
            self._changed.update(endpoint_ids)
        if endpoint_ids is None or len(self._changed) > CHANGED_MAX:
            self._all_changed = True
            self._changed.clear()

    async def begin(self, session: Session, now: float) -> None:
        """Find the rows parked and held before this epoch; breakers that were open are open again."""
        self._look_again_at = now + LOOK_AGAIN_EVERY_S
        while self._walk is not None:
            for row in await self._find(session):
                if row["enabled"] and Reason.BREAKER_OPEN.value in {row["reason"], row["newest_reason"]}:
                    self._index.reopen(row["endpoint_id"], now + self._terms.probe_s * self._random01())

    async def step(self, session: Session, now: float, put: Put) -> bool:
        """Take a page of due rows if it is time, refill lanes that have parked rows and room, and process held rows.

        Each part processes at least one page, and no more once the step has used up its time.

        Returns:
            True if there is more to take at once.
        """
        step = BacklogStep(session, now, put, self._monotonic)
        self._lanes.measure(now)
        if now >= self._look_again_at:
            self._look_again(now)
        if self._capacity.full and now >= self._shed_at:  # slow lanes fill memory while others have rows
            self._shed(step)
        if now >= self._look_at and not self._capacity.full:
            await self._due(step)
        if self._changed and now >= self._changed_at:
            await self._review_changed(step)
        if self._all_changed and self._walk is None and now >= self._walk_at:
            self._begin_walk(thorough=True)
        if self._walk is not None:
            await self._go_on_walking(step)
        more = await self._parked.step(step)
        await self._held.step(step)
        self._log_deaths(step)
        return more

    def _look_again(self, now: float) -> None:
        self._look_again_at = now + LOOK_AGAIN_EVERY_S
        self._rung = True
        if self._walk is None:
            self._begin_walk(thorough=False)
        self._index.parked.rewind_all()
        self._order.look_again()

    def _shed(self, step: BacklogStep) -> None:
        self._shed_at = step.now + SHED_EVERY_S
        for delivery in self._lanes.intake.shed(step.now):
            step.put(BacklogWrite(delivery, State.PARKED, Reason.LANE_FULL), step.now)
        for write in self._order.shed(step.now):
            step.put(write, step.now)

    def _log_deaths(self, step: BacklogStep) -> None:
        for (endpoint_id, site_id, reason), deliveries in step.deaths.items():
            self._logger.warning(
                LogEvent.DELIVERY_DIED,
                endpoint_id=endpoint_id,
                site_id=site_id,
                reason=reason.value,
                deliveries=deliveries,
            )

    # Due ----------------------------------------------------------------------------------------------------

    async def _due(self, step: BacklogStep) -> None:
        """Take the next page of due rows; a pass always runs to its end, so that each row has its turn."""
        if self._rung and not self._in_pass:
            self._cursor, self._rung = _BEGINNING, False
        rows = await step.session.fetch(query("read_due"), *self._cursor, DUE_PAGE)
        self._in_pass = len(rows) == DUE_PAGE
        if not self._in_pass and not self._rung:
            self._look_at = step.now + LOOK_EVERY_S
        if rows:
            last = rows[-1]
            self._cursor = (last["next_attempt_at"], last["event_id"], last["endpoint_id"])
            try:
                await self._admission.place(step, rows)
            except DatabaseError:  # start over with earlier rows: the error may be about one of these
                self._rung = True
                raise

    # Which endpoints have rows, and are they on? ------------------------------------------------------------

    def _begin_walk(self, *, thorough: bool) -> None:
        """Start finding endpoints with rows; a thorough walk covers any number of changes, and a pause follows it."""
        self._walk, self._walked_s = 0, 0.0
        self._walk_is_thorough = thorough
        if thorough:
            self._all_changed = False
            self._held.look_again()  # so that the rows of disabled endpoints are examined again

    async def _go_on_walking(self, step: BacklogStep) -> None:
        began = self._monotonic()
        while self._walk is not None:
            rows = await self._find(step.session)
            if self._walk_is_thorough:
                await self._review(step, {row["endpoint_id"] for row in rows})
            if step.is_over:
                break
        self._walked_s += self._monotonic() - began
        if self._walk is None:
            self._walk_at = step.now + max(WALK_EVERY_S, WALK_REST * self._walked_s)

    async def _find(self, session: Session) -> list[Row]:
        """Read a page of the endpoints that have rows; return those of our shards."""
        rows = await session.fetch(query("find_parked_endpoints"), self._walk, ENDPOINTS_PAGE, self._shards)
        self._walk = rows[-1]["endpoint_id"] if len(rows) == ENDPOINTS_PAGE else None
        ours = [row for row in rows if row["shard"] is None or row["shard"] in self._log.shards]
        for row in ours:
            aside = row["reason"] is not None
            self._sort(row["endpoint_id"], enabled=row["enabled"], aside=aside)
            if row["ordered"] and aside and self._is_overlooked(row["endpoint_id"]):
                self._order.restart(row["endpoint_id"])
        return ours

    def _is_overlooked(self, endpoint_id: int) -> bool:
        """Return True if an ordered endpoint has rows that its lines do not know."""
        return endpoint_id not in self._order or self._order.is_clear(endpoint_id)

    def _sort(self, endpoint_id: int, *, enabled: bool | None, aside: bool) -> None:
        """Classify an endpoint as sending or held; the rows of a deleted one (`enabled` is None) are read too."""
        if enabled is False:
            self._admission.paced.discard(endpoint_id)
            self._held.switched_off(endpoint_id)
            return
        was_off = self._held.switched_on(endpoint_id)
        if aside:
            self._index.parked.add(endpoint_id)
        if was_off:
            self._index.parked.look(endpoint_id, FIRST)

    # Endpoints that were perhaps changed ----------------------------------------------------------------------

    async def _review_changed(self, step: BacklogStep) -> None:
        """Review changed endpoints that have rows, or that memory lists as having some."""
        self._changed_at = step.now + CHANGED_EVERY_S
        changed, self._changed = self._changed, set()
        rows = await step.session.fetch(query("find_endpoints_with_rows"), list(changed))
        known = {i for i in changed if i in self._index.parked or i in self._held or i in self._order}
        await self._review(step, known | {row["endpoint_id"] for row in rows})

    async def _review(self, step: BacklogStep, endpoint_ids: set[int]) -> None:
        """Apply changes of endpoints; an unchanged endpoint is not examined before its turn."""
        if not endpoint_ids:
            return
        endpoints = await self._admission.read_endpoints(step.session, endpoint_ids)
        for endpoint_id in endpoint_ids:
            endpoint = endpoints.get(endpoint_id)
            if endpoint is not None and endpoint.shard not in self._log.shards:
                continue
            if endpoint is not None and endpoint_id in self._lanes.known.by_endpoint:
                self._lanes.lane(endpoint)  # so that an open breaker may be probed at once
            if endpoint is None or not endpoint.enabled:
                self._held.look_again(endpoint_id)
            self._sort(endpoint_id, enabled=None if endpoint is None else endpoint.enabled, aside=True)
            if self._filters.renew(endpoint_id, None if endpoint is None else filter_of(endpoint)):
                self._index.parked.look(endpoint_id, FIRST)
            self._reorder(step, endpoint_id, endpoint)

    def _reorder(self, step: BacklogStep, endpoint_id: int, endpoint: Endpoint | None) -> None:
        """Examine the rows of an ordered endpoint again; release one that is no longer ordered."""
        if endpoint is None or not is_ordered(endpoint):
            for delivery in self._order.forget(endpoint_id):
                step.put(BacklogWrite(delivery, State.PARKED, Reason.LANE_FULL), step.now)
        elif self._order.is_walking(endpoint_id):
            self.endpoints_changed([endpoint_id])  # after the walk: restarted now it might never end
        else:
            self._order.restart(endpoint_id)
            self._index.parked.probe_now(endpoint_id, step.now)
