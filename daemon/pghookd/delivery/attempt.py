"""One attempt: prepare the endpoint, build the request, send it, judge the answer.

Each delivery has its own exception boundary, so that a broken row affects no other delivery.

Never here: which delivery is next, and what its end means for its lane (deliverer).
"""

from __future__ import annotations

import asyncio
import dataclasses
import re
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from pghookd.delivery.oauth_tokens import Tokens
from pghookd.egress.sender import Sender, Target
from pghookd.event_log.supersede import is_superseded, note_sent
from pghookd.model.delivery import Answer, AttemptCause, Delivery, Event, Fault, Outcome, Reason, Reply, State
from pghookd.model.event_options import EventOptions
from pghookd.model.outcome import AttemptWrite, BacklogWrite, DeadWrite, Write
from pghookd.process.context import Context
from pghookd.process.logs import LogEvent
from pghookd.scheduling.lane import Lane
from pghookd.scheduling.lanes import Lanes
from pghookd.webhook import envelope, judge
from pghookd.webhook.auth import ClientCredentials
from pghookd.webhook.oauth import Granted
from pghookd.webhook.prepared import Defaults, PreparedEndpoint
from pghookd.webhook.profile import ProfileHead

HELD_BACK_S: Final = 0.05  # how often a delivery that may not start yet checks again
_TRACED: Final = re.compile(rb"^traceparent:", re.IGNORECASE | re.MULTILINE)


class Gate(Protocol):
    """The recorder, which decides whether requests may start."""

    @property
    def unrecorded(self) -> int:
        """Return the number of outcomes that are not durable yet."""
        ...

    def closed(self, now: float) -> str | None:
        """Return why nothing may start now; None if requests may start."""
        ...

    def put(self, write: Write, now: float) -> None:
        """Take an outcome."""
        ...


class Guard(Protocol):
    """Names deliveries in the database before they are sent, after unexplained crashes."""

    def named(self, delivery: Delivery) -> AbstractAsyncContextManager[None]:
        """Return the context that surrounds a delivery in flight."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class DeliveryTerms:
    """The settings that a delivery needs, ready for use."""

    concurrency: int
    batch_max: int
    payload_bytes_max: int
    defaults: Defaults  # for options that an endpoint does not set
    successes: int  # log one success in this many; 0 logs none


@dataclasses.dataclass(frozen=True, slots=True)
class PreparedRequest:
    """All that the requests to an endpoint have in common; kept on its lane until the endpoint or the terms change."""

    terms: DeliveryTerms  # the terms it was prepared with
    target: Target | Fault
    prepared: PreparedEndpoint
    tokens: Tokens | None = None  # None unless the endpoint uses OAuth2


class Attempts:
    """Makes attempts, with the sender and the terms in force."""

    def __init__(
        self,
        sender: Sender,
        lanes: Lanes,
        gate: Gate,
        terms: DeliveryTerms,
        context: Context,
        *,
        suspects: Guard | None = None,
    ) -> None:
        self.terms = terms
        self._sender = sender
        self._lanes = lanes
        self._gate = gate
        self._logger = context.logger
        self._monotonic = context.monotonic
        self._wall_us = context.wall_us
        self._random01 = context.random01
        self._suspects = suspects
        self._sampled = 0

    def apply(self, sender: Sender, terms: DeliveryTerms) -> None:
        """Start all further requests with this sender and these terms."""
        self._sender = sender
        self.terms = terms

    async def make(self, lane: Lane, delivery: Delivery) -> Write:
        """Make one attempt at a delivery; return the outcome to record. Never raises, even for a malformed row."""
        if self._suspects is None:
            return await self._send(lane, delivery)
        async with self._suspects.named(delivery):
            return await self._send(lane, delivery)

    async def _send(self, lane: Lane, delivery: Delivery) -> Write:
        try:
            payload, loaded = delivery.event.payload, delivery.loaded
            if loaded is not None:
                payload = loaded.payload
            if payload is None:
                return DeadWrite(delivery, (loaded and loaded.died) or Reason.TOO_LARGE)
            return await self._attempt(lane, delivery, payload)
        except Exception as error:
            self._logger.exception(LogEvent.DELIVERY_BROKEN, event_id=delivery.event.event_id)
            fault = Fault(Outcome.FAILED, type(error).__name__)
            policy, revision = self.terms.defaults.retry, lane.endpoint.revision
            return self._attempted(lane, delivery, fault, self._monotonic(), policy, revision)

    async def _attempt(self, lane: Lane, delivery: Delivery, payload: bytes) -> Write:
        request = self._ready(lane, delivery, payload)
        if not isinstance(request, PreparedRequest):
            return request
        event, prepared, target = delivery.event, request.prepared, request.target
        revision = lane.endpoint.revision  # it may change before the answer
        token: Granted | None = None
        if isinstance(target, Fault):
            return self._attempted(lane, delivery, target, self._monotonic(), prepared.policy, revision)
        if request.tokens is not None:
            started = self._monotonic()
            found = await request.tokens.token()
            if isinstance(found, Fault):
                return self._attempted(lane, delivery, found, started, prepared.policy, revision)
            token = found
        if self._gate.closed(self._monotonic()):  # checked just before sending: the lease may have expired
            await self._held_back()
        if request.terms is not self.terms:  # a reload came in between: its sender may be closed
            return await self._attempt(lane, delivery, payload)
        body = _body(event, payload, prepared.profile)
        head = self._head(prepared, delivery, body, token)
        started = self._monotonic()
        if lane.throttle.paused_until > started:  # paused since the delivery was taken
            self._lanes.backlog_index.parked.add(delivery.endpoint_id)
            return BacklogWrite(delivery, State.PARKED, Reason.PAUSED)
        answer = await self._sender.post(target, head, body, prepared.timeout_s)
        if isinstance(answer, Reply) and answer.retry_after is not None:
            self._heed(lane, answer, prepared.policy)
        if token is not None and request.tokens is not None:
            request.tokens.heed(token, answer)
        return self._attempted(lane, delivery, answer, started, prepared.policy, revision)

    def _ready(self, lane: Lane, delivery: Delivery, payload: bytes) -> PreparedRequest | DeadWrite:
        """Return the endpoint's prepared request, or the death of a delivery that must not be attempted."""
        event = delivery.event
        if event.options is not None and (reason := self._unwanted(delivery, event.options)) is not None:
            return DeadWrite(delivery, reason)
        if len(payload) > self.terms.payload_bytes_max:
            return DeadWrite(delivery, Reason.TOO_LARGE)
        request = lane.prepared
        if not isinstance(request, PreparedRequest) or request.terms is not self.terms:
            made = self._prepare(lane)
            if made is None:
                return DeadWrite(delivery, Reason.INVALID)
            lane.keep(made)
            return made
        return request

    def _unwanted(self, delivery: Delivery, options: EventOptions) -> Reason | None:
        """Return why a delivery must not be attempted any more; None if it may be."""
        now_us = self._wall_us()
        if is_superseded(delivery, now_us):
            return Reason.SUPERSEDED
        if options.has_expired(now_us):
            return Reason.EXPIRED
        note_sent(delivery)
        return None

    async def _held_back(self) -> None:
        while self._gate.closed(self._monotonic()):  # noqa: ASYNC110 - it opens with time as well as by events
            await asyncio.sleep(HELD_BACK_S)

    def _prepare(self, lane: Lane) -> PreparedRequest | None:
        terms = self.terms
        try:
            prepared = PreparedEndpoint.of(lane.endpoint, terms.defaults)
        except ValueError:
            return None
        if prepared.fault is not None:
            return PreparedRequest(terms, prepared.fault, prepared)
        auth = prepared.auth
        target = self._sender.target_of(
            lane.endpoint.url,
            None if auth is None else auth.certificate,
            successes=prepared.policy.successes,
            secrets=prepared.secrets,
        )
        tokens, scheme = None, None if auth is None else auth.scheme
        if isinstance(scheme, ClientCredentials) and self._sender.diverted_to is None:
            tokens = Tokens(self._sender, scheme, terms.defaults.user_agent, self._monotonic)
        return PreparedRequest(terms, target, prepared, tokens)

    def _head(
        self, prepared: PreparedEndpoint, delivery: Delivery, body: bytes, token: Granted | None
    ) -> bytes:
        event = delivery.event
        webhook_id = event.webhook_id
        timestamp_s = self._wall_us() // 1_000_000
        more = _more_lines(prepared, delivery, timestamp_s, body)
        return prepared.head.head(
            webhook_id=webhook_id,
            timestamp_s=timestamp_s,
            signature=None if prepared.sign is None else prepared.sign(webhook_id, timestamp_s, body),
            event_type=event.type,
            attempt=delivery.attempts + 1,
            triggered_at=event.triggered_at,
            body_bytes=len(body),
            more=more if token is None else more + token.line,
        )

    def _attempted(
        self,
        lane: Lane,
        delivery: Delivery,
        answer: Answer,
        started: float,
        policy: judge.RetryPolicy,
        revision: int,
    ) -> AttemptWrite:
        if lane.probe is delivery:
            delivery.cause = AttemptCause.PROBE
        took_s = self._monotonic() - started
        now_us = self._wall_us()
        record = judge.record(answer, policy.successes)
        judged = judge.judge(
            answer,
            delivery.attempts + 1 - delivery.attempts_before,
            policy,
            now_s=now_us / 1e6,
            age_from_s=delivery.age_from_us / 1e6,
            random01=self._random01(),
            spared=delivery.attempts_before,
        )
        response = answer.body or None if isinstance(answer, Reply) else None
        if self.terms.successes and record.outcome is Outcome.DELIVERED:
            self._log_success(delivery, record.status, took_s)
        return AttemptWrite(
            delivery,
            record.outcome,
            record.status,
            record.error,
            response,
            now_us - int(took_s * 1e6),
            took_s * 1e3,
            judged,
            revision,
            None if record.outcome is Outcome.DELIVERED else answer.evidence,
        )

    def _heed(self, lane: Lane, reply: Reply, policy: judge.RetryPolicy) -> None:
        """Pause a lane for as long as its receiver requests; if that is long, park the deliveries that wait for it."""
        wait_s = judge.pause_s(reply, policy, self._wall_us() / 1e6)
        if wait_s <= 0:
            return
        now = self._monotonic()
        queued = self._lanes.pause(lane, wait_s, now)
        if queued:
            self._logger.info(
                LogEvent.DELIVERY_PARKED,
                endpoint_id=lane.key.endpoint_id,
                site_id=lane.key.site_id,
                reason=Reason.PAUSED.value,
                for_s=round(wait_s, 1),
            )
        park(self._lanes, self._gate, queued, Reason.PAUSED, now)

    def _log_success(self, delivery: Delivery, status: int | None, took_s: float) -> None:
        self._sampled += 1
        if self._sampled % self.terms.successes == 0:
            self._logger.info(
                LogEvent.DELIVERY_ATTEMPTED,
                event_id=delivery.event.event_id,
                endpoint_id=delivery.endpoint_id,
                site_id=delivery.event.site_id,
                attempt=delivery.attempts + 1,
                outcome=Outcome.DELIVERED.value,
                status=status,
                duration_ms=round(took_s * 1e3, 1),
            )


def park(lanes: Lanes, gate: Gate, deliveries: list[Delivery], reason: Reason, now: float) -> None:
    """Have deliveries that a lane gives up become rows."""
    for delivery in deliveries:
        lanes.backlog_index.parked.add(delivery.endpoint_id)
        gate.put(BacklogWrite(delivery, State.PARKED, reason), now)


def _more_lines(prepared: PreparedEndpoint, delivery: Delivery, timestamp_s: int, body: bytes) -> bytes:
    """Return the header lines of a profile and of the event's trace; an endpoint's own `traceparent` wins."""
    profile, options = prepared.profile, delivery.event.options
    lines = b"" if profile is None else _profile_lines(profile, delivery, timestamp_s, body)
    if options is not None and options.trace_line and not _TRACED.search(prepared.head.later + lines):
        lines += options.trace_line
    return lines


def _profile_lines(profile: ProfileHead, delivery: Delivery, timestamp_s: int, body: bytes) -> bytes:
    event = delivery.event
    return profile.head(
        webhook_id=event.webhook_id,
        timestamp_s=timestamp_s,
        event_type=event.type,
        attempt=delivery.attempts + 1,
        triggered_at=event.triggered_at,
        body=body,
    )


def _name(event: Event) -> None:
    event.webhook_id = envelope.webhook_id(event.event_id, event.created_at_us)
    event.triggered_at = envelope.timestamp_text(event.created_at_us)


def _body(event: Event, payload: bytes, profile: ProfileHead | None) -> bytes:
    if profile is not None and profile.is_bare:
        return _bare(event, payload)
    return event.body or _wrap(event, payload)


def _bare(event: Event, payload: bytes) -> bytes:
    """Return the payload as the body; the head still needs the event's names."""
    if not event.webhook_id:
        _name(event)
    return payload


def _wrap(event: Event, payload: bytes) -> bytes:
    """Build the body, and keep it for the event's other deliveries unless it is large."""
    _name(event)
    body = envelope.wrap(event.webhook_id, event.type, event.triggered_at, payload)
    if event.payload is not None:
        event.body = body
    return body
