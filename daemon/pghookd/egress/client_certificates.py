"""TLS contexts that present a client certificate: a bounded cache of them, built outside the event loop.

Building one reads the trust anchors (20 ms, most of a megabyte). It therefore happens in a thread, one at a time, only
for a new connection, and only a few contexts are cached. OpenSSL reads a key only from a file. That file exists only
in memory, has no name in any directory, and is gone after it has been read.

Never here: verification of the peer (egress/sender.py sets it), connections, and a key in an error.
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
    """OpenSSL rejects a well-formed certificate, for a key that is too short or an outdated signature algorithm."""


def identity_of(certificate: ClientCertificate) -> int:
    """Return a number unique to this certificate, chain and key (SHA-256)."""
    text = f"{certificate.certificate}\0{certificate.key}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest())


class ClientContexts:
    """The most recently used contexts, by certificate. Use it within one event loop.

    Args:
        make: builds a context that verifies the peer; called in a thread.
    """

    def __init__(self, make: Callable[[], ssl.SSLContext]) -> None:
        self._make = make
        self._kept: OrderedDict[ClientCertificate, ssl.SSLContext] = OrderedDict()
        self._making = asyncio.Lock()

    async def context(self, certificate: ClientCertificate) -> ssl.SSLContext:
        """Return the context for a certificate. The caller limits the wait.

        Raises:
            Unusable: OpenSSL rejects the certificate.
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
                # An empty password keeps OpenSSL from prompting; encrypted keys were rejected earlier.
                context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")
            except ssl.SSLError:
                raise Unusable("OpenSSL does not take the client certificate") from None
        return context
