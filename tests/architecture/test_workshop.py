"""The Makefile: `make help` lists every target."""

from __future__ import annotations

import re

from tree import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = re.findall(r"(?m)^([a-z][a-z-]*|\.venv):(?!=)", MAKEFILE)
# As the recipe of `help` finds them.
DESCRIBED = re.findall(r"(?m)^([a-z.-]+):.*## \S", MAKEFILE)


def test_help_lists_every_target():
    assert DESCRIBED == TARGETS


def test_no_target_is_taken_for_a_file():
    assert set(re.search(r"(?m)^\.PHONY: (.+)$", MAKEFILE)[1].split()) == set(TARGETS)


def test_make_without_a_target_is_help():
    assert re.search(r"(?m)^\.DEFAULT_GOAL := (.+)$", MAKEFILE)[1] == "help"
