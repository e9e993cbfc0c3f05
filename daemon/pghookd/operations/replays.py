"""The database calls of the command `replay`: count, start, progress, pause, resume and cancel.

All of them are SQL functions that any permitted role may call; the daemon does the work, whether or not it is watched.

Never here: the output (cli/replays.py), the selection of deliveries (sql/functions/replay_page.sql).
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from pghookd.operations.endpoints import ADMIN, needing
from pghookd.postgres.client import Session, connect, query
from pghookd.process.unix_user import unix_user
from pghookd.settings.schema import Settings

LOOK_EVERY_S: Final = 0.5
ACTS: Final = {  # by name, and the statement of each
    "pause": "pause_replay",
    "resume": "resume_replay",
    "cancel": "cancel_replay",
}
_SETTINGS: Final = {"statement_timeout": "30min", "TimeZone": "UTC"}


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """The deliveries to replay; a filter that is None or empty matches any.

    Attributes:
        event_ids: only these events.
        endpoint_id: only to this endpoint.
        site_id: only of this site.
        types: only of these types.
        since: from this time on, in a format of Postgres, or as an age: `2h`.
        until: before this time, in the same formats.
        states: dead, delivered, missed; empty selects dead.
        rate_per_s: deliveries a second; None for the usual rate.
    """

    event_ids: Sequence[int] = ()
    endpoint_id: int | None = None
    site_id: str | None = None
    types: Sequence[str] = ()
    since: str | None = None
    until: str | None = None
    states: Sequence[str] = ()
    rate_per_s: float | None = None

    def arguments(self) -> tuple[object, ...]:
        """Return the parameters of plan_replay and start_replay."""
        return (
            list(self.event_ids) or None,
            self.endpoint_id,
            self.site_id,
            list(self.types) or None,
            self.since,
            self.until,
            list(self.states) or ["dead"],
            self.rate_per_s,
        )


async def plan(settings: Settings, wish: Wish) -> dict[str, Any]:
    """Return the extent of a replay: deliveries, endpoints, rate_per_s, duration_s.

    Raises:
        DatabaseAway: if the database cannot be reached.
        DatabaseError: if the arguments are invalid (class 22), or the role lacks a privilege.
    """
    async with _session(settings) as session:
        row = await session.fetchrow(query("plan_replay"), *wish.arguments())
    if row is None:
        raise AssertionError("a function returns a row")
    rate = row["rate_per_s"]
    return {
        "deliveries": row["total"],
        "endpoints": row["endpoints"],
        "rate_per_s": rate,
        "duration_s": row["total"] / rate,
    }


async def start(settings: Settings, wish: Wish) -> int:
    """Start a replay and return its id."""
    async with _session(settings) as session:
        replay_id: int = await session.fetchval(query("start_replay"), *wish.arguments())
    return replay_id


async def follow(
    settings: Settings, replay_id: int, tell: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Report the progress of a replay until it no longer runs; return the last report."""
    async with _session(settings) as session:
        while True:
            row = await session.fetchrow(query("read_replay"), replay_id)
            told = dict(row or {"state": "unknown"})
            tell(told)
            if told["state"] != "running":
                return told
            await asyncio.sleep(LOOK_EVERY_S)


async def act(settings: Settings, what: str, replay_id: int) -> None:
    """Pause, resume or cancel a replay.

    Args:
        settings: for `database.url`.
        what: one of ACTS.
        replay_id: the replay.
    """
    async with _session(settings) as session:
        await session.fetchval(query(ACTS[what]), replay_id)


@asynccontextmanager
async def _session(settings: Settings) -> AsyncIterator[Session]:
    with needing(ADMIN):
        bounds = {**_SETTINGS, "webhooks.actor": unix_user()}
        session = await connect(settings.database.url.get_secret_value(), name="replay", settings=bounds)
        try:
            yield session
        finally:
            await session.close()
