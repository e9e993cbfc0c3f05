"""Decides which functions, views and triggers a schema needs, and their order.

Each file of `sql/functions` and `sql/triggers` creates the function, view or trigger that it is named after, `create or
replace`. The schema stores the checksum of each file as it was applied, and the version of pghookd that applied it. A
file is applied again if its text has changed. A later version's text is left alone, so that an earlier program never
undoes an upgrade.

A trigger has a file of its own because creating it locks its table: a change of its function alone locks nothing. The
triggers come last, those of `events` last of all, so that a transaction that applies them holds the locks briefly.

Never here: running SQL, files.
"""

from __future__ import annotations

import dataclasses
import graphlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

from pghookd.postgres.migration_plan import is_at_least

CLOSE: Final = (
    "revoke all on all functions in schema webhooks from public"  # Postgres opens new functions to all
)
_NEEDS: Final = re.compile(r"^-- needs:(.*)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True, slots=True)
class SchemaFunction:
    """One file: a function with all its signatures, a view, or a trigger.

    Attributes:
        name: of the file, and of what it creates.
        sql: the text to run.
        sha256: its checksum.
        needs: names of those that must exist before it.
        signatures: number of functions that it creates; 0 for a view or a trigger.
        table: of a trigger, without the schema; None for a function or a view.
    """

    name: str
    sql: str = dataclasses.field(repr=False)
    sha256: str
    needs: tuple[str, ...]
    signatures: int
    table: str | None

    @property
    def file(self) -> str:
        """Return the path in the folder `sql`."""
        return f"{'triggers' if self.table else 'functions'}/{self.name}.sql"


@dataclasses.dataclass(frozen=True, slots=True)
class AppliedFunction:
    """One row of `webhooks.functions`, of a function, view or trigger that exists."""

    name: str
    sha256: str
    applied_by: str  # version of pghookd


@dataclasses.dataclass(frozen=True, slots=True)
class FunctionPlan:
    """The functions, views and triggers that a schema needs.

    Attributes:
        pending: to apply, in this order: new ones, changed ones, and those that a migration dropped.
        newer: names of those that a later program has applied; they are accepted.
    """

    pending: tuple[SchemaFunction, ...]
    newer: tuple[str, ...]


def parse(functions: Mapping[str, str], triggers: Mapping[str, str]) -> tuple[SchemaFunction, ...]:
    """Parse the files of the two folders, given as text by name; return them in an order that respects their needs.

    Raises:
        ValueError: a file does not create what its name says, two have one name, or the needs have no order.
    """
    if twice := sorted(functions.keys() & triggers.keys()):
        raise ValueError(f"both sql/functions and sql/triggers have a file {twice[0]}.sql")
    found = {name: _function(name, text) for name, text in sorted(functions.items())}
    found |= {name: _trigger(name, text) for name, text in sorted(triggers.items())}
    for each in found.values():
        for need in each.needs:
            if need not in found:
                raise ValueError(f"{each.file} needs {need}, which has no file")
    sorter = graphlib.TopologicalSorter({name: each.needs for name, each in found.items()})
    try:
        ordered = [found[name] for name in sorter.static_order()]
    except graphlib.CycleError as error:
        raise ValueError(f"functions need each other in a circle: {' -> '.join(error.args[1])}") from error
    return tuple(sorted(ordered, key=lambda each: (each.table is not None, each.table == "events")))


def _function(name: str, text: str) -> SchemaFunction:
    created = re.findall(
        rf"^create or replace (function|view) webhooks\.{re.escape(name)}\b", text, re.MULTILINE
    )
    if not created:
        raise ValueError(f"functions/{name}.sql does not create or replace webhooks.{name}")
    return SchemaFunction(name, text, _sha256(text), _needs(text), created.count("function"), None)


def _trigger(name: str, text: str) -> SchemaFunction:
    created = re.search(
        rf"^create or replace trigger {re.escape(name)}\b[^;]*? on webhooks\.(\w+)", text, re.MULTILINE
    )
    if not created:
        raise ValueError(f"triggers/{name}.sql does not create or replace a trigger {name}")
    return SchemaFunction(name, text, _sha256(text), _needs(text), 0, created[1])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _needs(text: str) -> tuple[str, ...]:
    needs = _NEEDS.search(text)
    return tuple(need.strip() for need in needs[1].split(",")) if needs else ()


def plan(
    available: Sequence[SchemaFunction],
    applied: Sequence[AppliedFunction],
    daemon_version: str,
    *,
    schema_is_newer: bool = False,
) -> FunctionPlan:
    """Compare the functions of this program with those of the schema.

    Args:
        available: the program's functions, from `parse`.
        applied: the rows of `webhooks.functions` whose function, view or trigger exists.
        daemon_version: this program's version.
        schema_is_newer: True if the schema has migrations that this program does not know: then all its functions are
            those of a later program, which may have dropped some.
    """
    ours = {each.name: each.sha256 for each in available}
    same = {each.name for each in applied if ours.get(each.name) == each.sha256}
    newer = {
        each.name
        for each in applied
        if each.name not in same and (schema_is_newer or not is_at_least(daemon_version, each.applied_by))
    }
    pending = () if schema_is_newer else tuple(each for each in available if each.name not in same | newer)
    return FunctionPlan(pending, tuple(sorted(newer)))


def script(functions: Sequence[SchemaFunction], daemon_version: str) -> str:
    """Return one text for psql and other tools: each function with its row in `webhooks.functions`."""
    rows = (
        f"-- {each.name}\n{each.sql.rstrip()}\n"
        "insert into webhooks.functions (name, sha256, applied_by)\n"
        f"values ('{each.name}', '{each.sha256}', '{daemon_version}');\n"
        for each in functions
    )
    return "\n".join([*rows, f"{CLOSE};\n"])
