"""Endpoint constraints in the operator's words: the wrong option, the value found, and the values allowed.

Postgres reports the name of a violated CHECK constraint (SQLSTATE 23514). That name is about a column; the operator
typed an option. The table below is the only place that translates.

Never here: the value of `secret`, `auth` or `headers` in a text, nor the part of a URL that may be one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Final

from pghookd.settings.wrong_values import quoted
from pghookd.webhook.headers import COUNT_MAX
from pghookd.webhook.profile import CUSTOM, NAMES, SPEC_NAMES


@dataclasses.dataclass(frozen=True, slots=True)
class _Rule:
    """The demand of one constraint.

    Attributes:
        option: the option or argument, as the operator types it.
        demand: completes "<option> must ...".
        shown: the column whose value is quoted; None if it may be a secret, or is too long to help.
    """

    option: str
    demand: str
    shown: str | None = None


_header = functools.partial(_Rule, "--header")
_auth = functools.partial(_Rule, "--auth")
_secret = functools.partial(_Rule, "--secret")
_spec = functools.partial(_Rule, "--profile-spec")

RULES: Final[Mapping[str, _Rule]] = {
    "url is http or https without blanks, at most 2048 characters": _Rule(
        "URL", "start with http:// or https://, and have at most 2048 characters and no blanks", "url"
    ),
    "event_types has at most 200 entries of at most 129 characters": _Rule(
        "--types", "have at most 200 types of at most 129 characters each"
    ),
    "concurrency is 1 to 1000": _Rule("--concurrency", "be 1 to 1000", "concurrency"),
    "rate_per_s is 0.001 to 10000": _Rule("--rate-per-s", "be 0.001 to 10000", "rate_per_s"),
    "timeout_s is more than 0 and at most 30": _Rule(
        "--timeout-s", "be more than 0 and at most 30", "timeout_s"
    ),
    "retry_schedule is none or waits of 1s or more such as 5s,2h,1d": _Rule(
        "--retry-schedule", "be none, or durations of 1s to 30d, as in 5s,2h,1d", "retry_schedule"
    ),
    "success_statuses is 2xx and ranges such as 200,202-204": _Rule(
        "--success-statuses", "be 2xx statuses and ranges, as in 200,202-204", "success_statuses"
    ),
    "headers is an object": _header("be names with values"),
    "headers is at most 20 texts, 4000 characters in all": _header(
        f"be given at most {COUNT_MAX} times, with 4000 characters in all"
    ),
    "headers has names that are tokens, each once": _header(
        "have a name of letters, digits and hyphens, at most 100 characters; no name may occur twice"
    ),
    "headers has values of printable ASCII without blanks around": _header(
        "have a value of printable ASCII, without blanks at either end"
    ),
    "headers has no name that frames, signs or forwards a request": _header(
        "not set a reserved name: Host, Content-*, User-Agent, Cookie, Webhook-*, X-Forwarded-*, Proxy-* or the like"
    ),
    "profile is a known one": _Rule("--profile", f"be one of {', '.join(NAMES)}", "profile"),
    "profile_spec is there for the profile custom": _spec(
        f"be given with --profile {CUSTOM}, and only with it", "profile"
    ),
    "profile_spec is an object of known names, at most 4000 long": _spec(
        f"have at most 4000 characters, and no names but {', '.join(SPEC_NAMES)}"
    ),
    "profile_spec says how to sign, in words that are known": _spec(
        "have strings as values; algorithm is sha1, sha256 or sha512; encoding hex or base64; key text or standard;"
        " body payload or envelope; signed contains {body}; headers is an object"
    ),
    "profile_spec has no header that frames or forwards a request": _spec(
        "not set a reserved header: Host, Content-*, User-Agent, Cookie, Webhook-*, X-Forwarded-* or the like"
    ),
    "a whsec_ secret is base64 of 24 to 64 bytes": _secret(
        "not be empty; after whsec_ it must be base64 of 24 to 64 bytes"
    ),
    "a whsk_ secret is base64 of 32 or 64 bytes": _secret("be base64 of 32 or 64 bytes after whsk_"),
    "auth is an object of at most 16000 bytes, or encrypted": _auth("have at most 16000 bytes"),
    "auth is basic, bearer or oauth2, and client_certificate": _auth(
        "have one of basic, bearer and oauth2, or client_certificate, or both; each is an object"
    ),
    "auth.basic is username and password, the one without a colon": _auth(
        "have username and password in basic: strings of at most 2048 characters, and no colon in username"
    ),
    "auth.bearer is a token of RFC 6750": _auth(
        "have token in bearer: letters, digits and -._~+/, with = at the end, at most 8192 characters"
    ),
    "auth.oauth2 is token_url (https), client_id and client_secret": _auth(
        "have token_url (https://), client_id and client_secret in oauth2, and nothing else but scope and audience"
    ),
    "auth.client_certificate is PEM, certificate and key, for https": _auth(
        "have certificate and key in client_certificate, both PEM; the endpoint's URL must be https"
    ),
}


def explained(constraint: str, columns: Mapping[str, object]) -> str | None:
    """Return a violated constraint in the operator's words; None if it is not in the table.

    Args:
        constraint: its name, from the error of a statement that wrote an endpoint.
        columns: the values that the operator gave, by column.
    """
    rule = RULES.get(constraint)
    if rule is None:
        return None
    text = f"{rule.option} must {rule.demand}"
    if rule.shown is None:
        return text
    value = columns.get(rule.shown)
    if value is None:
        return f"{text} (there is no --{rule.shown.replace('_', '-')})"
    name = (
        "it" if rule.option.removeprefix("--").replace("-", "_").lower() == rule.shown else f"--{rule.shown}"
    )
    return f"{text} ({name} is {_found(rule.shown, value)})"


def _found(column: str, value: object) -> str:
    """Return a value in quotes; of a URL without its query and user, which may be secret."""
    if column != "url":
        return quoted(value)
    url = str(value).partition("?")[0].partition("#")[0]
    return quoted(url if "@" not in url else f"***@{url.rpartition('@')[2]}")
