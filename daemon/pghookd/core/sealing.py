"""The texts of secrets at rest: `enc:v1:<key id>:<base64>`, and the keys of the setting `secrets.key`.

Never here: a cipher, randomness (edge/vault.py), and any text that holds a key or a secret: errors from here are told.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from typing import Final, TypeAlias

Reveal: TypeAlias = Callable[
    [str, int, str], str
]  # text of a column, endpoint_id, purpose: the secret in plain text

PREFIX: Final = "enc:v1:"
KEY_BYTES: Final = 32  # AES-256
SECRET: Final = "secret"  # noqa: S105 - the purpose of `secret` and `previous_secret`: the one becomes the other
AUTH: Final = "auth"  # the purpose of the column of that name
_KEY_ID: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


class Unopened(Exception):  # noqa: N818 - it is a state of the world, not a mistake
    """An encrypted secret that none of our keys opens. Not a ValueError: the row is not invalid."""


def is_sealed(text: str) -> bool:
    """Whether a secret is encrypted."""
    return text.startswith(PREFIX)


def key_id_of(sealed: str) -> str:
    """Return the id of the key that an encrypted secret names."""
    return sealed.removeprefix(PREFIX).partition(":")[0]


def kind_of(secret: str) -> str:
    """Return what a secret in plain text is, as `endpoints.secret_kind` says it."""
    if secret.startswith("whsec_"):
        return "standard"
    return "ed25519" if secret.startswith("whsk_") else "legacy"


def plain_only(text: str, _endpoint_id: int, _purpose: str) -> str:
    """Reveal nothing: for those who have no key.

    Raises:
        Unopened: it is encrypted.
    """
    if is_sealed(text):
        raise Unopened("the secret is encrypted, and secrets.key is not set")
    return text


def parse_keys(text: str) -> dict[str, bytes]:
    """Read the keys of `secrets.key`, the first of which encrypts.

    Args:
        text: `id:key` once or more, separated by commas or white space; a key is base64 of 32 bytes. An id is
            lower-case letters, digits, - and _; without one it is the first 8 hexadecimal digits of the key's SHA-256.

    Raises:
        ValueError: it is no such text; the message quotes nothing of it.
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
