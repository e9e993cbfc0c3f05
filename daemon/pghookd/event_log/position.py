"""How far the log is read and settled: snapshots, positions, the floor, tickets.

The arithmetic that loses no event (PgQ's idea of 2006): what is new since the last read is what is visible now and
was not visible in the snapshot of that read. Nothing here asks the database or the clock.
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

MARKS_MAX: Final = 1024  # one a second gathers while a transaction of the cluster stays open
MARKS_SPREAD: Final = 64  # two of them stand as far apart as this part of their age, counted in xids


class Snapshot(NamedTuple):
    """A pg_snapshot. Beware: xmax is the latest *completed* xid + 1; running transactions may have higher xids."""

    xmin: int
    xmax: int
    xips: tuple[int, ...]


# Before everything: no transaction of any database has an xid below 3.
BEGINNING = Snapshot(1, 1, ())


class Position(NamedTuple):
    """A place in the log.

    Everything visible in `snapshot` lies before it; where `upto` is set, so does what is visible in `upto` with an
    event_id of at most `last_event_id`: the place of a page in the middle of a long difference.
    """

    snapshot: Snapshot
    upto: Snapshot | None = None
    last_event_id: int = 0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """Between which snapshots events are new.

    Attributes:
        since: what is visible here was read before.
        upto: what is not visible here is read later.
        again: events may have been read, and settled, in another life.
        firsts: what was found out about dedupe_keys; for all pages of the difference, and what of them is left aside.
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

    A transaction whose xid is above a mark's was assigned it after the mark's id was read, and drew its event ids
    later still (`events.xid` is the first column): so its ids are above the mark's. Hence no unread event of
    transactions from `xid` on lies at or below `below(xid)`.

    Without any one mark a floor is only lower: reads look at more of the log and find the same. So the number of marks
    is bounded, and the older they are the farther apart they stand.
    """

    def __init__(self, floor: int = 0, front: int = 0, *, most: int = MARKS_MAX) -> None:
        self._floor = floor
        self._front = front
        self._most = most
        self._marks: list[Mark] = []  # ascending, by xid and by event_id

    def note(self, mark: Mark) -> None:
        """Add a mark; they come in the order in which they were made."""
        self._marks.append(mark)
        if len(self._marks) > self._most:
            self._thin()

    def _thin(self) -> None:
        """Drop marks that are close to a newer one for their age.

        The first stays: the oldest transaction that is open holds every floor there.
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
        """Return an event_id at or below which everything that will ever commit is visible in `snapshot`."""
        return max(self._floor, self._below(snapshot.xmin))

    def front(self, snapshot: Snapshot) -> int:
        """Return an event_id at or below which no event has an xid of `snapshot.xmax` or more."""
        return max(self._front, self._below(snapshot.xmax))

    def _below(self, xid: int) -> int:
        at = bisect.bisect_left(self._marks, xid, key=_XID)
        return self._marks[at - 1].event_id if at else 0

    def forget(self, oldest: Snapshot) -> None:
        """Drop the marks that no snapshot from `oldest` on needs, keeping what they proved."""
        keep = max(0, bisect.bisect_left(self._marks, oldest.xmin, key=_XID) - 1)
        if keep:
            proved = max(mark.event_id for mark in self._marks[:keep])
            self._floor = max(self._floor, proved)
            self._front = max(self._front, proved)
            del self._marks[:keep]


@dataclasses.dataclass(slots=True, eq=False)
class Ticket:
    """A page's part in one shard: its end, and the deliveries that must be settled before the shard may stand there.

    Attributes:
        open: deliveries of the page that are not settled.
        unmade: events of the page whose deliveries are still to be made, and 1 while the page itself is gone through.
            So the parts of a page, and of one event, are made one after another.
    """

    shard: ShardLog
    end: Position
    read_at: float
    open: set[Delivery] = dataclasses.field(default_factory=set)
    unmade: int = 0

    @property
    def is_done(self) -> bool:
        """Whether nothing has to be waited for."""
        return not (self.open or self.unmade)

    def advance(self) -> None:
        """Let the shard go on if nothing has to be waited for."""
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

        The latest ticket is used again if nothing of it is open: behind one that stays open for long few remain.
        """
        if self._tickets and self._tickets[-1].is_done:
            ticket = self._tickets[-1]
            ticket.end, ticket.read_at = end, now
            return ticket
        ticket = Ticket(self, end, now)
        self._tickets.append(ticket)
        return ticket

    def skip(self, end: Position) -> None:
        """Take a page in which nothing was for this shard."""
        if self._tickets:
            self._tickets[-1].end = end
        else:
            self.settled = end

    def advance(self) -> None:
        """Move the settled position over every page in front that has nothing open."""
        tickets = self._tickets
        while tickets and tickets[0].is_done:
            self.settled = tickets.popleft().end

    def overdue(self, before: float) -> list[Delivery]:
        """Return what has been open since before that moment and needs a row of its own: all but duplicates."""
        late: list[Delivery] = []
        for ticket in self._tickets:
            if ticket.read_at >= before:
                break
            late.extend(d for d in ticket.open if d.since < before and not _is_duplicate_perhaps(d))
        return late


def _is_duplicate_perhaps(delivery: Delivery) -> bool:
    """Return True if a delivery is about to be given up as a duplicate, or that is not known yet.

    A row would make it due after a crash, and nobody asks about duplicates there.
    """
    options = delivery.event.options
    return options is not None and options.duplicate is not False


class Page:
    """The tickets of one page while it is gone through: none is done before the page is closed."""

    def __init__(self, shards: Mapping[int, ShardLog], end: Position, now: float) -> None:
        self._shards = shards
        self._end = end
        self._now = now
        self._tickets: dict[int, Ticket] = {}

    def ticket(self, shard: int) -> Ticket:
        """Return the page's ticket of a shard."""
        ticket = self._tickets.get(shard)
        if ticket is None:
            ticket = self._tickets[shard] = self._shards[shard].page(self._end, self._now)
            ticket.unmade += 1
        return ticket

    def close(self) -> None:
        """Every delivery of the page is on its ticket, or counted there as still to be made."""
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
        read: the snapshot of the last read; what is new is new against it.
        shards: the shards owned, by number.
        marks: what floors are computed from.
        rows: events read in this epoch, of whatever shard.
        keys: what is known of supersede_keys.
    """

    read: Snapshot
    shards: dict[int, ShardLog]
    marks: XidMarks
    rows: int = 0
    keys: Keys = dataclasses.field(default_factory=Keys)

    def overdue(self, before: float) -> list[Delivery]:
        """Return the deliveries that have been open since before that moment."""
        return [delivery for shard in self.shards.values() for delivery in shard.overdue(before)]

    def oldest(self) -> Snapshot:
        """Return the oldest snapshot that a floor may still be asked for."""
        return min(
            (self.read, *(shard.settled.snapshot for shard in self.shards.values())), key=lambda s: s.xmin
        )


def settle(delivery: Delivery) -> None:
    """Say that the outcome, or a row in `backlog` or `dead`, is durable: the log need not wait for it any more."""
    ticket = delivery.ticket
    if isinstance(ticket, Ticket):
        delivery.ticket = None
        ticket.open.discard(delivery)
        ticket.advance()
