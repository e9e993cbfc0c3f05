"""How the requests to one endpoint are made and judged: its options and the settings as one prepared value.

Here options meet their use, and what cannot be used is told: whoever prepares an endpoint for sending takes the error
for the end of its deliveries (`invalid`), `pghookd check` reports it.

Never here: where a request goes to, a clock, SQL.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from pghookd.core import options, profile, signing, verdict
from pghookd.core.envelope import StaticHead
from pghookd.core.model import Endpoint
from pghookd.core.options import EndpointOptions
from pghookd.core.profile import ProfileHead, Secrets
from pghookd.core.retry import parse_schedule
from pghookd.core.settings import Settings

_NONE: Final = EndpointOptions()


@dataclasses.dataclass(frozen=True, slots=True)
class Defaults:
    """What the settings say, for endpoints that do not say otherwise.

    Attributes:
        user_agent: setting `delivery.user_agent`.
        timeout_s: setting `delivery.timeout_s`.
        profile: setting `delivery.profile`.
        retry: the settings `retry.*`.
    """

    user_agent: str
    timeout_s: float
    profile: str
    retry: verdict.Policy

    @classmethod
    def of(cls, settings: Settings) -> Defaults:
        """Take them from the settings."""
        delivery, retry = settings.delivery, settings.retry
        policy = verdict.Policy(
            schedule=retry.schedule,
            jitter=retry.jitter,
            throttle_floor_s=retry.throttle_floor_s,
            retry_after_max_s=retry.retry_after_max_s,
            age_max_s=retry.age_max_s,
        )
        return cls(delivery.user_agent, delivery.timeout_s, delivery.profile, policy)


@dataclasses.dataclass(frozen=True, slots=True)
class Manner:
    """What is prepared once for an endpoint.

    Attributes:
        head: header lines.
        sign: makes `webhook-signature`; None: there is no secret.
        profile: what a profile adds; None: there is none.
        timeout_s: of a request.
        policy: how answers are judged.
    """

    head: StaticHead
    sign: signing.Sign | None = dataclasses.field(repr=False)  # a key is in it
    profile: ProfileHead | None
    timeout_s: float
    policy: verdict.Policy

    @classmethod
    def of(cls, endpoint: Endpoint, defaults: Defaults) -> Manner:
        """Prepare an endpoint.

        Raises:
            ValueError: a column holds what cannot be used; the message says which way and quotes no secret.
        """
        asked = endpoint.options or _NONE
        added = _profile_head(endpoint, asked, defaults)
        own = options.parse_headers(asked.headers) if asked.headers else ()
        if added is not None:
            own = tuple((name, value) for name, value in own if name.lower() not in added.names)
        return cls(
            head=StaticHead.of(defaults.user_agent, endpoint.source, own),
            sign=_sign(endpoint.secret, asked),
            profile=added,
            timeout_s=endpoint.timeout_s or defaults.timeout_s,
            policy=_policy(asked, defaults.retry),
        )


def _sign(secret: str | None, asked: EndpointOptions) -> signing.Sign | None:
    if secret is None:
        return None
    newest = signing.signer_of(secret)
    if asked.previous_secret is None:
        return newest
    return signing.overlapping(newest, signing.signer_of(asked.previous_secret), asked.previous_until_s)


def _profile_head(endpoint: Endpoint, asked: EndpointOptions, defaults: Defaults) -> ProfileHead | None:
    found = profile.profile_of(asked.profile or defaults.profile, asked.profile_spec)
    if found is None:
        return None
    secrets = Secrets(endpoint.secret, asked.previous_secret, asked.previous_until_s)
    return ProfileHead.of(found, secrets, endpoint.source, endpoint.endpoint_id)


def _policy(asked: EndpointOptions, retry: verdict.Policy) -> verdict.Policy:
    if asked.retry_schedule is not None:
        retry = dataclasses.replace(retry, schedule=parse_schedule(asked.retry_schedule))
    if asked.success_statuses is not None:
        retry = dataclasses.replace(retry, successes=options.parse_statuses(asked.success_statuses))
    return retry
