"""The content of a letter in one language; both its plain text and its HTML are rendered from it.

The order is: the affected endpoints, the problem and its consequence; advice; the further course; the facts; lines for
developers. Endpoints that fail in the same way on the same host share a block. This module sanitises all third-party
texts again, even stored ones.

Never here: markup, headers, templates (owner_mail/message.py); a secret, a payload, the query of a URL.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pghookd.owner_mail.blocks import Block, Link, Rows, TextPart
from pghookd.owner_mail.catalogue import Words, zone_of
from pghookd.owner_mail.digest import (
    OF_OPERATOR,
    SECTIONS_MAX,
    Cause,
    Digest,
    Fate,
    Kind,
    MailSection,
    clean_line,
)
from pghookd.owner_mail.operator_mail import OperatorTeller
from pghookd.owner_mail.sections import (
    JOINER,
    OFF,
    console_url,
    deadline,
    earliest,
    ended,
    groups,
    harmless,
    holds_link,
    is_partly,
    isolated,
    quoted,
    redirect_target,
    shown_name,
    status_text,
    technical,
    unlinked,
    unsubscribe_url,
)
from pghookd.settings.schema import MailSettings

_HOST_IN_SUBJECT: Final = 48  # characters
_SITE_IN_SUBJECT: Final = 36
SUBJECT_MAX: Final = 150
_HOST_MAX: Final = 100
_TYPES_LENGTH_MAX: Final = 300  # characters of all types of an endpoint
_CATEGORIES: Final = frozenset({"order", "product", "form", "contact"})
_TONES: Final = {
    Kind.DISABLED: "bad",
    Kind.FAILING: "bad",
    Kind.WARNING: "bad",
    Kind.HELD_EXPIRING: "bad",
    Kind.REMINDER: "bad",
    Kind.STORM: "bad",
    Kind.FAULTS: "bad",
    Kind.FLAPPING: "unsure",
    Kind.RECOVERED: "good",
}
_PLAIN_CLIENT_ERROR: Final = frozenset({Cause.CLIENT_ERROR, Cause.UNAUTHORIZED, Cause.NOT_FOUND})


@dataclasses.dataclass(frozen=True, slots=True)
class Statement:
    """A whole letter, before it is rendered as text or HTML.

    Attributes:
        language: for `lang` and Content-Language.
        kind: the kind of the mail.
        tone: bad, unsure or good.
        platform: the platform's name, as the sender.
        subject: the subject.
        title: the problem in one short sentence.
        summary: an overview of the blocks; empty if there is one block.
        blocks: gravest first.
        more: a sentence about endpoints that were left out; empty if none were.
        links: links for the whole letter.
        foot: sentences at the end.
        unsubscribe: the link that stops the mails; None if there is none.
        words: headings, by key.
    """

    language: str
    kind: str
    tone: str
    platform: str
    subject: str
    title: str
    summary: str
    blocks: tuple[Block, ...]
    more: str
    links: tuple[Link, ...]
    foot: tuple[str, ...]
    unsubscribe: Link | None
    words: dict[str, str]


class ContentWriter:
    """Writes the content of digests in one language.

    Args:
        words: the language.
        mail: the settings `mail.*`.
        user_agent: the User-Agent of requests, for owners whose server filters by it.
    """

    def __init__(self, words: Words, mail: MailSettings, user_agent: str) -> None:
        self._words = words
        self._say = words.say
        self._mail = mail
        self._agent = user_agent
        self._platform = clean_line(mail.platform_name) or words.say("other.platform")
        self._operator = OperatorTeller(words, self._platform)

    def subject(self, digest: Digest) -> str:
        """Return the subject with the problem, the site and the consequence; at most SUBJECT_MAX characters."""
        if digest.kind in OF_OPERATOR:
            return clean_line(self._operator.subject(digest), SUBJECT_MAX)
        told = [each for each in map(harmless, digest.sections) if each.kind is digest.kind]
        return clean_line(self._subject(digest.kind, told), SUBJECT_MAX, keep=JOINER)

    def statement(self, digest: Digest) -> Statement:
        """Return the whole letter.

        Raises:
            OverflowError, TypeError, ValueError: the digest has a value that cannot be written.
        """
        told = digest.sections[:SECTIONS_MAX]
        sections = [harmless(each, len(told)) for each in told]
        blocks = [self._block(list(group)) for group in groups(sections)]
        if digest.kind in OF_OPERATOR:
            blocks = [self._operator.block(digest)]
        return Statement(
            language=self._words.language,
            kind=digest.kind.value,
            tone=_TONES[digest.kind],
            platform=self._platform,
            subject=self.subject(digest),
            title=self._title(digest.kind, sections),
            summary=self._summary(sections) if len(blocks) > 1 else "",
            blocks=tuple(blocks),
            more=self._say("summary.more", n=digest.more) if digest.more else "",
            links=tuple(self._links(digest)),
            foot=tuple(self._foot(digest)),
            unsubscribe=self._unsubscribe(digest),
            words={key.partition(".")[2]: self._say(key) for key in _HEADINGS},
        )

    # Subject ------------------------------------------------------------------------------------------------

    def _subject(self, kind: Kind, told: Sequence[MailSection]) -> str:
        values = {"facts": self._facts(kind, told), "who": self._who(told)}
        match kind:
            case Kind.WARNING:
                return self._say_until("subject.warning", told, lambda s: s.disable_at_us, values)
            case Kind.HELD_EXPIRING:
                return self._say_until("subject.held_expiring", told, lambda s: s.held_until_us, values)
            case Kind.REMINDER:  # the wording of the first mail, so that mails of one incident look alike
                return self._say("subject.failing", **values)
            case _:
                return self._say(f"subject.{kind}", **values)

    def _say_until(
        self,
        key: str,
        told: Sequence[MailSection],
        when: Callable[[MailSection], int | None],
        values: dict[str, str],
    ) -> str:
        first = earliest(told, when)
        if first is None:
            return self._say(f"{key}_soon", **values)
        return self._say(key, when=self._words.short_moment(*first), **values)

    def _facts(self, kind: Kind, told: Sequence[MailSection]) -> str:
        """Return the host and the consequence in numbers."""
        consequence: list[str] = []
        match kind:
            case Kind.WARNING:
                pass
            case Kind.DISABLED | Kind.HELD_EXPIRING:
                consequence = self._held(kind, told)
            case Kind.RECOVERED:
                consequence = [*self._counted("late", told), *self._lost(told)]
            case Kind.FLAPPING:
                consequence = self._failed(told)
            case _:
                waiting = [*self._counted("waiting", told), *self._lost(told)]
                consequence = waiting or self._failed(told)
        return ", ".join([self._where(told), *consequence])

    def _where(self, told: Sequence[MailSection]) -> str:
        hosts = list(dict.fromkeys(self._host(each, _HOST_IN_SUBJECT) for each in told))
        host = hosts[0] if hosts else self._say("other.unreadable")
        if len(hosts) > 1:
            return self._say("subject.hosts", host=host, n=len(hosts) - 1)
        return self._say("subject.webhooks", host=host, n=len(told)) if len(told) > 1 else host

    def _who(self, told: Sequence[MailSection]) -> str:
        sites = list(dict.fromkeys(each.site_id for each in told))
        if not sites:
            return self._platform
        name = self._name_in_subject(told[0].site_name or told[0].site_id)
        return self._say("subject.sites", site=name, n=len(sites) - 1) if len(sites) > 1 else name

    def _name_in_subject(self, name: str) -> str:
        """Return a site's name for a subject, or the platform's name if it is empty or contains a link."""
        shown = "" if holds_link(name) else clean_line(name, _SITE_IN_SUBJECT)
        return unlinked(shown) or self._platform

    def _counted(self, name: str, told: Sequence[MailSection]) -> list[str]:
        count = sum(getattr(each, name) for each in told)
        return [self._say(f"subject.{name}", n=count, events=self._events(count, told))] if count else []

    def _lost(self, told: Sequence[MailSection]) -> list[str]:
        count = sum(each.dead for each in told)
        return [self._say("subject.lost", n=count)] if count else []

    def _failed(self, told: Sequence[MailSection]) -> list[str]:
        failed, total = sum(each.failed for each in told), sum(each.total for each in told)
        return [self._say("subject.failed", n=failed, total=max(total, failed))] if failed else []

    def _held(self, kind: Kind, told: Sequence[MailSection]) -> list[str]:
        count = sum(each.held for each in told)
        first = earliest(told, lambda each: each.held_until_us)
        if not count:
            return []
        events = self._events(count, told)
        if first is None or kind is Kind.HELD_EXPIRING:  # HELD_EXPIRING has the date earlier in the subject
            return [self._say("subject.held", n=count, events=events)]
        return [self._say("subject.held_until", n=count, events=events, when=self._words.day(*first))]

    def _events(self, count: int, told: Sequence[MailSection]) -> str:
        """Return `14 order events` if all reported types are of one category, otherwise `14 events`."""
        categories = {name.partition("_")[0] for each in told for name, _ in each.types}
        category = categories.pop() if len(categories) == 1 else "any"
        return self._say(f"events.{category if category in _CATEGORIES else 'any'}", n=count)

    # The letter ---------------------------------------------------------------------------------------------

    def _title(self, kind: Kind, sections: Sequence[MailSection]) -> str:
        if kind in OF_OPERATOR:
            return self._say(f"title.{kind}")
        if len({each.kind for each in sections}) > 1:
            return self._say("title.several", n=sum(each.kind is not Kind.RECOVERED for each in sections))
        told = [each for each in sections if each.kind is kind]
        key = "partly" if told and all(map(is_partly, told)) else kind.value
        return self._say(f"title.{key}", n=len(told) or 1)

    def _summary(self, sections: Sequence[MailSection]) -> str:
        kinds = list(dict.fromkeys(each.kind for each in sections))
        counts = [
            self._say(f"summary.{kind}", n=sum(each.kind is kind for each in sections)) for kind in kinds
        ]
        return self._say("summary.all", n=len(sections), list=", ".join(counts))

    def _links(self, digest: Digest) -> Iterator[Link]:
        if self._mail.console_url and digest.kind not in OF_OPERATOR and len(digest.sections) > 1:
            yield Link(self._say("link.all"), self._mail.console_url)
        if self._mail.help_url and digest.kind not in OF_OPERATOR:
            yield Link(self._say("link.help"), self._mail.help_url)

    def _foot(self, digest: Digest) -> Iterator[str]:
        of_operator = digest.kind in OF_OPERATOR
        if self._mail.reply_to and not self._mail.help_url and not of_operator:
            yield self._say("foot.reply", reply_to=self._mail.reply_to)
        key = "foot.why_operator" if of_operator else "foot.why"
        yield self._say(key, platform=self._platform, owner=clean_line(digest.owner_email, 254))

    def _unsubscribe(self, digest: Digest) -> Link | None:
        url = unsubscribe_url(self._mail, digest)
        return Link(self._say("link.unsubscribe"), url) if url else None

    # A block ------------------------------------------------------------------------------------------------

    def _block(self, group: Sequence[MailSection]) -> Block:
        first = group[0]
        rows, parts = _shared([self._part(each) for each in group])
        answers = list(dict.fromkeys(each.response for each in group if each.response))
        return Block(
            tone=_TONES[first.kind],
            mark=self._say("mark.partly" if is_partly(first) else f"mark.{first.kind}"),
            heading=self._host(first),
            lead=tuple(self._lead(group)),
            why=tuple(self._why(group)),
            advice=tuple(self._advice(group)),
            next=tuple(self._next(group)),
            rows=rows,
            parts=parts,
            answer=quoted(answers[0]) if answers and first.kind is not Kind.RECOVERED else "",
            technical="\n\n".join("\n".join(technical(each, self._agent)) for each in group),
        )

    def _lead(self, group: Sequence[MailSection]) -> Iterator[str]:
        first = group[0]
        values = self._values(group)
        key = _lead_key(group)
        yield self._say(f"lead.{key}", n=len(group), **values)
        if key == Kind.FAILING:
            yield self._say("lead.effect", n=len(group), **values)
        if is_partly(first) and first.types:
            yield self._say(
                "lead.types", types=clean_line(", ".join(name for name, _ in first.types), _TYPES_LENGTH_MAX)
            )
        yield from self._consequence(group)

    def _why(self, group: Sequence[MailSection]) -> Iterator[str]:
        first, values = group[0], self._values(group)
        if first.kind is Kind.RECOVERED:
            return
        by_hand = False
        if first.kind is Kind.DISABLED and self._words.has(f"reason.{first.disabled_reason}"):
            by_hand = first.disabled_reason in {"owner", "operator"}
            yield self._say(f"reason.{first.disabled_reason}", **values)
        if not by_hand and not (first.kind is Kind.DISABLED and first.cause is Cause.GONE):
            yield self._say(f"cause.{self._cause_key(first)}", **values)

    def _consequence(self, group: Sequence[MailSection]) -> Iterator[str]:
        """Yield one sentence each for delayed, waiting, held and lost events, with their numbers."""
        until = earliest(group, lambda each: each.held_until_us)
        if group[0].kind is Kind.HELD_EXPIRING:
            until = None  # the lead already has the date
        when = self._words.moment(*until) if until else ""
        yield from self._told("late", "late", group)
        yield from self._told("waiting", "waiting", group)
        yield from self._told("held", "held_until" if until else "held", group, when=when)
        yield from self._given_up(group)

    def _given_up(self, group: Sequence[MailSection]) -> Iterator[str]:
        """Yield a sentence for each way in which events were given up; none claims attempts that were not made."""
        counts = _fates(group)
        for fate in Fate:
            if count := counts[fate]:
                yield self._say(f"consequence.dead_{fate}", n=count, events=self._events(count, group))

    def _values(self, group: Sequence[MailSection]) -> dict[str, str]:
        """Return the values of the placeholders in a block's sentences."""
        first, zone = group[0], zone_of(group[0].time_zone)
        until = earliest(group, deadline)
        again = max((ended(each) for each in group), default=0)
        return {
            "site": self._site(first),
            "host": self._host(first),
            "since": self._words.moment(min(each.since_us for each in group), zone),
            "when": self._words.moment(*until) if until else "",
            "ended": self._words.moment(again, zone),
            "duration": self._words.duration(again - first.since_us),
            "status": status_text(first.status),
            "target": redirect_target(first) or "",
            "seconds": self._words.number(first.timeout_s),
            "user_agent": self._agent,
            "platform": self._platform,
        }

    def _cause_key(self, section: MailSection) -> str:
        """Return the key of the most specific text for the cause."""
        cause = section.cause
        if cause is Cause.REDIRECT and redirect_target(section):
            return "redirect_to"
        if cause is Cause.ODD_STATUS and section.status is None:
            return "unknown"
        error = (section.error or "").partition(":")[0]
        specific = error if cause is Cause.BAD_RESPONSE else f"{cause}_{section.status}"
        for key in (f"{cause}_{error}", specific):
            if self._words.has(f"cause.{key}"):
                return key
        return cause.value

    def _advice(self, group: Sequence[MailSection]) -> Iterator[str]:
        first = group[0]
        match first.kind:
            case Kind.RECOVERED:
                lost = any(each.dead for each in group)
                yield self._again("advice.recovered_lost") if lost else self._say("advice.recovered")
            case Kind.HELD_EXPIRING:
                yield self._say("advice.held_expiring")
            case Kind.FLAPPING:
                yield self._say("advice.flapping")
            case _:
                yield from self._repair(group)

    def _repair(self, group: Sequence[MailSection]) -> Iterator[str]:
        first = group[0]
        if is_partly(first) and first.cause in _PLAIN_CLIENT_ERROR:
            yield self._say("advice.some_types")
            return
        key = self._cause_key(first)
        if not self._words.has(f"advice.{key}"):
            key = first.cause.value
        yield self._say(f"advice.{key}", **self._values(group))
        if first.kind is Kind.DISABLED and first.cause is not Cause.GONE:
            yield self._say("advice.enable")

    def _next(self, group: Sequence[MailSection]) -> Iterator[str]:
        first = group[0]
        if first.kind in OFF:
            yield self._say("next.enable")
        elif first.kind is not Kind.RECOVERED:
            yield from self._trying(group)
            yield from self._end(group)
        elif any(each.waiting for each in group):
            yield self._say("next.catching_up")
        if first.kind is not Kind.RECOVERED and any(each.dead for each in group):
            yield self._again("next.dead")

    def _again(self, key: str) -> str:
        """Return a text on recovering lost events; with `mail.reply_to` set it suggests replying to the mail."""
        return self._say(f"{key}_reply" if self._mail.reply_to else key)

    def _trying(self, group: Sequence[MailSection]) -> Iterator[str]:
        """Yield the sentence about waiting deliveries."""
        if group[0].cause is Cause.FILTER_SLOW:
            yield self._say("next.filter")
        elif not any(each.dead for each in group):
            yield self._say("next.trying")
        elif any(each.waiting for each in group):
            yield self._say("next.trying_rest")

    def _end(self, group: Sequence[MailSection]) -> Iterator[str]:
        """Yield the sentences about the consequence if nothing changes."""
        until = earliest(group, deadline)
        if is_partly(group[0]):
            yield self._say("next.never_disabled")
        elif until and group[0].kind is Kind.WARNING:
            yield self._say("next.disabled")
        elif until:
            yield self._say("next.disable_at", n=len(group), when=self._words.moment(*until))
        if group[0].kind is Kind.FLAPPING:
            yield self._say("next.calm")

    def _told(self, name: str, key: str, group: Sequence[MailSection], **values: str) -> Iterator[str]:
        count = sum(getattr(each, name) for each in group)
        if count:
            yield self._say(f"consequence.{key}", n=count, events=self._events(count, group), **values)

    # An endpoint --------------------------------------------------------------------------------------------

    def _part(self, section: MailSection) -> TextPart:
        rows = tuple((self._say(f"label.{key}"), value) for key, value in self._rows(section) if value)
        url = console_url(self._mail, section)
        link = Link(self._say("link.endpoint"), url) if url else None
        return TextPart(self._site(section), rows, link)

    def _rows(self, section: MailSection) -> Iterator[tuple[str, str]]:
        number = self._words.number
        yield "url", section.url or self._say("other.unreadable")
        yield "description", isolated(unlinked(section.description or ""))
        types = ", ".join(f"{name} ({number(count)})" for name, count in section.types)
        yield "types", clean_line(types, _TYPES_LENGTH_MAX)
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

    def _site(self, section: MailSection) -> str:
        return isolated(shown_name(section.site_name or section.site_id)) or self._say("other.your_site")

    def _host(self, section: MailSection, length: int = _HOST_MAX) -> str:
        return clean_line(section.host, length) or self._say("other.unreadable")


_HEADINGS: Final = (
    "heading.advice",
    "heading.next",
    "heading.answer",
    "heading.answer_note",
    "heading.technical",
    "heading.technical_note",
)


def _shared(parts: Sequence[TextPart]) -> tuple[Rows, tuple[TextPart, ...]]:
    """Return the facts that several endpoints share, and the endpoints without them."""
    if len(parts) == 1:
        return (), tuple(parts)
    rows = tuple(row for row in parts[0].rows if all(row in each.rows for each in parts))
    return rows, tuple(
        dataclasses.replace(each, rows=tuple(row for row in each.rows if row not in rows)) for each in parts
    )


def _fates(group: Sequence[MailSection]) -> dict[Fate, int]:
    """Return the given-up deliveries by Fate; those stored by earlier versions without one count as UNTRIED."""
    counts = dict.fromkeys(Fate, 0)
    for section in group:
        for fate, count in section.dead_by:
            counts[Fate(fate)] += count
        counts[Fate.UNTRIED] += max(0, section.dead - sum(count for _, count in section.dead_by))
    return counts


def _lead_key(group: Sequence[MailSection]) -> str:
    """Return the key of a block's first sentence; one with a date is used only if there is a date."""
    first = group[0]
    if is_partly(first):
        return "partly"
    dated = {Kind.WARNING: Kind.FAILING, Kind.HELD_EXPIRING: Kind.DISABLED}
    if first.kind in dated and earliest(group, deadline) is None:
        return dated[first.kind].value
    return first.kind.value
