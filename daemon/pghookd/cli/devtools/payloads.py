"""Sample events of a made-up shop: the platform's six types, with realistic payloads.

Never here: sending, or names and addresses of real people (example domains only).
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import orjson

Payload: TypeAlias = dict[str, Any]

_PEOPLE: Final = (
    "Ada Byron",
    "Grace Murray",
    "Emmy Noether",
    "Katherine Coleman",
    "Mary Fairfax",
    "Jose Núñez",
)
_GOODS: Final = (("MUG-1", "Mug", 1495), ("TEA-7", "Darjeeling, 100 g", 990), ("LAMP-2", "Desk lamp", 4900))
_QUESTIONS: Final = (
    "Do you ship to Lisbon?",
    "Is the lamp dimmable?",
    "Können Sie gravieren?",
    "When do you open?",
)
_STATUSES: Final = ("paid", "packed", "shipped", "refunded")


@dataclasses.dataclass(frozen=True, slots=True)
class Occurrence:
    """One event of a site, ready to be inserted into `events`."""

    type: str
    payload: bytes
    subject: str | None


class Shop:
    """Generates occurrences, of all six types in turn."""

    def __init__(self, site_id: str, chance: random.Random) -> None:
        self._site_id = site_id
        self._chance = chance
        self._numbers = itertools.count(chance.randrange(1000, 9000))
        self._makers: itertools.cycle[Callable[[int], tuple[str, str | None, Payload]]] = itertools.cycle(
            (
                self._order_created,
                self._contact_updated,
                self._order_updated,
                self._product_updated,
                self._form_submitted,
                self._product_created,
            )
        )

    def next(self) -> Occurrence:
        """Return the next occurrence."""
        event_type, subject, payload = next(self._makers)(next(self._numbers))
        return Occurrence(event_type, orjson.dumps(payload), subject)

    def _order_created(self, number: int) -> tuple[str, str, Payload]:
        return "order_created", f"order/{number}", self._order(number, "pending")

    def _order_updated(self, number: int) -> tuple[str, str, Payload]:
        return "order_updated", f"order/{number}", self._order(number, self._chance.choice(_STATUSES))

    def _product_created(self, number: int) -> tuple[str, str, Payload]:
        return "product_created", f"product/{number}", self._product(number)

    def _product_updated(self, number: int) -> tuple[str, str, Payload]:
        return "product_updated", f"product/{number}", self._product(number)

    def _contact_updated(self, number: int) -> tuple[str, str, Payload]:
        return "contact_updated", f"contact/{number}", self._contact(number)

    def _form_submitted(self, number: int) -> tuple[str, None, Payload]:
        contact = self._contact(number)
        message = self._chance.choice(_QUESTIONS)
        values = [{"field": "email", "value": contact["email"]}, {"field": "message", "value": message}]
        website = {"id": self._site_id, "domain": f"{self._site_id}.example"}
        return (
            "form_submitted",
            None,
            {
                "website": website,
                "contact": contact,
                "formName": "Contact",
                "formValues": values,
            },
        )

    def _order(self, number: int, status: str) -> Payload:
        items = [self._item(line) for line in range(1, self._chance.randint(1, 3) + 1)]
        total = sum(item["total"] for item in items)
        contact = self._contact(number)
        address = {"line1": "1 Example Street", "city": "Lisbon", "postcode": "1100-148", "country": "PT"}
        return {
            "id": number,
            "contactId": contact["id"],
            "invoiceNo": f"INV-{number}",
            "customerName": contact["name"],
            "customerEmail": contact["email"],
            "billingAddress": address,
            "shippingAddress": address,
            "subTotal": total,
            "shippingAmount": 4.9,
            "total": round(total + 4.9, 2),
            "paid": status != "pending",
            "paymentMethod": "card",
            "status": status,
            "taxes": [{"name": "VAT", "rate": 23, "amount": round(total * 0.187, 2)}],
            "items": items,
            "currency": "EUR",
            "tags": [],
            "notes": [],
        }

    def _item(self, line: int) -> Payload:
        sku, name, cents = self._chance.choice(_GOODS)
        quantity = self._chance.randint(1, 4)
        return {
            "id": line,
            "name": name,
            "sku": sku,
            "quantity": quantity,
            "price": cents / 100,
            "total": cents * quantity / 100,
            "type": "physical",
            "variation": [],
        }

    def _product(self, number: int) -> Payload:
        sku, name, cents = self._chance.choice(_GOODS)
        stock = self._chance.randint(0, 200)
        return {
            "id": number,
            "name": name,
            "sku": sku,
            "price": cents / 100,
            "currency": "EUR",
            "stock": stock,
            "visible": stock > 0,
        }

    def _contact(self, number: int) -> Payload:
        name = self._chance.choice(_PEOPLE)
        mailbox = name.split()[0].lower()
        return {
            "id": number,
            "name": name,
            "email": f"{mailbox}.{number}@example.com",
            "phone": "+351 555 0100",
            "properties": [],
            "tags": ["customer"],
            "subscribed": self._chance.random() < 0.5,  # noqa: PLR2004 - half of the contacts
        }
