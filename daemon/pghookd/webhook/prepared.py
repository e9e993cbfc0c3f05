"""Everything prepared once per endpoint to build and judge its requests: its options merged with the settings.

An option that cannot be used raises here. The delivery room then ends the endpoint's deliveries as `invalid`, and
`pghookd check` reports the error.

Never here: where a request goes, a clock, SQL.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Final

from pghookd.encryption.ciphertext import AUTH, SECRET, Reveal, Unopened, plain_only
from pghookd.model import endpoint_options
from pghookd.model.delivery import Endpoint, Fault, Outcome
from pghookd.model.endpoint_options import EndpointOptions
from pghookd.settings.durations import parse_schedule
from pghookd.settings.schema import Settings
from pghookd.webhook import auth, judge, profile, signing
from pghookd.webhook.auth import Auth, Basic, Bearer, ClientCredentials
from pghookd.webhook.envelope import StaticHead
from pghookd.webhook.profile import ProfileHead, SigningSecrets

_NONE: Final = EndpointOptions()


@dataclasses.dataclass(frozen=True, slots=True)
class Defaults:
    """The values from the settings that apply where an endpoint has none of its own.

    Attributes:
        user_agent: setting `delivery.user_agent`.
        timeout_s: setting `delivery.timeout_s`.
        profile: setting `delivery.profile`.
        retry: the settings `retry.*`.
        reveal: decrypts encrypted secrets.
    """

    user_agent: str
    timeout_s: float
    profile: str
    retry: judge.RetryPolicy
    reveal: Reveal = dataclasses.field(default=plain_only, repr=False)

    @classmethod
    def of(cls, settings: Settings, reveal: Reveal = plain_only) -> Defaults:
        """Return the defaults from the settings."""
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
class PreparedEndpoint:
    """Everything prepared once for an endpoint.

    Attributes:
        head: header lines.
        sign: makes `webhook-signature`; None if there is no secret.
        profile: the lines that a profile adds; None if there is no profile.
        timeout_s: timeout of a request.
        policy: how responses are judged.
        fault: the result of every attempt, without sending, if the secret or auth cannot be decrypted (for the
            secret, `sign` raises too); None if both can.
        auth: authentication, whose fixed header line is already in `head`; None if the endpoint requires none.
        secrets: its secrets that no request contains.
    """

    head: StaticHead
    sign: signing.Sign | None = dataclasses.field(repr=False)  # contains a key
    profile: ProfileHead | None
    timeout_s: float
    policy: judge.RetryPolicy
    fault: Fault | None = None
    auth: Auth | None = None
    secrets: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    @classmethod
    def of(cls, endpoint: Endpoint, defaults: Defaults) -> PreparedEndpoint:
        """Prepare an endpoint.

        Raises:
            ValueError: a column has an unusable value; the message gives the reason and quotes no secret.
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
            secrets=tuple(_unsent(secrets, identified)),
        )


def _timeout_s(endpoint: Endpoint, defaults: Defaults) -> float:
    asked = endpoint.timeout_s or defaults.timeout_s
    if not 0 < asked < math.inf:  # also excludes NaN
        raise ValueError("timeout_s is more than 0 and at most 30")
    return asked


def _secrets(
    endpoint: Endpoint, asked: EndpointOptions, reveal: Reveal
) -> tuple[SigningSecrets, Unopened | None]:
    """Return the decrypted signing secrets; if one cannot be decrypted, return none of them and the error."""
    previous = asked.previous_secret
    try:
        newest = None if endpoint.secret is None else reveal(endpoint.secret, endpoint.endpoint_id, SECRET)
        if previous is not None:
            previous = reveal(previous, endpoint.endpoint_id, SECRET)
    except Unopened as error:
        return SigningSecrets(), error
    return SigningSecrets(newest, previous, asked.previous_until_s), None


def _unsent(secrets: SigningSecrets, identified: Auth | None) -> Iterator[str]:
    """Yield the secrets that are not sent: of `whsec_` and `whsk_` the part behind, which is all that is secret."""
    for secret in filter(None, (secrets.secret, secrets.previous)):
        yield secret.removeprefix("whsec_").removeprefix(signing.PRIVATE_PREFIX)
    if identified is not None and isinstance(identified.scheme, ClientCredentials):
        yield identified.scheme.client_secret


def _sign(secrets: SigningSecrets) -> signing.Sign | None:
    if secrets.secret is None:
        return None
    newest = signing.signer_of(secrets.secret)
    if secrets.previous is None:
        return newest
    return signing.overlapping(newest, signing.signer_of(secrets.previous), secrets.until_s)


def _refusing(unopened: Unopened) -> signing.Sign:
    """Return a signer that always raises, so that no code path can send a request without its signature."""
    why = str(unopened)

    def refuse(_webhook_id: str, _timestamp_s: int, _body: bytes) -> bytes:
        raise Unopened(why)

    return refuse


def _auth(
    endpoint: Endpoint, text: str, reveal: Reveal, fault: Fault | None
) -> tuple[Auth | None, Fault | None]:
    """Decrypt and parse auth; if it cannot be decrypted, return a fault, so that nothing is sent."""
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
    """Return the endpoint's own headers without `authorization` if auth sends that header: it may occur only once."""
    if identified.scheme is None:
        return own
    if added is not None and "authorization" in added.names:
        raise ValueError("auth and the profile both send the header authorization")
    return tuple((name, value) for name, value in own if name.lower() != "authorization")


def _head(head: StaticHead, identified: Auth | None) -> StaticHead:
    """Return the head with the fixed `authorization` line, if any; an OAuth2 token is not fixed."""
    if identified is None or not isinstance(identified.scheme, Basic | Bearer):
        return head
    return dataclasses.replace(head, later=head.later + auth.line(identified.scheme))


def _policy(asked: EndpointOptions, retry: judge.RetryPolicy) -> judge.RetryPolicy:
    if asked.retry_schedule is not None:
        retry = dataclasses.replace(retry, schedule=parse_schedule(asked.retry_schedule))
    if asked.success_statuses is not None:
        retry = dataclasses.replace(retry, successes=endpoint_options.parse_statuses(asked.success_statuses))
    return retry
