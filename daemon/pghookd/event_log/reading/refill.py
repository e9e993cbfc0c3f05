"""Takes deferred events back: what a site has left in the log is made into deliveries once it has room.

Sites take turns. An event deferred for too long, or without a lane that could ever take it, becomes a row.

Never here: the first reading of an event (pages).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Final, cast

from pghookd.event_log.position import Difference
from pghookd.event_log.reading.deferred import DeferredEvents, DeferredPart
from pghookd.event_log.reading.delivery_maker import DeliveryMaker
from pghookd.event_log.reading.endpoints import Endpoints
from pghookd.event_log.reading.settled import read_settled
from pghookd.event_log.reading.takers import PAIRS_A_STEP, SITES_A_READ, WHOLE, Dealt, Pair, Span, Takers
from pghookd.event_log.rows import EventRow
from pghookd.postgres.client import Session, query
from pghookd.scheduling.ordering import Order

PAUSE_S: Final = 0.002  # least time between two reads that find nothing
PATIENCE_S: Final = 0.016  # so long a few events wait for more, to be worth the statements
ASIDE_CHUNK: Final = 500  # deliveries, and events, that one read of deferred events takes
ASIDE_LEAST: Final = 100  # with fewer events a read waits for more sites with room, but not for long
ASIDE_FOR_S: Final = (
    60.0  # a site without room for this long has some events parked, so that the stored position moves on
)
STUCK_S: Final = 1.0  # a site without room for this long has its lanes checked for the cause
SHED_EVERY_S: Final = 0.2  # least time between two such checks: each examines every lane
PLACE_S: Final = 80e-6  # pause for each site whose deliveries wait for room; finding none took 2 us
LOOK_S: Final = 250e-6  # pause for each site without room; finding that out took 2 to 6 us
ASIDE_LONG_S: Final = 900.0  # an event is deferred no longer than this, whether there is room or not
ASIDE_PARKED: Final = 200  # deliveries parked then in one step


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """The deferred events of one site that are processed next.

    Attributes:
        pieces: parts, oldest first, each with the ids of its events.
        room: how many deliveries they may make.
        park: True if they have waited too long: their deliveries become rows.
    """

    pieces: list[tuple[DeferredPart[Difference], list[int]]]
    room: int
    park: bool

    @property
    def event_ids(self) -> list[int]:
        """Return the ids of all its events."""
        return [event_id for _, event_ids in self.pieces for event_id in event_ids]

    @property
    def pairs(self) -> int:
        """Return the approximate number of deliveries that they make."""
        return sum(len(event_ids) * part.weight for part, event_ids in self.pieces)

    @property
    def recovering(self) -> bool:
        """Return True if recovery has read some of its events."""
        return any(part.recovering for part, _ in self.pieces)

    @property
    def wide(self) -> bool:
        """Return True if its site is processed slice by slice."""
        return self.pieces[0][0].wide

    @property
    def span(self) -> Span:
        """Return the endpoints that its events are for now."""
        part = self.pieces[0][0]
        return Span(part.after, part.slice_end) if part.wide else WHOLE


class Refill:
    """Makes deliveries of deferred events, as sites have room.

    Attributes:
        deferred: the events left in the log, by site.
    """

    def __init__(
        self,
        session: Session,
        order: Order,
        fan_out: DeliveryMaker,
        endpoints: Endpoints,
        *,
        monotonic: Callable[[], float],
        beat: Callable[[], None],
    ) -> None:
        self._session = session
        self._order = order
        self._fan_out = fan_out
        self._endpoints = endpoints
        self._monotonic = monotonic
        self._beat = beat
        self.deferred: DeferredEvents[Difference] = DeferredEvents()
        self._place_at = 0.0  # when to try again to place waiting deliveries
        self._look_at = 0.0  # when to check again for sites with room
        self._shed_at = 0.0  # when to check lanes again for the cause of missing room
        self._patient_until = 0.0  # until then, few events are not worth the statements

    def is_early(self, *, recovering: bool, ordered: bool) -> bool:
        """Return True if a site must wait until recovery is done: rows of later events may be in `backlog`."""
        return recovering and ordered and not self._order.recovered

    def defer(self, site_id: str, part: DeferredPart[Difference]) -> None:
        """Leave events of a site in the log until it has room."""
        self.deferred.put(site_id, part)
        if part.recovering:
            self._order.unread.add(site_id)

    def place(self) -> int:
        """Find room for deliveries that wait in the hands of their sites; return how many sites had some placed."""
        now = self._monotonic()
        if not self._fan_out.hands or now < self._place_at:
            return 0
        placed = self._fan_out.place()
        self._note_read(placed)
        if not placed:
            self._place_at = now + self._fan_out.hands * PLACE_S
        return len(placed)

    @property
    def is_behind(self) -> bool:
        """Return True if events already read still have to find a place."""
        return bool(self.deferred or self._fan_out.hands)

    async def take(self) -> int:
        """Process some deferred events of the sites that have room; return the number of events."""
        looks = self._looks(self._monotonic())
        if not looks:
            return 0
        event_ids = sorted(itertools.chain.from_iterable(look.event_ids for look in looks.values()))
        rows = await self._session.fetch(query("read_events"), event_ids, event_ids[0], event_ids[-1])
        events = {row[0]: row for row in cast("list[EventRow]", rows)}
        takers = await self._endpoints.of_sites({site_id: look.span for site_id, look in looks.items()})
        settled = await self._settled_of(looks.values())
        work: list[Pair] = []
        entered: tuple[Difference, bool] | None = None  # how `work` enters, the same for most
        for site_id, look in looks.items():
            room = {site_id: look.room}
            for part, ids in look.pieces:
                if entered is not None and entered != (part.context, look.park):
                    await self._fan_out.enter(work, entered[0], park=entered[1])
                    work = []
                entered = part.context, look.park
                some = [events[event_id] for event_id in ids if event_id in events]
                dealt, is_whole = self._take(site_id, part, ids, some, takers.get(site_id), room, settled)
                work += dealt.work
                if not is_whole:
                    break
        if entered is not None:
            await self._fan_out.enter(work, entered[0], park=entered[1])
        self._note_read(looks)
        self._beat()
        return len(event_ids)

    def _take(
        self,
        site_id: str,
        part: DeferredPart[Difference],
        event_ids: list[int],
        rows: list[EventRow],
        takers: Takers | None,
        room: dict[str, int],
        settled: set[tuple[int, int]],
    ) -> tuple[Dealt, bool]:
        """Make deliveries of the next events of a part; return them, and True if there was room for all."""
        now = self._monotonic()
        if takers is None:  # the endpoints were deleted: those of the slice, or all
            self.deferred.taken(site_id, len(event_ids), part.slice_end)
            return Dealt(), True
        dealt = self._fan_out.deal(rows, {site_id: takers}, room, lambda _: part.ticket, settled, now)
        left = dealt.left.get(site_id)
        count = len(event_ids) if left is None else event_ids.index(left[0])
        if count:
            part.weight = max(1, dealt.pairs // count)
        self.deferred.taken(site_id, count, takers.slice_end)
        return dealt, left is None

    async def _settled_of(self, looks: Iterable[Look]) -> set[tuple[int, int]]:
        """Read the settled deliveries of some events; for a site processed by slices, only those of the current slice.

        Only events read by recovery can have settled deliveries.
        """
        looks = [look for look in looks if look.recovering]
        narrow = [event_id for look in looks if not look.wide for event_id in look.event_ids]
        settled = await read_settled(self._session, narrow, WHOLE) if narrow else set()
        for look in looks:
            if look.wide:
                settled |= await read_settled(self._session, look.event_ids, look.span)
        return settled

    def _looks(self, now: float) -> dict[str, Look]:
        """Return what to process now, sites taking turns; nothing if it is too little to be worth the statements."""
        if not self.deferred or now < self._look_at:
            return {}
        looks: dict[str, Look] = {}
        events = pairs = 0
        for site_id, parts in self.deferred.turns(SITES_A_READ):
            if (look := self._look(site_id, parts, now)) is not None:
                looks[site_id] = look
                events += len(look.event_ids)
                pairs += look.pairs
                if events >= ASIDE_CHUNK or pairs >= PAIRS_A_STEP:
                    break
        if not looks or (events < ASIDE_LEAST and now < self._patient_until):
            self._look_at = now + max(PAUSE_S, min(len(self.deferred), SITES_A_READ) * LOOK_S)
            return {}
        self._patient_until = now + PATIENCE_S
        return looks

    def _look(self, site_id: str, parts: Iterable[DeferredPart[Difference]], now: float) -> Look | None:
        """Return what to process of one site; None if it has no room."""
        oldest = next(iter(parts))
        is_early = self.is_early(recovering=oldest.recovering, ordered=oldest.ordered)
        room, park = 0 if is_early else self._fan_out.refill_for(site_id, oldest.endpoints), False
        if room > 0:
            self.deferred.had_room(site_id, now)
        else:
            room, park = self._room_to_park(site_id, oldest, now), True
            if room <= 0:
                return None
        pieces: list[tuple[DeferredPart[Difference], list[int]]] = []
        free = room
        for part in parts:
            if pieces and (part.wide or free <= 0):
                break
            event_ids = part.first(max(1, min(free // part.weight, ASIDE_CHUNK)))
            pieces.append((part, event_ids))
            free -= len(event_ids) * part.weight
            if part.wide or len(event_ids) < len(part.event_ids):
                break
        return Look(pieces, room, park)

    def _room_to_park(self, site_id: str, oldest: DeferredPart[Difference], now: float) -> int:
        """Return how many deliveries of a site without room to park now; 0 or less if it can wait."""
        waited_s = now - oldest.since
        if waited_s >= STUCK_S and now >= self._shed_at:
            self._shed_at = now + SHED_EVERY_S
            self._fan_out.shed(site_id, oldest.endpoints)
        if waited_s >= ASIDE_FOR_S or now - oldest.ticket.read_at >= ASIDE_LONG_S or self.deferred.is_full:
            return min(self._fan_out.parking_for(site_id), ASIDE_PARKED)
        return 0

    def _note_read(self, site_ids: Iterable[str]) -> None:
        """Mark sites as read by recovery if none of their recovered events wait any more."""
        for site_id in self._order.unread.intersection(site_ids):
            if not self.deferred.is_recovering(site_id) and not self._fan_out.waits(site_id):
                self._order.unread.discard(site_id)
