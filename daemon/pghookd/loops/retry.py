"""Takes due and parked rows of `backlog` back into the lanes, in bounded pages.

It has no session and no loop of its own: the recorder calls it between two batches. On another session rows that had
just been recorded as delivered were sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from pghookd.core.lanes import Lanes, Offer
from pghookd.core.model import Delivery, Endpoint, Event, Reason, State
from pghookd.core.snapshot import Log
from pghookd.core.writes import Died, Kept, Write
from pghookd.edge.postgres import Row, Session, query
from pghookd.edge.rows import endpoint_of

Put = Callable[[Write, float], None]

DUE_PAGE: Final = 200
LOOK_EVERY_S: Final = 0.5
LOOK_AGAIN_EVERY_S: Final = 60.0  # from the beginning: a clock may have been set back
PARKED_LANES_A_STEP: Final = 8
SHED_EVERY_S: Final = 0.5
PARKED_LOOK_S: Final = 0.1  # between two looks at one endpoint's parked rows
_BEGINNING: Final = (0, 0, 0)


class DueRows:
    """The scheduler: remembers how far it has looked, and asks from there."""

    def __init__(self, lanes: Lanes, log: Log, *, shards: int) -> None:
        self._lanes = lanes
        self._log = log
        self._shards = shards
        self._cursor: tuple[int, int, int] = _BEGINNING  # next_attempt_at, event_id, endpoint_id
        self._look_at = 0.0
        self._look_again_at = 0.0
        self._parked_after: dict[int, int] = {}  # per endpoint, the last event_id taken
        self._parked_looked: dict[int, float] = {}  # per endpoint, when
        self._parked_known = False
        self._shed_at = 0.0

    def ring(self) -> None:
        """Somebody else has made rows due, perhaps earlier ones than were looked at."""
        self._cursor = _BEGINNING
        self._look_at = 0.0

    async def step(self, session: Session, now: float, put: Put) -> None:
        """Take a page of due rows if it is time, and refill lanes that have parked rows and room."""
        if now >= self._look_again_at:
            self._look_again_at = now + LOOK_AGAIN_EVERY_S
            self._cursor = _BEGINNING
        if self._lanes.full and now >= self._shed_at:  # by those that do not keep up, while others have rows
            self._shed_at = now + SHED_EVERY_S
            for delivery in self._lanes.shed(now):
                put(Kept(delivery, State.PARKED, Reason.LANE_FULL), now)
        if now >= self._look_at and not self._lanes.full:
            await self._due(session, now, put)
        if not self._parked_known:  # what others parked: those before a crash, or the owner before us
            found = await session.fetch(query("find_parked_endpoints"))
            self._lanes.parked.update(row["endpoint_id"] for row in found)
            self._parked_known = True
        if self._lanes.parked:
            await self._unpark(session, now, put)

    async def _due(self, session: Session, now: float, put: Put) -> None:
        rows = await session.fetch(query("read_due"), *self._cursor, DUE_PAGE)
        if len(rows) < DUE_PAGE:
            self._look_at = now + LOOK_EVERY_S
        if rows:
            last = rows[-1]
            self._cursor = (last["next_attempt_at"], last["event_id"], last["endpoint_id"])
            await self._place(session, rows, now, put)

    async def _unpark(self, session: Session, now: float, put: Put) -> None:
        looked = self._parked_looked
        waiting = [
            e
            for e in self._lanes.parked
            if now - looked.get(e, 0.0) >= PARKED_LOOK_S and self._lanes.appetite(e, now)
        ]
        waiting.sort(key=lambda e: looked.get(e, 0.0))  # whoever has waited longest is first
        for endpoint_id in waiting[:PARKED_LANES_A_STEP]:
            looked[endpoint_id] = now
            page = self._lanes.appetite(endpoint_id, now)
            if not page:  # what was taken back for the one before has filled the memory
                break
            after = self._parked_after.get(endpoint_id, 0)
            rows = await session.fetch(query("read_parked"), endpoint_id, after, page)
            if rows:
                self._parked_after[endpoint_id] = rows[-1]["event_id"]
                await self._place(session, rows, now, put)
            elif after:
                del self._parked_after[endpoint_id]  # once more from the beginning before it is believed
            elif not any(key[1] == endpoint_id for key in self._lanes.aboard):
                self._lanes.parked.discard(endpoint_id)
                del looked[endpoint_id]

    async def _place(self, session: Session, rows: Iterable[Row], now: float, put: Put) -> None:
        fresh = [row for row in rows if (row["event_id"], row["endpoint_id"]) not in self._lanes.aboard]
        if not fresh:
            return
        ids = list({row["endpoint_id"] for row in fresh})
        found = await session.fetch(query("read_endpoints"), ids, self._shards)
        endpoints = {row["endpoint_id"]: endpoint_of(row) for row in found}
        for row in fresh:
            delivery = _delivery_of(row, now)
            write = self._take_aboard(row, delivery, endpoints.get(row["endpoint_id"]), now)
            if write is not None:
                put(write, now)

    def _take_aboard(
        self, row: Row, delivery: Delivery, endpoint: Endpoint | None, now: float
    ) -> Write | None:
        """Queue one row's delivery, or return what is to be written of it instead."""
        if endpoint is None:
            return Died(delivery, Reason.NO_ENDPOINT)
        if endpoint.shard not in self._log.shards:
            return None
        if not row["exists"]:
            return Died(delivery, Reason.EXPIRED)
        if not endpoint.enabled:
            return Kept(delivery, State.HELD, Reason.DISABLED)
        lane = self._lanes.lane(endpoint)
        if self._lanes.offer(lane, delivery, now) is not Offer.QUEUED:
            return Kept(delivery, State.PARKED, Reason.LANE_FULL)
        self._lanes.aboard[delivery.event.event_id, delivery.endpoint_id] = delivery
        return None


def _delivery_of(row: Row, now: float) -> Delivery:
    event = Event(
        row["event_id"],
        row["site_id"],
        row["type"] or "",
        row["created_at"] or 0,
        row["payload"],
        row["only_endpoint_id"],
    )
    age_from_us = max(event.created_at_us, row["released_at"] or 0)
    return Delivery(
        event, row["endpoint_id"], row["attempts"], now, None, in_backlog=True, age_from_us=age_from_us
    )
