"""The guide's table of shared resources: every row names a test that exists."""

from __future__ import annotations

import ast
import re

import pytest
from tree import ROOT

GUIDE = (ROOT / "daemon" / "README.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in GUIDE.partition("## Shared resources")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| resource")
]
COLUMNS = 6


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}, {row[1]}")
def test_every_shared_resource_is_held_by_a_test(row):
    assert len(row) == COLUMNS
    assert all(row)
    file, _, name = re.fullmatch(r"`([^`]+)`", row[-1])[1].partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert name in tests if name else any(test.startswith("test_") for test in tests)
