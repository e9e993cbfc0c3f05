"""Each query is a statement in one file, each function, view and trigger has a file, migrations hold the tables."""

from __future__ import annotations

import ast
import re

import pytest
from tree import DAEMON, SQL, load

from pghookd.postgres import lock_keys
from pghookd.postgres.client import queries, texts
from pghookd.postgres.includes import expand

QUERIES = sorted((SQL / "queries").glob("*/*.sql"))
FUNCTIONS = sorted(path for folder in ("functions", "triggers") for path in (SQL / folder).glob("*.sql"))
FRAGMENTS = sorted((SQL / "fragments").glob("*.sql"))
MIGRATIONS = sorted((SQL / "migrations").glob("*.sql"))
FILES = [*QUERIES, *FUNCTIONS, *FRAGMENTS, *MIGRATIONS]
WIDTH = 120
WIDE_LINES_MAX = {
    "queries": 45,
    "functions": 78,
    "triggers": 0,
    "fragments": 0,
    "migrations": 28,
}  # wider ones; these may only fall
MODULES = load()
TEXTS = set().union(*(module.texts() for module in MODULES.values()))
STRINGS = re.compile(r"'(?:[^']|'')*'|\$(\w*)\$.*?\$\1\$", re.DOTALL)
COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
LOCK = re.compile(rf"\({lock_keys.CLASS}, (-?\d+)\)")
# Statements of ours in Python that cannot be files, by their module.
IN_PYTHON = {
    "pghookd.postgres.migration_plan": "rows of `migrate --sql`, which has no parameters",
    "pghookd.postgres.function_plan": "the same",
    "pghookd.cli.devtools.demo": "an example for people to type",
}


def read(path):
    return path.read_text(encoding="utf-8")


def bare(text):
    """Leave out comments and quoted text."""
    return STRINGS.sub("''", COMMENTS.sub("", text)).strip()


def head(path):
    """Return the comments that a file begins with, as one text."""
    lines = read(path).splitlines()
    end = next(n for n, line in enumerate([*lines, ""]) if not line.startswith("--"))
    return " ".join(line.removeprefix("--").strip() for line in lines[:end])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_says_what_it_is_for(path):
    assert len(head(path)) > len("a few words")
    assert read(path).endswith("\n")


@pytest.mark.parametrize("folder", WIDE_LINES_MAX)
def test_lines_are_not_wider_than_prose(folder):
    wide = [
        f"{path.name}:{number}"
        for path in sorted((SQL / folder).rglob("*.sql"))
        for number, line in enumerate(read(path).splitlines(), 1)
        if len(line) > WIDTH
    ]
    assert len(wide) <= WIDE_LINES_MAX[folder], wide


def test_the_package_holds_the_sql_by_its_link():
    assert (DAEMON / "pghookd" / "sql").resolve() == SQL.resolve()


# Queries ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_a_query_has_a_caller(path):
    assert path.stem in TEXTS, "no module names this query"


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_a_query_is_one_statement(path):
    statement = bare(queries()[path.stem])
    assert statement
    assert ";" not in statement.removesuffix(";")


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_parameters_are_numbered_without_a_gap(path):
    used = {int(number) for number in re.findall(r"\$(\d+)", bare(queries()[path.stem]))}
    assert used == set(range(1, len(used) + 1))


@pytest.mark.parametrize("path", QUERIES, ids=lambda path: path.stem)
def test_a_query_is_named_verb_and_noun(path):
    assert re.fullmatch(r"[a-z]+(?:_[a-z]+)+", path.stem)


def test_a_query_lies_in_a_room_and_has_a_name_of_its_own():
    rooms = {path.name for path in (DAEMON / "pghookd").iterdir() if path.is_dir()}
    assert {path.parent.name for path in QUERIES} <= rooms
    assert len({path.stem for path in QUERIES}) == len(QUERIES)


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_no_statement_of_ours_hides_in_python(module):
    """A file is prepared by a test, and found by those who change a table."""
    docs = {id(n.value) for n in ast.walk(module.tree) if isinstance(n, ast.Expr)}
    constants = (n for n in ast.walk(module.tree) if isinstance(n, ast.Constant) and id(n) not in docs)
    texts_of = [n.value for n in constants if isinstance(n.value, str)]
    statements = [
        text
        for text in texts_of
        if re.search(r"(?i)\b(?:from|into|update|join|select|analyze)\s+webhooks\.", text)
    ]
    assert bool(statements) == (module.name in IN_PYTHON), statements


# Fragments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.stem)
def test_a_fragment_is_shared(path):
    mark = re.compile(rf"^ *--include {path.stem}$", re.MULTILINE)
    assert sum(len(mark.findall(read(file))) for file in FILES) > 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_include_mark_is_a_line_by_itself(path):
    assert "--include" not in expand(read(path), texts(SQL / "fragments"))


# Functions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FUNCTIONS, ids=lambda path: path.stem)
def test_a_function_names_those_it_needs(path):
    text = expand(read(path), texts(SQL / "fragments"))
    code = re.sub(r"'(?:[^']|'')*'", "''", COMMENTS.sub("", text))
    used = set(re.findall(r"\bwebhooks\.(\w+)", code)) & {other.stem for other in FUNCTIONS} - {path.stem}
    needs = re.search(r"^-- needs: (.*)$", text, re.MULTILINE)
    assert (needs[1].split(", ") if needs else []) == sorted(used)


@pytest.mark.parametrize("path", FUNCTIONS, ids=lambda path: path.stem)
def test_a_file_of_functions_creates_nothing_else(path):
    kinds = {"functions": r"(?:function|view) webhooks\.", "triggers": "trigger "}
    own = rf"{kinds[path.parent.name]}{path.stem}\b"
    allowed = re.compile(rf"create or replace {own}|comment on {own}|$")
    statements = [each.strip() for each in bare(read(path)).split(";")]
    assert not [each for each in statements if not allowed.match(each)]


# Migrations ---------------------------------------------------------------------------------------------------------


def test_migrations_are_numbered_without_a_gap():
    assert [int(path.name[:4]) for path in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))
    assert all(re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", path.name) for path in MIGRATIONS)


@pytest.mark.parametrize("path", MIGRATIONS, ids=lambda path: path.stem)
def test_a_migration_creates_no_function(path):
    made = (
        r"create\s+(?:or\s+replace\s+)?(?:function|procedure|view|trigger)|comment\s+on\s+(?:function|view)"
    )
    assert not re.search(made, bare(read(path)), re.IGNORECASE)


# Locks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*QUERIES, *FUNCTIONS, *FRAGMENTS], ids=lambda path: path.stem)
def test_a_lock_is_named_in_the_head_of_its_file(path):
    keys = {int(key) for key in LOCK.findall(COMMENTS.sub("", read(path)))}
    named = re.findall(rf"Lock: (\w+) {LOCK.pattern}", head(path))
    assert {int(key) for _, key in named} == keys
    assert all(getattr(lock_keys, name) == int(key) for name, key in named)


def test_the_class_of_locks_is_written_once_in_python():
    written = [
        name
        for name, module in MODULES.items()
        if re.search(r"1_?885_?825_?131", module.path.read_text(encoding="utf-8"))
    ]
    assert written == ["pghookd.postgres.lock_keys"]
