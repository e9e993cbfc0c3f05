"""Acts as the owner of the schema for a while: for what only the owner of a table may do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pghookd.postgres.client import Session, query


@asynccontextmanager
async def as_owner(session: Session) -> AsyncIterator[None]:
    """Run the statements inside as the owner of the schema, if the session's role is a member of it."""
    await session.execute(query("act_as_owner"))
    try:
        yield
    finally:
        if not session.closed:
            await session.execute("reset role")
