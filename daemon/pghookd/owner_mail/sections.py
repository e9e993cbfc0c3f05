"""What a letter takes from sections: made harmless, grouped, with their deadlines, links and lines for developers.

Never here: words of any language (owner_mail/content.py), markup.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import http
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final
from urllib.parse import quote, urlsplit

from pghookd.owner_mail.catalogue import moment_of, zone_of
from pghookd.owner_mail.digest import (
    EVENT_IDS_MAX,
    EXCERPT_MAX,
    NAME_MAX,
    TYPES_MAX,
    Cause,
    Digest,
    Kind,
    MailSection,
    clean_line,
    clean_text,
    shown_url,
)
from pghookd.settings.schema import MailSettings

OFF: Final = frozenset({Kind.DISABLED, Kind.HELD_EXPIRING})  # told of endpoints that are switched off
_ANSWER_LINES_MAX: Final = 12
_NAMES_MAX: Final = 1_200  # characters of all names of sites in a letter
_EXCERPTS_MAX: Final = 4_000  # characters of all answers in a letter
_ID_MAX: Final = 40  # characters
_IDS_MAX: Final = 60  # event ids in a letter
_OPENS, _CLOSES = "\u2068", "\u2069"  # FIRST STRONG ISOLATE and its end (UAX 9)
JOINER: Final = (
    "\u2060"  # WORD JOINER: invisible, breaks no line, and is no part of a host name or an address
)
_SCHEMES: Final = r"https?|ftps?|sftp|mailto|tel|sms|callto|facetime|skype|xmpp|magnet|javascript|data|file"
# Where mail programs see a link, an address or a domain: a place to put a JOINER into.
_LINKING: Final = re.compile(
    rf"(?<=[.\u3002\uff0e\uff61\u2024\ufe52])(?=\S)|(?=[@\uff20])|(?<=[@\uff20])|(?<=[:\uff1a])(?=[/\\])"
    rf"|(?<=/)(?=/)|(?<![^\W_])(?:{_SCHEMES})(?=:\S)",
    re.IGNORECASE,
)
_LINK: Final = re.compile(rf"[@\uff20]|//|:\\|(?<![^\W_])(?:www\.|(?:{_SCHEMES}):\S)", re.IGNORECASE)
_ORIGIN: Final = re.compile(r"(?:https?://)?[A-Za-z0-9.:\[\]-]+")


# Where links lead -------------------------------------------------------------------------------------------


def console_url(mail: MailSettings, section: MailSection) -> str | None:
    """Return where an endpoint is opened: `mail.console_url` with `/{site_id}/{endpoint_id}` behind its path.

    None where that is not set, or the site's id cannot be a part of a path: dots lead elsewhere.
    """
    if not mail.console_url or not section.site_id.strip(".") or len(section.site_id) >= NAME_MAX:
        return None
    parts = urlsplit(mail.console_url)
    path = f"{parts.path.rstrip('/')}/{quote(section.site_id, safe='')}/{int(section.endpoint_id)}"
    return parts._replace(path=path).geturl()


def unsubscribe_url(mail: MailSettings, digest: Digest) -> str | None:
    """Return `mail.unsubscribe_url` with the owner's token; None where one of them is missing."""
    if not (mail.unsubscribe_url and digest.unsubscribe_token):
        return None
    return mail.unsubscribe_url.replace("{token}", quote(digest.unsubscribe_token, safe=""))


# Sections ---------------------------------------------------------------------------------------------------


def groups(sections: Iterable[MailSection]) -> list[list[MailSection]]:
    """Put together what is in the same trouble on the same host, in the order of the first of each."""
    found: dict[tuple[object, ...], list[MailSection]] = {}
    for each in sections:
        types = each.types if each.partly else ()
        key = (
            each.kind, each.host, each.cause, each.status, each.error, each.partly, tuple(n for n, _ in types),
            each.timeout_s, each.disabled_reason,
        )  # fmt: skip
        found.setdefault(key, []).append(each)
    return list(found.values())


def is_partly(section: MailSection) -> bool:
    """Whether it is told as failing in parts; a graver kind says all there is."""
    return section.partly and section.kind in {Kind.FAILING, Kind.REMINDER}


def deadline(section: MailSection) -> int | None:
    """Return when something ends: what is held, or, while it is on, our patience."""
    return section.held_until_us if section.kind in OFF else section.disable_at_us


def ended(section: MailSection) -> int:
    """Return since when it works again."""
    return section.last_failure_us if section.ended_us is None else section.ended_us


def earliest(
    told: Sequence[MailSection], when: Callable[[MailSection], int | None]
) -> tuple[int, dt.tzinfo] | None:
    """Return the earliest such moment, with its site's zone."""
    dated = [(at_us, place) for place, each in enumerate(told) if (at_us := when(each)) is not None]
    if not dated:
        return None
    at_us, place = min(dated)
    return at_us, zone_of(told[place].time_zone)


def status_text(status: int | None) -> str:
    """Return `500 (Internal Server Error)`, or the number alone; empty for none."""
    if status is None:
        return ""
    try:
        return f"{status} ({http.HTTPStatus(status).phrase})"
    except ValueError:
        return str(int(status))


def redirect_target(section: MailSection) -> str | None:
    """Return where a redirect pointed: `https://host`, as webhook/judge.py noted it."""
    name, _, target = (section.error or "").partition(": ")
    named = name == "redirect" and section.cause is Cause.REDIRECT and _ORIGIN.fullmatch(target)
    return target if named else None


# For developers, the same in every language -----------------------------------------------------------------


def technical(section: MailSection, agent: str) -> Iterator[str]:
    """Yield lines on an endpoint; times as in RFC 3339, UTC."""
    status = f", HTTP {section.status}" if section.status is not None else ""
    error = f" ({section.error})" if section.error and section.error != section.cause else ""
    yield f"endpoint: {section.endpoint_id}, site {unlinked(section.site_id)}"
    yield f"url: {section.url or '-'}"
    yield f"failure: {section.cause}{status}{error}"
    for name in (
        "since",
        "last_failure",
        "last_success",
        "ended",
        "next_attempt",
        "disable_at",
        "held_until",
    ):
        at_us = getattr(section, f"{name}_us")
        if at_us is not None:
            yield f"{name}: {_iso(at_us)}"
    counts = ((name, getattr(section, name)) for name in ("waiting", "held", "late", "dead"))
    others = (f"{count} {name}" for name, count in counts if count)
    yield ", ".join((f"deliveries: {section.failed} of {section.total} failed", *others))
    if section.dead_by:
        yield f"not delivered: {', '.join(f'{count} {fate}' for fate, count in section.dead_by)}"
    yield f"timeout: {section.timeout_s:g} s, user-agent: {agent}"
    if section.disabled_reason:
        yield f"disabled_reason: {section.disabled_reason}"
    for index, webhook_id in enumerate(section.event_ids):
        yield f"oldest webhook-id: {webhook_id}" if index == 0 else f"webhook-id: {webhook_id}"


def _iso(at_us: int) -> str:
    return f"{moment_of(at_us):%Y-%m-%dT%H:%M:%SZ}"


# Strangers' texts -------------------------------------------------------------------------------------------


def harmless(section: MailSection, among: int = 1) -> MailSection:
    """Clean all texts of a section, whatever was stored; the more there are, the shorter the long ones."""
    length = min(NAME_MAX, _NAMES_MAX // among)
    return dataclasses.replace(
        section,
        site_id=clean_line(section.site_id),  # whole, since links are made of it
        site_name=clean_line(section.site_name, length),
        url=_url(section.url),
        description=clean_line(section.description, length),
        error=clean_line(section.error, length),
        response=clean_text(section.response, min(EXCERPT_MAX, _EXCERPTS_MAX // among)),
        disabled_reason=clean_line(section.disabled_reason, 20),
        types=tuple((clean_line(name), int(count)) for name, count in section.types[:TYPES_MAX]),
        event_ids=tuple(
            clean_line(each, _ID_MAX) for each in section.event_ids[: min(EVENT_IDS_MAX, _IDS_MAX // among)]
        ),
    )


def unlinked(text: str) -> str:
    """Return a text in which no mail program finds a link, an address or a domain; it looks as before.

    A JOINER follows each dot that something follows, stands around each @, and parts `://`. An ordinary name looks as
    it was given, `bakery.example` too; what is copied is no address.
    """
    return _LINKING.sub(lambda found: f"{found[0]}{JOINER}", text.replace(JOINER, ""))


def shown_name(text: str) -> str:
    """Return the owner's name for something as a letter shows it; one that holds a link is quoted as their text."""
    return f"\u201c{unlinked(text)}\u201d" if holds_link(text) else unlinked(text)


def holds_link(text: str) -> bool:
    """Return True if a text holds a link or an address; a bare domain is a name that a shop may have."""
    return _LINK.search(text) is not None


def _url(url: str) -> str:
    shown = shown_url(url)
    return "" if shown == "://" else shown


def isolated(text: str) -> str:
    """Keep a text that is written from right to left from turning round what stands beside it (UAX 9)."""
    turns = any(unicodedata.bidirectional(character) in {"R", "AL"} for character in text)
    return f"{_OPENS}{text}{_CLOSES}" if turns else text


def quoted(text: str) -> str:
    """Return the lines of an answer that are not blank, a few of them; they make no links."""
    lines = [unlinked(line.strip()) for line in text.split("\n") if line.strip()]
    return "\n".join(map(isolated, lines[:_ANSWER_LINES_MAX]))
