"""Sends requests: one POST returns one answer and raises nothing but cancellation.

It uses aiohttp's connector and response parser directly, without the client session. At that level there are no
cookies, redirects, proxies from the environment, decompression or header merging, and a request costs a third.

The sender relies on the following, which aiohttp does not guarantee (hence `aiohttp < 4`;
tests/component/egress/test_sender.py pins it):

- `TCPConnector.connect(req, traces, timeout)` reads only the attributes that `_Request` has, and takes a connection
  from its pool without yielding to the event loop;
- connections are shared by `ConnectionKey` alone; without a proxy known to aiohttp its `proxy_headers_hash` may be any
  number (here the identity of a client certificate);
- `connector._create_connection` opens a connection if the pool has none, and may be overridden (for a proxy it is);
  `_resolve_host` calls the resolver, through the cache; `_get_ssl_context` returns the TLS context, which is the
  request's own if it has one;
- `connector._factory` makes the protocol of each connection, once it is open and before TLS; it and `_resolve_host` run
  in the context of the task that calls `connect`, `socket_factory` in that or a copy;
- the argument of `socket_factory` ends with the sockaddr to connect to;
- `ResponseHandler`: `set_response_params` makes the parser, which may be reused for the next response; its
  `feed_eof()` returns None only between two responses (in the pure Python parser `_tail` and `_lines` are empty then);
  `read()` returns queued messages before it raises; `_payload` is the body being received; `should_close`, `abort()`
  and `set_exception` exist;
- `StreamReader`: `wait_eof` returns at the end of the body, `_buffer` has the bytes received of it;
- if several addresses fail, the connector raises an OSError that only quotes their errors.

Never here: what an answer means (webhook/judge.py), which destinations are allowed (egress/destination.py), signing,
retries.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import errno
import functools
import re
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self, cast

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest, ConnectionKey
from aiohttp.connector import AddrInfoType, Connection
from aiohttp.http import RawResponseMessage
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpResponseParserPy
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from multidict import istr

from pghookd.egress.client_certificates import ClientContexts, Unusable, identity_of
from pghookd.egress.destination import ORIGINS_MAX, Refusal, judge_address, judge_origin, parse_by
from pghookd.egress.evidence import Dial, secrets_of, text_of
from pghookd.egress.proxy_tunnel import NoTunnel, Tunnels
from pghookd.egress.resolver import AddressRefused, GuardedResolver
from pghookd.egress.tls import trust
from pghookd.model.client_certificate import ClientCertificate
from pghookd.model.delivery import Answer, Fault, Outcome, Reply
from pghookd.settings.network import EgressPolicy, Proxy

KEEPALIVE_S = 4.0  # shorter than the 5 s after which servers often close
RESPONSE_SLACK_BYTES = (
    65536  # beyond the stored part: heads, framing, and a body worth reading to keep the connection
)
PIECE_BYTES = 64  # added to each piece's length: the memory overhead of a small piece
SWEEP_S = 0.25
CROWDED_S = 0.25  # if new connections are silent this long, idle ones to the same origin are closed
DNS_CACHE_S = 10
DNS_CACHE_MAX = 4096
BIG_BODY_BYTES = 16384  # from this size on, joining head and body costs more than writing two pieces

_ALPN: Final = ("http/1.1",)  # the only protocol that is supported
_INTERIM: Final = frozenset(range(100, 200)) - {
    101
}  # RFC 9110, 15.2; 101 is an error: no upgrade was requested
_STATUS_FIRST, _STATUS_LAST = 200, 599
_REDIRECTS_FROM = 300
_ANY_2XX: Final = frozenset(range(_STATUS_FIRST, _REDIRECTS_FROM))
_NEVER: Final = float("inf")
_TUNNEL_SHARE: Final = 0.95
_HERE: Final = "127.0.0.1"
_RETRY_AFTER, _CONTROL, _LOCATION = istr("Retry-After"), istr("Webhook-Delivery"), istr("Location")
_NO_TRACES: list[aiohttp.tracing.Trace] = []
_PURE_PYTHON = aiohttp.http.HttpResponseParser is HttpResponseParserPy  # its feed_eof is less exact
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_QUOTED_ERRNO = re.compile(r"\[Errno (\d+)\]")

# True if the operator allowed the host being connected to by name; only the address checks read it.
_named: contextvars.ContextVar[bool] = contextvars.ContextVar("_named", default=False)
# The connection that is being made, or could not be made: only a failed attempt reads it. None once it is made.
_dialling: contextvars.ContextVar[Dial | None] = contextvars.ContextVar("_dialling", default=None)


@dataclasses.dataclass(frozen=True, slots=True)
class _Host:
    """The part of a request's URL that the connector reads."""

    raw_host: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    """The part of a request that the connector reads."""

    url: _Host
    port: int
    connection_key: ConnectionKey
    ssl: bool | ssl.SSLContext = True  # meaning: verify with the connector's own context
    proxy: None = None
    server_hostname: None = None
    certificate: ClientCertificate | None = None  # read by _Connector, not by aiohttp

    def is_ssl(self) -> bool:
        return self.connection_key.is_ssl


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """An endpoint's prepared URL; the caller keeps it until the endpoint changes."""

    prefix: bytes = dataclasses.field(repr=False)  # the path may contain a customer's token
    request: _Request = dataclasses.field(repr=False)
    named: bool = False
    successes: frozenset[int] = _ANY_2XX  # statuses that need no evidence
    secrets: tuple[str, ...] = dataclasses.field(default=(), repr=False)  # never in evidence


class _Overdue(Exception):  # noqa: N818 -- a signal of the sweeper
    """The request's deadline has passed."""


class _TooMuch(Exception):  # noqa: N818 -- a signal of the byte budget
    """The response is larger than its budget."""


class _Wire(ResponseHandler):
    """One connection: aiohttp's protocol with a byte budget, a deadline and a parser for all its responses."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wires: set[_Wire], budget: int, dial: Dial) -> None:
        super().__init__(loop)
        self._wires = wires
        self._budget = budget
        self.dial = dial
        self._heard = bytearray()  # bytes of the response being received
        self._room = 0  # bytes still accepted; 0 between requests
        self.deadline = _NEVER  # monotonic seconds
        self.used = 0  # requests begun
        self.key: ConnectionKey | None = None  # the origin's key; None until a request has begun
        self.begun_at = _NEVER  # monotonic seconds, start of the first request
        self.idle_at = _NEVER  # monotonic seconds from which the connection is idle
        self._cut = False  # True if it was given up while bytes of the request waited to be sent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if (
            self.dial.is_race and (peer := transport.get_extra_info("peername")) is not None
        ):  # 10 us in uvloop
            self.dial.address = peer[:2]
        self._wires.add(self)
        self._make_parser()

    def connection_lost(self, exc: BaseException | None) -> None:
        payload = self._payload
        self._wires.discard(self)
        super().connection_lost(exc)
        if payload is not None:  # after invalid framing the parser leaves it open
            _end_payload(payload, aiohttp.ClientPayloadError("the connection was lost"))

    def _make_parser(self) -> None:
        """Make a parser that never pauses reading, because the byte budget already limits its memory.

        A body without a length ends with the connection (RFC 9112, 6.3). aiohttp pauses beyond twice
        `read_bufsize` bytes, or a sixteenth of it in number of chunks; the smallest chunk is 6 bytes.
        """
        self.set_response_params(read_until_eof=True, auto_decompress=False, read_bufsize=4 * self._budget)

    def begin(self, deadline: float) -> None:
        """Expect one response."""
        self.deadline = deadline
        self.idle_at = _NEVER
        self.used += 1
        self._room = self._budget

    def end(self) -> None:
        """Expect no more bytes: anything that the peer sends now closes the connection."""
        self.deadline = self.begun_at = _NEVER
        self._room = 0
        self._heard.clear()

    def is_between(self) -> bool:
        """Return True if the parser is exactly between two responses: no unread byte of either."""
        if self._parser is None or self.should_close:
            return False
        if _PURE_PYTHON:
            return not (self._parser._tail or self._parser._lines)  # noqa: SLF001 -- the list at the top
        try:
            return self._parser.feed_eof() is None
        except Exception:  # noqa: BLE001 -- the parser has the beginning of an invalid message
            return False

    @property
    def is_unsent(self) -> bool:
        """Return True if bytes of the request are known to wait, or to have waited at the end, to be sent."""
        return self._cut or (self.transport is not None and not _is_flushed(self))

    @property
    def silent(self) -> bool:
        """Return True if no byte of the response has arrived."""
        return not self._heard

    def data_received(self, data: bytes) -> None:
        room = self._room - PIECE_BYTES
        self._room = room - len(data)
        if self._room < 0:
            self._overflow(data[: max(room, 0)])
            return
        self._heard += data
        super().data_received(data)

    def _overflow(self, welcome: bytes) -> None:
        if welcome:
            self._heard += welcome
            super().data_received(welcome)
        self.give_up(_TooMuch())

    def give_up(self, why: Exception) -> None:
        """End the request with an exception, and close the connection."""
        self.deadline = _NEVER
        self._cut = self.is_unsent
        if self._payload is not None:
            _end_payload(self._payload, why)
        self.set_exception(why)
        if self.transport is not None:
            self.transport.abort()

    def salvage(self) -> RawResponseMessage | None:
        """Return the head of a response whose body could not be parsed, or None; the parser dropped both."""
        data = bytes(self._heard)
        self._make_parser()
        parser = self._parser
        start = 0
        for match in _HEAD_END.finditer(data):
            try:
                messages, _, _ = parser.feed_data(data[start : match.end()])  # type: ignore[union-attr] # just made
            except Exception:  # noqa: BLE001 -- any parser error means that this is not a response
                return None
            if messages and messages[-1][0].code >= _STATUS_FIRST:
                return cast("RawResponseMessage", messages[-1][0])
            start = match.end()
        return None


@dataclasses.dataclass(frozen=True, slots=True)
class _Exchange:
    """A request that failed on an established connection.

    Attributes:
        target: its target.
        head: its header lines.
        wire: its connection.
        started: when the attempt began, monotonic seconds.
        message: the head of its answer; None if there was none.
        head_at: when that head had arrived, monotonic seconds; None if there was none.
        whole: True if the body has arrived as well.
    """

    target: Target
    head: bytes
    wire: _Wire
    started: float
    message: RawResponseMessage | None = None
    head_at: float | None = None
    whole: bool = False

    def times(self, now: float) -> dict[str, float | None]:
        """Return the times of its phases; those of the connection only if the request made it."""
        wire, times, written_at = self.wire, {}, self.started
        if wire.used == 1:
            written_at = wire.begun_at
            times = {**wire.dial.times(), "tls": written_at if self.target.request.is_ssl() else None}
        times["sent"] = None if wire.is_unsent else written_at
        return {**times, "headers": self.head_at, "body": now if self.whole else None}


class _Connector(aiohttp.TCPConnector):
    """aiohttp's connection pool; new connections present the request's client certificate if it has one."""

    contexts: ClientContexts
    monotonic: Callable[[], float]

    async def _create_connection(
        self,
        req: ClientRequest,
        traces: list[aiohttp.tracing.Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 -- aiohttp's signature
    ) -> ResponseHandler:
        _dialling.set(Dial())
        ours = cast("_Request", req)
        if ours.certificate is not None:
            context = await self.contexts.context(ours.certificate)
            req = cast("ClientRequest", dataclasses.replace(ours, ssl=context))
        wire = await self._open_connection(req, traces, timeout)
        _dialling.set(None)
        return wire

    async def _resolve_host(
        self, host: str, port: int, traces: Sequence[aiohttp.tracing.Trace] | None = None
    ) -> list[ResolveResult]:
        found = await super()._resolve_host(host, port, traces)
        if (dial := _dialling.get()) is not None:
            dial.dns_at = self.monotonic()
        return found

    async def _open_connection(
        self,
        req: ClientRequest,
        traces: list[aiohttp.tracing.Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 -- aiohttp's signature
    ) -> ResponseHandler:
        return await super()._create_connection(req, traces, timeout)


class _ProxiedConnector(_Connector):
    """The same pool with tunnels as new connections; the proxy's own address is trusted, as no customer chose it."""

    tunnels: Tunnels
    policy: EgressPolicy

    async def _open_connection(
        self,
        req: ClientRequest,
        traces: list[aiohttp.tracing.Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 -- aiohttp's signature
    ) -> ResponseHandler:
        host, port = str(req.url.raw_host), int(req.port or 0)
        addresses = await self._judged(req, host, port, traces)
        # A little less than the connector's own timeout, whose error could not be attributed.
        budget_s = _TUNNEL_SHARE * (timeout.connect or 0)
        transport = await self.tunnels.open(addresses, port, budget_s, _dialling.get() or Dial())
        wire = self._factory()
        try:
            await _hand_over(transport, wire, self._get_ssl_context(req), host)
        except BaseException:
            transport.abort()
            raise
        return wire

    async def _judged(
        self, req: ClientRequest, host: str, port: int, traces: list[aiohttp.tracing.Trace]
    ) -> list[str]:
        """Return the judged addresses of a host: the last check with a proxy, as the daemon opens no socket to it."""
        try:
            found = [each["host"] for each in await self._resolve_host(host, port, traces)]
        except OSError as exc:
            raise aiohttp.ClientConnectorDNSError(req.connection_key, exc) from exc
        for address in found:
            refusal = judge_address(address, self.policy, named=_named.get())
            if refusal is not None:
                raise AddressRefused(refusal)
        return found


async def _hand_over(
    transport: asyncio.Transport, wire: ResponseHandler, context: ssl.SSLContext | None, host: str
) -> None:
    """Start a connection on a tunnel as if it had just been opened."""
    if context is None:
        transport.set_protocol(wire)
        wire.connection_made(transport)
        return
    within = await asyncio.get_running_loop().start_tls(transport, wire, context, server_hostname=host)
    if within is None:  # the peer has closed the connection
        raise ConnectionResetError
    wire.connection_made(within)


class Sender:
    """Makes the requests of one daemon. An async context manager; use it within one event loop.

    Args:
        policy: which destinations are allowed.
        connections_max: concurrent requests; at most twice as many connections are kept open.
        connect_timeout_s: limit for DNS, TCP and TLS of a new connection together.
        response_bytes_max: bytes of a response's body that are kept.
        resolver: for tests; None for a `GuardedResolver`.
        monotonic: a clock in seconds.
        ca_file: further trust anchors in PEM (setting `egress.ca_file`).
        proxy: the proxy for every connection (setting `egress.proxy`); None if connections are direct.

    Attributes:
        diverted_to: a port of 127.0.0.1 that gets every request instead of its destination, unencrypted and otherwise
            unchanged; then nothing else is resolved or connected to. Set it before `target_of`. None if off.
        in_flight: requests that have begun and not ended.
    """

    diverted_to: int | None = None

    def __init__(
        self,
        *,
        policy: EgressPolicy,
        connections_max: int,
        connect_timeout_s: float,
        response_bytes_max: int,
        resolver: AbstractResolver | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        ca_file: str | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        self._policy = policy
        self._judge = functools.lru_cache(ORIGINS_MAX)(functools.partial(judge_origin, policy=policy))
        self._proxy = proxy
        self._connections_max = connections_max
        self._connect_timeout_s = connect_timeout_s
        self._response_bytes_max = response_bytes_max
        self._given_resolver = resolver
        self._monotonic = monotonic
        self._ssl_context = trust(ca_file, _ALPN)
        self._contexts = ClientContexts(functools.partial(trust, ca_file, _ALPN))
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}
        self._wires: set[_Wire] = set()
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> Self:
        self._resolver = self._given_resolver or GuardedResolver(self._policy)
        self._connector = self._make_connector(self._resolver)
        self._loop = asyncio.get_running_loop()
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sweeping.cancel()
        await self._connector.close(abort_ssl=True)
        if self._given_resolver is None:
            await self._resolver.close()

    def target_of(
        self,
        url: str,
        certificate: ClientCertificate | None = None,
        *,
        successes: frozenset[int] | None = None,
        secrets: tuple[str, ...] = (),
    ) -> Target | Fault:
        """Judge a URL and prepare it for requests. No I/O; a Fault is always BLOCKED.

        Args:
            url: the endpoint's URL.
            certificate: presented in the TLS handshake; only targets with the same certificate share connections.
            successes: statuses that need no evidence; None if no 2xx does.
            secrets: secrets of the endpoint, which evidence never contains even if an answer does.
        """
        destination = parse_by(self._judge, url)
        if isinstance(destination, Refusal):
            return Fault(Outcome.BLOCKED, destination.name)
        prefix = f"POST {destination.target} HTTP/1.1\r\nhost: {destination.host_header}\r\n".encode("ascii")
        if self.diverted_to is not None:
            certificate = None
            destination = dataclasses.replace(
                destination, scheme="http", host=_HERE, port=self.diverted_to, address=_HERE, named=False
            )
        key = ConnectionKey(
            host=destination.host,
            port=destination.port,
            is_ssl=destination.scheme == "https",
            ssl=True,
            proxy=None,
            proxy_auth=None,
            proxy_headers_hash=None if certificate is None else identity_of(certificate),
        )
        request = _Request(_Host(destination.host), destination.port, key, certificate=certificate)
        return Target(prefix, request, destination.named, successes or _ANY_2XX, secrets)

    async def obstacle(self, url: str) -> str | None:
        """Return why a request to a URL could not be made, a clause for the operator; None if it could. Queries DNS."""
        destination = parse_by(self._judge, url)
        if isinstance(destination, Refusal):
            return destination.why
        if destination.address is not None or self.diverted_to is not None:
            return None
        try:
            await self._resolver.resolve(destination.host, destination.port)
        except AddressRefused as error:
            return error.refusal.why
        except OSError:  # NameUnknown, among others
            return "its host name has no address"
        return None

    async def post(
        self, target: Target, head: bytes, body: bytes, timeout_s: float, *, kept_bytes: int | None = None
    ) -> Answer:
        """Send one request and read its response.

        Args:
            target: the result of `target_of` for the endpoint's URL.
            head: all header lines after `host`, including `content-length` and the final empty line.
            body: exactly `content-length` bytes.
            timeout_s: seconds from now to the response's last byte, including connecting; exact to 0.3 s.
            kept_bytes: bytes of the response's body to keep, at most 65,536; None for `response_bytes_max`.

        Returns:
            A Reply if a final head was received, even if the body then failed; otherwise a Fault.
        """
        started = self._monotonic()
        if not self.in_flight:
            self._idle.clear()
        self.in_flight += 1
        try:
            try:
                connection = await self._connect(target, timeout_s)
            except NoTunnel as exc:
                return self._unconnected(exc.fault, started)
            except Exception as exc:  # noqa: BLE001 -- foreign exceptions end here, each as a named fault
                return self._unconnected(_connect_fault(exc), started)
            wire = cast("_Wire", connection.protocol)
            whole = False
            try:
                wire.begin(started + timeout_s)
                if wire.used == 1:
                    wire.key, wire.begun_at = target.request.connection_key, self._monotonic()
                _write(wire, target.prefix + head, body)
                message, payload = await wire.read()
                while message.code in _INTERIM:
                    message, payload = await wire.read()
                head_at = None if message.code in target.successes else self._monotonic()
                text = await _read_body(payload)
                reply = _reply(
                    message, text[: self._response_bytes_max if kept_bytes is None else kept_bytes]
                )
                whole = payload.is_eof() and payload.exception() is None
                if head_at is not None:
                    exchange = _Exchange(target, head, wire, started, message, head_at, whole)
                    reply = self._explained(reply, exchange)
            except Exception as exc:  # noqa: BLE001 -- as above
                return self._failed(exc, _Exchange(target, head, wire, started))
            finally:
                self._finish(connection, wire, whole=whole)
            return reply
        finally:
            self._land()

    def _unconnected(self, fault: Fault, started: float) -> Fault:
        """Add the evidence to the fault of a connection that could not be made."""
        dial = _dialling.get()
        if dial is None:
            return fault
        _dialling.set(None)
        found = text_of(started, dial.times(), address=dial.address, is_proxied=self._proxy is not None)
        return dataclasses.replace(fault, evidence=found)

    def _failed(self, exc: Exception, exchange: _Exchange) -> Answer:
        """Return the answer for a request that failed on an established connection."""
        message = exchange.wire.salvage() if isinstance(exc, HttpProcessingError) else None
        if message is None:
            return self._explained(_exchange_fault(exc, exchange.wire), exchange)
        exchange = dataclasses.replace(exchange, message=message, head_at=self._monotonic())
        return self._explained(_reply(message, b""), exchange)

    def _explained(self, answer: Answer, exchange: _Exchange) -> Answer:
        """Add the evidence to the answer of a request that failed."""
        wire, message = exchange.wire, exchange.message
        found = text_of(
            exchange.started,
            exchange.times(self._monotonic()),
            address=wire.dial.address,
            is_proxied=self._proxy is not None,
            is_reused=wire.used > 1,
            headers=() if message is None else message.raw_headers,
            secrets=secrets_of(exchange.target.prefix + exchange.head, exchange.target.secrets),
        )
        return dataclasses.replace(answer, evidence=found)

    def _land(self) -> None:
        """Record that a request has ended."""
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    async def idle(self) -> None:
        """Return once no request is in flight."""
        await self._idle.wait()

    async def _connect(self, target: Target, timeout_s: float) -> Connection:
        timeout = self._timeouts.get(timeout_s) or self._timeout(timeout_s)
        request = cast("ClientRequest", target.request)
        if not target.named:
            return await self._connector.connect(request, _NO_TRACES, timeout)
        token = _named.set(True)
        try:
            return await self._connector.connect(request, _NO_TRACES, timeout)
        finally:
            _named.reset(token)

    def _finish(self, connection: Connection, wire: _Wire, *, whole: bool) -> None:
        """Keep the connection or abort it; a stalled peer never completes a graceful close."""
        wire.end()
        keep = whole and len(self._wires) <= 2 * self._connections_max
        if keep and _is_flushed(wire) and wire.is_between():
            wire.idle_at = self._monotonic()
            connection.release()
        else:
            wire.abort()
            connection.close()

    def _timeout(self, timeout_s: float) -> aiohttp.ClientTimeout:
        """Return the limit for making a connection, cached because few values occur."""
        if len(self._timeouts) >= 1000:  # noqa: PLR2004 -- an arbitrary bound
            self._timeouts.clear()
        made = aiohttp.ClientTimeout(connect=min(self._connect_timeout_s, timeout_s), ceil_threshold=3600)
        self._timeouts[timeout_s] = made
        return made

    def _make_connector(self, resolver: AbstractResolver) -> aiohttp.TCPConnector:
        kind = _Connector if self._proxy is None else _ProxiedConnector
        connector = kind(
            limit=self._connections_max,
            resolver=resolver,
            ssl=self._ssl_context,
            keepalive_timeout=KEEPALIVE_S,
            ttl_dns_cache=DNS_CACHE_S,
            dns_cache_max_size=DNS_CACHE_MAX,
            socket_factory=self._open_socket,
        )
        connector._factory = self._make_wire  # type: ignore[assignment] # noqa: SLF001 -- the list at the top
        connector.contexts = self._contexts
        connector.monotonic = self._monotonic
        if self._proxy is not None and isinstance(connector, _ProxiedConnector):
            connector.tunnels = Tunnels(self._proxy, self._ssl_context)
            connector.policy = self._policy
        return connector

    def _make_wire(self) -> _Wire:
        """Make the protocol of a connection that has just been opened; TLS, if any, comes after it."""
        dial = _dialling.get() or Dial()
        dial.connected_at = self._monotonic()
        return _Wire(
            asyncio.get_running_loop(), self._wires, self._response_bytes_max + RESPONSE_SLACK_BYTES, dial
        )

    def _open_socket(self, info: AddrInfoType) -> socket.socket:
        """Judge the address that is about to be connected to: the last check, whatever resolved it."""
        family, kind, protocol, _, sockaddr = info
        if self.diverted_to is None or sockaddr[:2] != (_HERE, self.diverted_to):
            refusal = judge_address(str(sockaddr[0]), self._policy, named=_named.get())
            if refusal is not None:
                raise AddressRefused(refusal)
        if (dial := _dialling.get()) is not None:
            dial.to(sockaddr[:2])
        return socket.socket(family, kind, protocol)

    def _sweep(self) -> None:
        """End the requests whose deadline has passed: one timer for all of them."""
        self._sweeping = self._loop.call_later(SWEEP_S, self._sweep)
        now = self._monotonic()
        for wire in [wire for wire in self._wires if wire.deadline <= now]:
            wire.give_up(_Overdue())
        self._make_way(now - CROWDED_S)

    def _make_way(self, before: float) -> None:
        """Close idle connections to origins that do not answer on new connections.

        A receiver that serves one connection at a time reads from the open idle one and never serves the others. For a
        receiver that serves many, closing an idle connection costs little.
        """
        crowded = {
            wire.key for wire in self._wires if wire.used == 1 and wire.silent and wire.begun_at < before
        }
        if crowded:
            for wire in [wire for wire in self._wires if wire.idle_at < before and wire.key in crowded]:
                wire.abort()


def _write(wire: _Wire, head: bytes, body: bytes) -> None:
    transport = wire.transport
    if transport is None:
        raise aiohttp.ClientConnectionResetError("the connection was lost before the request")
    if len(body) < BIG_BODY_BYTES:
        transport.write(head + body)
    else:
        transport.writelines((head, body))


def _is_flushed(wire: _Wire) -> bool:
    """Return True if the whole request was sent; a peer that answers early may never read all of it."""
    return wire.transport is not None and not wire.transport.get_write_buffer_size()


def _end_payload(payload: StreamReader, why: Exception) -> None:
    """End an incomplete body with an exception, which wakes its reader; leave a complete one unchanged."""
    if not payload.is_eof() and payload.exception() is None:
        payload.set_exception(why)


async def _read_body(payload: StreamReader) -> bytes:
    """Read a body to its end; if it fails or stalls, return the bytes received so far."""
    if payload is EMPTY_PAYLOAD:
        return b""
    try:
        if not payload.is_eof() and payload.exception() is None:
            await payload.wait_eof()
    except Exception:  # noqa: BLE001, S110 -- the head decides the outcome; the body is only stored
        pass
    # read_nowait would raise the body's exception, and needlessly feed the parser again.
    return b"".join(payload._buffer)  # noqa: SLF001 -- the list at the top


def _reply(message: RawResponseMessage, body: bytes) -> Answer:
    status = message.code
    if not _STATUS_FIRST <= status <= _STATUS_LAST or message.version.major != 1:
        return Fault(Outcome.UNREACHABLE, "bad_response")
    headers = message.headers
    control = headers.get(_CONTROL)
    if control is not None:
        control = _clean(control).strip().lower()
    if status < _REDIRECTS_FROM:
        return Reply(status, body, control=control)
    retry_after, location = headers.get(_RETRY_AFTER), headers.get(_LOCATION)
    return Reply(
        status,
        body,
        retry_after=None if retry_after is None else _clean(retry_after),
        control=control,
        location=None if location is None else _clean(location),
    )


def _clean(value: str) -> str:
    """Replace the lone surrogates that represent bytes outside UTF-8, because Postgres rejects them."""
    return value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _exchange_fault(exc: Exception, wire: _Wire) -> Fault:
    """Return the fault of a request that failed on an established connection."""
    if isinstance(exc, _Overdue):
        return Fault(Outcome.TIMEOUT, "response")
    if isinstance(exc, _TooMuch):
        return Fault(Outcome.UNREACHABLE, "too_much_response")
    if isinstance(exc, HttpProcessingError):
        return Fault(Outcome.UNREACHABLE, "bad_response")
    if isinstance(exc, aiohttp.ClientConnectionError | OSError):
        return _loss(exc, wire)
    return Fault(Outcome.FAILED, type(exc).__name__)


def _loss(exc: Exception, wire: _Wire) -> Fault:
    if wire.used > 1 and wire.silent:
        return Fault(Outcome.UNREACHABLE, "stale_connection")
    if isinstance(exc.__cause__, ssl.SSLError):  # an alert after the handshake, as for a missing certificate
        return Fault(Outcome.UNREACHABLE, "tls")
    return Fault(Outcome.UNREACHABLE, "reset")


def _connect_fault(exc: Exception) -> Fault:
    """Return the fault for a connection that could not be made."""
    cause = exc.os_error if isinstance(exc, aiohttp.ClientConnectorError) else exc
    if isinstance(cause, AddressRefused):
        return Fault(Outcome.BLOCKED, cause.refusal.name)
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return Fault(Outcome.UNREACHABLE, "dns")
    if isinstance(cause, ssl.SSLError):
        return Fault(Outcome.UNREACHABLE, _tls_error(cause))
    if isinstance(cause, TimeoutError):
        return Fault(Outcome.TIMEOUT, "connect")
    if isinstance(cause, OSError):
        return _os_fault(cause)
    return Fault(Outcome.FAILED, type(exc).__name__)


# X509_V_ERR_* of OpenSSL
_CERTIFICATE_FAULTS = {
    9: "tls_expired",  # not valid yet
    10: "tls_expired",
    32: "tls_untrusted: not_ca",  # the issuer's key usage has no keyCertSign
    62: "tls_name",  # host
    64: "tls_name",  # IP address
    66: "tls_untrusted: weak",  # the system's OpenSSL refuses a key of this length
    67: "tls_untrusted: weak",  # the same for an issuer's key
    68: "tls_untrusted: weak",  # an issuer signs with SHA-1 or weaker
    79: "tls_untrusted: not_ca",  # the issuer's basicConstraints lack CA:TRUE
}
_OUR_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL})
_OS_FAULTS = {  # the most specific first, for when several addresses failed
    errno.EPERM: Fault(Outcome.BLOCKED, "address"),  # the kernel's own check (the unit's IPAddressDeny)
    errno.EACCES: Fault(Outcome.BLOCKED, "address"),
    errno.ECONNREFUSED: Fault(Outcome.UNREACHABLE, "refused"),
    errno.ECONNRESET: Fault(Outcome.UNREACHABLE, "reset"),
    errno.ECONNABORTED: Fault(Outcome.UNREACHABLE, "reset"),
    errno.EPIPE: Fault(Outcome.UNREACHABLE, "reset"),
    errno.ETIMEDOUT: Fault(Outcome.TIMEOUT, "connect"),
    errno.EHOSTUNREACH: Fault(Outcome.UNREACHABLE, "no_route"),
    errno.ENETUNREACH: Fault(Outcome.UNREACHABLE, "no_route"),
    errno.EHOSTDOWN: Fault(Outcome.UNREACHABLE, "no_route"),
    errno.EAFNOSUPPORT: Fault(Outcome.UNREACHABLE, "no_route"),
}


def _tls_error(exc: ssl.SSLError) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _CERTIFICATE_FAULTS.get(exc.verify_code, "tls_untrusted")
    return "tls: client_certificate" if isinstance(exc, Unusable) else "tls"


def _os_fault(exc: OSError) -> Fault:
    if exc.errno is not None:
        numbers = {exc.errno}
    elif AddressRefused.TEXT in str(exc):
        return Fault(Outcome.BLOCKED, "address")
    else:
        numbers = {int(number) for number in _QUOTED_ERRNO.findall(str(exc))}
    for number in numbers & _OUR_OWN:
        return Fault(Outcome.FAILED, errno.errorcode[number])
    for number, fault in _OS_FAULTS.items():
        if number in numbers:
            return fault
    if isinstance(exc, ConnectionError):
        return Fault(Outcome.UNREACHABLE, "reset")
    return Fault(Outcome.FAILED, type(exc).__name__)
