"""Operator commands on endpoints, events and secrets: the statements behind the command line.

All changes go through the functions of the schema. So a command has no more rights than any session with the same role,
and leaves the same row in `operations`. Times are returned as text (RFC 3339, UTC).

Never here: printing, and a secret in any result except where it was just made.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import orjson

from pghookd.encryption import encrypt_at_rest
from pghookd.encryption.encrypt_at_rest import Progress
from pghookd.encryption.keyring import Vault
from pghookd.model.delivery_states import End
from pghookd.postgres.client import DatabaseError, Row, Session, connect, query
from pghookd.process.unix_user import unix_user
from pghookd.settings.schema import Settings
from pghookd.webhook.envelope import timestamp_text, webhook_id

Told: TypeAlias = dict[str, Any]

ADMIN: Final = "webhooks_admin"
READER: Final = "webhooks_reader"
LOOK_EVERY_S: Final = 0.1
SUBJECT_EVENTS: Final = 20  # events of a subject that `event show` names
_BOUNDS: Final = {"statement_timeout": "30s"}
_NO_SUCH_SITE: Final = "23503"
_DENIED: Final = "42501"  # insufficient_privilege


@contextlib.contextmanager
def needing(role: str) -> Iterator[None]:
    """Add the required role to Postgres's "permission denied" error, which names only a function or a table.

    Args:
        role: a role of sql/roles.sql. The daemon's own login is a member of another one, which may not act for
            operators.

    Raises:
        DatabaseError: the original error; a denied privilege adds the role to its text.
    """
    try:
        yield
    except DatabaseError as error:
        if error.sqlstate != _DENIED:
            raise
        refused = str(error).removesuffix(f" (SQLSTATE {_DENIED})")
        remedy = f"log in as a member of {role}, or GRANT {role} TO the login in database.url"
        raise DatabaseError(_DENIED, f"{refused}: {remedy}") from None


@contextlib.asynccontextmanager
async def _asking(
    settings: Settings, name: str, *, role: str = ADMIN, writable: bool = False
) -> AsyncIterator[Session]:
    address = settings.database.url.get_secret_value()
    with needing(role):
        bounds = {**_BOUNDS, "webhooks.actor": unix_user()}
        session = await connect(address, name=name, settings=bounds, writable=writable)
        try:
            yield session
        finally:
            await session.close()


def _told(row: Row | Mapping[str, Any]) -> Told:
    """Return a row as JSON values; columns named *_at, *_until, *_since, deliver_* are times."""
    return {
        key: timestamp_text(value) if _is_time(key) and value is not None else value
        for key, value in row.items()
    }


def _is_time(column: str) -> bool:
    return column.endswith(("_at", "_until", "_since")) or column in {"deliver_after", "deliver_before"}


# Endpoints --------------------------------------------------------------------------------------------------


async def add_endpoint(settings: Settings, columns: Mapping[str, object], *, new_secret: bool) -> Told:
    """Register an endpoint; columns missing in `columns` get their defaults. The result contains a new secret.

    Raises:
        DatabaseAway: if the session is lost.
        DatabaseError: if Postgres refuses the row; the name of a CHECK constraint is a sentence.
    """
    async with _asking(settings, "endpoint", writable=True) as session:
        try:
            row = await session.fetchrow(query("add_endpoint"), orjson.dumps(columns).decode(), new_secret)
        except DatabaseError as error:
            # The detail of a violated CHECK quotes the whole row with its secret: drop the detail here.
            text = str(error).partition("\n")[0].removesuffix(f" (SQLSTATE {error.sqlstate})")
            if error.sqlstate == _NO_SUCH_SITE:
                text = f"there is no site {columns['site_id']}"
            raise DatabaseError(error.sqlstate, text, error.constraint) from None
    return _told(row or {})


async def list_endpoints(settings: Settings, site_id: str | None) -> list[Told]:
    """Return the endpoints, of one site or of all, with their health and counts of waiting deliveries."""
    async with _asking(settings, "endpoint", role=READER) as session:
        return [_told(row) for row in await session.fetch(query("list_endpoints"), site_id)]


async def show_endpoint(settings: Settings, endpoint_id: int) -> Told | None:
    """Return everything about an endpoint but its secrets; None if there is no such endpoint."""
    async with _asking(settings, "endpoint") as session:
        row = await session.fetchrow(query("show_endpoint"), endpoint_id)
    if row is None:
        return None
    told = _told(row)
    return {**told, "profile_spec": None if (spec := told["profile_spec"]) is None else orjson.loads(spec)}


async def enable_endpoint(settings: Settings, endpoint_id: int, held: str) -> int:
    """Enable an endpoint; return how many held deliveries are released."""
    async with _asking(settings, "endpoint", writable=True) as session:
        released: int = await session.fetchval(query("enable_endpoint"), endpoint_id, held)
    return released


async def disable_endpoint(settings: Settings, endpoint_id: int) -> None:
    """Disable an endpoint, as the operator."""
    async with _asking(settings, "endpoint", writable=True) as session:
        await session.fetchval(query("disable_endpoint"), endpoint_id)


async def rotate_secret(settings: Settings, endpoint_id: int, overlap_s: float) -> str:
    """Give an endpoint a new secret and return it; the previous one also signs for `overlap_s` seconds."""
    async with _asking(settings, "secret", writable=True) as session:
        made: str = await session.fetchval(query("rotate_secret"), endpoint_id, overlap_s)
    return made


async def rotate_key(settings: Settings, tell: Callable[[Progress], None]) -> Progress | None:
    """Encrypt every secret with the first key of `secrets.key`, reporting each page; None if there is no key."""
    vault = Vault.of(settings)
    if vault is None:
        return None
    async with _asking(settings, "secret", writable=True) as session:
        return await encrypt_at_rest.rotate_key(session, vault, tell)


async def test_endpoint(settings: Settings, endpoint_id: int, event_type: str, wait_s: float) -> Told:
    """Send a test and wait for its attempt; `outcome` is None if there was none within `wait_s` seconds."""
    async with _asking(settings, "endpoint", writable=True) as session:
        event_id = await session.fetchval(query("send_test"), endpoint_id, event_type)
        deadline = time.monotonic() + wait_s
        while True:
            row = await session.fetchrow(query("read_test"), event_id, endpoint_id)
            if row is not None and (
                row["outcome"] or row["state"] == End.DEAD or time.monotonic() >= deadline
            ):
                return _told(row)
            await asyncio.sleep(LOOK_EVERY_S)


# Events -----------------------------------------------------------------------------------------------------


async def explain(settings: Settings, event_id: int, identity: str) -> list[Told]:
    """Return why an event was or was not sent to each endpoint of its site.

    Args:
        settings: for `database.url`.
        event_id: the event.
        identity: the id as the operator gave it; a webhook-id may belong to another event with the same number.
    """
    async with _asking(settings, "explain", role=READER) as session:
        rows = await session.fetch(query("explain_event"), event_id)
    if rows[0]["at"] is not None and (other := _another(identity, event_id, rows[0]["at"])):
        return [{"endpoint_id": None, "at": None, "what": "unknown", "detail": other}]
    return [{**row, "at": None if row["at"] is None else timestamp_text(row["at"])} for row in rows]


def _another(identity: str, event_id: int, created_at_us: int) -> str | None:
    """Return a sentence if the webhook-id is another event's with the same number, as after a failover; else None."""
    ours = webhook_id(event_id, created_at_us)
    if not identity.startswith("evt_") or identity == ours:
        return None
    return f"event {event_id} of this database is another: {ours}"


async def find_events(settings: Settings, site_id: str, subject: str) -> list[int]:
    """Return the ids of the newest events of a site with a subject, newest first, SUBJECT_EVENTS at most."""
    async with _asking(settings, "event") as session:
        rows = await session.fetch(query("find_events_of_subject"), site_id, subject, SUBJECT_EVENTS)
    return [row["event_id"] for row in rows]


async def show_event(
    settings: Settings, event_id: int, identity: str, *, payload: bool, answers: bool = False
) -> Told | str:
    """Return an event, its deliveries and its attempts; a sentence if there is none. Arguments as for `explain`."""
    async with _asking(settings, "event") as session:
        event = await session.fetchrow(query("read_event"), event_id)
        if event is None:
            return f"there is no event {event_id}"
        if other := _another(identity, event_id, event["created_at"]):
            return other
        told = _told(event)
        if payload:
            text = await session.fetchval(query("read_payload"), event_id)
            told["payload"] = orjson.Fragment(text)
        deliveries = [_told(row) for row in await session.fetch(query("read_event_deliveries"), event_id)]
        rows = await session.fetch(query("read_event_attempts"), event_id)
        attempts = [{**_told(row), "evidence": _evidence(row["evidence"], answers=answers)} for row in rows]
        if answers:
            kept = {
                (row["endpoint_id"], row["attempt"]): row["response"].decode(errors="replace")
                for row in await session.fetch(query("read_event_answers"), event_id)
            }
            for each in attempts:
                each["answer"] = kept.get((each["endpoint_id"], each["attempt"]))
    return {**told, "deliveries": deliveries, "attempts": attempts}


def _evidence(text: str | None, *, answers: bool) -> dict[str, Any] | None:
    """Return the evidence of an attempt, with the headers of its answer only if answers are wanted."""
    found: dict[str, Any] | None = None if text is None else orjson.loads(text)
    if found is not None and not answers:
        found.pop("headers", None)
        found.pop("headers_left_out", None)
    return found
