"""The life between two recoveries: own the shards, recover, run the loops; it ends with a value.

All sessions are opened before the first snapshot, then each reports its server's identity once more. Only the bell's is
ever reopened. Any failure of a session ends the epoch: memory is dropped, and the next epoch recovers from the
database. Dropping memory is required for correctness: a snapshot kept across a reconnect loses events.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeAlias, TypedDict, TypeVar

from structlog.typing import FilteringBoundLogger

from pghookd.delivery import poison
from pghookd.delivery.attempt import DeliveryTerms
from pghookd.delivery.backlog.due import Backlog, BacklogTerms
from pghookd.delivery.deliverer import Deliverer
from pghookd.delivery.poison import Arrival
from pghookd.delivery.poison_guard import Place, PoisonGuard
from pghookd.delivery.recording.recorder import Recorder, RecorderTerms
from pghookd.delivery.replays import Replays
from pghookd.egress.sender import Sender
from pghookd.encryption.keyring import Vault, revealing
from pghookd.endpoint_health.faults import FaultReports
from pghookd.endpoint_health.monitor import Monitor, MonitorHooks, no_checkpoint
from pghookd.event_log import former_server, identity
from pghookd.event_log.doorbell import Bell
from pghookd.event_log.fan_out import FanOut
from pghookd.event_log.identity import ForeignDatabase, Here, RivalDatabase, ServerIdentity, StoredShard
from pghookd.event_log.payload_filter import Filters
from pghookd.event_log.position import BEGINNING, EventLog, Position, ShardLog, Snapshot, XidMarks
from pghookd.event_log.reading.endpoints import Endpoints
from pghookd.event_log.reading.reader import make_reader
from pghookd.event_log.rows import shard_of, stay_of
from pghookd.event_log.supersede import Keys
from pghookd.model.suspect import Stay
from pghookd.postgres.client import DatabaseAway, DatabaseError, Session, Unfit, columns, query
from pghookd.process.logs import LogEvent
from pghookd.runtime.liveness import Beats, watch, watch_clock, watch_notifications
from pghookd.runtime.mailing import Mailing
from pghookd.runtime.maintenance import Duties, maintain
from pghookd.runtime.ownership import StandBy, own
from pghookd.runtime.sessions import Sessions, check_echo, identify
from pghookd.scheduling import breaker
from pghookd.scheduling.lanes import Lanes
from pghookd.scheduling.ordering import Order
from pghookd.settings.schema import Settings
from pghookd.webhook.prepared import Defaults

LOOPS: Final = ("read", "record", "deliver", "maintain", "care")
ASSEMBLE_WITHIN_S: Final = 30.0
ID_CHARS_A_SECOND: Final = 100_000  # in notifications about endpoints; reading them takes 5 ms
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Lost:
    """A session was lost or refused; recover in a new epoch."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Stopped:
    """The daemon was stopped, and every outcome that could be recorded was."""


@dataclasses.dataclass(frozen=True, slots=True)
class Foreign:
    """This is not the database of the earlier runs: deliver nothing, wait for adopt.

    Attributes:
        reason: why it is foreign.
        rival: True if the database may still run elsewhere, so that it is not adopted automatically.
    """

    reason: str
    rival: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Misfit:
    """Settings or an environment with which the daemon must not run."""

    reason: str


Ending: TypeAlias = Lost | Stopped | Foreign | Misfit
Apply: TypeAlias = Callable[[Settings, Sender], None]


class Reloads:
    """Hands reloaded settings and their sender to an epoch: at once, or as soon as its loops exist."""

    def __init__(self) -> None:
        self._latest: tuple[Settings, Sender] | None = None
        self._apply: Apply | None = None

    def put(self, settings: Settings, sender: Sender) -> None:
        """Apply settings: once this has returned, the epoch begins no request with an earlier sender."""
        self._latest = settings, sender
        if self._apply is not None:
            self._apply(settings, sender)

    def follow(self, apply: Apply) -> None:
        """Call `apply` for each reload from now on, and for the latest one during the setup of the epoch."""
        self._apply = apply
        if self._latest is not None:
            apply(*self._latest)


@dataclasses.dataclass(frozen=True)
class World:
    """The inputs of an epoch: settings, edges, clocks.

    Attributes:
        settings: the settings when the epoch begins.
        host: the id of this machine.
        run: the id of this process; the same in all of its epochs, and in no other's.
        sender: the sender made from the settings.
        reloads: brings new settings, and their sender, while the epoch runs.
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
    reloads: Reloads = dataclasses.field(default_factory=Reloads)


async def run(world: World) -> Ending:
    """Run one epoch."""
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
        return Foreign(str(error), isinstance(error, RivalDatabase))
    except Unfit as error:
        return Misfit(str(error))
    finally:
        sessions.terminate()


def _ending_of(group: BaseExceptionGroup[BaseException]) -> Ending | None:
    """Return the ending for a group of database errors only; None if it contains any other error."""
    _, others = group.split((DatabaseAway, DatabaseError, ForeignDatabase, Unfit))
    if others is not None:
        return None
    for kind, ending in ((Unfit, Misfit), (ForeignDatabase, Foreign), (Exception, Lost)):
        found, _ = group.split(kind)
        if found is not None:
            return ending(str(_first_of(found)))
    return None


def _first_of(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


# The epoch ------------------------------------------------------------------------------------------------------------


async def _live(world: World, sessions: Sessions) -> Ending:
    record = await _unless_stopped(sessions.record(), world.stop, sessions)
    shards = await _shards(world, record)
    await sessions.warm("record")
    here = await _here(world, record)
    standing_by = StandBy(
        record,
        shards,
        here,
        ready=lambda status: _stand_by(world, status),
        logger=world.logger,
        monotonic=world.monotonic,
    )
    await _unless_stopped(own(record, shards, standing_by=standing_by.step), world.stop, sessions)
    world.logger.info(LogEvent.SHARD_TAKEN, shards=shards)
    crew = await _unless_stopped(_in_time(_assemble(world, sessions, record, here)), world.stop, sessions)
    world.ready(f"reading the log, {shards} shards")
    async with asyncio.TaskGroup() as group:
        await crew.run(group)
    return Stopped()


async def _shards(world: World, record: Session) -> int:
    """Make the rows of `shards` at the first run; the setting must match their number ever after."""
    wanted = world.settings.delivery.shards
    await record.execute(query("make_shards"), wanted)
    there: int = await record.fetchval("select count(*)::int from webhooks.shards")
    if there != wanted:
        raise Unfit(f"delivery.shards is {wanted}, but the database has {there}: set it to {there}")
    return there


async def _here(world: World, record: Session) -> Here:
    """Return where this instance is; the server does not change within an epoch."""
    started_at_us: int = await record.fetchval("select pg_postmaster_start_time()")
    return Here(world.host, record.address, started_at_us, world.settings.database.home)


def _stand_by(world: World, status: str) -> None:
    world.ready(status)
    for name in LOOPS:
        world.beats.of(name)()


class _StoppedEarly(Exception):  # noqa: N818 - not an error
    """The daemon was stopped before the loops ran."""


async def _unless_stopped(work: Awaitable[T], stop: asyncio.Event, sessions: Sessions) -> T:
    """Await work that also ends at stop, or with the loss of a session."""
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
    """Await short statements on sessions that are not watched yet; the bell's has no limit of its own."""
    try:
        async with asyncio.timeout(ASSEMBLE_WITHIN_S):
            return await work
    except TimeoutError:
        raise DatabaseAway(f"the sessions were not set up within {ASSEMBLE_WITHIN_S:g} s") from None


async def _assemble(world: World, sessions: Sessions, record: Session, here: Here) -> Loops:
    """Open the other sessions, check whose database this is, and build the loops around a current snapshot."""
    read, work = await sessions.read(), await sessions.work()
    await sessions.tend()
    await sessions.care()
    await sessions.bell()
    await sessions.mail()  # even without a mail server: a reload may name one, and no session is opened later
    hears = NotificationRouter(world.monotonic)
    await read.listen("pghookd", hears)
    server = await identify(sessions.all())
    await check_echo(read, work, hears.echo)
    stored = [shard_of(row) for row in await record.fetch(query("read_shards"))]
    now = Snapshot(*await read.fetchval("select pg_current_snapshot()"))  # after the locks were granted
    newest = await read.fetchval(query("read_newest_event_id"))
    stays = [stay_of(row) for row in await record.fetch(query("read_home"))]
    reason = identity.why_foreign(server, stored, now, newest)
    if reason is not None:
        raise ForeignDatabase(reason)
    await _check_place(world, record, here, server, stays)
    fork = identity.forked_from(server, stored)
    if fork is not None:
        world.logger.warning(
            LogEvent.LOG_REANCHORED,
            timeline=server.timeline,
            stored_timeline=fork,
            note="attempts made after the fork are unknown; what receivers saw since may come again",
        )
    if await identify(sessions.all()) != server:
        raise DatabaseAway("the server restarted meanwhile")
    arrival = poison.arrive(stays, world.run)
    keys = Keys(world.settings.delivery.payload_bytes_max, world.wall_us)
    log = EventLog(now, _shard_logs(stored), _marks(stored), keys=keys)
    crew = Loops(world, sessions, server, log, stored, hears, arrival)
    await crew.begin(arrival)
    return crew


async def _check_place(
    world: World, record: Session, here: Here, server: ServerIdentity, stays: Sequence[Stay]
) -> None:
    """Compare this place with the earlier ones; store where else the database still runs.

    Raises:
        ForeignDatabase: if this is probably a copy; a RivalDatabase if the database answers elsewhere too.
    """
    database = world.settings.database
    within_s = min(former_server.ASK_WITHIN_S, database.lease_s / 4)  # the lease outlives these queries
    answers = await former_server.ask(database.url.get_secret_value(), here, server, stays, within_s=within_s)
    reason = identity.why_moved(here, stays, answers)
    if reason is None:
        return
    if (rival := identity.rival_of(answers)) is not None:
        await record.execute(query("mark_copy"), here.host, here.server, rival)
    has_rival = bool(answers) or any(stay.rival is not None for stay in stays)
    raise RivalDatabase(reason) if has_rival else ForeignDatabase(reason)


def _shard_logs(stored: Sequence[StoredShard]) -> dict[int, ShardLog]:
    return {row.shard: ShardLog(row.shard, row.position or Position(BEGINNING)) for row in stored}


def _marks(stored: Sequence[StoredShard]) -> XidMarks:
    """Use the lowest floor: a higher one would skip events of a shard that is behind, and would be stored for it.

    The stored marks add floors for later snapshots.
    """
    marks = XidMarks(min(row.floor for row in stored), min(row.front for row in stored))
    for mark in sorted({row.mark for row in stored if row.mark is not None}, key=lambda mark: mark.xid):
        marks.note(mark)
    return marks


class NotificationRouter:
    """Routes notifications. Any role can send on the channel, so a notification only triggers a check.

    Ids are read up to a number of characters a second. Beyond that a list stands for any endpoint, which needs no
    reading, and the listeners pause between two checks of all endpoints.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._second = 0.0  # when the current second began
        self._chars = 0  # characters read in it
        self.echo = asyncio.Event()
        self.wake = asyncio.Event()
        self._due: Callable[[], None] = lambda: None
        self._replay: Callable[[], None] = lambda: None
        self._endpoints: Sequence[Callable[[list[int] | None], None]] = ()

    def route(
        self,
        *,
        due: Callable[[], None],
        replay: Callable[[], None],
        endpoints: Sequence[Callable[[list[int] | None], None]],
    ) -> None:
        """Route notifications to these functions from now on; `endpoints` get ids, or None for any endpoint."""
        self._due, self._replay, self._endpoints = due, replay, endpoints

    def __call__(self, payload: str) -> None:
        """Handle one notification."""
        self.wake.set()
        if payload == "echo":
            self.echo.set()
        elif payload == "due":
            self._due()
        elif payload == "replay":
            self._replay()
        elif payload == "endpoints":
            self._endpoints_changed(None)
        elif payload.startswith("endpoints:"):
            self._endpoints_changed(self._read(payload[len("endpoints:") :]))

    def _endpoints_changed(self, ids: list[int] | None) -> None:
        for changed in self._endpoints:
            changed(ids)

    def _read(self, text: str) -> list[int] | None:
        """Return the ids of a list, skipping invalid ones; None if more was sent than is read in a second."""
        now = self._monotonic()
        if now - self._second >= 1.0:
            self._second, self._chars = now, 0
        self._chars += len(text)
        if self._chars > ID_CHARS_A_SECOND:
            return None
        return [int(i) for i in text.split(",") if i.isascii() and i.isdecimal() and len(i) < 19]  # noqa: PLR2004 - a bigint


class Loops:
    """The loops of one epoch, wired together."""

    def __init__(
        self,
        world: World,
        sessions: Sessions,
        server: ServerIdentity,
        log: EventLog,
        stored: Sequence[StoredShard],
        hears: NotificationRouter,
        arrival: Arrival,
    ) -> None:
        self._world = world
        self._sessions = sessions
        self._stored = stored
        self._grace_s = world.settings.delivery.grace_s
        self._duties = Duties.of(world.settings)
        self._log = log
        self._lanes = Lanes(**_bounds(world.settings))
        self._filters = Filters(logger=world.logger, monotonic=world.monotonic)
        self._order = Order(self._lanes)
        due = self._due = self._make_due()
        self.recorder = self._make_recorder(server)
        replays = Replays(self._lanes, made_due=due.more_due, logger=world.logger, monotonic=world.monotonic)
        place = Place(world.host, sessions["record"].address, world.run)
        self._suspects = PoisonGuard(place, arrival, wake=self.recorder.wake, monotonic=world.monotonic)
        self._wary = arrival.is_wary
        self.recorder.take_on(self._suspects, replays, due)
        self._queued = asyncio.Event()
        self.mailing = self._make_mailing()
        self.care = self._make_care()
        self.deliverer = self._make_deliverer()
        endpoints = Endpoints(sessions["read"], shards=len(stored), monotonic=world.monotonic)
        fan_out = self._make_fan_out(endpoints)
        self.reader = make_reader(
            sessions["read"],
            log,
            self._order,
            fan_out,
            endpoints,
            shards=len(stored),
            monotonic=world.monotonic,
            beat=world.beats.of("read"),
        )
        self.bell = self._make_bell(hears.wake)
        hears.route(
            due=due.ring,
            replay=replays.ring,
            endpoints=[fan_out.endpoints_changed, due.endpoints_changed],
        )
        world.reloads.follow(self.apply)

    def apply(self, settings: Settings, sender: Sender) -> None:
        """Apply new settings without waiting: requests in flight end as they began.

        Shards, sessions and memory stay as they are. `settings.schema.FIXED` names the settings that need a restart.
        """
        self._grace_s = settings.delivery.grace_s
        self._duties = Duties.of(settings)
        self._lanes.apply(**_bounds(settings))
        self._log.keys.payload_bytes_max = settings.delivery.payload_bytes_max
        self._due.apply(_aside(settings))
        self.recorder.apply(
            batch_max=settings.recorder.batch_max, batch_wait_s=settings.recorder.batch_wait_ms / 1000
        )
        self.deliverer.apply(sender, _terms(settings))
        self.bell.apply(settings.poll.fallback_s)
        self.care.apply(settings)
        self.mailing.apply(settings)

    def _make_due(self) -> Backlog:
        world = self._world
        return Backlog(
            self._lanes,
            self._order,
            self._log,
            self._filters,
            shards=len(self._stored),
            terms=_aside(world.settings),
            logger=world.logger,
            monotonic=world.monotonic,
            wall_us=world.wall_us,
            random01=world.random01,
        )

    def _make_recorder(self, server: ServerIdentity) -> Recorder:
        settings = self._world.settings
        return Recorder(
            self._sessions["record"],
            self._log,
            self._lanes,
            self._order,
            server,
            RecorderTerms(
                batch_max=settings.recorder.batch_max,
                batch_wait_s=settings.recorder.batch_wait_ms / 1000,
                heartbeat_s=settings.database.heartbeat_s,
                lease_s=settings.database.lease_s,
            ),
            logger=self._world.logger,
            monotonic=self._world.monotonic,
            recorded=self._kick,
            failed=lambda: self.care.failed(),  # noqa: PLW0108 - the monitor is made after the recorder, which it needs
            beat=self._world.beats.of("record"),
        )

    def _make_care(self) -> Monitor:
        world, session = self._world, self._sessions["care"]
        reports = FaultReports(session, world.settings, logger=world.logger, queued=self._queued.set)
        return Monitor(
            session,
            world.settings,
            MonitorHooks(
                traffic=self._lanes.traffic,
                unwatch=self.recorder.unwatch,
                behind_s=lambda: self.recorder.behind_s(world.monotonic()),
                sending=lambda: self.mailing.sending,
                queued=self._queued.set,
                checkpoint=world.checkpoint,
                report=reports.step,
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

    def _make_fan_out(self, endpoints: Endpoints) -> FanOut:
        return FanOut(
            self._sessions["read"],
            self._log,
            self._lanes,
            self._order,
            self.recorder,
            self._filters,
            endpoints,
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

    def _make_mailing(self) -> Mailing:
        world = self._world
        return Mailing(
            self._sessions["mail"],
            world.settings,
            logger=world.logger,
            monotonic=world.monotonic,
            wall_us=world.wall_us,
            wake=self._queued,
            checkpoint=world.checkpoint,
        )

    async def begin(self, arrival: Arrival) -> None:
        """Register this run and find parked and held rows; breakers that were open are open before anything is sent."""
        await self._sessions.warm()
        await self.reader.begin()
        await self._move_in(arrival)
        await self._due.begin(self._sessions["record"], self._world.monotonic())
        await self.recorder.begin()

    async def _move_in(self, arrival: Arrival) -> None:
        """Register this run in `home`; hold deliveries that were in flight at too many unexplained crashes."""
        record, logger = self._sessions["record"], self._world.logger
        if arrival.quarantined:
            keys = columns([suspect.key for suspect in arrival.quarantined], 2)
            for row in await record.fetch(query("quarantine_deliveries"), *keys):
                logger.error(LogEvent.ROW_QUARANTINED, **dict(row), unclean_ends=arrival.unclean_ends)
        await self._suspects.enter(record)
        await record.execute(query("name_home"), self._world.settings.database.home)
        await record.execute(query("forget_homes"), identity.PLACES_MAX)
        if arrival.is_wary:
            logger.warning(
                LogEvent.DELIVERY_SUSPECTED,
                unclean_ends=arrival.unclean_ends,
                suspects=[suspect.key for suspect in arrival.suspects] or None,
                named_for_s=arrival.named_for_s or None,
            )

    async def run(self, group: asyncio.TaskGroup) -> None:
        """Run until stopped, then end cleanly: stop reading, let requests end, record, store."""
        world = self._world
        tend, work = self._sessions["tend"], self._sessions["work"]
        front = [
            group.create_task(self._read()),
            group.create_task(self.bell.run()),
            group.create_task(
                maintain(
                    tend,
                    lambda: self._duties,
                    logger=world.logger,
                    beat=world.beats.of("maintain"),
                    wall_us=world.wall_us,
                    monotonic=world.monotonic,
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
            group.create_task(watch_notifications(work, logger=world.logger)),
        ]
        mailing = group.create_task(self.mailing.run())
        await world.stop.wait()
        self.mailing.stop()
        async with _ended(front):
            grace_s, began = self._grace_s, world.monotonic()
            in_time = await self.deliverer.drain(grace_s)
            # A mail being sent would be sent again after a restart: let it end, too.
            await asyncio.wait([mailing], timeout=max(0.0, began + grace_s - world.monotonic()))
        self.recorder.stop()
        await recording
        await self.recorder.finish()
        await self._suspects.leave(self._sessions["record"])
        async with _ended([*behind, mailing]):
            world.logger.info(LogEvent.SHARD_LOST, reason="released", in_time=in_time)

    def _kick(self) -> None:
        self.deliverer.kick()

    async def _read(self) -> None:
        for (position, floor, front), shards in _walks(self._stored).items():
            await self.reader.recover(position, XidMarks(floor, front), shards)
        self._order.recovered = True
        await self.reader.run(self.bell)

    async def _end_backend(self, pid: int) -> None:
        self._sessions.let_go("bell")
        await self._sessions["work"].fetchval("select pg_terminate_backend($1)", pid)


@asynccontextmanager
async def _ended(tasks: Sequence[asyncio.Task[None]]) -> AsyncIterator[None]:
    """Cancel loops that end only so, and wait for them."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    yield


def _walks(stored: Sequence[StoredShard]) -> dict[tuple[Position, int, int], list[int]]:
    """Group shards that have the same position: they are recovered together."""
    walks: dict[tuple[Position, int, int], list[int]] = {}
    for row in stored:
        position = row.position or Position(BEGINNING)
        walks.setdefault((position, row.floor, row.front), []).append(row.shard)
    return walks


class _Bounds(TypedDict):
    """The settings of the lanes."""

    concurrency: int
    endpoint_concurrency: int
    queue_bytes_max: int
    policy: breaker.BreakerPolicy


def _bounds(settings: Settings) -> _Bounds:
    delivery, given = settings.delivery, settings.breaker
    return {
        "concurrency": delivery.concurrency,
        "endpoint_concurrency": delivery.endpoint_concurrency,
        "queue_bytes_max": delivery.queue_bytes_max,
        "policy": breaker.BreakerPolicy(given.attempts, given.share, given.probe_s, given.probe_max_s),
    }


def _aside(settings: Settings) -> BacklogTerms:
    return BacklogTerms(
        settings.breaker.probe_s, settings.retention.held_days, settings.delivery.payload_bytes_max
    )


def _terms(settings: Settings) -> DeliveryTerms:
    delivery = settings.delivery
    return DeliveryTerms(
        concurrency=delivery.concurrency,
        batch_max=settings.recorder.batch_max,
        payload_bytes_max=delivery.payload_bytes_max,
        defaults=Defaults.of(settings, revealing(Vault.of(settings))),
        successes=settings.log.successes,
    )
