"""What an event asks for beyond its delivery, as one value that is None for those that ask for nothing.

The database hands it over as one flat JSON text (column `options` of the queries that read events), so that an event
without options costs one null. Whatever cannot be used is left out: the columns are the producer's.

Never here: time, SQL, what becomes of a delivery.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final

import orjson

# W3C Trace Context, 3.2: version, trace-id, parent-id, flags; a later version than 00 may go on after a dash.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?"
)
_FIRST_VERSION: Final = "00"


@dataclasses.dataclass(slots=True, eq=False)
class EventOptions:
    """The columns of `events` that are seldom set.

    Attributes:
        trace_line: the header line `traceparent`, with its line end; empty: none, or not one that may be passed on.
        wait_s: seconds until `deliver_after` when the event was read; 0: it is past.
        deliver_after_us: microseconds since 1970; 0: none.
        deliver_before_us: no attempt starts from then on, microseconds since 1970; None: no end.
        ordering_key: endpoints that are ordered get events with it one by one.
        dedupe_key: the first event of a site with it is delivered, no other one.
        supersede_key: a newer event with it replaces this one where it is undelivered.
        payload_bytes: of a payload that is loaded when it is sent; only where there is a supersede_key.
        duplicate: another event of its dedupe_key came first; None: the reader has not found out yet.
    """

    trace_line: bytes = b""
    wait_s: float = 0.0
    deliver_after_us: int = 0
    deliver_before_us: int | None = None
    ordering_key: str | None = None
    dedupe_key: str | None = None
    supersede_key: str | None = None
    payload_bytes: int = 0
    duplicate: bool | None = False

    def has_expired(self, now_us: int) -> bool:
        """Return True if no attempt may start any more."""
        return self.deliver_before_us is not None and now_us >= self.deliver_before_us


def read(text: str) -> EventOptions:
    """Make the options of the text of the column `options`; its times are Unix seconds."""
    found = orjson.loads(text)
    before = found.get("deliver_before")
    return EventOptions(
        trace_line=trace_line(found.get("traceparent", "")),
        wait_s=found.get("wait_s", 0.0),
        deliver_after_us=_us(found.get("deliver_after", 0)),
        deliver_before_us=None if before is None else _us(before),
        ordering_key=found.get("ordering_key"),
        dedupe_key=found.get("dedupe_key"),
        supersede_key=found.get("supersede_key"),
        payload_bytes=found.get("payload_bytes", 0),
    )


def trace_line(traceparent: str) -> bytes:
    """Return the header line that passes a trace on; empty where the value is none (W3C Trace Context, 3.2)."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or (match[1] == _FIRST_VERSION and match[2] is not None):
        return b""
    return f"traceparent: {traceparent}\r\n".encode("ascii")


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)
