"""Brings the schema `webhooks` up to date, and reports its state.

One session holds the migrations' advisory lock and applies them, so that lock and work always end together. A schema
of that name that is not pghookd's, or was altered, is not touched.

Never here: the decision which migrations to apply (postgres/migration_plan.py), DDL (sql/migrations).
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
from pghookd.postgres import client, migration_plan
from pghookd.postgres.client import Session
from pghookd.postgres.migration_plan import Applied, Migration, MigrationPlan

LOCK_CLASS: Final = 1_885_825_131  # shared by all advisory locks of pghookd
LOCK_KEY: Final = -1  # key of this lock
LOCK_WAIT_S: Final = 60.0
_LOCK_PAUSE_S: Final = 0.25
_MARKER: Final = "pghookd:"  # prefix of the comment on pghookd's schema
_SETTINGS: Final = {
    # DDL that waits for an open transaction makes producers queue behind it: better to give up and report it.
    "lock_timeout": "10s",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "60s",
    # No function in a schema before pg_catalog may run with the rights of a migration.
    "search_path": "pg_catalog",
    "client_min_messages": "warning",
}
_PREPARE: Final = "select webhooks.prepare_days()"


class SchemaFault(Exception):  # noqa: N818 - a state of the schema, not a programming error
    """The schema is missing, not pghookd's, altered, or needs a later version; each fault is a sentence."""

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """The state of the schema in the database.

    Attributes:
        exists: True if there is a schema `webhooks` and it is pghookd's.
        plan: the migrations it needs; if the plan has faults, the schema must not be touched.
        version: number of the newest migration applied; 0 if none.
    """

    exists: bool
    plan: MigrationPlan
    version: int

    @property
    def is_usable(self) -> bool:
        """Return True if the daemon may run on it: no faults and nothing pending; it may be newer."""
        return self.exists and not self.plan.faults and not self.plan.pending


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """The result of a run of `migrate`."""

    applied: tuple[Migration, ...]  # in a dry run, those to be applied
    version: int
    newer: tuple[int, ...]
    roles: bool


def bundled() -> Traversable:
    """Return the folder of the SQL that is installed with this program."""
    return importlib.resources.files("pghookd").joinpath("sql")


def load(folder: Traversable | None = None) -> tuple[Migration, ...]:
    """Return the migrations in `folder`/migrations; the program's own if `folder` is None.

    Raises:
        ValueError: a file in the folder is invalid or missing.
    """
    files = (folder or bundled()).joinpath("migrations").iterdir()
    return migration_plan.parse(
        {file.name: file.read_bytes() for file in files if file.name.endswith(".sql")}
    )


def script(folder: Traversable | None = None, *, roles: bool = False) -> str:
    """Return all migrations as one text for other tools, without a database."""
    available = load(folder)
    closing = [_PREPARE] if any("function webhooks.prepare_days" in each.sql for each in available) else []
    text = migration_plan.script(available, closing=closing)
    return f"{text}\n{_roles(folder)}" if roles else text


def _roles(folder: Traversable | None) -> str:
    return (folder or bundled()).joinpath("roles.sql").read_text(encoding="utf-8")


def functions_of(role: str) -> tuple[str, ...]:
    """Return the names, without the schema, of the functions that roles.sql allows a role to call."""
    granted = re.findall(rf"grant execute on function([^;]*?)\bto {role};", _roles(None))
    return tuple(name for each in granted for name in re.findall(r"\bwebhooks\.(\w+)", each))


# Looking ----------------------------------------------------------------------------------------------------


async def look(
    session: Session, available: tuple[Migration, ...], daemon_version: str = __version__
) -> Found:
    """Return the state of the schema in the database, without changing it.

    Raises:
        DatabaseAway, DatabaseError: as raised by the session.
    """
    row = await session.fetchrow(
        """select obj_description(n.oid, 'pg_namespace') as comment,
             exists (select from pg_class where relnamespace = n.oid and relname = 'migrations') as has_table
           from pg_namespace n where n.nspname = 'webhooks'"""
    )
    if row is None:
        return Found(exists=False, plan=migration_plan.plan(available, (), daemon_version), version=0)
    if not (row["comment"] or "").startswith(_MARKER):
        return _foreign()
    if not row["has_table"]:
        return Found(
            exists=True,
            plan=MigrationPlan((), (), ("the schema webhooks has lost its table migrations",)),
            version=0,
        )
    rows = await session.fetch(
        "select version, name, sha256, min_daemon from webhooks.migrations order by version"
    )
    applied = [Applied(r["version"], r["name"], r["sha256"], r["min_daemon"]) for r in rows]
    plan = migration_plan.plan(available, applied, daemon_version)
    return Found(exists=True, plan=plan, version=max((each.version for each in applied), default=0))


def _foreign() -> Found:
    fault = (
        "the schema webhooks in this database is not pghookd's (no comment on it begins with 'pghookd:');"
        " rename it or use another database"
    )
    return Found(exists=False, plan=MigrationPlan((), (), (fault,)), version=0)


# Acting -----------------------------------------------------------------------------------------------------


async def migrate(
    url: str,
    *,
    dry_run: bool = False,
    roles: bool = False,
    folder: Traversable | None = None,
    say: Callable[[str], None] = lambda _text: None,
    lock_wait_s: float = LOCK_WAIT_S,
) -> Report:
    """Apply the pending migrations, each in its own transaction.

    Args:
        url: of the database; if empty, libpq's PG* variables apply.
        dry_run: True to report only.
        roles: True to create the roles and their grants as well; may be repeated.
        folder: of the SQL; None for the program's own.
        say: called with a message when it has to wait.
        lock_wait_s: maximum wait for another `migrate`, seconds.

    Raises:
        DatabaseAway: the database cannot be reached or was lost; migrations applied before stay.
        DatabaseError: Postgres rejected a statement; its migration was rolled back.
        SchemaFault: the schema must not be touched, or another `migrate` did not end in time.
    """
    available = load(folder)
    session = await client.connect(url, name="migrate", settings=_SETTINGS)
    try:
        if dry_run:
            return _report(await _looked_at(session, available), roles=roles)
        async with _locked(session, say, lock_wait_s):
            found = await _looked_at(session, available)
            for each in found.plan.pending:
                await _apply(session, each)
            await _prepare_days(session)
            if roles:
                await session.execute(_roles(folder))
            return _report(found, roles=roles)
    finally:
        await session.close()


async def _looked_at(session: Session, available: tuple[Migration, ...]) -> Found:
    found = await look(session, available)
    if found.plan.faults:
        raise SchemaFault(*found.plan.faults)
    return found


def _report(found: Found, *, roles: bool) -> Report:
    pending = found.plan.pending
    return Report(pending, pending[-1].version if pending else found.version, found.plan.newer, roles)


async def _apply(session: Session, migration: Migration) -> None:
    async with session.transaction():
        await session.execute(migration.sql)
        await session.execute(
            "insert into webhooks.migrations (version, name, sha256, min_daemon) values ($1, $2, $3, $4)",
            migration.version,
            migration.name,
            migration.sha256,
            migration.min_daemon,
        )


async def _prepare_days(session: Session) -> None:
    """Create the first partitions of a new schema, without which an insert would fail."""
    if await session.fetchval("select to_regprocedure('webhooks.prepare_days(int)') is not null"):
        await session.execute(_PREPARE)


@asynccontextmanager
async def _locked(session: Session, say: Callable[[str], None], wait_s: float) -> AsyncIterator[None]:
    """Hold the advisory lock; the end of the session releases it in any case.

    Polls the lock instead of waiting for it, because a waiter's snapshot could block the work of the other `migrate`.
    """
    deadline = time.monotonic() + wait_s
    told = False
    while not await session.fetchval("select pg_try_advisory_lock($1, $2)", LOCK_CLASS, LOCK_KEY):
        holder = await session.fetchval(_HOLDER, LOCK_CLASS, LOCK_KEY)
        if time.monotonic() >= deadline:
            raise SchemaFault(f"another migrate (backend {holder}) has not ended within {wait_s:g} s")
        if not told:
            say(f"another migrate (backend {holder}) is at work: waiting up to {wait_s:g} s")
            told = True
        await asyncio.sleep(_LOCK_PAUSE_S)
    yield
    await session.execute("select pg_advisory_unlock($1, $2)", LOCK_CLASS, LOCK_KEY)


_HOLDER: Final = """
select pid from pg_locks
where locktype = 'advisory' and granted and objsubid = 2
  and database = (select oid from pg_database where datname = current_database())
  and classid = $1::int::bigint::oid and objid = ($2::int::bigint & 4294967295)::oid
"""
