"""The sessions of an instance: their purposes and settings, the identity of their server, and whether they are fit.

All are opened before the first snapshot is taken, then each reports its server's identity. Only the bell's is ever
reopened. The statements of loops do not belong here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from pghookd.event_log.identity import ServerIdentity
from pghookd.event_log.rows import server_of
from pghookd.postgres.client import PING, POOLER, DatabaseAway, Session, Unfit, connect, query
from pghookd.settings.schema import DatabaseSettings

ECHO_WITHIN_S: Final = 2.0
TEND_WITHIN_S: Final = 300  # for statements that nothing waits for; ANALYZE of a large log takes minutes
SERVER_VERSION_MIN: Final = 140000

_KEEPALIVE: Final = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
    "client_connection_check_interval": "2s",
}

# The daemon's statements are few and always the same. Each is planned once, along the index that it relies on, whatever
# the statistics of a table that was just filled suggest. Planning took ten times as long as reading.
PLANS: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "jit": "off",
}

# Every array type in statements: asyncpg queries all new types of a statement at once, so that one query is enough for
# a session's life.
_TYPES: Final = (
    "select $1::int2[], $2::int4[], $3::int8[], $4::float4[], $5::float8[], $6::bool[], $7::text[], $8::bytea[],"
    " $9::timestamptz[], $10::pg_snapshot[]"
)

# The statements of each session while an event, an outcome or a mail waits for it. The reader's own statement is not
# here: its text names the days that it reads (event_log/reading/reader.py).
HOT: Final = {
    "read": (
        "find_first_event",
        "read_newest_event_id",
        "read_events_page",
        "skim_events",
        "read_settled",
        "read_endpoints_of_sites",
        "read_endpoints",
        "find_firsts",
        "find_firsts_again",
        "read_events",
        "read_settled_events",
    ),
    "record": (  # all of its statements: prepared before it takes the locks of the shards (Session.prepare)
        "advance_replay",
        "clear_backlog",
        "count_shards",
        "disable_endpoints",
        "enter_home",
        "enter_standby",
        "expire_held",
        "find_endpoints_with_rows",
        "find_gone_days",
        "find_parked_endpoints",
        "find_replays",
        "find_strangers",
        "find_superseded",
        "forget_homes",
        "hold_backlog",
        "load_payloads",
        "lock_shard",
        "make_shards",
        "mark_copy",
        "match_filter",
        "name_home",
        "note_failures",
        "note_successes",
        "place_in_line",
        "put_backlog",
        "put_dead",
        "quarantine_deliveries",
        "read_due",
        "read_endpoints",
        "read_home",
        "read_line",
        "read_newest_event_id",
        "read_parked",
        "read_shards",
        "read_watched",
        "record_attempts",
        "store_positions",
        "walk_lines",
    ),
    "work": ("load_payload",),
    "care": (
        "find_storm_evidence",
        "find_due_owners",
        "read_cases",
        "read_owners",
        "step_incidents",
        "end_incidents",
        "put_email",
    ),
    "mail": ("read_emails", "claim_email", "settle_email"),
}


class Sessions:
    """The epoch's sessions; none of them outlives it."""

    def __init__(self, database: DatabaseSettings) -> None:
        self._database = database
        self._open: dict[str, Session] = {}
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def record(self) -> Session:
        """Open the session that holds the locks and writes the outcomes: a lease that Postgres itself ends."""
        lease = f"{self._database.lease_s:g}s"
        timeouts = {
            "idle_session_timeout": lease,
            "idle_in_transaction_session_timeout": lease,
            "statement_timeout": "8s",
            "lock_timeout": "100ms",  # outcomes of other endpoints wait as long
        }
        return await self._connect("record", {**PLANS, **timeouts}, 10.0)

    async def read(self) -> Session:
        """Open the reader's session, which also LISTENs."""
        return await self._connect("read", {**PLANS, "statement_timeout": "60s"}, 62.0)

    async def work(self) -> Session:
        """Open the session for work that deliveries and the reader wait for: payloads, the end of a backend."""
        return await self._connect("work", {"lock_timeout": "2s", "statement_timeout": "60s"}, 62.0)

    async def tend(self) -> Session:
        """Open the session for work that nothing waits for and that may take minutes: partitions, ANALYZE, erasing."""
        settings = {"lock_timeout": "2s", "statement_timeout": f"{TEND_WITHIN_S}s"}
        return await self._connect("tend", settings, TEND_WITHIN_S + 5.0)

    async def care(self) -> Session:
        """Open the session of the endpoint monitor: short transactions, and sometimes a long query."""
        return await self._connect("care", {**PLANS, **self._bounded()}, 35.0)

    async def mail(self) -> Session:
        """Open the mailer's session."""
        return await self._connect("mail", self._bounded(), 35.0)

    def _bounded(self) -> dict[str, str]:
        lease = f"{self._database.lease_s:g}s"
        return {
            "statement_timeout": "30s",
            "lock_timeout": "2s",
            "idle_in_transaction_session_timeout": lease,
        }

    async def bell(self) -> Session:
        """Open the session that sleeps: it may wait for ever, but not for a client that is gone."""
        lease = f"{self._database.lease_s:g}s"
        settings = {"statement_timeout": "0", "lock_timeout": "0", "idle_session_timeout": lease}
        return await self._connect("bell", settings, None)

    async def _connect(self, name: str, settings: dict[str, str], answer_within_s: float | None) -> Session:
        url = self._database.url.get_secret_value()
        session = await connect(
            url, name=name, settings={**_KEEPALIVE, **settings}, answer_within_s=answer_within_s
        )
        self._open[name] = session
        session.when_lost(lambda: self._on_lost(name, session))
        return session

    def _on_lost(self, name: str, session: Session) -> None:
        if self._open.get(name) is session and not self.lost.done():
            self.lost.set_result(name)

    def let_go(self, name: str) -> None:
        """Mark a session as closed on purpose, so that its loss is not reported."""
        self._open.pop(name, None)

    async def warm(self, *names: str) -> None:
        """Prepare the HOT statements of these sessions, or of every open one, on all of them at once."""
        async with asyncio.TaskGroup() as group:
            for name in names or self._open:
                if hot := HOT.get(name):
                    group.create_task(self._open[name].prepare(_TYPES, PING, *map(query, hot)))

    def __getitem__(self, name: str) -> Session:
        """Return an open session by its name."""
        return self._open[name]

    async def watch(self) -> None:
        """Raise DatabaseAway once a session has ended."""
        name = await self.lost
        raise DatabaseAway(f"the session {name!r} was lost")

    def all(self) -> list[Session]:
        """Return the open sessions."""
        return list(self._open.values())

    def terminate(self) -> None:
        """End all sessions at once; Postgres frees their locks."""
        if not self.lost.done():
            self.lost.cancel()
        for session in self._open.values():
            session.terminate()


# Whose server, and is it fit? ---------------------------------------------------------------------------


async def identify(sessions: Sequence[Session]) -> ServerIdentity:
    """Read the server's identity on every session; they must agree, and the server must be supported."""
    rows = [await session.fetchrow(query("identify_server")) for session in sessions]
    first = rows[0]
    if first is None or any(row is None or server_of(row) != server_of(first) for row in rows):
        raise DatabaseAway("the sessions are on different servers")
    if [row and row["pid"] for row in rows] != [session.pid for session in sessions]:
        raise Unfit(POOLER)
    if "CockroachDB" in first["version"] or "-YB-" in first["version"]:
        raise Unfit("this is not Postgres: its advisory locks or snapshots are not what pghookd relies on")
    if first["version_num"] < SERVER_VERSION_MIN:
        raise Unfit("Postgres 14 or later is needed")
    server = server_of(first)
    if server.in_recovery:
        raise DatabaseAway("the server is a standby")
    return server


async def check_echo(read: Session, work: Session, echo: asyncio.Event) -> None:
    """Refuse a pooler in transaction mode: a LISTEN there receives nothing, and no session keeps its locks."""
    await read.execute("select pg_notify('pghookd', 'echo')")
    with suppress(TimeoutError):
        async with asyncio.timeout(ECHO_WITHIN_S):
            await echo.wait()
    if not echo.is_set():
        raise Unfit(POOLER)
    if await work.fetchval(query("lock_shard"), 0):
        raise Unfit(POOLER)
