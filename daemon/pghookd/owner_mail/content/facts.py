"""The facts about one endpoint of a letter, as labels with values: its URL, its events, counts and times."""

from __future__ import annotations

from collections.abc import Iterator

from pghookd.owner_mail.catalogue import Words, zone_of
from pghookd.owner_mail.content.phrases import TYPES_LENGTH_MAX, site_phrase
from pghookd.owner_mail.content.sections import OFF, console_url, ended, isolated, unlinked
from pghookd.owner_mail.content.statement import Link, TextPart
from pghookd.owner_mail.digest import Kind, MailSection, clean_line
from pghookd.settings.schema import MailSettings


class FactsWriter:
    """Writes the facts about endpoints in one language.

    Args:
        words: the language.
        mail: the settings `mail.*`.
    """

    def __init__(self, words: Words, mail: MailSettings) -> None:
        self._words = words
        self._say = words.say
        self._mail = mail

    def part(self, section: MailSection) -> TextPart:
        """Return an endpoint with its facts; those without a value are left out.

        Raises:
            OverflowError: a time is outside the range of dates.
        """
        rows = tuple((self._say(f"label.{key}"), value) for key, value in self._rows(section) if value)
        url = console_url(self._mail, section)
        link = Link(self._say("link.endpoint"), url) if url else None
        return TextPart(site_phrase(self._words, section), rows, link)

    def _rows(self, section: MailSection) -> Iterator[tuple[str, str]]:
        number = self._words.number
        yield "url", section.url or self._say("other.unreadable")
        yield "description", isolated(unlinked(section.description or ""))
        types = ", ".join(f"{name} ({number(count)})" for name, count in section.types)
        yield "types", clean_line(types, TYPES_LENGTH_MAX)
        if section.failed:
            total = max(section.total, section.failed)
            yield "failed", self._say("label.failed_value", n=section.failed, total=total)
        for name in ("waiting", "held", "late", "dead"):
            count = getattr(section, name)
            yield name, number(count) if count else ""
        yield from self._times(section)

    def _times(self, section: MailSection) -> Iterator[tuple[str, str]]:
        zone = zone_of(section.time_zone)

        def moment(at_us: int | None) -> str:
            return self._words.moment(at_us, zone) if at_us is not None else ""

        yield "since", moment(section.since_us)
        if section.changed_us is not None:
            changed = ", ".join(self._say(f"change.{name}") for name in section.changed)
            yield "changed", f"{moment(section.changed_us)} ({changed})"
        yield "last_failure", moment(section.last_failure_us)
        if section.kind is Kind.RECOVERED:
            yield "ended", moment(ended(section))
            yield "duration", self._words.duration(ended(section) - section.since_us)
        else:
            yield "last_success", moment(section.last_success_us) or self._say("label.no_success")
            yield "next_attempt", moment(section.next_attempt_us)
        if section.kind not in OFF:
            yield "disable_at", moment(section.disable_at_us)
        yield "held_until", moment(section.held_until_us)
