"""Describes a failed attempt: where its request went, how far it came, and the headers of its answer.

    {"address": "203.0.113.9:443", "reached": "headers",
     "ms": {"dns": 3, "connect": 10, "tls": 22, "sent": 23, "headers": 84},
     "headers": {"content-type": "text/html", "retry-after": "120"}, "headers_left_out": 1}

It is made only for failures, so that successes cost nothing. Support staff read it, and must see no credentials, and of
URLs no more than the host. So a header is left out if its name suggests either, or if its value repeats a part of the
request that only the endpoint's owner knows.

Never here: a clock, sockets, what an answer means.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final, TypeAlias

import orjson

HEADERS_BYTES_MAX: Final = 1024  # of names and values
SECRET_LENGTH_MIN: Final = 4  # characters; shorter texts occur in too many values by chance
PART_LENGTH_MIN: Final = 12  # of a part of path or query that may be a token; shorter ones are mostly words

_PRIVATE: Final = re.compile("auth|cookie|key|location|passw|refresh|secret|session|signature|token")
# Request headers that an answer may repeat: the daemon makes their values, which grant nothing.
_HARMLESS: Final = frozenset(
    {
        "accept", "accept-encoding", "content-length", "content-type", "host", "traceparent", "user-agent",
        "webhook-id", "webhook-timestamp", "x-webhook-attempt", "x-webhook-source", "x-webhook-topic",
        "x-webhook-triggered-at",
    }
)  # fmt: skip
_BETWEEN: Final = re.compile("[/?&=]")  # parts of path and query
_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # jsonb has no \x00, and no terminal needs the others

RawHeaders: TypeAlias = Iterable[tuple[bytes, bytes]]


@dataclasses.dataclass(slots=True, eq=False)
class Dial:
    """The making of one connection; times in monotonic seconds.

    Attributes:
        address: the address and port dialled last; None if none was.
        dns_at: when the addresses were known; None if they were not.
        connected_at: when the address, or the tunnel to it, was connected; None if it was not.
        is_race: True if several addresses were dialled, so that an earlier one may have been connected.
    """

    address: tuple[str, int] | None = None
    dns_at: float | None = None
    connected_at: float | None = None
    is_race: bool = False

    def to(self, address: tuple[str, int]) -> None:
        """Note that an address is about to be dialled; one dialled before has failed, or is slow."""
        self.is_race = self.address is not None
        self.address, self.connected_at = address, None

    def times(self) -> dict[str, float | None]:
        """Return the times of its phases."""
        return {"dns": self.dns_at, "connect": self.connected_at}


def text_of(
    started: float,
    times: Mapping[str, float | None],
    *,
    address: tuple[str, int] | None,
    is_proxied: bool,
    is_reused: bool = False,
    headers: RawHeaders = (),
    secrets: Collection[str] = (),
) -> str:
    """Return the evidence as JSON text that jsonb accepts.

    Args:
        started: when the attempt began, monotonic seconds.
        times: when each phase was completed, in their order; None if it was not.
        address: the address that was dialled; None if none was.
        is_proxied: True if the address is the proxy's.
        is_reused: True if an earlier request made the connection.
        headers: the headers of the answer.
        secrets: texts that no header may contain.
    """
    ms = {phase: max(round((at - started) * 1e3), 0) for phase, at in times.items() if at is not None}
    kept, left_out = kept_headers(headers, secrets)
    found = {
        "address": None if address is None else _address_text(*address),
        "via": "proxy" if is_proxied and address is not None else None,
        "reused": is_reused or None,
        "headers": kept or None,
        "headers_left_out": left_out or None,
    }
    known = {name: value for name, value in found.items() if value is not None}
    return orjson.dumps({**known, "reached": next(reversed(ms), None), "ms": ms}).decode()


def kept_headers(raw: RawHeaders, secrets: Collection[str]) -> tuple[dict[str, str], int]:
    """Return the headers to keep, by their name in lower case, and the number of lines left out.

    Lines of the same name become one, as RFC 9110, 5.3 allows. A line that would exceed the bound is left out. The
    parser bounds their number (128).
    """
    kept: dict[str, str] = {}
    room, left_out = HEADERS_BYTES_MAX, 0
    for raw_name, raw_value in raw:
        name, value = _text(raw_name).lower(), _text(raw_value)
        size = len(value.encode()) + len(", " if name in kept else name.encode())
        value = f"{kept[name]}, {value}" if name in kept else value
        if size > room or _PRIVATE.search(name) or _repeats(name, value, secrets):
            left_out += 1
        else:
            kept[name] = value
            room -= size
    return kept, left_out


def _repeats(name: str, value: str, secrets: Collection[str]) -> bool:
    return any(secret in value or secret.lower() in name for secret in secrets)


def secrets_of(request: bytes, of_endpoint: Collection[str] = ()) -> list[str]:
    """Return the texts that no answer may repeat.

    Args:
        request: the request's head: its path and query may contain a token, and so may most headers.
        of_endpoint: secrets of the endpoint that are not sent.
    """
    first, *lines = request.decode("latin-1").split("\r\n")
    target = first.split(" ")[1]
    path, _, query = target.partition("?")
    parts = (part for part in _BETWEEN.split(target) if len(part) >= PART_LENGTH_MIN)
    texts = [path, query, *parts, *of_endpoint]
    for line in lines:
        name, _, value = line.partition(": ")
        if name.lower() not in _HARMLESS:
            texts += (value, value.rpartition(" ")[2])  # a credential comes after the name of its scheme
    return [text for text in texts if len(text) >= SECRET_LENGTH_MIN]


def _address_text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _text(raw: bytes) -> str:
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", raw.decode("utf-8", "replace").replace("\t", " "))
