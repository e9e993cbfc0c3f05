"""Authentication that an endpoint requires (column `endpoints.auth`), in addition to or instead of a signature.

    {"basic": {"username": "...", "password": "..."}}                                     RFC 7617
    {"bearer": {"token": "..."}}                                                          RFC 6750
    {"oauth2": {"token_url": "...", "client_id": "...", "client_secret": "...",           RFC 6749, 4.4
                "scope": "...", "audience": "..."}}                                       the last two are optional
    {"client_certificate": {"certificate": "<PEM, then its chain>", "key": "<PEM>"}}      alone, or with one of those

Migration 0014 checks the same shapes in SQL. This module also checks what SQL cannot, before the request is built.

Never here: obtaining a token (webhook/oauth.py, delivery/oauth_tokens.py), files, TLS contexts, or an error that
quotes a value.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

import orjson

from pghookd.model.client_certificate import ClientCertificate
from pghookd.settings.wrong_values import json_kind

LENGTH_MAX: Final = 16384  # characters of the whole text
TEXT_MAX: Final = 2048  # characters of one value that is neither a token nor PEM
TOKEN_MAX: Final = 8192  # characters

_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # b64token: RFC 6750, 2.1
_TOKEN_URL: Final = re.compile(r"https://[!-~]+", re.IGNORECASE)  # RFC 6749, 3.2: TLS is required


@dataclasses.dataclass(frozen=True, slots=True)
class Basic:
    """A user name and a password (RFC 7617); the name may be empty and must not contain a colon."""

    username: str
    password: str = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        _check_text("basic.username", self.username, least=0)
        _check_text("basic.password", self.password, least=0)
        if ":" in self.username:  # RFC 7617, 2
            raise ValueError("auth.basic.username must not contain a colon")


@dataclasses.dataclass(frozen=True, slots=True)
class Bearer:
    """A fixed token (RFC 6750)."""

    token: str = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        check_token("auth.bearer.token", self.token)


@dataclasses.dataclass(frozen=True, slots=True)
class ClientCredentials:
    """The client credentials with which tokens are requested (RFC 6749, 4.4)."""

    token_url: str = dataclasses.field(repr=False)  # its query may contain a key
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
            raise ValueError("auth.oauth2.token_url must begin with https:// and contain no blanks")


Scheme: TypeAlias = Basic | Bearer | ClientCredentials


@dataclasses.dataclass(frozen=True, slots=True)
class Auth:
    """The parsed value of `endpoints.auth`.

    Attributes:
        scheme: the source of the `authorization` header; None if the header is not sent.
        certificate: the certificate presented in the TLS handshake; None if there is none.
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
    """Parse the decrypted text of the column.

    Raises:
        ValueError: the text cannot be used; the message gives the reason and quotes none of the text.
    """
    found = _object(text)
    named = [name for name in _SCHEMES if name in found]
    if len(named) > 1:
        raise ValueError(f"auth has {' and '.join(named)}; only one of {', '.join(_SCHEMES)} is allowed")
    scheme = _made(named[0], _SCHEMES[named[0]], found[named[0]]) if named else None
    shown = _made(_CERTIFICATE, ClientCertificate, found[_CERTIFICATE]) if _CERTIFICATE in found else None
    return Auth(scheme, shown)


def _object(text: str) -> dict[str, Any]:
    if len(text) > LENGTH_MAX:
        raise ValueError(f"auth has {len(text)} characters; at most {LENGTH_MAX} are allowed")
    try:
        found = orjson.loads(text)
    except ValueError:
        raise ValueError("auth is not valid JSON") from None
    allowed = (*_SCHEMES, _CERTIFICATE)
    if not isinstance(found, dict) or not found:
        raise ValueError(f"auth must be an object with one of {', '.join(allowed)}; it is {json_kind(found)}")
    _check_names("auth", found, allowed)
    return found


def _check_names(where: str, found: Iterable[str], allowed: Sequence[str]) -> None:
    """Raise if there is an unknown name; the message does not quote it, because it may be a misplaced secret."""
    if not set(found).issubset(allowed):
        raise ValueError(f"{where} has an unknown name; allowed are {', '.join(allowed)}")


def line(scheme: Basic | Bearer) -> bytes:
    """Return the `authorization` header line, including its line end."""
    if isinstance(scheme, Bearer):
        return bearer_line(scheme.token)
    return basic_line(scheme.username, scheme.password)


def basic_line(username: str, password: str) -> bytes:
    """Return the `authorization` line for a user name and a password, encoded in UTF-8 (RFC 7617, 2.1)."""
    return b"authorization: Basic " + base64.b64encode(f"{username}:{password}".encode()) + b"\r\n"


def bearer_line(token: str) -> bytes:
    """Return the `authorization` line for a token that `check_token` accepted."""
    return b"authorization: Bearer " + token.encode("ascii") + b"\r\n"


def check_token(name: str, token: str) -> None:
    """Check that a token is valid in a header.

    Raises:
        ValueError: the token is not a `b64token` (RFC 6750, 2.1) or exceeds 8,192 characters; the message has `name`.
    """
    if len(token) > TOKEN_MAX or _TOKEN.fullmatch(token) is None:
        raise ValueError(
            f"{name} must be a token of at most {TOKEN_MAX} characters: letters, digits and -._~+/, with = at the end"
        )


def _made(name: str, make: Callable[..., Any], members: object) -> Any:  # noqa: ANN401 - one of the four kinds
    if not isinstance(members, dict) or not all(isinstance(value, str) for value in members.values()):
        raise ValueError(f"auth.{name} must be an object whose values are strings")
    fields = dataclasses.fields(make)  # type: ignore[arg-type] # all four kinds are dataclasses
    _check_names(f"auth.{name}", members, [field.name for field in fields])
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in members:
            raise ValueError(f"auth.{name}.{field.name} is missing")
    return make(**members)


def _check_text(name: str, text: str, *, least: int) -> None:
    if not least <= len(text) <= TEXT_MAX or _UNFIT.search(text):
        raise ValueError(
            f"auth.{name} must have {least} to {TEXT_MAX} characters, none of them a control character"
        )
