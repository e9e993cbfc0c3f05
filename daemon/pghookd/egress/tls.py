"""TLS contexts and their trust anchors, with the same rules on every Python.

From 3.13 on, Python refuses certificates that violate the form of RFC 5280 (`VERIFY_X509_STRICT`) and accepts an
intermediate certificate as an anchor (`VERIFY_X509_PARTIAL_CHAIN`). Older versions do neither. A new Python must not
end deliveries to receivers with an old private CA, so both flags are set here. Still verified are signatures, dates,
host names, and that each issuer is a CA (basicConstraints `CA:TRUE`, and key usage `keyCertSign` if it has one).

Never here: client certificates, verification switched off.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence


def trust(ca_file: str | None = None, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """Return a TLS context with the system's trust anchors, host name checks and TLS 1.2 or later.

    Args:
        ca_file: a PEM file with further trust anchors, roots or intermediates (setting `egress.ca_file`).
        alpn: protocols to offer; if empty, ALPN is not used.

    Raises:
        OSError: the file cannot be read, or contains no certificate (`ssl.SSLError`).
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def anchors(ca_file: str | None = None) -> bool:
    """Return True if there is any trust anchor, in the system or in the file.

    Raises:
        OSError: as for `trust`.
    """
    if trust(ca_file).cert_store_stats()["x509_ca"]:
        return True
    folder = ssl.get_default_verify_paths().capath  # OpenSSL reads its files on demand
    if folder is None:
        return False
    with os.scandir(folder) as found:
        return any(found)
