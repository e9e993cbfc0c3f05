"""Admits rows of `backlog` to the lanes, or records another fate for them.

A row that can never be sent is given up here, before it takes a slot or becomes a breaker's probe. Its event or
endpoint is gone, it has expired, it is too large, or its type is invalid. Or a newer event replaces it, or a filter
excludes it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, TypeAlias

from structlog.typing import FilteringBoundLogger

from pghookd.delivery.payload_pages import load_payloads
from pghookd.event_log.payload_filter import Filters, filter_of
from pghookd.event_log.position import EventLog
from pghookd.event_log.rows import endpoint_of
from pghookd.event_log.supersede import DEDUPE_DAYS, NEWER_MAX
from pghookd.model import event_options
from pghookd.model.delivery import DAY_IDS, AttemptCause, Delivery, Endpoint, Event, Reason, State
from pghookd.model.delivery_states import NOT_LOST
from pghookd.model.event_type import valid_type
from pghookd.model.outcome import BacklogWrite, DeadWrite, Write
from pghookd.postgres.client import Row, Session, columns, query
from pghookd.process.logs import LogEvent
from pghookd.scheduling.intake import PARKED_FOR, Offer, not_yet
from pghookd.scheduling.lanes import Lanes
from pghookd.scheduling.ordering import Order, is_ordered

Put: TypeAlias = Callable[[Write, float], None]

STEP_S: Final = 0.03  # a step of the recorder's chores starts no further work after this time
STEP_WRITES_MAX: Final = (
    500  # nor after this many writes: outcomes wait behind them, and while many wait nothing is sent
)


class BacklogStep:
    """The context of one step between two batches, with its limits.

    Attributes:
        session: the recorder's session.
        now: monotonic seconds at which the step began.
        deaths: number of deliveries lost, by (endpoint_id, site_id, reason).
    """

    def __init__(self, session: Session, now: float, put: Put, monotonic: Callable[[], float]) -> None:
        self.session = session
        self.now = now
        self.deaths: Counter[tuple[int, str, Reason]] = Counter()
        self._put = put
        self._monotonic = monotonic
        self._ends_at = monotonic() + STEP_S
        self._writes = 0

    def put(self, write: Write, now: float) -> None:
        """Hand a write to the recorder."""
        self._writes += 1
        if isinstance(write, DeadWrite) and write.reason not in NOT_LOST:
            self.deaths[write.delivery.endpoint_id, write.delivery.event.site_id, write.reason] += 1
        self._put(write, now)

    @property
    def is_over(self) -> bool:
        """Return True if the step has used up its time or its writes: outcomes wait for the recorder."""
        return self._writes >= STEP_WRITES_MAX or self._monotonic() >= self._ends_at


@dataclasses.dataclass(slots=True, eq=False)
class Admission:
    """Decides the fate of rows: into memory, or a change to write.

    Attributes:
        shards: total number of shards.
        payload_bytes_max: a larger payload is never sent.
        wall_us: returns microseconds since 1970.
        logger: logs each dropped day once.
        paced: endpoints whose held rows have been given a rate.
        gone_days: days found whose partitions were dropped.
    """

    lanes: Lanes
    order: Order
    log: EventLog
    filters: Filters
    shards: int
    payload_bytes_max: int
    wall_us: Callable[[], int]
    logger: FilteringBoundLogger
    paced: set[int] = dataclasses.field(default_factory=set)
    gone_days: set[int] = dataclasses.field(default_factory=set)

    async def read_endpoints(self, session: Session, ids: Iterable[int]) -> dict[int, Endpoint]:
        """Read the current endpoints; deleted ones are missing."""
        rows = await session.fetch(query("read_endpoints"), list(ids), self.shards)
        return {row["endpoint_id"]: endpoint_of(row) for row in rows}

    async def place(self, step: BacklogStep, rows: Iterable[Row]) -> None:
        """Admit the rows that are ours and not in memory yet; for ordered endpoints only note that they are due."""
        in_memory = self.lanes.backlog_index.in_memory
        fresh = [row for row in rows if (row["event_id"], row["endpoint_id"]) not in in_memory]
        if not fresh:
            return
        endpoints = await self.read_endpoints(step.session, {row["endpoint_id"] for row in fresh})
        ours = [row for row in fresh if self._is_ours(row, endpoints)]
        ordered = [row for row in ours if _has_line(endpoints.get(row["endpoint_id"]))]
        if ordered:
            await self._line_up(step, ordered)
            ours = [row for row in ours if not _has_line(endpoints.get(row["endpoint_id"]))]
        await self.enter(step.session, ours, endpoints, step.now, step.put)

    def _is_ours(self, row: Row, endpoints: Mapping[int, Endpoint]) -> bool:
        """Return True if its shard is ours; a row of a deleted endpoint belongs to any instance that finds it."""
        endpoint = endpoints.get(row["endpoint_id"])
        return endpoint is None or endpoint.shard in self.log.shards

    async def _line_up(self, step: BacklogStep, rows: list[Row]) -> None:
        """Mark the lines of due rows of ordered endpoints as due."""
        lines = [(row["endpoint_id"], row["line"]) for row in rows if row["line"] is not None]
        bare = [(row["event_id"], row["endpoint_id"]) for row in rows if row["line"] is None]
        if bare:
            found = await step.session.fetch(query("place_in_line"), *columns(bare, 2))
            lines += [(row["endpoint_id"], row["line"]) for row in found]
        for endpoint_id, name in lines:
            self.order.due(endpoint_id, name)
            self.lanes.backlog_index.parked.probe_now(endpoint_id, step.now)

    async def enter(
        self,
        session: Session,
        rows: list[Row],
        endpoints: Mapping[int, Endpoint],
        now: float,
        put: Put,
        most: int | None = None,
    ) -> int:
        """Admit rows to memory or decide their fate; for ordered endpoints stop at the first row that must wait.

        Args:
            session: the recorder's session.
            rows: rows that are not in memory; those of an ordered line in order.
            endpoints: their endpoints, without deleted ones.
            now: monotonic seconds.
            put: takes the writes.
            most: how many rows to take into memory at most; None if only the room limits them.

        Returns:
            The number of rows processed, up to the first that must wait.
        """
        payloads = await load_payloads(session, rows)
        taken = [(row, _delivery_of(row, payloads, now)) for row in rows]
        superseded = await self._find_superseded(session, taken)
        sifted = await self.filters.sift(session, _to_be_filtered(taken, endpoints), aside=True)
        entered = 0
        for number, (row, delivery) in enumerate(taken):
            key = row["event_id"], row["endpoint_id"]
            endpoint = endpoints.get(row["endpoint_id"])
            if _has_line(endpoint) and not self.order.assign(delivery).sure:
                return number  # an earlier delivery of its line has left memory meanwhile
            write: Write | None
            if key in superseded:
                write = DeadWrite(delivery, Reason.SUPERSEDED)
            elif key in sifted.left_out:
                write = DeadWrite(delivery, Reason.DROPPED)
            elif key in sifted.unknown:
                parked = row["reason"] == Reason.FILTER_SLOW.value
                write = None if parked else BacklogWrite(delivery, State.PARKED, Reason.FILTER_SLOW)
            else:
                write = self._take_aboard(row, delivery, endpoint, now)
            if write is not None:
                put(write, now)
            stays = key not in self.lanes.backlog_index.in_memory and not isinstance(write, DeadWrite)
            if stays and delivery.line is not None:
                return number
            entered += key in self.lanes.backlog_index.in_memory
            if entered == most:
                return number + 1
        return len(taken)

    async def _find_superseded(
        self, session: Session, taken: Iterable[tuple[Row, Delivery]]
    ) -> set[tuple[int, int]]:
        """Return the rows that a newer event replaces, by one lookup for each key of an endpoint.

        A replayed delivery is sent even if there are newer ones.
        """
        keyed: dict[tuple[int, str, str], list[int]] = {}
        for row, delivery in taken:
            event, options = delivery.event, delivery.event.options
            if options is None or options.supersede_key is None or row["reason"] == Reason.REPLAY.value:
                continue
            key = delivery.endpoint_id, event.site_id, options.supersede_key
            keyed.setdefault(key, []).append(event.event_id)
        if not keyed:
            return set()
        groups = columns([(*key, min(event_ids)) for key, event_ids in keyed.items()], 4)
        limits = NEWER_MAX, self.log.keys.payload_bytes_max, DEDUPE_DAYS
        rows = await session.fetch(query("find_superseded"), *groups, min(groups[3]), *limits)
        newest = {row["n"]: row["newest_event_id"] for row in rows}
        return {
            (event_id, key[0])
            for n, (key, event_ids) in enumerate(keyed.items(), 1)
            for event_id in event_ids
            if event_id < newest.get(n, 0)
        }

    def _take_aboard(
        self, row: Row, delivery: Delivery, endpoint: Endpoint | None, now: float
    ) -> Write | None:
        """Queue the delivery of a row; return the write to make instead, or None if there is none."""
        if endpoint is None:
            return DeadWrite(delivery, Reason.NO_ENDPOINT)
        if not row["exists"]:
            self._log_gone(row["event_id"] // DAY_IDS)
            return DeadWrite(delivery, Reason.EXPIRED)
        if endpoint.enabled and (reason := self._why_unsendable(delivery.event)) is not None:
            return DeadWrite(delivery, reason)
        if (write := not_yet(endpoint, delivery, now)) is not None:
            return write
        if delivery.event.options is not None and row["reason"] != Reason.REPLAY.value:
            self.log.keys.note(delivery)
        reason = self._offer(row, delivery, endpoint, now)
        stays = row["state"] != State.WAITING.value  # its row already has the right state
        return None if reason is None or stays else BacklogWrite(delivery, State.PARKED, reason)

    def _log_gone(self, day: int) -> None:
        if day not in self.gone_days:
            self.gone_days.add(day)
            self.logger.error(LogEvent.DAY_GONE, day=day, table="backlog")

    def _why_unsendable(self, event: Event) -> Reason | None:
        """Return why an event can never be sent; None if it can, or if its payload must be loaded first."""
        if not valid_type(event.type):
            return Reason.INVALID
        if event.payload is not None and len(event.payload) > self.payload_bytes_max:
            return Reason.TOO_LARGE
        has_expired = event.options is not None and event.options.has_expired(self.wall_us())
        return Reason.EXPIRED if has_expired else None

    def _offer(self, row: Row, delivery: Delivery, endpoint: Endpoint, now: float) -> Reason | None:
        """Queue a delivery and return None, or return the reason to park it; the caller keeps a late row as it is."""
        lane = self.lanes.lane(endpoint)
        if row["state"] == State.HELD.value and endpoint.endpoint_id not in self.paced:
            self.paced.add(endpoint.endpoint_id)
            lane.catch_up(now)
        if delivery.line is None:
            offer = self.lanes.intake.offer(lane, delivery, now)
        else:
            offer = self.order.rejoin(lane, delivery, now)
        if offer is Offer.QUEUED:
            self.lanes.backlog_index.in_memory.add(delivery)
            return None
        return PARKED_FOR[offer]

    def caught_up(self, endpoint_id: int) -> None:
        """Record that no row of an endpoint is parked any more."""
        self.lanes.caught_up(endpoint_id)
        self.paced.discard(endpoint_id)


def _has_line(endpoint: Endpoint | None) -> bool:
    return endpoint is not None and is_ordered(endpoint)


def _to_be_filtered(
    taken: Iterable[tuple[Row, Delivery]], endpoints: Mapping[int, Endpoint]
) -> Iterator[tuple[Endpoint, Delivery]]:
    """Yield the deliveries whose filter may not have been evaluated yet; an attempted delivery has passed it."""
    for row, delivery in taken:
        endpoint = endpoints.get(delivery.endpoint_id)
        if (
            endpoint is not None
            and filter_of(endpoint) is not None
            and endpoint.enabled
            and not delivery.attempts
            and row["only_endpoint_id"] is None
        ):
            yield endpoint, delivery


def _delivery_of(row: Row, payloads: Mapping[int, bytes], now: float) -> Delivery:
    event = Event(
        row["event_id"],
        row["site_id"],
        row["type"] or "",
        row["created_at"] or 0,
        payloads.get(row["event_id"], row["payload"]),
        row["only_endpoint_id"],
        None if row["options"] is None else event_options.read(row["options"]),
    )
    after_us = 0 if event.options is None else event.options.deliver_after_us
    return Delivery(
        event,
        row["endpoint_id"],
        row["attempts"],
        now,
        None,
        in_backlog=True,
        age_from_us=max(event.created_at_us, row["released_at"] or 0, after_us),
        late=row["state"] != State.WAITING.value or row["reason"] == Reason.REPLAY.value,
        cause=AttemptCause(row["cause"]),
        attempts_before=row["attempts_before"],
    )
