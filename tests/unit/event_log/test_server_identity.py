"""Is this the same database? A server's identity compared with a stored position, as a table."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghookd.event_log.identity import (
    ADDRESSES_ASKED_MAX,
    Answer,
    ForeignDatabase,
    Here,
    HomeEvidence,
    ServerIdentity,
    StoredShard,
    check_newest,
    forked_from,
    is_local,
    place_of,
    rival_of,
    to_ask,
    why_foreign,
    why_moved,
)
from pghookd.event_log.position import Mark, Position, Snapshot
from pghookd.model.suspect import Stay

SERVER = ServerIdentity(
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
    promoted = ServerIdentity(71, 16000, "00000002", 6, in_recovery=False)
    assert forked_from(promoted, [stored()]) == "00000001"
    assert forked_from(SERVER, [stored()]) is None
    assert forked_from(promoted, [stored(position=None, timeline=None)]) is None


def test_ids_that_go_forward_are_ours():
    for newest, last in [(10, None), (10, Mark(10, 1)), (11, Mark(10, 1))]:
        check_newest(newest, last)


def test_ids_that_go_back_are_another_databases():
    with pytest.raises(ForeignDatabase, match="went back"):
        check_newest(9, Mark(10, 1))


# The place ------------------------------------------------------------------------------------------------------------

REMOTE = "db.internal:5432"
SOCKET = "/run/postgresql/.s.PGSQL.5432"
STARTED, RESTARTED = 1_000, 2_000


def stay(host="ours", server=REMOTE, name="", started_at_us=STARTED):
    return Stay(host, server, None, 0, (), name, started_at_us)


def here(host="ours", server=REMOTE, started_at_us=RESTARTED, name=""):
    return Here(host, server, started_at_us, name)


# The stored stays, our place, its evidence, and whether it holds still if nothing / a rival answers at an old address.
HOMES = (stay(), stay(server="localhost:5432"), stay(server=SOCKET))
PLACES = {
    "the first run": ((), here("any", "any:1"), HomeEvidence.FIRST, False, False),
    "restarted with the server": (HOMES, here(), HomeEvidence.SAME_PLACE, False, False),
    "restarted, by the socket": (HOMES, here(server=SOCKET), HomeEvidence.SAME_PLACE, False, False),
    "another machine": (HOMES, here("new"), HomeEvidence.HALF_KNOWN, False, False),
    "another address": (HOMES, here(server="pg2:5432"), HomeEvidence.HALF_KNOWN, False, True),
    "a copy on the machine": (HOMES, here(server="localhost:6543"), HomeEvidence.HALF_KNOWN, False, True),
    "a copy elsewhere": (HOMES, here("new", "pg2:5432"), HomeEvidence.NEW, True, True),
    "a copy elsewhere, by a local address": (HOMES, here("new", SOCKET), HomeEvidence.LOCAL, True, True),
    "a new pod by a local address": (
        HOMES,
        here("new", SOCKET, STARTED),
        HomeEvidence.SAME_SERVER,
        False,
        False,
    ),
    "a new pod by a new address": (
        HOMES,
        here("new", "pg2:5432", STARTED),
        HomeEvidence.SAME_SERVER,
        False,
        False,
    ),
}


@pytest.mark.parametrize(("stays", "where", "place", "alone", "beside"), PLACES.values(), ids=PLACES)
def test_a_place_decides_what_holds_still(stays, where, place, alone, beside):
    assert place_of(where, stays) is place
    asked = to_ask(where, stays)
    assert (why_moved(where, stays, dict.fromkeys(asked, Answer.GONE)) is not None) is alone
    assert (why_moved(where, stays, dict.fromkeys(asked, Answer.RIVAL)) is not None) is beside


NAMES = {
    "the same name, a new machine and address": ("shop", "shop", here("new", "pg2:5432"), None),
    "the same name, a new machine by its socket": ("shop", "shop", here("new", SOCKET), None),
    "another name at home": ("shop", "staging", here(), "'shop', and database.home is 'staging'"),
    "no name at home": ("shop", "", here(), "'shop', and database.home is not set"),
    "another name on the same server": ("shop", "staging", here(started_at_us=STARTED), "'shop'"),
    "named for the first time at home": ("", "shop", here(), None),
    "named for the first time elsewhere": ("", "shop", here("new", "pg2:5432"), "neither this machine"),
}


@pytest.mark.parametrize(("stored", "given", "where", "why"), NAMES.values(), ids=NAMES)
def test_a_name_replaces_machine_and_address(stored, given, where, why):
    where = dataclasses.replace(where, name=given)
    stays = (stay(name=stored), stay("other", "pg3:5432"))
    found = why_moved(where, stays, dict.fromkeys(to_ask(where, stays), Answer.GONE))
    assert (found is None) if why is None else (why in found)


def test_a_standby_that_never_owned_is_known_by_its_machine():
    stays = (stay("standby", "pg1:5432"), stay("owner", "pg1:5432"))
    promoted = here("standby", "pg2:5432")
    assert to_ask(promoted, stays) == ("pg1:5432",)
    for answer in (Answer.GONE, Answer.STANDBY, Answer.OTHER):
        assert why_moved(promoted, stays, {"pg1:5432": answer}) is None
    assert why_moved(promoted, stays, {"pg1:5432": Answer.RIVAL}) == (
        "the same database still takes events at pg1:5432: one of the two is a copy"
    )
    assert "does not let this role in" in why_moved(promoted, stays, {"pg1:5432": Answer.UNCLEAR})


def test_a_copy_does_not_become_home_because_its_original_is_stopped():
    where = here(server="localhost:6543")
    marked = Stay("ours", "localhost:6543", None, 0, (), rival=REMOTE)
    stays = (marked, *HOMES)
    assert to_ask(where, stays) == (REMOTE, "localhost:5432", SOCKET)
    gone = dict.fromkeys(to_ask(where, stays), Answer.GONE)
    assert "which is only silent now" in why_moved(where, stays, gone)
    for answer in (Answer.STANDBY, Answer.OTHER, Answer.HERE):
        assert why_moved(where, stays, {**gone, REMOTE: answer}) is None


def test_a_local_address_of_another_machine_does_not_rule_out_a_rival():
    where = here(server="pg2:5432")
    stays = (Stay("other", "localhost:6543", None, 0, (), rival="localhost:5432"), stay())
    assert to_ask(where, stays) == (REMOTE,)
    assert "localhost:5432, which is only silent now" in why_moved(where, stays, {REMOTE: Answer.GONE})


def test_only_an_original_that_was_seen_alive_is_remembered():
    for answer in Answer:
        remembered = REMOTE if answer in {Answer.RIVAL, Answer.UNCLEAR} else None
        assert rival_of({"pg2:5432": Answer.GONE, REMOTE: answer}) == remembered


hosts = st.sampled_from(["a", "b", "c"])
servers = st.sampled_from([REMOTE, "pg2:5432", "localhost:5432", SOCKET, "127.0.0.1:6543"])
starts = st.sampled_from([STARTED, RESTARTED, None])
names = st.sampled_from(["", "shop"])
stays_of = st.lists(st.builds(stay, hosts, servers, st.just(""), starts), max_size=6)
wheres = st.builds(here, hosts, servers, st.just(3_000), names)
answers = st.sampled_from(list(Answer))
MAY_BE_ORIGINAL = {Answer.RIVAL, Answer.UNCLEAR, Answer.STARTING}


@given(wheres, stays_of)
def test_only_addresses_that_may_hold_the_original_are_queried(where, stays):
    for address in to_ask(where, stays):
        assert address != where.server
        assert not is_local(address) or any((s.host, s.server) == (where.host, address) for s in stays)


@given(wheres, stays_of, st.data())
def test_a_rival_never_lets_a_new_place_go_on(where, stays, data):
    asked = to_ask(where, stays)
    found = {address: data.draw(answers) for address in asked}
    gone = why_moved(where, stays, dict.fromkeys(asked, Answer.GONE))
    if gone is not None:
        assert why_moved(where, stays, found) == gone
    elif Answer.HERE not in found.values() and MAY_BE_ORIGINAL & set(found.values()):
        assert why_moved(where, stays, found) is not None


@given(wheres, stays_of, st.sampled_from(["shop", "staging"]))
def test_another_name_holds_still_wherever_it_is(where, stays, stored):
    stays = [*stays, stay(name=stored)]
    assert (stored == where.name) or why_moved(where, stays, {}) is not None


@given(wheres, stays_of)
def test_a_server_that_has_not_restarted_is_not_a_copy(where, stays):
    stays = [*stays, stay("x", "y:1", started_at_us=where.started_at_us)]
    assert to_ask(where, stays) == ()
    assert why_moved(where, stays, {}) is None


@given(hosts, servers)
def test_a_copy_on_a_new_machine_by_its_own_address_holds_still(host, server):
    stays = [stay("production", server if is_local(server) else "pg1:5432")]
    assert why_moved(here(host, server), stays, {}) is not None


def test_few_addresses_are_queried_however_many_are_stored():
    stays = [stay(server=f"pg{n}:5432") for n in range(100)]
    assert to_ask(here(server="pg:5432"), stays) == tuple(f"pg{n}:5432" for n in range(ADDRESSES_ASKED_MAX))
