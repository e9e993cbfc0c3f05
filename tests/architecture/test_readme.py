"""The README and the guides list exactly what the code has: settings, log events, states and commands."""

from __future__ import annotations

import re

import pytest
from tree import ROOT

from pghookd.cli.main import cli
from pghookd.endpoint_health.incident_rules import LIFE
from pghookd.process.logs import LogEvent
from pghookd.settings.schema import NAMES

README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "systemd" / "README.md").read_text(encoding="utf-8")
GUIDES = (
    README,
    OPERATIONS,
    *((ROOT / folder / "README.md").read_text(encoding="utf-8") for folder in ("sql", "daemon", "tests")),
)
README_LINES_MAX = 200
DOTTED = re.compile(r"`([a-z]+\.[a-z][a-z0-9_]*)`")


def section(name):
    """Return the part of the operations guide between `<!-- name -->` and the next `<!-- /name -->`."""
    found = re.search(rf"<!-- {name} -->(.*?)<!-- /{name} -->", OPERATIONS, re.DOTALL)
    assert found, f"systemd/README.md has no section between <!-- {name} --> and <!-- /{name} -->"
    return found[1]


def test_every_setting_is_listed_and_no_other():
    assert sorted(DOTTED.findall(section("settings"))) == sorted(NAMES)


def test_every_log_event_is_listed_and_no_other():
    assert sorted(DOTTED.findall(section("log events"))) == sorted(event.value for event in LogEvent)


def test_the_life_of_an_endpoint_is_the_table_that_decides_it():
    rows = {
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in section("life").strip().splitlines()[2:]
    }
    assert rows == {(rule.health, rule.then, rule.tells or "nothing") for rule in LIFE}


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_is_spoken_of(command):
    assert any(re.search(rf"pghookd {command}\b", guide) for guide in GUIDES)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= README_LINES_MAX


def test_the_two_commands_are_one_line_each():
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    demo = [line for line in lines if line.endswith("&& .venv/bin/pghookd demo")]
    tests = [line for line in lines if "pytest" in line]
    assert len(demo) == 1
    assert tests, "the README says how the tests are run"
    assert tests[0].endswith("&& .venv/bin/pytest")
