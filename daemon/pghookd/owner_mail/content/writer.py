"""The content of a letter in one language; both its plain text and its HTML are rendered from it.

The order is: the affected endpoints, the problem and its consequence; advice; the further course; the facts; lines for
developers. Endpoints that fail in the same way on the same host share a block. This module sanitises all third-party
texts again, even stored ones.

Never here: markup, headers, templates (owner_mail/message.py); a secret, a payload, the query of a URL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from pghookd.owner_mail.catalogue import Words
from pghookd.owner_mail.content.blocks import BlockWriter
from pghookd.owner_mail.content.operator_mail import OperatorWriter
from pghookd.owner_mail.content.sections import JOINER, groups, harmless, is_partly, unsubscribe_url
from pghookd.owner_mail.content.statement import TONES, Link, Statement
from pghookd.owner_mail.content.subject import SubjectWriter
from pghookd.owner_mail.digest import OF_OPERATOR, SECTIONS_MAX, Digest, Kind, MailSection, clean_line
from pghookd.settings.schema import MailSettings

SUBJECT_MAX: Final = 150  # characters
_HEADINGS: Final = (
    "heading.advice",
    "heading.next",
    "heading.answer",
    "heading.answer_note",
    "heading.technical",
    "heading.technical_note",
)


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
        self._platform = clean_line(mail.platform_name) or words.say("other.platform")
        self._subject = SubjectWriter(words, self._platform)
        self._blocks = BlockWriter(words, mail, self._platform, user_agent)
        self._operator = OperatorWriter(words, self._platform)

    def subject(self, digest: Digest) -> str:
        """Return the subject with the problem, the site and the consequence; at most SUBJECT_MAX characters."""
        if digest.kind in OF_OPERATOR:
            return clean_line(self._operator.subject(digest), SUBJECT_MAX)
        told = [each for each in map(harmless, digest.sections) if each.kind is digest.kind]
        return clean_line(self._subject.subject(digest.kind, told), SUBJECT_MAX, keep=JOINER)

    def statement(self, digest: Digest) -> Statement:
        """Return the whole letter.

        Raises:
            OverflowError, TypeError, ValueError: the digest has a value that cannot be written.
        """
        told = digest.sections[:SECTIONS_MAX]
        sections = [harmless(each, len(told)) for each in told]
        blocks = [self._blocks.block(group) for group in groups(sections)]
        if digest.kind in OF_OPERATOR:
            blocks = [self._operator.block(digest)]
        return Statement(
            language=self._words.language,
            kind=digest.kind.value,
            tone=TONES[digest.kind],
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
