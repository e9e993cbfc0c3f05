"""The pieces of a letter as values: what its text and its HTML are both made of.

Never here: what a letter says, markup.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

Rows: TypeAlias = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Link:
    """A label, and where it leads."""

    label: str
    url: str


@dataclasses.dataclass(frozen=True, slots=True)
class TextPart:
    """One endpoint in a block: its site, its facts as label and value, and where it can be opened."""

    site: str
    rows: Rows
    link: Link | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """Endpoints that are in the same trouble on the same host.

    Attributes:
        tone: bad, unsure or good.
        mark: the state in a word or two.
        heading: the host.
        lead: sentences: who, what, and the consequence in numbers.
        why: sentences: the cause; none: it works again.
        advice: sentences: what to do.
        next: sentences: what will happen.
        rows: facts that are the same for all of several endpoints, as label and value.
        parts: the endpoints.
        answer: what the server answered, its own words, lines kept; empty: nothing.
        technical: lines for developers, the same in every language; empty: none.
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
