"""A receiver that shows every request: for `pghookd receive` and `run --sink`.

It is the demo's receiver, which checks signatures like a third party's, but with any path and a list of secrets.

Never here: the daemon's own signing code.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import json
import signal
import time
from collections.abc import Callable, Mapping
from typing import Final

from pghookd.cli.devtools.receiver import TOO_LARGE, Receiver, Refuted, TooLarge, verify

SEEN_MAX: Final = 10_000  # deliveries remembered


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """One request and its answer.

    Attributes:
        host: the `host` header, the original destination.
        path: the path of the request line.
        headers: by lower-case name.
        body: as received.
        at_s: Unix seconds.
        signed: True if there is a signature header.
        refuted: why the request was rejected; None if it was verified or there is no secret to verify it with.
        verified: True if one of the secrets verified it.
        repeated: True if this event came to this host and path before.
        status: the answer's status.
    """

    host: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at_s: float
    signed: bool
    refuted: str | None
    verified: bool
    repeated: bool
    status: int

    @property
    def event_type(self) -> str:
        """The type in the body, which is signed; the header's if the body has none."""
        try:
            told = json.loads(self.body)
            return str(told["type"])
        except (ValueError, KeyError, TypeError):
            return self.headers.get("x-webhook-topic", "?")


class Printer(Receiver):
    """Shows every request to any path.

    Args:
        show: called with each request, before the answer is sent.
        secrets: one of them must have signed the request; if empty, nothing is verified.
        port: the port to listen on; 0 for a free one.
        status: the answer to accepted requests; the answer to others is 400.
    """

    def __init__(
        self,
        show: Callable[[Received], None],
        *,
        secrets: tuple[str, ...] = (),
        port: int = 0,
        status: int = 200,
    ) -> None:
        super().__init__(lambda *_: True, lambda _: None, port=port)
        self._show = show
        self._any_of = secrets
        self._status = status
        self._known: collections.OrderedDict[str, None] = collections.OrderedDict()

    def take(self, path: str, headers: Mapping[str, str], body: bytes) -> int:
        """Verify and show a request; return the status of the answer."""
        now_s = time.time()
        host = headers.get("host", "?")
        refuted = _why_refuted(self._any_of, headers, body, now_s)
        status = self._status if refuted is None else 400
        received = Received(
            host=host,
            path=path,
            headers=headers,
            body=body,
            at_s=now_s,
            signed="webhook-signature" in headers,
            refuted=refuted,
            verified=bool(self._any_of) and refuted is None,
            repeated=refuted is None and self._is_known(f"{headers.get('webhook-id')} {host}{path}"),
            status=status,
        )
        self._show(received)
        return status

    def refuse(self, error: TooLarge) -> int:
        """Show a request with too large a body; return the status of the answer."""
        received = Received(
            host=error.headers.get("host", "?"),
            path=error.path,
            headers=error.headers,
            body=b"",
            at_s=time.time(),
            signed="webhook-signature" in error.headers,
            refuted=str(error),
            verified=False,
            repeated=False,
            status=TOO_LARGE,
        )
        self._show(received)
        return TOO_LARGE

    def _is_known(self, delivery: str) -> bool:
        """Return True if an event came to this host and path before; remember it."""
        known = delivery in self._known
        self._known[delivery] = None
        if len(self._known) > SEEN_MAX:
            self._known.popitem(last=False)
        return known


def _why_refuted(
    secrets: tuple[str, ...], headers: Mapping[str, str], body: bytes, now_s: float
) -> str | None:
    why = None
    for secret in secrets:
        try:
            verify(secret, headers, body, now_s)
        except Refuted as error:
            why = str(error)
        else:
            return None
    return why


async def listen(printer: Printer, ready: Callable[[str], None]) -> None:
    """Receive until SIGINT or SIGTERM.

    Raises:
        OSError: the port is not available.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with printer:
        ready(printer.url("/"))
        await stop.wait()
