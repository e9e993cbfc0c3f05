"""Which delivery of an `ordered` endpoint may go: of each line (an ordering_key at an endpoint) one at a time, by id.

A line stands in front of its endpoint's lane: its head is in the lane, the rest waits here, and what does not fit, or
comes after a delivery that failed, has rows in `backlog` and comes back by event_id. That order is the log's: an event
that was inserted after another's commit has the greater id and is never read before it.

What a line must know exactly is whether rows of it are in `backlog` that are not in memory: then nothing may pass them.
Whatever leaves memory as a row says so here before it is written (`note`); what was there before this epoch is looked
through when the endpoint is first seen, and until that is done, and recovery too, everything falls in behind.

Never here: a clock, SQL, endpoints that are not ordered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Final

from pghookd.model.delivery import Delivery, Endpoint, Event, Line, Reason, State
from pghookd.model.outcome import AttemptWrite, BacklogWrite, DeadWrite, Write
from pghookd.model.verdict import Dead, Disable, Retry
from pghookd.scheduling.lanes import PARKED_FOR, Lane, Lanes, Offer, Site

AHEAD_MAX: Final = 100  # deliveries in memory behind the head of one line
LINES_MAX: Final = (
    1000  # of one endpoint that are remembered; with more of them it is looked through again and again
)
LOTS_MAX: Final = 10_000  # ordered endpoints that are remembered


def is_ordered(endpoint: Endpoint) -> bool:
    """Whether an endpoint is delivered to one by one."""
    return endpoint.options is not None and endpoint.options.ordered


def line_of(event: Event) -> str:
    """Return the name of an event's line; events without an ordering_key are one line together."""
    return (event.options and event.options.ordering_key) or ""


@dataclasses.dataclass(slots=True, eq=False)
class EndpointLines:
    """All lines of one endpoint.

    Attributes:
        lines: those with work, by name.
        ripe: those whose rows are worth a look.
        walk: its rows in `backlog` are to be looked through after this event_id; None: that is done.
        sorted: each of its rows has a line; until then none is taken.
        crowded: more lines have rows than are remembered: they are looked through again and again.
        site: whose memory the deliveries take that wait in its lines; None if none ever did.
    """

    lines: dict[str, Line] = dataclasses.field(default_factory=dict)
    ripe: dict[str, None] = dataclasses.field(default_factory=dict)
    walk: int | None = 0
    sorted: bool = False
    crowded: bool = False
    site: Site | None = None

    @property
    def unknown(self) -> bool:
        """Whether any line may have rows that nobody here knows of."""
        return self.walk is not None or self.crowded

    def line(self, name: str) -> Line:
        """Return a line, made when it has no work yet."""
        line = self.lines.get(name)
        if line is None:
            line = self.lines[name] = Line(name)
        return line

    def mark_ready(self, line: Line) -> None:
        """Take a line's rows to be worth a look, unless the first of them waits for its time."""
        if not line.blocked:
            self.ripe[line.name] = None

    def tidy(self, line: Line) -> None:
        """Forget a line that has no work, or only rows where too many have."""
        if line.head is not None or line.ahead or line.unwritten or self.lines.get(line.name) is not line:
            return
        if line.behind:
            if len(self.lines) <= LINES_MAX:
                return
            self.crowded, self.walk = True, self.walk or 0
        self.lines.pop(line.name, None)
        self.ripe.pop(line.name, None)


class Order:
    """The lines of all ordered endpoints.

    Attributes:
        recovered: whether all that was unsettled before this epoch has been read: rows of later events may lie in
            `backlog` while earlier ones are still unread, so that no row is taken before.
        unread: sites of which the recovery road has left events in the log: for these the same holds until those
            events have found their place.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._lots: dict[int, EndpointLines] = {}
        self.recovered = False
        self.unread: set[str] = set()

    def __contains__(self, endpoint_id: int) -> bool:
        return endpoint_id in self._lots

    def lot(self, endpoint_id: int) -> EndpointLines:
        """Return an ordered endpoint's lines; at first sight its rows are still to be looked through."""
        lot = self._lots.get(endpoint_id)
        if lot is None:
            if len(self._lots) >= LOTS_MAX:
                self._make_room()
            lot = self._lots[endpoint_id] = EndpointLines()
            self._lanes.parked.add(endpoint_id)
        return lot

    def _make_room(self) -> None:
        idle = next((i for i, lot in self._lots.items() if not lot.lines and not lot.unknown), None)
        if idle is not None:
            del self._lots[idle]

    # In ---------------------------------------------------------------------------------------------------------------

    def assign(self, delivery: Delivery) -> Line:
        """Give a delivery its line, before anything is decided or written of it; one without work is made anew."""
        line = delivery.line = self.lot(delivery.endpoint_id).line(line_of(delivery.event))
        return line

    def offer(self, lane: Lane, delivery: Delivery, now: float) -> Offer:
        """Queue a delivery that comes from the log, or say why not.

        Returns:
            BEHIND if rows of its line come first, or memory holds enough of it. WAIT if the look that finds such rows
            comes in a moment. Otherwise the answer of Lanes.offer. The caller passes what it then writes to `note`.
        """
        line = self.assign(delivery)
        if line.behind:
            return Offer.BEHIND
        lot = self.lot(delivery.endpoint_id)
        if lot.unknown:
            return Offer.WAIT if self._is_looked_at_next(lot, lane) else Offer.BEHIND
        if line.head is None:
            return self._lead(lane, line, delivery, now)
        if len(line.ahead) >= AHEAD_MAX or self._is_slow(line, now):
            return Offer.BEHIND
        if self._lanes.full:
            return Offer.WAIT
        self._follow(lane, line, delivery)
        return Offer.QUEUED

    def _is_looked_at_next(self, lot: EndpointLines, lane: Lane) -> bool:
        """Return True if the first look through an endpoint's rows is still to come, and nothing puts it off."""
        first = lot.walk == 0 and not lot.sorted
        return first and self.recovered and not lane.breaker.is_open and not lane.paused_until

    def rejoin(self, lane: Lane, delivery: Delivery, now: float) -> Offer:
        """Queue a delivery of a `sure` line that comes from `backlog`, the first of it that is not in memory."""
        line = self.assign(delivery)
        if line.head is None:
            return self._lead(lane, line, delivery, now)
        self._follow(lane, line, delivery)
        return Offer.QUEUED

    def _lead(self, lane: Lane, line: Line, delivery: Delivery, now: float) -> Offer:
        offer = self._lanes.offer(lane, delivery, now)
        if offer is Offer.QUEUED:
            line.head, line.led_at = delivery, now
        return offer

    def _follow(self, lane: Lane, line: Line, delivery: Delivery) -> None:
        line.ahead.append(delivery)
        lot = self.lot(delivery.endpoint_id)
        if lot.site is None:
            lot.site = lane.site
        self._lanes.count(lot.site, 1, delivery)

    def _unfollow(self, lot: EndpointLines, line: Line) -> Delivery:
        delivery = line.ahead.popleft()
        if lot.site is not None:
            self._lanes.count(lot.site, -1, delivery)
        return delivery

    def _is_slow(self, line: Line, now: float) -> bool:
        """Whether its receiver takes so long for one that memory gains nothing."""
        return now - line.led_at > self._lanes.patience_s

    def room(self, line: Line) -> int:
        """Return how many rows of a line may be taken into memory."""
        return AHEAD_MAX - len(line.ahead) if len(line.ahead) <= AHEAD_MAX // 2 else 0

    # Outcomes ---------------------------------------------------------------------------------------------------------

    def note(self, write: Write, now: float) -> list[Write]:
        """Take what is about to be written of a delivery that has a line; return what is to be written besides."""
        delivery = write.delivery
        lot = self._lots.get(delivery.endpoint_id)
        if lot is None:
            return []
        line = self.assign(delivery)
        stays = _leaves_row(write)
        leads = delivery is line.head
        if stays:
            # What recovery reads may come before rows that are there already: those wait as well.
            was_in = leads or delivery.in_backlog or not self._is_read(delivery.event.site_id)
            self._note_row(lot, line, delivery, was_in=was_in)
            line.blocked = line.blocked or _waits(write)
        more: list[Write] = []
        if leads and not _gives_up(write):  # else it leads until that is durable: see `settled`
            line.head = None
            if stays:
                more = self._fall_behind(lot, line, Reason.ORDERING)
            else:
                more = self._go_on(lot, line, delivery.endpoint_id, now)
        lot.tidy(line)
        return more

    def _is_read(self, site_id: str) -> bool:
        """Return True if all of a site's events from before this epoch have found their place."""
        return self.recovered and site_id not in self.unread

    def _note_row(self, lot: EndpointLines, line: Line, delivery: Delivery, *, was_in: bool) -> None:
        line.behind = True
        line.unwritten.add(delivery.event.event_id)
        if was_in:
            line.returning.add(delivery.event.event_id)
            line.sure = False
        lot.mark_ready(line)

    def _go_on(self, lot: EndpointLines, line: Line, endpoint_id: int, now: float) -> list[Write]:
        """Let the next of a line into the lane."""
        if not line.ahead:
            return []
        lane = self._lanes.by_endpoint.get(endpoint_id)
        if lane is None or not lane.endpoint.enabled:
            return self._fall_behind(lot, line, Reason.DISABLED)
        delivery = self._unfollow(lot, line)
        delivery.since = now
        offer = self._lead(lane, line, delivery, now)
        if offer is Offer.QUEUED:
            return []
        self._note_row(lot, line, delivery, was_in=True)
        return [
            BacklogWrite(delivery, State.PARKED, PARKED_FOR[offer]),
            *self._fall_behind(lot, line, Reason.ORDERING),
        ]

    def _fall_behind(self, lot: EndpointLines, line: Line, reason: Reason) -> list[Write]:
        state = State.HELD if reason is Reason.DISABLED else State.PARKED
        writes: list[Write] = []
        while line.ahead:
            delivery = self._unfollow(lot, line)
            self._note_row(lot, line, delivery, was_in=True)
            writes.append(BacklogWrite(delivery, state, reason))
        return writes

    def settled(self, delivery: Delivery, now: float) -> list[Write]:
        """What was noted of a delivery is durable; return what is to be written now.

        One that was given up would be tried once more after a crash, and may be taken then: so its line goes on here.
        """
        line = delivery.line
        lot = self._lots.get(delivery.endpoint_id)
        if line is None or lot is None:
            return []
        line.unwritten.discard(delivery.event.event_id)
        line.returning.discard(delivery.event.event_id)
        more: list[Write] = []
        if line.head is delivery and lot.lines.get(line.name) is line:
            line.head = None
            more = self._go_on(lot, line, delivery.endpoint_id, now)
        lot.tidy(line)
        return more

    def shed(self, now: float) -> list[Write]:
        """Take what waits behind slow heads out of memory, which is full."""
        return [
            write
            for lot in self._lots.values()
            for line in lot.lines.values()
            if line.ahead and self._is_slow(line, now)
            for write in self._fall_behind(lot, line, Reason.ORDERING)
        ]

    # Rows -------------------------------------------------------------------------------------------------------------

    def walked(self, endpoint_id: int, names: Iterable[str], last_event_id: int | None) -> None:
        """Take a page of an endpoint's rows: the lines they belong to, and its last event_id; None: it was the end."""
        lot = self.lot(endpoint_id)
        if lot.sorted:
            for line in list(lot.lines.values()):
                lot.tidy(line)
        for name in names:
            if name not in lot.lines and len(lot.lines) >= LINES_MAX:
                lot.crowded = True
                continue
            line = lot.line(name)
            line.behind, line.blocked = True, False
            lot.mark_ready(line)
        if last_event_id is not None:
            lot.walk = last_event_id
        else:
            lot.sorted = True
            lot.walk, lot.crowded = (0, False) if lot.crowded else (None, False)

    def restart(self, endpoint_id: int) -> None:
        """Look through an endpoint's rows once more: somebody may have changed them."""
        lot = self.lot(endpoint_id)
        lot.walk, lot.sorted = 0, False
        self._lanes.parked.add(endpoint_id)

    def is_walking(self, endpoint_id: int) -> bool:
        """Return True if a look through an endpoint's rows has begun and not ended yet."""
        lot = self._lots.get(endpoint_id)
        return lot is not None and bool(lot.walk)

    def due(self, endpoint_id: int, name: str) -> None:
        """Take a line's row to be due."""
        lot = self.lot(endpoint_id)
        line = lot.line(name)
        line.behind, line.blocked = True, False
        lot.mark_ready(line)
        self._lanes.parked.add(endpoint_id)

    def look_again(self) -> None:
        """Look at every line that waits, in case its first row is gone."""
        for lot in self._lots.values():
            for line in lot.lines.values():
                if line.behind:
                    line.blocked = False
                    lot.mark_ready(line)

    def ripe(self, endpoint_id: int) -> Iterator[Line]:
        """Yield the lines whose rows may be taken now, those that have waited longest first; each is asked for once."""
        lot = self._lots[endpoint_id]
        for name in list(lot.ripe):
            line = lot.lines.get(name)
            del lot.ripe[name]
            if line is None:
                continue
            if line.returning or not self.room(line):
                lot.ripe[name] = None  # to the end
            else:
                line.sure = True
                yield line

    def postpone(self, endpoint_id: int, line: Line) -> None:
        """Look at a line's rows again later: events of its site that come before them may still be unread."""
        if (lot := self._lots.get(endpoint_id)) is not None:
            lot.mark_ready(line)

    def taken(self, endpoint_id: int, line: Line, *, all_of_it: bool, blocked: bool, again: bool) -> None:
        """Say what a look at a line's rows came to.

        Args:
            endpoint_id: whose.
            line: which.
            all_of_it: every row of it is in memory, or gone.
            blocked: the first that is not in memory waits for its time.
            again: there is more to be taken.
        """
        lot = self._lots.get(endpoint_id)
        if lot is None:
            return
        if all_of_it and not line.unwritten:
            line.behind = False
            lot.tidy(line)
        line.blocked = blocked  # also where it was: its row may be taken before it is said to be due
        if line.behind and (again or line.unwritten):
            lot.mark_ready(line)

    def is_clear(self, endpoint_id: int) -> bool:
        """Whether no rows of an endpoint need to be looked for."""
        lot = self._lots[endpoint_id]
        return not lot.unknown and not any(line.behind for line in lot.lines.values())

    # Out --------------------------------------------------------------------------------------------------------------

    def forget(self, endpoint_id: int) -> list[Delivery]:
        """Let go of an endpoint that is gone, or ordered no more; return what waited in memory."""
        lot = self._lots.pop(endpoint_id, None)
        if lot is None:
            return []
        left = [self._unfollow(lot, line) for line in lot.lines.values() for _ in range(len(line.ahead))]
        for delivery in left:
            delivery.line = None
        return left


def _leaves_row(write: Write) -> bool:
    match write:
        case AttemptWrite():
            return isinstance(write.verdict, Retry | Disable)
        case BacklogWrite():
            return True
        case DeadWrite():
            return False


def _gives_up(write: Write) -> bool:
    return isinstance(write, AttemptWrite) and isinstance(write.verdict, Dead)


def _waits(write: Write) -> bool:
    """Whether the row has a time before which nothing of its line goes."""
    if isinstance(write, AttemptWrite):
        return isinstance(write.verdict, Retry)
    return isinstance(write, BacklogWrite) and write.state is State.WAITING
