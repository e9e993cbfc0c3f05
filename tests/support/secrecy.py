"""Searches printed or stored text for secrets, in every form in which one may show."""

from __future__ import annotations

import base64


def forms(secret):
    """Return a secret as it may show: itself, the part behind its prefix, its bytes as text, hex and Python."""
    encoded = secret.partition("_")[2] if secret.startswith("wh") else ""
    raw = base64.b64decode(encoded) if encoded else secret.encode()
    shown = {
        secret,
        encoded,
        raw.decode("latin-1"),
        raw.hex(),
        repr(raw)[2:-1],
        base64.b64encode(raw).decode(),
    }
    return {text for text in shown if text}


def seen_in(text, secrets):
    """Return those that show."""
    return [secret for secret in secrets if any(form in text for form in forms(secret))]
