"""An event as the receiver sees it: its id, its body and the header lines of one attempt.

This module only joins bytes, thousands of times a second. It never parses or rewrites the producer's payload, so
that every attempt carries the same bytes. It makes every value from the database safe for a request head.

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

SOURCE_LENGTH_MAX: Final = 2048  # bytes after encoding; a longer source is not sent
CREATED_AT_US_MAX: Final = (1 << 56) - 1  # the greatest value of 14 hex digits: the year 4253

_WEBHOOK_ID: Final = re.compile(r"evt_([0-9a-f]{14})[0-9a-f]{14}")
_UNFIT: Final = re.compile(rb"[^\x21-\x7e]")  # RFC 9110, 5.5: only visible ASCII is always safe
_UNFIT_BUT_BLANK: Final = re.compile(rb"[^\x20-\x7e]")


def webhook_id(event_id: int, created_at_us: int) -> str:
    """Return `evt_` + event_id + created_at, 14 hex digits each: the same for every attempt and endpoint.

    Both numbers are needed because after a failover Postgres may give the same event_id to another event. The id
    contains no dot, because dots separate the parts of the signed content.

    Args:
        event_id: not negative.
        created_at_us: microseconds since 1970; clamped to the range from 1970 to the year 4253 (infinity too).
    """
    if not 0 <= created_at_us <= CREATED_AT_US_MAX:
        created_at_us = _clamp(created_at_us)
    return f"evt_{event_id:014x}{created_at_us:014x}"


def event_id_of(webhook_id: str) -> int:
    """Return the event_id that a webhook-id contains.

    Raises:
        ValueError: the text is not a webhook-id.
    """
    match = _WEBHOOK_ID.fullmatch(webhook_id)
    if match is None:
        raise ValueError("a webhook-id is evt_ and 28 hex digits")
    return int(match[1], 16)


def timestamp_text(created_at_us: int) -> str:
    """Return a time as `2026-11-24T10:15:00.123Z` (RFC 3339, UTC, truncated to milliseconds).

    Args:
        created_at_us: microseconds since 1970, clamped as in `webhook_id`.
    """
    second, us = divmod(_clamp(created_at_us), 1_000_000)
    return f"{_second_text(second)}.{us // 1000:03d}Z"


def body(event_id: int, event_type: str, created_at_us: int, payload: bytes) -> bytes:
    """Return the envelope around the producer's own JSON text.

    Raises:
        ValueError: the event type is not valid (it is inserted into the JSON without escaping).
    """
    return wrap(webhook_id(event_id, created_at_us), event_type, timestamp_text(created_at_us), payload)


def wrap(webhook_id: str, event_type: str, triggered_at: str, payload: bytes) -> bytes:
    """Return the same envelope as `body`, from an id and a time already formatted for the header lines.

    Raises:
        ValueError: the event type is not valid.
    """
    opening = (
        f'{{"id":"{webhook_id}","type":"{_checked_type(event_type)}","timestamp":"{triggered_at}","data":'
    )
    return opening.encode("ascii") + payload + b"}"


@dataclasses.dataclass(frozen=True, slots=True)
class StaticHead:
    """The header lines of an endpoint that are the same on every attempt; make one per endpoint and reuse it.

    Attributes:
        opening: the lines before `webhook-id`, and that line up to its value.
        later: the `x-webhook-source` line, if any, then the endpoint's own lines.
    """

    opening: bytes
    later: bytes = dataclasses.field(repr=False)  # may contain a token

    @classmethod
    def of(cls, user_agent: str, source: str | None, headers: Sequence[tuple[str, str]] = ()) -> StaticHead:
        """Prepare the lines; unsafe characters in the daemon's own values are percent-encoded (RFC 3986, 2.1).

        Args:
            user_agent: setting `delivery.user_agent`.
            source: `sites.url`; no line is sent if it is None, empty or longer than 2,048 bytes.
            headers: names and values of the endpoint's own headers.

        Raises:
            ValueError: one of the endpoint's own headers is not allowed (webhook/headers).
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
        """Return the header lines of one attempt, including the blank line that ends the head.

        Args:
            webhook_id: the result of `webhook_id()`.
            timestamp_s: Unix seconds of this attempt, the same value that was signed.
            signature: the value of `webhook-signature`; None if the endpoint has no secret, then no line is sent.
            event_type: a valid type.
            attempt: 1 for the first attempt.
            triggered_at: the result of `timestamp_text()`.
            body_bytes: the length of the body.
            more: lines of a profile, each with its line end.

        Raises:
            ValueError: the event type is not valid.
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
    """Return `sites.url` as it is sent, or empty bytes if it is not sent."""
    encoded = _encoded((source or "").strip(), _UNFIT)
    return encoded if len(encoded) <= SOURCE_LENGTH_MAX else b""


def _source_line(source: str | None) -> bytes:
    encoded = fit_source(source)
    return b"x-webhook-source: " + encoded + b"\r\n" if encoded else b""


def _encoded(text: str, unfit: re.Pattern[bytes]) -> bytes:
    return unfit.sub(lambda match: b"%%%02X" % match[0][0], text.encode("utf-8", "surrogatepass"))
