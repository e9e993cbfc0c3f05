"""The rarely used options of an event, as one value; None for an event without any.

The database returns them as one flat JSON text (column `options` of the queries that read events): an event without
options costs one null. Unusable values are ignored, because producers fill these columns.

Never here: time, SQL, the effect of an option.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Final

import orjson

# W3C Trace Context, 3.2: version, trace-id, parent-id, flags; versions after 00 may append more after a dash.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[!-~]*)?"
)
_FIRST_VERSION: Final = "00"


@dataclasses.dataclass(slots=True, eq=False)
class EventOptions:
    """The rarely set columns of `events`.

    Attributes:
        trace_line: the header line `traceparent`, with its line end; empty if there is no valid one.
        wait_s: seconds until `deliver_after`, from when the event was read; 0 if it is past.
        deliver_after_us: microseconds since 1970; 0 if not set.
        deliver_before_us: microseconds since 1970 from which no attempt starts; None if there is no end.
        ordering_key: ordered endpoints get events with the same key one at a time.
        dedupe_key: only the first event of a site with the same key is delivered.
        supersede_key: a newer event with the same key replaces this one while it is undelivered.
        payload_bytes: size of a payload that is loaded before it is sent; only set with a supersede_key.
        duplicate: True if another event of its dedupe_key came first; None if the reader does not know yet.
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
        """Return True if no more attempt may start."""
        return self.deliver_before_us is not None and now_us >= self.deliver_before_us


def read(text: str) -> EventOptions:
    """Parse the text of the column `options`; its times are Unix seconds."""
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
    """Return the header line that propagates a trace; empty if the value is invalid (W3C Trace Context, 3.2)."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or (match[1] == _FIRST_VERSION and match[2] is not None):
        return b""
    return f"traceparent: {traceparent}\r\n".encode("ascii")


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)
