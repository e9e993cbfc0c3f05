"""The database calls of `storage` and `archive`: what each day takes, why it is kept, and when it goes.

Never here: the output (cli/storage.py), the removal of days (runtime/upkeep/retention.py).
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from pghookd.model.day import date_of
from pghookd.operations.endpoints import ADMIN, needing
from pghookd.operations.forecast import day_reached, growth
from pghookd.postgres.client import Session, connect, query
from pghookd.postgres.owner import as_owner
from pghookd.process.unix_user import unix_user
from pghookd.settings.schema import Settings

_SETTINGS: Final = {"statement_timeout": "5min", "lock_timeout": "2s", "TimeZone": "UTC"}
_BYTES: Final = ("event_bytes", "attempt_bytes", "dead_bytes", "index_bytes")


async def storage(settings: Settings, *, size: int | None) -> dict[str, Any]:
    """Return what the log takes, day by day, and when it reaches a size.

    Args:
        settings: for `database.url` and `retention`.
        size: bytes that the database may take; None for the disk that it is on, if that can be seen from here.

    Returns:
        days, each with its date, rows, bytes, kept_by and leaves_on; database_bytes; daily_bytes; limit_bytes and
        full_on, None if unknown or not foreseen.

    Raises:
        DatabaseAway, DatabaseError: as raised by the session.
    """
    async with _session(settings) as session:
        rows = await session.fetch(query("read_storage"), "webhooks")
        whole = await session.fetchrow(query("measure_database"))
        address = session.address
    if whole is None:
        raise AssertionError("a statement without FROM returns a row")
    today, keep = whole["today"], settings.retention.days
    sizes = {row["day"]: sum(row[name] for name in _BYTES) for row in rows if row["day"] <= today}
    limit = size or _room(address, whole["data_directory"], whole["bytes"])
    full = limit and day_reached(sizes, today, total=whole["bytes"], limit=limit, keep_days=keep)
    return {
        "days": [_told(row, today, keep) for row in rows if row["day"] <= today],
        "database_bytes": whole["bytes"],
        "daily_bytes": round(growth(sizes, today)),
        "limit_bytes": limit,
        "full_on": date_of(full) if full else None,
    }


def _told(row: Any, today: int, keep_days: int) -> dict[str, Any]:  # noqa: ANN401 - a row of any driver
    leaves = row["day"] + keep_days + 1
    return {
        **{name: row[name] for name in ("events", "attempts", *_BYTES)},
        "date": date_of(row["day"]),
        "kept_by": list(row["kept_by"]) if keep_days and leaves <= today else [],
        "leaves_on": date_of(leaves) if keep_days else None,
    }


def _room(address: str, data_directory: str | None, used: int) -> int | None:
    """Return the bytes that the database may take on its disk; None if the disk is not seen from here."""
    is_here = address.startswith(("/", "127.0.0.1:", "::1:"))
    if not (is_here and data_directory and Path(data_directory).exists()):
        return None
    return used + shutil.disk_usage(data_directory).free


# The archive ------------------------------------------------------------------------------------------------


async def archive(settings: Settings) -> list[dict[str, Any]]:
    """Return the days in the archive, oldest first: date, rows and bytes."""
    async with _session(settings) as session:
        rows = await session.fetch(query("read_storage"), "webhooks_archive")
    return [
        {"date": date_of(row["day"]), **{name: row[name] for name in ("events", "attempts", *_BYTES)}}
        for row in rows
    ]


async def drop_archived(settings: Settings, day: int) -> bool:
    """Drop a day of the archive; return False if it is not there.

    Args:
        settings: for `database.url`.
        day: as `webhooks.day_of()` counts days.
    """
    async with _session(settings) as session, as_owner(session), session.transaction():
        names = [row["name"] for row in await session.fetch(query("read_archive"), day)]
        for name in names:
            await session.execute(query("drop_archived").format(table=name.partition("_")[0], day=day))
        if names:
            await session.execute(query("note_archive_dropped"), day)
    return bool(names)


@asynccontextmanager
async def _session(settings: Settings) -> AsyncIterator[Session]:
    with needing(ADMIN):
        bounds = {**_SETTINGS, "webhooks.actor": unix_user()}
        session = await connect(settings.database.url.get_secret_value(), name="storage", settings=bounds)
        try:
            yield session
        finally:
            await session.close()
