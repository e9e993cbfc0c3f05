"""The texts of secrets at rest: `enc:v1:<key id>:<base64>`, and the keys of the setting `secrets.key`.

Never here: a cipher, randomness (encryption/keyring.py), any text that holds a key or a secret: errors are logged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

Reveal: TypeAlias = Callable[
    [str, int, str], str
]  # text of a column, endpoint_id, purpose: the secret in plain text

PREFIX: Final = "enc:v1:"
SECRET: Final = "secret"  # noqa: S105 - the purpose of `secret` and `previous_secret`: the one becomes the other
AUTH: Final = "auth"  # the purpose of the column of that name


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
