"""Which machine this is: a name that stays across restarts and differs between machines; and its steady clock.

Never here: what follows from it (event_log/identity.py).
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

# Returns seconds of a clock that never goes back, and counts the time while the machine is suspended. A virtual machine
# that was suspended has lost its lease meanwhile; CLOCK_MONOTONIC would not show that, and stands in only where the
# system has no such clock. A partial, since each delivery reads the clock several times and a function costs more.
steady_s: Final[Callable[[], float]] = (
    time.monotonic if _BOOTTIME is None else functools.partial(time.clock_gettime, _BOOTTIME)
)


def host_id(files: Sequence[Path] = ID_FILES) -> str:
    """Return 32 hexadecimal digits made of machine-id(5), which is not to be shown as it is, or of the host's name."""
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
