"""The parts of a letter as values; both its plain text and its HTML are rendered from them.

Never here: the content of a letter, markup.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

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
