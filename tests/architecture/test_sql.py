"""Each query is one statement in one file, with a header, and somebody calls it."""

from __future__ import annotations

import re

import pytest
from tree import DAEMON, SQL, load

QUERIES = sorted((SQL / "queries").glob("*/*.sql"))
MIGRATIONS = sorted((SQL / "migrations").glob("*.sql"))
WIDTH = 120
# Lines of queries that are wider; the number may only fall. A migration stays as it was applied.
WIDE_LINES_MAX = 103
TEXTS = set().union(*(module.texts() for module in load().values()))
STRINGS = re.compile(r"'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$", re.DOTALL)
COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)


def bare(text):
    """Leave out comments and quoted text."""
    return STRINGS.sub("''", COMMENTS.sub("", text)).strip()


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_a_query_has_a_caller(path):
    assert path.stem in TEXTS, "no module names this query"


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_a_query_says_what_it_is_for(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("-- ")
    assert len(first) > len("-- a few words")


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_a_query_is_one_statement(path):
    statement = bare(path.read_text(encoding="utf-8"))
    assert statement
    assert ";" not in statement.removesuffix(";")


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_parameters_are_numbered_without_a_gap(path):
    text = path.read_text(encoding="utf-8")
    used = {int(number) for number in re.findall(r"\$(\d+)", bare(text))}
    assert used == set(range(1, len(used) + 1))


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_a_query_is_named_verb_and_noun(path):
    assert re.fullmatch(r"[a-z]+(?:_[a-z]+)+", path.stem)


def test_lines_of_queries_are_not_wider_than_prose():
    wide = [
        f"{path.name}:{number}"
        for path in QUERIES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > WIDTH
    ]
    assert len(wide) <= WIDE_LINES_MAX, wide


def test_migrations_are_numbered_without_a_gap():
    assert [int(path.name[:4]) for path in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))
    assert all(re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", path.name) for path in MIGRATIONS)


def test_the_package_holds_the_sql_by_its_link():
    assert (DAEMON / "pghookd" / "sql").resolve() == SQL.resolve()
