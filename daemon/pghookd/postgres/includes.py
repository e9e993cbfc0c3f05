"""Includes fragments in SQL texts: a line `--include name` stands for the text of `sql/fragments/name.sql`.

A fragment is an expression, or another part of a statement, that several queries, functions or views share. It is
included without its head of comments, and indented as the line is.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Final

_MARK: Final = re.compile(r"^([ ]*)--include (\w+)$", re.MULTILINE)
_HEAD: Final = re.compile(r"(?:--[^\n]*\n)*")


def expand(text: str, fragments: Mapping[str, str]) -> str:
    """Return a text with its fragments, which may include others.

    Args:
        text: of a query, function or view.
        fragments: texts of the fragments by name.

    Raises:
        ValueError: a fragment does not exist.
    """

    def fragment(mark: re.Match[str]) -> str:
        indentation, name = mark.groups()
        if name not in fragments:
            raise ValueError(f"there is no file sql/fragments/{name}.sql")
        body = _HEAD.sub("", fragments[name], count=1).rstrip()
        return textwrap.indent(expand(body, fragments), indentation)

    return _MARK.sub(fragment, text)
