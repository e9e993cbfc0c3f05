"""Postgres: sessions, the statements in `sql/queries`, and errors sorted by what the caller does next.

The only importer of asyncpg. A session is one connection that is never reopened: after any loss the epoch ends and the
next one opens new sessions. No pool: a pool would release advisory locks and LISTENs whenever a connection is returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.resources
from collections.abc import AsyncIterator, Callable, Sequence
from importlib.resources.abc import Traversable
from typing import Any, Final, TypeAlias

import asyncpg
import orjson
from asyncpg.connect_utils import SessionAttribute

from pghookd.postgres.includes import expand

Row: TypeAlias = asyncpg.Record

PING: Final = "select 1"
CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
_SOCKET: Final = "/.s.PGSQL."  # name of a Unix socket, before its port
EPOCH_2000_US: Final = 946_684_800_000_000  # Postgres counts its microseconds from 2000-01-01

# SQLSTATE classes and codes after which a session is unusable: connection, shutdown, crash of another backend,
# system error, and a session ended by one of its own timeouts.
_AWAY_CLASSES: Final = ("08", "58", "XX")
_AWAY_CODES: Final = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "53300"})
_DATA_CLASSES: Final = ("22", "23", "P0")  # data exception, integrity constraint, raised by a trigger
_LOCK_NOT_AVAILABLE: Final = "55P03"
_NO_PARTITION: Final = "23514"  # shared with check constraints


# A transaction pooler rejects the settings of a session, or sends a statement to a backend that has not prepared it, or
# that has prepared another statement under its name for another client.
POOLER: Final = (
    "a transaction pooler, such as PgBouncer, stands between: name Postgres itself in database.url"
    " (producers may keep the pooler)"
)
_POOLER_CODES: Final = frozenset({"26000", "42P05"})  # prepared statement: does not exist; exists already
_PROTOCOL_VIOLATION: Final = "08P01"


class DatabaseAway(Exception):  # noqa: N818 - a state of the world, not a programming error
    """The database cannot be reached, or the session is lost: end the epoch and recover."""


class Unfit(Exception):  # noqa: N818 - a state of the world, not a programming error
    """The daemon must not work with these settings, this server or a pooler in between; waiting does not help."""


class DatabaseError(Exception):
    """Postgres rejected a statement; the session is still usable.

    Attributes:
        sqlstate: the five-character error code of Postgres.
        constraint: name of the violated constraint; None if there is none.
    """

    def __init__(self, sqlstate: str, message: str, constraint: str | None = None) -> None:
        super().__init__(f"{message} (SQLSTATE {sqlstate})")
        self.sqlstate = sqlstate
        self.constraint = constraint

    @property
    def is_about_data(self) -> bool:
        """Return True if Postgres rejected a row; other rows of the same statement may be valid."""
        return self.sqlstate[:2] in _DATA_CLASSES

    @property
    def is_about_a_lock(self) -> bool:
        """Return True if a lock was not obtained within lock_timeout."""
        return self.sqlstate == _LOCK_NOT_AVAILABLE

    @property
    def may_be_a_missing_partition(self) -> bool:
        """Return True if there was no partition for a row, or it violated a check constraint."""
        return self.sqlstate == _NO_PARTITION


def query(name: str) -> str:
    """Return the text of `sql/queries/<room>/<name>.sql`, one statement."""
    return queries()[name]


@functools.cache
def queries() -> dict[str, str]:
    """Return all statements by name. The first call reads all files: later no file descriptor may be free."""
    sql = importlib.resources.files("pghookd").joinpath("sql")
    fragments = texts(sql.joinpath("fragments"))
    rooms = sql.joinpath("queries").iterdir()
    return {name: expand(text, fragments) for room in rooms for name, text in texts(room).items()}


def texts(folder: Traversable) -> dict[str, str]:
    """Return the SQL files of a folder by name, without their suffix; none if there is no such folder."""
    if not folder.is_dir():
        return {}
    files = (file for file in folder.iterdir() if file.name.endswith(".sql"))
    return {file.name.removesuffix(".sql"): file.read_text(encoding="utf-8") for file in files}


def _is_pooler(error: Exception) -> bool:
    """Return True if only a pooler sends this error, never Postgres itself."""
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
            return DatabaseError(state, str(error), error.constraint_name)
    if isinstance(error, asyncpg.InternalClientError):
        return DatabaseAway("the session was ended")  # the driver's message is about its internal states
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
    """One named connection that runs one statement at a time.

    Every method raises `DatabaseAway` if the session is lost, `DatabaseError` if Postgres rejected the statement, and
    `Unfit` if a pooler answered.
    """

    def __init__(self, connection: asyncpg.Connection[Row], name: str) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self.name = name
        self.pid: int = connection.get_server_pid()
        self.address = _address_of(connection)

    async def prepare(self, *sqls: str) -> None:
        """Prepare statements and load their types, for the life of the session.

        Otherwise the first use queries Postgres for each new type: 10 to 40 ms, and a second round trip. A process
        frozen between parse and execute would also keep its session whatever its timeouts are, since Postgres waits
        for the next message.
        """
        async with self._lock:
            try:
                for sql in sqls:
                    # The public `prepare` does not add its statements to the cache that fetch and execute use.
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
        """Run a statement and return its first row; None if there is none."""
        rows = await self.fetch(sql, *args, timeout_s=timeout_s)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *args: object, timeout_s: float | None = None) -> Any:  # noqa: ANN401 - a column of any type
        """Run a statement and return the first column of its first row; None if there is no row."""
        rows = await self.fetch(sql, *args, timeout_s=timeout_s)
        return rows[0][0] if rows else None

    async def ping(self, within_s: float) -> None:
        """Check that the session answers; a busy session is not checked.

        Raises:
            DatabaseAway: it did not answer within `within_s` seconds.
        """
        if not self._lock.locked():
            await self.fetchval(PING, timeout_s=within_s)

    async def execute(self, sql: str, *args: object, timeout_s: float | None = None) -> str:
        """Run a statement (or several, if there are no arguments) and return its command tag."""
        async with self._lock:
            try:
                return await self._connection.execute(sql, *args, timeout=timeout_s)
            except _FOREIGN as error:
                raise _translate(error, closed=self._connection.is_closed()) from error

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Run the statements inside in a READ COMMITTED transaction; for one task at a time."""
        await self.execute("begin")
        try:
            yield
        except DatabaseAway:
            raise
        except Exception:
            with contextlib.suppress(DatabaseAway, DatabaseError):
                await self.execute("rollback")
            raise
        except BaseException:  # cancelled, perhaps since the server is silent: a rollback would wait as well
            self.terminate()
            raise
        await self.execute("commit")

    async def listen(self, channel: str, heard: Callable[[str], None]) -> None:
        """LISTEN on a channel; call `heard` with the payload of each notification."""

        def callback(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            heard(str(payload))

        async with self._lock:
            try:
                await self._connection.add_listener(channel, callback)
            except _FOREIGN as error:
                raise _translate(error, closed=self._connection.is_closed()) from error

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Register a callback that runs once, when the connection ends for any reason."""

        def lost(_connection: object) -> None:
            callback()

        self._connection.add_termination_listener(lost)

    @property
    def closed(self) -> bool:
        """Return True if the connection is known to have ended."""
        return self._connection.is_closed()

    def terminate(self) -> None:
        """Abort the connection at once, even while a statement runs."""
        self._connection.terminate()

    async def close(self) -> None:
        """Close the connection gracefully within two seconds; otherwise abort it."""
        try:
            await self._connection.close(timeout=CLOSE_TIMEOUT_S)
        except _FOREIGN:
            self._connection.terminate()


def _address_of(connection: asyncpg.Connection[Row]) -> str:
    """Return the address of the connection as it was given: `host:port`, or the path of a socket."""
    given = connection._addr  # type: ignore[attr-defined] # noqa: SLF001 - only the driver knows which of several hosts
    return given if isinstance(given, str) else f"{given[0]}:{given[1]}"


def _parts_of(address: str) -> tuple[str, int]:
    """Split an address from `_address_of` into the arguments of asyncpg: host or socket folder, and port."""
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

    A row security policy would silently hide rows from the session, and a position would pass them. Every session
    turns this into an error (row_security off).

    Args:
        url: a libpq URI, also with several hosts or a socket as `?host=`; if empty, libpq's PG* variables apply.
        name: shown in pg_stat_activity.
        settings: server settings of this session.
        writable: True to refuse a standby.
        answer_within_s: seconds after which a statement ends the session; None if it may take any time. The server's
            own timeouts have no effect while the network passes nothing on.
        address: connect to this `Session.address` instead of the URL's hosts; None to use the URL's hosts.

    Raises:
        DatabaseAway: the database cannot be reached, or refused the connection.
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
            max_cached_statement_lifetime=0,  # statements stay prepared for the session's life
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
    """Translate a connection error. Its text has no password: asyncpg's own messages name only hosts and roles."""
    if _is_pooler(error):
        return Unfit(POOLER)
    if isinstance(error, TimeoutError):
        return DatabaseAway(f"no answer within {CONNECT_TIMEOUT_S:g} s")
    return DatabaseAway(str(error) or type(error).__name__)


async def _set_codecs(connection: asyncpg.Connection[Row]) -> None:
    """Read and write json as raw bytes, and timestamps as microseconds since 1970, infinity included."""
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
    """Transpose rows into `width` columns, the arguments of `unnest`."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]


def number_literal(values: Sequence[int | float | None]) -> str:
    """Return numbers as a Postgres array literal: a JSON list in braces, with null for None."""
    return "{" + orjson.dumps(values)[1:-1].decode("ascii") + "}"
