"""Trust anchors, and the TLS contexts made of them: the same rules on every Python.

From 3.13 on Python refuses certificates that break RFC 5280 in form (`VERIFY_X509_STRICT`) and takes an intermediate
certificate for an anchor (`VERIFY_X509_PARTIAL_CHAIN`); before it does neither. A new Python must not end deliveries
to receivers behind an old private authority, so both are set here. What is verified stays: signatures, dates, host
names, and that each issuer is an authority (basicConstraints `CA:TRUE`, and key usage `keyCertSign` if it names any).

Never here: client certificates, verification switched off.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence


def trust(ca_file: str | None = None, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """Make a TLS context: the system's trust anchors, host names checked, TLS 1.2 or later.

    Args:
        ca_file: a PEM file with further trust anchors, roots or intermediates (setting `egress.ca_file`).
        alpn: protocols to offer; empty: none are named.

    Raises:
        OSError: the file cannot be read, or holds no certificate (`ssl.SSLError`).
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
    """Whether there is any trust anchor, of the system or in the file.

    Raises:
        OSError: as `trust`.
    """
    if trust(ca_file).cert_store_stats()["x509_ca"]:
        return True
    folder = ssl.get_default_verify_paths().capath  # whose files are read when they are needed
    if folder is None:
        return False
    with os.scandir(folder) as found:
        return any(found)
