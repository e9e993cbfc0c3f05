"""The life between two recoveries: own, recover, run the loops; it ends with a value.

All sessions are opened before the first snapshot, then each is asked once more who its server is, and none is reopened
but the bell's. Whatever happens to any of them ends the epoch: memory is forgotten, and the next one takes the one
recovery road from what is stored. Forgetting is a rule of correctness: a snapshot kept across a reconnect loses events.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeAlias, TypeVar

from structlog.typing import FilteringBoundLogger

from pghookd.core import breaker, home, suspects
from pghookd.core.home import ForeignDatabase, Server, StoredShard
from pghookd.core.lanes import Lanes
from pghookd.core.manner import Defaults
from pghookd.core.order import Order
from pghookd.core.settings import Settings
from pghookd.core.snapshot import BEGINNING, Log, Marks, Position, ShardLog, Snapshot
from pghookd.core.suspects import Arrival
from pghookd.edge.filter import Filters
from pghookd.edge.http import Sender
from pghookd.edge.journal import LogEvent
from pghookd.edge.letter import Letters
from pghookd.edge.postgres import DatabaseAway, DatabaseError, Session, columns, query
from pghookd.edge.rows import shard_of, stay_of
from pghookd.edge.sessions import Sessions, Unfit, check_echo, identify
from pghookd.edge.smtp import Post
from pghookd.edge.trust import trust
from pghookd.edge.vault import Vault, revealing
from pghookd.loops.bell import Bell
from pghookd.loops.care import Around, Care, no_checkpoint
from pghookd.loops.deliver import Deliverer, Terms
from pghookd.loops.fan_out import FanOut
from pghookd.loops.mail import Mailer
from pghookd.loops.maintain import Duties, maintain
from pghookd.loops.own import own
from pghookd.loops.read import Reader
from pghookd.loops.record import Due, Recorder
from pghookd.loops.replay import Replays
from pghookd.loops.retry import DueRows
from pghookd.loops.retry import Terms as Aside
from pghookd.loops.suspect import Place, Suspects
from pghookd.loops.watch import Beats, watch, watch_clock

LOOPS: Final = ("read", "record", "deliver", "maintain", "care")
ASSEMBLE_WITHIN_S: Final = 30.0
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


@dataclasses.dataclass(frozen=True)
class World:
    """What an epoch is given: settings, edges, clocks.

    Attributes:
        host: this machine.
        run: this process; the same in all of its epochs, and in no other's.
    """

    settings: Settings
    host: str
    run: str
    sender: Sender
    logger: FilteringBoundLogger
    stop: asyncio.Event
    beats: Beats
    ready: Callable[[str], None]
    monotonic: Callable[[], float]
    wall_us: Callable[[], int]
    random01: Callable[[], float]
    checkpoint: Callable[[str], Awaitable[None]] = no_checkpoint


async def run(world: World) -> Ending:
    """Live one epoch."""
    sessions = Sessions(world.settings.database)
    try:
        return await _live(world, sessions)
    except BaseExceptionGroup as group:
        ending = _ending_of(group)
        if ending is None:
            raise
        return ending
    except _StoppedEarly:
        return Stopped()
    except (DatabaseAway, DatabaseError) as error:
        return Lost(str(error))
    except ForeignDatabase as error:
        return Foreign(str(error))
    except Unfit as error:
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


# The epoch ------------------------------------------------------------------------------------------------------------


async def _live(world: World, sessions: Sessions) -> Ending:
    record = await _unless_stopped(sessions.record(), world.stop, sessions)
    shards = await _shards(world, record)
    await _unless_stopped(own(record, shards, standing_by=lambda: _stand_by(world)), world.stop, sessions)
    world.logger.info(LogEvent.SHARD_TAKEN, shards=shards)
    crew = await _unless_stopped(_in_time(_assemble(world, sessions, record)), world.stop, sessions)
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
        raise Unfit(f"delivery.shards is {wanted}, but the database has {there}: set it to {there}")
    return there


def _stand_by(world: World) -> None:
    world.ready("standing by: another instance owns the shards")
    for name in LOOPS:
        world.beats.of(name)()


class _StoppedEarly(Exception):  # noqa: N818 - not a mistake
    """The daemon was told to stop before the loops ran."""


async def _unless_stopped(work: Awaitable[T], stop: asyncio.Event, sessions: Sessions) -> T:
    """Await something that also ends at stop, or with the loss of a session."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait((task, stopping, sessions.lost), return_when=asyncio.FIRST_COMPLETED)
        if sessions.lost.done():
            raise DatabaseAway(f"the session {sessions.lost.result()!r} was lost")
        if not task.done():
            raise _StoppedEarly
        return await task
    finally:
        stopping.cancel()
        task.cancel()
        await asyncio.wait((task,))


async def _in_time(work: Awaitable[T]) -> T:
    """Await short statements on sessions that nobody watches yet; the bell's alone would wait for ever."""
    try:
        async with asyncio.timeout(ASSEMBLE_WITHIN_S):
            return await work
    except TimeoutError:
        raise DatabaseAway(f"the sessions were not set up within {ASSEMBLE_WITHIN_S:g} s") from None


async def _assemble(world: World, sessions: Sessions, record: Session) -> Crew:
    """Open the other sessions, see whose database this is, and build the loops around a snapshot of now."""
    read, work = await sessions.read(), await sessions.work()
    await sessions.care()
    await sessions.bell()
    if world.settings.smtp.host:
        await sessions.mail()
    hears = Hears()
    await read.listen("pghookd", hears)
    server = await identify(sessions.all())
    await check_echo(read, work, hears.echo)
    stored = [shard_of(row) for row in await record.fetch(query("read_shards"))]
    now = Snapshot(*await read.fetchval("select pg_current_snapshot()"))  # after the locks were granted
    newest = await read.fetchval(query("read_newest_event_id"))
    stays = [stay_of(row) for row in await record.fetch(query("read_home"))]
    reason = home.why_foreign(server, stored, now, newest) or home.why_moved(
        world.host, record.address, stays
    )
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
    if await identify(sessions.all()) != server:
        raise DatabaseAway("the server restarted meanwhile")
    arrival = suspects.arrive(stays, world.run)
    log = Log(now, _shard_logs(stored), _marks(stored))
    crew = Crew(world, sessions, server, log, stored, hears, arrival)
    await crew.begin(arrival)
    return crew


def _shard_logs(stored: Sequence[StoredShard]) -> dict[int, ShardLog]:
    return {row.shard: ShardLog(row.shard, row.position or Position(BEGINNING)) for row in stored}


def _marks(stored: Sequence[StoredShard]) -> Marks:
    """Start from the lowest floor: one shard's is none for another that stands further back, and is stored for it too.

    The marks beside them say what holds for later snapshots.
    """
    marks = Marks(min(row.floor for row in stored), min(row.front for row in stored))
    for mark in sorted({row.mark for row in stored if row.mark is not None}, key=lambda mark: mark.xid):
        marks.note(mark)
    return marks


class Hears:
    """Sorts what is heard on the channel. Anyone may send there, so it never means more than: look now."""

    def __init__(self) -> None:
        self.echo = asyncio.Event()
        self.wake = asyncio.Event()
        self.due: Callable[[], None] = lambda: None
        self.replay: Callable[[], None] = lambda: None
        self.endpoints: Callable[[list[int] | None], None] = lambda _: None

    def __call__(self, payload: str) -> None:
        """Take one notification."""
        self.wake.set()
        if payload == "echo":
            self.echo.set()
        elif payload == "due":
            self.due()
        elif payload == "replay":
            self.replay()
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
        arrival: Arrival,
    ) -> None:
        self._world = world
        self._sessions = sessions
        self._stored = stored
        delivery = world.settings.delivery
        self._log = log
        self._lanes = Lanes(
            concurrency=delivery.concurrency,
            endpoint_concurrency=delivery.endpoint_concurrency,
            queue_bytes_max=delivery.queue_bytes_max,
            policy=_breaker(world.settings),
        )
        self._filters = Filters(logger=world.logger, monotonic=world.monotonic)
        self._order = Order(self._lanes)
        due = self._due = DueRows(
            self._lanes,
            self._order,
            log,
            self._filters,
            shards=len(stored),
            terms=Aside(world.settings.breaker.probe_s, world.settings.retention.held_days),
            logger=world.logger,
            random01=world.random01,
        )
        replays = Replays(due, self._lanes, logger=world.logger, monotonic=world.monotonic)
        place = Place(world.host, sessions["record"].address, world.run)
        self._suspects = Suspects(replays, place, arrival, monotonic=world.monotonic)
        self._wary = arrival.is_wary
        self.recorder = self._make_recorder(server, self._suspects)
        self._suspects.hurry = self.recorder.hurry
        self._queued = asyncio.Event()
        self.mailer = self._make_mailer()
        self.care = self._make_care()
        self.deliverer = self._make_deliverer()
        fan_out = self._make_fan_out()
        self.reader = Reader(
            sessions["read"],
            log,
            self._order,
            fan_out,
            shards=len(stored),
            monotonic=world.monotonic,
            beat=world.beats.of("read"),
        )
        self.bell = self._make_bell(hears.wake)
        hears.due, hears.replay, hears.endpoints = due.ring, replays.ring, fan_out.endpoints_changed

    def _make_recorder(self, server: Server, due: Due) -> Recorder:
        settings = self._world.settings
        return Recorder(
            self._sessions["record"],
            self._log,
            self._lanes,
            self._order,
            server,
            due,
            logger=self._world.logger,
            monotonic=self._world.monotonic,
            batch_max=settings.recorder.batch_max,
            batch_wait_s=settings.recorder.batch_wait_ms / 1000,
            heartbeat_s=settings.database.heartbeat_s,
            lease_s=settings.database.lease_s,
            recorded=self._kick,
            failed=lambda: self.care.failed(),  # noqa: PLW0108 - made after the recorder, which it needs
            beat=self._world.beats.of("record"),
        )

    def _make_care(self) -> Care:
        world = self._world
        return Care(
            self._sessions["care"],
            world.settings,
            Around(
                traffic=self._lanes.traffic,
                unwatch=self.recorder.unwatch,
                behind_s=lambda: self.recorder.behind_s(world.monotonic()),
                sending=lambda: self.mailer.sending if self.mailer else None,
                queued=self._queued.set,
                checkpoint=world.checkpoint,
            ),
            logger=world.logger,
            wall_us=world.wall_us,
            beat=world.beats.of("care"),
        )

    def _make_deliverer(self) -> Deliverer:
        world = self._world
        return Deliverer(
            world.sender,
            self._lanes,
            self.recorder,
            self._sessions["work"],
            _terms(world.settings),
            logger=world.logger,
            monotonic=world.monotonic,
            wall_us=world.wall_us,
            random01=world.random01,
            beat=world.beats.of("deliver"),
            suspects=self._suspects if self._wary else None,
        )

    def _make_fan_out(self) -> FanOut:
        return FanOut(
            self._sessions["read"],
            self._log,
            self._lanes,
            self._order,
            self.recorder,
            self._filters,
            shards=len(self._stored),
            kick=self.deliverer.kick,
            logger=self._world.logger,
            monotonic=self._world.monotonic,
        )

    def _make_bell(self, wake: asyncio.Event) -> Bell:
        return Bell(
            self._sessions["bell"],
            self._sessions.bell,
            self._end_backend,
            wake=wake,
            logger=self._world.logger,
            monotonic=self._world.monotonic,
            fallback_s=self._world.settings.poll.fallback_s,
            beat=self._world.beats.of("read"),
        )

    def _make_mailer(self) -> Mailer | None:
        """Make the mailer, where there is a mail server."""
        world = self._world
        settings = world.settings
        if not settings.smtp.host:
            return None
        post = Post(settings.smtp, context=trust(settings.egress.ca_file or None), monotonic=world.monotonic)
        return Mailer(
            self._sessions["mail"],
            post,
            Letters(settings.mail, user_agent=settings.delivery.user_agent),
            settings=settings.mail,
            logger=world.logger,
            monotonic=world.monotonic,
            wall_us=world.wall_us,
            wake=self._queued,
            beat=lambda: None,
            checkpoint=world.checkpoint,
        )

    async def begin(self, arrival: Arrival) -> None:
        """Move in, and learn what was put aside; breakers that were open are, before anything goes out."""
        await self._move_in(arrival)
        await self._due.begin(self._sessions["record"], self._world.monotonic())
        await self.recorder.begin()

    async def _move_in(self, arrival: Arrival) -> None:
        """Say where we live; hold what has been on its way at too many ends that nobody can explain."""
        record, logger = self._sessions["record"], self._world.logger
        if arrival.quarantined:
            keys = columns([suspect.key for suspect in arrival.quarantined], 2)
            for row in await record.fetch(query("quarantine_deliveries"), *keys):
                logger.error(LogEvent.ROW_QUARANTINED, **dict(row), unclean_ends=arrival.unclean_ends)
        await self._suspects.enter(record)
        if arrival.is_wary:
            logger.warning(
                LogEvent.DELIVERY_SUSPECTED,
                unclean_ends=arrival.unclean_ends,
                suspects=[suspect.key for suspect in arrival.suspects] or None,
                named_for_s=arrival.named_for_s or None,
            )

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Run until told to stop, then end in order: read no more, let requests end, record, store."""
        world = self._world
        work = self._sessions["work"]
        front = [
            group.create_task(self._read()),
            group.create_task(
                maintain(
                    work, Duties.of(world.settings), logger=world.logger, beat=world.beats.of("maintain")
                )
            ),
            group.create_task(self.care.run()),
        ]
        recording = group.create_task(self.recorder.run())
        behind = [
            group.create_task(self.deliverer.run()),
            group.create_task(self._sessions.watch()),
            group.create_task(watch(self._sessions.all, world.settings.database.heartbeat_s)),
            group.create_task(watch_clock(work, wall_us=world.wall_us, logger=world.logger)),
        ]
        mailing = [] if self.mailer is None else [group.create_task(self.mailer.run())]
        await world.stop.wait()
        if self.mailer is not None:
            self.mailer.stop()
        async with _ended(front):
            grace_s, began = world.settings.delivery.grace_s, world.monotonic()
            in_time = await self.deliverer.drain(grace_s)
            if mailing:  # the mail on its way, lest it is sent again
                await asyncio.wait(mailing, timeout=max(0.0, began + grace_s - world.monotonic()))
        self.recorder.stop()
        await recording
        await self.recorder.finish()
        await self._suspects.leave(self._sessions["record"])
        async with _ended([*behind, *mailing]):
            world.logger.info(LogEvent.SHARD_LOST, reason="released", in_time=in_time)

    def _kick(self) -> None:
        self.deliverer.kick()

    async def _read(self) -> None:
        for (position, floor, front), shards in _walks(self._stored).items():
            await self.reader.recover(position, Marks(floor, front), shards)
        self._order.recovered = True
        await self.reader.run(self.bell)

    async def _end_backend(self, pid: int) -> None:
        self._sessions.let_go("bell")
        await self._sessions["work"].fetchval("select pg_terminate_backend($1)", pid)


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


def _breaker(settings: Settings) -> breaker.Policy:
    given = settings.breaker
    return breaker.Policy(given.attempts, given.share, given.probe_s, given.probe_max_s)


def _terms(settings: Settings) -> Terms:
    delivery = settings.delivery
    return Terms(
        concurrency=delivery.concurrency,
        batch_max=settings.recorder.batch_max,
        payload_bytes_max=delivery.payload_bytes_max,
        large_at_once=max(1, delivery.queue_bytes_max // delivery.payload_bytes_max),
        defaults=Defaults.of(settings, revealing(Vault.of(settings))),
        successes=settings.log.successes,
    )
