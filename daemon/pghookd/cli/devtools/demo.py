"""`pghookd demo`: shows how events get from a table to a receiver, on this machine and without any setup.

It runs the same daemon as `run` (runtime/app.py), on an embedded Postgres in its own folder. It adds a producer that
INSERTs events as a shop would, and a receiver that verifies signatures.

Never here: another way to deliver. The demo shows exactly what production does.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import os
import random
import secrets
import shutil
import signal
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TextIO

import uvloop
from rich.console import Console
from rich.live import Live

from pghookd.cli.devtools import demo_view
from pghookd.cli.devtools.demo_view import Hook, ShownMail, Tally
from pghookd.cli.devtools.embedded_postgres import EmbeddedFault, EmbeddedServer
from pghookd.cli.devtools.payloads import Shop
from pghookd.cli.devtools.receiver import ReceivedRequest, Receiver
from pghookd.postgres import migrate
from pghookd.postgres.client import DatabaseAway, DatabaseError, Session, connect, query
from pghookd.process import logs
from pghookd.runtime import app
from pghookd.settings import schema as configuration
from pghookd.settings.durations import parse_schedule

SITES: Final = {"bakery": "Corner Bakery", "bikes": "Bikes & Co", "studio": "Studio North"}
HOOKS: Final = (  # site, name, types
    ("bakery", "all", ("*",)),
    ("bikes", "orders", ("order_created", "order_updated")),
    ("bikes", "crm", ("contact_updated", "form_submitted", "product_created", "product_updated")),
    ("studio", "flaky", ("*",)),
)
BROKEN: Final = (
    "/bikes/crm"  # fails for a while and recovers, so that its owner gets mails; not if --events is given
)
BROKEN_FROM_S: Final = 3.0
BROKEN_UNTIL_S: Final = 20.0
BROKEN_EVERY_S: Final = 120.0
PAUSE_S: Final = 0.1  # between two events, if --events is not given
REFRESH_S: Final = 0.2
LINE_S: Final = 1.0  # between two plain lines
READY_S: Final = 15.0
WARM_S: Final = 5.0  # limit for the uncounted test event to each endpoint
WARM_LOOK_S: Final = 0.01
STALLED_S: Final = 60.0  # without any arrival for this long the demo gives up
SCHEDULE: Final = "500ms,1s,2s,4s,8s,15s,30s,60s"
_TEST_TYPE: Final = "webhook_test"

_OK: Final = 0
_NO: Final = 1


def main(events: int | None = None, folder: Path | None = None) -> int:
    """Run the demo; return the exit status, which is 0 if everything sent was delivered and verified.

    Args:
        events: number of events to send; None to run until Ctrl-C.
        folder: folder for the data; None for the user's data folder.
    """
    console = demo_view.console()
    where = (folder or _default_folder()).expanduser().resolve()
    try:
        with _alone(where), EmbeddedServer(where) as server:
            log, sink = _journal(where)
            with (
                log,
                contextlib.closing(sink),
                asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            ):
                return runner.run(Demo(server, where, console, events).run())
    except (EmbeddedFault, DatabaseAway, DatabaseError, OSError) as error:
        console.print(str(error), style="red", soft_wrap=True)
        return _NO
    except migrate.SchemaFault as error:
        console.print(
            f"{error}; name another folder with --dir, or delete {where}", style="red", soft_wrap=True
        )
        return _NO
    except KeyboardInterrupt:  # while Postgres was starting or stopping
        return _NO


class Demo:
    """One run of the demo."""

    def __init__(self, server: EmbeddedServer, folder: Path, console: Console, events: int | None) -> None:
        self._server = server
        self._folder = folder
        self._console = console
        self._wanted = events
        self._stop = asyncio.Event()  # ends producer and daemon
        self._tally = Tally(())
        self._cold = 0  # endpoints whose test event has not arrived yet
        self._event_ids: list[int] = []  # the events sent, if --events is given
        self._begun = self._arrived = time.monotonic()
        self._chance = random.Random()  # noqa: S311 - prices and names of a made-up shop

    async def run(self) -> int:
        """Set up, run and summarise the demo; return the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        await migrate.migrate(self._server.url())
        session = await connect(self._server.url(), name="demo")
        try:
            async with (
                Receiver(self._mood, self._arrive) as receiver,
                _mails_to(self._folder / "mails", self._keep) as smtp,
            ):
                self._tally = Tally(await _furnish(session, receiver))
                self._introduce()
                status = await self._live(session, settings_of(self._server, smtp))
            return await self._sum_up(session, status)
        finally:
            await session.close()

    async def _live(self, session: Session, settings: configuration.Settings) -> int:
        """Run the daemon, the producer and the view until the end; return the daemon's exit status."""
        path = self._server.sockets / "ready"
        with _bound(path) as told:
            daemon = app.App(settings, app.context_of(logs.logger()), environ={"NOTIFY_SOCKET": str(path)})
            async with asyncio.TaskGroup() as group:
                serving = group.create_task(daemon.serve())
                serving.add_done_callback(lambda _task: self._stop.set())
                group.create_task(self._produce(session, told))
                group.create_task(self._show())
                await self._stop.wait()
                daemon.stop()
        return serving.result()

    # The producer ---------------------------------------------------------------------------------------

    async def _produce(self, session: Session, told: socket.socket) -> None:
        """Send all events, wait for their arrival, then stop the demo."""
        try:
            await self._readiness(told)
            await self._warm_up(session)
            await self._send(session)
        except (DatabaseAway, DatabaseError) as error:
            self._print(str(error))
        self._stop.set()

    async def _readiness(self, told: socket.socket) -> None:
        """Wait for the daemon's READY=1, as systemd does: earlier events would have long latencies."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                while b"READY=1" not in await asyncio.get_running_loop().sock_recv(told, 4096):
                    pass

    async def _warm_up(self, session: Session) -> None:
        """Send each endpoint a test event that does not count.

        The first connection to a receiver and the first run of code are slow only once in a daemon's life.
        """
        hooks = self._tally.hooks.values()
        self._cold = len(hooks)
        for hook in hooks:
            await session.fetchval(query("send_test"), hook.endpoint_id, _TEST_TYPE)
        end = time.monotonic() + WARM_S
        while self._cold and not self._stop.is_set() and time.monotonic() < end:
            await self._pause(WARM_LOOK_S)
        self._cold = 0

    async def _send(self, session: Session) -> None:
        """INSERT events; then wait until all have arrived, or none has arrived for STALLED_S."""
        shops = [(site_id, Shop(site_id, self._chance)) for site_id in SITES]
        number = 0
        self._begun = time.monotonic()
        while not self._stop.is_set() and (self._wanted is None or number < self._wanted):
            await self._insert(session, *shops[number % len(shops)])
            number += 1
            if self._wanted is None:
                await self._pause(PAUSE_S)
        self._arrived = time.monotonic()
        while (
            self._tally.pending and not self._stop.is_set() and time.monotonic() - self._arrived < STALLED_S
        ):
            await self._pause(REFRESH_S)

    async def _insert(self, session: Session, site_id: str, shop: Shop) -> None:
        occurrence = shop.next()
        row = await session.fetchrow(
            query("insert_event"), site_id, occurrence.type, occurrence.payload, occurrence.subject
        )
        if row is not None:
            committed_at_us = time.time_ns() // 1000
            self._tally.insert(row["event_id"], site_id, occurrence.type, committed_at_us)
            if self._wanted is not None:
                self._event_ids.append(row["event_id"])

    def _arrive(self, arrival: ReceivedRequest) -> None:
        self._arrived = time.monotonic()
        if self._cold and arrival.event_type == _TEST_TYPE:
            self._cold -= 1
            return
        self._tally.arrive(arrival)

    def _mood(self, path: str, webhook_id: str, attempt: int) -> bool:
        """Return True if the receiver accepts the request."""
        if self._cold:
            return True
        if path == BROKEN and self._wanted is None and is_broken(time.monotonic() - self._begun):
            return False
        return not path.endswith("/flaky") or _is_taken_by_flaky(webhook_id, attempt)

    # Output ---------------------------------------------------------------------------------------------

    def _introduce(self) -> None:
        psql = shutil.which("psql") or self._server.binary("psql")
        self._print(
            f"Postgres is in {self._server.folder}; the daemon's own log is daemon.log in {self._folder}."
        )
        if self._wanted is None:
            self._print(f"{BROKEN} fails now and then; emails to its owner are kept in mails/ there.")
        self._print("In a second terminal, insert an event yourself:")
        self._print(f"  {psql} '{self._server.url()}'")
        self._print(
            "  insert into webhooks.events (site_id, type, payload)"
            """ values ('bakery', 'order_created', '{"id": 4711, "total": 12.5}');"""
        )

    def _keep(self, mail: ShownMail) -> None:
        self._tally.mails.append(mail)
        if not self._console.is_terminal:
            self._print(demo_view.mail_line(mail))

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    async def _show(self) -> None:
        """Show the tally until the end: a live table on a terminal, otherwise a line whenever it changes."""
        if not self._console.is_terminal:
            await self._show_lines()
            return
        with Live(
            console=self._console, auto_refresh=False, get_renderable=lambda: demo_view.table(self._tally)
        ) as live:
            while not self._stop.is_set():
                live.refresh()
                await self._pause(REFRESH_S)

    async def _show_lines(self) -> None:
        said = ""
        while not self._stop.is_set():
            await self._pause(LINE_S)
            text = demo_view.line(self._tally)
            if text != said:
                self._print(text)
                said = text

    async def _pause(self, seconds: float) -> None:
        """Wait for some seconds, or until the demo stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()

    # The end --------------------------------------------------------------------------------------------

    async def _sum_up(self, session: Session, status: int) -> int:
        tally = self._tally
        self._print(demo_view.line(tally))
        if status != _OK:
            self._print(f"the daemon ended with status {status}: see {self._folder / 'daemon.log'}")
            return _NO
        if self._wanted is None:
            return _NO if tally.refuted else _OK
        recorded = await session.fetchval(query("count_delivered"), self._event_ids)
        complete = tally.events == self._wanted and not tally.pending and not tally.refuted
        fine = complete and recorded >= tally.expected
        self._print(
            f"{tally.events} events, {tally.expected} deliveries: {tally.delivered} verified by the receiver,"
            f" {recorded} recorded as delivered, {tally.refuted} not believed:"
            f" {'all well' if fine else 'NOT all well'}"
        )
        return _OK if fine else _NO


def settings_of(server: EmbeddedServer, smtp: configuration.SmtpSettings) -> configuration.Settings:
    """Return the demo's settings: the defaults, except for the database, loopback, mails and shorter waits."""
    return configuration.Settings(
        database=configuration.DatabaseSettings(url=configuration.Secret(server.url()), adopt="auto"),
        delivery=configuration.DeliverySettings(timeout_s=5, connect_timeout_s=2, grace_s=6),
        retry=configuration.RetrySettings(schedule=parse_schedule(SCHEDULE), throttle_floor_s=0),
        breaker=configuration.BreakerSettings(probe_s=2, probe_max_s=5),
        egress=configuration.EgressSettings(allow=("127.0.0.0/8",)),
        smtp=smtp,
        mail=configuration.MailSettings(
            sender="webhooks@platform.example",
            platform_name="The Demo Platform",
            first_wait_s=10,
            gap_s=10,
            urgent_gap_s=10,
            recovered_after_s=15,
            daily_max=1000,
            check_s=1,
        ),
    )


@contextlib.asynccontextmanager
async def _mails_to(
    folder: Path, kept: Callable[[ShownMail], None]
) -> AsyncIterator[configuration.SmtpSettings]:
    """Run a mail server that keeps its mails, and yield its settings, which are empty without the extra `embedded`."""
    try:
        from pghookd.cli.devtools.demo_mailbox import Mailbox  # noqa: PLC0415 - an older installation may not have aiosmtpd
    except ModuleNotFoundError:
        yield configuration.SmtpSettings()
        return
    async with Mailbox(folder, kept) as mailbox:
        yield configuration.SmtpSettings(host="127.0.0.1", port=mailbox.port, tls="none")


@contextlib.contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    """Open the socket on which the daemon reports that it is ready (sd_notify(3))."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as told:
        told.bind(str(path))
        try:
            yield told
        finally:
            path.unlink(missing_ok=True)


def is_broken(running_s: float) -> bool:
    """Return True if the broken endpoint is down `running_s` seconds after the first event."""
    return BROKEN_FROM_S <= running_s % BROKEN_EVERY_S < BROKEN_UNTIL_S


def _is_taken_by_flaky(webhook_id: str, attempt: int) -> bool:
    """Return True if the flaky endpoint accepts an attempt: it refuses some first and fewer second attempts."""
    return attempt > 2 or zlib.crc32(webhook_id.encode()) % 8 >= 3 - attempt  # noqa: PLR2004 - a third must succeed


async def _furnish(session: Session, receiver: Receiver) -> Sequence[Hook]:
    """Create the sites and endpoints that do not exist yet, and set the URL of all to this run's receiver."""
    await session.execute(query("put_sites"), list(SITES), list(SITES.values()))
    return [await _hook(session, receiver, *each) for each in HOOKS]


async def _hook(
    session: Session, receiver: Receiver, site_id: str, name: str, event_types: tuple[str, ...]
) -> Hook:
    path = f"/{site_id}/{name}"
    url = receiver.url(path)
    row = await session.fetchrow(query("move_endpoint"), site_id, name, url)
    if row is None:
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        row = await session.fetchrow(query("insert_endpoint"), site_id, name, url, list(event_types), secret)
    if row is None:
        raise RuntimeError("INSERT .. RETURNING returned nothing")
    receiver.expect(path, row["secret"])
    return Hook(row["endpoint_id"], site_id, path, event_types)


def _default_folder() -> Path:
    """Return the demo's folder in the user's data directory (XDG Base Directory Specification)."""
    data = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data) if data.startswith("/") else Path.home() / ".local/share") / "pghookd" / "demo"


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the folder for this process.

    Raises:
        EmbeddedFault: another demo uses the folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)  # the log and the mails contain data of a customer's events
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedFault(f"another demo runs in {folder}: name another folder with --dir") from None
        yield


def _journal(folder: Path) -> tuple[TextIO, logs.LogSink]:
    """Write the daemon's log to a file, because the view uses the terminal."""
    target = (folder / "daemon.log").open("w")
    os.fchmod(target.fileno(), 0o600)
    return target, logs.configure("pretty", descriptor=target.fileno())
