"""Opens tunnels through the operator's egress proxy (CONNECT, RFC 9110, 9.3.6) and attributes each failure.

CONNECT names an address that has been judged, never a host name: the proxy might resolve the name to another address.
Plain http also uses a tunnel. Otherwise the proxy would need the name, because it replaces `Host` by the host of the
request line (RFC 9112, 3.2.2). The bytes in the tunnel are the same as without a proxy; the proxy's password is not
among them.

If the proxy is unreachable, refuses the daemon or sends an invalid response, the fault is the operator's: the attempt
is `failed` and counts against no endpoint. It counts against the endpoint only if the proxy explicitly reports that
the destination could not be reached.

Never here: which destinations are allowed (egress/destination.py), TLS to the receiver, aiohttp.
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

from pghookd.egress.evidence import Dial
from pghookd.model.delivery import Fault, Outcome
from pghookd.settings.network import Proxy

ADDRESSES_MAX = 4  # addresses of one name that are tried, each with its own connection to the proxy
HEAD_BYTES_MAX = 16384
LOOKUP_KEPT_S = 10.0

_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?: |\r|$)")
_PROXY_ERROR = re.compile(rb"^proxy-status:.*\berror=\"?([a-z_]+)", re.IGNORECASE | re.MULTILINE)
_SQUID_ERROR = re.compile(rb"^x-squid-error: *ERR_CONNECT_FAIL ([0-9]{1,3})\b", re.IGNORECASE | re.MULTILINE)

_REFUSED = Fault(Outcome.UNREACHABLE, "refused")
_RESET = Fault(Outcome.UNREACHABLE, "reset")
_NO_ROUTE = Fault(Outcome.UNREACHABLE, "no_route")
_TOO_LATE = Fault(Outcome.TIMEOUT, "connect")
_THEIRS: Final = {  # RFC 9209, 2.3: errors of the destination
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
    """The proxy opened no tunnel.

    Attributes:
        fault: the result of the attempt.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.error)
        self.fault = fault


class Tunnels:
    """Opens tunnels through one proxy. Use it within one event loop.

    Args:
        proxy: the proxy's address and credentials.
        context: verifies the proxy if it is reached over TLS.
    """

    def __init__(self, proxy: Proxy, context: ssl.SSLContext) -> None:
        self._proxy = proxy
        self._context = context if proxy.is_tls else None
        self._found: tuple[str, ...] = ()
        self._found_until = 0.0
        self._last_opened = 0.0  # when the proxy last opened a tunnel, by the loop's clock

    async def open(
        self, addresses: Sequence[str], port: int, budget_s: float, dial: Dial
    ) -> asyncio.Transport:
        """Open a tunnel to the first address that can be reached.

        Args:
            addresses: judged addresses of either family. IPv4 goes first, because the proxy may have no IPv6.
            port: the port of every address.
            budget_s: seconds for all addresses together.
            dial: notes the proxy's address.

        Returns:
            A transport on which no byte of the tunnel has been read or written yet.

        Raises:
            NoTunnel: no address could be reached; it has the fault of the first address.
        """
        deadline = asyncio.get_running_loop().time() + budget_s
        first: NoTunnel | None = None
        for address in sorted(addresses, key=lambda text: ":" in text)[:ADDRESSES_MAX]:
            transport, answer = await self._reach(deadline, dial)
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

    async def _reach(self, deadline: float, dial: Dial) -> tuple[asyncio.Transport, _Answer]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                error: OSError = OSError()
                for host in await self._addresses():
                    dial.to((host, self._proxy.port))
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
        """Return the proxy's addresses, resolved at most every 10 s; if a lookup fails, the previous ones."""
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
            # If the proxy opened another tunnel meanwhile, the proxy works and the destination is slow.
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
    """Collects the head of the proxy's response; later bytes belong to the tunnel."""

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._data = bytearray()

    def data_received(self, data: bytes) -> None:
        if self.head.done():
            return
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end >= 0:
            # Bytes after a 2xx head make it invalid: neither side has sent anything in the tunnel yet.
            early = self._data[end + 4 :] and self._data[9:10] == b"2"
            self.head.set_result(b"" if early else bytes(self._data[:end]))
        elif len(self._data) > HEAD_BYTES_MAX:
            self.head.set_result(b"")

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self.head.done():
            self.head.set_exception(ConnectionResetError())
            self.head.exception()  # mark it as retrieved: the waiting task may be gone


def _ours(detail: str) -> NoTunnel:
    return NoTunnel(Fault(Outcome.FAILED, f"proxy: {detail}"))


def _dial_error(exc: OSError) -> str:
    if isinstance(exc, ssl.SSLError):
        return "tls"
    return errno.errorcode.get(exc.errno or 0, "unreachable")


def _refusal(head: bytes) -> Fault | None:
    """Return the destination's fault as the proxy reports it, or None if it reports none."""
    told = _PROXY_ERROR.findall(head)
    if told:  # the nearest proxy adds the last one
        return _THEIRS.get(told[-1].lower())
    number = _SQUID_ERROR.search(head)
    return _THEIRS_BY_ERRNO.get(int(number[1])) if number else None
