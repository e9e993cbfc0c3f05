"""Postgres: sessions, the statements in `sql/queries`, and errors sorted by what the caller does next.

The only importer of asyncpg. A session is one connection that is never reopened: after any loss the epoch ends and
everything is opened anew. No pool: a pool would release advisory locks and LISTENs at each return.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.resources
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, TypeAlias

import asyncpg
import orjson
from asyncpg.connect_utils import SessionAttribute

Row: TypeAlias = asyncpg.Record

PING: Final = "select 1"
CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
_SOCKET: Final = "/.s.PGSQL."  # a socket's name, before its port
EPOCH_2000_US: Final = 946_684_800_000_000  # Postgres counts its microseconds from 2000-01-01

# SQLSTATE classes and codes after which a session is of no use: connection, shutdown, crash of another backend,
# system error, and a session ended by one of its own timeouts.
_AWAY_CLASSES: Final = ("08", "58", "XX")
_AWAY_CODES: Final = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "53300"})
_DATA_CLASSES: Final = ("22", "23", "P0")  # data exception, integrity constraint, raised by a trigger
_LOCK_NOT_AVAILABLE: Final = "55P03"
_NO_PARTITION: Final = "23514"  # shared with check constraints


# A transaction pooler does not know the settings of a session, or gives a statement to a backend that has not prepared
# it, or that has one of that name from somebody else.
POOLER: Final = (
    "a transaction pooler, such as PgBouncer, stands between: name Postgres itself in database.url"
    " (producers may keep the pooler)"
)
_POOLER_CODES: Final = frozenset({"26000", "42P05"})  # no such prepared statement; there is one already
_PROTOCOL_VIOLATION: Final = "08P01"


class DatabaseAway(Exception):  # noqa: N818 - it is a state of the world, not a mistake
    """The database cannot be reached, or the session is gone: close everything and take the recovery road."""


class Unfit(Exception):  # noqa: N818 - a state of the world, not a mistake
    """These settings, this server or what stands between must not be worked with; waiting does not help."""


class DatabaseError(Exception):
    """A statement was refused, the session lives on.

    Attributes:
        sqlstate: the five characters of Postgres.
    """

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(f"{message} (SQLSTATE {sqlstate})")
        self.sqlstate = sqlstate

    @property
    def is_about_data(self) -> bool:
        """Return True if Postgres rejected a row: others of the same statement may be fine."""
        return self.sqlstate[:2] in _DATA_CLASSES

    @property
    def is_about_a_lock(self) -> bool:
        """Return True if a lock was not to be had within lock_timeout."""
        return self.sqlstate == _LOCK_NOT_AVAILABLE

    @property
    def may_be_a_missing_partition(self) -> bool:
        """Return True if a row had no partition to go to, or failed a check constraint."""
        return self.sqlstate == _NO_PARTITION


def query(name: str) -> str:
    """Return the text of `sql/queries/<room>/<name>.sql`, one statement."""
    return queries()[name]


@functools.cache
def queries() -> dict[str, str]:
    """Return all of them by name, read together at the first use: later there may be no descriptor for a file."""
    rooms = importlib.resources.files("pghookd").joinpath("sql", "queries").iterdir()
    return {file.name.removesuffix(".sql"): file.read_text() for room in rooms for file in room.iterdir()}


def _is_pooler(error: Exception) -> bool:
    """Return True if only a pooler answers like this, never Postgres itself."""
    if not isinstance(error, asyncpg.PostgresError):
        return False
    refused = error.sqlstate == _PROTOCOL_VIOLATION and "startup parameter" in str(error)
    return refused or error.sqlstate in _POOLER_CODES


def _translate(error: Exception, *, closed: bool) -> Exception:
    if _is_pooler(error):
        return Unfit(POOLER)
    if isinstance(error, asyncpg.PostgresError) and not closed:
        state = error.sqlstate or "XX000"
        if state not in _AWAY_CODES and state[:2] not in _AWAY_CLASSES:
            return DatabaseError(state, str(error))
    if isinstance(error, asyncpg.InternalClientError):
        return DatabaseAway("the session was ended")  # the driver's own words are about its states
    return DatabaseAway(str(error) or type(error).__name__)


_FOREIGN = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    EOFError,
)


class Session:
    """One connection with a name, one statement at a time.

    Every method raises `DatabaseAway` when the session is gone, `DatabaseError` when Postgres refused the statement,
    and `Unfit` when it was not Postgres that answered.
    """

    def __init__(self, connection: asyncpg.Connection[Row], name: str) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self.name = name
        self.pid: int = connection.get_server_pid()
        self.address = _address_of(connection)

    async def prepare(self, *sqls: str) -> None:
        """Parse statements and learn their types, for the life of the session.

        Without it the first use asks Postgres for each new type: 10 to 40 ms, and a second round trip. And a process
        that is frozen between the parse and the rest keeps its session whatever its timeouts are, since Postgres waits
        for the rest.
        """
        async with self._lock:
            try:
                for sql in sqls:
                    # The public `prepare` keeps what it makes out of the cache that fetch and execute look into.
                    await self._connection._get_statement(sql, None)  # type: ignore[attr-defined] # noqa: SLF001 - see above
            except _FOREIGN as error:
                raise _translate(error, closed=self._connection.is_closed()) from error

    async def fetch(self, sql: str, *args: object, timeout_s: float | None = None) -> list[Row]:
        """Run a statement and return its rows."""
        async with self._lock:
            try:
                return await self._connection.fetch(sql, *args, timeout=timeout_s)
            except _FOREIGN as error:
                raise _translate(error, closed=self._connection.is_closed()) from error

    async def fetchrow(self, sql: str, *args: object, timeout_s: float | None = None) -> Row | None:
        """Run a statement and return its first row."""
        rows = await self.fetch(sql, *args, timeout_s=timeout_s)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *args: object, timeout_s: float | None = None) -> Any:  # noqa: ANN401 - a column of any type
        """Run a statement and return the first column of its first row."""
        rows = await self.fetch(sql, *args, timeout_s=timeout_s)
        return rows[0][0] if rows else None

    async def ping(self, within_s: float) -> None:
        """Ask whether the session lives; one that is busy is left alone.

        Raises:
            DatabaseAway: it did not answer within that many seconds.
        """
        if not self._lock.locked():
            await self.fetchval(PING, timeout_s=within_s)

    async def execute(self, sql: str, *args: object, timeout_s: float | None = None) -> str:
        """Run a statement (several, where there are no arguments) and return its command tag."""
        async with self._lock:
            try:
                return await self._connection.execute(sql, *args, timeout=timeout_s)
            except _FOREIGN as error:
                raise _translate(error, closed=self._connection.is_closed()) from error

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Open a READ COMMITTED transaction around the statements inside; one task at a time."""
        await self.execute("begin")
        try:
            yield
        except DatabaseAway:
            raise
        except Exception:
            with contextlib.suppress(DatabaseAway, DatabaseError):
                await self.execute("rollback")
            raise
        except (
            BaseException
        ):  # cancelled, perhaps because nothing is heard any more: a rollback would wait, too
            self.terminate()
            raise
        await self.execute("commit")

    async def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """LISTEN; `heard` gets the payload of each notification."""

        def callback(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            heard(str(payload))

        async with self._lock:
            try:
                await self._connection.add_listener(channel, callback)
            except _FOREIGN as error:
                raise _translate(error, closed=self._connection.is_closed()) from error

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call back once when the connection ends for whatever reason."""

        def lost(_connection: object) -> None:
            callback()

        self._connection.add_termination_listener(lost)

    @property
    def closed(self) -> bool:
        """Whether the connection is known to have ended."""
        return self._connection.is_closed()

    def terminate(self) -> None:
        """End the connection at once, whatever runs on it."""
        self._connection.terminate()

    async def close(self) -> None:
        """End the connection politely within two seconds, else at once."""
        try:
            await self._connection.close(timeout=CLOSE_TIMEOUT_S)
        except _FOREIGN:
            self._connection.terminate()


def _address_of(connection: asyncpg.Connection[Row]) -> str:
    """Return the address that was connected to, as it was given: `host:port`, or the path of a socket."""
    given = connection._addr  # type: ignore[attr-defined] # noqa: SLF001 - of several hosts only the driver knows which
    return given if isinstance(given, str) else f"{given[0]}:{given[1]}"


def _parts_of(address: str) -> tuple[str, int]:
    """Split an address as `_address_of` makes it into what asyncpg takes: host or folder, and port."""
    separator = _SOCKET if _SOCKET in address else ":"
    host, _, port = address.rpartition(separator)
    return host, int(port)


async def connect(
    url: str,
    *,
    name: str,
    settings: dict[str, str] | None = None,
    writable: bool = True,
    answer_within_s: float | None = None,
    address: str | None = None,
) -> Session:
    """Open a session named `pghookd/<name>`.

    A row security policy would hide rows from it without a word, and a position would pass them. Every session turns
    that into an error.

    Args:
        url: a libpq URI, `?host=` sockets and several hosts too; empty: libpq's PG* variables.
        name: shown in pg_stat_activity.
        settings: server settings of this session.
        writable: refuse a standby.
        answer_within_s: the session is lost when a statement takes longer, since the server's own timeouts end
            nothing where the network passes nothing on; None: a statement may take as long as it likes.
        address: connect to this `Session.address` instead of the URL's hosts; None: to those.

    Raises:
        DatabaseAway: it cannot be reached, or refused us.
        Unfit: a transaction pooler answered.
    """
    always = {"application_name": f"pghookd/{name}", "row_security": "off"}
    try:
        host, port = (None, None) if address is None else _parts_of(address)
        connection = await asyncpg.connect(
            url or None,
            host=host,
            port=port,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=answer_within_s,
            max_cached_statement_lifetime=0,  # prepared once for the session's life
            server_settings={**always, **(settings or {})},
            target_session_attrs=SessionAttribute.read_write if writable else SessionAttribute.any,
        )
    except (*_FOREIGN, ValueError) as error:
        raise _unreachable(error) from error
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await _set_codecs(connection)
    except _FOREIGN as error:
        connection.terminate()
        raise _unreachable(error) from error
    return Session(connection, name)


def _unreachable(error: Exception) -> DatabaseAway | Unfit:
    """Say why in words that carry no password: asyncpg's own messages name hosts and roles only."""
    if _is_pooler(error):
        return Unfit(POOLER)
    if isinstance(error, TimeoutError):
        return DatabaseAway(f"no answer within {CONNECT_TIMEOUT_S:g} s")
    return DatabaseAway(str(error) or type(error).__name__)


async def _set_codecs(connection: asyncpg.Connection[Row]) -> None:
    """Take json as the bytes it is, and times as microseconds since 1970 (infinity included)."""
    await connection.set_type_codec(
        "json", schema="pg_catalog", format="binary", encoder=bytes, decoder=bytes
    )
    await connection.set_type_codec(
        "timestamptz",
        schema="pg_catalog",
        format="tuple",
        encoder=lambda us: (us - EPOCH_2000_US,),
        decoder=lambda value: value[0] + EPOCH_2000_US,
    )


def columns(rows: Sequence[Sequence[object]], width: int) -> list[list[Any]]:
    """Turn rows into `width` columns, as `unnest` wants them."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def number_literal(values: Sequence[int | float | None]) -> str:
    """Write numbers as a Postgres array literal: JSON's list in other brackets, null included."""
    return "{" + orjson.dumps(values)[1:-1].decode("ascii") + "}"
