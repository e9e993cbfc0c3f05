"""The content of a mail as values: sections, causes, and sanitised third-party texts.

A digest is made once, from facts of one time, and stored as JSON in the outbox. A mail sent later, or sent again after
a crash, therefore has the same content. Wording, languages and markup belong to owner_mail/message.py.

Never here: payloads, secrets, the query of a URL (it may contain tokens), a clock, wording that an owner reads.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import unicodedata
from typing import Any, Final
from urllib.parse import urlsplit

from pghookd.model.delivery import OAUTH2, Outcome

SECTIONS_MAX: Final = 20  # endpoints in one mail; further ones are only counted
EVENT_IDS_MAX: Final = 10  # per endpoint
TYPES_MAX: Final = 12  # event types per endpoint
EXCERPT_MAX: Final = 500  # characters of an answer
NAME_MAX: Final = 120  # characters of a site's name, a description, a host

_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BLANKS: Final = re.compile(r"[ \t\u00a0]+")
_CUT: Final = "…"


class Kind(enum.StrEnum):
    """The kind of a section or a mail, gravest first; a mail has the gravest kind of its sections."""

    DISABLED = "disabled"
    FAILING = "failing"
    WARNING = "warning"
    HELD_EXPIRING = "held_expiring"
    FLAPPING = "flapping"
    RECOVERED = "recovered"
    REMINDER = "reminder"
    STORM = "storm"  # this and the next are only for the operator, and never mixed with others
    FAULTS = "faults"


OF_OPERATOR: Final = frozenset({Kind.STORM, Kind.FAULTS})
GRAVITY: Final = {kind: place for place, kind in enumerate(Kind)}


class Cause(enum.StrEnum):
    """The cause of a failure, as far as it matters for the owner's next step."""

    REDIRECT = "redirect"
    UNAUTHORIZED = "unauthorized"  # 401, 403, 407
    NOT_FOUND = "not_found"  # 404, 405
    GONE = "gone"  # 410
    THROTTLED = "throttled"  # 429, 503
    CLIENT_ERROR = "client_error"  # other 4xx
    SERVER_ERROR = "server_error"  # other 5xx
    ODD_STATUS = "odd_status"  # anything else that is not 2xx
    TIMEOUT = "timeout"
    DNS = "dns"
    CONNECTION = "connection"  # refused, reset, no route, closed early
    TLS_EXPIRED = "tls_expired"
    TLS_NAME = "tls_name"
    TLS_UNTRUSTED = "tls_untrusted"
    TLS = "tls"
    BAD_RESPONSE = "bad_response"
    BLOCKED = "blocked"
    TOKEN = "token"  # noqa: S105 - not a secret: the endpoint's OAuth2 server gave no token, so nothing was sent
    FILTER_SLOW = "filter_slow"  # caused by the owner's filter; for this and the next two nothing was sent
    TOO_LARGE = "too_large"
    INVALID = "invalid"


class Fate(enum.StrEnum):
    """The way in which a failed delivery was given up, as far as it affects the wording of a mail."""

    TRIED = "tried"  # after several attempts
    ONCE = "once"  # after a single attempt
    EXPIRED = "expired"  # the event's own expiry had passed
    ABORTED = "aborted"  # the receiver requested it
    BLOCKED = "blocked"  # requests to the URL are not allowed
    UNTRIED = "untried"  # without an attempt


_BY_STATUS: Final = {
    401: Cause.UNAUTHORIZED,
    403: Cause.UNAUTHORIZED,
    404: Cause.NOT_FOUND,
    405: Cause.NOT_FOUND,
    407: Cause.UNAUTHORIZED,
    410: Cause.GONE,
    429: Cause.THROTTLED,
    503: Cause.THROTTLED,
}
_BY_CLASS: Final = {3: Cause.REDIRECT, 4: Cause.CLIENT_ERROR, 5: Cause.SERVER_ERROR}
_BY_ERROR: Final = {
    "dns": Cause.DNS,
    "tls_expired": Cause.TLS_EXPIRED,
    "tls_name": Cause.TLS_NAME,
    "tls_untrusted": Cause.TLS_UNTRUSTED,
    "tls": Cause.TLS,
    "bad_response": Cause.BAD_RESPONSE,
    "too_much_response": Cause.BAD_RESPONSE,
}


def cause_of(outcome: Outcome | None, status: int | None, error: str | None) -> Cause:
    """Return the cause of an endpoint's latest failure; without an outcome nothing was sent, and the error names it."""
    if (error or "").startswith(OAUTH2):
        return Cause.TOKEN
    match outcome:
        case None:
            return Cause(error or "")
        case Outcome.TIMEOUT:
            return Cause.TIMEOUT
        case Outcome.BLOCKED:
            return Cause.BLOCKED
        case Outcome.UNREACHABLE:
            return _BY_ERROR.get((error or "").partition(":")[0], Cause.CONNECTION)
        case _:
            known = _BY_STATUS.get(status or 0)
            return known or _BY_CLASS.get((status or 0) // 100, Cause.ODD_STATUS)


@dataclasses.dataclass(frozen=True, slots=True)
class MailSection:
    """One endpoint in a mail. Times are microseconds since 1970.

    Attributes:
        kind: the kind of the section.
        endpoint_id: the endpoint's id, for links.
        site_id: the site's id, for links.
        site_name: the owner's own name for the site; not trusted.
        time_zone: the site's IANA time zone; None for UTC.
        url: scheme, host and path; never the query, which may contain a token.
        description: the owner's own description; None if there is none.
        partly: other deliveries to the endpoint succeed.
        since_us: first failure since it last worked.
        last_failure_us: latest failure.
        last_success_us: latest 2xx since then; None if there was none.
        ended_us: time since which it works again; None if it does not.
        types: event types of the reported deliveries, with the number of each; the most frequent first.
        failed: deliveries that failed since `since_us`.
        total: deliveries attempted since then.
        late: failed deliveries that have succeeded by now.
        dead: failed deliveries that were given up.
        dead_by: the same number by Fate; empty in digests of earlier versions.
        waiting: deliveries that wait for a retry or are parked.
        held: deliveries that are held because the endpoint is disabled.
        cause: cause of the latest failure.
        status: HTTP status of the latest failure; None if there was no response.
        error: error of the latest failure, a constant name or `name: detail`; None if there is none.
        response: sanitised beginning of the response; empty if there is none.
        timeout_s: the endpoint's request timeout, in seconds.
        next_attempt_us: when the next request is due; None if unknown or if there is none.
        disable_at_us: when it will be disabled if nothing changes; None if it will not.
        disabled_reason: why it was disabled; None if it is enabled.
        held_until_us: when the first held delivery is dropped; None if none is held.
        event_ids: the oldest reported deliveries, as webhook ids.
        changed_us: the change of the endpoint that the first failure followed; None if there was none.
        changed: its columns: `auth`, `headers`, `secret`, `url`.
    """

    kind: Kind
    endpoint_id: int
    site_id: str
    site_name: str
    url: str
    cause: Cause
    since_us: int
    last_failure_us: int
    time_zone: str | None = None
    description: str | None = None
    partly: bool = False
    last_success_us: int | None = None
    ended_us: int | None = None
    types: tuple[tuple[str, int], ...] = ()
    failed: int = 0
    total: int = 0
    late: int = 0
    dead: int = 0
    dead_by: tuple[tuple[str, int], ...] = ()
    waiting: int = 0
    held: int = 0
    status: int | None = None
    error: str | None = None
    response: str = ""
    timeout_s: float = 15.0
    next_attempt_us: int | None = None
    disable_at_us: int | None = None
    disabled_reason: str | None = None
    held_until_us: int | None = None
    event_ids: tuple[str, ...] = ()
    changed_us: int | None = None
    changed: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        """The host of the URL, by which failing endpoints are grouped."""
        return host_of(self.url)


@dataclasses.dataclass(frozen=True, slots=True)
class OperatorLine:
    """One line of a mail to the operator: events that cannot be sent for a reason that only the operator can fix.

    Attributes:
        cause: INVALID, TOO_LARGE or BLOCKED.
        site_id: the site.
        type: type of the events; type of the latest event if the endpoint is blocked.
        endpoint_id: one of the endpoints that did not get them.
        events: number of events.
        first_us: when the first was given up; microseconds since 1970.
        webhook_id: one of the events.
        error: the rule that blocks the destination; None if it is not blocked.
    """

    cause: Cause
    site_id: str
    type: str
    endpoint_id: int
    events: int
    first_us: int
    webhook_id: str
    error: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Digest:
    """One mail, as it is stored in the outbox.

    Attributes:
        kind: the kind of the gravest section.
        owner_email: the recipient; one address.
        language: the site's language; letters fall back to English.
        at_us: the time of the facts.
        since_us: first failure of the oldest reported incident; it names the thread of an incident's mails.
        sections: gravest first, then by site, host and cause; at most SECTIONS_MAX.
        more: number of endpoints that were left out.
        unsubscribe_token: the owner's token; None if there is none.
        storm: only for the operator: failing sites, sites with traffic, and domains of the failing sites.
        faults: only for the operator: events that cannot be sent; `more` then counts the lines left out.
    """

    kind: Kind
    owner_email: str
    language: str
    at_us: int
    since_us: int
    sections: tuple[MailSection, ...] = ()
    more: int = 0
    unsubscribe_token: str | None = None
    storm: tuple[int, int, int] | None = None
    faults: tuple[OperatorLine, ...] = ()


def gravest(kinds: list[Kind]) -> Kind:
    """Return the kind of a mail with sections of these kinds."""
    return min(kinds, key=GRAVITY.__getitem__)


def arranged(sections: list[MailSection]) -> tuple[tuple[MailSection, ...], int]:
    """Return the sections in the order of a mail, and the number of those left out."""
    ordered = sorted(
        sections, key=lambda s: (GRAVITY[s.kind], s.site_name, s.site_id, s.host, s.cause, s.endpoint_id)
    )
    return tuple(ordered[:SECTIONS_MAX]), max(0, len(ordered) - SECTIONS_MAX)


# As JSON --------------------------------------------------------------------------------------------------------------


def digest_of(stored: dict[str, Any]) -> Digest:
    """Return a digest from its parsed JSON.

    Raises:
        KeyError, TypeError, ValueError: the JSON is not a digest.
    """
    sections = tuple(_section_of(each) for each in stored["sections"])
    storm = stored.get("storm")
    rest = {k: v for k, v in stored.items() if k not in {"kind", "sections", "storm", "faults"}}
    return Digest(
        kind=Kind(stored["kind"]),
        sections=sections,
        storm=None if storm is None else tuple(storm),
        faults=tuple(
            OperatorLine(**{**each, "cause": Cause(each["cause"])}) for each in stored.get("faults", ())
        ),
        **rest,
    )


def _section_of(stored: dict[str, Any]) -> MailSection:
    rest = {
        k: v
        for k, v in stored.items()
        if k not in {"kind", "cause", "types", "dead_by", "event_ids", "changed"}
    }
    return MailSection(
        kind=Kind(stored["kind"]),
        cause=Cause(stored["cause"]),
        types=tuple((str(name), int(count)) for name, count in stored["types"]),
        dead_by=tuple((str(fate), int(count)) for fate, count in stored.get("dead_by", ())),
        event_ids=tuple(stored["event_ids"]),
        changed=tuple(stored.get("changed", ())),
        **rest,
    )


# Texts of strangers ---------------------------------------------------------------------------------------------------


def clean_line(text: str | None, length: int = NAME_MAX, *, keep: str = "") -> str:
    """Return a third party's text as one sanitised line: no control or bidi characters or lone surrogates, bounded.

    Args:
        text: the stored text.
        length: maximum length in characters.
        keep: invisible characters to keep, because the daemon itself inserts them.
    """
    return _BLANKS.sub(" ", clean_text(text, length, keep=keep).replace("\n", " ")).strip()


def clean_text(text: str | None, length: int = EXCERPT_MAX, *, keep: str = "") -> str:
    """Return a third party's text sanitised, with its line breaks; it may be shown to a person after escaping."""
    readable = (text or "")[: 4 * length].replace("\r\n", "\n")
    shown = "".join(each if each in keep else _harmless(each) for each in readable)
    shown = shown.strip()
    return shown if len(shown) <= length else shown[: length - 1].rstrip() + _CUT


def excerpt(response: bytes | None) -> str:
    """Return the beginning of an answer as sanitised text; empty if it has none."""
    return clean_text((response or b"")[: 8 * EXCERPT_MAX].decode("utf-8", "replace"))


def _harmless(character: str) -> str:
    if character == "\n":
        return character
    if character in _BIDI:
        return ""
    category = unicodedata.category(character)
    if category == "Cc":
        return " "
    if category in {"Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:  # format, surrogate, private, unassigned, separators
        return ""
    return character


def shown_url(url: str) -> str:
    """Return a URL for a mail: scheme, host and path, bounded; without user, query and fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    host = parts.netloc.rpartition("@")[2]
    return clean_line(f"{parts.scheme}://{host}{parts.path}", 200).replace(" ", "%20")


def host_of(url: str) -> str:
    """Return the host of a URL, for grouping and subjects; empty if it has none."""
    try:
        return clean_line(urlsplit(url).hostname or "", 100)
    except ValueError:
        return ""
