"""The matrix and the tests agree: each row is proved by tests that exist, or says why it is not."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from matrix import MATRIX

TESTS = Path(__file__).parent.parent


def _there():
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                yield f"{path.stem}::{node.name}"


THERE = frozenset(_there())


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.name)
def test_a_row_is_proved_by_tests_that_exist(row):
    assert set(row.tests) <= THERE
    assert bool(row.tests) != bool(row.why)
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
