"""Brings the schema `webhooks` up to date, and says what state it is in.

One session holds the migrations' advisory lock and applies them, so that the lock cannot outlive or be
outlived by the work. A schema of that name that is not ours, or ours and altered, is left alone.

Never here: the decision what is to be done (postgres/migration_plan.py), DDL (sql/migrations).
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

LOCK_CLASS: Final = 1_885_825_131  # of all our advisory locks
LOCK_KEY: Final = -1  # of this one
LOCK_WAIT_S: Final = 60.0
_LOCK_PAUSE_S: Final = 0.25
_MARKER: Final = "pghookd:"  # what the comment on our schema begins with
_SETTINGS: Final = {
    # DDL that waits for an open transaction makes producers queue behind it: better to give up and say so.
    "lock_timeout": "10s",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "60s",
    # Nobody's functions in a schema in front of pg_catalog are run with the rights of a migration.
    "search_path": "pg_catalog",
    "client_min_messages": "warning",
}
_PREPARE: Final = "select webhooks.prepare_days()"


class SchemaFault(Exception):  # noqa: N818 - it is a state of the schema, not a mistake of ours
    """The schema is missing, not ours, altered, or only for a later program; the sentences say which."""

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What stands in the database.

    Attributes:
        exists: there is a schema `webhooks`, and it is ours.
        plan: what it needs; with faults it must be left alone.
        version: the newest migration it has had; 0 for none.
    """

    exists: bool
    plan: MigrationPlan
    version: int

    @property
    def is_usable(self) -> bool:
        """The daemon may run on it: nothing wrong, nothing missing; newer is fine."""
        return self.exists and not self.plan.faults and not self.plan.pending


@dataclasses.dataclass(frozen=True, slots=True)
class Report:
    """What a run of `migrate` came to."""

    applied: tuple[Migration, ...]  # or to be applied, in a dry run
    version: int
    newer: tuple[int, ...]
    roles: bool


def bundled() -> Traversable:
    """Return the folder of SQL that this program brings."""
    return importlib.resources.files("pghookd").joinpath("sql")


def load(folder: Traversable | None = None) -> tuple[Migration, ...]:
    """Return the migrations in `folder`/migrations; None: the program's own.

    Raises:
        ValueError: the folder is not in order.
    """
    files = (folder or bundled()).joinpath("migrations").iterdir()
    return migration_plan.parse(
        {file.name: file.read_bytes() for file in files if file.name.endswith(".sql")}
    )


def script(folder: Traversable | None = None, *, roles: bool = False) -> str:
    """Return all of it as text for other tools; asks no database."""
    available = load(folder)
    closing = [_PREPARE] if any("function webhooks.prepare_days" in each.sql for each in available) else []
    text = migration_plan.script(available, closing=closing)
    return f"{text}\n{_roles(folder)}" if roles else text


def _roles(folder: Traversable | None) -> str:
    return (folder or bundled()).joinpath("roles.sql").read_text(encoding="utf-8")


def functions_of(role: str) -> tuple[str, ...]:
    """Return the names of the functions that roles.sql lets a role call, without the schema."""
    granted = re.findall(rf"grant execute on function([^;]*?)\bto {role};", _roles(None))
    return tuple(name for each in granted for name in re.findall(r"\bwebhooks\.(\w+)", each))


# Looking ----------------------------------------------------------------------------------------------------


async def look(
    session: Session, available: tuple[Migration, ...], daemon_version: str = __version__
) -> Found:
    """Say what stands in the database; changes nothing.

    Raises:
        DatabaseAway, DatabaseError: as of the session.
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
    """Apply what is missing, each migration in its transaction.

    Args:
        url: of the database; empty: libpq's PG* variables.
        dry_run: only report.
        roles: make the roles and their grants as well; repeatable.
        folder: of the SQL; None: the program's own.
        say: is told when something takes time.
        lock_wait_s: how long another `migrate` is waited for.

    Raises:
        DatabaseAway: it cannot be reached or was lost; what was applied until then stays.
        DatabaseError: Postgres refused a statement; its migration was rolled back.
        SchemaFault: the schema is to be left alone, or another `migrate` did not end in time.
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
    """Give a new schema its first partitions: until then an insert would fail."""
    if await session.fetchval("select to_regprocedure('webhooks.prepare_days(int)') is not null"):
        await session.execute(_PREPARE)


@asynccontextmanager
async def _locked(session: Session, say: Callable[[str], None], wait_s: float) -> AsyncIterator[None]:
    """Hold the advisory lock; the session's end frees it in any case.

    Tried again and again, not waited for: a waiter's snapshot would hold up what the other one may be doing.
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
