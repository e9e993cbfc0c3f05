"""Limits the bytes of large payloads in memory, shared by the sites. They are taken before a request slot.

A payload of over 16 KB is not read with its page. It is loaded when its delivery is the next of a lane, and kept until
the request has ended.

    owner                 may hold                          at the limit
    a site that has any   a half, and not the last quarter  its lanes wait until bytes of payloads are free again
    a site that has none  all of them                       likewise

A payload counts for at most a quarter of all bytes, so that a payload of any allowed size can be sent. Up to four of
these may be in memory together.

Never here: loading (delivery/payloads), a clock.
"""

from __future__ import annotations

import dataclasses
from typing import Final

SITE_SHARE: Final = 0.5
RESERVED: Final = 0.75  # beyond this share, only sites without a large payload in memory may take bytes
LARGEST: Final = 0.25  # maximum share that one payload counts for


@dataclasses.dataclass(slots=True, eq=False)
class PayloadBudget:
    """The bytes of all large payloads in memory.

    Attributes:
        size: the limit, bytes.
        used: cost of the payloads in memory, bytes.
    """

    size: int
    used: int = 0

    def room(self, held: int) -> int:
        """Return how many more bytes a site may take that already holds `held`."""
        if not held:
            return max(0, self.size - self.used)
        return max(0, min(int(self.size * SITE_SHARE) - held, int(self.size * RESERVED) - self.used))

    def cost(self, payload_bytes: int) -> int:
        """Return the bytes that a payload counts for."""
        return min(payload_bytes, int(self.size * LARGEST))
