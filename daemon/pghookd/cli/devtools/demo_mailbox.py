"""The demo's mail server: accepts the mails to owners on this machine, and saves each as files to open.

It is a real SMTP server, because the demo shows exactly what production does. It forwards no mail.

Never here: making or sending a mail.
"""

from __future__ import annotations

import asyncio
import email
import email.policy
import time
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from aiosmtpd.smtp import SMTP, Envelope

from pghookd.cli.devtools.demo_view import ShownMail

_ENDINGS: Final = (".eml", ".html")


class Mailbox:
    """An SMTP server on a free port of 127.0.0.1; an async context manager.

    Args:
        folder: folder for the mails; those of the previous run are deleted.
        kept: called with every mail.
    """

    def __init__(self, folder: Path, kept: Callable[[ShownMail], None]) -> None:
        self._folder = folder
        self._kept = kept
        self._count = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        for old in self._folder.glob("[0-9][0-9][0-9]-*"):
            if old.suffix in _ENDINGS:
                old.unlink()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: SMTP(self, hostname="demo.example"), "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()

    @property
    def port(self) -> int:
        """The port on which it listens."""
        if self._server is None:
            raise RuntimeError("not listening yet")
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def handle_DATA(self, _server: SMTP, _session: object, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's name
        """Save a mail; return the SMTP reply."""
        content = envelope.original_content or b""
        message: Any = email.message_from_bytes(content, policy=email.policy.default)
        self._count += 1
        kind = str(message.get("X-Pghookd-Kind", ""))
        stem = f"{self._count:03}-{kind if kind.isascii() and kind.isidentifier() else 'mail'}"
        file = self._write(stem, content, message)
        recipient = ", ".join(envelope.rcpt_tos)
        self._kept(
            ShownMail(
                time.strftime("%H:%M:%S"),
                recipient,
                str(message["Subject"]).strip(),
                f"{self._folder.name}/{file}",
            )
        )
        return f"250 OK kept as {self._count}"

    def _write(self, stem: str, content: bytes, message: EmailMessage) -> str:
        """Write the mail, and its HTML if it has one; return the name of the HTML file, or of the mail's file."""
        (self._folder / f"{stem}.eml").write_bytes(content)
        page = message.get_body(("html",))
        if page is None:
            return f"{stem}.eml"
        (self._folder / f"{stem}.html").write_text(page.get_content(), encoding="utf-8")
        return f"{stem}.html"
