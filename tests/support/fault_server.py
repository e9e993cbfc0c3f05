"""Receivers that misbehave on purpose, a DNS server that lies, certificates that are wrong: all on loopback.

Never here: what the daemon should make of it. The tests say that.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import ipaddress
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum, auto
from pathlib import Path

from aiohttp.abc import AbstractResolver, ResolveResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

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
async def receiving(
    handler: Handler, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver(handler)
    server = await asyncio.start_server(receiver.visit, host, 0, ssl=tls)
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


class Liar(AbstractResolver):
    """A resolver that judges nothing and gives these addresses for every name."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=text, port=port, family=family, proto=0, flags=0)
            for text in self.addresses
        ]

    async def close(self) -> None:
        pass


class Form(Enum):
    """How well an authority and what it signs keep to RFC 5280."""

    PROPER = auto()  # critical basicConstraints, key usage, key identifiers
    OLD = auto()  # basicConstraints alone, not critical, as many private authorities have it
    NO_CA = auto()  # basicConstraints say that it is not an authority
    NO_SIGNING = auto()  # key usage without keyCertSign


class Certificates:
    """A certificate authority of the tests' own, in a folder."""

    def __init__(self, home: Path, form: Form = Form.PROPER, above: Certificates | None = None) -> None:
        """Make it: a root, or an intermediate authority that `above` signs."""
        self.home = home
        self.ca_file = home / "ca.pem"
        self._form = form
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name(f"tests {x509.random_serial_number()}")
        authority = (
            (above or self)
            ._begin(self._name, self._key.public_key(), _ALWAYS)
            .add_extension(
                x509.BasicConstraints(ca=form is not Form.NO_CA, path_length=None),
                critical=form is Form.PROPER,
            )
        )
        if form in {Form.PROPER, Form.NO_SIGNING}:
            signs = form is Form.PROPER
            authority = authority.add_extension(_usage(signs=signs), critical=True)
        self._write(self.ca_file, authority.sign((above or self)._key, hashes.SHA256()))

    def server_context(
        self, name: str, names: str, *, expired: bool = False, unborn: bool = False, self_signed: bool = False
    ) -> ssl.SSLContext:
        """Make a server's context with a certificate for `names`, as in `DNS:a.example.com,IP:127.0.0.1`."""
        validity = _PAST if expired else _FUTURE if unborn else _ALWAYS
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._begin(
            _common_name(name), key.public_key(), validity, issuer=_common_name(name) if self_signed else None
        )
        for extension in (x509.BasicConstraints(ca=False, path_length=None), _alternatives(names)):
            builder = builder.add_extension(extension, critical=False)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = self.home / f"{name}.pem"
        self._write(file, builder.sign(key if self_signed else self._key, hashes.SHA256()), private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def demand(self, context: ssl.SSLContext, mode: ssl.VerifyMode = ssl.CERT_REQUIRED) -> ssl.SSLContext:
        """Make a server's context demand a client certificate of this authority."""
        context.verify_mode = mode
        context.load_verify_locations(self.ca_file)
        return context

    def client(self, name: str, rsa_bits: int = 0, *, expired: bool = False) -> dict[str, str]:
        """Make a client certificate: the texts `certificate` and `key` of `endpoints.auth`."""
        key = (
            rsa.generate_private_key(65537, rsa_bits) if rsa_bits else ec.generate_private_key(ec.SECP256R1())
        )
        validity = _PAST if expired else _ALWAYS
        made = self._begin(_common_name(name), key.public_key(), validity).sign(self._key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        pem = made.public_bytes(serialization.Encoding.PEM)
        return {"certificate": pem.decode(), "key": private.decode()}

    def _begin(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
        validity: tuple[dt.datetime, dt.datetime],
        issuer: x509.Name | None = None,
    ) -> x509.CertificateBuilder:
        start, end = validity
        made = x509.CertificateBuilder(
            issuer or self._name, subject, key, x509.random_serial_number(), start, end
        )
        if self._form is Form.OLD:
            return made
        issuing = self._key.public_key() if issuer is None else key
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        return made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuing), critical=False)

    @staticmethod
    def _write(file: Path, certificate: x509.Certificate, private: bytes = b"") -> None:
        file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))


def _years(first: int, last: int) -> tuple[dt.datetime, dt.datetime]:
    return (
        dt.datetime(first, 1, 1, tzinfo=dt.UTC),
        dt.datetime(last, 1, 1, tzinfo=dt.UTC),
    )


_ALWAYS, _PAST, _FUTURE = _years(2020, 2100), _years(2020, 2021), _years(2099, 2100)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _alternatives(names: str) -> x509.SubjectAlternativeName:
    made: list[x509.GeneralName] = []
    for text in names.split(","):
        kind, _, value = text.partition(":")
        made.append(x509.IPAddress(ipaddress.ip_address(value)) if kind == "IP" else x509.DNSName(value))
    return x509.SubjectAlternativeName(made)
