"""Figure 9: what a replay of 100,000 deliveries at 500 a second does to live traffic of 1,000 a second to the same endpoints.

usage: replay.py [--quick]       milliseconds from the return of COMMIT to the last byte received, with a replay and without
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

LIVE_PER_S = 1_000
REPLAYED_PER_S = 500
PAIRS = 5
ENDPOINTS = 50  # of a site each
TICK_S = 0.01
NUMBER = re.compile(rb'"n" : (\d+)')
INSERT = """insert into webhooks.events (site_id, type, payload)
select 's' || g % $3::int, 'order_created', json_build_object('n', g) from generate_series($1::int, $1::int + $2::int - 1) g"""
DEAD = """with made as (
  insert into webhooks.events (site_id, type, payload, endpoint_id)
  select 's' || g % $2::int, 'order_created', json_build_object('old', g), -1 from generate_series(1, $1::int) g
  returning event_id, site_id)
insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)
select event_id, endpoint_id, site_id, 'exhausted', 10 from made join webhooks.endpoints using (site_id)"""
START = (
    "select replay_id from webhooks.replay(types => '{order_created}', rate_per_s => $1, dry_run => false)"
)


class Receiver(asyncio.Protocol):
    """Notes when each live event arrived, and counts the rest; answers at once."""

    arrived: ClassVar[dict[int, float]] = {}
    others: ClassVar[int] = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._data.endswith(b"}}"):
            return
        if match := NUMBER.search(self._data):
            self.arrived.setdefault(int(match[1]), time.perf_counter())
        else:
            Receiver.others += 1
        self._data = b""
        self._transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


async def live(connection: asyncpg.Connection, first: int, seconds: float) -> list[float]:
    """Insert at a steady rate; return how long each event took."""
    committed: dict[int, float] = {}
    per_tick = int(LIVE_PER_S * TICK_S)
    started = time.perf_counter()
    for tick in range(int(seconds / TICK_S)):
        await asyncio.sleep(max(0, started + tick * TICK_S - time.perf_counter()))
        at = first + tick * per_tick
        await connection.execute(INSERT, at, per_tick, ENDPOINTS)
        committed.update(dict.fromkeys(range(at, at + per_tick), time.perf_counter()))
    async with asyncio.timeout(30):
        while not committed.keys() <= Receiver.arrived.keys():
            await asyncio.sleep(0.01)
    took = [1000 * (Receiver.arrived[n] - at) for n, at in committed.items()]
    Receiver.arrived.clear()
    return took


async def replayed(connection: asyncpg.Connection, total: int) -> float:
    """Wait for a replay's end; return its rate in deliveries a second."""
    async with asyncio.timeout(60 + 2 * total / REPLAYED_PER_S):
        while (await connection.fetchval("select count(*) from webhooks.replays where state <> 'done'")) or (
            await connection.fetchval("select count(*) from webhooks.backlog")
        ):
            await asyncio.sleep(0.1)
    row = await connection.fetchrow(
        "select done, extract(epoch from ended_at - started_at)::float8 as took from webhooks.replays order by replay_id desc limit 1"
    )
    assert row["done"] == total, row
    return total / max(row["took"], 1e-3)


async def prepare(producer: asyncpg.Connection, port: int) -> None:
    await producer.execute(
        "insert into webhooks.sites (site_id, name) select 's' || n, 'S' from generate_series(0, $1::int - 1) n",
        ENDPOINTS,
    )
    await producer.execute(
        "insert into webhooks.endpoints (site_id, url, secret) select site_id, $1 || site_id, $2 from webhooks.sites",
        f"http://127.0.0.1:{port}/",
        SECRET,
    )


async def main(*, quick: bool) -> None:
    seconds, alone_seconds, pairs = (4, 4, 1) if quick else (200, 60, PAIRS)
    total = seconds * REPLAYED_PER_S
    receiver = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    alone: list[list[float]] = []
    beside: list[list[float]] = []
    rates: list[float] = []
    with server(max_wal_size="8GB") as own:
        url = await fresh(own, "bench")
        producer, operator = await asyncpg.connect(url), await asyncpg.connect(url)
        await prepare(producer, receiver.sockets[0].getsockname()[1])
        first = 1_000_000
        async with running(url):
            await live(producer, 0, 2)
            for pair in range(pairs):
                await operator.execute(DEAD, total, ENDPOINTS)
                for with_replay in (False, True) if pair % 2 == 0 else (True, False):
                    if with_replay:
                        await operator.execute(START, REPLAYED_PER_S)
                    lasts = seconds if with_replay else alone_seconds
                    (beside if with_replay else alone).append(await live(producer, first, lasts))
                    first += lasts * LIVE_PER_S
                    if with_replay:
                        rates.append(await replayed(operator, total))
        await producer.close()
        await operator.close()
    receiver.close()
    assert Receiver.others == pairs * total, Receiver.others
    keep("replay", figures(alone, beside, rates) | {"replayed a round": total}, quick=quick)


def figures(alone: list[list[float]], beside: list[list[float]], rates: list[float]) -> dict[str, object]:
    both = list(zip(alone, beside, strict=True))
    return {
        "live p50 ms": spread([percentile(a, 0.5) for a in alone]),
        "live p50 ms beside a replay": spread([percentile(b, 0.5) for b in beside]),
        "live p99 ms": spread([percentile(a, 0.99) for a in alone]),
        "live p99 ms beside a replay": spread([percentile(b, 0.99) for b in beside]),
        "ratio of live p50": spread([percentile(b, 0.5) / percentile(a, 0.5) for a, b in both]),
        "ratio of live p99": spread([percentile(b, 0.99) / percentile(a, 0.99) for a, b in both]),
        "live p99 ms above 1.2 times that without": spread(
            [percentile(b, 0.99) - 1.2 * percentile(a, 0.99) for a, b in both]
        ),
        "slowest live ms beside a replay": spread([max(b) for b in beside]),
        "replayed a second": spread(rates, 1),
    }


if __name__ == "__main__":
    uvloop.run(main(quick="--quick" in sys.argv))
