"""OAuth2 client credentials (RFC 6749, 4.4): the bytes of a token request, and the parsing of its response.

The response is not trusted. Only three values of it are used: a token that is valid in a header, a bounded lifetime,
and an error name that RFC 6749 defines.

Never here: sending, a clock, an endpoint.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final
from urllib.parse import quote_plus, urlencode

import orjson

from pghookd.model.delivery import OAUTH2, Fault, Outcome
from pghookd.webhook.auth import ClientCredentials, basic_line, bearer_line, check_token

ANSWER_BYTES_MAX: Final = 16384
LIFETIME_S: Final = 300.0  # if the response gives none
LIFETIME_MAX_S: Final = 86400.0
SLACK_S: Final = 30.0  # a token is not used in its last 30 s, or last tenth if that is shorter

_ERRORS: Final = frozenset(  # RFC 6749, 5.2
    {
        "invalid_request",
        "invalid_client",
        "invalid_grant",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class Granted:
    """A token that was granted.

    Attributes:
        line: the `authorization` header line, including its line end.
        use_for_s: seconds, counted from its request, for which the token may be reused.
    """

    line: bytes = dataclasses.field(repr=False)
    use_for_s: float


def question(credentials: ClientCredentials, user_agent: str) -> tuple[bytes, bytes]:
    """Return the head and the body of a token request.

    The client authenticates by HTTP basic; its id and secret are form-encoded first (RFC 6749, 2.3.1).

    Args:
        credentials: the client that requests the token.
        user_agent: setting `delivery.user_agent`.

    Returns:
        The header lines after `host`, including the blank line; the body.
    """
    asked = {"grant_type": "client_credentials", "scope": credentials.scope, "audience": credentials.audience}
    body = urlencode({name: value for name, value in asked.items() if value}).encode("ascii")
    agent = "".join(char for char in user_agent if " " <= char <= "~")
    return (
        basic_line(quote_plus(credentials.client_id), quote_plus(credentials.client_secret))
        + b"content-type: application/x-www-form-urlencoded\r\naccept: application/json\r\n"
        + b"accept-encoding: identity\r\n"
        + f"user-agent: {agent}\r\ncontent-length: {len(body)}\r\n\r\n".encode("ascii"),
        body,
    )


def granted(status: int, body: bytes) -> Granted | Fault:
    """Parse the response of a token endpoint; a redirect is not followed and counts as a refusal.

    Args:
        status: the response's status.
        body: the response's first `ANSWER_BYTES_MAX` bytes.
    """
    try:
        found = orjson.loads(body)
    except ValueError:
        found = None
    told = found if isinstance(found, dict) else {}
    if not 200 <= status < 300:  # noqa: PLR2004 - the meaning of 2xx
        name = told.get("error")
        known = f" {name}" if isinstance(name, str) and name in _ERRORS else ""
        return unavailable(Fault(Outcome.REFUSED, f"{status}{known}"))
    token, kind = told.get("access_token"), told.get("token_type", "bearer")
    if not isinstance(token, str) or not isinstance(kind, str) or kind.lower() != "bearer":
        return unavailable(Fault(Outcome.REFUSED, "no_token"))
    try:
        check_token("access_token", token)
    except ValueError:
        return unavailable(Fault(Outcome.REFUSED, "no_token"))
    return Granted(bearer_line(token), _use_for_s(told.get("expires_in")))


def unavailable(fault: Fault) -> Fault:
    """Return the fault marked as one of the token endpoint, not of the receiver."""
    return Fault(fault.outcome, f"{OAUTH2}{fault.error}")


def _use_for_s(expires_in: object) -> float:
    """Return the seconds for which a token may be reused; some servers send `expires_in` as a string."""
    try:
        lifetime_s = LIFETIME_S if isinstance(expires_in, bool) else float(expires_in)  # type: ignore[arg-type] # float() raises for other types
    except (TypeError, ValueError, OverflowError):
        lifetime_s = LIFETIME_S
    if math.isnan(lifetime_s):
        lifetime_s = LIFETIME_S
    lifetime_s = max(0.0, min(lifetime_s, LIFETIME_MAX_S))
    return lifetime_s - min(SLACK_S, lifetime_s / 10)
