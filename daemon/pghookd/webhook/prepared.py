"""How the requests to one endpoint are made and judged: its options and the settings as one prepared value.

Here options meet their use, and what cannot be used is told: whoever prepares an endpoint for sending takes the error
for the end of its deliveries (`invalid`), `pghookd check` reports it.

Never here: where a request goes to, a clock, SQL.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

from pghookd.encryption.ciphertext import AUTH, SECRET, Reveal, Unopened, plain_only
from pghookd.model import endpoint_options
from pghookd.model.delivery import Endpoint, Fault, Outcome
from pghookd.model.endpoint_options import EndpointOptions
from pghookd.settings.durations import parse_schedule
from pghookd.settings.schema import Settings
from pghookd.webhook import auth, judge, profile, signing
from pghookd.webhook.auth import Auth, Basic, Bearer
from pghookd.webhook.envelope import StaticHead
from pghookd.webhook.profile import ProfileHead, SigningSecrets

_NONE: Final = EndpointOptions()


@dataclasses.dataclass(frozen=True, slots=True)
class Defaults:
    """What the settings say, for endpoints that do not say otherwise.

    Attributes:
        user_agent: setting `delivery.user_agent`.
        timeout_s: setting `delivery.timeout_s`.
        profile: setting `delivery.profile`.
        retry: the settings `retry.*`.
        reveal: opens secrets that are encrypted.
    """

    user_agent: str
    timeout_s: float
    profile: str
    retry: judge.RetryPolicy
    reveal: Reveal = dataclasses.field(default=plain_only, repr=False)

    @classmethod
    def of(cls, settings: Settings, reveal: Reveal = plain_only) -> Defaults:
        """Take them from the settings."""
        delivery, retry = settings.delivery, settings.retry
        policy = judge.RetryPolicy(
            schedule=retry.schedule,
            jitter=retry.jitter,
            throttle_floor_s=retry.throttle_floor_s,
            retry_after_max_s=retry.retry_after_max_s,
            age_max_s=retry.age_max_s,
        )
        return cls(delivery.user_agent, delivery.timeout_s, delivery.profile, policy, reveal)


@dataclasses.dataclass(frozen=True, slots=True)
class Manner:
    """What is prepared once for an endpoint.

    Attributes:
        head: header lines.
        sign: makes `webhook-signature`; None: there is no secret.
        profile: what a profile adds; None: there is none.
        timeout_s: of a request.
        policy: how answers are judged.
        fault: what every attempt comes to, and nothing is sent: the secret (`sign` raises then) or auth is not opened.
        auth: how requests identify themselves; what it adds to the head once and for all is there. None: in no way.
    """

    head: StaticHead
    sign: signing.Sign | None = dataclasses.field(repr=False)  # a key is in it
    profile: ProfileHead | None
    timeout_s: float
    policy: judge.RetryPolicy
    fault: Fault | None = None
    auth: Auth | None = None

    @classmethod
    def of(cls, endpoint: Endpoint, defaults: Defaults) -> Manner:
        """Prepare an endpoint.

        Raises:
            ValueError: a column holds what cannot be used; the message says which way and quotes no secret.
        """
        asked = endpoint.options or _NONE
        if asked.rate_per_s is not None and asked.rate is None:
            raise ValueError(f"rate_per_s is {endpoint_options.RATE_MIN} to {endpoint_options.RATE_MAX:g}")
        secrets, unopened = _secrets(endpoint, asked, defaults.reveal)
        fault = None if unopened is None else Fault(Outcome.FAILED, SECRET)
        identified, fault = (
            (None, fault) if asked.auth is None else _auth(endpoint, asked.auth, defaults.reveal, fault)
        )
        found = profile.profile_of(asked.profile or defaults.profile, asked.profile_spec)
        added = None
        if found is not None:
            added = ProfileHead.of(found, secrets, endpoint.source, endpoint.endpoint_id)
        own = endpoint_options.parse_headers(asked.headers) if asked.headers else ()
        if added is not None:
            own = tuple((name, value) for name, value in own if name.lower() not in added.names)
        if identified is not None:
            own = _without_authorization(identified, own, added)
        return cls(
            head=_head(StaticHead.of(defaults.user_agent, endpoint.source, own), identified),
            sign=_sign(secrets) if unopened is None else _refusing(unopened),
            profile=added,
            timeout_s=_timeout_s(endpoint, defaults),
            policy=_policy(asked, defaults.retry),
            fault=fault,
            auth=identified,
        )


def _timeout_s(endpoint: Endpoint, defaults: Defaults) -> float:
    asked = endpoint.timeout_s or defaults.timeout_s
    if not 0 < asked < math.inf:  # NaN is not either
        raise ValueError("timeout_s is more than 0 and at most 30")
    return asked


def _secrets(
    endpoint: Endpoint, asked: EndpointOptions, reveal: Reveal
) -> tuple[SigningSecrets, Unopened | None]:
    """Open what signs; where one cannot be opened there is none, and why."""
    previous = asked.previous_secret
    try:
        newest = None if endpoint.secret is None else reveal(endpoint.secret, endpoint.endpoint_id, SECRET)
        if previous is not None:
            previous = reveal(previous, endpoint.endpoint_id, SECRET)
    except Unopened as error:
        return SigningSecrets(), error
    return SigningSecrets(newest, previous, asked.previous_until_s), None


def _sign(secrets: SigningSecrets) -> signing.Sign | None:
    if secrets.secret is None:
        return None
    newest = signing.signer_of(secrets.secret)
    if secrets.previous is None:
        return newest
    return signing.overlapping(newest, signing.signer_of(secrets.previous), secrets.until_s)


def _refusing(unopened: Unopened) -> signing.Sign:
    """Return what signs nothing: whatever else is forgotten, no request goes out without its signature."""
    why = str(unopened)

    def refuse(_webhook_id: str, _timestamp_s: int, _body: bytes) -> bytes:
        raise Unopened(why)

    return refuse


def _auth(
    endpoint: Endpoint, text: str, reveal: Reveal, fault: Fault | None
) -> tuple[Auth | None, Fault | None]:
    """Open and read auth; where it cannot be opened nothing is sent."""
    try:
        opened = reveal(text, endpoint.endpoint_id, AUTH)
    except Unopened:
        return None, fault or Fault(Outcome.FAILED, AUTH)
    found = auth.parse(opened)
    if found.certificate is not None and not endpoint.url.lower().startswith("https:"):
        raise ValueError("auth.client_certificate is for URLs that begin with https://")
    return found, fault


def _without_authorization(
    identified: Auth, own: tuple[tuple[str, str], ...], added: ProfileHead | None
) -> tuple[tuple[str, str], ...]:
    """Leave out the endpoint's own line, where auth makes it: one request has one."""
    if identified.scheme is None:
        return own
    if added is not None and "authorization" in added.names:
        raise ValueError("auth and the profile both send the header authorization")
    return tuple((name, value) for name, value in own if name.lower() != "authorization")


def _head(head: StaticHead, identified: Auth | None) -> StaticHead:
    """Add the line that stays the same; a token of OAuth2 does not."""
    if identified is None or not isinstance(identified.scheme, Basic | Bearer):
        return head
    return dataclasses.replace(head, later=head.later + auth.line(identified.scheme))


def _policy(asked: EndpointOptions, retry: judge.RetryPolicy) -> judge.RetryPolicy:
    if asked.retry_schedule is not None:
        retry = dataclasses.replace(retry, schedule=parse_schedule(asked.retry_schedule))
    if asked.success_statuses is not None:
        retry = dataclasses.replace(retry, successes=endpoint_options.parse_statuses(asked.success_statuses))
    return retry
