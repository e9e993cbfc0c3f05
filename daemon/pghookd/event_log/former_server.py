"""Asks the former addresses of the database whether it still runs there: if it does, one of the two is a copy.

Each address gets one login and one query, all at once and within a bounded time. The login is that of `database.url`;
it is not logged.

Never here: which addresses to ask, and what their answers mean (event_log/identity.py).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Final

from pghookd.event_log import identity
from pghookd.event_log.identity import Answer, Here, ServerIdentity
from pghookd.event_log.rows import server_of
from pghookd.model.suspect import Stay
from pghookd.postgres.client import DatabaseAway, DatabaseError, connect, query

ASK_WITHIN_S: Final = 2.0  # shorter than a lease, since the owner's session is silent meanwhile
_NO_SUCH_DATABASE: Final = "3D000"
_TAKES_NO_SESSIONS: Final = "57P03"
_NO_POSTGRES: Final = "08"  # a class: the connection broke, or the peer speaks another protocol


async def ask(
    url: str, here: Here, server: ServerIdentity, stays: Sequence[Stay], *, within_s: float = ASK_WITHIN_S
) -> dict[str, Answer]:
    """Return the answer of each address that `identity.to_ask` names.

    Args:
        url: `database.url`; its role and password are used for the other addresses too.
        here: where this instance is.
        server: the identity of the server at `database.url`.
        stays: the rows of `home`, the newest first.
        within_s: time limit for all addresses together, seconds.
    """
    addresses = identity.to_ask(here, stays)
    answers = await asyncio.gather(*(_ask(url, address, server, within_s) for address in addresses))
    return dict(zip(addresses, answers, strict=True))


async def _ask(url: str, address: str, ours: ServerIdentity, within_s: float) -> Answer:
    try:
        async with asyncio.timeout(within_s):
            session = await connect(url, name="ask", writable=False, address=address)
            try:
                row = await session.fetchrow(query("identify_server"))
            finally:
                session.terminate()
    except TimeoutError:
        return Answer.GONE
    except DatabaseError:
        return Answer.UNCLEAR
    except DatabaseAway as error:
        return _refusal(error.__cause__)
    return Answer.UNCLEAR if row is None else _compare(server_of(row), ours)


def _compare(found: ServerIdentity, ours: ServerIdentity) -> Answer:
    if found == ours:
        return Answer.HERE
    if (found.system_identifier, found.database_oid) != (ours.system_identifier, ours.database_oid):
        return Answer.OTHER
    return Answer.STANDBY if found.in_recovery else Answer.RIVAL


def _refusal(cause: BaseException | None) -> Answer:
    """Distinguish a Postgres that refuses the login from an address without a Postgres."""
    sqlstate = getattr(cause, "sqlstate", None)
    if sqlstate is None:
        return Answer.UNCLEAR if isinstance(cause, ssl.SSLError) else Answer.GONE
    if sqlstate == _NO_SUCH_DATABASE:
        return Answer.OTHER
    if sqlstate == _TAKES_NO_SESSIONS:
        return Answer.STARTING
    return Answer.GONE if sqlstate[:2] == _NO_POSTGRES else Answer.UNCLEAR
