"""Contexts of TLS that show a client certificate: a bounded number of them, made away from the loop.

Making one reads the trust anchors (20 ms, most of a megabyte), which is why it happens in a thread, one at a time, only
where a new connection needs it, and why no more than a few are kept. OpenSSL takes a key from nothing but a file: this
one has no name in any folder, and is gone as soon as it is read.

Never here: what is verified of the other side (egress/sender.py says that), connections, and a key in an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from pghookd.model.client_certificate import ClientCertificate

CONTEXTS_MAX: Final = 64


class Unusable(ssl.SSLError):
    """OpenSSL does not take a certificate that looked well: a key too short for it, a signature too old."""


def identity_of(certificate: ClientCertificate) -> int:
    """Return a number that no other certificate, chain or key has (SHA-256)."""
    text = f"{certificate.certificate}\0{certificate.key}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest())


class ClientContexts:
    """Contexts by certificate, the last used ones. Use it within one loop.

    Args:
        make: makes a context that verifies the other side; called in a thread.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._make = make
        self._kept: OrderedDict[ClientCertificate, ssl.SSLContext] = OrderedDict()
        self._making = asyncio.Lock()

    async def context(self, certificate: ClientCertificate) -> ssl.SSLContext:
        """Return the context for a certificate. The caller bounds the wait.

        Raises:
            Unusable: as it says.
        """
        async with self._making:
            found = self._kept.get(certificate)
            if found is None:
                found = self._kept[certificate] = await asyncio.to_thread(self._made, certificate)
            self._kept.move_to_end(certificate)
            if len(self._kept) > CONTEXTS_MAX:
                self._kept.popitem(last=False)
            return found

    def _made(self, certificate: ClientCertificate) -> ssl.SSLContext:
        context = self._make()
        with os.fdopen(os.memfd_create("client-certificate", os.MFD_CLOEXEC), "wb") as file:
            file.write(f"{certificate.certificate}\n{certificate.key}\n".encode())
            file.flush()
            try:
                # A password is given lest OpenSSL asks a terminal for one; keys that have one came not so far.
                context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")
            except ssl.SSLError:
                raise Unusable("OpenSSL does not take the client certificate") from None
        return context
