"""Sample digests of every kind, to preview letters.

Never here: names or addresses of real people (example domains only), rendering itself (owner_mail/message.py), a clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from email.message import EmailMessage
from pathlib import Path
from typing import Final

from pghookd.owner_mail.digest import (
    OF_OPERATOR,
    Cause,
    Digest,
    Fate,
    Kind,
    MailSection,
    OperatorLine,
    arranged,
    gravest,
)
from pghookd.owner_mail.message import Letters, message_id
from pghookd.settings.schema import MailSettings, Settings

HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
NOW_US: Final = 1_778_662_800_000_000  # 2026-05-13 09:00 UTC, a Wednesday
SENDER: Final = "webhooks@shops.example"
OWNER: Final = "anna@shop.example.com"
_STAND_INS: Final = {
    "sender": SENDER,
    "reply_to": "support@shops.example",
    "platform_name": "Example Shops",
    "console_url": "https://console.shops.example/webhooks",
    "unsubscribe_url": "https://console.shops.example/unsubscribe?token={token}",
}

_SHOP: Final = MailSection(
    kind=Kind.FAILING,
    endpoint_id=42,
    site_id="shop-17",
    site_name="Anna's Shop",
    url="https://shop.example.com/hooks/orders",
    description="Orders to the warehouse",
    time_zone="Europe/Berlin",
    cause=Cause.SERVER_ERROR,
    status=500,
    since_us=NOW_US - 3 * HOUR_US,
    last_failure_us=NOW_US - HOUR_US // 4,
    types=(("order_created", 11), ("order_updated", 3)),
    failed=14,
    total=14,
    waiting=14,
    response="Fatal error: Uncaught PDOException: SQLSTATE[HY000] [2002] Connection refused\n"
    "in /srv/shop/hooks/orders.php:31",
    next_attempt_us=NOW_US + HOUR_US // 2,
    disable_at_us=NOW_US - 3 * HOUR_US + 5 * DAY_US,
    event_ids=("evt_0009d6000000010660fa643be000", "evt_0009d6000000020660fa64a1d2c0"),
)


def _failing() -> list[MailSection]:
    return [_SHOP]


def _partly() -> list[MailSection]:
    return [
        dataclasses.replace(
            _SHOP,
            partly=True,
            cause=Cause.NOT_FOUND,
            status=404,
            types=(("product_updated", 9),),
            failed=9,
            total=310,
            waiting=9,
            response="",
            disable_at_us=None,
            last_success_us=NOW_US - HOUR_US // 30,
        )
    ]


def _reminder() -> list[MailSection]:
    return [
        dataclasses.replace(
            _SHOP,
            kind=Kind.REMINDER,
            changed_us=NOW_US - 27 * HOUR_US - HOUR_US // 20,
            changed=("url",),
            cause=Cause.TIMEOUT,
            status=None,
            error="response",
            since_us=NOW_US - 27 * HOUR_US,
            response="",
            failed=212,
            total=212,
            waiting=209,
            dead=3,
            dead_by=((Fate.TRIED.value, 2), (Fate.EXPIRED.value, 1)),
            next_attempt_us=NOW_US + 2 * HOUR_US,
            disable_at_us=NOW_US - 27 * HOUR_US + 5 * DAY_US,
        )
    ]


def _warning() -> list[MailSection]:
    return [
        dataclasses.replace(
            _SHOP,
            kind=Kind.WARNING,
            cause=Cause.TLS_EXPIRED,
            status=None,
            error="tls_expired",
            since_us=NOW_US - 4 * DAY_US,
            response="",
            failed=498,
            total=498,
            waiting=490,
            dead=8,
            dead_by=((Fate.TRIED.value, 8),),
            disable_at_us=NOW_US + DAY_US,
        )
    ]


def _disabled() -> list[MailSection]:
    return [
        dataclasses.replace(
            _SHOP,
            kind=Kind.DISABLED,
            disabled_reason="failing",
            cause=Cause.REDIRECT,
            status=301,
            error="redirect: https://www.shop.example.com",
            since_us=NOW_US - 5 * DAY_US,
            response="<html><head><title>301 Moved Permanently</title></head></html>",
            failed=512,
            total=512,
            waiting=0,
            held=512,
            next_attempt_us=None,
            disable_at_us=None,
            held_until_us=NOW_US + 9 * DAY_US,
        )
    ]


def _held_expiring() -> list[MailSection]:
    return [
        dataclasses.replace(each, kind=Kind.HELD_EXPIRING, held_until_us=NOW_US + 2 * DAY_US, response="")
        for each in _disabled()
    ]


def _recovered() -> list[MailSection]:
    return [
        dataclasses.replace(
            _SHOP,
            kind=Kind.RECOVERED,
            since_us=NOW_US - 7 * HOUR_US,
            last_failure_us=NOW_US - HOUR_US,
            ended_us=NOW_US - HOUR_US * 3 // 4,
            last_success_us=NOW_US,
            types=(("order_created", 180), ("order_updated", 35)),
            failed=215,
            total=215,
            late=212,
            dead=3,
            dead_by=((Fate.TRIED.value, 3),),
            waiting=0,
            next_attempt_us=None,
            disable_at_us=None,
        )
    ]


def _flapping() -> list[MailSection]:
    return [
        dataclasses.replace(
            _SHOP,
            kind=Kind.FLAPPING,
            cause=Cause.THROTTLED,
            status=503,
            since_us=NOW_US - 20 * HOUR_US,
            last_success_us=NOW_US - HOUR_US,
            response="upstream connect error",
            failed=120,
            total=3_400,
            late=106,
            disable_at_us=None,
        )
    ]


def _several() -> list[MailSection]:
    """Return the sections of a mail to an owner of many sites: one dead server and three other problems."""
    sites = ("Bakery", "Florist", "Bookshop", "Tea House")
    dead = [
        dataclasses.replace(
            _SHOP,
            endpoint_id=100 + number,
            site_id=f"site-{number}",
            site_name=name,
            url=f"https://hooks.agency.example/{name.lower().replace(' ', '-')}",
            description=None,
            cause=Cause.CONNECTION,
            status=None,
            error="refused",
            response="",
            failed=20 + number,
            total=20 + number,
            waiting=20 + number,
            types=(("order_created", 20 + number),),
        )
        for number, name in enumerate(sites)
    ]
    warned = [
        dataclasses.replace(
            each,
            endpoint_id=8,
            site_id="site-8",
            site_name="Garden Tools",
            url="https://garden.example/webhook",
        )
        for each in _warning()
    ]
    return [*dead, *_disabled(), *warned, *_recovered()]


_MAKERS: Final[dict[str, Callable[[], list[MailSection]]]] = {
    "failing": _failing,
    "partly": _partly,
    "reminder": _reminder,
    "warning": _warning,
    "disabled": _disabled,
    "held_expiring": _held_expiring,
    "flapping": _flapping,
    "recovered": _recovered,
    "several": _several,
    "storm": list,
    "faults": list,
}
NAMES: Final = tuple(_MAKERS)  # every kind, and two more: a partly failing endpoint, and several at once
_FAULTS: Final = (
    OperatorLine(
        Cause.INVALID,
        "shop-17",
        "order created",
        42,
        12,
        NOW_US - HOUR_US,
        "evt_0009d6000000010660fa643be000",
    ),
    OperatorLine(
        Cause.TOO_LARGE, "shop-18", "product_updated", 43, 1, NOW_US, "evt_0009d6000000020660fa64a1d2c0"
    ),
    OperatorLine(
        Cause.BLOCKED,
        "shop-19",
        "order_created",
        44,
        1,
        NOW_US,
        "evt_0009d6000000030660fa64a1d2c1",
        "literal",
    ),
)


def sample(name: str, language: str = "en") -> Digest:
    """Return the sample digest with a name from NAMES.

    Raises:
        KeyError: the sample does not exist.
    """
    sections, _ = arranged(_MAKERS[name]())
    of_operator = name in OF_OPERATOR
    return Digest(
        kind=Kind(name) if of_operator else gravest([each.kind for each in sections]),
        owner_email="operator@shops.example" if of_operator else OWNER,
        language=language,
        at_us=NOW_US,
        since_us=min((each.since_us for each in sections), default=NOW_US - HOUR_US),
        sections=sections,
        more=12 if name == "several" else 0,
        unsubscribe_token=None if of_operator else "b5d1c0ffee",
        storm=(412, 903, 64) if name == Kind.STORM else None,
        faults=_FAULTS if name == Kind.FAULTS else (),
    )


def with_stand_ins(mail: MailSettings) -> MailSettings:
    """Return the settings with sample values for those not set, so that the letter is complete."""
    return mail.model_copy(
        update={name: value for name, value in _STAND_INS.items() if not getattr(mail, name)}
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Preview:
    """One rendered sample letter."""

    name: str
    language: str
    message: EmailMessage

    @property
    def subject(self) -> str:
        """The letter's subject."""
        return str(self.message["Subject"])

    @property
    def text(self) -> str:
        """The letter's plain text."""
        return self._part("plain")

    def write(self, folder: Path) -> list[Path]:
        """Write the letter as three files and return their paths; create the folder if it is missing.

        Raises:
            OSError: a file cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            "txt": self.text.encode(),
            "html": self._part("html").encode(),
            "eml": self.message.as_bytes(),
        }
        files = [folder / f"{self.name}.{self.language}.{ending}" for ending in contents]
        for file, content in zip(files, contents.values(), strict=True):
            file.write_bytes(content)
        return files

    def _part(self, subtype: str) -> str:
        body = self.message.get_body((subtype,))
        return "" if body is None else str(body.get_content()).replace("\r\n", "\n")


def preview(
    settings: Settings, names: Iterable[str] = NAMES, language: str | None = None
) -> tuple[list[Preview], tuple[str, ...]]:
    """Render samples in one language or in all; return them with the faults of the operator's templates.

    Raises:
        KeyError: the sample or the language does not exist.
    """
    letters = Letters(with_stand_ins(settings.mail), user_agent=settings.delivery.user_agent)
    languages = letters.languages if language is None else (language,)
    if not set(languages) <= set(letters.languages):
        raise KeyError(language)
    shown = [
        Preview(name, each, letters.render(sample(name, each), message_id=message_id(1, SENDER)))
        for each in languages
        for name in names
    ]
    return shown, letters.faults
