"""Wherever a state or a reason of a delivery is written down, it is as the table of its life has it."""

from __future__ import annotations

import ast
import re

import pytest
from tree import SQL, load

from pghookd.cli.replays import replay
from pghookd.model.delivery import Reason, State
from pghookd.model.delivery_states import LIFE, NOT_LOST, End

STATEMENTS = {
    f"{path.parent.name}/{path.stem}": re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))
    for folder in ("fragments", "functions", "migrations", "queries")
    for path in sorted((SQL / folder).rglob("*.sql"))
}
STATE_OF = {move.reason: move.to for move in LIFE}
COMPARED = re.compile(r"\breason (?:=|<>|is distinct from) '(\w+)'")
LISTED = re.compile(r"\breason (?:not )?in \(([^)]+)\)")
PAIRED = re.compile(rf"'({'|'.join([*State, *End])})', (?:reason = )?'(\w+)'")
DEATHS = {"DeadWrite", "Dead", "Loaded", "_die"}  # calls that give a delivery up, with the reason


def lists_of(text):
    return [set(re.findall(r"'(\w+)'", listed)) for listed in LISTED.findall(text)]


@pytest.mark.parametrize("name", STATEMENTS)
def test_sql_knows_the_reasons(name):
    text = STATEMENTS[name]
    assert set(COMPARED.findall(text)).union(*lists_of(text)) <= set(Reason)


@pytest.mark.parametrize("name", STATEMENTS)
def test_sql_writes_a_state_with_a_reason_of_it(name):
    pairs = [(state, reason) for state, reason in PAIRED.findall(STATEMENTS[name]) if reason in set(Reason)]
    assert [pair for pair in pairs if STATE_OF[pair[1]] != pair[0]] == []


def test_sql_leaves_out_all_deliveries_that_are_not_lost():
    lists = [words for text in STATEMENTS.values() for words in lists_of(text) if words & NOT_LOST]
    assert len(lists) > 3
    assert all(words >= NOT_LOST for words in lists)


def named(call, enum):
    """Return the members of an enum that a call names."""
    found = [ast.unparse(node).split(".") for node in ast.walk(call) if isinstance(node, ast.Attribute)]
    return {enum[parts[1]] for parts in found if parts[0] == enum.__name__}


@pytest.mark.parametrize("module", load().values(), ids=load())
def test_the_daemon_writes_a_state_with_a_reason_of_it(module):
    wrong = [
        ast.unparse(call)
        for call in ast.walk(module.tree)
        if isinstance(call, ast.Call)
        for states in [{End.DEAD} if ast.unparse(call.func) in DEATHS else named(call, State)]
        if states and not {STATE_OF[reason] for reason in named(call, Reason)} <= states
    ]
    assert not wrong


def row_of(move):
    lost = "" if move.to is not End.DEAD else "no" if move.is_intended else "yes"
    return f"`{move.to}`", f"`{move.reason}`" if move.reason else "", move.when, lost


def test_the_guide_has_the_table():
    guide = (SQL / "README.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- life -->(.*?)<!-- /life -->", guide, re.DOTALL)[1].strip()
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table.splitlines()[2:]]
    assert rows == [row_of(move) for move in LIFE]


def test_a_replay_takes_deliveries_of_each_end():
    [states] = re.findall(r"allowed constant text\[\] := '\{(.*?)\}'", STATEMENTS["functions/plan_replay"])
    offered = next(option.help for option in replay.params if option.name == "states")
    assert set(states.split(",")) == {*End, "missed"}
    assert set(states.split(",")) <= set(re.findall(r"\w+", offered))
