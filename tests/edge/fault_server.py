"""Receivers that misbehave on purpose, a DNS server that lies, certificates that are wrong: all on loopback.

Never here: what the daemon should make of it. The tests say that.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

Handler = Callable[["Visit"], Awaitable[None]]


@dataclasses.dataclass
class Visit:
    """One connection, as the receiver sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def request(self) -> tuple[bytes, bytes]:
        """Read one request whole: head and body. IncompleteReadError when the peer is gone."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return head, await self.reader.readexactly(length)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """End the connection by RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the peer has closed."""
        with contextlib.suppress(OSError):
            while await self.reader.read(65536):
                pass


class Receiver:
    """A server on 127.0.0.1 that does what its handler says."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections = 0
        self.requests: list[tuple[bytes, bytes]] = []
        self.left = asyncio.Event()  # set whenever a connection has ended
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def visit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.handler(Visit(reader, writer))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()
            self.left.set()

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def receiving(handler: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver(handler)
    server = await asyncio.start_server(receiver.visit, "127.0.0.1", 0, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        await receiver.close()


def answering(*answers: bytes) -> Handler:
    """Answer each request of a connection in turn, the last answer for ever."""

    async def handler(visit: Visit) -> None:
        number = 0
        while True:
            await visit.request()
            await visit.send(answers[min(number, len(answers) - 1)])
            number += 1

    return handler


class LyingNameServer(asyncio.DatagramProtocol):
    """Answers from a table; a name that is not in it does not exist, one without a list gets no answer."""

    def __init__(self, table: dict[str, list[str] | None]) -> None:
        self.table = table
        self.ttl_s = 60
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        question = data[12 : at + 5]
        kind = int.from_bytes(data[at + 1 : at + 3], "big")
        name = ".".join(labels).lower()
        self.asked.append(name)
        addresses = self.table.get(name, [])
        if addresses is None:
            return
        records = [self._record(text) for text in addresses]
        chosen = [record for record in records if record[2:4] == kind.to_bytes(2, "big")]
        code = 0 if name in self.table else 3
        header = data[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(chosen), 0, 0)
        self.transport.sendto(header + question + b"".join(chosen), address)

    def _record(self, text: str) -> bytes:
        packed = ipaddress.ip_address(text).packed
        kind = 1 if len(packed) == 4 else 28
        return b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, self.ttl_s, len(packed)) + packed


@contextlib.asynccontextmanager
async def naming(table: dict[str, list[str] | None]) -> AsyncIterator[tuple[str, LyingNameServer]]:
    """Run a name server; gives its `address:port`."""
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        lambda: LyingNameServer(table), local_addr=("127.0.0.1", 0)
    )
    try:
        yield f"127.0.0.1:{transport.get_extra_info('sockname')[1]}", protocol
    finally:
        transport.close()


_CA_CONFIG = """
[ca]
default_ca = here
[here]
database = {home}/index
new_certs_dir = {home}
serial = {home}/serial
default_md = sha256
policy = any
unique_subject = no
x509_extensions = leaf
[any]
commonName = supplied
[leaf]
basicConstraints = CA:FALSE
subjectAltName = {names}
"""


class Certificates:
    """A certificate authority of the tests' own, made by the openssl command."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ca_file = home / "ca.pem"
        (home / "index").touch()
        (home / "serial").write_text("01\n")
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", "ca.key", "-out", "ca.pem", "-days", "36500", "-subj", "/CN=tests"),
        )

    def server_context(self, name: str, names: str, *, expired: bool = False) -> ssl.SSLContext:
        """Make a server's context with a certificate for `names` (openssl's subjectAltName)."""
        start, end = (
            ("20200101000000Z", "20200102000000Z") if expired else ("20200101000000Z", "21000101000000Z")
        )
        (self.home / f"{name}.cnf").write_text(_CA_CONFIG.format(home=self.home, names=names))
        self._openssl(
            *("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"),
        )
        self._openssl(
            *("ca", "-batch", "-config", f"{name}.cnf", "-cert", "ca.pem", "-keyfile", "ca.key", "-notext"),
            *("-in", f"{name}.csr", "-out", f"{name}.pem", "-startdate", start, "-enddate", end),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.home / f"{name}.pem", self.home / f"{name}.key")
        return context

    def _openssl(self, *args: str) -> None:
        subprocess.run(["openssl", *args], cwd=self.home, check=True, capture_output=True)
