"""Loads large payloads for the lanes that need them next, before they take a request slot.

One statement at a time, on a session of its own. Sites take turns, and each has a share of the bytes
(scheduling/payload_loads). A site whose share is used up waits until its requests have ended; other sites do not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pghookd.model.delivery import Delivery, Loaded, Reason
from pghookd.postgres.client import Session, query
from pghookd.scheduling.lane import Lane
from pghookd.scheduling.payload_loads import PayloadLoads


class PayloadLoader:
    """Runs until cancelled; call `wake` when lanes want payloads or bytes have become free.

    Attributes:
        payload_bytes_max: a larger payload is not loaded.
    """

    def __init__(
        self, session: Session, loads: PayloadLoads, *, payload_bytes_max: int, loaded: Callable[[], None]
    ) -> None:
        self._session = session
        self._loads = loads
        self.payload_bytes_max = payload_bytes_max
        self._loaded = loaded
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """Check whether a payload may be loaded now."""
        self._wanted.set()

    async def run(self) -> None:
        """Load the wanted payloads that have room."""
        while True:
            self._wanted.clear()
            while (wanted := self._loads.next()) is not None:
                await self._load(*wanted)
                self._loaded()
            await self._wanted.wait()

    async def _load(self, lane: Lane, delivery: Delivery, room: int) -> None:
        """Load one payload, or find out how much room it needs."""
        largest = self.payload_bytes_max
        allowed = largest if room >= self._loads.budget.cost(largest) else min(room, largest)
        row = await self._session.fetchrow(query("load_payload"), delivery.event.event_id, allowed)
        if row is None:  # its day was dropped
            self._loads.put(lane, delivery, Loaded(None, Reason.EXPIRED))
        elif row["bytes"] > largest:
            self._loads.put(lane, delivery, Loaded(None, Reason.TOO_LARGE))
        elif row["payload"] is None:
            self._loads.put_back(lane, self._loads.budget.cost(row["bytes"]))
        else:
            self._loads.put(
                lane, delivery, Loaded(row["payload"], None, self._loads.budget.cost(row["bytes"]))
            )
