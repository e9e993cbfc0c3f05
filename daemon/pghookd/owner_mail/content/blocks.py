"""One block of a letter: the endpoints with the same problem, its consequence, advice, and the further course."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

from pghookd.owner_mail.catalogue import Words, zone_of
from pghookd.owner_mail.content.facts import FactsWriter
from pghookd.owner_mail.content.phrases import TYPES_LENGTH_MAX, events_phrase, host_phrase, site_phrase
from pghookd.owner_mail.content.sections import (
    OFF,
    deadline,
    earliest,
    ended,
    is_partly,
    quoted,
    redirect_target,
    status_text,
    technical,
)
from pghookd.owner_mail.content.statement import TONES, Block, Rows, TextPart
from pghookd.owner_mail.digest import Cause, Fate, Kind, MailSection, clean_line
from pghookd.settings.schema import MailSettings

_PLAIN_CLIENT_ERROR: Final = frozenset({Cause.CLIENT_ERROR, Cause.UNAUTHORIZED, Cause.NOT_FOUND})


class BlockWriter:
    """Writes blocks in one language.

    Args:
        words: the language.
        mail: the settings `mail.*`.
        platform: the platform's name.
        user_agent: the User-Agent of requests, for owners whose server filters by it.
    """

    def __init__(self, words: Words, mail: MailSettings, platform: str, user_agent: str) -> None:
        self._words = words
        self._say = words.say
        self._is_answerable = bool(mail.reply_to)
        self._platform = platform
        self._agent = user_agent
        self._facts = FactsWriter(words, mail)

    def block(self, group: Sequence[MailSection]) -> Block:
        """Return the block of sections with the same problem on the same host; at least one.

        Raises:
            OverflowError, TypeError, ValueError: a section has a value that cannot be written.
        """
        first = group[0]
        rows, parts = _shared([self._facts.part(each) for each in group])
        answers = list(dict.fromkeys(each.response for each in group if each.response))
        return Block(
            tone=TONES[first.kind],
            mark=self._say("mark.partly" if is_partly(first) else f"mark.{first.kind}"),
            heading=host_phrase(self._words, first),
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
            types = ", ".join(name for name, _ in first.types)
            yield self._say("lead.types", types=clean_line(types, TYPES_LENGTH_MAX))
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
        for key, count in (
            ("late", sum(each.late for each in group)),
            ("waiting", sum(each.waiting for each in group)),
            ("held_until" if until else "held", sum(each.held for each in group)),
        ):
            if count:
                yield self._count(key, count, group, when=when)
        yield from self._given_up(group)

    def _given_up(self, group: Sequence[MailSection]) -> Iterator[str]:
        """Yield a sentence for each way in which events were given up; none claims attempts that were not made."""
        counts = _fates(group)
        for fate in Fate:
            if count := counts[fate]:
                yield self._count(f"dead_{fate}", count, group)

    def _count(self, key: str, count: int, group: Sequence[MailSection], **values: str) -> str:
        events = events_phrase(self._words, count, group)
        return self._say(f"consequence.{key}", n=count, events=events, **values)

    def _values(self, group: Sequence[MailSection]) -> dict[str, str]:
        """Return the values of the placeholders in a block's sentences."""
        first, zone = group[0], zone_of(group[0].time_zone)
        until = earliest(group, deadline)
        again = max((ended(each) for each in group), default=0)
        return {
            "site": site_phrase(self._words, first),
            "host": host_phrase(self._words, first),
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
        return self._say(f"{key}_reply" if self._is_answerable else key)

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
