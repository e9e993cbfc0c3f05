"""How much endpoints that hang cost their neighbours: 100 endpoints, 20 of them never answer, default settings.

From the first second on, before any breaker opens. Pairs in turn: the 80 healthy ones alone, then beside the 20. Rate:
events already in the table, as many for each endpoint, until the healthy ones have theirs. Latency: a steady stream to
all of them, from commit to arrival at the healthy ones.

usage: neighbours.py [--quick]
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import uvloop
from common import SECRET, Nginx, free_port, fresh, keep, percentile, running, server, spread
from latency import Receiver

from pghookd.edge.embedded import Server

ENDPOINTS, HANGING = 100, 20


class Mute(asyncio.Protocol):
    """Takes requests and never answers."""


async def _be_mute(port: int) -> None:
    await (await asyncio.get_running_loop().create_server(Mute, "127.0.0.1", port)).serve_forever()


@contextmanager
def mute() -> Iterator[str]:
    """Run a receiver that hangs, as a process of its own; yields its URL."""
    port = free_port()
    process = subprocess.Popen([sys.executable, __file__, "--mute", str(port)], env=dict(os.environ))
    try:
        yield f"http://127.0.0.1:{port}/hook"
    finally:
        process.kill()
        process.wait()


async def _fill(connection: asyncpg.Connection, healthy: str, hanging: str | None) -> None:
    """Make 80 sites that answer and, where `hanging` is given, 20 that do not, mixed among them."""
    await connection.execute(
        "insert into webhooks.sites (site_id, name) select 's' || n, 'S' from generate_series(0, $1::int - 1) n",
        ENDPOINTS,
    )
    await connection.execute(
        """insert into webhooks.endpoints (site_id, url, secret)
           select 's' || n, case when n % $1 = 0 then $2::text else $3 end, $4 from generate_series(0, $5::int - 1) n
           where n % $1 <> 0 or $2::text is not null""",
        ENDPOINTS // HANGING,
        hanging,
        healthy,
        SECRET,
        ENDPOINTS,
    )


INSERT = """insert into webhooks.events (site_id, type, payload)
  select 's' || n % $1, 'order_created', json_build_object('n', n, 'x', repeat('a', 400))
  from generate_series($2::int, $2::int + $3::int - 1) n
  where n % $1 % $4 <> 0 or $5"""


async def rate(own: Server, receiver: Nginx, hanging: str | None, events: int) -> float:
    """Return the healthy endpoints' deliveries a second, from `ready` to their last one."""
    url = await fresh(own, "bench")
    connection = await asyncpg.connect(url)
    await _fill(connection, receiver.url, hanging)
    every = ENDPOINTS // HANGING
    await connection.execute(INSERT, ENDPOINTS, 0, events, every, hanging is not None)
    await connection.execute("checkpoint")
    wanted = events * (every - 1) // every
    done = "select count(*) from webhooks.attempts where outcome = 'delivered'"
    async with running(url) as daemon, asyncio.timeout(300):
        started = str(daemon.log[-1]["timestamp"])
        while (await connection.fetchval(done)) < wanted:
            await asyncio.sleep(max(0.05, events / 400_000))
    took = await connection.fetchval(
        """select extract(epoch from max(attempted_at + duration_ms * interval '1 ms') - $1::text::timestamptz)::float8
           from webhooks.attempts where outcome = 'delivered'""",
        started,
    )
    await connection.close()
    return wanted / float(took)


async def latencies(own: Server, healthy: str, hanging: str | None, seconds: float) -> list[float]:
    """Return milliseconds from commit to arrival at the healthy ones, 200 events a second to each fifth endpoint's rest."""
    url = await fresh(own, "bench")
    connection = await asyncpg.connect(url)
    await _fill(connection, healthy, hanging)
    every, committed, first = ENDPOINTS // HANGING, {}, 0
    Receiver.arrived.clear()
    async with running(url):
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            await connection.execute(INSERT, ENDPOINTS, first, 5, every, hanging is not None)
            now = time.perf_counter()
            committed |= {n: now for n in range(first, first + 5) if n % every}
            first += 5
            await asyncio.sleep(max(0, began + first / 250 - time.perf_counter()))
        async with asyncio.timeout(20):
            while not committed.keys() <= Receiver.arrived.keys():
                await asyncio.sleep(0.01)
    await connection.close()
    return [1000 * (Receiver.arrived[n] - at) for n, at in committed.items()]


async def main(*, quick: bool) -> None:
    events, long, pairs, seconds = (5_000, 10_000, 1, 2.0) if quick else (100_000, 1_000_000, 6, 15.0)
    receiver = Nginx()
    counter = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    watched = f"http://127.0.0.1:{counter.sockets[0].getsockname()[1]}/"
    rates, minutes, p50, p99 = [], [], [], []
    try:
        with server(max_wal_size="8GB") as own, mute() as hanging:
            for n in range(pairs):
                alone, beside = (
                    await rate(own, receiver, None, events),
                    await rate(own, receiver, hanging, events),
                )
                rates.append(beside / alone)
                print(f"{time.strftime('%X')} alone {alone:.0f}/s, beside {beside:.0f}/s", flush=True)
                calm, loud = (
                    await latencies(own, watched, None, seconds),
                    await latencies(own, watched, hanging, seconds),
                )
                p50.append(percentile(loud, 0.5) / percentile(calm, 0.5))
                p99.append(percentile(loud, 0.99) / percentile(calm, 0.99))
                print(
                    f"p99 {percentile(calm, 0.99):.1f} ms alone, {percentile(loud, 0.99):.1f} ms beside",
                    flush=True,
                )
                if n < max(1, pairs // 3):
                    minutes.append(
                        await rate(own, receiver, hanging, long) / await rate(own, receiver, None, long)
                    )
                    print(f"over {long} events: {minutes[-1]:.2f}", flush=True)
    finally:
        receiver.stop()
        counter.close()
    keep(
        "neighbours",
        {
            "throughput from the first second, ratio to alone": spread(rates),
            "throughput over a minute, ratio to alone": spread(minutes),
            "p50 latency, ratio to alone": spread(p50),
            "p99 latency, ratio to alone": spread(p99),
            "events": events,
            "events over a minute": long,
        },
        quick=quick,
    )


if __name__ == "__main__":
    if "--mute" in sys.argv:
        uvloop.run(_be_mute(int(sys.argv[-1])))
    else:
        uvloop.run(main(quick="--quick" in sys.argv))
