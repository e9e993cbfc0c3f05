"""The statements of the recorder's session are prepared before its locks are taken: the list is complete."""

from __future__ import annotations

from tree import load

from pghookd.postgres.client import queries
from pghookd.runtime.sessions import HOT

# Whose statements run on the recorder's session.
MODULES = {
    "pghookd.delivery.recording.batch_writer",
    "pghookd.event_log.payload_filter",
    "pghookd.delivery.recording.notes",
    "pghookd.delivery.payload_pages",
    "pghookd.delivery.recording.positions",
    "pghookd.runtime.epoch",
    "pghookd.runtime.loops",
    "pghookd.runtime.ownership",
    "pghookd.delivery.recording.recorder",
    "pghookd.delivery.replays",
    "pghookd.delivery.backlog.due",
    "pghookd.delivery.backlog.admission",
    "pghookd.delivery.backlog.held",
    "pghookd.delivery.backlog.lines",
    "pghookd.delivery.backlog.parked",
    "pghookd.delivery.poison_guard",
}


def test_every_statement_of_the_recorders_session_is_prepared():
    modules = load()
    used = {name for module in MODULES for name in modules[module].texts()} & queries().keys()
    assert used == set(HOT["record"])


def test_every_statement_that_is_warmed_exists():
    assert {name for hot in HOT.values() for name in hot} <= set(queries())
