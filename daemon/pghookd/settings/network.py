"""Parses networks, host names, ports and proxies, as written in settings.

Never here: whether a URL may be contacted (egress/destination).
"""

from __future__ import annotations

import base64
import dataclasses
import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TypeAlias
from urllib.parse import unquote, urlsplit

import idna

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
PORTS = (
    "80,443,1024-65535,!1433,!1521,!2049,!2375,!2376,!2379,!3306,!3389,!5432,!5672,!5900,!6379,!6443,!9042,"
    "!9092,!9200,!9300,!10250,!11211,!27017"
)
_LABEL = re.compile(r"[a-z0-9_\-]{1,63}")
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a text that inet_aton accepts as a part of an address
_NAME_LENGTH_MAX = 253
_PORT_MAX = 65535
PORT_DIGITS_MAX = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Ports:
    """A set of TCP ports; an exclusion always wins, whatever the order in the text."""

    allowed: tuple[tuple[int, int], ...]  # both ends included
    excluded: tuple[tuple[int, int], ...] = ()

    def __contains__(self, port: int) -> bool:
        """Return True if a request may go to this port."""
        return _within(port, self.allowed) and not _within(port, self.excluded)


@dataclasses.dataclass(frozen=True, slots=True)
class Places:
    """Networks and host names, as listed in one setting.

    Attributes:
        networks: IPv4 and IPv6 networks.
        names: host names in A-label form.
        parents: the `example.com` of `*.example.com`, which stands for every name below it.
    """

    networks: tuple[Network, ...] = ()
    names: frozenset[str] = frozenset()
    parents: frozenset[str] = frozenset()

    def has(self, address: Address) -> bool:
        """Return True if one of the networks contains the address."""
        return any(address in network for network in self.networks)

    def has_exactly(self, address: Address) -> bool:
        """Return True if the address itself is listed, as a /32 or /128."""
        return any(net.num_addresses == 1 and net[0] == address for net in self.networks)

    def names_it(self, host: str) -> bool:
        """Return True if a host is listed by name, or lies below a name listed with a star."""
        return host in self.names or not self.parents.isdisjoint(_above(host))

    def reaches(self, host: str) -> bool:
        """Return True if a host is listed, or lies below any listed name."""
        return self.names_it(host) or not self.names.isdisjoint(_above(host))


@dataclasses.dataclass(frozen=True, slots=True)
class EgressPolicy:
    """The operator's policy for egress (settings `egress.*`).

    Attributes:
        allow: networks, host names, and all names below one (`*.corp`), allowed although the rules would refuse them.
        deny: networks, and host names with all names below them, refused although they look public; wins over allow.
        https_only: True to refuse plain http.
        ports: the ports that a URL may name.
        nat64: True if `64:ff9b::/96` is the operator's NAT64: an address in it is judged by its IPv4 address.
    """

    allow: Places = Places()
    deny: Places = Places()
    https_only: bool = False
    ports: Ports = dataclasses.field(default_factory=lambda: parse_ports(PORTS))
    nat64: bool = False

    def names(self, host: str) -> bool:
        """Return True if the operator allowed this host by name."""
        return self.allow.names_it(host)


@dataclasses.dataclass(frozen=True, slots=True)
class Proxy:
    """The operator's own HTTP proxy, through which all requests go.

    Attributes:
        host: its name or address, without brackets; any is allowed, since the operator chose it.
        port: its port.
        is_tls: True if the connection to the proxy uses TLS.
        authorization: the value of `proxy-authorization`; empty if there is none. A secret.
    """

    host: str
    port: int
    is_tls: bool = False
    authorization: str = dataclasses.field(default="", repr=False)


def parse_proxy(url: str) -> Proxy:
    """Parse `http://user:password@proxy.example:3128`.

    Raises:
        ValueError: the URL is invalid; the message quotes no part of it, since a part may be half a password.
    """
    if not url.isprintable() or " " in url:
        raise ValueError("must be a URL that starts with http:// or https://")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(
            "has a host or port that cannot be read: percent-encode / : @ in the password"
        ) from None
    if parts.scheme not in {"http", "https"}:
        raise ValueError("must be a URL that starts with http:// or https://")
    if not parts.hostname or parts.path not in {"", "/"} or parts.query or parts.fragment or port == 0:
        raise ValueError(
            "must have a host, optionally a port, and nothing after them, as in http://proxy.example:3128"
        )
    is_tls = parts.scheme == "https"
    return Proxy(
        parts.hostname, port or (443 if is_tls else 80), is_tls, _basic(parts.username, parts.password)
    )


def _basic(user: str | None, password: str | None) -> str:
    """Return Basic credentials (RFC 7617) in UTF-8; empty if there is no user."""
    if user is None:
        return ""
    pair = f"{unquote(user)}:{unquote(password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode("ascii")


def parse_ports(text: str) -> Ports:
    """Parse `80,443,1024-65535,!1433`: ports and ranges; `!` excludes.

    Raises:
        ValueError: a part is not a port or range (the message quotes it), or no port is allowed.
    """
    allowed: list[tuple[int, int]] = []
    excluded: list[tuple[int, int]] = []
    for raw in text.split(","):
        part = raw.strip()
        if part:
            (excluded if part.startswith("!") else allowed).append(_port_range(part))
    if not allowed:
        raise ValueError("it allows no port; name at least one without a !")
    return Ports(tuple(allowed), tuple(excluded))


def parse_places(texts: Iterable[str]) -> Places:
    """Parse networks, addresses, host names, and `*.` with a name, which means all names below it.

    Raises:
        ValueError: an entry is none of these; the message quotes it.
    """
    networks: list[Network] = []
    names: set[str] = set()
    parents: set[str] = set()
    for raw in texts:
        text = raw.strip()
        network = _network(text)
        if network is not None:
            networks.append(network)
        elif text.startswith("*."):
            parents.add(_place_name(text[2:]))
        else:
            names.add(_place_name(text))
    return Places(tuple(networks), frozenset(names), frozenset(parents))


def _within(port: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= port <= last for first, last in ranges)


def _port_range(part: str) -> tuple[int, int]:
    first, dash, last = part.removeprefix("!").partition("-")
    low, high = _port(first, part), _port(last, part) if dash else _port(first, part)
    if low > high:
        raise ValueError(f"the range {part!r} ends before it starts")
    return low, high


def _port(digits: str, part: str) -> int:
    text = digits.strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= PORT_DIGITS_MAX):
        raise ValueError(f"{part!r} is not a port, a range (1024-65535) or an exclusion (!5432)")
    port = int(text)
    if not 1 <= port <= _PORT_MAX:
        raise ValueError(f"{part!r} is not a port from 1 to {_PORT_MAX}")
    return port


def _network(text: str) -> Network | None:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        if "/" in text or ":" in text:
            raise ValueError(
                f"{text!r} is neither a network such as 10.0.0.0/8, without host bits, nor a host name"
            ) from None
        return None


def _place_name(text: str) -> str:
    host = host_name(text)
    if host is None or NUMBER.fullmatch(host.rpartition(".")[2]):
        raise ValueError(f"{text!r} is neither a network such as 10.0.0.0/8 nor a host name")
    return host


def _above(host: str) -> Iterator[str]:
    """Yield the names that a host lies below, the nearest first."""
    rest = host.partition(".")[2]
    while rest:
        yield rest
        rest = rest.partition(".")[2]


def host_name(host: str) -> str | None:
    """Return the lower-case A-label form of a host name; None if it is invalid or misleading.

    One trailing dot is dropped. Only case and composition may be mapped. RFC 5895 allows more, such as circled letters
    and full-width dots, with which an internal name could be smuggled past a filter.
    """
    name = host.removesuffix(".")
    if not name.isascii():
        encoded = _a_labels(name)
        if encoded is None:
            return None
        name = encoded
    name = name.lower()
    if len(name) > _NAME_LENGTH_MAX:
        return None
    return name if all(_LABEL.fullmatch(label) for label in name.split(".")) else None


def _a_labels(name: str) -> str | None:
    if any(_is_misleading(c) for c in name if not c.isascii()):
        return None
    try:
        return ".".join(_a_label(label) for label in unicodedata.normalize("NFC", name.lower()).split("."))
    except (idna.IDNAError, UnicodeError):
        return None


def _a_label(label: str) -> str:
    return label if label.isascii() else idna.alabel(label).decode("ascii")


def _is_misleading(c: str) -> bool:
    """Return True if mapping (NFKC) turns a non-ASCII character into another, or it is a digit of another script."""
    small = c.lower()
    mapped = unicodedata.normalize("NFKC", small)
    return c.isnumeric() or mapped.isascii() or mapped != unicodedata.normalize("NFC", small)
