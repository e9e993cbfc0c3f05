"""The text format of secrets at rest: `enc:v1:<key id>:<base64>`, with a key id of the setting `secrets.key`.

Never here: a cipher, randomness (encryption/keyring.py), a message with a key or a secret, because errors are logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

Reveal: TypeAlias = Callable[[str, int, str], str]  # column text, endpoint_id, purpose -> plain text

PREFIX: Final = "enc:v1:"
SECRET: Final = "secret"  # noqa: S105 - purpose of `secret` and `previous_secret`: the first becomes the second
AUTH: Final = "auth"  # purpose of the column `auth`


class Unopened(Exception):  # noqa: N818 - a state of the world, not a programming error
    """No configured key decrypts a secret. Not a ValueError, because the row is not invalid."""


def is_sealed(text: str) -> bool:
    """Return True if a secret is encrypted."""
    return text.startswith(PREFIX)


def key_id_of(sealed: str) -> str:
    """Return the id of the key that an encrypted secret names."""
    return sealed.removeprefix(PREFIX).partition(":")[0]


def kind_of(secret: str) -> str:
    """Return the kind of a plain-text secret, as stored in `endpoints.secret_kind`."""
    if secret.startswith("whsec_"):
        return "standard"
    return "ed25519" if secret.startswith("whsk_") else "legacy"


def plain_only(text: str, _endpoint_id: int, _purpose: str) -> str:
    """Return a plain-text secret as it is; used if no key is configured.

    Raises:
        Unopened: the secret is encrypted.
    """
    if is_sealed(text):
        raise Unopened("the secret is encrypted, and secrets.key is not set")
    return text
