"""What a mail to an owner says, as values: sections, causes, and texts of strangers made harmless.

A digest is made once, from facts of one moment, and stored as JSON in the outbox: whatever is sent later, or sent
again after a crash, says the same. Words, languages and markup belong to owner_mail/message.py.

Never here: payloads, secrets, the path or query of a URL (tokens live there), a clock, a word that an owner reads.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import unicodedata
from typing import Any, Final
from urllib.parse import urlsplit

from pghookd.model.delivery import OAUTH2, Outcome

SECTIONS_MAX: Final = 20  # endpoints told of in one mail; the others are counted
EVENT_IDS_MAX: Final = 10  # named per endpoint
TYPES_MAX: Final = 12  # event types named per endpoint
EXCERPT_MAX: Final = 500  # characters of an answer
NAME_MAX: Final = 120  # characters of a site's name, a description, a host

_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BLANKS: Final = re.compile(r"[ \t\u00a0]+")
_CUT: Final = "…"


class Kind(enum.StrEnum):
    """What a section or a mail is about, gravest first: a mail takes the gravest of its sections."""

    DISABLED = "disabled"
    FAILING = "failing"
    WARNING = "warning"
    HELD_EXPIRING = "held_expiring"
    FLAPPING = "flapping"
    RECOVERED = "recovered"
    REMINDER = "reminder"
    STORM = "storm"  # this and the next: to the operator alone, never beside others
    FAULTS = "faults"


OF_OPERATOR: Final = frozenset({Kind.STORM, Kind.FAULTS})
GRAVITY: Final = {kind: place for place, kind in enumerate(Kind)}


class Cause(enum.StrEnum):
    """Why an endpoint fails, as far as it changes what its owner should do."""

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
    TOKEN = "token"  # noqa: S105 - a word: the endpoint's own OAuth2 server gave none, and nothing was sent
    FILTER_SLOW = "filter_slow"  # of the owner's own making; this and the next two: nothing was sent
    TOO_LARGE = "too_large"
    INVALID = "invalid"


class Fate(enum.StrEnum):
    """How a delivery that failed was given up, as far as it changes what may truly be said of it."""

    TRIED = "tried"  # after several attempts
    ONCE = "once"  # after a single one
    EXPIRED = "expired"  # its event was not to be delivered later
    ABORTED = "aborted"  # the receiver asked for it
    BLOCKED = "blocked"  # the URL is not one that can be sent to
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
    """Sort the last failure of an endpoint into a cause; no outcome: it was not tried, the error says why."""
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
        kind: what is told of it.
        endpoint_id: its number, for links.
        site_id: of its site, for links.
        site_name: the owner's own name for the site; a stranger's text all the same.
        time_zone: the site's IANA name; None: UTC.
        url: without path and query where those may carry a token: scheme, host and path, never the query.
        description: the owner's own; None: none.
        partly: other deliveries to it succeed.
        since_us: its first failure since it last worked.
        last_failure_us: its latest failure.
        last_success_us: its latest 2xx since then; None: none.
        ended_us: since when it works again; None: it does not.
        types: event types of the deliveries told of here, with how many each; the most frequent first.
        failed: deliveries that failed since `since_us`.
        total: deliveries tried since then.
        late: of the failed ones, delivered by now.
        dead: of the failed ones, given up.
        dead_by: the same, by how (Fate); empty in digests of earlier versions.
        waiting: deliveries that wait: to be retried, or parked.
        held: deliveries that are kept because the endpoint is off.
        cause: of the latest failure.
        status: its HTTP status; None: there was no answer.
        error: its constant name, or `name: detail`; None: none.
        response: the beginning of its answer, made harmless; empty: none.
        timeout_s: what it is given to answer, in seconds.
        next_attempt_us: when the next request is due; None: unknown or none.
        disable_at_us: when it will be switched off if nothing changes; None: never.
        disabled_reason: who switched it off; None: it is on.
        held_until_us: when the first held delivery is dropped; None: none is held.
        event_ids: the oldest deliveries told of here, as webhook ids.
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

    @property
    def host(self) -> str:
        """The host of the URL: what failing endpoints are grouped by."""
        return host_of(self.url)


@dataclasses.dataclass(frozen=True, slots=True)
class OperatorLine:
    """What cannot be sent, and only the platform's operator can mend: one line of a mail to them.

    Attributes:
        cause: INVALID, TOO_LARGE or BLOCKED.
        site_id: of the site.
        type: of the events; of the latest, where the endpoint is blocked.
        endpoint_id: one of the endpoints that did not get them.
        events: how many.
        first_us: when the first was given up; microseconds since 1970.
        webhook_id: one of the events.
        error: by which rule the destination is blocked; None: it is not.
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
        kind: that of the gravest section.
        owner_email: whom it is for; one address.
        language: what the site's language says; letters fall back to English.
        at_us: the moment whose facts these are.
        since_us: the first failure of the oldest incident told of: mails of one incident form a thread.
        sections: gravest first, then by site, host and cause; at most SECTIONS_MAX.
        more: endpoints that had no room.
        unsubscribe_token: the owner's; None: they have none.
        storm: only to the operator: how many sites of how many fail at once, over how many domains.
        faults: only to the operator: what cannot be sent; `more` are the lines that had no room.
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
    """Return the kind that a mail with sections of these kinds has."""
    return min(kinds, key=GRAVITY.__getitem__)


def arranged(sections: list[MailSection]) -> tuple[tuple[MailSection, ...], int]:
    """Order sections as a mail shows them, and say how many had no room."""
    ordered = sorted(
        sections, key=lambda s: (GRAVITY[s.kind], s.site_name, s.site_id, s.host, s.cause, s.endpoint_id)
    )
    return tuple(ordered[:SECTIONS_MAX]), max(0, len(ordered) - SECTIONS_MAX)


# As JSON --------------------------------------------------------------------------------------------------------------


def digest_of(stored: dict[str, Any]) -> Digest:
    """Read a digest back from the JSON that `dataclasses.asdict` made of it.

    Raises:
        KeyError, TypeError, ValueError: it was written by something else.
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
    rest = {k: v for k, v in stored.items() if k not in {"kind", "cause", "types", "dead_by", "event_ids"}}
    return MailSection(
        kind=Kind(stored["kind"]),
        cause=Cause(stored["cause"]),
        types=tuple((str(name), int(count)) for name, count in stored["types"]),
        dead_by=tuple((str(fate), int(count)) for fate, count in stored.get("dead_by", ())),
        event_ids=tuple(stored["event_ids"]),
        **rest,
    )


# Texts of strangers ---------------------------------------------------------------------------------------------------


def clean_line(text: str | None, length: int = NAME_MAX, *, keep: str = "") -> str:
    """Make a stranger's text one harmless line: no controls, no bidi marks, no lone surrogates, bounded.

    Args:
        text: as it is stored.
        length: characters at most.
        keep: invisible characters of our own that stay.
    """
    return _BLANKS.sub(" ", clean_text(text, length, keep=keep).replace("\n", " ")).strip()


def clean_text(text: str | None, length: int = EXCERPT_MAX, *, keep: str = "") -> str:
    """Make a stranger's text harmless, its line breaks kept: what may be shown, escaped, to a person."""
    readable = (text or "")[: 4 * length].replace("\r\n", "\n")
    shown = "".join(each if each in keep else _harmless(each) for each in readable)
    shown = shown.strip()
    return shown if len(shown) <= length else shown[: length - 1].rstrip() + _CUT


def excerpt(response: bytes | None) -> str:
    """Return the beginning of an answer as text that can be shown; empty where it is none."""
    return clean_text((response or b"")[: 8 * EXCERPT_MAX].decode("utf-8", "replace"))


def _harmless(character: str) -> str:
    if character == "\n":
        return character
    if character in _BIDI:
        return ""
    category = unicodedata.category(character)
    if category == "Cc":
        return " "
    if category in {"Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:  # invisible, surrogate, private, unknown, separators
        return ""
    return character


def shown_url(url: str) -> str:
    """Return a URL as a mail may show it: scheme, host and path, bounded; no user, query or fragment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    host = parts.netloc.rpartition("@")[2]
    return clean_line(f"{parts.scheme}://{host}{parts.path}", 200).replace(" ", "%20")


def host_of(url: str) -> str:
    """Return the host of a URL, for grouping and subjects; empty where it has none."""
    try:
        return clean_line(urlsplit(url).hostname or "", 100)
    except ValueError:
        return ""
