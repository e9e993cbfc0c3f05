"""Takes parked rows, and held rows that are released, back into the lanes while there is time and room.

An endpoint whose breaker is open gets a single delivery, the probe: the first of its rows that can be sent. The rows
before it are given up page by page.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from pghookd.delivery.backlog.admission import Admission, BacklogStep
from pghookd.delivery.backlog.lines import LineRows
from pghookd.event_log.payload_filter import Filters
from pghookd.postgres.client import query
from pghookd.scheduling.backlog_index import BacklogIndex
from pghookd.scheduling.capacity import Capacity
from pghookd.scheduling.ordering import Order

LOOK_EVERY_S: Final = 0.1  # least time between two checks of one endpoint's rows
PROBE_PAGE: Final = 200  # rows read at once for a probe: those that cannot be sent are given up together


@dataclasses.dataclass(frozen=True, slots=True)
class ParkedRows:
    """Examines the rows of one endpoint after another."""

    capacity: Capacity
    index: BacklogIndex
    order: Order
    filters: Filters
    admission: Admission
    lines: LineRows

    async def step(self, step: BacklogStep) -> bool:
        """Examine endpoints whose time has come, at least one; none while memory is full.

        Returns:
            True if more may be waiting: the step was over before all were examined.
        """
        while not self.capacity.full:
            endpoint_id = self.index.parked.take(step.now, step.now + LOOK_EVERY_S)
            if endpoint_id is None:
                break
            await self._look(step, endpoint_id)
            if step.is_over:
                return True
        return False

    async def _look(self, step: BacklogStep, endpoint_id: int) -> None:
        refill_quota = self.index.refill_quota(endpoint_id, step.now)
        if refill_quota and endpoint_id in self.order:
            await self.lines.refill(step, endpoint_id, refill_quota)
        elif refill_quota and self.index.probe_at(endpoint_id) is not None:
            await self._find_probe(step, endpoint_id)
        elif refill_quota:
            await self._refill(step, endpoint_id, refill_quota)
        not_before = max(self.index.probe_at(endpoint_id) or 0.0, self.filters.rests_until(endpoint_id))
        if not_before > step.now + LOOK_EVERY_S:
            self.index.parked.look(endpoint_id, not_before)

    async def _refill(self, step: BacklogStep, endpoint_id: int, page: int) -> None:
        """Take the next page of an endpoint's rows; after the last row start over before they count as gone."""
        parked = self.index.parked
        after = parked.after(endpoint_id)
        rows = await step.session.fetch(query("read_parked"), endpoint_id, after, page)
        if rows:
            await self.admission.place(step, rows)
            if not self.capacity.full:  # otherwise some of them may have found no room
                parked.read(endpoint_id, self.filters.passed(endpoint_id, rows[-1]["event_id"]))
        elif after:
            parked.rewind(endpoint_id)
        elif not self.index.in_memory.count(endpoint_id):
            self.admission.caught_up(endpoint_id)

    async def _find_probe(self, step: BacklogStep, endpoint_id: int) -> None:
        """Offer pages of rows until one of them is the probe; rows that cannot be sent are given up on the way.

        Rows whose payloads must be loaded come last in their page: only loading shows whether they are too large.
        """
        parked = self.index.parked
        while self.index.refill_quota(endpoint_id, step.now) and endpoint_id not in self.order:
            after = parked.after(endpoint_id)
            rows = await step.session.fetch(query("read_parked"), endpoint_id, after, PROBE_PAGE)
            await self.admission.place(step, sorted(rows, key=lambda row: row["payload"] is None))
            if len(rows) < PROBE_PAGE:
                parked.rewind(endpoint_id)
                if not rows and not after and not self.index.in_memory.count(endpoint_id):
                    self.admission.caught_up(endpoint_id)
                return
            parked.read(endpoint_id, self.filters.passed(endpoint_id, rows[-1]["event_id"]))
            if step.is_over:
                return
        parked.rewind(endpoint_id)  # the rows before the probe go out first once it is answered
