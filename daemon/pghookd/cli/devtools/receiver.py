"""The demo's receiver, written as a third party would write one; above all it checks the signature.

It uses only the secrets and the Standard Webhooks specification, none of the daemon's signing code. It checks the
request's raw bytes with the standard library alone, so that a successful demo is evidence.

Never here: imports from webhook/signing.py or webhook/envelope.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

TOLERANCE_S: Final = 300  # Standard Webhooks: five minutes, in both directions
HEAD_BYTES_MAX: Final = 16384
BODY_BYTES_MAX: Final = 1_000_000
DISCARD_BYTES_MAX: Final = (
    64_000_000  # read before a 413: a sender that is cut off within its body gets no answer
)
DISCARD_TIMEOUT_S: Final = 30.0
TOO_LARGE: Final = 413
_DISCARD_STEP_BYTES: Final = 65536
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    TOO_LARGE: "Content Too Large",
    503: "Service Unavailable",
}


class Refuted(Exception):  # noqa: N818 - the name describes the result of the check
    """The request is not what it claims to be."""


class TooLarge(Exception):  # noqa: N818 - as Refuted
    """The body is longer than BODY_BYTES_MAX."""

    def __init__(self, path: str, headers: Mapping[str, str], length: int) -> None:
        super().__init__(f"the body has {length} bytes, more than {BODY_BYTES_MAX}")
        self.path = path
        self.headers = headers
        self.length = length


@dataclasses.dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One request and its answer.

    Attributes:
        path: the endpoint's path.
        webhook_id: the header's value; empty if there was none.
        event_type: the type in the body, which is signed, unlike the header.
        attempt: 1 for the first attempt.
        at_us: microseconds since 1970 at which the request was complete.
        status: the answer's status.
        refuted: why the request was rejected; None if its signature was verified.
    """

    path: str
    webhook_id: str
    event_type: str
    attempt: int
    at_us: int
    status: int
    refuted: str | None

    @property
    def event_id(self) -> int:
        """The event_id in the webhook-id; 0 if there is none."""
        try:
            return int(self.webhook_id.removeprefix("evt_")[:14], 16)
        except ValueError:
            return 0


class Receiver:
    """An HTTP server on a free port of 127.0.0.1, one path per endpoint.

    Args:
        mood: called with path, webhook-id and attempt of a verified request; if it returns False, the answer is 503.
        seen: called with every request, after its answer was decided.
        port: the port to listen on; 0 for a free one.
    """

    def __init__(
        self, mood: Callable[[str, str, int], bool], seen: Callable[[ReceivedRequest], None], *, port: int = 0
    ) -> None:
        self._mood = mood
        self._seen = seen
        self._port = port
        self._secrets: dict[str, str] = {}
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=HEAD_BYTES_MAX)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()

    def expect(self, path: str, secret: str) -> None:
        """Accept requests to a path that are signed with this secret."""
        self._secrets[path] = secret

    @property
    def port(self) -> int:
        """The port on which it listens."""
        if self._server is None:
            raise RuntimeError("not listening yet")
        number: int = self._server.sockets[0].getsockname()[1]
        return number

    def url(self, path: str) -> str:
        """Return the URL of a path."""
        return f"http://127.0.0.1:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            # The peer may disconnect at any time, and may send anything.
            with contextlib.suppress(
                OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError
            ):
                while True:
                    path, headers, body = await _read(reader)
                    writer.write(_answer(self.take(path, headers, body)))
                    await writer.drain()
        except TooLarge as error:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
                await _discard(reader, error.length)
                writer.write(_answer(self.refuse(error)))
                await writer.drain()
        finally:
            self._open.discard(writer)
            writer.close()

    def take(self, path: str, headers: Mapping[str, str], body: bytes) -> int:
        """Verify and record a request; return the status of the answer."""
        webhook_id = headers.get("webhook-id", "")
        attempt = int(headers.get("x-webhook-attempt", "1"))
        event_type, refuted = "", None
        try:
            event_type = self._believe(path, headers, body)
            status = 200 if self._mood(path, webhook_id, attempt) else 503
        except Refuted as error:
            status, refuted = 400, str(error)
        self._seen(
            ReceivedRequest(path, webhook_id, event_type, attempt, time.time_ns() // 1000, status, refuted)
        )
        return status

    def refuse(self, error: TooLarge) -> int:
        """Record a request with too large a body; return the status of the answer."""
        webhook_id, attempt = error.headers.get("webhook-id", ""), error.headers.get("x-webhook-attempt", "1")
        now_us = time.time_ns() // 1000
        self._seen(ReceivedRequest(error.path, webhook_id, "", int(attempt), now_us, TOO_LARGE, None))
        return TOO_LARGE

    def _believe(self, path: str, headers: Mapping[str, str], body: bytes) -> str:
        """Check the signature, and that body and headers agree; return the type in the body."""
        secret = self._secrets.get(path)
        if secret is None:
            raise Refuted("no such endpoint")
        verify(secret, headers, body, time.time())
        told = json.loads(body)
        if told["id"] != headers["webhook-id"] or told["timestamp"] != headers["x-webhook-triggered-at"]:
            raise Refuted("body and headers speak of different events")
        if "data" not in told:
            raise Refuted("there is no data")
        return str(told["type"])


def verify(secret: str, headers: Mapping[str, str], body: bytes, now_s: float) -> None:
    """Check a signature as Standard Webhooks 1.0.0 specifies.

    Args:
        secret: `whsec_` and base64, or any other text, whose bytes are the key.
        headers: by lower-case name.
        body: as received.
        now_s: Unix seconds.

    Raises:
        Refuted: a header is missing, the timestamp is outside the 5-minute tolerance, or no signature is right.
    """
    try:
        webhook_id, timestamp = headers["webhook-id"], headers["webhook-timestamp"]
        signatures = headers["webhook-signature"].split(" ")
    except KeyError as missing:
        raise Refuted(f"there is no {missing.args[0]}") from None
    if not timestamp.isdecimal() or abs(now_s - int(timestamp)) > TOLERANCE_S:
        raise Refuted("the time is not now")
    key = base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
    expected = hmac.new(key, f"{webhook_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    wanted = b"v1," + base64.b64encode(expected)
    if not any(hmac.compare_digest(wanted, signature.encode()) for signature in signatures):
        raise Refuted("the signature is wrong")


async def _read(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """Read one request.

    Raises:
        IncompleteReadError: the peer has disconnected.
        LimitOverrunError, ValueError: the head is too large, or the request is not valid HTTP.
        TooLarge: the body is too large; none of it was read.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    _method, path, _version = request_line.split(" ")
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    length = int(headers.get("content-length", "0"))
    if not 0 <= length <= DISCARD_BYTES_MAX:
        raise ValueError("too large even to be read and forgotten")
    if length > BODY_BYTES_MAX:
        raise TooLarge(path, headers, length)
    return path, headers, await reader.readexactly(length)


async def _discard(reader: asyncio.StreamReader, length: int) -> None:
    """Read a body to its end and discard it.

    Raises:
        IncompleteReadError, TimeoutError: the peer has disconnected, or is too slow.
    """
    async with asyncio.timeout(DISCARD_TIMEOUT_S):
        while length > 0:
            length -= len(await reader.readexactly(min(length, _DISCARD_STEP_BYTES)))


def _answer(status: int) -> bytes:
    last = "connection: close\r\n" if status == TOO_LARGE else ""
    return f"HTTP/1.1 {status} {_REASONS.get(status, '-')}\r\n{last}content-length: 0\r\n\r\n".encode()
