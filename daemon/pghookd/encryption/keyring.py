"""Encrypts secrets for the database and decrypts them: AES-256-GCM, each secret bound to its endpoint.

    enc:v1:<key id>:<base64 of a nonce of 12 bytes, the ciphertext, a tag of 16 bytes>

The associated data name endpoint and purpose, so that a secret copied into another row cannot be decrypted. `secret`
and `previous_secret` share a purpose: webhooks.rotate_secret moves the text from one to the other, without a key.

Never here: SQL, a message that contains a secret or a key.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Final

from pghookd.encryption.ciphertext import PREFIX, Reveal, Unopened, is_sealed, key_id_of, plain_only
from pghookd.settings.keys import parse_keys
from pghookd.settings.schema import Settings

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
NONCE_BYTES: Final = 12  # NIST SP 800-38D: random, and far fewer than 2^32 secrets under one key


def _forbid_dumps() -> None:
    """Forbid core dumps, and reading our memory by other processes of the same user; only on Linux (prctl(2))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class Vault:
    """The keys by id; the first one encrypts, all of them decrypt."""

    def __init__(self, keys: Mapping[str, bytes], random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        from cryptography.hazmat.primitives.ciphers import aead  # noqa: PLC0415 - 5 MB that few installations need

        self._ciphers = {key_id: aead.AESGCM(key) for key_id, key in keys.items()}
        self._random_bytes = random_bytes
        self.key_id = next(iter(keys))

    @classmethod
    def of(cls, settings: Settings) -> Vault | None:
        """Make a vault from `secrets.key` and forbid core dumps of this process; None if no key is set."""
        text = settings.secrets.key.get_secret_value()
        if not text.strip():
            return None
        _forbid_dumps()
        return cls(parse_keys(text))

    def seal(self, plain: str, endpoint_id: int, purpose: str) -> str:
        """Encrypt a secret with the first key; the text differs each time."""
        nonce = self._random_bytes(NONCE_BYTES)
        data = plain.encode("utf-8", "surrogatepass")
        made = self._ciphers[self.key_id].encrypt(nonce, data, _bound_to(endpoint_id, purpose))
        return f"{PREFIX}{self.key_id}:{base64.b64encode(nonce + made).decode('ascii')}"

    def reveal(self, text: str, endpoint_id: int, purpose: str) -> str:
        """Decrypt a secret; a plain-text secret is returned as it is.

        Raises:
            Unopened: no key decrypts it for this endpoint and purpose.
        """
        if not is_sealed(text):
            return text
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 - as above

        cipher = self._ciphers.get(key_id_of(text))
        if cipher is None:
            raise Unopened("secrets.key has no key of the id that the encrypted secret names")
        try:
            data = base64.b64decode(text.rpartition(":")[2], validate=True)
            opened = cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], _bound_to(endpoint_id, purpose))
        except (InvalidTag, binascii.Error, ValueError):
            raise Unopened("the encrypted secret is damaged, or another endpoint's") from None
        return opened.decode("utf-8", "surrogatepass")

    def resealed(self, text: str | None, endpoint_id: int, purpose: str) -> str | None:
        """Return a secret encrypted with the first key; None, or one encrypted with it already, as it is.

        Raises:
            Unopened: as in `reveal`.
        """
        if text is None or (is_sealed(text) and key_id_of(text) == self.key_id):
            return text
        return self.seal(self.reveal(text, endpoint_id, purpose), endpoint_id, purpose)


def revealing(vault: Vault | None) -> Reveal:
    """Return the function that decrypts secrets with a vault; without a vault, one that accepts only plain text."""
    return plain_only if vault is None else vault.reveal


def _bound_to(endpoint_id: int, purpose: str) -> bytes:
    return f"pghookd endpoint {endpoint_id} {purpose}".encode("ascii")
