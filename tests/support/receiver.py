"""A real HTTP receiver for tests: records every request, answers as a script says, here or as a process.

As a process of its own (`python receiver.py LOG [--port N] [--script MODULE:FUNCTION]`, for tests that kill)
it prints its port and writes one JSON line per request: what it received and the answer it decided on, before
that is sent. So a 2xx in the log was decided even if nobody lived to read it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import hashlib
import importlib
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

REASONS = {
    200: b"OK",
    204: b"No Content",
    410: b"Gone",
    429: b"Too Many Requests",
    503: b"Service Unavailable",
}


@dataclasses.dataclass(slots=True)
class Request:
    """One request as it came over the wire.

    Attributes:
        number: 1 for the receiver's first.
        line: the request line.
        headers: by lower-case name; the last one counts.
        raw_head: the head as received, without the blank line.
        arrived: monotonic seconds at which it was complete.
        arrived_wall: Unix seconds of the same moment.
        status: the status of the answer; None until then.
    """

    number: int
    line: str
    path: str
    headers: dict[str, str]
    raw_head: bytes
    body: bytes
    arrived: float
    arrived_wall: float
    connection: int
    status: int | None = None

    @property
    def webhook_id(self) -> str:
        return self.headers.get("webhook-id", "")

    @property
    def event_id(self) -> int:
        return int(self.webhook_id[4:18], 16)

    @property
    def attempt(self) -> int:
        return int(self.headers.get("x-webhook-attempt", "0"))

    @property
    def data(self):
        return json.loads(self.body)["data"]


@dataclasses.dataclass(frozen=True, slots=True)
class Response:
    """An answer, after `delay_s`; `close`: the connection is ended after it, `cut`: instead of it."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    delay_s: float = 0.0
    close: bool = False
    cut: bool = False

    def encoded(self) -> bytes:
        head = b"HTTP/1.1 %d %s\r\ncontent-length: %d\r\n" % (
            self.status,
            REASONS.get(self.status, b"-"),
            len(self.body),
        )
        lines = b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in self.headers)
        return head + lines + (b"connection: close\r\n" if self.close else b"") + b"\r\n" + self.body


Answer = Response | int
Script = Callable[[Request], Answer | Awaitable[Answer]]
OK = Response()


class Receiver:
    """A receiver on a free port of 127.0.0.1: `async with Receiver(script) as it: it.url("/hook")`."""

    def __init__(self, script: Script | None = None, *, port: int = 0, log: Path | None = None) -> None:
        self.script: Script = script or (lambda _request: OK)
        self.requests: list[Request] = []
        self.paths: dict[str, Script] = {}  # a script for one path wins over `script`
        self.keep = True  # whether `requests` grows; off for loads
        self.count = 0
        self.connections = 0
        self.in_flight = 0
        self.in_flight_max = 0
        self._port = port
        self._log = None if log is None else log.open("ab", buffering=0)
        self._server: asyncio.Server | None = None
        self._open: set[_Protocol] = set()
        self._news = asyncio.Event()

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Protocol(self), "127.0.0.1", self._port, reuse_address=True, backlog=1024
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for each in list(self._open):
            each.abort()
        if self._log is not None:
            self._log.close()

    @property
    def port(self) -> int:
        return self._port

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self._port}{path}"

    def of(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    async def wait_for(self, count: int, seconds: float = 10.0, path: str | None = None) -> list[Request]:
        """Wait until so many requests have arrived (at one path); fail after `seconds`."""
        async with asyncio.timeout(seconds):
            while len(found := self.requests if path is None else self.of(path)) < count:
                self._news.clear()
                await self._news.wait()
        return found

    def take(self, request: Request) -> Answer | Awaitable[Answer]:
        """Record a request and decide on its answer."""
        if self.keep:
            self.requests.append(request)
        self._news.set()
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        return self.paths.get(request.path, self.script)(request)

    def decide(self, request: Request, answer: Answer) -> Response:
        """Write the decision down before it is sent."""
        response = Response(answer) if isinstance(answer, int) else answer
        request.status = response.status
        if self._log is not None:
            self._log.write(_line(request, cut=response.cut))
        return response


class _Protocol(asyncio.Protocol):
    """Enough of HTTP/1.1 to be quick and strict: content-length bodies, keep-alive."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._number = 0
        self._tasks: set[asyncio.Task] = set()

    def connection_made(self, transport):
        self._transport = transport
        self._receiver.connections += 1
        self._number = self._receiver.connections
        self._receiver._open.add(self)

    def connection_lost(self, _exc):
        self._receiver._open.discard(self)
        for task in self._tasks:
            task.cancel()

    def abort(self):
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data):
        self._buffer = self._buffer + data if self._buffer else data
        while (request := self._parse()) is not None:
            self._answer(request)

    def _parse(self) -> Request | None:
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return None
        lines = head.split(b"\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers[name.decode("ascii").lower()] = value.strip().decode("latin-1")
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return None
        self._buffer = rest[length:]
        self._receiver.count += 1
        line = lines[0].decode("latin-1")
        return Request(
            number=self._receiver.count,
            line=line,
            path=line.split(" ")[1].partition("?")[0],
            headers=headers,
            raw_head=head,
            body=rest[:length],
            arrived=time.monotonic(),
            arrived_wall=time.time(),
            connection=self._number,
        )

    def _answer(self, request: Request) -> None:
        answer = self._receiver.take(request)
        if isinstance(answer, int | Response):
            response = self._receiver.decide(request, answer)
            if not response.delay_s:
                self._send(response)
                return
        task = asyncio.get_running_loop().create_task(self._answer_later(request, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_later(self, request: Request, answer: Answer | Awaitable[Answer]) -> None:
        try:
            if not isinstance(answer, int | Response):
                answer = self._receiver.decide(request, await answer)
            if isinstance(answer, Response) and answer.delay_s:
                await asyncio.sleep(answer.delay_s)
        except asyncio.CancelledError:
            self._receiver.in_flight -= 1
            raise
        self._send(answer if isinstance(answer, Response) else Response(answer))

    def _send(self, response: Response) -> None:
        self._receiver.in_flight -= 1
        if self._transport is None or self._transport.is_closing():
            return
        if response.cut:
            self._transport.abort()
            return
        self._transport.write(response.encoded())
        if response.close:
            self._transport.close()


def _line(request: Request, *, cut: bool) -> bytes:
    names = ("user-agent", "webhook-id", "webhook-timestamp", "webhook-signature", "x-webhook-attempt")
    row = {
        "path": request.path,
        "status": request.status,
        "cut": cut,
        "wall": request.arrived_wall,
        "monotonic": request.arrived,
        "sha256": hashlib.sha256(request.body).hexdigest(),
        "bytes": len(request.body),
        **{name: request.headers.get(name) for name in names},
    }
    if len(request.body) <= 1024:
        row["body"] = base64.b64encode(request.body).decode()
    return json.dumps(row).encode() + b"\n"


def read_log(path: Path) -> list[dict]:
    """Read what a receiver process wrote; a last line cut off by a kill is left out."""
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


async def _serve(log: Path, port: int, script: Script | None) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Receiver(script, port=port, log=log) as receiver:
        receiver.keep = False
        print(receiver.port, flush=True)
        await stop.wait()


async def start_process(log: Path, *, port: int = 0, script: str | None = None):
    """Start a receiver process; return it and its port. End it with `terminate()`."""
    more = [] if script is None else ["--script", script]
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, str(log), "--port", str(port), *more, stdout=asyncio.subprocess.PIPE
    )
    return process, int(await process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("log", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", help="MODULE:FUNCTION, found from the working directory; takes a Request")
    given = parser.parse_args()
    script = None
    if given.script:
        sys.path.insert(0, str(Path.cwd()))
        module, _, name = given.script.partition(":")
        script = getattr(importlib.import_module(module), name)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(given.log, given.port, script))


if __name__ == "__main__":
    main()
