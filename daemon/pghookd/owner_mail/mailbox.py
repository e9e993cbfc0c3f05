"""Normalised mailboxes, by which limits on mails are counted. Mails still go to the address as the owner wrote it.

Providers deliver many spellings to one mailbox, so a limit by spelling would be useless. The owner of a domain can
create any number of mailboxes, so each domain also has a share of the rate.
"""

from __future__ import annotations

from typing import Final

from pghookd.model.domains import a_label, registrable

_DOTLESS: Final = {
    "gmail.com": "gmail.com",
    "googlemail.com": "gmail.com",
}  # domains that ignore dots, with their main name
# Public providers: their mailboxes belong to unrelated people, so these domains have no limit of their own.
_OF_STRANGERS: Final = frozenset(
    {
        "gmail.com", "googlemail.com", "outlook.com", "hotmail.com", "live.com", "msn.com", "yahoo.com", "icloud.com",
        "me.com", "aol.com", "proton.me", "protonmail.com", "gmx.de", "gmx.net", "gmx.at", "gmx.ch", "web.de",
        "t-online.de", "freenet.de", "mail.ru", "yandex.ru", "qq.com", "163.com", "126.com", "naver.com", "orange.fr",
        "free.fr", "wanadoo.fr", "libero.it", "comcast.net", "yahoo.co.uk", "yahoo.co.jp", "btinternet.com",
    }
)  # fmt: skip


def mailbox_of(address: str) -> str:
    """Return the normalised spelling of a mailbox: lower case, no tag, no ignored dots, the domain in ASCII."""
    name, _, domain = address.strip().lower().rpartition("@")
    domain = a_label(domain)
    name = name.partition("+")[0] or name
    if domain in _DOTLESS:
        name, domain = name.replace(".", ""), _DOTLESS[domain]
    return f"{name}@{domain}"


def domain_of(address: str) -> str:
    """Return the registrable domain of an address."""
    return registrable(address.rpartition("@")[2])


def is_of_strangers(domain: str) -> bool:
    """Return True if the mailboxes of a domain belong to unrelated people."""
    return domain in _OF_STRANGERS
