"""Parses encryption keys, as written in settings."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

KEY_BYTES: Final = 32  # AES-256
_KEY_ID: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def parse_keys(text: str) -> dict[str, bytes]:
    """Parse the keys of `secrets.key`, by id; the first one encrypts.

    Args:
        text: one or more `id:key`, separated by commas or white space; a key is base64 of 32 bytes. An id is 1 to 32
            of a-z, 0-9, - and _; if omitted, it is the first 8 hexadecimal digits of the key's SHA-256.

    Raises:
        ValueError: the text is invalid; the message quotes no part of it.
    """
    found: dict[str, bytes] = {}
    for number, part in enumerate(re.split(r"[\s,]+", text.strip()), 1):
        name, colon, encoded = part.rpartition(":")
        key = _key(encoded, number)
        key_id = name if colon else hashlib.sha256(key).hexdigest()[:8]
        if not _KEY_ID.fullmatch(key_id):
            raise ValueError(f"has a key, number {number}, whose id is not 1 to 32 of a-z, 0-9, - and _")
        if key_id in found:
            raise ValueError(f"has a key, number {number}, with the id of another")
        found[key_id] = key
    return found


def _key(encoded: str, number: int) -> bytes:
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(
            f"has a key, number {number}, that is not base64 of {KEY_BYTES} bytes:"
            " make one with: openssl rand -base64 32"
        )
    return key
