"""Opens tunnels through the operator's egress proxy (CONNECT, RFC 9110, 9.3.6); says whose fault it is if none opens.

The proxy is asked for an address that has been judged, never for a name: it could look the name up once more and
come to another answer. Everything goes through a tunnel, plain http as well, because a proxy that is sent an
`http://` request puts the host of the request line into `Host` (RFC 9112, 3.2.2) and so wants the name. What
travels in the tunnel is what would travel without a proxy, and the proxy's password is not part of it.

A proxy that is away, refuses us or answers nonsense is the operator's trouble: the attempt is `failed`, which counts
against no endpoint. Only where it says in so many words that the destination could not be reached is it theirs.

Never here: what may be reached (egress/destination.py), TLS to the receiver, aiohttp.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import re
import socket
import ssl
from collections.abc import Sequence
from typing import Final

from pghookd.model.delivery import Fault, Outcome
from pghookd.settings.network import Proxy

ADDRESSES_MAX = 4  # of one name are tried: each is a connection of its own
HEAD_BYTES_MAX = 16384
LOOKUP_KEPT_S = 10.0

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r|$)")
_PROXY_ERROR = re.compile(rb"^proxy-status:.*\berror=\"?([a-z_]+)", re.IGNORECASE | re.MULTILINE)
_SQUID_ERROR = re.compile(rb"^x-squid-error: *ERR_CONNECT_FAIL ([0-9]{1,3})\b", re.IGNORECASE | re.MULTILINE)

_REFUSED = Fault(Outcome.UNREACHABLE, "refused")
_RESET = Fault(Outcome.UNREACHABLE, "reset")
_NO_ROUTE = Fault(Outcome.UNREACHABLE, "no_route")
_TOO_LATE = Fault(Outcome.TIMEOUT, "connect")
_THEIRS: Final = {  # RFC 9209, 2.3: what is the destination's trouble
    b"connection_refused": _REFUSED,
    b"connection_terminated": _RESET,
    b"connection_timeout": _TOO_LATE,
    b"destination_unavailable": _NO_ROUTE,
    b"destination_ip_unroutable": _NO_ROUTE,
    b"destination_ip_prohibited": Fault(Outcome.BLOCKED, "address"),
}
_THEIRS_BY_ERRNO: Final = {
    errno.ECONNREFUSED: _REFUSED,
    errno.ECONNRESET: _RESET,
    errno.ETIMEDOUT: _TOO_LATE,
    errno.EHOSTUNREACH: _NO_ROUTE,
    errno.ENETUNREACH: _NO_ROUTE,
}


class NoTunnel(Exception):  # noqa: N818 -- an answer, not an error
    """There is no way through the proxy.

    Attributes:
        fault: what the attempt comes to.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.error)
        self.fault = fault


class Tunnels:
    """Opens tunnels through one proxy. Use it within one loop.

    Args:
        proxy: where it is.
        context: how a proxy that is spoken to in TLS is verified.
    """

    def __init__(self, proxy: Proxy, context: ssl.SSLContext) -> None:
        self._proxy = proxy
        self._context = context if proxy.is_tls else None
        self._found: tuple[str, ...] = ()
        self._found_until = 0.0
        self._last_opened = 0.0  # when the proxy last did what it is for; by the loop's clock

    async def open(self, addresses: Sequence[str], port: int, budget_s: float) -> asyncio.Transport:
        """Open a tunnel to the first address that can be reached.

        Args:
            addresses: as text, of either family, all judged. IPv4 goes first: whether the proxy has IPv6 is not known.
            port: of all of them.
            budget_s: seconds for all.

        Returns:
            A transport in whose place nothing has been read or written yet.

        Raises:
            NoTunnel: with what the first address came to.
        """
        deadline = asyncio.get_running_loop().time() + budget_s
        first: NoTunnel | None = None
        for address in sorted(addresses, key=lambda text: ":" in text)[:ADDRESSES_MAX]:
            transport, answer = await self._dial(deadline)
            try:
                await self._ask(transport, answer, address, port, deadline)
            except NoTunnel as exc:
                transport.abort()
                first = first or exc
            except BaseException:
                transport.abort()
                raise
            else:
                return transport
        raise first or _ours("no address")

    async def _dial(self, deadline: float) -> tuple[asyncio.Transport, _Answer]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                error: OSError = OSError()
                for host in await self._addresses():
                    try:
                        return await loop.create_connection(
                            _Answer,
                            host,
                            self._proxy.port,
                            ssl=self._context,
                            server_hostname=self._proxy.host if self._context else None,
                        )
                    except OSError as exc:
                        error = exc
        except socket.gaierror as exc:
            raise _ours("dns") from exc
        except TimeoutError as exc:
            raise _ours("timeout") from exc
        raise _ours(_dial_error(error)) from error

    async def _addresses(self) -> tuple[str, ...]:
        """Look the proxy up, seldom; what was found once is better than nothing."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._found_until:
            try:
                found = await loop.getaddrinfo(self._proxy.host, self._proxy.port, type=socket.SOCK_STREAM)
            except socket.gaierror:
                if not self._found:
                    raise
            else:
                self._found = tuple(str(info[4][0]) for info in found)
            self._found_until = loop.time() + LOOKUP_KEPT_S
        return self._found

    async def _ask(
        self, transport: asyncio.Transport, answer: _Answer, address: str, port: int, deadline: float
    ) -> None:
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        transport.write(self._request(address, port))
        try:
            async with asyncio.timeout_at(deadline):
                head = await answer.head
        except TimeoutError as exc:
            # A proxy that opens tunnels for others meanwhile is well: it is the destination that keeps it waiting.
            raise (NoTunnel(_TOO_LATE) if self._last_opened > asked_at else _ours("timeout")) from exc
        except OSError as exc:
            raise _ours("reset") from exc
        status = _STATUS.match(head)
        if status is None:
            raise _ours("bad_response")
        if not status[1].startswith(b"2"):
            raise NoTunnel(_refusal(head) or Fault(Outcome.FAILED, f"proxy: {status[1].decode()}"))
        self._last_opened = loop.time()

    def _request(self, address: str, port: int) -> bytes:
        where = (
            f"[{address}]:{port}"
            if isinstance(ipaddress.ip_address(address), ipaddress.IPv6Address)
            else f"{address}:{port}"
        )
        lines = [f"CONNECT {where} HTTP/1.1", f"host: {where}"]
        if self._proxy.authorization:
            lines.append(f"proxy-authorization: {self._proxy.authorization}")
        return "\r\n".join((*lines, "", "")).encode("ascii")


class _Answer(asyncio.Protocol):
    """Collects the head of the proxy's answer; what follows it is not ours to read."""

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._data = bytearray()

    def data_received(self, data: bytes) -> None:
        if self.head.done():
            return
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end >= 0:
            # Whatever comes after a 2xx head would come from the tunnel, in which nobody has spoken yet.
            early = self._data[end + 4 :] and self._data[9:10] == b"2"
            self.head.set_result(b"" if early else bytes(self._data[:end]))
        elif len(self._data) > HEAD_BYTES_MAX:
            self.head.set_result(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self.head.done():
            self.head.set_exception(ConnectionResetError())
            self.head.exception()  # seen: who asked may be gone


def _ours(detail: str) -> NoTunnel:
    return NoTunnel(Fault(Outcome.FAILED, f"proxy: {detail}"))


def _dial_error(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        return "tls"
    return errno.errorcode.get(exc.errno or 0, "unreachable")


def _refusal(head: bytes) -> Fault | None:
    """Read what a proxy says of the destination; None: nothing."""
    told = _PROXY_ERROR.findall(head)
    if told:  # the last one was added nearest to us
        return _THEIRS.get(told[-1].lower())
    number = _SQUID_ERROR.search(head)
    return _THEIRS_BY_ERRNO.get(int(number[1])) if number else None
