"""Delivers `ordered` endpoints in order: one delivery at a time of each line (an ordering_key at an endpoint), by id.

A line is in front of its endpoint's lane. Its head is in the lane and the rest waits here. Deliveries that do not
fit, or follow a failed one, have rows in `backlog` and come back by event_id. This is the order of the log: an event
inserted after another one's commit has the greater id and is never read before it.

A line must know exactly whether `backlog` has rows of it that are not in memory, because no delivery may pass them.
Every outcome is noted here before it is written (`note`). Rows of earlier epochs are scanned when the endpoint is first
seen. Until that and recovery are done, every delivery waits behind the rows.

Never here: a clock, SQL, endpoints that are not ordered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Final

from pghookd.model.delivery import Delivery, Endpoint, Event, Line, Reason, State
from pghookd.model.outcome import AttemptWrite, BacklogWrite, DeadWrite, Write
from pghookd.model.verdict import Dead, Disable, Retry
from pghookd.scheduling.intake import PARKED_FOR, Offer
from pghookd.scheduling.lane import Lane, Site
from pghookd.scheduling.lanes import Lanes

AHEAD_MAX: Final = 100  # deliveries in memory behind the head of one line
LINES_MAX: Final = 1000  # lines of one endpoint in memory; with more, its rows are read again and again
LOTS_MAX: Final = 10_000  # ordered endpoints in memory


def is_ordered(endpoint: Endpoint) -> bool:
    """Return True if deliveries to an endpoint go out in order."""
    return endpoint.options is not None and endpoint.options.ordered


def line_of(event: Event) -> str:
    """Return the name of an event's line; all events without an ordering_key share one line."""
    return (event.options and event.options.ordering_key) or ""


@dataclasses.dataclass(slots=True, eq=False)
class EndpointLines:
    """All lines of one endpoint.

    Attributes:
        lines: lines with work, by name.
        ripe: names of the lines whose rows may be taken, in order.
        walk: event_id after which the endpoint's rows must still be scanned; None if that is done.
        sorted: True once all rows have been assigned to lines; no row is taken before.
        crowded: True if more than LINES_MAX lines have rows, so that the rows are scanned repeatedly.
        site: the site whose memory the waiting deliveries count for; None if none has waited yet.
    """

    lines: dict[str, Line] = dataclasses.field(default_factory=dict)
    ripe: dict[str, None] = dataclasses.field(default_factory=dict)
    walk: int | None = 0
    sorted: bool = False
    crowded: bool = False
    site: Site | None = None

    @property
    def unknown(self) -> bool:
        """Return True if a line may have rows that are not known here."""
        return self.walk is not None or self.crowded

    def line(self, name: str) -> Line:
        """Return a line; a new one if it had no work."""
        line = self.lines.get(name)
        if line is None:
            line = self.lines[name] = Line(name)
        return line

    def mark_ready(self, line: Line) -> None:
        """Mark a line's rows as ready to be taken, unless the first row waits for its time."""
        if not line.blocked:
            self.ripe[line.name] = None

    def tidy(self, line: Line) -> None:
        """Forget a line without work, or one with only rows in `backlog` if there are more than LINES_MAX lines."""
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
        recovered: True once recovery has read all events that were unsettled before this epoch. No row is taken before,
            because an earlier event may still be unread while `backlog` has rows of later ones.
        unread: sites of which recovery has deferred events; for these the same holds until those events are processed.
    """

    def __init__(self, lanes: Lanes) -> None:
        self._lanes = lanes
        self._lots: dict[int, EndpointLines] = {}
        self.recovered = False
        self.unread: set[str] = set()

    def __contains__(self, endpoint_id: int) -> bool:
        return endpoint_id in self._lots

    def lot(self, endpoint_id: int) -> EndpointLines:
        """Return an ordered endpoint's lines; the rows of a new one must still be scanned."""
        lot = self._lots.get(endpoint_id)
        if lot is None:
            if len(self._lots) >= LOTS_MAX:
                self._make_room()
            lot = self._lots[endpoint_id] = EndpointLines()
            self._lanes.backlog_index.parked.add(endpoint_id)
        return lot

    def _make_room(self) -> None:
        idle = next((i for i, lot in self._lots.items() if not lot.lines and not lot.unknown), None)
        if idle is not None:
            del self._lots[idle]

    # In ---------------------------------------------------------------------------------------------------------------

    def assign(self, delivery: Delivery) -> Line:
        """Assign a delivery to its line, before it is queued or written."""
        line = delivery.line = self.lot(delivery.endpoint_id).line(line_of(delivery.event))
        return line

    def offer(self, lane: Lane, delivery: Delivery, now: float) -> Offer:
        """Queue a delivery from the log, or return why it was not queued.

        Returns:
            BEHIND if rows of its line come first, or memory holds enough of it. WAIT if memory is full, or the scan
            for such rows is about to come. Otherwise the result of Intake.offer. The caller passes its write to `note`.
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
        if self._lanes.capacity.full:
            return Offer.WAIT
        self._follow(lane, line, delivery)
        return Offer.QUEUED

    def _is_looked_at_next(self, lot: EndpointLines, lane: Lane) -> bool:
        """Return True if the first scan of an endpoint's rows is still to come and nothing delays it."""
        first = lot.walk == 0 and not lot.sorted
        return first and self.recovered and not lane.breaker.is_open and not lane.throttle.paused_until

    def rejoin(self, lane: Lane, delivery: Delivery, now: float) -> Offer:
        """Queue a delivery from `backlog`: the first row of a `sure` line that is not in memory."""
        line = self.assign(delivery)
        if line.head is None:
            return self._lead(lane, line, delivery, now)
        self._follow(lane, line, delivery)
        return Offer.QUEUED

    def _lead(self, lane: Lane, line: Line, delivery: Delivery, now: float) -> Offer:
        offer = self._lanes.intake.offer(lane, delivery, now)
        if offer is Offer.QUEUED:
            line.head, line.led_at = delivery, now
        return offer

    def _follow(self, lane: Lane, line: Line, delivery: Delivery) -> None:
        line.ahead.append(delivery)
        lot = self.lot(delivery.endpoint_id)
        if lot.site is None:
            lot.site = lane.site
        self._lanes.capacity.enter(lot.site, delivery, must=True)

    def _unfollow(self, lot: EndpointLines, line: Line) -> Delivery:
        delivery = line.ahead.popleft()
        if lot.site is not None:
            self._lanes.capacity.leave(lot.site, delivery)
        return delivery

    def _is_slow(self, line: Line, now: float) -> bool:
        """Return True if the head takes so long that more deliveries in memory gain nothing."""
        return now - line.led_at > self._lanes.capacity.patience_s

    def room(self, line: Line) -> int:
        """Return how many rows of a line may be taken into memory."""
        return AHEAD_MAX - len(line.ahead) if len(line.ahead) <= AHEAD_MAX // 2 else 0

    # Outcomes ---------------------------------------------------------------------------------------------------------

    def note(self, write: Write, now: float) -> list[Write]:
        """Note an outcome of an ordered endpoint before it is written; return further rows to write."""
        delivery = write.delivery
        lot = self._lots.get(delivery.endpoint_id)
        if lot is None:
            return []
        line = self.assign(delivery)
        stays = _leaves_row(write)
        leads = delivery is line.head
        if stays:
            # Recovery may read an event that comes before rows in `backlog`: these rows must wait for it.
            was_in = leads or delivery.in_backlog or not self._is_read(delivery.event.site_id)
            self._note_row(lot, line, delivery, was_in=was_in)
            line.blocked = line.blocked or _waits(write)
        more: list[Write] = []
        if leads and not _gives_up(write):  # a delivery given up leads until that is durable: see `settled`
            line.head = None
            if stays:
                more = self._fall_behind(lot, line, Reason.ORDERING)
            else:
                more = self._go_on(lot, line, delivery.endpoint_id, now)
        lot.tidy(line)
        return more

    def _is_read(self, site_id: str) -> bool:
        """Return True if all of a site's events from before this epoch have been processed."""
        return self.recovered and site_id not in self.unread

    def _note_row(self, lot: EndpointLines, line: Line, delivery: Delivery, *, was_in: bool) -> None:
        line.behind = True
        line.unwritten.add(delivery.event.event_id)
        if was_in:
            line.returning.add(delivery.event.event_id)
            line.sure = False
        lot.mark_ready(line)

    def _go_on(self, lot: EndpointLines, line: Line, endpoint_id: int, now: float) -> list[Write]:
        """Move the next delivery of a line into the lane; return rows to write if it cannot go."""
        if not line.ahead:
            return []
        lane = self._lanes.known.by_endpoint.get(endpoint_id)
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
        """Record that a noted outcome is durable; return further rows to write.

        A line whose head was given up goes on only here: after a crash before this, the head would be sent again.
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
        """Move deliveries that wait behind slow heads out of memory, which is full; return their rows."""
        return [
            write
            for lot in self._lots.values()
            for line in lot.lines.values()
            if line.ahead and self._is_slow(line, now)
            for write in self._fall_behind(lot, line, Reason.ORDERING)
        ]

    # Rows -------------------------------------------------------------------------------------------------------------

    def walked(self, endpoint_id: int, names: Iterable[str], last_event_id: int | None) -> None:
        """Note a page of an endpoint's rows: the names of their lines, and the last event_id; None at the end."""
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
        """Scan an endpoint's rows once more, because they may have been changed from outside."""
        lot = self.lot(endpoint_id)
        lot.walk, lot.sorted = 0, False
        self._lanes.backlog_index.parked.add(endpoint_id)

    def is_walking(self, endpoint_id: int) -> bool:
        """Return True if a scan of an endpoint's rows has begun and not ended."""
        lot = self._lots.get(endpoint_id)
        return lot is not None and bool(lot.walk)

    def due(self, endpoint_id: int, name: str) -> None:
        """Mark a line's row as due."""
        lot = self.lot(endpoint_id)
        line = lot.line(name)
        line.behind, line.blocked = True, False
        lot.mark_ready(line)
        self._lanes.backlog_index.parked.add(endpoint_id)

    def look_again(self) -> None:
        """Mark every line with rows as ready, in case its first row is gone."""
        for lot in self._lots.values():
            for line in lot.lines.values():
                if line.behind:
                    line.blocked = False
                    lot.mark_ready(line)

    def ripe(self, endpoint_id: int) -> Iterator[Line]:
        """Yield the lines whose rows may be taken now, the longest waiting first; a yielded line is ready no more."""
        lot = self._lots[endpoint_id]
        for name in list(lot.ripe):
            line = lot.lines.get(name)
            del lot.ripe[name]
            if line is None:
                continue
            if line.returning or not self.room(line):
                lot.ripe[name] = None  # moves it to the end
            else:
                line.sure = True
                yield line

    def postpone(self, endpoint_id: int, line: Line) -> None:
        """Mark a line as ready again for later: earlier events of its site may still be unread."""
        if (lot := self._lots.get(endpoint_id)) is not None:
            lot.mark_ready(line)

    def taken(self, endpoint_id: int, line: Line, *, all_of_it: bool, blocked: bool, again: bool) -> None:
        """Record the result of taking a line's rows.

        Args:
            endpoint_id: its endpoint.
            line: the line.
            all_of_it: True if every row of it is in memory or gone.
            blocked: True if the first row that is not in memory waits for its time.
            again: True if more rows can be taken.
        """
        lot = self._lots.get(endpoint_id)
        if lot is None:
            return
        if all_of_it and not line.unwritten:
            line.behind = False
            lot.tidy(line)
        line.blocked = blocked  # may also clear it: the row can be taken before `due` reports it
        if line.behind and (again or line.unwritten):
            lot.mark_ready(line)

    def is_clear(self, endpoint_id: int) -> bool:
        """Return True if no line of an endpoint can have rows outside memory."""
        lot = self._lots[endpoint_id]
        return not lot.unknown and not any(line.behind for line in lot.lines.values())

    # Out --------------------------------------------------------------------------------------------------------------

    def forget(self, endpoint_id: int) -> list[Delivery]:
        """Forget an endpoint that is deleted or no longer ordered; return its deliveries that waited in memory."""
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
    """Return True if the row waits for a time before which nothing of its line may go."""
    if isinstance(write, AttemptWrite):
        return isinstance(write.verdict, Retry)
    return isinstance(write, BacklogWrite) and write.state is State.WAITING
