"""What runs on the recorder's session is prepared before its locks are taken: the list is complete."""

from __future__ import annotations

from tree import load

from pghookd.edge.postgres import _queries
from pghookd.edge.sessions import HOT

# Whose statements run on the recorder's session.
MODULES = {
    "pghookd.edge.batches",
    "pghookd.edge.filter",
    "pghookd.edge.notes",
    "pghookd.edge.payload_pages",
    "pghookd.edge.positions",
    "pghookd.epoch",
    "pghookd.loops.own",
    "pghookd.loops.record",
    "pghookd.loops.replay",
    "pghookd.loops.retry",
    "pghookd.loops.admission",
    "pghookd.loops.held",
    "pghookd.loops.lines",
    "pghookd.loops.parked",
    "pghookd.loops.suspect",
}


def test_every_statement_of_the_recorders_session_is_prepared():
    modules = load()
    known = {
        path.stem for path in (modules["pghookd.edge.postgres"].path.parents[1] / "sql/queries").glob("*.sql")
    }
    used = {name for module in MODULES for name in modules[module].texts()} & known
    assert used == set(HOT["record"])


def test_every_statement_that_is_warmed_exists():
    assert {name for hot in HOT.values() for name in hot} <= set(_queries())
