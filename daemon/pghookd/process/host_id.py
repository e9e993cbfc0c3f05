"""The id of this machine, which survives restarts and differs between machines, and its steady clock.

Never here: what the daemon concludes from the id (event_log/identity.py).
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

ID_FILES: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_APPLICATION: Final = b"pghookd"
_ID_BYTES: Final = 16
_BOOTTIME: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)

# Returns the seconds of a clock that never goes back and also counts while the machine is suspended. A suspended
# virtual machine loses its lease meanwhile; CLOCK_MONOTONIC would not show that, and is used only if the system has no
# CLOCK_BOOTTIME. A partial, since each delivery reads the clock several times and a function would cost more.
steady_s: Final[Callable[[], float]] = (
    time.monotonic if _BOOTTIME is None else functools.partial(time.clock_gettime, _BOOTTIME)
)


def host_id(files: Sequence[Path] = ID_FILES) -> str:
    """Return 32 hexadecimal digits: a hash of machine-id(5), which must not be exposed itself, or of the host name."""
    for file in files:
        try:
            found = bytes.fromhex(file.read_text("ascii").strip())
        except (OSError, ValueError):
            continue
        if len(found) == _ID_BYTES and any(found):
            return _made_of(found)
    return _made_of(socket.gethostname().encode("utf-8", "surrogateescape"))


def _made_of(secret: bytes) -> str:
    return hmac.new(secret, _APPLICATION, hashlib.sha256).hexdigest()[: 2 * _ID_BYTES]
