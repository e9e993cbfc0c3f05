"""Networks that can be broken in the ways networks break: before Postgres, and before the receivers.

The one before Postgres knows the daemon's connections by the names that they give themselves (`pghookd/read`), so that
a single one may go silent. The kernel acknowledges all bytes sent into a silence: no keepalive can tell, as
behind a middlebox.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re

_NAME = re.compile(rb"application_name\0pghookd/(\w+)\0")


@dataclasses.dataclass(eq=False)
class Link:
    """One connection through the network: its two ends, and its faults.

    Attributes:
        up: what the client sends passes.
        down: what the server sends passes.
        cut_after: the connection ends once these bytes have been passed on to the server, with no answer.
    """

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    up: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    down: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    name: str = ""
    cut_after: bytes = b""

    def cut(self):
        """Reset both ends."""
        self.client.transport.abort()
        self.server.transport.abort()


class Network:
    """A TCP proxy before a server's Unix socket.

    Attributes:
        delay_s: how long whatever passes takes, each way.
        links: the connections that were made, in order.
    """

    def __init__(self, sockets):
        self._path = f"{sockets}/.s.PGSQL.5432"
        self._tasks = set()
        self._silent = False
        self.delay_s = 0.0
        self.links = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for link in self.links:
            link.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self):
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def of(self, name):
        """Return the newest connection of that name."""
        return [link for link in self.links if link.name == name][-1]

    def partition(self, *, up=False, down=False):
        """Pass nothing any more, or one way only; new connections are accepted and lead nowhere."""
        self._silent = True
        for link in self.links:
            self.silence(link, up=up, down=down)

    def silence(self, link, *, up=False, down=False):
        """Pass nothing on one connection, or one way only; both ends believe that it is open."""
        for way, passes in ((link.up, up), (link.down, down)):
            if not passes:
                way.clear()

    def heal(self):
        """Pass new connections; silenced ones stay so for ever."""
        self._silent = False

    async def _connected(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        from_server, to_server = await asyncio.open_unix_connection(self._path)
        link = Link(writer, to_server)
        self.links.append(link)
        if not self._silent:
            link.up.set()
            link.down.set()
        with contextlib.suppress(OSError, asyncio.CancelledError):  # cut, or the test is over
            await asyncio.gather(
                self._up(link, reader, to_server), self._pass(link.down, from_server, writer)
            )

    async def _up(self, link, reader, writer):
        while data := await reader.read(65536):
            await link.up.wait()
            if found := _NAME.search(data):
                link.name = found[1].decode()
            await self._send(writer, data)
            if link.cut_after and link.cut_after in data:
                link.down.clear()
                await asyncio.sleep(0.1)  # the server runs the statement; its answer never arrives
                link.cut()
        await link.up.wait()
        writer.close()

    async def _pass(self, passing, reader, writer):
        while data := await reader.read(65536):
            await passing.wait()
            await self._send(writer, data)
        await passing.wait()
        writer.close()

    async def _send(self, writer, data):
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        writer.write(data)
        await writer.drain()


class WayOut:
    """The line between the daemon and its receivers: a TCP proxy on many loopback addresses, one port.

    Attributes:
        bytes_per_s: what passes in a second, all connections and both ways together; 0: as it comes.
        delay_s: how long whatever passes takes, each way.
        cut: connections are reset, and so are new ones.
    """

    def __init__(self, port, hosts=("127.0.0.1",)):
        self._to = port
        self._hosts = hosts
        self._servers = []
        self._tasks = set()
        self._open = set()
        self._line = asyncio.Lock()
        self._passes = asyncio.Event()
        self._passes.set()
        self.bytes_per_s = 0
        self.delay_s = 0.0
        self.cut = False

    async def __aenter__(self):
        self.port = 0
        for host in self._hosts:
            self._servers.append(await asyncio.start_server(self._connected, host, self.port))
            self.port = self._servers[-1].sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        for server in self._servers:
            server.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self):
        """End all connections by RST."""
        for writer in self._open:
            writer.transport.abort()

    def stall(self):
        """Pass nothing; connections stay, and new ones are accepted."""
        self._passes.clear()

    def go_on(self):
        """Pass all bytes that have waited."""
        self._passes.set()

    async def _connected(self, reader, writer):
        if self.cut:
            writer.transport.abort()
            return
        self._tasks.add(asyncio.current_task())
        back, there = await asyncio.open_connection("127.0.0.1", self._to)
        ends = {writer, there}
        self._open |= ends
        with contextlib.suppress(OSError, asyncio.CancelledError):  # cut, or the test is over
            await asyncio.gather(self._pass(reader, there), self._pass(back, writer))
        self._open -= ends

    async def _pass(self, reader, writer):
        while data := await reader.read(1500):
            await self._passes.wait()
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            if self.bytes_per_s:
                async with self._line:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
            writer.write(data)
            await writer.drain()
        writer.close()
