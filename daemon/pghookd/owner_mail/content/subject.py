"""The subject of a mail to an owner: the problem, the site and the consequence in numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from pghookd.owner_mail.catalogue import Words
from pghookd.owner_mail.content.phrases import events_phrase, host_phrase
from pghookd.owner_mail.content.sections import earliest, holds_link, unlinked
from pghookd.owner_mail.digest import Kind, MailSection, clean_line

_HOST_MAX: Final = 48  # characters
_SITE_MAX: Final = 36


class SubjectWriter:
    """Writes the subjects of mails to owners in one language.

    Args:
        words: the language.
        platform: the platform's name.
    """

    def __init__(self, words: Words, platform: str) -> None:
        self._words = words
        self._say = words.say
        self._platform = platform

    def subject(self, kind: Kind, sections: Sequence[MailSection]) -> str:
        """Return the subject of a mail, without a length limit.

        Args:
            kind: the kind of the mail.
            sections: its sections of this kind; the others are not in the subject.
        """
        values = {"facts": self._facts(kind, sections), "who": self._who(sections)}
        match kind:
            case Kind.WARNING:
                return self._say_until("subject.warning", sections, lambda s: s.disable_at_us, values)
            case Kind.HELD_EXPIRING:
                return self._say_until("subject.held_expiring", sections, lambda s: s.held_until_us, values)
            case Kind.REMINDER:  # the wording of the first mail, so that mails of one incident look alike
                return self._say("subject.failing", **values)
            case _:
                return self._say(f"subject.{kind}", **values)

    def _say_until(
        self,
        key: str,
        sections: Sequence[MailSection],
        when: Callable[[MailSection], int | None],
        values: dict[str, str],
    ) -> str:
        first = earliest(sections, when)
        if first is None:
            return self._say(f"{key}_soon", **values)
        return self._say(key, when=self._words.short_moment(*first), **values)

    def _facts(self, kind: Kind, sections: Sequence[MailSection]) -> str:
        """Return the host and the consequence in numbers."""
        consequence: list[str] = []
        match kind:
            case Kind.WARNING:
                pass
            case Kind.DISABLED | Kind.HELD_EXPIRING:
                consequence = self._held(kind, sections)
            case Kind.RECOVERED:
                consequence = [*self._counted("late", sections), *self._lost(sections)]
            case Kind.FLAPPING:
                consequence = self._failed(sections)
            case _:
                waiting = [*self._counted("waiting", sections), *self._lost(sections)]
                consequence = waiting or self._failed(sections)
        return ", ".join([self._where(sections), *consequence])

    def _where(self, sections: Sequence[MailSection]) -> str:
        hosts = list(dict.fromkeys(host_phrase(self._words, each, _HOST_MAX) for each in sections))
        host = hosts[0] if hosts else self._say("other.unreadable")
        if len(hosts) > 1:
            return self._say("subject.hosts", host=host, n=len(hosts) - 1)
        return self._say("subject.webhooks", host=host, n=len(sections)) if len(sections) > 1 else host

    def _who(self, sections: Sequence[MailSection]) -> str:
        sites = list(dict.fromkeys(each.site_id for each in sections))
        if not sites:
            return self._platform
        name = self._site(sections[0].site_name or sections[0].site_id)
        return self._say("subject.sites", site=name, n=len(sites) - 1) if len(sites) > 1 else name

    def _site(self, name: str) -> str:
        """Return a site's name, or the platform's name if it is empty or contains a link."""
        shown = "" if holds_link(name) else clean_line(name, _SITE_MAX)
        return unlinked(shown) or self._platform

    def _counted(self, name: str, sections: Sequence[MailSection]) -> list[str]:
        count = sum(getattr(each, name) for each in sections)
        if not count:
            return []
        return [self._say(f"subject.{name}", n=count, events=events_phrase(self._words, count, sections))]

    def _lost(self, sections: Sequence[MailSection]) -> list[str]:
        count = sum(each.dead for each in sections)
        return [self._say("subject.lost", n=count)] if count else []

    def _failed(self, sections: Sequence[MailSection]) -> list[str]:
        failed, total = sum(each.failed for each in sections), sum(each.total for each in sections)
        return [self._say("subject.failed", n=failed, total=max(total, failed))] if failed else []

    def _held(self, kind: Kind, sections: Sequence[MailSection]) -> list[str]:
        count = sum(each.held for each in sections)
        if not count:
            return []
        first = earliest(sections, lambda each: each.held_until_us)
        events = events_phrase(self._words, count, sections)
        if first is None or kind is Kind.HELD_EXPIRING:  # HELD_EXPIRING has the date earlier in the subject
            return [self._say("subject.held", n=count, events=events)]
        return [self._say("subject.held_until", n=count, events=events, when=self._words.day(*first))]
