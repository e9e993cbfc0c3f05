"""URLs of logins that are not superusers."""

from __future__ import annotations

from urllib.parse import urlsplit


def as_user(url, user):
    """Return a URL for another role; the tests' servers ask no password on their socket or loopback."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{user}:pw-{user}@{host}").geturl()
