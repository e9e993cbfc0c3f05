"""The daemon: settings and sender, then epoch after epoch. Read this first.

An epoch (epoch.py) is the life between two recoveries. It ends with a value that gives the reason. This file decides
how to continue: a new epoch after a short wait, a hold before a foreign database, or the end.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from typing import Final, TypeVar

import uvloop
from structlog.typing import FilteringBoundLogger

from pghookd import __version__
from pghookd.delivery.senders import Senders
from pghookd.egress.sender import Sender
from pghookd.postgres import migrate
from pghookd.postgres.client import DatabaseAway, DatabaseError, Unfit, connect
from pghookd.process import logs, signals
from pghookd.process.context import Context
from pghookd.process.host_id import host_id, steady_s
from pghookd.process.logs import LogEvent
from pghookd.process.systemd import Notifier, watchdog_interval_s
from pghookd.runtime import adopt, epoch
from pghookd.runtime.liveness import Beats
from pghookd.runtime.loops import LOOPS, World
from pghookd.settings.schema import Settings, reloaded

BACKOFF_S: Final = (0.1, 0.3, 1.0, 2.0, 3.0, 5.0)  # waits between epochs; the last one repeats
STEADY_AFTER_S: Final = 30.0  # after an epoch that lived this long, the backoff starts again
FOREIGN_LOOK_S: Final = 2.0
LOOK_WITHIN_S: Final = 30.0
PULSE_S: Final = 0.25  # how often the event loop is checked for stalls
STALL_S: Final = 1.0  # stalls of this length or more are logged

T = TypeVar("T")

EXIT_DONE: Final = 0
EXIT_DATABASE: Final = 3
EXIT_SETTINGS: Final = 78


def run(
    settings: Settings,
    reload: Callable[[], Settings] | None = None,
    make_sender: Callable[[Settings], Sender] | None = None,
) -> int:
    """Run the daemon until SIGTERM or SIGINT; return the exit status.

    Args:
        settings: as loaded.
        reload: loads them again on SIGHUP; raises ValueError with every fault.
        make_sender: makes the sender of requests; None for `sender_of`.
    """
    signals.hold()
    sinks = [logs.configure(settings.log.format, settings.log.level)]

    def configure_log(fresh: Settings) -> None:
        sinks.append(logs.configure(fresh.log.format, fresh.log.level))
        sinks.pop(0).close()

    _spare_the_collector()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_until_signalled(settings, reload, configure_log, make_sender))
    finally:
        sinks[0].close()


def _spare_the_collector() -> None:
    """Collect cycles less often: a delivery makes none, and scanning all queued objects took a fifth of the time."""
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


async def _until_signalled(
    settings: Settings,
    reload: Callable[[], Settings] | None,
    configure_log: Callable[[Settings], None],
    make_sender: Callable[[Settings], Sender] | None,
) -> int:
    loop = asyncio.get_running_loop()
    app = App(
        settings,
        context_of(logs.logger()),
        reload=reload,
        configure_log=configure_log,
        make_sender=make_sender,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stop)
    loop.add_signal_handler(signal.SIGHUP, app.reload)
    if signals.hung_up():  # SIGHUP may have arrived after the settings were loaded
        app.reload()
    return await app.serve()


def context_of(logger: FilteringBoundLogger) -> Context:
    """Return the context of a daemon: real clocks and randomness."""
    return Context(logger, steady_s, lambda: time.time_ns() // 1000, random.random)


class App:
    """One daemon. `serve` runs it; `stop` and `reload` may be called from signal handlers."""

    def __init__(
        self,
        settings: Settings,
        context: Context,
        *,
        reload: Callable[[], Settings] | None = None,
        configure_log: Callable[[Settings], None] = lambda _settings: None,
        environ: Mapping[str, str] = os.environ,
        make_sender: Callable[[Settings], Sender] | None = None,
        host: str | None = None,
        run: str | None = None,
    ) -> None:
        self._settings = settings
        self._host = host or host_id()
        self._run = run or uuid.uuid4().hex
        self._context = context
        self._logger = context.logger
        self._load = reload
        self._configure_log = configure_log
        self._notifier = Notifier(environ)
        self._watchdog_s = watchdog_interval_s(environ)
        self._monotonic = context.monotonic
        self._make_sender = make_sender or sender_of
        self._senders = Senders()
        self._beats = Beats(LOOPS)
        self._stopping = asyncio.Event()
        self._reload_asked = asyncio.Event()
        self._world: World | None = None  # of the current epoch
        self._said = ""
        self._was_ready = False
        self._away = False

    def stop(self) -> None:
        """Drain and end. A second call has no effect: the grace period is already bounded."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._notifier.stopping()
            in_flight, grace_s = self._senders.in_flight, self._settings.delivery.grace_s
            self._logger.info(
                LogEvent.DAEMON_DRAINING, in_flight=in_flight, at_most_s=grace_s if in_flight else 0
            )

    def reload(self) -> None:
        """Request that the settings be loaded again; several calls in a row count as one."""
        if self._load is not None and not self._stopping.is_set():
            if self._was_ready:  # a reload ends with READY=1, which must not be sent too early
                self._notifier.reloading(time.monotonic_ns() // 1000)
            self._reload_asked.set()

    async def serve(self) -> int:
        """Run epoch after epoch; return the exit status."""
        self._logger.info(LogEvent.DAEMON_STARTED, version=__version__)
        await self._senders.use(self._make_sender(self._settings))
        try:
            async with asyncio.TaskGroup() as group:
                beside = [group.create_task(work()) for work in (self._guard, self._pulse, self._reloads)]
                status = await self._epochs()
                for task in beside:
                    task.cancel()
        finally:
            await self._senders.close()
        self._logger.info(LogEvent.DAEMON_STOPPED, status=status)
        self._notifier.close()
        return status

    # Settings ---------------------------------------------------------------------------------------------------------

    async def _reloads(self) -> None:
        """Load the settings again at each request."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            await self._reload()
            if self._was_ready:
                self._notifier.ready(self._said)

    async def _reload(self) -> None:
        """Load the settings and apply them. Faulty settings change nothing.

        The epoch continues: it keeps its shards, and requests in flight end with the sender that they began with.
        """
        try:
            settings, waiting, sender = await asyncio.to_thread(self._read_again)
            await self._senders.use(sender, lambda: self._put(settings, sender))
        except (ValueError, OSError) as error:
            self._logger.error(LogEvent.SETTINGS_REJECTED, faults=str(error))  # noqa: TRY400 - no traceback helps
            return
        self._logger.info(LogEvent.SETTINGS_RELOADED, waiting_for_restart=list(waiting) or None)

    def _read_again(self) -> tuple[Settings, tuple[str, ...], Sender]:
        """Read files, in a thread: the settings, and the trust anchors of a new sender."""
        if self._load is None:
            raise ValueError("there is nothing to load settings from")
        settings, waiting = reloaded(self._settings, self._load())
        return settings, waiting, self._make_sender(settings)

    def _put(self, settings: Settings, sender: Sender) -> None:
        self._settings = settings
        self._configure_log(settings)
        if self._world is not None:
            self._world.reloads.put(settings, sender)

    # Epochs -----------------------------------------------------------------------------------------------------------

    async def _epochs(self) -> int:
        """Run epoch after epoch until stopped, or until one ends with an exit status."""
        failures = 0
        while not self._stopping.is_set():
            started = self._monotonic()
            try:
                status = await self._once()
            except Unfit as error:  # raised by the schema check or by adopting
                status = self._misfit(str(error))
            if status is not None:
                self._stopping.set()
                return status
            failures = 0 if self._monotonic() - started > STEADY_AFTER_S else failures + 1
            await self._pause(BACKOFF_S[min(failures, len(BACKOFF_S)) - 1] if failures else BACKOFF_S[0])
        return EXIT_DONE

    async def _once(self) -> int | None:
        """Run one epoch if the schema is usable; return an exit status, or None to continue."""
        try:
            refusal = await self._unless_stopped(self._schema())
        except (DatabaseAway, DatabaseError) as error:
            self._lost(str(error))
            return None
        if refusal is not None or self._stopping.is_set():
            return refusal
        self._world = self._new_world()
        try:
            ending = await epoch.run(self._world)
        finally:
            self._world = None
        match ending:
            case epoch.Stopped():
                return None
            case epoch.Lost(reason):
                self._lost(reason)
                return None
            case epoch.Misfit(reason):
                return self._misfit(reason)
            case epoch.Foreign(reason, rival):
                await self._foreign(reason, rival=rival)
                return None

    def _misfit(self, reason: str) -> int:
        self._logger.error(LogEvent.SETTINGS_REJECTED, faults=reason)
        return EXIT_SETTINGS

    def _new_world(self) -> World:
        return World(
            settings=self._settings,
            host=self._host,
            run=self._run,
            sender=self._senders.current,
            context=self._context,
            stop=self._stopping,
            beats=self._beats,
            ready=self._ready,
        )

    async def _schema(self) -> int | None:
        """Check the schema: wait if it is older; return an exit status if it is missing or altered, else None."""
        url = self._settings.database.url.get_secret_value()
        session = await connect(url, name="look", answer_within_s=LOOK_WITHIN_S)
        try:
            while not self._stopping.is_set():
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

    async def _foreign(self, reason: str, *, rival: bool) -> None:
        """Hold before a foreign database until an operator adopts it.

        Args:
            reason: why it is foreign.
            rival: True if the database may still run elsewhere, so that it is not adopted automatically.
        """
        settings = self._settings
        if settings.database.adopt == "auto" and not rival:
            try:
                adopted = await self._unless_stopped(
                    adopt.adopt(settings, skip_backlog=False, host=self._host)
                )
            except (DatabaseAway, DatabaseError) as error:
                self._lost(str(error))
            else:
                if adopted is not None:
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

    # Log lines ------------------------------------------------------------------------------------------------------

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
        self._was_ready = True
        if status == self._said:
            return
        self._said = status
        self._notifier.ready(status)
        self._logger.info(LogEvent.DAEMON_READY, status=status)

    def _say(self, status: str) -> bool:
        """Report the status to systemd; return True if it has changed."""
        news, self._said = status != self._said, status
        if news:
            self._notifier.status(status)
        return news

    # Waiting ----------------------------------------------------------------------------------------------------------

    async def _pause(self, seconds: float) -> None:
        """Wait, but end at once when the daemon stops."""
        for name in LOOPS:  # a waiting daemon is not stalled
            self._beats.of(name)()
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _unless_stopped(self, work: Coroutine[None, None, T]) -> T | None:
        """Await work that has no use once the daemon stops; return None if it stops first."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else None
        finally:
            stopping.cancel()
            task.cancel()
            await asyncio.wait((task,))

    async def _guard(self) -> None:
        """Ping systemd's watchdog, but only if every loop has moved."""
        if self._watchdog_s is None:
            return
        while True:
            await asyncio.sleep(self._watchdog_s / 4)
            if self._stopping.is_set() or self._beats.all_moved():
                self._notifier.watchdog()

    async def _pulse(self) -> None:
        """Log stalls of the event loop: a task blocked it, or the process was stopped."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + PULSE_S
            await asyncio.sleep(PULSE_S)
            late_s = loop.time() - due
            if late_s >= STALL_S:
                self._logger.warning(LogEvent.LOOP_STALLED, for_s=round(late_s, 1))


def sender_of(settings: Settings) -> Sender:
    """Make a sender from the settings."""
    return Sender(
        policy=settings.egress.policy(),
        connections_max=settings.delivery.concurrency,
        connect_timeout_s=settings.delivery.connect_timeout_s,
        response_bytes_max=settings.delivery.response_bytes_max,
        ca_file=settings.egress.ca_file or None,
        proxy=settings.egress.way_out(),
    )
