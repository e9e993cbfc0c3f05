"""Takes the next rows of ordered endpoints' lines back into memory, for each line up to the first that must wait."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Final

from pghookd.delivery.backlog.admission import Admission, BacklogStep
from pghookd.model.delivery import Endpoint, Line
from pghookd.postgres.client import query
from pghookd.scheduling.backlog_index import BacklogIndex
from pghookd.scheduling.ordering import Order

WALK_PAGE: Final = 1000  # rows of an ordered endpoint examined in one statement
WALKS_A_LOOK: Final = 8
LINES_A_LOOK: Final = 8
PROBE_PAGE: Final = (
    50  # rows of a line read for a probe, besides those in memory: some may have to be given up first
)


@dataclasses.dataclass(frozen=True, slots=True)
class LineRows:
    """Refills the lines of ordered endpoints."""

    index: BacklogIndex
    order: Order
    admission: Admission

    async def refill(self, step: BacklogStep, endpoint_id: int, refill_quota: int) -> None:
        """Take the next rows of an ordered endpoint's lines."""
        lot = self.order.lot(endpoint_id)
        if not self.order.recovered:
            return
        for _ in range(WALKS_A_LOOK):
            if lot.walk is None or (lot.sorted and lot.ripe):
                break
            rows = await step.session.fetch(query("walk_lines"), endpoint_id, lot.walk, WALK_PAGE)
            self.order.walked(endpoint_id, rows[0]["lines"], rows[0]["last_event_id"])
        if not lot.sorted:
            return
        if self.order.is_clear(endpoint_id):
            self.admission.caught_up(endpoint_id)
            return
        await self._refill_lines(step, endpoint_id, refill_quota)

    async def _refill_lines(self, step: BacklogStep, endpoint_id: int, refill_quota: int) -> None:
        """Take rows of a few lines that may have some; continue at once if there are more lines."""
        probing = self.index.probe_at(endpoint_id) is not None
        endpoints: dict[int, Endpoint] | None = None
        taken = 0
        for looked, line in enumerate(self.order.ripe(endpoint_id), 1):
            if endpoints is None:
                endpoints = await self.admission.read_endpoints(step.session, [endpoint_id])
            found = await self._refill_line(step, endpoints, endpoint_id, line, refill_quota, probing=probing)
            taken += found
            # If all rows of a line were given up, a probe is still wanted.
            refill_quota = self.index.refill_quota(endpoint_id, step.now) if probing else refill_quota - found
            if refill_quota <= 0 or step.is_over:
                break
            if looked >= LINES_A_LOOK:
                if taken:  # otherwise all lines may wait for the same thing, which takes time
                    self.index.parked.look(endpoint_id, step.now)  # after other endpoints whose time has come
                break

    async def _refill_line(
        self,
        step: BacklogStep,
        endpoints: Mapping[int, Endpoint],
        endpoint_id: int,
        line: Line,
        refill_quota: int,
        *,
        probing: bool,
    ) -> int:
        """Take the next rows of one line, up to the first that must wait; return how many were taken."""
        page = PROBE_PAGE if probing else min(refill_quota, self.order.room(line)) + 1
        limit = page + len(line.ahead)
        rows = await step.session.fetch(query("read_line"), endpoint_id, line.name, limit)
        if rows and rows[0]["site_id"] in self.order.unread:
            self.order.postpone(endpoint_id, line)
            return 0
        fresh = [row for row in rows if (row["event_id"], endpoint_id) not in self.index.in_memory]
        due = list(itertools.takewhile(lambda row: row["due"], fresh))
        if not all(endpoint.enabled for endpoint in endpoints.values()):
            due = []  # until it is enabled: then all its rows are examined again
        most = 1 if probing else None
        taken = (
            await self.admission.enter(step.session, due, endpoints, step.now, step.put, most) if due else 0
        )
        full = len(rows) == limit
        self.order.taken(
            endpoint_id,
            line,
            all_of_it=taken == len(fresh) and not full,
            blocked=taken == len(due) < len(fresh),
            again=full or taken < len(due),
        )
        return taken
