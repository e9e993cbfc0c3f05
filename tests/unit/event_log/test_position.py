"""The log's arithmetic, held against a model of Postgres's own: xids, ids, snapshots, in any interleaving."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghookd.event_log.position import (
    BEGINNING,
    MARKS_MAX,
    EventLog,
    Mark,
    Page,
    Position,
    ShardLog,
    Snapshot,
    XidMarks,
    settle,
)
from pghookd.event_log.reading.deferred import DeferredEvents, DeferredPart, ids_of
from pghookd.model.delivery import Delivery, Event
from pghookd.model.event_options import EventOptions

A, B, C = Position(Snapshot(10, 10, ())), Position(Snapshot(20, 20, ())), Position(Snapshot(30, 30, ()))


def delivery(ticket=None):
    since = 0.0 if ticket is None else ticket.read_at
    made = Delivery(Event(1, "s", "order_created", 0, b"{}"), 1, 0, since, ticket)
    if ticket is not None:
        ticket.open.add(made)
    return made


# Marks ------------------------------------------------------------------------------------------------------


def test_without_marks_everything_may_be_unread():
    assert XidMarks().floor(Snapshot(100, 200, (100,))) == 0
    assert XidMarks().front(Snapshot(100, 200, (100,))) == 0


def test_a_mark_counts_only_if_its_xid_is_older_than_all_running_ones():
    marks = XidMarks()
    marks.note(Mark(500, 100))
    assert marks.floor(Snapshot(100, 120, (100,))) == 0
    assert marks.floor(Snapshot(101, 120, (101,))) == 500


def test_the_front_looks_at_xmax_and_the_floor_at_xmin():
    marks = XidMarks()
    marks.note(Mark(500, 100))
    marks.note(Mark(900, 150))
    snapshot = Snapshot(101, 151, (101,))
    assert (marks.floor(snapshot), marks.front(snapshot)) == (500, 900)


def test_the_newest_mark_that_counts_wins():
    marks = XidMarks()
    for mark in (Mark(1, 10), Mark(2, 20), Mark(3, 30)):
        marks.note(mark)
    assert [marks.floor(Snapshot(xmin, 99, ())) for xmin in (10, 11, 20, 21, 31)] == [0, 1, 1, 2, 3]
    assert marks.newest == Mark(3, 30)


def test_the_stored_position_is_the_least():
    marks = XidMarks(floor=7, front=9)
    marks.note(Mark(5, 10))
    assert (marks.floor(A.snapshot), marks.front(A.snapshot)) == (7, 9)
    assert (marks.floor(B.snapshot), marks.front(B.snapshot)) == (7, 9)


def test_forgetting_marks_changes_no_answer_that_may_still_be_asked_for():
    marks, all_of_them = XidMarks(), XidMarks()
    for n in range(1, 50):
        marks.note(Mark(n * 100, n * 10))
        all_of_them.note(Mark(n * 100, n * 10))
    marks.forget(Snapshot(205, 300, (205,)))
    assert len(marks._marks) == 30
    for xmin in range(205, 600):
        snapshot = Snapshot(xmin, xmin + 7, ())
        assert marks.floor(snapshot) == all_of_them.floor(snapshot)
        assert marks.front(snapshot) == all_of_them.front(snapshot)


def test_a_week_of_an_open_transaction_leaves_a_bounded_number_of_marks():
    """One mark a second: the floor stays where the transaction holds it, and is near once that has ended."""
    marks, week = XidMarks(), 7 * 86_400
    for n in range(1, week + 1):
        marks.note(Mark(n * 100, n * 10))
        marks.forget(Snapshot(15, n * 10 + 1, (15,)))
    assert len(marks._marks) <= MARKS_MAX
    held = Snapshot(15, week * 10 + 1, (15,))
    assert (marks.floor(held), marks.front(held)) == (100, week * 100)
    for ago_s in (1, 60, 3600, 86_400):  # another transaction is the oldest now, as old as that
        xmin = (week - ago_s) * 10 + 5
        floor = marks.floor(Snapshot(xmin, week * 10 + 1, (xmin,)))
        assert 0 <= (week - ago_s) * 100 - floor <= 100 * max(ago_s, 60)


# A database that fits into a test ---------------------------------------------------------------------------


@dataclasses.dataclass
class Postgres:
    """Assigns xids, draws ids, commits in any order; xmax is the latest completed xid + 1, as it is there."""

    next_xid: int = 700
    last_id: int = 0
    completed: int = 699
    running: dict[int, list[int]] = dataclasses.field(default_factory=dict)
    rows: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # xid, id: committed

    def begin(self):
        self.next_xid += 1
        self.running[self.next_xid - 1] = []
        return self.next_xid - 1

    def insert(self, xid):
        self.last_id += 1
        self.running[xid].append(self.last_id)

    def end(self, xid, *, commit):
        ids = self.running.pop(xid)
        self.completed = max(self.completed, xid)
        if commit:
            self.rows.extend((xid, i) for i in ids)

    def snapshot(self):
        xmax = self.completed + 1
        xips = tuple(sorted(xid for xid in self.running if xid < xmax))
        return Snapshot(min(xips, default=xmax), xmax, xips)

    def new(self, since, floor, front):
        """Return what read_new_events.sql would."""
        ended = set(since.xips) - set(self.snapshot().xips)
        return [
            (xid, i)
            for xid, i in self.rows
            if (xid >= since.xmax and i > front) or (xid in ended and i > floor)
        ]


STEPS = (
    "begin",
    "insert",
    "insert",
    "commit",
    "commit",
    "abort",
    "id",
    "store",
    "store",
    "read",
    "move",
    "old",
)


class Walk:
    """A reader and a recorder beside producers, one step at a time."""

    def __init__(self, marks):
        self.db = Postgres()
        self.marks = marks
        self.read_at = self.kept = BEGINNING
        self.seen = []
        self.newest = None

    def step(self, what, pick):
        db, running = self.db, sorted(self.db.running)
        chosen = running[pick % len(running)] if running else None
        match what:
            case "begin":
                db.begin()
            case "insert" if chosen is not None:
                db.insert(chosen)
            case "commit" | "abort" if chosen is not None:
                db.end(chosen, commit=what == "commit")
            case "move":
                db.last_id += 2**32
            case "id":
                self.newest = db.last_id
            case "store" if self.newest is not None:  # whatever happened since the id was read
                xid = db.begin()
                db.end(xid, commit=True)
                self.marks.note(Mark(self.newest, xid))
                self.newest = None
                self.marks.forget(min(self.read_at, self.kept, key=lambda s: s.xmin))
            case "read":
                self.read()
            case "old":
                self.kept = self.read_at  # a shard's settled position, behind the reader's

    def read(self):
        floor, front = self.marks.floor(self.read_at), self.marks.front(self.read_at)
        self.seen.extend(self.db.new(self.read_at, floor, front))
        self.read_at = self.db.snapshot()


def walked(seed, most=MARKS_MAX):
    """Return a walk of hundreds of random steps, at the end of which everything has committed."""
    rnd, walk = random.Random(seed), Walk(XidMarks(most=most))
    for _ in range(400):
        walk.step(rnd.choice(STEPS), rnd.randrange(6))
    for xid in list(walk.db.running):
        walk.db.end(xid, commit=True)
    return walk


@pytest.mark.parametrize("most", [MARKS_MAX, 4, 2])
def test_every_committed_row_is_read_exactly_once_whatever_the_order(most):
    for seed in range(25):
        walk = walked(seed, most)
        walk.read()
        assert sorted(walk.seen) == sorted(walk.db.rows)


@pytest.mark.parametrize("most", [MARKS_MAX, 4, 2])
def test_floor_and_front_of_an_older_position_hide_no_unseen_event(most):
    for seed in range(25):
        walk = walked(seed, most)
        for since in (walk.kept, walk.read_at):
            unseen = [(x, i) for x, i in walk.db.rows if x >= since.xmax or x in since.xips]
            assert walk.db.new(since, walk.marks.floor(since), walk.marks.front(since)) == unseen


def test_with_a_snapshots_xmax_for_an_assigned_xid_the_model_loses_a_row():
    """The model is sharp enough to see the flaw of an earlier draft."""
    db, marks = Postgres(), XidMarks()
    early = db.begin()
    late = db.begin()
    db.insert(late)
    marks.note(Mark(db.last_id, db.snapshot().xmax))  # wrong: both are running, and neither is below it
    since = db.snapshot()
    db.end(early, commit=True)
    between = db.snapshot()
    db.end(late, commit=True)
    assert db.new(since, 0, 0) == [(late, 1)]
    assert db.new(between, marks.floor(between), marks.front(between)) == []


# Tickets ----------------------------------------------------------------------------------------------------


def test_a_page_with_nothing_in_it_moves_the_shard_at_once():
    shard = ShardLog(0, A)
    shard.skip(B)
    assert shard.settled == B


def test_a_shard_does_not_advance_while_its_first_page_is_open():
    shard = ShardLog(0, A)
    first, second = shard.page(B, 1.0), shard.page(C, 2.0)
    one, two, three = delivery(first), delivery(first), delivery(second)
    settle(three)
    assert shard.settled == A
    settle(one)
    assert shard.settled == A
    settle(two)
    assert shard.settled == C


def test_a_skipped_page_waits_for_those_before_it():
    shard = ShardLog(0, A)
    open_one = delivery(shard.page(B, 1.0))
    shard.skip(C)
    assert shard.settled == A
    settle(open_one)
    assert shard.settled == C


def test_settling_twice_or_without_a_ticket_is_nothing():
    shard = ShardLog(0, A)
    ticket = shard.page(B, 1.0)
    one, two = delivery(ticket), delivery(ticket)
    settle(one)
    settle(one)
    settle(delivery())
    assert (shard.settled, ticket.open) == (A, {two})


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers())
def test_settled_is_always_the_end_of_the_last_page_before_anything_open(sizes, seed):
    shard = ShardLog(0, A)
    ends = [Position(Snapshot(100 + n, 100 + n, ())) for n in range(len(sizes))]
    pages = []
    for size, end in zip(sizes, ends, strict=True):
        if size:
            ticket = shard.page(end, 0.0)
            pages.append((end, [delivery(ticket) for _ in range(size)]))
        else:
            shard.skip(end)
            if pages:
                pages[-1] = (end, pages[-1][1])
            else:
                assert shard.settled == end
    order = [each for _, some in pages for each in some]
    random.Random(seed).shuffle(order)
    for each in order:
        before = shard.settled
        settle(each)
        done = [end for end, some in pages if all(d.ticket is None for d in some)]
        prefix = [end for (end, _), wanted in zip(pages, done, strict=False) if end == wanted]
        assert shard.settled == (prefix[-1] if prefix else before)
    assert shard.settled == ends[-1]


def test_overdue_are_the_open_ones_of_pages_read_before():
    shard = ShardLog(0, A)
    old = shard.page(B, 1.0)
    one, two = delivery(old), delivery(old)
    delivery(shard.page(C, 5.0))
    settle(one)
    log = EventLog(C.snapshot, {0: shard, 1: ShardLog(1, C)}, XidMarks())
    assert log.overdue(1.0) == []
    assert log.overdue(2.0) == [two]
    assert len(log.overdue(6.0)) == 2


@pytest.mark.parametrize(("duplicate", "overdue"), [(False, True), (True, False), (None, False)])
def test_a_known_or_possible_duplicate_is_never_overdue(duplicate, overdue):
    shard = ShardLog(0, A)
    one = delivery(shard.page(B, 1.0))
    one.event.options = EventOptions(dedupe_key="d", duplicate=duplicate)
    assert bool(shard.overdue(100.0)) is overdue


def test_a_page_waits_for_its_deferred_events_with_few_tickets_behind_it():
    shard, aside = ShardLog(0, A), DeferredEvents()
    ticket = shard.page(B, 1.0)
    aside.put("s", DeferredPart(ticket, None, 2, 2, 1.0, ids_of([7, 8, 9])))
    settle(delivery(ticket))
    behind = [shard.page(C, 2.0 + n) for n in range(100)]
    assert all(each is behind[0] for each in behind)
    assert (shard.settled, aside.events) == (A, 3)
    ((site_id, (part,)),) = aside.turns(5)
    assert (site_id, part.first(2), part.first(9)) == ("s", [7, 8], [7, 8, 9])
    last = delivery(ticket)
    aside.taken("s", 2, None)
    assert part.first(9) == [9]
    aside.taken("s", 1, None)
    assert not aside
    assert list(aside.turns(5)) == []
    assert shard.settled == A
    settle(last)
    assert shard.settled == C


def test_events_are_done_once_every_slice_of_endpoints_has_them():
    shard, aside = ShardLog(0, A), DeferredEvents()
    ticket = shard.page(B, 1.0)
    part = DeferredPart(ticket, None, 2, 2, 1.0, ids_of([7, 8, 9]), wide=True)
    aside.put("s", part)
    aside.taken("s", 2, 20)
    assert (part.first(9), part.after, part.slice_end) == ([9], 0, 20)
    aside.taken("s", 1, 20)
    assert (part.first(9), part.after, part.slice_end) == ([7, 8, 9], 20, None)
    aside.taken("s", 1, None)
    assert (part.first(9), ticket.unmade, aside.events) == ([8, 9], 2, 2)
    aside.taken("s", 2, None)
    assert not aside
    assert shard.settled == B


def test_sites_that_have_left_something_take_turns():
    shard, aside = ShardLog(0, A), DeferredEvents(most=6)
    for site_id in ("a", "b", "c"):
        aside.put(site_id, DeferredPart(shard.page(B, 1.0), None, 1, 1, 1.0, ids_of([1, 2])))
    assert [site_id for _ in range(3) for site_id, _ in aside.turns(2)] == ["a", "b", "c", "a", "b", "c"]
    assert "a" in aside
    assert aside.is_full


def test_a_site_is_recovering_until_its_deferred_events_are_taken():
    shard, aside = ShardLog(0, A), DeferredEvents()
    aside.put("s", DeferredPart(shard.page(B, 1.0), None, 1, 1, 1.0, ids_of([1, 2]), recovering=True))
    aside.put("s", DeferredPart(shard.page(B, 1.0), None, 1, 1, 1.0, ids_of([3])))
    aside.taken("s", 1, None)
    assert aside.is_recovering("s")
    aside.taken("s", 1, None)
    assert "s" in aside
    assert not aside.is_recovering("s")


def test_nothing_of_a_page_is_settled_before_all_of_it_is_made():
    shards = {0: ShardLog(0, A), 1: ShardLog(1, A)}
    page = Page(shards, B, 1.0)
    ticket = page.ticket(0)
    settle(delivery(ticket))
    assert shards[0].settled == A
    assert page.ticket(0) is ticket
    last = delivery(ticket)
    page.close()
    assert (shards[0].settled, shards[1].settled) == (A, B)
    settle(last)
    assert shards[0].settled == B


def test_the_oldest_snapshot_is_that_of_the_shard_furthest_behind():
    log = EventLog(C.snapshot, {0: ShardLog(0, C), 1: ShardLog(1, A), 2: ShardLog(2, B)}, XidMarks())
    assert log.oldest() == A.snapshot
