"""Maps a host to its owner: the registrable domain of a name, or the network of an address.

Limits and storms are counted by owner, because names below a domain of one's own cost nothing. The Public Suffix List
would be exact, but it has 300 KB and goes stale. This rule rather counts two owners as one than one as two.
"""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import urlsplit

import idna

# Second labels under which registries of two-letter top-level domains sell names: example.co.uk, example.com.au.
_SOLD_UNDER: Final = frozenset(
    {
        "ac", "asn", "co", "com", "edu", "gen", "go", "gob", "gov", "gv", "id", "ind", "info", "ltd", "me", "mil",
        "muni", "ne", "net", "nhs", "nom", "or", "org", "plc", "sch",
    }
)  # fmt: skip
_COUNTRY_LENGTH: Final = 2  # letters of a country's top-level domain
_NETWORK_BITS: Final = {4: 24, 6: 48}  # the largest network that a provider usually gives to one customer


def a_label(domain: str) -> str:
    """Return a domain in lower case and ASCII, without a trailing dot; as it is if it cannot be encoded."""
    plain = domain.lower()
    while (shorter := plain.strip().rstrip(".")) != plain:  # spaces may precede the dot
        plain = shorter
    if plain.isascii():
        return plain
    try:
        return idna.encode(plain, uts46=True).decode()
    except idna.IDNAError:
        return plain


def registrable(host: str) -> str:
    """Return the registrable domain of a host, its last two or three labels; for an address its network."""
    name = a_label(host)
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        labels = name.split(".")
        sold_under = len(labels[-1]) == _COUNTRY_LENGTH and labels[-2:-1] and labels[-2] in _SOLD_UNDER
        return ".".join(labels[-3:] if sold_under else labels[-2:])
    return str(ipaddress.ip_network((address, _NETWORK_BITS[address.version]), strict=False))


def registrable_of(url: str) -> str:
    """Return the registrable domain of a URL's host; empty if the URL has no host or cannot be parsed."""
    try:
        return registrable(urlsplit(url).hostname or "")
    except ValueError:
        return ""
