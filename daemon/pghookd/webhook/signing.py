"""Request signatures over `id.timestamp.body`, exactly as Standard Webhooks 1.0.0 defines them.

`v1` is HMAC-SHA256 with a shared secret. `v1a` is Ed25519 with a private key (`whsk_`), of which receivers have only
the public key (`whpk_`). During a rotation both the new and the previous secret sign, the newest first.

Never here: where a secret comes from, or any text that contains one, because errors from here may be logged.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Sign: TypeAlias = Callable[[str, int, bytes], bytes]  # (webhook-id, Unix seconds, body) -> the header's value

KEY_BYTES_MIN: Final = 24  # Standard Webhooks: 24 to 64 random bytes
KEY_BYTES_MAX: Final = 64
_BLOCK_BYTES: Final = 64  # block size of SHA-256
_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))
_PREFIX: Final = "whsec_"
PRIVATE_PREFIX: Final = "whsk_"
PUBLIC_PREFIX: Final = "whpk_"
_SEED_BYTES: Final = 32  # an Ed25519 private key (RFC 8032, 5.1.5); 64 with its public key appended
_UNUSABLE_PREFIXES: Final = (PRIVATE_PREFIX, "enc:")  # other kinds of secret, whose text is not an HMAC key


def key_of(secret: str) -> bytes:
    """Return the HMAC key of a secret.

    `whsec_` + base64 follows Standard Webhooks. Any other text is a legacy secret, whose UTF-8 bytes are the key.

    Raises:
        ValueError: the secret cannot be used for an HMAC; the message contains none of it.
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
        key: the result of `key_of()`.
        webhook_id: the value of `webhook-id`.
        timestamp_s: the value of `webhook-timestamp`, Unix seconds of this attempt.
        body: exactly the bytes that are sent.
    """
    begun_inner, begun_outer = _begun(key)
    inner, outer = begun_inner.copy(), begun_outer.copy()
    inner.update(b"%s.%d.%s" % (webhook_id.encode("ascii"), timestamp_s, body))
    outer.update(inner.digest())
    return b"v1," + binascii.b2a_base64(outer.digest(), newline=False)


def signer_of(secret: str) -> Sign:
    """Return a function that signs with a secret: by Ed25519 for `whsk_`, by HMAC for all others.

    Raises:
        ValueError: the secret cannot be used; the message contains none of it.
    """
    if not secret.startswith(PRIVATE_PREFIX):
        return functools.partial(sign, key_of(secret))
    private = _private_key(secret)

    def sign_with_ed25519(webhook_id: str, timestamp_s: int, body: bytes) -> bytes:
        signature = private.sign(b"%s.%d.%s" % (webhook_id.encode("ascii"), timestamp_s, body))
        return b"v1a," + binascii.b2a_base64(signature, newline=False)

    return sign_with_ed25519


def overlapping(newest: Sign, previous: Sign, until_s: float) -> Sign:
    """Return a function that signs with both, the newest first; from `until_s` (Unix seconds) only with the newest."""

    def sign_with_both(webhook_id: str, timestamp_s: int, body: bytes) -> bytes:
        signature = newest(webhook_id, timestamp_s, body)
        if timestamp_s >= until_s:
            return signature
        return signature + b" " + previous(webhook_id, timestamp_s, body)

    return sign_with_both


def public_key_of(secret: str) -> str:
    """Return the public key of a `whsk_` secret, `whpk_` + base64, with which receivers verify signatures.

    Raises:
        ValueError: the secret is of another kind or not usable; the message contains none of it.
    """
    if not secret.startswith(PRIVATE_PREFIX):
        raise ValueError("the secret is not of the kind that has a public key")
    return PUBLIC_PREFIX + base64.b64encode(_private_key(secret).public_key().public_bytes_raw()).decode()


def _private_key(secret: str) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - 5 MB that few installations need

    try:
        raw = base64.b64decode(secret[len(PRIVATE_PREFIX) :], validate=True)
    except ValueError:
        raise ValueError("the secret is not base64 after whsk_") from None
    if len(raw) not in {_SEED_BYTES, 2 * _SEED_BYTES}:
        raise ValueError("the secret is not 32 or 64 bytes long after whsk_")
    private = ed25519.Ed25519PrivateKey.from_private_bytes(raw[:_SEED_BYTES])
    if raw[_SEED_BYTES:] not in {b"", private.public_key().public_bytes_raw()}:
        raise ValueError("the secret is two keys that do not belong together")
    return private


@functools.lru_cache(maxsize=10_000)
def _begun(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """Return the two hashes of HMAC (RFC 2104) with the key already hashed; this saves a third of each signature."""
    block = (hashlib.sha256(key).digest() if len(key) > _BLOCK_BYTES else key).ljust(_BLOCK_BYTES, b"\0")
    return hashlib.sha256(block.translate(_INNER)), hashlib.sha256(block.translate(_OUTER))


def _decoded(text: str) -> bytes:
    try:
        key = base64.b64decode(text, validate=True)
    except ValueError:  # for binascii.Error and for non-ASCII text
        raise ValueError("the secret is not base64 after whsec_") from None
    if not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise ValueError(f"the secret is not {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes long after whsec_")
    return key
