"""The client certificate and private key with which the daemon authenticates itself to a receiver."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate


@dataclasses.dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A certificate in PEM, followed by its chain, and its private key without a password, for the TLS handshake."""

    certificate: str = dataclasses.field(repr=False)
    key: str = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        if _certificate(self.certificate).public_key() != _private_key(self.key).public_key():
            raise ValueError("auth.client_certificate.key is not the key of the (first) certificate")

    @property
    def ends_at_s(self) -> float:
        """Unix seconds at which the certificate expires."""
        return _certificate(self.certificate).not_valid_after_utc.timestamp()


def _certificate(pem: str) -> Certificate:
    """Parse the first certificate of a PEM text."""
    from cryptography import x509  # noqa: PLC0415 - 5 MB that few installations need

    try:
        return x509.load_pem_x509_certificates(pem.encode())[0]
    except Exception:  # noqa: BLE001 - any error means that it is not a certificate; its message may quote the text
        raise ValueError("auth.client_certificate.certificate is no certificate in PEM") from None


def _private_key(pem: str) -> PrivateKeyTypes:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - as above

    try:
        # Checking the primes takes a quarter of a second; __post_init__ compares the key with the certificate anyway.
        return serialization.load_pem_private_key(
            pem.encode(), password=None, unsafe_skip_rsa_key_validation=True
        )
    except Exception:  # noqa: BLE001 - as above, for a key
        raise ValueError("auth.client_certificate.key is no private key in PEM, or has a password") from None
