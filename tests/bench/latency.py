"""Figure 4: from commit to arrival at 100 events a second on an idle system; the same beside an open writing transaction.

usage: latency.py [--quick]       milliseconds, from the moment the producer's COMMIT returned to the first byte received
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import ClassVar

import asyncpg
import uvloop
from common import SECRET, fresh, keep, percentile, running, server, spread

NUMBER = re.compile(rb'"n" : (\d+)')


class Receiver(asyncio.Protocol):
    """Notes when each event arrived; answers at once."""

    arrived: ClassVar[dict[int, float]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._data += data
        if (match := NUMBER.search(self._data)) and self._data.endswith(b"}"):
            self.arrived.setdefault(int(match[1]), now)
            self._data = b""
            self._transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


async def measure(connection: asyncpg.Connection, first: int, events: int) -> list[float]:
    committed: dict[int, float] = {}
    started = time.perf_counter()
    for i in range(events):
        await asyncio.sleep(max(0, started + i / 100 - time.perf_counter()))
        await connection.execute(
            "insert into webhooks.events (site_id, type, payload) values ('s', 'order_created', json_build_object('n', $1::int))",
            first + i,
        )
        committed[first + i] = time.perf_counter()
    async with asyncio.timeout(10):
        while not committed.keys() <= Receiver.arrived.keys():
            await asyncio.sleep(0.01)
    return [1000 * (Receiver.arrived[n] - at) for n, at in committed.items()]


async def main(*, quick: bool) -> None:
    events, rounds = (100, 1) if quick else (1_000, 8)
    receiver = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    port = receiver.sockets[0].getsockname()[1]
    idle, beside = [], []
    with server() as own:
        url = await fresh(own, "bench")
        producer, other = await asyncpg.connect(url), await asyncpg.connect(url)
        await producer.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
        await producer.execute(
            "insert into webhooks.endpoints (site_id, url, secret) values ('s', $1, $2)",
            f"http://127.0.0.1:{port}/",
            SECRET,
        )
        await producer.execute("create table elsewhere (n int)")
        async with running(url):
            await measure(producer, 0, 50)
            first = 1_000
            for _ in range(rounds):
                idle.append(await measure(producer, first, events))
                transaction = other.transaction()
                await transaction.start()
                await other.execute("insert into elsewhere values (1)")
                beside.append(await measure(producer, first + events, events))
                await transaction.rollback()
                first += 2 * events
        await producer.close()
        await other.close()
    receiver.close()
    medians = [percentile(b, 0.5) / percentile(i, 0.5) for i, b in zip(idle, beside, strict=True)]
    tails = [percentile(b, 0.99) / percentile(i, 0.99) for i, b in zip(idle, beside, strict=True)]
    keep(
        "latency",
        {
            "p50 ms": spread([percentile(r, 0.5) for r in idle]),
            "p99 ms": spread([percentile(r, 0.99) for r in idle]),
            "p50 ms beside an open transaction": spread([percentile(r, 0.5) for r in beside]),
            "p99 ms beside an open transaction": spread([percentile(r, 0.99) for r in beside]),
            "ratio of p50 beside an open transaction": spread(medians),
            "ratio of p99 beside an open transaction": spread(tails),
            "events a round": events,
        },
        quick=quick,
    )


if __name__ == "__main__":
    uvloop.run(main(quick="--quick" in sys.argv))
