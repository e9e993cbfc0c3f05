"""An egress proxy of the tests' own: it tunnels, refuses, stalls or babbles as its manner says, all on loopback.

Never here: what the daemon should make of it. The tests say that.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
from collections.abc import AsyncIterator, Callable

from support.fault_server import Visit, receiving

STALL = b""  # no answer at all


@dataclasses.dataclass
class ForwardProxy:
    """A forward proxy that notes its requests.

    Attributes:
        manner: gives the answer to a CONNECT to `host:port`; None: a tunnel is opened.
        leads: where tunnels really go, as `host:port` -> port on this machine; None: nowhere else.
        heads: the heads of all requests, in order.
    """

    manner: Callable[[str], bytes | None] = lambda _where: None
    leads: dict[str, int] = dataclasses.field(default_factory=dict)
    heads: list[bytes] = dataclasses.field(default_factory=list)
    port: int = 0

    @property
    def asked(self) -> list[str]:
        return [head.split()[1].decode() for head in self.heads]

    async def visit(self, visit: Visit) -> None:
        head = await visit.reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        where = head.split()[1].decode()
        answer = self.manner(where)
        if answer is None:
            await self._tunnel(visit, where)
        elif answer:
            await visit.send(answer)
        else:
            await visit.gone()

    async def _tunnel(self, visit: Visit, where: str) -> None:
        port = self.leads.get(where) or int(where.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await visit.send(b"HTTP/1.1 200 Connection established\r\nVia: tests\r\n\r\n")
        there = asyncio.create_task(pump(visit.reader, writer))
        try:
            await pump(reader, visit.writer)
        finally:
            there.cancel()
            writer.transport.abort()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until one side has ended."""
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


@contextlib.asynccontextmanager
async def forwarding(
    manner: Callable[[str], bytes | None] = lambda _where: None,
    *,
    leads: dict[str, int] | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[ForwardProxy]:
    """Run a proxy."""
    proxy = ForwardProxy(manner, leads or {})
    async with receiving(proxy.visit, tls=tls) as receiver:
        proxy.port = receiver.port
        yield proxy
