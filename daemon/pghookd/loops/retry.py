"""Takes rows of `backlog` back into the lanes, in bounded pages: due ones, parked ones, held ones that are free again.

It also turns what belongs to a disabled endpoint into held rows, and lets those expire. It has no session and no loop
of its own: the recorder calls it between two batches. On another session rows that had just been recorded as delivered
were sent again.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.core import event_options
from pghookd.core.lanes import PARKED_FOR, Lanes, Offer
from pghookd.core.model import Delivery, Endpoint, Event, Line, Reason, State
from pghookd.core.order import Order, is_ordered
from pghookd.core.snapshot import Log
from pghookd.core.writes import Died, Kept, Write
from pghookd.edge.filter import Filters, filter_of
from pghookd.edge.journal import LogEvent
from pghookd.edge.postgres import DatabaseError, Row, Session, columns, query
from pghookd.edge.rows import endpoint_of

Put = Callable[[Write, float], None]

DUE_PAGE: Final = 200
LOOK_EVERY_S: Final = 0.5
LOOK_AGAIN_EVERY_S: Final = (
    60.0  # from the beginning: a clock may have been set back, a notification silenced
)
PARKED_LANES_A_STEP: Final = 8
SHED_EVERY_S: Final = 0.05
PARKED_LOOK_S: Final = 0.1  # between two looks at one endpoint's parked rows
ENDPOINTS_PAGE: Final = 1000
WALK_PAGE: Final = 1000  # rows of an ordered endpoint looked through in one step
WALKS_A_LOOK: Final = 8
LINES_A_LOOK: Final = 8
HOLD_PAGE: Final = 1000  # rows looked at in one step
EXPIRE_PAGE: Final = 500
EXPIRE_EVERY_S: Final = 60.0
REFUSED_AGAIN_S: Final = 5.0  # after a statement that was refused
_BEGINNING: Final = (0, 0, 0)


@dataclasses.dataclass(frozen=True, slots=True)
class Terms:
    """The settings of the backlog.

    Attributes:
        probe_s: after a restart, probes of open breakers are spread over so many seconds.
        held_days: held rows older than this are dead, `expired`.
    """

    probe_s: float = 30.0
    held_days: float = 14.0


class DueRows:
    """The scheduler: remembers how far it has looked, and asks from there."""

    def __init__(
        self,
        lanes: Lanes,
        order: Order,
        log: Log,
        filters: Filters,
        *,
        shards: int,
        terms: Terms,
        logger: FilteringBoundLogger,
        random01: Callable[[], float],
    ) -> None:
        self._lanes = lanes
        self._order = order
        self._log = log
        self._shards = shards
        self._terms = terms
        self._logger = logger
        self._random01 = random01
        self._filters = filters
        self._cursor: tuple[int, int, int] = _BEGINNING  # next_attempt_at, event_id, endpoint_id
        self._look_at = 0.0
        self._look_again_at = 0.0
        self._shed_at = 0.0
        self._expire_at = 0.0
        self._walk: int | None = 0  # endpoints with rows are looked for, those after this one; None: found
        self._changed: set[int] = set()  # endpoints to look at
        self._holding: dict[int, int] = {}  # disabled endpoints, and the last event_id looked at
        self._hold_at = 0.0
        self._held: set[int] = set()  # disabled endpoints of which every row is held
        self._paced: set[int] = set()  # endpoints whose held rows have been given a pace
        self._parked_after: dict[int, int] = {}  # per endpoint, the last event_id taken
        self._looks: list[tuple[float, int]] = []  # a heap: when to look at which endpoint's parked rows
        self._scheduled: dict[int, float] = {}  # the entry of the heap that counts, per endpoint

    def ring(self) -> None:
        """Somebody else has made rows due, perhaps earlier ones than were looked at."""
        self._cursor = _BEGINNING
        self._look_at = 0.0

    def hurry(self) -> None:
        """Rows have been made due on this session: later than all that were looked at."""
        self._look_at = 0.0

    def endpoints_changed(self, endpoint_ids: Iterable[int] | None) -> None:
        """Endpoints were perhaps switched; None: any of them."""
        if endpoint_ids is None:
            self._walk = 0
            self._held.clear()  # so that those that are off are looked through again
        else:
            self._changed.update(endpoint_ids)

    async def begin(self, session: Session, now: float) -> None:
        """Learn what was parked and held before this epoch; breakers that were open are open again."""
        self._look_again_at = now + LOOK_AGAIN_EVERY_S
        while self._walk is not None:
            for row in await self._find(session):
                if row["enabled"] and Reason.BREAKER_OPEN.value in {row["reason"], row["newest_reason"]}:
                    self._lanes.reopen(row["endpoint_id"], now + self._terms.probe_s * self._random01())

    async def step(self, session: Session, now: float, put: Put) -> None:
        """Take a page of due rows if it is time, refill lanes that have parked rows and room, and tend held rows."""
        self._lanes.measure(now)
        if now >= self._look_again_at:
            self._look_again_at = now + LOOK_AGAIN_EVERY_S
            self._cursor, self._walk = _BEGINNING, 0
            self._order.look_again()
        if self._lanes.full and now >= self._shed_at:  # by those that do not keep up, while others have rows
            self._shed(now, put)
        if now >= self._look_at and not self._lanes.full:
            await self._due(session, now, put)
        if self._walk is not None:
            await self._find(session)
        if self._changed:
            await self._attend(session, now, put)
        if self._lanes.parked:
            await self._unpark(session, now, put)
        if self._holding and now >= self._hold_at:
            self._hold_at = await self._unless_refused(self._hold(session), now)
        if now >= self._expire_at:
            self._expire_at = await self._unless_refused(self._expire(session, now), now)

    def _shed(self, now: float, put: Put) -> None:
        self._shed_at = now + SHED_EVERY_S
        for delivery in self._lanes.shed(now):
            put(Kept(delivery, State.PARKED, Reason.LANE_FULL), now)
        for write in self._order.shed(now):
            put(write, now)

    async def _unless_refused(self, work: Awaitable[float], now: float) -> float:
        """Do what can wait; return when to do it again."""
        try:
            return await work
        except DatabaseError as error:
            self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error))
            return now + REFUSED_AGAIN_S

    # Due ----------------------------------------------------------------------------------------------------

    async def _due(self, session: Session, now: float, put: Put) -> None:
        rows = await session.fetch(query("read_due"), *self._cursor, DUE_PAGE)
        if len(rows) < DUE_PAGE:
            self._look_at = now + LOOK_EVERY_S
        if rows:
            last = rows[-1]
            self._cursor = (last["next_attempt_at"], last["event_id"], last["endpoint_id"])
            await self._place(session, rows, now, put)

    # Which endpoints have rows, and are they on? ------------------------------------------------------------

    async def _find(self, session: Session) -> list[Row]:
        """Look at a page of the endpoints that have rows; return those of our shards."""
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
        """Whether an ordered endpoint has rows of which its lines do not know."""
        return endpoint_id not in self._order or self._order.is_clear(endpoint_id)

    def _sort(self, endpoint_id: int, *, enabled: bool | None, aside: bool) -> None:
        """Take an endpoint for one whose rows go out, or are held; those of one that is gone (None) are read too."""
        if enabled is False:
            self._paced.discard(endpoint_id)
            if endpoint_id not in self._held:
                self._holding.setdefault(endpoint_id, 0)
            return
        self._held.discard(endpoint_id)
        self._holding.pop(endpoint_id, None)
        if aside:
            self._lanes.parked.add(endpoint_id)

    async def _attend(self, session: Session, now: float, put: Put) -> None:
        changed, self._changed = self._changed, set()
        endpoints = await self._read_endpoints(session, changed)
        for endpoint_id in changed:
            endpoint = endpoints.get(endpoint_id)
            if endpoint is not None and endpoint.shard not in self._log.shards:
                continue
            if endpoint is not None and endpoint_id in self._lanes.by_endpoint:
                self._lanes.lane(endpoint)  # so that an open breaker may be asked at once
            self._filters.forget(endpoint_id)
            self._held.discard(endpoint_id)
            self._reorder(endpoint_id, endpoint, now, put)
            self._sort(endpoint_id, enabled=None if endpoint is None else endpoint.enabled, aside=True)
            self._look_at_parked(endpoint_id, now)

    def _reorder(self, endpoint_id: int, endpoint: Endpoint | None, now: float, put: Put) -> None:
        """Look through the rows of an ordered endpoint; let go of one that is ordered no more."""
        if endpoint is not None and is_ordered(endpoint):
            self._order.restart(endpoint_id)
        else:
            for delivery in self._order.forget(endpoint_id):
                put(Kept(delivery, State.PARKED, Reason.LANE_FULL), now)

    # Parked, and held by an endpoint that is on ---------------------------------------------------------------

    def _look_at_parked(self, endpoint_id: int, at: float) -> None:
        if endpoint_id in self._lanes.parked:
            self._scheduled[endpoint_id] = at
            heapq.heappush(self._looks, (at, endpoint_id))

    async def _unpark(self, session: Session, now: float, put: Put) -> None:
        if len(self._lanes.parked) != len(self._scheduled):
            for endpoint_id in self._lanes.parked.difference(self._scheduled):
                self._look_at_parked(endpoint_id, now)
        read = 0
        while self._looks and self._looks[0][0] <= now and read < PARKED_LANES_A_STEP:
            at, endpoint_id = heapq.heappop(self._looks)
            if self._scheduled.get(endpoint_id) != at:
                continue  # it was put forward
            appetite = self._lanes.appetite(endpoint_id, now)
            if appetite and endpoint_id in self._order:
                read += await self._refill_lines(session, endpoint_id, appetite, now, put)
            elif appetite:
                read += 1
                await self._refill(session, endpoint_id, appetite, now, put)
            not_before = max(self._lanes.probe_at(endpoint_id) or 0.0, self._filters.rests_until(endpoint_id))
            self._look_at_parked(endpoint_id, max(not_before, now + PARKED_LOOK_S))

    async def _refill(self, session: Session, endpoint_id: int, page: int, now: float, put: Put) -> None:
        if self._lanes.probe_at(endpoint_id) is not None:
            self._parked_after.pop(endpoint_id, None)  # the probe is the oldest of all
        after = self._parked_after.get(endpoint_id, 0)
        rows = await session.fetch(query("read_parked"), endpoint_id, after, page)
        if rows:
            await self._place(session, rows, now, put)
            self._parked_after[endpoint_id] = self._filters.passed(endpoint_id, rows[-1]["event_id"])
        elif after:
            del self._parked_after[endpoint_id]  # once more from the beginning before it is believed
        elif not any(key[1] == endpoint_id for key in self._lanes.aboard):
            self._caught_up(endpoint_id)

    def _caught_up(self, endpoint_id: int) -> None:
        self._lanes.caught_up(endpoint_id)
        self._paced.discard(endpoint_id)
        del self._scheduled[endpoint_id]

    # Lines of ordered endpoints -------------------------------------------------------------------------------

    async def _refill_lines(
        self, session: Session, endpoint_id: int, appetite: int, now: float, put: Put
    ) -> int:
        """Take the next rows of an ordered endpoint's lines; return whether there was anything to do."""
        lot = self._order.lot(endpoint_id)
        if not self._order.recovered:
            return 0
        for _ in range(WALKS_A_LOOK):
            if lot.walk is None or (lot.sorted and lot.ripe):
                break
            rows = await session.fetch(query("walk_lines"), endpoint_id, lot.walk, WALK_PAGE)
            self._order.walked(endpoint_id, rows[0]["lines"], rows[0]["last_event_id"])
        if not lot.sorted:
            return 1
        if self._order.is_clear(endpoint_id):
            self._caught_up(endpoint_id)
            return 0
        looked = 0
        for line in self._order.ripe(endpoint_id):
            appetite -= await self._refill_line(session, endpoint_id, line, appetite, now, put)
            looked += 1
            if looked >= LINES_A_LOOK or appetite <= 0:
                break
        return min(looked, 1)

    async def _refill_line(
        self, session: Session, endpoint_id: int, line: Line, appetite: int, now: float, put: Put
    ) -> int:
        """Take what is next of one line, up to the first that has to wait; return how many were taken."""
        limit = min(appetite, self._order.room(line)) + len(line.ahead) + 1
        rows = await session.fetch(query("read_line"), endpoint_id, line.name, limit)
        if rows and rows[0]["site_id"] in self._order.unread:
            self._order.postpone(endpoint_id, line)
            return 0
        fresh = [row for row in rows if (row["event_id"], endpoint_id) not in self._lanes.aboard]
        due = list(itertools.takewhile(lambda row: row["due"], fresh))
        endpoints = await self._read_endpoints(session, [endpoint_id]) if due else {}
        if not all(endpoint.enabled for endpoint in endpoints.values()):
            due = []  # until it is switched on: then all its rows are looked through again
        taken = await self._enter(session, due, endpoints, now, put) if due else 0
        full = len(rows) == limit
        self._order.taken(
            endpoint_id,
            line,
            all_of_it=taken == len(fresh) and not full,
            blocked=taken == len(due) < len(fresh),
            again=full or taken < len(due),
        )
        return taken

    async def _line_up(self, session: Session, rows: list[Row], now: float) -> None:
        """Say of due rows of ordered endpoints whose turn it may be."""
        lines = [(row["endpoint_id"], row["line"]) for row in rows if row["line"] is not None]
        bare = [(row["event_id"], row["endpoint_id"]) for row in rows if row["line"] is None]
        if bare:
            found = await session.fetch(query("place_in_line"), *columns(bare, 2))
            lines += [(row["endpoint_id"], row["line"]) for row in found]
        for endpoint_id, name in lines:
            self._order.due(endpoint_id, name)
            self._look_at_parked(endpoint_id, now)

    # Into the lanes -------------------------------------------------------------------------------------------

    async def _read_endpoints(self, session: Session, ids: Iterable[int]) -> dict[int, Endpoint]:
        """Read endpoints as they are now; one that is gone is missing."""
        rows = await session.fetch(query("read_endpoints"), list(ids), self._shards)
        return {row["endpoint_id"]: endpoint_of(row) for row in rows}

    async def _place(self, session: Session, rows: Iterable[Row], now: float, put: Put) -> None:
        fresh = [row for row in rows if (row["event_id"], row["endpoint_id"]) not in self._lanes.aboard]
        if not fresh:
            return
        endpoints = await self._read_endpoints(session, {row["endpoint_id"] for row in fresh})
        ours = [row for row in fresh if self._is_ours(row, endpoints)]
        ordered = [row for row in ours if _has_line(endpoints.get(row["endpoint_id"]))]
        if ordered:
            await self._line_up(session, ordered, now)
            ours = [row for row in ours if not _has_line(endpoints.get(row["endpoint_id"]))]
        await self._enter(session, ours, endpoints, now, put)

    async def _enter(
        self, session: Session, rows: list[Row], endpoints: Mapping[int, Endpoint], now: float, put: Put
    ) -> int:
        """Take rows into memory, or say what becomes of them; of an ordered endpoint's only until one stays.

        Returns:
            How many there were before the first that stays.
        """
        taken = [(row, _delivery_of(row, now)) for row in rows]
        superseded = await _find_superseded(session, taken)
        sifted = await self._filters.sift(session, _to_be_filtered(taken, endpoints), aside=True)
        for number, (row, delivery) in enumerate(taken):
            key = row["event_id"], row["endpoint_id"]
            endpoint = endpoints.get(row["endpoint_id"])
            if _has_line(endpoint) and not self._order.assign(delivery).sure:
                return number  # something that comes before it has left memory meanwhile
            write: Write | None
            if key in superseded:
                write = Died(delivery, Reason.SUPERSEDED)
            elif key in sifted.left_out:
                write = Died(delivery, Reason.DROPPED)
            elif key in sifted.unknown:
                parked = row["reason"] == Reason.FILTER_SLOW.value
                write = None if parked else Kept(delivery, State.PARKED, Reason.FILTER_SLOW)
            else:
                write = self._take_aboard(row, delivery, endpoint, now)
            if write is not None:
                put(write, now)
            stays = key not in self._lanes.aboard and not isinstance(write, Died)
            if stays and delivery.line is not None:
                return number
        return len(taken)

    def _is_ours(self, row: Row, endpoints: Mapping[int, Endpoint]) -> bool:
        """Whether its shard is; a row whose endpoint is gone is whoever's finds it."""
        endpoint = endpoints.get(row["endpoint_id"])
        return endpoint is None or endpoint.shard in self._log.shards

    def _take_aboard(
        self, row: Row, delivery: Delivery, endpoint: Endpoint | None, now: float
    ) -> Write | None:
        """Queue one row's delivery, or return what is to be written of it instead."""
        if endpoint is None:
            return Died(delivery, Reason.NO_ENDPOINT)
        if not row["exists"]:
            return Died(delivery, Reason.EXPIRED)
        if not endpoint.enabled:
            return Kept(delivery, State.HELD, Reason.DISABLED)
        options = delivery.event.options
        if options is not None and options.wait_s > 0:  # adopted, or held until its endpoint was on again
            return Kept(delivery, State.WAITING, Reason.DELIVER_AFTER, options.wait_s)
        if options is not None and row["reason"] != Reason.REPLAY.value:
            self._log.keys.note(delivery)
        reason = self._offer(row, delivery, endpoint, now)
        stays = row["state"] != State.WAITING.value  # where it stands already
        return None if reason is None or stays else Kept(delivery, State.PARKED, reason)

    def _offer(self, row: Row, delivery: Delivery, endpoint: Endpoint, now: float) -> Reason | None:
        """Queue a delivery, or say why it is to be parked; a late one stands where it should already."""
        lane = self._lanes.lane(endpoint)
        if row["state"] == State.HELD.value and endpoint.endpoint_id not in self._paced:
            self._paced.add(endpoint.endpoint_id)
            self._lanes.catch_up(lane, now)
        if delivery.line is None:
            offer = self._lanes.offer(lane, delivery, now)
        else:
            offer = self._order.rejoin(lane, delivery, now)
        if offer is Offer.QUEUED:
            self._lanes.aboard[delivery.event.event_id, delivery.endpoint_id] = delivery
            return None
        return PARKED_FOR[offer]

    # Held by an endpoint that is off --------------------------------------------------------------------------

    async def _hold(self, session: Session) -> float:
        """Hold a page of one disabled endpoint's rows."""
        endpoint_id, after = next(iter(self._holding.items()))
        last: int | None = await session.fetchval(query("hold_backlog"), endpoint_id, after, HOLD_PAGE)
        if last is not None:
            self._holding[endpoint_id] = last
        else:  # none left, or it is on again
            del self._holding[endpoint_id]
            self._held.add(endpoint_id)
        return 0.0

    async def _expire(self, session: Session, now: float) -> float:
        """Give up a page of what has been held for too long."""
        rows = await session.fetch(query("expire_held"), self._terms.held_days, EXPIRE_PAGE)
        for row in rows:
            self._logger.warning(
                LogEvent.DELIVERY_DIED,
                endpoint_id=row["endpoint_id"],
                site_id=row["site_id"],
                reason=Reason.EXPIRED.value,
                deliveries=row["deliveries"],
            )
            if row["endpoint_id"] in self._order:
                self._order.restart(row["endpoint_id"])
        full = sum(row["deliveries"] for row in rows) >= EXPIRE_PAGE
        return now if full else now + EXPIRE_EVERY_S


def _has_line(endpoint: Endpoint | None) -> bool:
    return endpoint is not None and is_ordered(endpoint)


def _to_be_filtered(
    taken: Iterable[tuple[Row, Delivery]], endpoints: Mapping[int, Endpoint]
) -> Iterator[tuple[Endpoint, Delivery]]:
    """Yield what no filter was asked for yet, perhaps: what was tried already has passed."""
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


async def _find_superseded(session: Session, taken: Iterable[tuple[Row, Delivery]]) -> set[tuple[int, int]]:
    """Ask for those that have a key; what is replayed goes out although there are newer ones."""
    keyed = [
        (event.event_id, delivery.endpoint_id, event.site_id, event.options.supersede_key)
        for row, delivery in taken
        if (event := delivery.event).options is not None
        and event.options.supersede_key is not None
        and row["reason"] != Reason.REPLAY.value
    ]
    if not keyed:
        return set()
    rows = await session.fetch(query("find_superseded"), *columns(keyed, 4))
    return {(row["event_id"], row["endpoint_id"]) for row in rows}


def _delivery_of(row: Row, now: float) -> Delivery:
    event = Event(
        row["event_id"],
        row["site_id"],
        row["type"] or "",
        row["created_at"] or 0,
        row["payload"],
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
        attempts_before=row["attempts_before"],
    )
