"""Signatures of requests, exactly as Standard Webhooks 1.0.0 has them: HMAC-SHA256 over `id.timestamp.body`.

Never here: where a secret comes from, and any text that holds one: errors from here may be logged.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
from typing import Final

KEY_BYTES_MIN: Final = 24  # Standard Webhooks: 24 to 64 random bytes
KEY_BYTES_MAX: Final = 64
_BLOCK_BYTES: Final = 64  # of SHA-256
_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))
_PREFIX: Final = "whsec_"
_UNUSABLE_PREFIXES: Final = ("whsk_", "enc:")  # other kinds of secret, whose text is no HMAC key


def key_of(secret: str) -> bytes:
    """Return the HMAC key of a secret.

    `whsec_` + base64 follows Standard Webhooks; any other text is a legacy one: its UTF-8 bytes are the key.

    Raises:
        ValueError: the secret cannot be used for an HMAC; the message holds nothing of it.
    """
    if secret.startswith(_PREFIX):
        return _decoded(secret[len(_PREFIX) :])
    if secret.startswith(_UNUSABLE_PREFIXES):
        raise ValueError("the secret is of a kind that cannot sign here")
    if not secret:
        raise ValueError("the secret is empty")
    return secret.encode("utf-8", "surrogatepass")


def sign(key: bytes, webhook_id: str, timestamp_s: int, body: bytes) -> bytes:
    """Return the value of `webhook-signature`: `v1,` + base64.

    Args:
        key: as `key_of()` returns it.
        webhook_id: the header's value.
        timestamp_s: the header's value, Unix seconds of this attempt.
        body: the very bytes that are sent.
    """
    begun_inner, begun_outer = _begun(key)
    inner, outer = begun_inner.copy(), begun_outer.copy()
    inner.update(b"%s.%d.%s" % (webhook_id.encode("ascii"), timestamp_s, body))
    outer.update(inner.digest())
    return b"v1," + binascii.b2a_base64(outer.digest(), newline=False)


@functools.lru_cache(maxsize=10_000)
def _begun(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """Return the two hashes of HMAC (RFC 2104) with the key already in: a third less work for each signature."""
    block = (hashlib.sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
    return hashlib.sha256(block.translate(_INNER)), hashlib.sha256(block.translate(_OUTER))


def _decoded(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error and non-ASCII text alike
        raise ValueError("the secret is not base64 after whsec_") from None
    if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise ValueError(f"the secret is not {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes long after whsec_")
    return key
