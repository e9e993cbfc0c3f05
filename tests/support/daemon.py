"""The daemon as a process: start it, read what it says, kill it, stop it.

A test waits for its evidence: a line of the log, a row, an entry of the receiver's log. Never here: sleeping
until something has probably happened, and anything that reads the daemon's memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

from support import receiver

READY_WITHIN_S = 20.0  # a loaded machine imports slowly
_PRIORITY = re.compile(rb"^<[0-7]>")

# Settings of every story: it delivers to this machine, and retries within a test's patience.
BASE = {
    "EGRESS_ALLOW": "127.0.0.0/8",
    "RETRY_SCHEDULE": "0.3s,0.5s,1s",
    "RETRY_THROTTLE_FLOOR_S": "0",
    "LOG_FORMAT": "json",
}

# Settings of stories that count the requests which come again: few at once, and a lost session is noticed soon.
CONCURRENCY = 32
BATCH_MAX = 50
BOUNDED = {"delivery_concurrency": CONCURRENCY, "recorder_batch_max": BATCH_MAX}
VIGILANT = {**BOUNDED, "database_heartbeat_s": 0.5, "database_lease_s": 4}
UNRECORDED_MAX = CONCURRENCY + BATCH_MAX  # requests that may come again after the loss of a session


class Daemon:
    """One `pghookd run`.

    Attributes:
        lines: what it logged, in order.
        noise: what else it printed; a traceback lands here.
    """

    PROGRAM = ("-m", "pghookd", "run")

    def __init__(self, url, *, environ=None, program=PROGRAM, **settings):
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PGHOOKD_", "PG")) and name not in {"NOTIFY_SOCKET", "WATCHDOG_USEC"}
        }
        given = {**BASE, **{name.upper(): str(value) for name, value in settings.items()}}
        self._environ = {
            **inherited,
            "PGHOOKD_DATABASE_URL": url,
            **{f"PGHOOKD_{name}": value for name, value in given.items()},
            **(environ or {}),
        }
        self.program = program
        self.lines = []
        self.noise = []
        self._news = asyncio.Event()
        self._process = None
        self._reading = None

    async def start(self):
        """Start it; `await daemon.ready()` follows where that is wanted."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self.program,
            env=self._environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 20,
        )
        self._reading = asyncio.create_task(self._read(self._process.stdout))
        return self

    async def _read(self, stream):
        async for line in stream:
            text = _PRIORITY.sub(b"", line.rstrip(b"\n"))
            try:
                self.lines.append(json.loads(text))
            except ValueError:
                self.noise.append(text.decode("utf-8", "replace"))
            self._news.set()

    @property
    def pid(self):
        return self._process.pid

    @property
    def running(self):
        return self._process.returncode is None

    def said(self, event, **keys):
        """Return the lines of that event whose keys have these values (a text: it occurs in the value)."""
        return [line for line in self.lines if line.get("event") == event and _agrees(line, keys)]

    async def wait_for(self, event, seconds=READY_WITHIN_S, count=1, **keys):
        """Wait for the `count`th line of an event; fail at the deadline or once the process has ended."""
        try:
            async with asyncio.timeout(seconds):
                while len(found := self.said(event, **keys)) < count:
                    if self._reading.done():
                        break
                    self._news.clear()
                    news = asyncio.ensure_future(self._news.wait())
                    await asyncio.wait({news, self._reading}, return_when=asyncio.FIRST_COMPLETED)
                    news.cancel()
        except TimeoutError:
            raise AssertionError(f"no {event} {keys} within {seconds} s; it said:\n{self.told()}") from None
        if len(found) < count:
            raise AssertionError(f"ended without {event} {keys}; it said:\n{self.told()}")
        return found[count - 1]

    async def ready(self, status="reading the log", **more):
        return await self.wait_for("daemon.ready", status=status, **more)

    def told(self):
        return "\n".join([json.dumps(line) for line in self.lines[-30:]] + self.noise[-30:])

    def signal(self, number):
        self._process.send_signal(number)

    def stop(self):
        """Ask it to drain and end."""
        self.signal(signal.SIGTERM)

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)

    async def kill(self):
        """SIGKILL, and wait until it is gone."""
        if self.running:
            self._process.kill()
        await self._process.wait()
        await self._reading

    async def ended(self, seconds=READY_WITHIN_S):
        """Wait until it has ended by itself and return its status."""
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
                await self._reading
        except TimeoutError:
            raise AssertionError(f"still running after {seconds} s; it said:\n{self.told()}") from None
        return self._process.returncode


def _agrees(line, keys):
    return all(
        expected in line.get(key, "") if isinstance(expected, str) else line.get(key) == expected
        for key, expected in keys.items()
    )


class ReceiverProcess:
    """A receiver that outlives the daemon; its log was written before each answer was sent."""

    def __init__(self, log: Path, script=None):
        self.log = log
        self._script = script
        self._process = None
        self._entries = []
        self._offset = 0

    async def __aenter__(self):
        more = [] if self._script is None else ["--script", self._script]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            receiver.__file__,
            str(self.log),
            *more,
            cwd=Path(__file__).parent,
            stdout=asyncio.subprocess.PIPE,
        )
        self.port = int(await self._process.stdout.readline())
        return self

    async def __aexit__(self, *_):
        self._process.terminate()
        await self._process.wait()

    def url(self, path):
        return f"http://127.0.0.1:{self.port}{path}"

    def entries(self):
        """Return the requests received so far."""
        with self.log.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            self._entries += [json.loads(line) for line in whole.splitlines()]
            self._offset += len(whole) + 1
        return self._entries


class NotifySocket:
    """A stand-in for systemd: a datagram socket that collects states."""

    def __init__(self, folder: Path):
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self.path))
        self._messages = []

    def messages(self):
        """Return the messages so far, each a list of its lines."""
        while True:
            try:
                self._messages.append(self._socket.recv(65536).decode().split("\n"))
            except BlockingIOError:
                return self._messages

    def close(self):
        self._socket.close()
