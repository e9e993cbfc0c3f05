"""Phrases that several parts of a letter use: the name of a host, of a site, a number of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pghookd.owner_mail.catalogue import Words
from pghookd.owner_mail.content.sections import isolated, shown_name
from pghookd.owner_mail.digest import MailSection, clean_line

TYPES_LENGTH_MAX: Final = 300  # characters of all types of an endpoint
_HOST_MAX: Final = 100  # characters
_CATEGORIES: Final = frozenset({"order", "product", "form", "contact"})


def host_phrase(words: Words, section: MailSection, length: int = _HOST_MAX) -> str:
    """Return the host of an endpoint's URL."""
    return clean_line(section.host, length) or words.say("other.unreadable")


def site_phrase(words: Words, section: MailSection) -> str:
    """Return the name of an endpoint's site."""
    return isolated(shown_name(section.site_name or section.site_id)) or words.say("other.your_site")


def events_phrase(words: Words, count: int, sections: Sequence[MailSection]) -> str:
    """Return `14 order events` if all reported types are of one category, otherwise `14 events`."""
    categories = {name.partition("_")[0] for each in sections for name, _ in each.types}
    category = categories.pop() if len(categories) == 1 else "any"
    return words.say(f"events.{category if category in _CATEGORIES else 'any'}", n=count)
