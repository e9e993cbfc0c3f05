"""Bytes of large payloads: how much of them may be in memory, shared by sites, and taken before a request slot is.

A payload of over 16 KB does not travel with its page. It is loaded when its delivery is the next of a lane, and held
until the request has ended.

    who                   may hold                          at the bound
    a site that has any   a half, and not the last quarter  its lanes wait until bytes of payloads are free again
    a site that has none  all there is                      likewise

A payload counts for a quarter of all at the most, so that one of any allowed size can be sent: up to four such may be
in memory together.

Never here: loading (delivery/payloads), a clock.
"""

from __future__ import annotations

import dataclasses
from typing import Final

SITE_SHARE: Final = 0.5
RESERVED: Final = 0.75  # beyond, only sites without any payload in memory take bytes
LARGEST: Final = 0.25  # what one payload counts for at the most


@dataclasses.dataclass(slots=True, eq=False)
class PayloadBudget:
    """The bytes of all large payloads in memory.

    Attributes:
        size: bytes.
        used: bytes.
    """

    size: int
    used: int = 0

    def room(self, held: int) -> int:
        """Return how many bytes a site that holds so many may take."""
        if not held:
            return max(0, self.size - self.used)
        return max(0, min(int(self.size * SITE_SHARE) - held, int(self.size * RESERVED) - self.used))

    def cost(self, payload_bytes: int) -> int:
        """Return what a payload counts for."""
        return min(payload_bytes, int(self.size * LARGEST))
