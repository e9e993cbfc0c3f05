"""Validates the names of event types."""

from __future__ import annotations

import functools
import re
from typing import Final

TYPE_LENGTH_MAX: Final = 128  # characters
_TYPE: Final = re.compile(r"[a-zA-Z0-9_]+(?:\.[a-zA-Z0-9_]+)*")


@functools.lru_cache(maxsize=1024)
def valid_type(event_type: str) -> bool:
    """Return True if valid: at most 128 letters, digits, `_`, and single dots between them (Standard Webhooks)."""
    return len(event_type) <= TYPE_LENGTH_MAX and _TYPE.fullmatch(event_type) is not None
