"""Identifies the host of a URL: deliveries to one host share its slots."""

from __future__ import annotations

import functools
import re
from typing import Final
from urllib.parse import urlsplit

ORIGINS_MAX: Final = 4096  # cache entries, about 0.5 KB each
_AUTHORITY: Final = re.compile(r"//([^/?#]*)")


def host_and_port(url: str) -> str:
    """Return `host:port` of a URL, lower case; the URL itself if it cannot be parsed. For counting requests only."""
    scheme, colon, rest = url.partition(":")
    authority = _AUTHORITY.match(rest)
    return url if authority is None or not colon else _counted_as(scheme, authority[1]) or url


@functools.lru_cache(maxsize=ORIGINS_MAX)
def _counted_as(scheme: str, authority: str) -> str:
    try:
        parts = urlsplit(f"{scheme}://{authority}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return ""
    return f"{parts.hostname}:{port}" if parts.hostname else ""
