"""Prepares sections for a letter: sanitised and grouped, with their deadlines, links and lines for developers.

Never here: words of any language (catalogue.py), markup.
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

OFF: Final = frozenset({Kind.DISABLED, Kind.HELD_EXPIRING})  # kinds that are about disabled endpoints
_ANSWER_LINES_MAX: Final = 12
_NAMES_MAX: Final = 1_200  # characters of all site names in a letter
_EXCERPTS_MAX: Final = 4_000  # characters of all answers in a letter
_ID_MAX: Final = 40  # characters
_IDS_MAX: Final = 60  # event ids in a letter
_OPENS, _CLOSES = "\u2068", "\u2069"  # FIRST STRONG ISOLATE and its end (UAX 9)
JOINER: Final = (
    "\u2060"  # WORD JOINER: invisible, breaks no line, and is not valid in a host name or an address
)
_SCHEMES: Final = r"https?|ftps?|sftp|mailto|tel|sms|callto|facetime|skype|xmpp|magnet|javascript|data|file"
# The places where mail programs detect a link, an address or a domain; a JOINER is inserted there.
_LINKING: Final = re.compile(
    rf"(?<=[.\u3002\uff0e\uff61\u2024\ufe52])(?=\S)|(?=[@\uff20])|(?<=[@\uff20])|(?<=[:\uff1a])(?=[/\\])"
    rf"|(?<=/)(?=/)|(?<![^\W_])(?:{_SCHEMES})(?=:\S)",
    re.IGNORECASE,
)
_LINK: Final = re.compile(rf"[@\uff20]|//|:\\|(?<![^\W_])(?:www\.|(?:{_SCHEMES}):\S)", re.IGNORECASE)
_ORIGIN: Final = re.compile(r"(?:https?://)?[A-Za-z0-9.:\[\]-]+")


# Where links lead -------------------------------------------------------------------------------------------


def console_url(mail: MailSettings, section: MailSection) -> str | None:
    """Return the console's URL of an endpoint: `mail.console_url` with `/{site_id}/{endpoint_id}` after its path.

    None if that is not set, or if the site's id is too long or consists only of dots, which are special in paths.
    """
    if not mail.console_url or not section.site_id.strip(".") or len(section.site_id) >= NAME_MAX:
        return None
    parts = urlsplit(mail.console_url)
    path = f"{parts.path.rstrip('/')}/{quote(section.site_id, safe='')}/{int(section.endpoint_id)}"
    return parts._replace(path=path).geturl()


def unsubscribe_url(mail: MailSettings, digest: Digest) -> str | None:
    """Return `mail.unsubscribe_url` with the owner's token, or None if either is missing."""
    if not (mail.unsubscribe_url and digest.unsubscribe_token):
        return None
    return mail.unsubscribe_url.replace("{token}", quote(digest.unsubscribe_token, safe=""))


# Sections ---------------------------------------------------------------------------------------------------


def groups(sections: Iterable[MailSection]) -> list[list[MailSection]]:
    """Group sections with the same problem on the same host, in the order of each group's first section."""
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
    """Return True if a section is reported as partly failing; graver kinds do not mention it."""
    return section.partly and section.kind in {Kind.FAILING, Kind.REMINDER}


def deadline(section: MailSection) -> int | None:
    """Return when held deliveries are dropped or, for an enabled endpoint, when it will be disabled; None if never."""
    return section.held_until_us if section.kind in OFF else section.disable_at_us


def ended(section: MailSection) -> int:
    """Return the time since which the endpoint works again."""
    return section.last_failure_us if section.ended_us is None else section.ended_us


def earliest(
    told: Sequence[MailSection], when: Callable[[MailSection], int | None]
) -> tuple[int, dt.tzinfo] | None:
    """Return the earliest of these times with its site's zone, or None if there is none."""
    dated = [(at_us, place) for place, each in enumerate(told) if (at_us := when(each)) is not None]
    if not dated:
        return None
    at_us, place = min(dated)
    return at_us, zone_of(told[place].time_zone)


def status_text(status: int | None) -> str:
    """Return a status such as `500 (Internal Server Error)`, or the number alone; empty if there is none."""
    if status is None:
        return ""
    try:
        return f"{status} ({http.HTTPStatus(status).phrase})"
    except ValueError:
        return str(int(status))


def redirect_target(section: MailSection) -> str | None:
    """Return the target of a redirect, `https://host` as webhook/judge.py recorded it, or None if there is none."""
    name, _, target = (section.error or "").partition(": ")
    named = name == "redirect" and section.cause is Cause.REDIRECT and _ORIGIN.fullmatch(target)
    return target if named else None


# For developers, the same in every language -----------------------------------------------------------------


def technical(section: MailSection, agent: str) -> Iterator[str]:
    """Yield lines about an endpoint for developers; times are RFC 3339 in UTC."""
    status = f", HTTP {section.status}" if section.status is not None else ""
    error = f" ({section.error})" if section.error and section.error != section.cause else ""
    yield f"endpoint: {section.endpoint_id}, site {unlinked(section.site_id)}"
    yield f"url: {section.url or '-'}"
    yield f"failure: {section.cause}{status}{error}"
    for name in (
        "changed",
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
    """Return a section with all texts sanitised; with more sections in a letter (`among`), texts are cut shorter."""
    length = min(NAME_MAX, _NAMES_MAX // among)
    return dataclasses.replace(
        section,
        site_id=clean_line(section.site_id),  # not shortened further, because links use it
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
    """Return a text in which no mail program detects a link, an address or a domain; its appearance is unchanged.

    A JOINER is inserted after each dot before another character, around each @, and within `://`. A name such as
    `bakery.example` looks the same, but the copied text is not a valid address.
    """
    return _LINKING.sub(lambda found: f"{found[0]}{JOINER}", text.replace(JOINER, ""))


def shown_name(text: str) -> str:
    """Return a name given by an owner as a letter shows it; a name that contains a link is put in quotes."""
    return f"\u201c{unlinked(text)}\u201d" if holds_link(text) else unlinked(text)


def holds_link(text: str) -> bool:
    """Return True if a text contains a link or an address; a bare domain is allowed, as a shop may have such a name."""
    return _LINK.search(text) is not None


def _url(url: str) -> str:
    shown = shown_url(url)
    return "" if shown == "://" else shown


def isolated(text: str) -> str:
    """Isolate a right-to-left text, so that it does not reorder the text around it (UAX 9)."""
    turns = any(unicodedata.bidirectional(character) in {"R", "AL"} for character in text)
    return f"{_OPENS}{text}{_CLOSES}" if turns else text


def quoted(text: str) -> str:
    """Return the first non-blank lines of an answer, without links."""
    lines = [unlinked(line.strip()) for line in text.split("\n") if line.strip()]
    return "\n".join(map(isolated, lines[:_ANSWER_LINES_MAX]))
