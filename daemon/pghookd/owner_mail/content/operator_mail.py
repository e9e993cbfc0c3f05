"""The content of letters to the operator: storms, and events that cannot be sent because of the platform.

Never here: markup, headers; anything that an owner reads (owner_mail/content/blocks.py).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from pghookd.owner_mail.catalogue import Words
from pghookd.owner_mail.content.sections import unlinked
from pghookd.owner_mail.content.statement import Block, TextPart
from pghookd.owner_mail.digest import Digest, Kind, OperatorLine


class OperatorWriter:
    """Writes the operator's digests in one language.

    Args:
        words: the language.
        platform: the platform's name.
    """

    def __init__(self, words: Words, platform: str) -> None:
        self._words = words
        self._say = words.say
        self._platform = platform

    def subject(self, digest: Digest) -> str:
        """Return the subject, without a length limit."""
        if digest.kind is Kind.STORM:
            return self._say("subject.storm", **self._storm_counts(digest), who=self._platform)
        count = sum(each.events for each in digest.faults)
        return self._say("subject.faults", n=count, who=self._platform)

    def block(self, digest: Digest) -> Block:
        """Return the letter's content.

        Raises:
            OverflowError, TypeError, ValueError: the digest has a value that cannot be written.
        """
        return self._storm(digest) if digest.kind is Kind.STORM else self._faults(digest)

    def _storm(self, digest: Digest) -> Block:
        when = self._words.moment(digest.at_us, dt.UTC)
        return Block(
            tone="bad",
            mark=self._say("mark.storm"),
            heading=self._say("mark.storm"),
            lead=(self._say("storm.lead", **self._storm_counts(digest), when=when),),
            why=(self._say("storm.why"),),
            advice=(self._say("storm.advice"),),
            next=(self._say("storm.held"),),
        )

    def _storm_counts(self, digest: Digest) -> dict[str, int]:
        failing, total, hosts = digest.storm or (0, 0, 0)
        return {"failing": failing, "total": total, "hosts": hosts}

    def _faults(self, digest: Digest) -> Block:
        causes = list(dict.fromkeys(each.cause.value for each in digest.faults))
        count = sum(each.events for each in digest.faults)
        when = self._words.moment(digest.since_us, dt.UTC)
        return Block(
            tone="bad",
            mark=self._say("mark.faults"),
            heading=self._say("mark.faults"),
            lead=(self._say("faults.lead", n=count, when=when),),
            why=tuple(self._say(f"faults.{cause}") for cause in causes),
            advice=tuple(self._say(f"faults.advice_{cause}") for cause in causes),
            next=(self._say("faults.next"),),
            parts=tuple(self._part(each) for each in digest.faults),
        )

    def _part(self, fault: OperatorLine) -> TextPart:
        return TextPart(unlinked(fault.site_id), tuple(self._rows(fault)))

    def _rows(self, fault: OperatorLine) -> Iterator[tuple[str, str]]:
        yield self._say("label.reason"), ": ".join(filter(None, (fault.cause.value, fault.error)))
        yield self._say("label.types"), f"{unlinked(fault.type)} ({self._words.number(fault.events)})"
        yield self._say("label.endpoint"), str(fault.endpoint_id)
        yield self._say("label.since"), self._words.moment(fault.first_us, dt.UTC)
        yield self._say("label.event"), fault.webhook_id
