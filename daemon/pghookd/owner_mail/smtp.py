"""Sends one mail to the mail server and returns the outcome: sent, deferred or rejected.

The only importer of aiosmtplib. A server's behaviour is returned as a value and never raised. A mail that the server
may have accepted without confirming it is marked as doubtful: it must not be replaced by another one.

Never here: a mail's content (message.py), the time of a retry (mailer.py), a password in a text.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import email.policy
import enum
import re
import ssl
from collections.abc import Awaitable, Callable
from email.message import EmailMessage
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import aiosmtplib

from pghookd.owner_mail.digest import clean_line
from pghookd.settings.schema import SmtpSettings

WITHIN_S: Final = 60.0  # for one mail, including a new connection
MAILS_MAX: Final = 100  # on one connection
IDLE_MAX_S: Final = 30.0
QUIT_WITHIN_S: Final = 2.0
TEXT_MAX: Final = 300  # characters of a server's text

# The same encoding whatever the server offers, so that a mail sent again is the same byte for byte.
_SEVEN_BITS: Final = email.policy.SMTP.clone(cte_type="7bit")

_FOREIGN: Final = (
    aiosmtplib.SMTPException,
    OSError,
    EOFError,
    ValueError,
)  # ValueError if a response cannot be parsed
_GONE: Final = (aiosmtplib.SMTPServerDisconnected, OSError, EOFError)

_CLOSING: Final = 421  # RFC 5321 section 3.8: a possible reply to any command
_OUR_FAULT: Final = frozenset(
    {500, 501, 502, 503, 504, 521, 530, 534, 535, 538, 554}
)  # not about a recipient
_LOGIN_WANTED: Final = frozenset({530, 534, 535, 538})  # RFC 4954 section 6
_ENHANCED: Final = re.compile(r"\d\.(?P<subject>\d{1,3})\.\d{1,3}\b")  # RFC 3463
_OF_RECIPIENT: Final = frozenset({"1", "2"})  # RFC 3463 section 3.2, 3.3: addressing, mailbox


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """The server accepted the mail; `answer` is its text, often with the server's queue id."""

    answer: str


@dataclasses.dataclass(frozen=True, slots=True)
class Deferred:
    """The mail was not sent now; try again.

    Attributes:
        error: the reason in one line.
        server: the server is the problem, so no other mail would succeed either.
        doubt: the connection ended while the content was sent, so the server may have accepted the mail.
    """

    error: str
    server: bool = False
    doubt: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Rejected:
    """The mail is refused permanently.

    Attributes:
        error: the reason in one line.
        recipient: the server does not accept mail for this address.
    """

    error: str
    recipient: bool = False


Outcome: TypeAlias = Sent | Deferred | Rejected


class _Stage(enum.Enum):
    """The stage of a mail; error texts show the value."""

    CONNECTION = "connection"
    LOGIN = "login"
    SENDER = "MAIL FROM"
    RECIPIENT = "RCPT TO"
    CONTENT = "DATA"


@dataclasses.dataclass(frozen=True, slots=True)
class _Mail:
    sender: str
    recipient: str
    content: bytes
    utf8: bool  # an address needs RFC 6531


async def _nothing() -> None:
    pass


class SmtpClient:
    """Sends mails one after the other over one connection; an async context manager.

    Args:
        settings: the server.
        context: verifies certificates; made by `trust`.
        monotonic: seconds.
        within_s: seconds for one mail, including a new connection.
    """

    def __init__(
        self,
        settings: SmtpSettings,
        *,
        context: ssl.SSLContext,
        monotonic: Callable[[], float],
        within_s: float = WITHIN_S,
    ) -> None:
        self._settings = settings
        self._context = context
        self._monotonic = monotonic
        self._within_s = within_s
        self._client: aiosmtplib.SMTP | None = None
        self._stage = _Stage.CONNECTION
        self._sent = 0  # mails over the current connection
        self._used_at = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self._quit()
        self._drop()

    async def send(
        self, message: EmailMessage, *, connected: Callable[[], Awaitable[None]] = _nothing
    ) -> Outcome:
        """Send a mail to the one recipient in its header, within `within_s` seconds.

        Args:
            message: has From, and one address in To.
            connected: awaited once there is a connection, before any command about the mail.
        """
        try:
            mail = _mail_of(message)
        except ValueError as error:
            return Rejected(_line(str(error)))
        try:
            async with asyncio.timeout(self._within_s):
                return await self._deliver(mail, connected)
        except TimeoutError:
            return self._deferred(f"the server did not answer within {self._within_s:g} s")
        except _FOREIGN as error:
            return self._deferred(_words(error))
        except BaseException:
            self._drop()
            raise

    async def rest(self) -> None:
        """Close a connection that has been idle for IDLE_MAX_S."""
        if self._client is not None and self._monotonic() - self._used_at > IDLE_MAX_S:
            await self._quit()

    # One mail -------------------------------------------------------------------------------------------------------

    async def _deliver(self, mail: _Mail, connected: Callable[[], Awaitable[None]]) -> Outcome:
        reused = await self._connect()
        await connected()
        try:
            return await self._transmit(mail)
        except _GONE:
            if not reused or self._stage is _Stage.CONTENT:
                raise
            self._drop()  # the server had closed the idle connection, and got no content of this mail
        await self._connect()
        return await self._transmit(mail)

    async def _transmit(self, mail: _Mail) -> Outcome:
        client = self._open()
        self._used_at = self._monotonic()
        self._stage = _Stage.SENDER
        if mail.utf8 and not client.supports_extension("smtputf8"):
            return Rejected("the address is not ASCII, and the server takes no others (RFC 6531)")
        encoding = "utf-8" if mail.utf8 else "ascii"
        try:
            await client.mail(mail.sender, options=["SMTPUTF8"] if mail.utf8 else [], encoding=encoding)
            self._stage = _Stage.RECIPIENT
            await client.rcpt(mail.recipient, encoding=encoding)
            self._stage = _Stage.CONTENT
            response = await client.data(mail.content)
        except aiosmtplib.SMTPResponseException as error:
            return await self._judge(error.code, error.message)
        self._sent += 1
        return Sent(_line(response.message))

    async def _judge(self, code: int, message: str) -> Outcome:
        """Return the outcome for the server's error reply to this mail."""
        stage, error = self._stage, _line(f"{self._stage.value}: {code} {message}")
        if code == _CLOSING or code in _LOGIN_WANTED:
            self._drop()
            return Deferred(error, server=True)
        if not 400 <= code <= 599:  # noqa: PLR2004 - RFC 5321 section 4.2.1: not an error code
            self._drop()
            return Deferred(error, doubt=stage is _Stage.CONTENT)
        await self._reset()
        if code < 500:  # noqa: PLR2004 - transient
            return Deferred(error)
        return Rejected(error, recipient=stage is _Stage.RECIPIENT and _is_about_recipient(code, message))

    async def _reset(self) -> None:
        """Reset the connection for the next mail, or close it."""
        try:
            async with asyncio.timeout(QUIT_WITHIN_S):
                await self._open().rset()
        except _FOREIGN:
            self._drop()

    def _deferred(self, error: str) -> Deferred:
        stage = self._stage
        self._drop()
        return Deferred(
            _line(f"{stage.value}: {error}"),
            server=stage in {_Stage.CONNECTION, _Stage.LOGIN},
            doubt=stage is _Stage.CONTENT,
        )

    # The connection -------------------------------------------------------------------------------------------------

    async def _connect(self) -> bool:
        """Ensure a connection with TLS and login as in the settings; return True if it is a reused one."""
        self._stage = _Stage.CONNECTION
        if self._is_fit():
            return True
        await self._quit()
        settings = self._settings
        self._client = client = aiosmtplib.SMTP(
            hostname=settings.host,
            port=settings.port,
            timeout=self._within_s,
            use_tls=settings.tls == "tls",
            start_tls=False,  # done below; the library's default sends unencrypted if STARTTLS is not offered
            tls_context=self._context,
        )
        await client.connect()
        await client.ehlo()
        if settings.tls == "starttls":
            await _start_tls(client)
        if settings.username:
            self._stage = _Stage.LOGIN
            await self._login(client)
        return False

    def _is_fit(self) -> bool:
        return (
            self._client is not None
            and self._client.is_connected
            and self._sent < MAILS_MAX
            and self._monotonic() - self._used_at <= IDLE_MAX_S
        )

    async def _login(self, client: aiosmtplib.SMTP) -> None:
        """Log in. Only the codes of a refusal are kept, because the server's text may repeat the credentials."""
        settings = self._settings
        try:
            await client.login(settings.username, settings.password.get_secret_value())
        except aiosmtplib.SMTPResponseException as error:
            found = _ENHANCED.match(error.message)
            numbers = f"{error.code} {found[0]}" if found else str(error.code)
            raise aiosmtplib.SMTPException(f"the server refused it: {numbers}") from None

    def _open(self) -> aiosmtplib.SMTP:
        if self._client is None:
            raise RuntimeError("not connected")
        return self._client

    async def _quit(self) -> None:
        """Close the connection with QUIT, within QUIT_WITHIN_S."""
        client = self._client
        if client is not None and client.is_connected:
            with contextlib.suppress(*_FOREIGN):
                async with asyncio.timeout(QUIT_WITHIN_S):
                    await client.quit()
        self._drop()

    def _drop(self) -> None:
        client, self._client, self._sent = self._client, None, 0
        if client is not None:
            client.close()


async def _start_tls(client: aiosmtplib.SMTP) -> None:
    """Start TLS (RFC 3207), or raise, so that nothing is ever sent unencrypted."""
    if not client.supports_extension("starttls"):
        raise aiosmtplib.SMTPException("the server does not offer STARTTLS, and nothing is sent in clear")
    await client.starttls()
    await client.ehlo()


def _words(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, aiosmtplib.SMTPConnectError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted: {cause.verify_message}"
    if isinstance(error, aiosmtplib.SMTPServerDisconnected):
        return "the server ended the connection"
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return f"{error.code} {error.message}"
    return str(error) or type(error).__name__


def _mail_of(message: EmailMessage) -> _Mail:
    """Return the envelope and the bytes of a message.

    Raises:
        ValueError: the message has not exactly one sender and one recipient, or cannot be serialised.
    """
    sender, recipient = _one_address(message, "From"), _one_address(message, "To")
    if message["Cc"] is not None or message["Bcc"] is not None:
        raise ValueError("a mail has one recipient")
    utf8 = not (sender + recipient).isascii()
    return _Mail(sender, recipient, message.as_bytes(policy=_SEVEN_BITS.clone(utf8=utf8)), utf8)


def _one_address(message: EmailMessage, header: str) -> str:
    addresses: tuple[Any, ...] = () if message[header] is None else message[header].addresses
    if len(addresses) != 1 or not addresses[0].username or not addresses[0].domain:
        raise ValueError(f"there is not exactly one address in {header}")
    text: str = addresses[0].addr_spec
    if not text.isprintable() or " " in text:
        raise ValueError(f"the address in {header} has blanks or control characters")
    return text


def _is_about_recipient(code: int, message: str) -> bool:
    """Return True if a 5xx to RCPT TO is about the address, rather than about the daemon as a sender."""
    found = _ENHANCED.match(message)
    if found is not None:
        return found["subject"] in _OF_RECIPIENT
    return code not in _OUR_FAULT


def _line(text: str) -> str:
    return clean_line(text, TEXT_MAX)
