"""Sample requests for developers of receivers: correctly signed or invalid on purpose, with the expected answers.

The envelope, the signature and the sender are the daemon's own; no database is needed.

Never here: checks of a receiver's internals. Only its answers count.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import random
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Final

import orjson

from pghookd.cli.devtools.payloads import Shop
from pghookd.egress.sender import Sender
from pghookd.model.delivery import Answer, Fault, Reply
from pghookd.settings.network import EgressPolicy
from pghookd.settings.schema import Settings
from pghookd.webhook import envelope
from pghookd.webhook.signing import Sign

STALE_S: Final = 900  # three times the tolerance of Standard Webhooks
_DAY_S: Final = 86_400
_DAYS_TO_2020: Final = 18_262  # from 1970
_KINDS: Final = 6  # event types of a made-up shop
SOURCE: Final = "https://shop.example"


class Way(enum.StrEnum):
    """A sequence of sample requests."""

    ONCE = "once"
    TWICE = "twice"  # the same event again, as after a crash of the sender
    TAMPER = "tamper"  # a good request, then one whose body was changed after signing
    STALE = "stale"  # a good request, then one with an old signature, as in a replay attack
    RETRY = "retry"  # several attempts of one event


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """The content of the sample requests.

    Attributes:
        event_type: a valid type.
        payload: JSON.
        sign: signs webhook-id, timestamp and body; None if the requests are not signed.
    """

    event_type: str
    payload: bytes
    sign: Sign | None


@dataclasses.dataclass(frozen=True, slots=True)
class SampleCase:
    """One request of a way.

    Attributes:
        what: a description.
        number: index of the event in the run.
        attempt: 1 for the first attempt.
        age_s: seconds since it was signed.
        tampered: True if the body was changed after signing.
    """

    what: str
    number: int = 0
    attempt: int = 1
    age_s: int = 0
    tampered: bool = False

    @property
    def is_good(self) -> bool:
        """Return True if a correct receiver accepts the request."""
        return not (self.age_s or self.tampered)

    @property
    def expected(self) -> str:
        """The answer of a correct receiver."""
        return "2xx" if self.is_good else "4xx"

    def is_right(self, answer: Answer) -> bool:
        """Return True if the receiver's answer is the expected one."""
        if not isinstance(answer, Reply):
            return False
        return answer.status // 100 == (2 if self.is_good else 4)


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """A case and its result."""

    case: SampleCase
    webhook_id: str
    status: int | None
    error: str | None
    duration_ms: float
    right: bool


def cases(way: Way, attempts: int) -> Iterator[SampleCase]:
    """Yield the requests of a way; `attempts` is for RETRY."""
    good = SampleCase("a good event")
    match way:
        case Way.ONCE:
            yield good
        case Way.TWICE:
            yield good
            yield SampleCase("the same again: answer it, and do nothing twice")
        case Way.TAMPER:
            yield good
            yield SampleCase("changed after it was signed: refuse it", number=1, tampered=True)
        case Way.STALE:
            yield good
            yield SampleCase(f"signed {STALE_S // 60} minutes ago: refuse it", number=1, age_s=STALE_S)
        case Way.RETRY:
            for attempt in range(1, attempts + 1):
                yield SampleCase(f"attempt {attempt} of one event", attempt=attempt)


def payload_of(event_type: str) -> bytes:
    """Return a sample payload for a type; a realistic one for the platform's six types."""
    shop = Shop("sample", random.Random())  # noqa: S311 - prices and names of a made-up shop
    for occurrence in itertools.islice(iter(shop.next, None), _KINDS):
        if occurrence.type == event_type:
            return occurrence.payload
    return orjson.dumps({"message": "This is a sample."})


async def send(
    settings: Settings,
    policy: EgressPolicy,
    url: str,
    sample: Sample,
    way: Way,
    attempts: int = 1,
    *,
    told: Callable[[Judged], None],
) -> bool:
    """Send the requests of a way, one after another; return True if every answer was right.

    Args:
        settings: for `delivery`, `egress.ca_file` and the proxy.
        policy: decides which destinations are allowed.
        url: the receiver's URL.
        sample: the content.
        way: the sequence of requests.
        attempts: number of attempts for RETRY.
        told: called with each result.
    """
    right = True
    # The events are distinct, and each keeps its id and time over all attempts.
    events = [(_event_id(), time.time_ns() // 1000) for _ in range(2)]
    sender = Sender(
        policy=policy,
        connections_max=1,
        connect_timeout_s=settings.delivery.connect_timeout_s,
        response_bytes_max=settings.delivery.response_bytes_max,
        ca_file=settings.egress.ca_file or None,
        proxy=settings.egress.way_out(),
    )
    async with sender:
        for case in cases(way, attempts):
            judged = await _send_one(settings, sender, url, sample, case, events[case.number])
            told(judged)
            right &= judged.right
    return right


def _event_id() -> int:
    """Return a random event_id that contains the day, like those that Postgres generates."""
    return (int(time.time()) // _DAY_S - _DAYS_TO_2020 << 32) + secrets.randbelow(2**32)


async def _send_one(
    settings: Settings, sender: Sender, url: str, sample: Sample, case: SampleCase, event: tuple[int, int]
) -> Judged:
    event_id, created_at_us = event
    webhook_id = envelope.webhook_id(event_id, created_at_us)
    target = sender.target_of(url)
    started = time.monotonic()
    if isinstance(target, Fault):
        answer: Answer = target
    else:
        head, body = _request(settings.delivery.user_agent, sample, case, event_id, created_at_us)
        answer = await sender.post(target, head, body, settings.delivery.timeout_s)
    took_ms = (time.monotonic() - started) * 1000
    status, error = (
        (answer.status, None)
        if isinstance(answer, Reply)
        else (None, f"{answer.outcome.value}: {answer.error}")
    )
    return Judged(case, webhook_id, status, error, round(took_ms, 1), case.is_right(answer))


def _request(
    user_agent: str, sample: Sample, case: SampleCase, event_id: int, created_at_us: int
) -> tuple[bytes, bytes]:
    webhook_id = envelope.webhook_id(event_id, created_at_us)
    signed_body = envelope.body(event_id, sample.event_type, created_at_us, sample.payload)
    timestamp_s = int(time.time()) - case.age_s
    body = signed_body[:-1] + b" }" if case.tampered else signed_body
    head = envelope.StaticHead.of(user_agent, SOURCE).head(
        webhook_id=webhook_id,
        timestamp_s=timestamp_s,
        signature=None if sample.sign is None else sample.sign(webhook_id, timestamp_s, signed_body),
        event_type=sample.event_type,
        attempt=case.attempt,
        triggered_at=envelope.timestamp_text(created_at_us),
        body_bytes=len(body),
    )
    return head, body
