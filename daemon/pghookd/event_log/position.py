"""How far the log is read and settled: snapshots, positions, the floor, tickets.

This arithmetic loses no event (PgQ's idea of 2006). An event is new if it is visible now and was not visible in the
snapshot of the last read. Nothing here queries the database or reads the clock.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import deque
from collections.abc import Mapping
from operator import attrgetter
from typing import Final, NamedTuple

from pghookd.event_log.supersede import Firsts, Keys
from pghookd.model.delivery import Delivery

MARKS_MAX: Final = 1024  # one mark a second accumulates while any transaction of the cluster stays open
MARKS_SPREAD: Final = 64  # two marks are at least this fraction of their age apart, counted in xids


class Snapshot(NamedTuple):
    """A pg_snapshot. Beware: xmax is the latest *completed* xid + 1; running transactions may have higher xids."""

    xmin: int
    xmax: int
    xips: tuple[int, ...]


# The position before every event: no transaction of any database has an xid below 3.
BEGINNING = Snapshot(1, 1, ())


class Position(NamedTuple):
    """A place in the log.

    All events visible in `snapshot` lie before it. If `upto` is set, the position is a page in the middle of a long
    difference. Events visible in `upto` whose event_id is at most `last_event_id` then lie before it, too.
    """

    snapshot: Snapshot
    upto: Snapshot | None = None
    last_event_id: int = 0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """The two snapshots between which events are new.

    Attributes:
        since: events visible in this snapshot were read before.
        upto: events not visible in this snapshot are read later.
        again: True if an earlier run may have read and settled some of the events.
        firsts: the dedupe_keys known, for all pages of the difference and their deferred events.
    """

    since: Snapshot
    upto: Snapshot
    again: bool = False
    firsts: Firsts = dataclasses.field(default_factory=Firsts)


class Mark(NamedTuple):
    """The newest event_id handed out, read *before* the xid was assigned."""

    event_id: int
    xid: int


_XID: Final = attrgetter("xid")


class XidMarks:
    """The marks of this epoch, from which every floor is computed.

    A transaction with an xid above a mark's got its xid after the mark's id was read. It drew its event ids later still
    (`events.xid` is the first column), so its ids are above the mark's. Hence no unread event of transactions from
    `xid` on lies at or below `below(xid)`.

    Without any one mark a floor is only lower: reads scan more of the log and find the same events. So the number of
    marks is bounded, and older marks are farther apart.
    """

    def __init__(self, floor: int = 0, front: int = 0, *, most: int = MARKS_MAX) -> None:
        self._floor = floor
        self._front = front
        self._most = most
        self._marks: list[Mark] = []  # ascending, by xid and by event_id

    def note(self, mark: Mark) -> None:
        """Add a mark; marks arrive in the order in which they were made."""
        self._marks.append(mark)
        if len(self._marks) > self._most:
            self._thin()

    def _thin(self) -> None:
        """Drop marks that are close to a newer one for their age.

        The first mark stays: the oldest open transaction holds every floor there.
        """
        first, *between, newest = self._marks
        kept = [newest]
        for mark in reversed(between):
            if (kept[-1].xid - mark.xid) * MARKS_SPREAD >= newest.xid - mark.xid:
                kept.append(mark)
        kept.append(first)
        if len(kept) > self._most:
            del kept[1:-1:2]
        self._marks = kept[::-1]

    @property
    def newest(self) -> Mark | None:
        """The last mark noted."""
        return self._marks[-1] if self._marks else None

    def floor(self, snapshot: Snapshot) -> int:
        """Return an event_id at or below which every event that will ever commit is visible in `snapshot`."""
        return max(self._floor, self._below(snapshot.xmin))

    def front(self, snapshot: Snapshot) -> int:
        """Return an event_id at or below which no event has an xid of `snapshot.xmax` or more."""
        return max(self._front, self._below(snapshot.xmax))

    def _below(self, xid: int) -> int:
        at = bisect.bisect_left(self._marks, xid, key=_XID)
        return self._marks[at - 1].event_id if at else 0

    def forget(self, oldest: Snapshot) -> None:
        """Drop the marks that no snapshot from `oldest` on needs, and keep the bounds they proved."""
        keep = max(0, bisect.bisect_left(self._marks, oldest.xmin, key=_XID) - 1)
        if keep:
            proved = max(mark.event_id for mark in self._marks[:keep])
            self._floor = max(self._floor, proved)
            self._front = max(self._front, proved)
            del self._marks[:keep]


@dataclasses.dataclass(slots=True, eq=False)
class Ticket:
    """A page's part in one shard: the page's end, and the deliveries to settle before the shard may move there.

    Attributes:
        open: deliveries of the page that are not settled.
        unmade: events of the page whose deliveries are not made yet, plus 1 while the page is being processed.
            The count lets the deliveries of a page, and of one event, be made step by step.
    """

    shard: ShardLog
    end: Position
    read_at: float
    open: set[Delivery] = dataclasses.field(default_factory=set)
    unmade: int = 0

    @property
    def is_done(self) -> bool:
        """Return True if the ticket waits for nothing."""
        return not (self.open or self.unmade)

    def advance(self) -> None:
        """Advance the shard if the ticket waits for nothing."""
        if self.is_done:
            self.shard.advance()


class ShardLog:
    """One shard's settled position, and the pages read beyond it."""

    def __init__(self, shard: int, settled: Position) -> None:
        self.shard = shard
        self.settled = settled
        self._tickets: deque[Ticket] = deque()

    def page(self, end: Position, now: float) -> Ticket:
        """Open the ticket of a page that ends at `end`; deliveries are added to it before it is closed.

        The latest ticket is reused if it is done, so that few tickets accumulate behind one that stays open for long.
        """
        if self._tickets and self._tickets[-1].is_done:
            ticket = self._tickets[-1]
            ticket.end, ticket.read_at = end, now
            return ticket
        ticket = Ticket(self, end, now)
        self._tickets.append(ticket)
        return ticket

    def skip(self, end: Position) -> None:
        """Record a page that has no event for this shard."""
        if self._tickets:
            self._tickets[-1].end = end
        else:
            self.settled = end

    def advance(self) -> None:
        """Move the settled position past every leading page that is done."""
        tickets = self._tickets
        while tickets and tickets[0].is_done:
            self.settled = tickets.popleft().end

    def overdue(self, before: float) -> list[Delivery]:
        """Return the deliveries open since before `before` that need a row: all but possible duplicates."""
        late: list[Delivery] = []
        for ticket in self._tickets:
            if ticket.read_at >= before:
                break
            late.extend(d for d in ticket.open if d.since < before and not _is_duplicate_perhaps(d))
        return late


def _is_duplicate_perhaps(delivery: Delivery) -> bool:
    """Return True if a delivery is a duplicate about to be given up, or may be one.

    A row would make it due after a crash, and due rows are not checked for duplicates.
    """
    options = delivery.event.options
    return options is not None and options.duplicate is not False


class Page:
    """The tickets of one page while it is processed: none is done before the page is closed."""

    def __init__(self, shards: Mapping[int, ShardLog], end: Position, now: float) -> None:
        self._shards = shards
        self._end = end
        self._now = now
        self._tickets: dict[int, Ticket] = {}

    def ticket(self, shard: int) -> Ticket:
        """Return the page's ticket for a shard."""
        ticket = self._tickets.get(shard)
        if ticket is None:
            ticket = self._tickets[shard] = self._shards[shard].page(self._end, self._now)
            ticket.unmade += 1
        return ticket

    def close(self) -> None:
        """Close the page: every delivery is on its ticket by now, or counted there as still to be made."""
        for number, shard in self._shards.items():
            ticket = self._tickets.get(number)
            if ticket is None:
                shard.skip(self._end)
            else:
                ticket.unmade -= 1
                ticket.advance()


@dataclasses.dataclass(slots=True, eq=False)
class EventLog:
    """The log as this epoch sees it.

    Attributes:
        read: the snapshot of the last read, against which events are new.
        shards: the owned shards, by number.
        marks: the marks that floors are computed from.
        rows: number of events read in this epoch, of any shard.
        keys: the supersede_keys in memory.
    """

    read: Snapshot
    shards: dict[int, ShardLog]
    marks: XidMarks
    rows: int = 0
    keys: Keys = dataclasses.field(default_factory=Keys)

    def overdue(self, before: float) -> list[Delivery]:
        """Return the deliveries open since before `before` that need a row."""
        return [delivery for shard in self.shards.values() for delivery in shard.overdue(before)]

    def oldest(self) -> Snapshot:
        """Return the oldest snapshot for which a floor may still be requested."""
        return min(
            (self.read, *(shard.settled.snapshot for shard in self.shards.values())), key=lambda s: s.xmin
        )


def settle(delivery: Delivery) -> None:
    """Record that the outcome, or a row in `backlog` or `dead`, is durable: the log no longer waits for it."""
    ticket = delivery.ticket
    if isinstance(ticket, Ticket):
        delivery.ticket = None
        ticket.open.discard(delivery)
        ticket.advance()
