"""The habits of the house that a machine can look after: docstrings, length, names, reasons for exceptions."""

from __future__ import annotations

import ast
import re
import statistics
from collections import Counter

import pytest
from tree import DAEMON, ROOT, load

MODULES = load()
LINES_MAX = 60
MEDIAN_MAX = 8
CLASS_LINES_MAX = 300
TEST_NAME_MAX = 70
PARAMETERS_MAX = 8  # of a constructor
NO_NAMES = {"base", "common", "helper", "helpers", "manager", "misc", "util", "utils"}
SOURCES = sorted([*DAEMON.rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
EXCEPTION = re.compile(r"#\s*(?:noqa|type:\s*ignore)(?P<codes>[^-]*)(?P<reason>-.*)?$")


def lines_of(function):
    return function.end_lineno - function.lineno + 1


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_a_module_says_why_it_exists(module):
    if module.path.name == "__init__.py" and not module.tree.body:
        return
    text = ast.get_docstring(module.tree)
    assert text, "a module opens with a docstring"
    assert text.splitlines()[0].endswith((".", ":", ";", ","))


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_functions_are_short(module):
    long = {f.name: lines_of(f) for f in module.functions() if lines_of(f) > LINES_MAX}
    assert not long


def test_most_functions_are_very_short():
    lengths = [lines_of(function) for module in MODULES.values() for function in module.functions()]
    assert statistics.median(lengths) <= MEDIAN_MAX


def classes():
    return [n for module in MODULES.values() for n in ast.walk(module.tree) if isinstance(n, ast.ClassDef)]


def test_classes_are_short():
    assert [each.name for each in classes() if lines_of(each) > CLASS_LINES_MAX] == []


def test_constructors_take_few_parameters():
    wide = {
        each.name: len(parameters)
        for each in classes()
        for made in each.body
        if isinstance(made, ast.FunctionDef) and made.name == "__init__"
        if len(parameters := [*made.args.posonlyargs, *made.args.args[1:], *made.args.kwonlyargs])
        > PARAMETERS_MAX
    }
    assert not wide


def test_no_class_name_occurs_twice():
    counts = Counter(each.name for each in classes())
    assert not {name for name, count in counts.items() if count > 1}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_names_say_something(module):
    assert not NO_NAMES & set(module.name.split("."))
    classes = {node.name.lower() for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)}
    assert not NO_NAMES & classes


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_exception_from_the_rules_has_a_reason(path):
    bare = [
        f"{path.name}:{number}"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (found := EXCEPTION.search(line)) and not (found["codes"].strip(": ") and found["reason"])
    ]
    assert not bare


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_of_tests_are_short(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [name for name in names if name.startswith("test_") and len(name) > TEST_NAME_MAX]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_mocked_and_no_thread_sleeps(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    from_modules = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "unittest.mock" not in imported | from_modules
    if path.is_relative_to(DAEMON):
        assert "time.sleep" not in names
