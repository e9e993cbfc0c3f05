"""The daemon: settings and edges, then epoch after epoch. Read this first.

An epoch (epoch.py) is the life between two recoveries. It ends with a value that says why, and this file decides what
comes next: another one after a short wait, standing still before a foreign database, or the end.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Final, TypeVar

import uvloop
from structlog.typing import FilteringBoundLogger

from pghookd import __version__, adopt, epoch, migrate
from pghookd.core.settings import Settings, reloaded
from pghookd.edge import journal
from pghookd.edge.http import Sender
from pghookd.edge.journal import LogEvent
from pghookd.edge.machine import host_id, steady_s
from pghookd.edge.postgres import DatabaseAway, DatabaseError, connect
from pghookd.edge.systemd import Notifier, watchdog_interval_s
from pghookd.loops.care import no_checkpoint
from pghookd.loops.watch import Beats

BACKOFF_S: Final = (0.1, 0.3, 1.0, 2.0, 3.0, 5.0)  # between epochs; the last one repeats
STEADY_AFTER_S: Final = 30.0  # an epoch that lived this long starts the backoff anew
FOREIGN_LOOK_S: Final = 2.0
LOOK_WITHIN_S: Final = 30.0
PULSE_S: Final = 0.25  # how often is looked whether the event loop stands still
STALL_S: Final = 1.0  # from here on it is told

T = TypeVar("T")

EXIT_DONE: Final = 0
EXIT_DATABASE: Final = 3
EXIT_SETTINGS: Final = 78


def run(
    settings: Settings,
    reload: Callable[[], Settings] | None = None,
    checkpoint: Callable[[str], Awaitable[None]] = no_checkpoint,
    make_sender: Callable[[Settings], Sender] | None = None,
) -> int:
    """Run the daemon until SIGTERM or SIGINT; return the exit status.

    Args:
        settings: as loaded.
        reload: loads them again on SIGHUP; raises ValueError with every fault.
        checkpoint: awaited at each step of a mail's road, with its name.
        make_sender: makes what requests are sent with; None: `sender_of`.
    """
    sinks = [journal.configure(settings.log)]

    def configure_log(fresh: Settings) -> None:
        sinks.append(journal.configure(fresh.log))
        sinks.pop(0).close()

    _spare_the_collector()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_until_signalled(settings, reload, configure_log, checkpoint, make_sender))
    finally:
        sinks[0].close()


def _spare_the_collector() -> None:
    """Look for cycles less often: a delivery makes none, and looking at all that is queued took a fifth of the time."""
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)


async def _until_signalled(
    settings: Settings,
    reload: Callable[[], Settings] | None,
    configure_log: Callable[[Settings], None],
    checkpoint: Callable[[str], Awaitable[None]],
    make_sender: Callable[[Settings], Sender] | None,
) -> int:
    loop = asyncio.get_running_loop()
    app = App(
        settings,
        logger=journal.logger(),
        reload=reload,
        configure_log=configure_log,
        checkpoint=checkpoint,
        make_sender=make_sender,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stop)
    loop.add_signal_handler(signal.SIGHUP, app.reload)
    return await app.serve()


class App:
    """One daemon. `serve` runs it; `stop` and `reload` may be called from signal handlers."""

    def __init__(
        self,
        settings: Settings,
        *,
        logger: FilteringBoundLogger,
        reload: Callable[[], Settings] | None = None,
        configure_log: Callable[[Settings], None] = lambda _settings: None,
        environ: Mapping[str, str] = os.environ,
        monotonic: Callable[[], float] = steady_s,
        wall_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        random01: Callable[[], float] = random.random,
        checkpoint: Callable[[str], Awaitable[None]] = no_checkpoint,
        make_sender: Callable[[Settings], Sender] | None = None,
        host: str | None = None,
        run: str | None = None,
    ) -> None:
        self._settings = settings
        self._host = host or host_id()
        self._run = run or uuid.uuid4().hex
        self._logger = logger
        self._load = reload
        self._configure_log = configure_log
        self._notifier = Notifier(environ)
        self._watchdog_s = watchdog_interval_s(environ)
        self._monotonic = monotonic
        self._wall_us = wall_us
        self._random01 = random01
        self._checkpoint = checkpoint
        self._make_sender = make_sender or sender_of
        self._beats = Beats(epoch.LOOPS)
        self._stopping = asyncio.Event()  # the daemon ends
        self._turn = asyncio.Event()  # the epoch ends: to stop, or to go on with new settings
        self._said = ""
        self._away = False

    def stop(self) -> None:
        """Drain and end. A second call changes nothing: the grace is bounded already."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._turn.set()
            self._notifier.stopping()
            self._logger.info(LogEvent.DAEMON_DRAINING)

    def reload(self) -> None:
        """Read the settings again; faulty ones change nothing."""
        if self._load is None:
            return
        self._notifier.reloading(time.monotonic_ns() // 1000)
        try:
            fresh = self._load()
        except ValueError as error:
            self._logger.error(LogEvent.SETTINGS_REJECTED, faults=str(error))  # noqa: TRY400 - no traceback helps
        else:
            self._settings, waiting = reloaded(self._settings, fresh)
            self._configure_log(self._settings)
            self._logger.info(LogEvent.SETTINGS_RELOADED, waiting_for_restart=list(waiting) or None)
            self._turn.set()
        self._notifier.ready(self._said)

    async def serve(self) -> int:
        """Run epoch after epoch; return the exit status."""
        self._logger.info(LogEvent.DAEMON_STARTED, version=__version__)
        status = EXIT_DONE
        async with asyncio.TaskGroup() as group:
            guards = [group.create_task(self._guard()), group.create_task(self._pulse())]
            while not self._stopping.is_set():
                self._turn.clear()
                status = await self._with_settings()
            for guard in guards:
                guard.cancel()
        self._logger.info(LogEvent.DAEMON_STOPPED, status=status)
        self._notifier.close()
        return status

    async def _with_settings(self) -> int:
        """Live with one set of settings; the status is of use only when the daemon is to end."""
        settings = self._settings
        async with self._make_sender(settings) as sender:
            failures = 0
            while not self._turn.is_set():
                started = self._monotonic()
                status = await self._once(settings, sender)
                if status is not None:
                    self._stopping.set()
                    return status
                failures = 0 if self._monotonic() - started > STEADY_AFTER_S else failures + 1
                await self._pause(BACKOFF_S[min(failures, len(BACKOFF_S)) - 1] if failures else BACKOFF_S[0])
        return EXIT_DONE

    async def _once(self, settings: Settings, sender: Sender) -> int | None:
        """Live one epoch, if the schema is fit for it; a status ends the daemon."""
        try:
            refusal = await self._unless_turned(self._schema(settings))
        except (DatabaseAway, DatabaseError) as error:
            self._lost(str(error))
            return None
        if refusal is not None or self._turn.is_set():
            return refusal
        ending = await epoch.run(self._world(settings, sender))
        match ending:
            case epoch.Stopped():
                return None
            case epoch.Lost(reason):
                self._lost(reason)
                return None
            case epoch.Misfit(reason):
                self._logger.error(LogEvent.SETTINGS_REJECTED, faults=reason)
                return EXIT_SETTINGS
            case epoch.Foreign(reason):
                await self._foreign(settings, reason)
                return None

    def _world(self, settings: Settings, sender: Sender) -> epoch.World:
        return epoch.World(
            settings=settings,
            host=self._host,
            run=self._run,
            sender=sender,
            logger=self._logger,
            stop=self._turn,
            beats=self._beats,
            ready=self._ready,
            monotonic=self._monotonic,
            wall_us=self._wall_us,
            random01=self._random01,
            checkpoint=self._checkpoint,
        )

    async def _schema(self, settings: Settings) -> int | None:
        """Look at the schema: older is waited for, missing or altered ends the daemon."""
        url = settings.database.url.get_secret_value()
        session = await connect(url, name="look", answer_within_s=LOOK_WITHIN_S)
        try:
            while not self._turn.is_set():
                found = await migrate.look(session, migrate.load())
                if found.plan.faults or not found.exists:
                    faults = found.plan.faults or ("there is no schema webhooks: run `pghookd migrate`",)
                    self._logger.error(LogEvent.DATABASE_LOST, reason="; ".join(faults))
                    return EXIT_DATABASE
                if found.is_usable:
                    return None
                self._say("waiting: the schema is older than this program, run `pghookd migrate`")
                await self._pause(BACKOFF_S[-1])
        finally:
            await session.close()
        return None

    async def _foreign(self, settings: Settings, reason: str) -> None:
        """Hold still before a database that is not the one we ran in, until somebody adopts it."""
        if settings.database.adopt == "auto":
            try:
                await adopt.adopt(settings, skip_backlog=False, host=self._host)
            except (DatabaseAway, DatabaseError) as error:
                self._lost(str(error))
            else:
                self._logger.warning(
                    LogEvent.LOG_REANCHORED, reason=reason, note="adopted: database.adopt is auto"
                )
            return
        status = f"holding still: {reason}; run `pghookd adopt` if this database is meant"
        if status != self._said:
            self._logger.error(
                LogEvent.DATABASE_FOREIGN, reason=reason, note="nothing is delivered until `pghookd adopt`"
            )
        self._ready(status)
        await self._pause(FOREIGN_LOOK_S)

    # What is said ---------------------------------------------------------------------------------------------------

    def _lost(self, reason: str) -> None:
        if self._stopping.is_set():
            return
        self._away = True
        self._logger.warning(LogEvent.DATABASE_LOST, reason=reason)
        self._say(f"waiting for the database: {reason}")

    def _ready(self, status: str) -> None:
        if self._away:
            self._away = False
            self._logger.info(LogEvent.DATABASE_RESTORED)
        if status == self._said:
            return
        self._said = status
        self._notifier.ready(status)
        self._logger.info(LogEvent.DAEMON_READY, status=status)

    def _say(self, status: str) -> bool:
        """Tell systemd; whether it is news."""
        news, self._said = status != self._said, status
        if news:
            self._notifier.status(status)
        return news

    # Waiting ----------------------------------------------------------------------------------------------------------

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the epoch's settings."""
        for name in epoch.LOOPS:  # waiting is no standstill
            self._beats.of(name)()
        try:
            async with asyncio.timeout(seconds):
                await self._turn.wait()
        except TimeoutError:
            return

    async def _unless_turned(self, work: Coroutine[None, None, T]) -> T | None:
        """Await something that is of no use any more once the epoch is to end; None then."""
        task = asyncio.ensure_future(work)
        turning = asyncio.ensure_future(self._turn.wait())
        try:
            await asyncio.wait((task, turning), return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else None
        finally:
            turning.cancel()
            task.cancel()
            await asyncio.wait((task,))

    async def _guard(self) -> None:
        """Tell systemd's watchdog that we live, but only if every loop has moved."""
        if self._watchdog_s is None:
            return
        while True:
            await asyncio.sleep(self._watchdog_s / 4)
            if self._stopping.is_set() or self._beats.all_moved():
                self._notifier.watchdog()

    async def _pulse(self) -> None:
        """Tell of moments in which nothing at all moved: something kept the loop, or the process was stopped."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + PULSE_S
            await asyncio.sleep(PULSE_S)
            late_s = loop.time() - due
            if late_s >= STALL_S:
                self._logger.warning(LogEvent.LOOP_STALLED, for_s=round(late_s, 1))


def sender_of(settings: Settings) -> Sender:
    """Make the sender that settings ask for."""
    return Sender(
        policy=settings.egress.policy(),
        connections_max=settings.delivery.concurrency,
        connect_timeout_s=settings.delivery.connect_timeout_s,
        response_bytes_max=settings.delivery.response_bytes_max,
        ca_file=settings.egress.ca_file or None,
        proxy=settings.egress.way_out(),
    )
