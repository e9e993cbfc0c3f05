"""The matrix and the tests agree: each row is proved by tests that exist, or says why it is not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from matrix import KINDS, MATRIX, as_text

TESTS = Path(__file__).parent.parent


def _there():
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield f"{path.stem}::{node.name}"


THERE = frozenset(_there())

pytestmark = pytest.mark.short  # in no time


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.name)
def test_a_row_is_proved_by_tests_that_exist(row):
    assert set(row.tests) <= THERE
    assert row.tests or row.why
    assert row.name[0] in KINDS
    assert len(set(row.tests)) == len(row.tests)
    assert row.fault
    assert row.happens
    assert row.normal


def test_each_fault_of_this_folder_is_in_a_row():
    named = {name for row in MATRIX for name in row.tests}
    here = {
        name for name in THERE if name.startswith("test_fault_") and not name.startswith("test_fault_matrix")
    }
    assert here <= named


def test_rows_are_named_once():
    names = [row.name for row in MATRIX]
    assert len(names) == len(set(names))


def test_the_text_is_made_of_it():
    there = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    assert there == as_text(), "python tests/faults/matrix.py > tests/faults/README.md"


def test_each_kind_has_a_test_in_the_short_set():
    short = {
        path.stem
        for path in Path(__file__).parent.glob("test_fault_*.py")
        if "mark.short" in path.read_text(encoding="utf-8")
    }
    kinds = {
        name[0] for name in (row.name for row in MATRIX if {t.partition("::")[0] for t in row.tests} & short)
    }
    assert kinds == KINDS.keys()
    assert {f"test_fault_{name}" for name in ("process", "postgres", "network", "failover", "data")} <= short
