"""Reports the daemon's state to systemd: ready, stopping, alive (sd_notify(3)).

Written here, because the package of that name blocks the event loop. A message is a datagram that is sent at once or
not at all. A service manager that does not read must never delay a delivery.

Never here: when the daemon is ready or alive (runtime/app.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends states to the socket named by NOTIFY_SOCKET; does nothing if there is none.

    Each method returns True if the message was sent, so that a caller may try again.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # @ stands for the NUL of an abstract socket. Other address families (vsock) are for virtual machines.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket: socket.socket | None = None
        if path.startswith(("/", "@")):
            self._socket = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )

    def ready(self, status: str) -> bool:
        """Report that start-up or reload is complete."""
        return self._send("READY=1", _status(status))

    def status(self, status: str) -> bool:
        """Report one line of status, shown by `systemctl status`."""
        return self._send(_status(status))

    def reloading(self, monotonic_us: int) -> bool:
        """Report the start of a reload; `ready` must follow. The time is CLOCK_MONOTONIC in microseconds."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={monotonic_us}")

    def stopping(self) -> bool:
        """Report that the daemon drains and will end."""
        return self._send("STOPPING=1")

    def watchdog(self) -> bool:
        """Report that all loops are alive."""
        return self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> bool:
        if self._socket is None:
            return False
        with contextlib.suppress(OSError):
            self._socket.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
            return True
        return False


def _status(text: str) -> str:
    """Return a status as one line, since systemd would read a second line as another assignment."""
    return "STATUS=" + "".join(c if c.isprintable() else " " for c in text)


def watchdog_interval_s(environ: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """Return the watchdog timeout of systemd, seconds (send at half of it); None if there is no watchdog.

    WATCHDOG_PID names the process to watch, so that a child that inherits the environment is not concerned.
    """
    usec, meant = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (usec.isascii() and usec.isdecimal() and int(usec) > 0):
        return None
    if meant and meant != str(os.getpid() if pid is None else pid):
        return None
    return int(usec) / 1_000_000
