"""Brings the schema `webhooks` up to date, and reports its state.

One session holds the migrations' advisory lock and applies the pending migrations, then the pending functions, in one
transaction: nobody sees a function missing, or one that does not fit the tables. The transaction waits only briefly for
a table that is in use, since producers queue behind it; then it is rolled back and tried again. A schema of that name
that is not pghookd's, or was altered, is not touched.

Never here: the decision what to apply (postgres/migration_plan.py, postgres/function_plan.py), DDL (sql/migrations,
sql/functions, sql/triggers).
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.resources
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.resources.abc import Traversable
from typing import Final

from pghookd import __version__
from pghookd.postgres import client, function_plan, lock_keys, migration_plan
from pghookd.postgres.client import DatabaseError, Session, query
from pghookd.postgres.function_plan import AppliedFunction, FunctionPlan, SchemaFunction
from pghookd.postgres.includes import expand
from pghookd.postgres.migration_plan import Applied, Migration, MigrationPlan
from pghookd.postgres.owner import as_owner

LOCK_WAIT_S: Final = 60.0
_LOCK_PAUSE_S: Final = 0.25
TABLE_WAIT_S: Final = 60.0
_TABLE_PAUSE_S: Final = 1.0  # producers queue behind each try for lock_timeout
_MARKER: Final = "pghookd:"  # prefix of the comment on pghookd's schema
_SETTINGS: Final = {
    "lock_timeout": "200ms",  # DDL that waits for an open transaction makes producers queue behind it
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "60s",
    # No function in a schema before pg_catalog may run with the rights of a migration.
    "search_path": "pg_catalog",
    "client_min_messages": "warning",
}
# invalid_function_definition, invalid_table_definition, wrong_object_type: `create or replace` changes no signature.
_IRREPLACEABLE: Final = frozenset({"42P13", "42P16", "42809"})


class SchemaFault(Exception):  # noqa: N818 - a state of the schema, not a programming error
    """The schema is missing, not pghookd's, altered, or needs a later version; each fault is a sentence."""

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclasses.dataclass(frozen=True, slots=True)
class SchemaFiles:
    """The SQL that makes the schema."""

    migrations: tuple[Migration, ...]
    functions: tuple[SchemaFunction, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """The state of the schema in the database.

    Attributes:
        exists: True if there is a schema `webhooks` and it is pghookd's.
        plan: the migrations it needs; if the plan has faults, the schema must not be touched.
        functions: the functions and views it needs.
        version: number of the newest migration applied; 0 if none.
    """

    exists: bool
    plan: MigrationPlan
    functions: FunctionPlan
    version: int

    @property
    def is_usable(self) -> bool:
        """Return True if the daemon may run on it: no faults and nothing pending; it may be newer."""
        return self.exists and not (self.plan.faults or self.plan.pending or self.functions.pending)


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The result of a run of `migrate`; in a dry run, the result that it would have."""

    applied: tuple[Migration, ...]
    functions: tuple[SchemaFunction, ...]
    version: int
    newer: tuple[int, ...]
    roles: bool


def bundled() -> Traversable:
    """Return the folder of the SQL that is installed with this program."""
    return importlib.resources.files("pghookd").joinpath("sql")


def load(folder: Traversable | None = None) -> SchemaFiles:
    """Return the migrations and functions in a folder; the program's own if `folder` is None.

    Raises:
        ValueError: a file in the folder is invalid or missing.
    """
    sql = folder or bundled()
    files = sql.joinpath("migrations").iterdir()
    migrations = migration_plan.parse(
        {file.name: file.read_bytes() for file in files if file.name.endswith(".sql")}
    )
    fragments = client.texts(sql.joinpath("fragments"))
    functions = {
        name: expand(text, fragments) for name, text in client.texts(sql.joinpath("functions")).items()
    }
    triggers = client.texts(sql.joinpath("triggers"))
    return SchemaFiles(migrations, function_plan.parse(functions, triggers))


def script(folder: Traversable | None = None, *, roles: bool = False) -> str:
    """Return all migrations and functions as one text for other tools, without a database."""
    available = load(folder)
    parts = [
        f"-- The schema webhooks as pghookd {__version__} makes it, for a database without it.\nbegin;\n",
        migration_plan.script(available.migrations),
        function_plan.script(available.functions, __version__),
        f"commit;\n\n{query('prepare_days').rstrip()};\n",
    ]
    return "\n".join([*parts, _roles(folder)] if roles else parts)


def _roles(folder: Traversable | None) -> str:
    return (folder or bundled()).joinpath("roles.sql").read_text(encoding="utf-8")


def functions_of(role: str) -> tuple[str, ...]:
    """Return the names, without the schema, of the functions that roles.sql allows a role to call."""
    granted = re.findall(rf"grant execute on function([^;]*?)\bto {role};", _roles(None))
    return tuple(name for each in granted for name in re.findall(r"\bwebhooks\.(\w+)", each))


# Looking ----------------------------------------------------------------------------------------------------


async def look(session: Session, available: SchemaFiles, daemon_version: str = __version__) -> Found:
    """Return the state of the schema in the database, without changing it.

    Raises:
        DatabaseAway, DatabaseError: as raised by the session.
    """
    row = await session.fetchrow(query("find_schema"))
    if row is None:
        return Found(
            exists=False,
            plan=migration_plan.plan(available.migrations, (), daemon_version),
            functions=function_plan.plan(available.functions, (), daemon_version),
            version=0,
        )
    if not (row["comment"] or "").startswith(_MARKER):
        return _faulty(
            "the schema webhooks in this database is not pghookd's (no comment on it begins with 'pghookd:');"
            " rename it or use another database",
            exists=False,
        )
    if not row["has_migrations"]:
        return _faulty("the schema webhooks has lost its table migrations")
    rows = await session.fetch(query("read_migrations"))
    applied = [Applied(r["version"], r["name"], r["sha256"], r["min_daemon"]) for r in rows]
    plan = migration_plan.plan(available.migrations, applied, daemon_version)
    if plan.faults:
        return _faulty(*plan.faults)
    if not row["has_functions"]:
        return _faulty("the schema webhooks has lost its table functions")
    there = [AppliedFunction(**r) for r in await session.fetch(query("read_functions"))]
    functions = function_plan.plan(
        available.functions, there, daemon_version, schema_is_newer=bool(plan.newer)
    )
    version = max((each.version for each in applied), default=0)
    return Found(exists=True, plan=plan, functions=functions, version=version)


def _faulty(*faults: str, exists: bool = True) -> Found:
    return Found(exists=exists, plan=MigrationPlan((), (), faults), functions=FunctionPlan((), ()), version=0)


# Acting -----------------------------------------------------------------------------------------------------


async def migrate(
    url: str,
    *,
    dry_run: bool = False,
    roles: bool = False,
    folder: Traversable | None = None,
    say: Callable[[str], None] = lambda _text: None,
    lock_wait_s: float = LOCK_WAIT_S,
    table_wait_s: float = TABLE_WAIT_S,
) -> Report:
    """Apply the pending migrations and functions in one transaction.

    Args:
        url: of the database; if empty, libpq's PG* variables apply.
        dry_run: True to report only; it does not foresee which functions a pending migration drops.
        roles: True to create the roles and their grants as well; may be repeated.
        folder: of the SQL; None for the program's own.
        say: called with a message when it has to wait.
        lock_wait_s: maximum wait for another `migrate`, seconds.
        table_wait_s: how long to try while a table is in use, seconds.

    Raises:
        DatabaseAway: the database cannot be reached or was lost.
        DatabaseError: Postgres rejected a statement; nothing was applied.
        SchemaFault: the schema must not be touched, a function has another signature than before, a table was in
            use all the time, or another `migrate` did not end in time.
    """
    available = load(folder)
    session = await client.connect(url, name="migrate", settings=_SETTINGS)
    try:
        if dry_run:
            found = await _looked_at(session, available)
            return _report(found, found.functions.pending, roles=roles)
        async with _locked(session, say, lock_wait_s):
            found = await _looked_at(session, available)
            async with as_owner(session):
                functions = await _apply_patiently(session, available, found, say, table_wait_s)
            await session.execute(
                query("prepare_days")
            )  # by itself: it waits for transactions with locks on events
            if roles:
                await session.execute(_roles(folder))
            return _report(found, functions, roles=roles)
    finally:
        await session.close()


async def _looked_at(session: Session, available: SchemaFiles) -> Found:
    found = await look(session, available)
    if found.plan.faults:
        raise SchemaFault(*found.plan.faults)
    return found


def _report(found: Found, functions: tuple[SchemaFunction, ...], *, roles: bool) -> Report:
    pending = found.plan.pending
    version = pending[-1].version if pending else found.version
    return Report(pending, functions, version, found.plan.newer, roles)


async def _apply_patiently(
    session: Session, available: SchemaFiles, found: Found, say: Callable[[str], None], wait_s: float
) -> tuple[SchemaFunction, ...]:
    """Apply all that is pending in one transaction; begin again while a table is in use.

    Raises:
        SchemaFault: a table was in use all the time.
    """
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        try:
            async with session.transaction():
                return await _apply_all(session, available, found)
        except DatabaseError as error:
            if not error.is_about_a_lock:
                raise
            if time.monotonic() >= deadline:
                raise SchemaFault(
                    f"open transactions have kept a table in use for {wait_s:g} s; end them and try again"
                ) from error
        if not told:
            say(f"open transactions keep a table in use: trying again for up to {wait_s:g} s")
            told = True
        await asyncio.sleep(_TABLE_PAUSE_S)


async def _apply_all(session: Session, available: SchemaFiles, found: Found) -> tuple[SchemaFunction, ...]:
    """Apply the pending migrations, then the pending functions; return the functions."""
    for migration in found.plan.pending:
        await session.execute(migration.sql)
        await session.execute(
            query("note_migration"), migration.version, migration.name, migration.sha256, migration.min_daemon
        )
    functions = (await _looked_at(session, available)).functions.pending  # and those that were dropped
    for function in functions:
        await _replace(session, function)
        await session.execute(query("note_function"), function.name, function.sha256, __version__)
    if functions:
        await session.execute(function_plan.CLOSE)
    return functions


async def _replace(session: Session, function: SchemaFunction) -> None:
    """Create a function, view or trigger, or replace it; grants and the objects that depend on it stay.

    Raises:
        SchemaFault: the one in the database has another signature.
    """
    remedy = "drop the old one in a migration"
    try:
        await session.execute(function.sql)
    except DatabaseError as error:
        if error.sqlstate not in _IRREPLACEABLE:
            raise
        raise SchemaFault(
            f"{function.file} cannot replace webhooks.{function.name}: {error}; {remedy}"
        ) from error
    if await session.fetchval(query("count_signatures"), function.name) != function.signatures:
        raise SchemaFault(
            f"webhooks.{function.name} exists with a signature that {function.file} does not have: {remedy}"
        )


@asynccontextmanager
async def _locked(session: Session, say: Callable[[str], None], wait_s: float) -> AsyncIterator[None]:
    """Hold the advisory lock; the end of the session releases it in any case.

    Polls the lock instead of waiting for it, because a waiter's snapshot could block the work of the other `migrate`.
    """
    deadline = time.monotonic() + wait_s
    told = False
    while not await session.fetchval(lock_keys.TRY, lock_keys.MIGRATE):
        holder = await session.fetchval(query("find_lock_holder"), lock_keys.CLASS, lock_keys.MIGRATE)
        if time.monotonic() >= deadline:
            raise SchemaFault(f"another migrate (backend {holder}) has not ended within {wait_s:g} s")
        if not told:
            say(f"another migrate (backend {holder}) is at work: waiting up to {wait_s:g} s")
            told = True
        await asyncio.sleep(_LOCK_PAUSE_S)
    yield
    await session.execute(lock_keys.RELEASE, lock_keys.MIGRATE)
