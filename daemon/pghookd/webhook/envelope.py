"""What a receiver sees of an event: its identity, its body and the header lines of one attempt.

All of it is made by joining bytes, thousands of times a second: the producer's own payload is never parsed
nor written anew, so that every attempt carries the same bytes. Whatever comes from the database passes
through here before it may stand in a request head.

Never here: the request line and `host` (they belong to the destination), keys and signatures, a clock.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from pghookd.model.event_type import valid_type
from pghookd.webhook.headers import static_lines

SOURCE_LENGTH_MAX: Final = 2048  # bytes once encoded; a longer source is not sent
CREATED_AT_US_MAX: Final = (1 << 56) - 1  # what 14 hex digits hold: the year 4253

_WEBHOOK_ID: Final = re.compile(r"evt_([0-9a-f]{14})[0-9a-f]{14}")
_UNFIT: Final = re.compile(rb"[^\x21-\x7e]")  # RFC 9110, 5.5: visible ASCII alone is beyond doubt
_UNFIT_BUT_BLANK: Final = re.compile(rb"[^\x20-\x7e]")


def webhook_id(event_id: int, created_at_us: int) -> str:
    """Return `evt_` + event_id + created_at, 14 hex digits each: the same for every attempt and endpoint.

    Both are in it because after a failover the same event_id may be given to another event. It holds no dot,
    since dots part what is signed.

    Args:
        event_id: not negative.
        created_at_us: microseconds since 1970; anything before is taken as 1970, anything after the year 4253
            (infinity too) as that.
    """
    if not 0 <= created_at_us <= CREATED_AT_US_MAX:
        created_at_us = _clamp(created_at_us)
    return f"evt_{event_id:014x}{created_at_us:014x}"


def event_id_of(webhook_id: str) -> int:
    """Return the event_id within a webhook-id.

    Raises:
        ValueError: it is none.
    """
    match = _WEBHOOK_ID.fullmatch(webhook_id)
    if match is None:
        raise ValueError("a webhook-id is evt_ and 28 hex digits")
    return int(match[1], 16)


def timestamp_text(created_at_us: int) -> str:
    """Return a time as `2026-11-24T10:15:00.123Z` (RFC 3339, UTC, cut to milliseconds).

    Args:
        created_at_us: microseconds since 1970, clamped as `webhook_id` does.
    """
    second, us = divmod(_clamp(created_at_us), 1_000_000)
    return f"{_second_text(second)}.{us // 1000:03d}Z"


def body(event_id: int, event_type: str, created_at_us: int, payload: bytes) -> bytes:
    """Return the envelope around the producer's own JSON text.

    Raises:
        ValueError: the type is not a valid one (it stands in the JSON as it is).
    """
    return wrap(webhook_id(event_id, created_at_us), event_type, timestamp_text(created_at_us), payload)


def wrap(webhook_id: str, event_type: str, triggered_at: str, payload: bytes) -> bytes:
    """Return the same envelope, its id and time in the texts that the head needs as well.

    Raises:
        ValueError: the type is not a valid one.
    """
    opening = (
        f'{{"id":"{webhook_id}","type":"{_checked_type(event_type)}","timestamp":"{triggered_at}","data":'
    )
    return opening.encode("ascii") + payload + b"}"


@dataclasses.dataclass(frozen=True, slots=True)
class StaticHead:
    """The header lines of an endpoint that are the same on every attempt; make one per endpoint and keep it.

    Attributes:
        opening: the lines before `webhook-id`, and that line up to its value.
        later: the line `x-webhook-source`, if there is one, and the endpoint's own.
    """

    opening: bytes
    later: bytes = dataclasses.field(repr=False)  # may carry a token

    @classmethod
    def of(cls, user_agent: str, source: str | None, headers: Sequence[tuple[str, str]] = ()) -> StaticHead:
        """Prepare the lines; whatever of ours could break or forge a header is percent-encoded (RFC 3986, 2.1).

        Args:
            user_agent: setting `delivery.user_agent`.
            source: `sites.url`; None, empty or over 2,048 bytes: no line.
            headers: names and values of the endpoint's own.

        Raises:
            ValueError: one of the endpoint's own headers may not be sent (webhook/headers).
        """
        agent = _encoded(user_agent.strip(), _UNFIT_BUT_BLANK)
        opening = (
            b"content-type: application/json\r\nuser-agent: " + agent + b"\r\n"
            b"accept: */*\r\naccept-encoding: identity\r\nwebhook-id: "
        )
        return cls(opening, _source_line(source) + (static_lines(headers) if headers else b""))

    def head(
        self,
        *,
        webhook_id: str,
        timestamp_s: int,
        signature: bytes | None,
        event_type: str,
        attempt: int,
        triggered_at: str,
        body_bytes: int,
        more: bytes = b"",
    ) -> bytes:
        """Return the header lines of one attempt, the blank line that ends the head included.

        Args:
            webhook_id: as `webhook_id()` returns it.
            timestamp_s: Unix seconds of this attempt, the same that was signed.
            signature: the value of `webhook-signature`; None: the endpoint has no secret, no line.
            event_type: a valid type.
            attempt: 1 for the first.
            triggered_at: as `timestamp_text()` returns it.
            body_bytes: the length of the body.
            more: lines of a profile, each with its line end.

        Raises:
            ValueError: the type is not a valid one.
        """
        signed = b"" if signature is None else b"\r\nwebhook-signature: " + signature
        return b"".join(
            (
                self.opening,
                f"{webhook_id}\r\nwebhook-timestamp: {timestamp_s}".encode("ascii"),
                signed,
                _topic_line(event_type),
                self.later,
                more,
                f"x-webhook-attempt: {attempt}\r\nx-webhook-triggered-at: {triggered_at}\r\n"
                f"content-length: {body_bytes}\r\n\r\n".encode("ascii"),
            )
        )


def _clamp(created_at_us: int) -> int:
    return min(max(created_at_us, 0), CREATED_AT_US_MAX)


@functools.lru_cache(maxsize=256)
def _second_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


@functools.lru_cache(maxsize=1024)
def _topic_line(event_type: str) -> bytes:
    return f"\r\nx-webhook-topic: {_checked_type(event_type)}\r\n".encode("ascii")


@functools.lru_cache(maxsize=1024)
def _checked_type(event_type: str) -> str:
    if not valid_type(event_type):
        raise ValueError("not a valid event type")
    return event_type


def fit_source(source: str | None) -> bytes:
    """Return `sites.url` as it is sent; empty: it is not."""
    encoded = _encoded((source or "").strip(), _UNFIT)
    return encoded if len(encoded) <= SOURCE_LENGTH_MAX else b""


def _source_line(source: str | None) -> bytes:
    encoded = fit_source(source)
    return b"x-webhook-source: " + encoded + b"\r\n" if encoded else b""


def _encoded(text: str, unfit: re.Pattern[bytes]) -> bytes:
    return unfit.sub(lambda match: b"%%%02X" % match[0][0], text.encode("utf-8", "surrogatepass"))
