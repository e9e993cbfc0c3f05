"""How an endpoint wants us to identify ourselves (column `endpoints.auth`), beside or instead of a signature.

    {"basic": {"username": "...", "password": "..."}}                                     RFC 7617
    {"bearer": {"token": "..."}}                                                          RFC 6750
    {"oauth2": {"token_url": "...", "client_id": "...", "client_secret": "...",           RFC 6749, 4.4
                "scope": "...", "audience": "..."}}                                       the last two may be absent
    {"client_certificate": {"certificate": "<PEM, its chain after it>", "key": "<PEM>"}}  alone, or beside one of those

Migration 0014 refuses the same shapes in SQL; what SQL cannot judge is judged here, before the bytes are made.

Never here: how a token is got (webhook/oauth.py, delivery/oauth_tokens.py), files, contexts of TLS, an error that
quotes a value.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import orjson

from pghookd.model.client_certificate import ClientCertificate

LENGTH_MAX: Final = 16384  # characters of the whole text
TEXT_MAX: Final = 2048  # characters of one value that is neither a token nor PEM
TOKEN_MAX: Final = 8192  # characters

_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # b64token: RFC 6750, 2.1
_TOKEN_URL: Final = re.compile(r"https://[!-~]+", re.IGNORECASE)  # RFC 6749, 3.2: TLS is a must


@dataclasses.dataclass(frozen=True, slots=True)
class Basic:
    """A name and a password (RFC 7617); the name is without a colon, and may be empty."""

    username: str
    password: str = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        _check_text("basic.username", self.username, least=0)
        _check_text("basic.password", self.password, least=0)
        if ":" in self.username:  # RFC 7617, 2
            raise ValueError("auth.basic.username has a colon")


@dataclasses.dataclass(frozen=True, slots=True)
class Bearer:
    """A token that stays the same (RFC 6750)."""

    token: str = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        check_token("auth.bearer.token", self.token)


@dataclasses.dataclass(frozen=True, slots=True)
class ClientCredentials:
    """What tokens are asked for with (RFC 6749, 4.4)."""

    token_url: str = dataclasses.field(repr=False)  # a query may hold a key
    client_id: str
    client_secret: str = dataclasses.field(repr=False)
    scope: str = ""
    audience: str = ""

    def __post_init__(self) -> None:
        for name in ("token_url", "client_id", "client_secret"):
            _check_text(f"oauth2.{name}", getattr(self, name), least=1)
        for name in ("scope", "audience"):
            _check_text(f"oauth2.{name}", getattr(self, name), least=0)
        if _TOKEN_URL.fullmatch(self.token_url) is None:
            raise ValueError("auth.oauth2.token_url does not begin with https://, or has blanks in it")


Scheme: TypeAlias = Basic | Bearer | ClientCredentials


@dataclasses.dataclass(frozen=True, slots=True)
class Auth:
    """What an endpoint's column says.

    Attributes:
        scheme: what the header `authorization` is made of; None: it is not sent.
        certificate: what is shown in the handshake; None: nothing.
    """

    scheme: Scheme | None
    certificate: ClientCertificate | None


_SCHEMES: Final[dict[str, Callable[..., Scheme]]] = {
    "basic": Basic,
    "bearer": Bearer,
    "oauth2": ClientCredentials,
}
_CERTIFICATE: Final = "client_certificate"


def parse(text: str) -> Auth:
    """Read what the column holds, once it is opened.

    Raises:
        ValueError: it cannot be used; the message says why and quotes nothing of it.
    """
    try:
        found = orjson.loads(text) if len(text) <= LENGTH_MAX else None
    except ValueError:
        raise ValueError("auth is no JSON") from None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"auth is not an object of at most {LENGTH_MAX} characters with something in it")
    if found.keys() - _SCHEMES.keys() - {_CERTIFICATE}:
        raise ValueError(f"auth has another name than {', '.join(_SCHEMES)} and {_CERTIFICATE}")
    named = [name for name in _SCHEMES if name in found]
    if len(named) > 1:
        raise ValueError(f"auth has both {' and '.join(named)}")
    scheme = _made(named[0], _SCHEMES[named[0]], found[named[0]]) if named else None
    shown = _made(_CERTIFICATE, ClientCertificate, found[_CERTIFICATE]) if _CERTIFICATE in found else None
    return Auth(scheme, shown)


def line(scheme: Basic | Bearer) -> bytes:
    """Return the header line `authorization`, its line end included."""
    if isinstance(scheme, Bearer):
        return bearer_line(scheme.token)
    return basic_line(scheme.username, scheme.password)


def basic_line(username: str, password: str) -> bytes:
    """Return the line for a name and a password, in UTF-8 (RFC 7617, 2.1)."""
    return b"authorization: Basic " + base64.b64encode(f"{username}:{password}".encode()) + b"\r\n"


def bearer_line(token: str) -> bytes:
    """Return the line for a token that `check_token` has seen."""
    return b"authorization: Bearer " + token.encode("ascii") + b"\r\n"


def check_token(name: str, token: str) -> None:
    """See that a token may stand in a header.

    Raises:
        ValueError: it is none of RFC 6750, 2.1, or longer than 8,192 characters; `name` is in the message.
    """
    if len(token) > TOKEN_MAX or _TOKEN.fullmatch(token) is None:
        raise ValueError(f"{name} is no token: letters, digits and -._~+/ with = at the end")


def _made(name: str, make: Callable[..., Any], members: object) -> Any:  # noqa: ANN401 - one of the four kinds
    if not isinstance(members, dict) or not all(isinstance(value, str) for value in members.values()):
        raise ValueError(f"auth.{name} is not an object of texts")
    fields = dataclasses.fields(make)  # type: ignore[arg-type] # all four are dataclasses
    if members.keys() - {field.name for field in fields}:
        raise ValueError(f"auth.{name} has another name than {', '.join(field.name for field in fields)}")
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in members:
            raise ValueError(f"auth.{name}.{field.name} is missing")
    return make(**members)


def _check_text(name: str, text: str, *, least: int) -> None:
    if not least <= len(text) <= TEXT_MAX or _UNFIT.search(text):
        raise ValueError(f"auth.{name} is not {least} to {TEXT_MAX} characters without control characters")
