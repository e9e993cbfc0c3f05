"""A real SMTP server for tests, in the test's own loop: keeps every mail, and misbehaves at each stage as set.

`box.script["RCPT"] = ["450 later"]` answers the next RCPT TO so, and further ones as usual; a single text instead of
a list answers all of them. `DROP` cuts the connection instead of an answer, `HANG` never answers.
"""

from __future__ import annotations

import asyncio
import dataclasses
import email
import email.policy
import ssl
import warnings
from collections.abc import Callable

from aiosmtpd.smtp import SMTP, AuthResult

DROP = "drop"
HANG = "hang"
STAGES = ("connect", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "content")


@dataclasses.dataclass(frozen=True)
class Mail:
    """One mail as it came over the wire.

    Attributes:
        connection: 1 for the server's first.
        secure: it came over TLS.
        accepted: True if the server answered 250.
    """

    sender: str
    recipients: list[str]
    content: bytes
    connection: int
    secure: bool
    accepted: bool

    @property
    def message(self):
        return email.message_from_bytes(self.content, policy=email.policy.default)

    @property
    def message_id(self):
        return self.message["Message-ID"]

    @property
    def subject(self):
        return self.message["Subject"]


class Mailbox:
    """An SMTP server on a free port of 127.0.0.1: `async with Mailbox() as box`.

    Args:
        starttls: offered with this context.
        tls: spoken from the first byte on, with this context.
        login: (name, password) without which no mail is taken.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        starttls: ssl.SSLContext | None = None,
        tls: ssl.SSLContext | None = None,
        login: tuple[str, str] | None = None,
    ) -> None:
        self.port = port
        self.script: dict[str, str | list[str]] = {}
        self.mails: list[Mail] = []
        self.commands: list[str] = []
        self.connections = 0
        self.kept: Callable[[Mail], None] = lambda _mail: None
        self._starttls = starttls
        self._tls = tls
        self._login = login
        self._server: asyncio.Server | None = None
        self._open: set[_Line] = set()
        self._news = asyncio.Event()

    async def __aenter__(self):
        self._server = await asyncio.get_running_loop().create_server(
            self._line, "127.0.0.1", self.port, ssl=self._tls, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for line in list(self._open):
            line.abort()

    @property
    def accepted(self):
        return [mail for mail in self.mails if mail.accepted]

    async def wait_for(self, count, seconds=10.0):
        """Wait until so many mails have come; fail after `seconds`."""
        async with asyncio.timeout(seconds):
            while len(self.mails) < count:
                self._news.clear()
                await self._news.wait()
        return self.mails

    def answer(self, stage):
        """Return what the script has for a stage; None: the usual."""
        planned = self.script.get(stage)
        if isinstance(planned, list):
            return planned.pop(0) if planned else None
        return planned

    def keep(self, mail):
        self.mails.append(mail)
        self.kept(mail)
        self._news.set()

    def authenticate(self, _server, _session, _envelope, _mechanism, data):
        known = (data.login.decode(), data.password.decode()) == self._login
        return AuthResult(success=known, handled=known)  # not handled: it says 535 itself

    def _line(self):
        more = {} if self._starttls is None else {"tls_context": self._starttls}
        if self._login is not None:
            more |= {"authenticator": self.authenticate, "auth_required": True, "auth_require_tls": False}
        with warnings.catch_warnings(action="ignore"):  # a login in clear, on loopback
            line = _Line(self, _Handler(self), hostname="mailbox.test", enable_SMTPUTF8=True, **more)
        line.secured = self._tls is not None
        return line

    def made(self, line):
        if line not in self._open:  # STARTTLS makes it once more
            self.connections += 1
            self._open.add(line)

    def lost(self, line):
        self._open.discard(line)


class _Handler:
    def __init__(self, box):
        self._box = box

    async def handle_DATA(self, server, _session, envelope):  # noqa: N802 - aiosmtpd's name for it
        answer = self._box.answer("content") or f"250 OK queued as {len(self._box.mails) + 1}"
        self._box.keep(
            Mail(
                envelope.mail_from,
                list(envelope.rcpt_tos),
                envelope.original_content,
                server.number,
                server.secured or server._tls_protocol is not None,
                answer.startswith("250"),
            )
        )
        if answer == HANG:
            await asyncio.Event().wait()
        if answer == DROP:
            server.abort()
        return answer


class _Line(SMTP):
    """One connection; each command may be answered by the script instead."""

    def __init__(self, box, handler, **options):
        self.box = box
        self.number = 0
        self.secured = False
        super().__init__(handler, **options)

    def connection_made(self, transport):
        self.box.made(self)
        self.number = self.number or self.box.connections
        super().connection_made(transport)

    def connection_lost(self, error):
        self.box.lost(self)
        super().connection_lost(error)

    def abort(self):
        if self.transport is not None:
            self.transport.abort()

    async def _handle_client(self):
        answer = self.box.answer("connect")
        if answer is None:
            await super()._handle_client()
        elif answer == HANG:
            await asyncio.Event().wait()
        elif answer == DROP:
            self.abort()
        else:
            await self.push(answer)
            self.transport.close()

    async def _scripted(self, stage, usual, arg):
        self.box.commands.append(f"{stage} {arg or ''}".strip())
        answer = self.box.answer(stage)
        if answer is None:
            await usual(arg)
        elif answer == HANG:
            await asyncio.Event().wait()
        elif answer == DROP:
            self.abort()
        else:
            await self.push(answer)

    async def smtp_EHLO(self, arg):  # noqa: N802 - as all here: aiosmtpd finds handlers by the command's name
        await self._scripted("EHLO", super().smtp_EHLO, arg)

    async def smtp_STARTTLS(self, arg):  # noqa: N802 - as above
        await self._scripted("STARTTLS", super().smtp_STARTTLS, arg)

    async def smtp_AUTH(self, arg):  # noqa: N802 - as above
        await self._scripted("AUTH", super().smtp_AUTH, arg)

    async def smtp_MAIL(self, arg):  # noqa: N802 - as above
        await self._scripted("MAIL", super().smtp_MAIL, arg)

    async def smtp_RCPT(self, arg):  # noqa: N802 - as above
        await self._scripted("RCPT", super().smtp_RCPT, arg)

    async def smtp_DATA(self, arg):  # noqa: N802 - as above
        await self._scripted("DATA", super().smtp_DATA, arg)
