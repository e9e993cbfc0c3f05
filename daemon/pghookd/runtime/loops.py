"""The loops of one epoch: the engine, and what watches over it, wired together and run until stopped."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

from pghookd.delivery.poison import Arrival
from pghookd.delivery.poison_guard import Place, PoisonGuard
from pghookd.egress.sender import Sender
from pghookd.endpoint_health.faults import FaultReports
from pghookd.endpoint_health.monitor import Monitor, MonitorHooks
from pghookd.event_log import identity
from pghookd.event_log.doorbell import Bell
from pghookd.postgres.client import columns, query
from pghookd.process.context import Context
from pghookd.process.logs import LogEvent
from pghookd.runtime.assembly import Engine, EngineTerms, Listeners, Start
from pghookd.runtime.liveness import Beats, watch, watch_clock, watch_notifications
from pghookd.runtime.mailing import Mailing
from pghookd.runtime.notifications import NotificationRouter
from pghookd.runtime.sessions import Sessions
from pghookd.runtime.upkeep.maintenance import Duties, maintain
from pghookd.runtime.upkeep.readiness import Readiness
from pghookd.settings.schema import Settings

LOOPS: Final = ("read", "record", "deliver", "maintain", "care", "mail")
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
    context: Context
    stop: asyncio.Event
    beats: Beats
    ready: Callable[[str], None]
    reloads: Reloads = dataclasses.field(default_factory=Reloads)


class Loops:
    """The loops of one epoch, wired together."""

    def __init__(
        self, world: World, sessions: Sessions, start: Start, router: NotificationRouter, arrival: Arrival
    ) -> None:
        context, settings = world.context, world.settings
        self._world = world
        self._sessions = sessions
        self._grace_s = settings.delivery.grace_s
        self._duties = Duties.of(settings)
        place = Place(world.host, start.record.address, world.run)
        chores_due = Listeners()
        self._guard = PoisonGuard(place, arrival, wake=chores_due, monotonic=context.monotonic)
        terms = EngineTerms.of(settings)
        self._engine = Engine(
            start,
            world.sender,
            terms,
            context,
            beats=world.beats.of,
            guard=self._guard,
        )
        chores_due.add(self._engine.recorder.wake)
        self._mail_queued = asyncio.Event()
        self._mailing = Mailing(
            sessions["mail"], settings, context, wake=self._mail_queued, beat=world.beats.of("mail")
        )
        self._monitor = self._make_monitor()
        self._engine.has_failed.add(self._monitor.failed)
        self._readiness = Readiness(
            sessions["care"],
            len(start.stored),
            defaults=terms.delivery.defaults,
            obstacle=world.sender.obstacle,
            logger=context.logger,
        )
        self._bell = self._make_bell(router.wake)
        router.route(
            due=self._engine.backlog.ring,
            replay=self._engine.replays.ring,
            endpoints=[
                self._engine.fan_out.endpoints_changed,
                self._engine.backlog.endpoints_changed,
                self._readiness.endpoints_changed,
            ],
        )
        world.reloads.follow(self.apply)

    def apply(self, settings: Settings, sender: Sender) -> None:
        """Apply new settings without waiting: requests in flight end as they began.

        Shards, sessions and memory stay as they are. `settings.schema.FIXED` names the settings that need a restart.
        """
        self._grace_s = settings.delivery.grace_s
        self._duties = Duties.of(settings)
        terms = EngineTerms.of(settings)
        self._engine.apply(sender, terms)
        self._readiness.apply(terms.delivery.defaults, sender.obstacle)
        self._bell.apply(settings.poll.fallback_s)
        self._monitor.apply(settings)
        self._mailing.apply(settings)

    def _make_monitor(self) -> Monitor:
        world, session, engine = self._world, self._sessions["care"], self._engine
        context = world.context
        queued = self._mail_queued.set
        reports = FaultReports(session, world.settings, logger=context.logger, queued=queued)
        return Monitor(
            session,
            world.settings,
            MonitorHooks(
                traffic=engine.lanes.turns.traffic.sites,
                unwatch=engine.recorder.unwatch,
                behind_s=lambda: engine.recorder.behind_s(context.monotonic()),
                sending=lambda: self._mailing.sending,
                queued=queued,
                report=reports.step,
            ),
            logger=context.logger,
            wall_us=context.wall_us,
            beat=world.beats.of("care"),
        )

    def _make_bell(self, wake: asyncio.Event) -> Bell:
        context = self._world.context
        return Bell(
            self._sessions["bell"],
            self._sessions.bell,
            self._end_backend,
            wake=wake,
            logger=context.logger,
            monotonic=context.monotonic,
            fallback_s=self._world.settings.poll.fallback_s,
            beat=self._world.beats.of("read"),
        )

    async def begin(self, arrival: Arrival) -> None:
        """Register this run and find parked and held rows; breakers that were open are open before anything is sent."""
        await self._sessions.warm()
        await self._engine.reader.begin()
        await self._move_in(arrival)
        await self._engine.backlog.begin(self._sessions["record"], self._world.context.monotonic())
        await self._engine.recorder.begin()

    async def _move_in(self, arrival: Arrival) -> None:
        """Register this run in `home`; hold deliveries that were in flight at too many unexplained crashes."""
        record, logger = self._sessions["record"], self._world.context.logger
        if arrival.quarantined:
            keys = columns([suspect.key for suspect in arrival.quarantined], 2)
            for row in await record.fetch(query("quarantine_deliveries"), *keys):
                logger.error(LogEvent.ROW_QUARANTINED, **dict(row), unclean_ends=arrival.unclean_ends)
        await self._guard.enter(record)
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
            group.create_task(self._engine.read(self._bell)),
            group.create_task(self._bell.run()),
            group.create_task(
                maintain(
                    tend,
                    lambda: self._duties,
                    logger=world.context.logger,
                    beat=world.beats.of("maintain"),
                    wall_us=world.context.wall_us,
                    monotonic=world.context.monotonic,
                    unclaimed=self._engine.fan_out.unclaimed,
                )
            ),
            group.create_task(self._monitor.run()),
            group.create_task(self._readiness.run()),
        ]
        recording = group.create_task(self._engine.recorder.run())
        behind = [
            group.create_task(self._engine.deliverer.run()),
            group.create_task(self._sessions.watch()),
            group.create_task(watch(self._sessions.all, world.settings.database.heartbeat_s)),
            group.create_task(watch_clock(work, wall_us=world.context.wall_us, logger=world.context.logger)),
            group.create_task(watch_notifications(work, logger=world.context.logger)),
        ]
        mailing = group.create_task(self._mailing.run())
        await world.stop.wait()
        self._mailing.stop()
        async with _ended(front):
            grace_s, began = self._grace_s, world.context.monotonic()
            in_time = await self._engine.deliverer.drain(grace_s)
            # A mail being sent would be sent again after a restart: let it end, too.
            await asyncio.wait([mailing], timeout=max(0.0, began + grace_s - world.context.monotonic()))
        self._engine.recorder.stop()
        await recording
        await self._engine.recorder.finish()
        await self._guard.leave(self._sessions["record"])
        async with _ended([*behind, mailing]):
            world.context.logger.info(LogEvent.SHARD_LOST, reason="released", in_time=in_time)

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
