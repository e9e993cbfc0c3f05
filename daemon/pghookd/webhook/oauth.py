"""OAuth2 client credentials (RFC 6749, 4.4) as texts: what the token endpoint is asked, and what its answer comes to.

The answer is a stranger's: nothing of it goes on but a token that may stand in a header, a lifetime within bounds, and
the name of an error that RFC 6749 knows.

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
LIFETIME_S: Final = 300.0  # where the answer says nothing
LIFETIME_MAX_S: Final = 86400.0
SLACK_S: Final = 30.0  # a token is not used in its last seconds, at the most a tenth of its time

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
    """A token.

    Attributes:
        line: the header line `authorization`, its line end included.
        use_for_s: seconds from its request on in which it may be used again.
    """

    line: bytes = dataclasses.field(repr=False)
    use_for_s: float


def question(credentials: ClientCredentials, user_agent: str) -> tuple[bytes, bytes]:
    """Return head and body of the request for a token.

    The client identifies itself by HTTP basic, its id and secret form-encoded before (RFC 6749, 2.3.1).

    Args:
        credentials: whose token.
        user_agent: setting `delivery.user_agent`.

    Returns:
        The header lines after `host`, the blank line included; the body.
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
    """Read the answer of a token endpoint; a redirect is no token, and is not followed.

    Args:
        status: of the answer.
        body: its first `ANSWER_BYTES_MAX` bytes.
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
    """Say of a fault that it was the token endpoint's, and not the receiver's."""
    return Fault(fault.outcome, f"{OAUTH2}{fault.error}")


def _use_for_s(expires_in: object) -> float:
    """Return the seconds; some servers write a text."""
    try:
        lifetime_s = LIFETIME_S if isinstance(expires_in, bool) else float(expires_in)  # type: ignore[arg-type] # judged by its failing
    except (TypeError, ValueError, OverflowError):
        lifetime_s = LIFETIME_S
    if math.isnan(lifetime_s):
        lifetime_s = LIFETIME_S
    lifetime_s = max(0.0, min(lifetime_s, LIFETIME_MAX_S))
    return lifetime_s - min(SLACK_S, lifetime_s / 10)
