"""Whose a host is: the domain that somebody registered, or the network of an address.

Limits and storms are counted by it, because names below one's own domain cost nothing. The Public Suffix List would be
exact, but it is 300 KB and goes stale. This rule errs on the side of counting two owners as one.
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
_NETWORK_BITS: Final = {4: 24, 6: 48}  # what one customer of a provider gets at most, as a rule


def a_label(domain: str) -> str:
    """Return a domain in lower case and ASCII, without a dot at its end; what cannot be encoded stays as it is."""
    plain = domain.strip().rstrip(".").lower()
    if plain.isascii():
        return plain
    try:
        return idna.encode(plain, uts46=True).decode()
    except idna.IDNAError:
        return plain


def registrable(host: str) -> str:
    """Return the domain that somebody registered: the last two labels, or three; of an address its network."""
    name = a_label(host)
    try:
        address = ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        labels = name.split(".")
        sold_under = len(labels[-1]) == _COUNTRY_LENGTH and labels[-2:-1] and labels[-2] in _SOLD_UNDER
        return ".".join(labels[-3:] if sold_under else labels[-2:])
    return str(ipaddress.ip_network((address, _NETWORK_BITS[address.version]), strict=False))


def registrable_of(url: str) -> str:
    """Return the registrable domain of a URL's host; empty where it has none."""
    try:
        return registrable(urlsplit(url).hostname or "")
    except ValueError:
        return ""
