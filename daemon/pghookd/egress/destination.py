"""The first SSRF check: which URLs, host names and addresses a request may go to.

A customer writes the URL, and the daemon opens the connection from inside the platform's network. This module decides
by pure functions over text; egress/resolver.py and egress/sender.py use it again for every address that a name
resolves to. The table of address space is written out on purpose: the standard library's `is_global` counts multicast,
embedded IPv4 and cloud metadata addresses as global, and changes with the Python version.

Never here: DNS, sockets, a third-party URL class that "repairs" its input, and texts that reveal the address that a
name resolves to.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from pghookd.settings.network import NUMBER, PORT_DIGITS_MAX, Address, EgressPolicy, host_name
from pghookd.settings.wrong_values import quoted

URL_LENGTH_MAX = 2048  # characters; the same as the schema's CHECK
ORIGINS_MAX = 4096  # cached origins, about 0.5 KB each

# IANA special-purpose registries (RFC 6890 and successors), as of 2026, and further special addresses.
_REFUSED_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network, RFC 791
        "10.0.0.0/8",  # private, RFC 1918
        "100.64.0.0/10",  # carrier-grade NAT, RFC 6598
        "127.0.0.0/8",  # loopback, RFC 1122
        "169.254.0.0/16",  # link local, RFC 3927
        "172.16.0.0/12",  # private, RFC 1918
        "192.0.0.0/24",  # protocol assignments, RFC 6890
        "192.0.2.0/24",  # documentation, RFC 5737
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "192.168.0.0/16",  # private, RFC 1918
        "198.18.0.0/15",  # benchmarks, RFC 2544
        "198.51.100.0/24",  # documentation, RFC 5737
        "203.0.113.0/24",  # documentation, RFC 5737
        "224.0.0.0/4",  # multicast, RFC 5771
        "240.0.0.0/4",  # reserved and broadcast, RFC 1112
        "168.63.129.16/32",  # a cloud's host agent, on an address that looks public
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")  # RFC 4291: all other addresses are refused
_REFUSED_V6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, including Teredo, RFC 2928
        "2001:db8::/32",  # documentation, RFC 3849
        "2002::/16",  # 6to4, RFC 3056
        "3fff::/20",  # documentation, RFC 9637
    )
)
_PRIVATE = tuple(
    ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215
_LAST_32 = tuple(
    ipaddress.IPv6Network(text)
    for text in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in (
        "169.254.169.254",
        "169.254.170.2",
        "169.254.170.23",
        "169.254.169.253",
        "169.254.42.42",
        "169.254.0.23",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd00:c1::a9fe:a9fe",
        "fd20:ce::254",
        "fd00:42::42",
        "fe80::a9fe:a9fe",
    )
)
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})  # RFC 5214, 6.1: bits 64 to 95, under any prefix
_INNER_DOMAINS = frozenset(  # RFC 2606, 6761, 6762 (appendix G), 7686, 9476, and names of internal networks
    {
        "localhost",
        "localdomain",
        "local",
        "internal",
        "intranet",
        "private",
        "corp",
        "home",
        "lan",
        "onion",
        "consul",
        "svc",
        "arpa",
        "test",
        "invalid",
        "alt",
    }
)

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*):")
_AUTHORITY = re.compile(r"//([^/?#]*)")
_DOTTED_QUAD = re.compile(r"(?:(?:0|[1-9][0-9]{0,2})\.){3}(?:0|[1-9][0-9]{0,2})")


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """Why a destination is not allowed.

    Attributes:
        name: url, scheme, port, userinfo, name, literal or address (NAMES: `blocked`).
        why: one sentence for the operator. It quotes an address only if the URL contains it.
    """

    name: str
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class Destination:
    """A URL that passed the checks.

    Attributes:
        scheme: http or https.
        host: lower-case A-labels without a trailing dot, or an address's canonical text, without brackets.
        port: the port to connect to.
        target: path and query as the owner wrote them, with non-ASCII percent-encoded (RFC 3987, 3.1).
        host_header: the value of `Host` (RFC 9112, 3.2).
        address: the host if it is a literal address; None for a name, whose resolved addresses are judged later.
        named: the operator allowed the host by name, so it may resolve to an internal address.
    """

    scheme: str
    host: str
    port: int
    target: str
    host_header: str
    address: str | None = None
    named: bool = False


JudgeOrigin: TypeAlias = Callable[[str, str], Destination | Refusal]


def parse(url: str, policy: EgressPolicy) -> Destination | Refusal:
    """Decide about the text of `endpoints.url`. Never raises, whatever the text; sends no DNS query."""
    return parse_by(functools.partial(judge_origin, policy=policy), url)


def parse_by(judge: JudgeOrigin, url: str) -> Destination | Refusal:
    """Decide about a URL as `parse` does, but with a caller's `judge`, which may cache the verdict on an origin."""
    if len(url) > URL_LENGTH_MAX:
        return Refusal("url", f"it is longer than {URL_LENGTH_MAX} characters")
    if not url.isprintable() or " " in url or "\\" in url:
        return Refusal("url", "it contains a space, a backslash or an unprintable character")
    scheme = _SCHEME.match(url)
    if scheme is None:
        return Refusal("url", "it must start with http:// or https://")
    kind = scheme[1].lower()
    if kind not in {"http", "https"}:
        return Refusal(
            "scheme", f"it starts with {quoted(scheme[0])}; it must start with http:// or https://"
        )
    authority = _AUTHORITY.match(url, scheme.end())
    origin = judge(kind, "" if authority is None else authority[1])
    if authority is None or isinstance(origin, Refusal):
        return origin
    target = _target(url[authority.end() :])
    return origin if target == origin.target else dataclasses.replace(origin, target=target)


def judge_origin(scheme: str, authority: str, policy: EgressPolicy) -> Destination | Refusal:
    """Decide about the part of a URL before its path.

    Args:
        scheme: http or https.
        authority: host and port, as written.
        policy: the operator's settings.

    Returns:
        The destination with the path `/`, or the refusal.
    """
    if policy.https_only and scheme != "https":
        return Refusal("scheme", "it must start with https://, because egress.https_only is set")
    if not authority:
        return Refusal("url", "it has no host")
    where = _split_authority(authority, 443 if scheme == "https" else 80)
    if isinstance(where, Refusal):
        return where
    host, port = where
    if port not in policy.ports:
        return Refusal("port", f"port {port} is not in egress.ports")
    return _destination(scheme, host, port, policy)


def judge_address(address: str, policy: EgressPolicy, *, named: bool = False) -> Refusal | None:
    """Return the refusal of one resolved address, or None if it is allowed.

    The sender also calls this for the address that a socket is about to connect to.

    Args:
        address: its text; anything but a plain address is refused, including one with a scope id.
        policy: the operator's settings.
        named: the operator allowed the host by name; then only denied and metadata addresses are refused.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return _REFUSED
    if "%" in address:
        return _REFUSED
    return None if _is_open(parsed, policy, named=named) else _REFUSED


_REFUSED = Refusal("address", "it resolves to an address that is not public; allow it with egress.allow")
_ODD_LITERAL = Refusal("literal", "its address must be written as in 198.51.100.7 or [2001:db8::7]")
_ODD_NAME = Refusal("name", "its host name is not valid, or has characters that look like others")
_INNER_NAME = Refusal("name", "its host name is not public; allow it with egress.allow")
_DENIED_NAME = Refusal("name", "its host name is in egress.deny")


def why_closed(text: str, policy: EgressPolicy) -> str:
    """Return why `judge_address` refuses an address; for the operator, and only if the URL or the operator names it."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return f"{quoted(text)} is not an IP address"
    each = (address, *_carried(address))
    if any(policy.deny.has(one) for one in each):
        return f"{address} is in egress.deny"
    if any(one in _METADATA for one in each):
        return f"{address} is a cloud metadata address; allow it with egress.allow, listed by itself"
    return f"{address} is {_kind(address)}; allow it with egress.allow"


def _kind(address: Address) -> str:
    if any(address in network for network in _PRIVATE if network.version == address.version):
        return "a private address"
    kinds = ("is_loopback", "is_link_local", "is_multicast", "is_unspecified")
    names = ("a loopback", "a link-local", "a multicast", "an unspecified")
    found = (name for kind, name in zip(kinds, names, strict=True) if getattr(address, kind))
    return f"{next(found, 'a special-purpose')} address"


def _is_open(address: Address, policy: EgressPolicy, *, named: bool) -> bool:
    for each in (address, *_carried(address)):
        if policy.deny.has(each):
            return False
        if each in _METADATA and not policy.allow.has_exactly(each):
            return False
    return named or policy.allow.has(address) or _is_public(address, policy)


def _is_public(address: Address, policy: EgressPolicy) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    if policy.nat64 and address in _NAT64:
        return _is_open(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF), policy, named=False)
    if _isatap(address) is not None:
        return False
    return address in _GLOBAL_V6 and not any(address in network for network in _REFUSED_V6)


def _isatap(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    number = int(address)
    return ipaddress.IPv4Address(number & 0xFFFFFFFF) if number >> 32 & 0xFFFFFFFF in _ISATAP else None


def _carried(address: Address) -> Iterator[ipaddress.IPv4Address]:
    """Yield the IPv4 addresses that an IPv6 address may embed (RFC 3056, 4291, 4380, 5214, 6052, 6145, 8215)."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    number = int(address)
    if any(address in network for network in _LAST_32):
        yield ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address in _NAT64_LOCAL:  # RFC 6052, 2.2: in a /48 the address surrounds bits 64 to 71
        yield ipaddress.IPv4Address((number >> 64 & 0xFFFF) << 16 | number >> 40 & 0xFFFF)
    for carried in (address.sixtofour, _isatap(address)):
        if carried is not None:
            yield carried
    if address.teredo is not None:
        yield from address.teredo


def _split_authority(  # noqa: PLR0911 -- guards, one after another
    authority: str, default_port: int
) -> tuple[str, int] | Refusal:
    """Split `host:port`; an IPv6 literal keeps its brackets."""
    if "@" in authority:
        return Refusal(
            "userinfo", "it must not contain a user name or password; use a header or auth instead"
        )
    if "%" in authority:
        return Refusal("url", "its host and port must not be percent-encoded")
    head, bracket, tail = authority.rpartition("]")
    host, colon, digits = tail.partition(":")
    if bracket and host:
        return Refusal("url", "only a port may follow the bracketed address")
    if not colon:
        return head + bracket + host, default_port
    if not (digits.isascii() and digits.isdecimal()):
        return Refusal("url", "its port must be a number")
    if len(digits) > PORT_DIGITS_MAX:
        return Refusal("port", "its port must be 1 to 65535")
    return head + bracket + host, int(digits)


def _target(rest: str) -> str:
    """Return the request target (RFC 9112, 3.2.1) from the text after the authority; the fragment is dropped."""
    path = rest.partition("#")[0]
    if not path.startswith("/"):
        path = "/" + path
    if path.isascii():
        return path
    return "".join(c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode()) for c in path)


def _destination(  # noqa: PLR0911 -- guards, one after another
    scheme: str, host: str, port: int, policy: EgressPolicy
) -> Destination | Refusal:
    shown_port = "" if port == (443 if scheme == "https" else 80) else f":{port}"
    if host.startswith("["):
        literal = _literal_v6(host)
        if literal is None:
            return _ODD_LITERAL
        if judge_address(literal, policy) is not None:
            return Refusal("literal", why_closed(literal, policy))
        return Destination(scheme, literal, port, "/", f"[{literal}]{shown_port}", literal)
    name = host_name(host)
    if name is None:
        return _ODD_NAME
    if NUMBER.fullmatch(name.rpartition(".")[2]):
        # Only the plain form is accepted: resolvers read 2130706433, 0x7f.1 or 127.0.0.1. in different ways.
        if not _DOTTED_QUAD.fullmatch(host):
            return _ODD_LITERAL
        if judge_address(host, policy) is not None:
            return Refusal("literal", why_closed(host, policy))
        return Destination(scheme, host, port, "/", host + shown_port, host)
    if not _is_fit(name, policy):
        return _DENIED_NAME if policy.deny.reaches(name) else _INNER_NAME
    return Destination(scheme, name, port, "/", name + shown_port, named=policy.names(name))


def _literal_v6(bracketed: str) -> str | None:
    if not bracketed.endswith("]"):
        return None
    try:
        return str(ipaddress.IPv6Address(bracketed[1:-1]))
    except ValueError:
        return None


def _is_fit(name: str, policy: EgressPolicy) -> bool:
    """Return True if a normalised name may be looked up at all."""
    if policy.deny.reaches(name):
        return False
    _, dot, top = name.rpartition(".")
    return policy.names(name) or (bool(dot) and top not in _INNER_DOMAINS)
