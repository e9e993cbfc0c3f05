"""Decides which migrations bring a schema up to date, or why it must not be touched.

Migrations are files `NNNN_name.sql` that are never edited after release. The schema stores the checksum of each one
as it was applied. A schema newer than this program is accepted, unless a migration requires a later version of the
program (`-- min_daemon: X.Y.Z` in the head of the file).

Never here: running SQL, files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Final

_FILE_NAME: Final = re.compile(r"([0-9]{4})_([a-z0-9_]+)\.sql")
_MIN_DAEMON: Final = re.compile(r"^-- min_daemon:[ ]*(\S+)[ ]*$", re.MULTILINE)
_VERSION: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})*")


@dataclasses.dataclass(frozen=True, slots=True)
class Migration:
    """One migration file."""

    version: int
    name: str
    sql: str = dataclasses.field(repr=False)
    sha256: str
    min_daemon: str | None  # earlier versions must not use the schema; None if all may


@dataclasses.dataclass(frozen=True, slots=True)
class Applied:
    """One row of `webhooks.migrations`."""

    version: int
    name: str
    sha256: str
    min_daemon: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class MigrationPlan:
    """The migrations that a schema needs, or its faults.

    Attributes:
        pending: migrations to apply, in this order.
        newer: versions in the schema that this program does not know; they are accepted.
        faults: a sentence each; if there are any, no migration may be applied and the schema must not be used.
    """

    pending: tuple[Migration, ...]
    newer: tuple[int, ...]
    faults: tuple[str, ...]


def parse(files: Mapping[str, bytes]) -> tuple[Migration, ...]:
    """Parse the migrations of a folder, given as content by file name; return them in order.

    Raises:
        ValueError: a name is not NNNN_name.sql, a number is duplicate or missing, or a min_daemon is not a version.
    """
    found = sorted((_migration(*file) for file in files.items()), key=lambda each: each.version)
    versions = [each.version for each in found]
    if versions != list(range(1, len(found) + 1)):
        raise ValueError(f"migrations are numbered from 0001 without a gap, these are {versions}")
    return tuple(found)


def _migration(file_name: str, content: bytes) -> Migration:
    match = _FILE_NAME.fullmatch(file_name)
    if match is None:
        raise ValueError(f"{file_name} is not named as a migration, NNNN_name.sql")
    sql = content.decode("utf-8")
    wanted = _MIN_DAEMON.search(sql)
    if wanted and not _VERSION.fullmatch(wanted[1]):
        raise ValueError(f"{file_name}: min_daemon is {wanted[1]}, which is no version such as 1.2.3")
    checksum = hashlib.sha256(content).hexdigest()
    return Migration(int(match[1]), match[2], sql, checksum, wanted[1] if wanted else None)


def plan(available: Sequence[Migration], applied: Sequence[Applied], daemon_version: str) -> MigrationPlan:
    """Compare the migrations of this program with those applied to the schema.

    Args:
        available: the program's migrations, from `parse`.
        applied: all rows of `webhooks.migrations`.
        daemon_version: this program's version.
    """
    known = {each.version: each for each in available}
    had = {each.version for each in applied}
    newest = max(had, default=0)
    faults = [
        f"migration {_named(known[v])} is missing in the middle"
        for v in sorted(known)
        if v < newest and v not in had
    ]
    for row in applied:
        ours = known.get(row.version)
        if ours is not None and ours.sha256 != row.sha256:
            faults.append(f"migration {_named(ours)} was applied with another content (its checksum differs)")
        if row.min_daemon is not None and not is_at_least(daemon_version, row.min_daemon):
            faults.append(
                f"migration {row.version:04}_{row.name} needs pghookd {row.min_daemon} or later,"
                f" this is {daemon_version}"
            )
    pending = tuple(each for each in available if each.version > newest)
    return MigrationPlan(() if faults else pending, tuple(sorted(had - known.keys())), tuple(faults))


def _named(migration: Migration) -> str:
    return f"{migration.version:04}_{migration.name}"


def is_at_least(version: str, wanted: str) -> bool:
    """Return True if a version is at least `wanted`, by the leading numbers: 0.2.0.dev1 counts as 0.2.0."""
    mine, least = _numbers(version), _numbers(wanted)
    width = max(len(mine), len(least))
    return mine + (0,) * (width - len(mine)) >= least + (0,) * (width - len(least))


def _numbers(version: str) -> tuple[int, ...]:
    match = _VERSION.match(version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def script(migrations: Sequence[Migration]) -> str:
    """Return one text for psql and other tools: each migration with its row in `webhooks.migrations`."""
    return "\n".join(f"-- {_named(each)}\n{each.sql.rstrip()}\n{_row(each)}\n" for each in migrations)


def _row(migration: Migration) -> str:
    # Names and versions match the patterns above, and the checksum is hexadecimal: nothing needs quoting.
    least = "null" if migration.min_daemon is None else f"'{migration.min_daemon}'"
    return (
        "insert into webhooks.migrations (version, name, sha256, min_daemon)\n"
        f"values ({migration.version}, '{migration.name}', '{migration.sha256}', {least});"
    )
