"""Letters: renders a digest as a mail, with plain text and HTML of the same values, and injection-safe headers.

Templates, style and words are files in `letters/`. A file of the same name in the operator's folder overrides one of
these. A broken file is skipped and reported, because an owner must get the mail even if a template is faulty.

Never here: the content of a letter (owner_mail/content/, owner_mail/catalogue.py), sending, a clock.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
import textwrap
from collections.abc import Iterator
from email.errors import MessageError
from email.header import Header
from email.headerregistry import Address, BaseHeader, HeaderRegistry, UnstructuredHeader
from email.message import EmailMessage
from email.policy import SMTP, EmailPolicy
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import css_inline
import idna
import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pghookd import __version__
from pghookd.owner_mail.catalogue import catalogues, language_of, moment_of
from pghookd.owner_mail.content.sections import unsubscribe_url
from pghookd.owner_mail.content.statement import Statement
from pghookd.owner_mail.content.writer import ContentWriter
from pghookd.owner_mail.digest import Digest, clean_line
from pghookd.settings.schema import MailSettings

TEXT: Final = "digest.txt.j2"
HTML: Final = "digest.html.j2"
STYLE: Final = "style.css"  # inlined as style attributes
SCREENS: Final = "screens.css"  # not inlined
WIDTH: Final = 72  # columns of plain text
_FILE_BYTES_MAX: Final = 200_000
_FILES_MAX: Final = 50
_REASON_MAX: Final = 200  # characters
_ADDRESS_MAX: Final = 254  # RFC 5321, 4.5.3.1.3, without the angle brackets
# The dot-atoms of RFC 5322: exactly one address, without a name, comment, quote or encoded word.
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_ADDRESS: Final = re.compile(rf"({_ATOM}(?:\.{_ATOM})*)@([^@\s]+)")
_LABELS: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?:\.(?!-)[A-Za-z0-9-]{1,63})*")
_URL_SIGNS: Final = "%/:=&?~#+!$;'@()*[]"  # characters of a URL that are not percent-encoded in a header


class _Line(UnstructuredHeader, BaseHeader):
    """A header for machines, or with third-party text: kept as given, and not folded by the library.

    The library would encode tokens above 78 characters, produce some empty folded lines, and decode an encoded word
    that a third party wrote.
    """

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        super().parse(value, kwds)
        kwds["decoded"] = value

    def fold(self, *, policy: Any) -> str:  # noqa: ANN401 - as the library declares it
        text = str(self)
        if not text.isascii() or (self.name == "Subject" and "=?" in text):
            text = Header(text, "utf-8", header_name=self.name).encode(linesep=policy.linesep)
        return f"{self.name}: {text}{policy.linesep}"


def _policy() -> EmailPolicy[EmailMessage]:
    registry = HeaderRegistry()
    for name in ("subject", "message-id", "in-reply-to", "references", "list-id", "list-unsubscribe"):
        registry.map_to_type(name, _Line)
    return SMTP.clone(header_factory=registry)


POLICY: Final = _policy()


# Names of mails ---------------------------------------------------------------------------------------------


def message_id(email_id: int, sender: str) -> str:
    """Return the Message-ID of a row of the outbox, the same for each sending.

    Raises:
        ValueError: the sender is not an address.
    """
    return f"<digest.{int(email_id)}@{_domain(sender)}>"


def incident_id(digest: Digest, sender: str) -> str:
    """Return the thread id that all mails of an incident refer to; no mail has it as its own Message-ID."""
    owner = hashlib.sha256(digest.owner_email.encode()).hexdigest()[:12]
    return f"<incident.{owner}.{digest.since_us // 1_000_000}@{_domain(sender)}>"


def one_address(text: str) -> Address:
    """Parse a text that is exactly one address.

    Raises:
        ValueError: the text is not exactly one address.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or "=?" in text:
        raise ValueError("is not one plain e-mail address")
    try:
        domain = found[2] if found[2].isascii() else idna.encode(found[2], uts46=True).decode()
        address = Address(username=found[1], domain=domain)
    except (ValueError, MessageError):  # idna's errors are ValueErrors
        raise ValueError("is not one plain e-mail address") from None
    if not _LABELS.fullmatch(domain) or len(address.addr_spec) > _ADDRESS_MAX:
        raise ValueError("is not one plain e-mail address")
    return address


def _domain(sender: str) -> str:
    return one_address(sender).domain


# Letters ----------------------------------------------------------------------------------------------------


class Letters:
    """Renders digests as mails. Reads templates, style and words once, when it is made.

    Args:
        mail: the settings `mail.*`.
        user_agent: the User-Agent of requests, shown to owners whose server refuses them.
    """

    def __init__(self, mail: MailSettings, *, user_agent: str = f"pghookd/{__version__}") -> None:
        self._mail = mail
        ours = dict(_files(importlib.resources.files("pghookd.owner_mail").joinpath("letters"), []))
        self._faults: dict[str, None] = {}
        theirs = self._theirs()
        words, wrong = catalogues(_catalogue_files(ours), _catalogue_files(theirs))
        self._faults.update(dict.fromkeys(wrong))
        self._tellers = {name: ContentWriter(each, mail, user_agent) for name, each in words.items()}
        self._ours = _Templates(ours)
        self._theirs_or_ours = _Templates({**ours, **theirs}) if theirs else self._ours

    @property
    def faults(self) -> tuple[str, ...]:
        """The skipped parts of the operator's folder so far, a sentence each; rendering a letter may add more."""
        return tuple(self._faults)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that have a catalogue."""
        return tuple(sorted(self._tellers))

    def subject(self, digest: Digest) -> str:
        """Return the subject of a digest's mail.

        Raises:
            ValueError: it cannot be written; the message is a short reason.
        """
        try:
            return self._teller(digest).subject(digest)
        except Exception as error:
            raise ValueError(_reason(error)) from error

    def render(self, digest: Digest, *, message_id: str) -> EmailMessage:
        """Render the mail of a digest; the same digest and id give the same bytes.

        Raises:
            ValueError: it cannot be rendered; the message is a short, sanitised reason.
        """
        try:
            return self._render(digest, message_id)
        except Exception as error:
            raise ValueError(_reason(error)) from error

    def _render(self, digest: Digest, message_id: str) -> EmailMessage:
        statement = self._teller(digest).statement(digest)
        message = EmailMessage(policy=POLICY)
        for name, value in self._headers(digest, statement, message_id):
            message[name] = value
        for subtype, template in (("plain", TEXT), ("html", HTML)):
            _attach(message, subtype, self._page(template, statement))
        message["Content-Language"] = statement.language  # set last; earlier, it would move to the text part
        # A deterministic boundary; encoded parts never contain `=_`.
        message.set_boundary(f"=_{hashlib.sha256(message_id.encode()).hexdigest()[:32]}")
        message.as_bytes()  # a message that cannot be sent fails here
        return message

    def _teller(self, digest: Digest) -> ContentWriter:
        return self._tellers[language_of(digest.language, self._tellers)]

    def _page(self, template: str, statement: Statement) -> str:
        """Render the operator's template, or the built-in one if that fails."""
        if self._theirs_or_ours is not self._ours:
            try:
                return self._theirs_or_ours.fill(template, statement)
            except Exception as error:  # noqa: BLE001 - a template may raise anything
                self._faults[f"{template}: {_reason(error)}"] = None
        return self._ours.fill(template, statement)

    def _theirs(self) -> dict[str, str]:
        if not self._mail.templates:
            return {}
        folder = Path(self._mail.templates)
        if not folder.is_dir():
            self._faults[f"mail.templates: {folder} is not a folder"] = None
            return {}
        unread: list[str] = []
        files = dict(_files(folder, unread))
        self._faults.update(dict.fromkeys(unread))
        return files

    # Headers ------------------------------------------------------------------------------------------------

    def _headers(self, digest: Digest, statement: Statement, message_id: str) -> Iterator[tuple[str, Any]]:
        mail = self._mail
        sender = _said("mail.sender", mail.sender)
        incident = incident_id(digest, mail.sender)
        name = clean_line(mail.platform_name)
        yield "From", Address(name, sender.username, sender.domain)
        yield "To", _said("the owner's address", digest.owner_email)
        if mail.reply_to:
            yield "Reply-To", _said("mail.reply_to", mail.reply_to)
        yield "Subject", statement.subject
        yield "Date", moment_of(digest.at_us)
        yield "Message-ID", message_id
        yield "In-Reply-To", incident
        yield "References", incident
        yield "Auto-Submitted", "auto-generated"  # RFC 3834
        yield "X-Auto-Response-Suppress", "All"
        yield "List-Id", f"{_phrase(name)}<webhooks.{sender.domain}>"  # RFC 2919
        yield "X-Pghookd-Kind", statement.kind
        yield from self._unsubscribe(digest)

    def _unsubscribe(self, digest: Digest) -> Iterator[tuple[str, str]]:
        """Yield the headers of RFC 2369, and of RFC 8058, which is only for https."""
        url = unsubscribe_url(self._mail, digest)
        if url is None:
            return
        ways = [quote(url, safe=_URL_SIGNS)]
        if self._mail.reply_to:
            address = _said("mail.reply_to", self._mail.reply_to).addr_spec
            ways.append(f"mailto:{quote(address, safe='@')}?subject=unsubscribe")
        yield "List-Unsubscribe", ", ".join(f"<{way}>" for way in ways)
        if urlsplit(url).scheme == "https":
            yield "List-Unsubscribe-Post", "List-Unsubscribe=One-Click"


def _said(what: str, text: str) -> Address:
    try:
        return one_address(text)
    except ValueError as error:
        raise ValueError(f"{what} {error}") from None


def _phrase(name: str) -> str:
    """Return a name as a phrase that is valid before an address in angle brackets."""
    if not name:
        return ""
    plain = re.fullmatch(r"[A-Za-z0-9 ]+", name)
    return f"{name if plain else Header(name, 'utf-8').encode(linesep='').replace(chr(10), '')} "


def _attach(message: EmailMessage, subtype: str, text: str) -> None:
    """Add a part in the shorter of the two encodings that every relay accepts."""
    foreign = sum(not character.isascii() for character in text)
    cte = "base64" if 6 * foreign > len(text) else "quoted-printable"
    add = message.set_content if subtype == "plain" else message.add_alternative
    add(text, subtype=subtype, charset="utf-8", cte=cte)


def _reason(error: Exception) -> str:
    place = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
    return clean_line(str(error) or type(error).__name__, _REASON_MAX) + place


# Files ------------------------------------------------------------------------------------------------------


def _files(folder: Traversable, unread: list[str], within: str = "") -> Iterator[tuple[str, str]]:
    """Yield the templates, styles and catalogues in a folder, by name; append those that cannot be read to `unread`."""
    for number, each in enumerate(sorted(folder.iterdir(), key=lambda file: file.name)):
        if number >= _FILES_MAX:
            unread.append(f"mail.templates: more than {_FILES_MAX} files; the others are left out")
            return
        name = f"{within}{each.name}"
        if each.name == "words" and not within and each.is_dir():
            yield from _files(each, unread, "words/")
        elif each.name.endswith((".j2", ".css", ".toml")) and each.is_file():
            try:
                yield name, _text_of(each)
            except (OSError, ValueError) as error:
                unread.append(f"{name}: {_reason(error)}")


def _text_of(file: Traversable) -> str:
    content = file.read_bytes()
    if len(content) > _FILE_BYTES_MAX:
        raise ValueError(f"is longer than {_FILE_BYTES_MAX} bytes")
    return content.decode()


def _catalogue_files(files: dict[str, str]) -> dict[str, str]:
    """Return the catalogues among files, by language."""
    named = {re.fullmatch(r"words/([a-z]{2,3})\.toml", name): text for name, text in files.items()}
    return {found[1]: text for found, text in named.items() if found}


# Templates --------------------------------------------------------------------------------------------------


class _Templates:
    """One set of templates with its style."""

    def __init__(self, files: dict[str, str]) -> None:
        self._styles = {"style": files[STYLE], "screens": files[SCREENS]}
        self._environment = ImmutableSandboxedEnvironment(
            loader=jinja2.DictLoader({name: text for name, text in files.items() if name.endswith(".j2")}),
            autoescape=lambda name: name is None or ".html" in name,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self._environment.filters.update(wrapped=wrapped, underlined=underlined, indented=indented)
        self._inliner = css_inline.CSSInliner(minify_css=True, load_remote_stylesheets=False)

    def fill(self, template: str, statement: Statement) -> str:
        """Render a template; the style is inlined as attributes, because many mail programs support nothing else."""
        text = self._environment.get_template(template).render(letter=statement, **self._styles)
        return self._inliner.inline(text) if template == HTML else text


def wrapped(text: str, indent: int = 0) -> str:
    """Wrap a text to lines of WIDTH; URLs are not broken."""
    blank = " " * indent
    return textwrap.fill(
        text, WIDTH, initial_indent=blank, subsequent_indent=blank, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def underlined(text: str, sign: str = "-") -> str:
    """Return a line with an underline of signs."""
    return f"{text}\n{sign * min(max(len(text), 3), WIDTH)}"


def indented(text: str, before: str = "  ") -> str:
    """Return a text with `before` in front of each line."""
    return "\n".join(f"{before}{line}".rstrip() for line in text.split("\n"))
