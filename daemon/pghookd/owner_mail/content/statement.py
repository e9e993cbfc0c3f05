"""A letter and its parts as values; both its plain text and its HTML are rendered from them.

Never here: the content of a letter, markup.
"""

from __future__ import annotations

import dataclasses
from typing import Final, TypeAlias

from pghookd.owner_mail.digest import Kind

TONES: Final = {
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
Rows: TypeAlias = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """A label and its URL."""

    label: str
    url: str


@dataclasses.dataclass(frozen=True, slots=True)
class TextPart:
    """One endpoint in a block: its site, its facts as label and value, and a link to it."""

    site: str
    rows: Rows
    link: Link | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """Endpoints with the same problem on the same host.

    Attributes:
        tone: bad, unsure or good.
        mark: the state in one or two words.
        heading: the host.
        lead: sentences about the affected endpoints, the problem, and the consequence in numbers.
        why: sentences about the cause; empty if the endpoints work again.
        advice: sentences about the steps that the owner can take.
        next: sentences about the further course.
        rows: facts that are the same for all endpoints, as label and value; empty for a single endpoint.
        parts: the endpoints.
        answer: the server's own response text, with its lines; empty if there is none.
        technical: lines for developers, the same in every language; empty if there are none.
    """

    tone: str
    mark: str
    heading: str
    lead: tuple[str, ...]
    why: tuple[str, ...]
    advice: tuple[str, ...]
    next: tuple[str, ...]
    rows: Rows = ()
    parts: tuple[TextPart, ...] = ()
    answer: str = ""
    technical: str = ""


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
