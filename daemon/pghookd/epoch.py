"""The life between two recoveries: own, recover, run the loops; it ends with a value.

All sessions are opened before the first snapshot, then each is asked once more who its server is, and none is reopened
but the bell's. Whatever happens to any of them ends the epoch: memory is forgotten, and the next one takes the one
recovery road from what is stored. Forgetting is a rule of correctness: a snapshot kept across a reconnect loses events.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeAlias, TypeVar

from structlog.typing import FilteringBoundLogger

from pghookd.core import home, verdict
from pghookd.core.home import ForeignDatabase, Server, StoredShard
from pghookd.core.lanes import Lanes
from pghookd.core.settings import Settings
from pghookd.core.snapshot import BEGINNING, Log, Marks, Position, ShardLog, Snapshot
from pghookd.edge.http import Sender
from pghookd.edge.journal import LogEvent
from pghookd.edge.postgres import DatabaseAway, DatabaseError, Session, connect, query
from pghookd.edge.rows import server_of, shard_of
from pghookd.loops.bell import LOCK_CLASS, Bell
from pghookd.loops.deliver import Deliverer, Terms
from pghookd.loops.maintain import maintain
from pghookd.loops.own import own
from pghookd.loops.read import Reader
from pghookd.loops.record import Recorder
from pghookd.loops.retry import DueRows
from pghookd.loops.watch import Beats, watch

LOOPS: Final = ("read", "record", "deliver", "maintain")
ECHO_WITHIN_S: Final = 2.0
SERVER_VERSION_MIN: Final = 140000

_KEEPALIVE: Final = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10s",
    "client_connection_check_interval": "2s",
}

# The daemon's statements are few and always the same: each is planned once, along the index that it lives on, and not
# by what the statistics of a table that was filled a moment ago say. Planning took ten times as long as reading.
PLANS: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "jit": "off",
}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """A session was lost or refused; take the recovery road."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Stopped:
    """The daemon was told to stop, and everything that could be recorded was."""


@dataclasses.dataclass(frozen=True, slots=True)
class Foreign:
    """This is not the database that we ran in before: deliver nothing, wait for adopt."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Misfit:
    """Settings or surroundings with which the daemon must not run here."""

    reason: str


Ending: TypeAlias = Lost | Stopped | Foreign | Misfit


class _Misfit(Exception):  # noqa: N818 - carries its value up
    pass


@dataclasses.dataclass(frozen=True)
class World:
    """What an epoch is given: settings, edges, clocks."""

    settings: Settings
    sender: Sender
    logger: FilteringBoundLogger
    stop: asyncio.Event
    beats: Beats
    ready: Callable[[str], None]
    monotonic: Callable[[], float]
    wall_us: Callable[[], int]
    random01: Callable[[], float]


async def run(world: World) -> Ending:
    """Live one epoch."""
    sessions = Sessions(world)
    try:
        return await _live(world, sessions)
    except BaseExceptionGroup as group:
        ending = _ending_of(group)
        if ending is None:
            raise
        return ending
    except (DatabaseAway, DatabaseError) as error:
        return Lost(str(error))
    except ForeignDatabase as error:
        return Foreign(str(error))
    except _Misfit as error:
        return Misfit(str(error))
    finally:
        sessions.terminate()


def _ending_of(group: BaseExceptionGroup[BaseException]) -> Ending | None:
    """Return the value that a group of nothing but database troubles stands for."""
    _, others = group.split((DatabaseAway, DatabaseError, ForeignDatabase))
    if others is not None:
        return None
    foreign, _ = group.split(ForeignDatabase)
    first: BaseException = foreign or group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return Foreign(str(first)) if foreign else Lost(str(first))


# Sessions -----------------------------------------------------------------------------------------------------------


class Sessions:
    """The epoch's connections; none of them outlives it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._open: dict[str, Session] = {}
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def record(self) -> Session:
        """Open the session that holds the locks and writes the outcomes: a lease that Postgres itself ends."""
        lease = f"{self._world.settings.database.lease_s:g}s"
        timeouts = {
            "idle_session_timeout": lease,
            "idle_in_transaction_session_timeout": lease,
            "statement_timeout": "8s",
            "lock_timeout": "2s",
        }
        return await self._connect("record", {**PLANS, **timeouts})

    async def read(self) -> Session:
        """Open the reader's session, which also LISTENs."""
        return await self._connect("read", {**PLANS, "statement_timeout": "60s"})

    async def work(self) -> Session:
        """Open the session for partitions and large payloads."""
        return await self._connect("work", {"lock_timeout": "2s"})

    async def bell(self) -> Session:
        """Open the session that sleeps: it may wait for ever, but not for a client that is gone."""
        lease = f"{self._world.settings.database.lease_s:g}s"
        settings = {"statement_timeout": "0", "lock_timeout": "0", "idle_session_timeout": lease}
        return await self._connect("bell", settings)

    async def _connect(self, name: str, settings: dict[str, str]) -> Session:
        url = self._world.settings.database.url.get_secret_value()
        session = await connect(url, name=name, settings={**_KEEPALIVE, **settings})
        self._open[name] = session
        if name != "bell":  # the bell's may be ended on purpose; who waits on it is told
            session.when_lost(self._on_lost)
        return session

    def _on_lost(self, name: str) -> None:
        if not self.lost.done():
            self.lost.set_result(name)

    async def watch(self) -> None:
        """Raise DatabaseAway once a session has ended."""
        name = await self.lost
        raise DatabaseAway(f"the session {name!r} was lost")

    def all(self) -> list[Session]:
        """Return the sessions that are open."""
        return list(self._open.values())

    def terminate(self) -> None:
        """End them all at once; Postgres frees their locks."""
        if not self.lost.done():
            self.lost.cancel()
        for session in self._open.values():
            session.terminate()


# The epoch ------------------------------------------------------------------------------------------------------------


async def _live(world: World, sessions: Sessions) -> Ending:
    record = await sessions.record()
    shards = await _shards(world, record)
    if not await _owned(world, sessions, record, shards):
        return Stopped()
    world.logger.info(LogEvent.SHARD_TAKEN, shards=shards)
    crew = await _assemble(world, sessions, record)
    world.ready(f"reading the log, {shards} shards")
    async with asyncio.TaskGroup() as group:
        await crew.run(group)
    return Stopped()


async def _shards(world: World, record: Session) -> int:
    """Make the rows of `shards` at the first run; their number must be that of the settings for ever after."""
    wanted = world.settings.delivery.shards
    await record.execute(query("make_shards"), wanted)
    there: int = await record.fetchval("select count(*)::int from webhooks.shards")
    if there != wanted:
        raise _Misfit(f"delivery.shards is {wanted}, but the database has {there}: set it to {there}")
    return there


async def _owned(world: World, sessions: Sessions, record: Session, shards: int) -> bool:
    """Wait until every shard is ours; False where the daemon is stopped first."""

    def standing_by() -> None:
        world.ready("standing by: another instance owns the shards")
        for name in LOOPS:
            world.beats.of(name)()

    owning = own(record, shards, standing_by=standing_by)
    return await _unless_stopped(owning, world.stop, sessions) is not _STOPPED


_STOPPED: Final = object()


async def _unless_stopped(work: Awaitable[T], stop: asyncio.Event, sessions: Sessions) -> T | object:
    """Await something that also ends at stop, or with the loss of a session."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopping, sessions.lost}, return_when=asyncio.FIRST_COMPLETED)
        if sessions.lost.done():
            raise DatabaseAway(f"the session {sessions.lost.result()!r} was lost")
        return await task if task.done() else _STOPPED
    finally:
        stopping.cancel()
        task.cancel()
        with suppress(asyncio.CancelledError, DatabaseAway, DatabaseError):
            await task


async def _identify(sessions: Sequence[Session]) -> Server:
    """Ask every session who its server is; they must agree, and it must be one that we can work with."""
    rows = [await session.fetchrow(query("identify_server")) for session in sessions]
    first = rows[0]
    if first is None or any(row is None or server_of(row) != server_of(first) for row in rows):
        raise DatabaseAway("the sessions are on different servers")
    if [row and row["pid"] for row in rows] != [session.pid for session in sessions]:
        raise _Misfit(
            "the backend changes between statements: connect directly, not through a transaction pooler"
        )
    if "CockroachDB" in first["version"] or "-YB-" in first["version"]:
        raise _Misfit("this is not Postgres: its advisory locks or snapshots are not what pghookd relies on")
    if first["version_num"] < SERVER_VERSION_MIN:
        raise _Misfit("Postgres 14 or later is needed")
    server = server_of(first)
    if server.in_recovery:
        raise DatabaseAway("the server is a standby")
    return server


async def _check_echo(read: Session, work: Session, echo: asyncio.Event) -> None:
    """Refuse a transaction pooler: there a LISTEN is accepted and never heard, and a session lock is nobody's."""
    await read.execute("select pg_notify('pghookd', 'echo')")
    with suppress(TimeoutError):
        async with asyncio.timeout(ECHO_WITHIN_S):
            await echo.wait()
    if not echo.is_set():
        raise _Misfit(
            "a notification to ourselves was not heard: connect directly, not through a transaction pooler"
        )
    if await work.fetchval(f"select pg_try_advisory_lock({LOCK_CLASS}, 1)"):
        raise _Misfit(
            "a lock held by one session was given to another: connect directly, not through a pooler"
        )


async def _assemble(world: World, sessions: Sessions, record: Session) -> Crew:
    """Open the other sessions, see whose database this is, and build the loops around a snapshot of now."""
    read, work, bell = await sessions.read(), await sessions.work(), await sessions.bell()
    hears = Hears()
    await read.listen("pghookd", hears)
    server = await _identify([record, read, work, bell])
    await _check_echo(read, work, hears.echo)
    stored = [shard_of(row) for row in await record.fetch(query("read_shards"))]
    now = Snapshot(*await read.fetchval("select pg_current_snapshot()"))  # after the locks were granted
    newest = await read.fetchval(query("read_newest_event_id"))
    reason = home.why_foreign(server, stored, now, newest)
    if reason is not None:
        raise ForeignDatabase(reason)
    fork = home.forked_from(server, stored)
    if fork is not None:
        world.logger.warning(
            LogEvent.LOG_REANCHORED,
            timeline=server.timeline,
            stored_timeline=fork,
            note="attempts made after the fork are unknown; what receivers saw since may come again",
        )
    if await _identify([record, read, work, bell]) != server:
        raise DatabaseAway("the server restarted meanwhile")
    return Crew(world, sessions, server, Log(now, _shard_logs(stored), _marks(stored)), stored, hears)


def _shard_logs(stored: Sequence[StoredShard]) -> dict[int, ShardLog]:
    return {row.shard: ShardLog(row.shard, row.position or Position(BEGINNING)) for row in stored}


def _marks(stored: Sequence[StoredShard]) -> Marks:
    """Start from the highest floor: any stored one holds for every later snapshot."""
    marks = Marks(max(row.floor for row in stored), max(row.front for row in stored))
    for mark in sorted({row.mark for row in stored if row.mark is not None}, key=lambda mark: mark.xid):
        marks.note(mark)
    return marks


class Hears:
    """Sorts what is heard on the channel. Anyone may send there, so it never means more than: look now."""

    def __init__(self) -> None:
        self.echo = asyncio.Event()
        self.wake = asyncio.Event()
        self.due: Callable[[], None] = lambda: None
        self.endpoints: Callable[[list[int] | None], None] = lambda _: None

    def __call__(self, payload: str) -> None:
        """Take one notification."""
        self.wake.set()
        if payload == "echo":
            self.echo.set()
        elif payload == "due":
            self.due()
        elif payload.startswith("endpoints"):
            ids = payload.partition(":")[2].split(",")
            known = [int(i) for i in ids if i.isascii() and i.isdecimal() and len(i) < 19]  # noqa: PLR2004 - a bigint
            self.endpoints(known or None)


class Crew:
    """The loops of one epoch, wired together."""

    def __init__(
        self,
        world: World,
        sessions: Sessions,
        server: Server,
        log: Log,
        stored: Sequence[StoredShard],
        hears: Hears,
    ) -> None:
        self._world = world
        self._sessions = sessions
        self._stored = stored
        opened = {session.name: session for session in sessions.all()}
        settings, beats, logger = world.settings, world.beats, world.logger
        room = asyncio.Event()
        lanes = Lanes(
            concurrency=settings.delivery.concurrency,
            endpoint_concurrency=settings.delivery.endpoint_concurrency,
            queue_bytes_max=settings.delivery.queue_bytes_max,
        )
        due = DueRows(lanes, log, shards=len(stored))
        self.recorder = Recorder(
            opened["record"],
            log,
            lanes,
            server,
            due,
            logger=logger,
            monotonic=world.monotonic,
            batch_max=settings.recorder.batch_max,
            batch_wait_s=settings.recorder.batch_wait_ms / 1000,
            heartbeat_s=settings.database.heartbeat_s,
            lease_s=settings.database.lease_s,
            recorded=self._kick,
            beat=beats.of("record"),
        )
        self.deliverer = Deliverer(
            world.sender,
            lanes,
            self.recorder,
            opened["work"],
            _terms(settings),
            logger=logger,
            monotonic=world.monotonic,
            wall_us=world.wall_us,
            random01=world.random01,
            room=room,
            beat=beats.of("deliver"),
        )
        self.reader = Reader(
            opened["read"],
            log,
            lanes,
            self.recorder,
            shards=len(stored),
            kick=self.deliverer.kick,
            room=room,
            logger=logger,
            monotonic=world.monotonic,
            beat=beats.of("read"),
        )
        self.bell = Bell(
            opened["bell"],
            sessions.bell,
            self._end_backend,
            wake=hears.wake,
            logger=logger,
            monotonic=world.monotonic,
            fallback_s=settings.poll.fallback_s,
            beat=beats.of("read"),
        )
        hears.due, hears.endpoints = due.ring, self.reader.endpoints_changed

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Run until told to stop, then end in order: read no more, let requests end, record, store."""
        world = self._world
        work = next(session for session in self._sessions.all() if session.name == "work")
        front = [
            group.create_task(self._read()),
            group.create_task(maintain(work, logger=world.logger, beat=world.beats.of("maintain"))),
        ]
        recording = group.create_task(self.recorder.run())
        behind = [
            group.create_task(self.deliverer.run()),
            group.create_task(self._sessions.watch()),
            group.create_task(watch(self._sessions.all, world.settings.database.heartbeat_s)),
        ]
        await world.stop.wait()
        async with _ended(front):
            in_time = await self.deliverer.drain(world.settings.delivery.grace_s)
        self.recorder.stop()
        await recording
        await self.recorder.finish()
        async with _ended(behind):
            world.logger.info(LogEvent.SHARD_LOST, reason="released", in_time=in_time)

    def _kick(self) -> None:
        self.deliverer.kick()

    async def _read(self) -> None:
        for (position, floor, front), shards in _walks(self._stored).items():
            await self.reader.recover(position, Marks(floor, front), shards)
        await self.reader.run(self.bell)

    async def _end_backend(self, pid: int) -> None:
        work = next(session for session in self._sessions.all() if session.name == "work")
        await work.fetchval("select pg_terminate_backend($1)", pid)


@asynccontextmanager
async def _ended(tasks: Sequence[asyncio.Task[None]]) -> AsyncIterator[None]:
    """End loops that only a cancellation ends, and wait for them."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    yield


def _walks(stored: Sequence[StoredShard]) -> dict[tuple[Position, int, int], list[int]]:
    """Group shards that stand at the same place: they walk together."""
    walks: dict[tuple[Position, int, int], list[int]] = {}
    for row in stored:
        position = row.position or Position(BEGINNING)
        walks.setdefault((position, row.floor, row.front), []).append(row.shard)
    return walks


def _terms(settings: Settings) -> Terms:
    delivery, retry = settings.delivery, settings.retry
    return Terms(
        concurrency=delivery.concurrency,
        batch_max=settings.recorder.batch_max,
        timeout_s=delivery.timeout_s,
        payload_bytes_max=delivery.payload_bytes_max,
        large_at_once=max(1, delivery.queue_bytes_max // delivery.payload_bytes_max),
        user_agent=delivery.user_agent,
        retry=verdict.Policy(
            schedule=retry.schedule,
            jitter=retry.jitter,
            throttle_floor_s=retry.throttle_floor_s,
            retry_after_max_s=retry.retry_after_max_s,
            age_max_s=retry.age_max_s,
        ),
        successes=settings.log.successes,
    )
