"""Where a request may go: the first wall between a customer's URL and the inside of the house.

A URL comes from a stranger and is turned into a connection made from within. This file says which URLs,
host names and addresses are fit for that, as pure decisions over text; egress/resolver.py and egress/sender.py
ask it again about every address that a name came to. The table of address space is written out here on
purpose: the standard library's `is_global` calls multicast, embedded IPv4 and cloud metadata addresses
global, and changes with the Python version.

Never here: DNS, sockets, a third-party URL class that "repairs" what it reads, and texts that name an
address back to the customer.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from pghookd.settings.network import NUMBER, PORT_DIGITS_MAX, Address, EgressPolicy, host_name

URL_LENGTH_MAX = 2048  # characters; the schema's CHECK says the same
ORIGINS_MAX = 4096  # origins remembered; some 0.5 KB each

# IANA special-purpose registries (RFC 6890 and successors), as of 2026, and what lies beside them.
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
        "168.63.129.16/32",  # a cloud's host agent on an address that looks public
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")  # RFC 4291: all else is refused by not being in it
_REFUSED_V6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them, RFC 2928
        "2001:db8::/32",  # documentation, RFC 3849
        "2002::/16",  # 6to4, RFC 3056
        "3fff::/20",  # documentation, RFC 9637
    )
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
_ISATAP = frozenset({0x00005EFE, 0x02005EFE})  # RFC 5214, 6.1: bits 64 to 95, under whatever prefix
_INNER_DOMAINS = frozenset(  # RFC 2606, 6761, 6762 (appendix G), 7686, 9476, and what platforms use inside
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
        why: one sentence for a person, without any address in it.
    """

    name: str
    why: str


@dataclasses.dataclass(frozen=True, slots=True)
class Destination:
    """A URL that may be tried.

    Attributes:
        scheme: http or https.
        host: lower-case A-labels without a trailing dot, or an address's canonical text, without brackets.
        port: the port to dial.
        target: path and query as the owner wrote them, but non-ASCII percent-encoded (RFC 3987, 3.1).
        host_header: the value of `Host` (RFC 9112, 3.2).
        address: the host again if it is a literal address, else None: then what it resolves to is judged.
        named: the operator opened the host by its name, so that it may resolve to an inner address.
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
    """Decide about a URL as it stands in `endpoints.url`. Never raises, whatever the text; asks no DNS."""
    return parse_by(functools.partial(judge_origin, policy=policy), url)


def parse_by(judge: JudgeOrigin, url: str) -> Destination | Refusal:
    """Do the same where origins may have been judged before: many endpoints share a few."""
    if len(url) > URL_LENGTH_MAX:
        return Refusal("url", f"it is longer than {URL_LENGTH_MAX} characters")
    if not url.isprintable() or " " in url or "\\" in url:
        return Refusal("url", "it contains a space, a backslash or a character that cannot be seen")
    scheme = _SCHEME.match(url)
    if scheme is None:
        return Refusal("url", "it does not start with http:// or https://")
    kind = scheme[1].lower()
    if kind not in {"http", "https"}:
        return Refusal("scheme", "only http and https are spoken")
    authority = _AUTHORITY.match(url, scheme.end())
    origin = judge(kind, "" if authority is None else authority[1])
    if authority is None or isinstance(origin, Refusal):
        return origin
    target = _target(url[authority.end() :])
    return origin if target == origin.target else dataclasses.replace(origin, target=target)


def judge_origin(scheme: str, authority: str, policy: EgressPolicy) -> Destination | Refusal:
    """Decide about what stands before a URL's path.

    Args:
        scheme: http or https.
        authority: host and port, as they were written.
        policy: the operator's word.

    Returns:
        The destination whose path is `/`.
    """
    if policy.https_only and scheme != "https":
        return Refusal("scheme", "only https is allowed")
    if not authority:
        return Refusal("url", "it names no host")
    where = _split_authority(authority, 443 if scheme == "https" else 80)
    if isinstance(where, Refusal):
        return where
    host, port = where
    if port not in policy.ports:
        return Refusal("port", "this port is not among those allowed")
    return _aim(scheme, host, port, policy)


def judge_address(address: str, policy: EgressPolicy, *, named: bool = False) -> Refusal | None:
    """Decide about one address that a name came to, or that a socket is about to be connected to.

    Args:
        address: its text; anything that is no plain address is refused, a scope id too.
        policy: the operator's word.
        named: the operator opened the host by its name: then all but denied and metadata addresses pass.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return _REFUSED
    if "%" in address:
        return _REFUSED
    return None if _is_open(parsed, policy, named=named) else _REFUSED


_REFUSED = Refusal("address", "it leads to an address that is not public")
_REFUSED_LITERAL = Refusal("literal", "its address is not public, or is not written in the usual way")
_REFUSED_NAME = Refusal("name", "its host name is not a public one, or is written in a misleading way")


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
    """Yield the IPv4 addresses that an IPv6 one may stand for (RFC 3056, 4291, 4380, 5214, 6052, 6145, 8215)."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    number = int(address)
    if any(address in network for network in _LAST_32):
        yield ipaddress.IPv4Address(number & 0xFFFFFFFF)
    if address in _NAT64_LOCAL:  # RFC 6052, 2.2: at a /48 the address lies around bits 64 to 71
        yield ipaddress.IPv4Address((number >> 64 & 0xFFFF) << 16 | number >> 40 & 0xFFFF)
    for carried in (address.sixtofour, _isatap(address)):
        if carried is not None:
            yield carried
    if address.teredo is not None:
        yield from address.teredo


def _split_authority(  # noqa: PLR0911 -- guards, one after another
    authority: str, default_port: int
) -> tuple[str, int] | Refusal:
    """Split `host:port`; the brackets stay on an IPv6 literal."""
    if "@" in authority:
        return Refusal("userinfo", "it carries a user name or password: use a header instead")
    if "%" in authority:
        return Refusal("url", "its host or port is percent-encoded")
    head, bracket, tail = authority.rpartition("]")
    host, colon, digits = tail.partition(":")
    if bracket and host:
        return Refusal("url", "something follows the bracketed address")
    if not colon:
        return head + bracket + host, default_port
    if not (digits.isascii() and digits.isdecimal()):
        return Refusal("url", "its port is not a number")
    if len(digits) > PORT_DIGITS_MAX:
        return Refusal("port", "this port is not among those allowed")
    return head + bracket + host, int(digits)


def _target(rest: str) -> str:
    """Make the request target (RFC 9112, 3.2.1) of what follows the authority; the fragment stays at home."""
    path = rest.partition("#")[0]
    if not path.startswith("/"):
        path = "/" + path
    if path.isascii():
        return path
    return "".join(c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode()) for c in path)


def _aim(  # noqa: PLR0911 -- guards, one after another
    scheme: str, host: str, port: int, policy: EgressPolicy
) -> Destination | Refusal:
    shown_port = "" if port == (443 if scheme == "https" else 80) else f":{port}"
    if host.startswith("["):
        literal = _literal_v6(host)
        if literal is None or judge_address(literal, policy) is not None:
            return _REFUSED_LITERAL
        return Destination(scheme, literal, port, "/", f"[{literal}]{shown_port}", literal)
    name = host_name(host)
    if name is None:
        return _REFUSED_NAME
    if NUMBER.fullmatch(name.rpartition(".")[2]):
        # Whatever resolvers make of 2130706433, 0x7f.1 or 127.0.0.1. : only the plain form is taken.
        if not _DOTTED_QUAD.fullmatch(host) or judge_address(host, policy) is not None:
            return _REFUSED_LITERAL
        return Destination(scheme, host, port, "/", host + shown_port, host)
    if not _is_fit(name, policy):
        return _REFUSED_NAME
    return Destination(scheme, name, port, "/", name + shown_port, named=policy.names(name))


def _literal_v6(bracketed: str) -> str | None:
    if not bracketed.endswith("]"):
        return None
    try:
        return str(ipaddress.IPv6Address(bracketed[1:-1]))
    except ValueError:
        return None


def _is_fit(name: str, policy: EgressPolicy) -> bool:
    """Whether a normalised name may be looked up at all."""
    if policy.deny.reaches(name):
        return False
    _, dot, top = name.rpartition(".")
    return policy.names(name) or (bool(dot) and top not in _INNER_DOMAINS)
