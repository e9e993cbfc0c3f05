"""Whom we believe to be who they say: trust anchors, and the TLS contexts made of them.

Never here: client certificates, verification switched off.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence


def trust(ca_file: str | None = None, alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """Make a TLS context: the system's trust anchors, host names checked, TLS 1.2 or later.

    Args:
        ca_file: a PEM file with further trust anchors (setting `egress.ca_file`).
        alpn: protocols to offer; empty: none are named.

    Raises:
        OSError: the file cannot be read, or holds no certificate (`ssl.SSLError`).
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
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
