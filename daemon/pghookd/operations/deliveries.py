"""The database calls of `delivery list` and `event unclaimed`: the deliveries of a site, and events that made none.

Never here: the output (cli/deliveries.py), what a state means (sql/functions/site_deliveries.sql).
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from pghookd.operations.endpoints import READER, needing
from pghookd.postgres.client import Session, connect, query
from pghookd.settings.schema import Settings

_BOUNDS: Final = {"statement_timeout": "30s"}
_TIMES: Final = ("created_at", "last_attempt_at", "next_attempt_at", "newest_at")
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """Which deliveries of a site; a filter that is None matches any.

    Attributes:
        site_id: the site.
        endpoint_id: to this endpoint.
        state: delivered, pending or failed.
        type: of this type.
        subject: of this subject.
        since: of events from this time on.
        before: the cursor of the last delivery seen; None for the newest ones.
        most: how many, 1 to 1,000.
    """

    site_id: str
    endpoint_id: int | None = None
    state: str | None = None
    type: str | None = None
    subject: str | None = None
    since: dt.datetime | None = None
    before: str | None = None
    most: int = 20


async def list_deliveries(settings: Settings, wanted: Wanted) -> tuple[list[dict[str, Any]], str | None]:
    """Return deliveries, newest first, with times as datetimes in UTC, and for an empty list the reason as a sentence.

    Raises:
        DatabaseAway: the database cannot be reached.
        DatabaseError: the cursor is invalid (class 22), or the role lacks a privilege.
    """
    since_us = None if wanted.since is None else (wanted.since - _EPOCH) // _MICROSECOND
    filters = (wanted.site_id, wanted.endpoint_id, wanted.state, wanted.type, wanted.subject)
    async with _session(settings) as session:
        rows = await session.fetch(
            query("list_deliveries"), *filters, since_us, None, wanted.before, wanted.most
        )
        if rows:
            return [_told(dict(row)) for row in rows], None
        about = (wanted.site_id, wanted.endpoint_id, wanted.subject)
        row = await session.fetchrow(query("why_no_deliveries"), *about)
    if row is None:
        raise AssertionError("a statement without FROM returns a row")
    return [], _why_none(_told(dict(row)), wanted)


async def list_unclaimed(settings: Settings, days: int, most: int) -> list[dict[str, Any]]:
    """Return the counts of events that nobody took, newest day first, with days and times as text.

    Args:
        settings: for `database.url`.
        days: how many days, today included.
        most: rows.
    """
    async with _session(settings) as session:
        rows = await session.fetch(query("list_unclaimed"), days, most)
    return [
        {
            **row,
            "day": row["day"].isoformat(),
            **{name: _time(row[name]).isoformat() for name in ("first_at", "last_at")},
        }
        for row in map(dict, rows)
    ]


@asynccontextmanager
async def _session(settings: Settings) -> AsyncIterator[Session]:
    with needing(READER):
        session = await connect(
            settings.database.url.get_secret_value(), name="delivery", settings=_BOUNDS, writable=False
        )
        try:
            yield session
        finally:
            await session.close()


def _time(us: int) -> dt.datetime:
    return _EPOCH + us * _MICROSECOND


def _told(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: _time(row[name]) for name in _TIMES if row.get(name) is not None}


def _why_none(row: dict[str, Any], wanted: Wanted) -> str:
    site = f"site {wanted.site_id}"
    reasons = {
        f"there is no {site}": not row["has_site"],
        f"{site} has no endpoint": not row["endpoints"],
        f"{site} has no endpoint {wanted.endpoint_id}": wanted.endpoint_id is not None
        and not row["has_endpoint"],
        f"{site} has no event with the subject {wanted.subject}": wanted.subject is not None
        and not row["has_subject"],
        _nothing_since(row, wanted): wanted.since is not None and row["newest_at"] is not None,
        "there are no older ones": wanted.before is not None,
        f"{site} has no such delivery": any((wanted.state, wanted.type, wanted.subject, wanted.endpoint_id)),
    }
    return next((reason for reason, holds in reasons.items() if holds), f"{site} has no delivery")


def _nothing_since(row: dict[str, Any], wanted: Wanted) -> str:
    if wanted.since is None or row["newest_at"] is None:
        return ""
    last = row["newest_at"].astimezone(wanted.since.tzinfo)
    return f"nothing since {wanted.since:%Y-%m-%d %H:%M}; the last one before is of {last:%Y-%m-%d %H:%M}"
