"""Whose database is this? What a server says of itself, held against a stored position, as a table."""

from __future__ import annotations

import pytest

from pghookd.core.home import ForeignDatabase, Server, StoredShard, check_newest, forked_from, why_foreign
from pghookd.core.snapshot import Mark, Position, Snapshot

SERVER = Server(
    system_identifier=71, database_oid=16000, timeline="00000001", started_at_us=5, in_recovery=False
)
NOW = Snapshot(900, 1000, (900,))


def stored(**changes):
    row = {
        "shard": 0,
        "position": Position(Snapshot(700, 800, ())),
        "floor": 40,
        "front": 50,
        "mark": Mark(60, 810),
        "system_identifier": 71,
        "database_oid": 16000,
        "timeline": "00000001",
    }
    return StoredShard(**{**row, **changes})


OURS = {
    "the same": {},
    "another timeline": {"timeline": "00000002"},
    "a position just read": {"position": Position(NOW)},
    "in the middle of a page": {"position": Position(Snapshot(700, 800, ()), NOW, 55)},
    "no mark since it was adopted": {"mark": None},
    "the newest id": {"mark": Mark(70, 999)},
    "never stored": {"position": None, "system_identifier": None, "database_oid": None, "mark": None},
}
FOREIGN = {
    "another server": {"system_identifier": 72},
    "another database of the server": {"database_oid": 16001},
    "its transactions are older than the stored position": {"position": Position(Snapshot(1001, 1001, ()))},
    "its event ids are older than the stored position": {"mark": Mark(71, 810)},
}


def test_at_home():
    for changes in OURS.values():
        assert why_foreign(SERVER, [stored(), stored(**changes)], NOW, 70) is None


def test_not_at_home_even_if_only_one_shard_says_so():
    for why, changes in FOREIGN.items():
        assert why_foreign(SERVER, [stored(), stored(**changes)], NOW, 70) == why


AHEAD = [
    {"position": Position(Snapshot(700, 800, ()), Snapshot(1001, 1001, ()), 55)},
    {"mark": Mark(60, 1001)},
]


def test_a_position_ahead_of_the_server_is_foreign():
    for changes in AHEAD:
        assert why_foreign(SERVER, [stored(**changes)], NOW, 70) == (
            "its transactions are older than the stored position"
        )


def test_nothing_stored_is_at_home_anywhere():
    assert why_foreign(SERVER, [], NOW, 0) is None


def test_a_fork_names_the_timeline_that_was_left():
    promoted = Server(71, 16000, "00000002", 6, in_recovery=False)
    assert forked_from(promoted, [stored()]) == "00000001"
    assert forked_from(SERVER, [stored()]) is None
    assert forked_from(promoted, [stored(position=None, timeline=None)]) is None


def test_ids_that_go_forward_are_ours():
    for newest, last in [(10, None), (10, Mark(10, 1)), (11, Mark(10, 1))]:
        check_newest(newest, last)


def test_ids_that_go_back_are_another_databases():
    with pytest.raises(ForeignDatabase, match="went back"):
        check_newest(9, Mark(10, 1))
