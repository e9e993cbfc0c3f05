"""Wrong values in error messages: short, harmless to a terminal, and named by kind where the value may be secret.

Never here: whether a value may be shown. The caller decides.
"""

from __future__ import annotations

from typing import Final

_QUOTED_MAX: Final = 40  # characters of a wrong value


def quoted(value: object) -> str:
    """Return a wrong value in quotes, escaped, and at most 40 characters of it."""
    text = str(value)
    return repr(text if len(text) <= _QUOTED_MAX else f"{text[: _QUOTED_MAX - 3]}...")


def json_kind(value: object) -> str:
    """Return the kind of a parsed JSON value, not the value: `an object`, `an array`, `a string`, `a number`, ..."""
    match value:
        case dict():
            return "an object" if value else "an empty object"
        case list():
            return "an array"
        case str():
            return "a string"
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case _:
            return "a number"
