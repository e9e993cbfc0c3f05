"""How much endpoints that hang cost their neighbours: 100 endpoints, 20 of them never answer, default settings.

From the first second on, before any breaker opens. Pairs in turn: the 80 healthy ones alone, then beside the 20. Rate:
events already in the table, as many for each endpoint, what the healthy ones are delivered in so many seconds; they
answer after 100 ms, so that it is the slots that are short, and once more at once, where it is the machine (a parked
event costs it most of what a delivery does). Latency: a steady stream to all, from commit to arrival at the healthy.
Those that hang have a port of their own, and once more that of the healthy ones, whose share of the slots they hold.

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

from pghookd.cli.devtools.embedded_postgres import EmbeddedServer

ENDPOINTS, HANGING = 100, 20


class Slow(asyncio.Protocol):
    """Takes requests (each comes in one piece) and answers 100 ms later; asked for /mute, never."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write
        self._later = asyncio.get_running_loop().call_later

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"POST /mute"):
            self._later(0.1, self._write, b"HTTP/1.1 204 No Content\r\n\r\n")


async def _be_slow(ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(Slow, "127.0.0.1", port, backlog=1024)
    await loop.create_future()


@contextmanager
def slow() -> Iterator[tuple[str, str]]:
    """Run that receiver as a process of its own; yields the URLs of its two ports."""
    ports = free_port(), free_port()
    process = subprocess.Popen([sys.executable, __file__, "--slow", *map(str, ports)], env=dict(os.environ))
    try:
        yield f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
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


async def rate(own: EmbeddedServer, healthy: str, hanging: str | None, events: int, seconds: float) -> float:
    """Return the healthy endpoints' deliveries a second, from `ready` on."""
    url = await fresh(own, "bench")
    connection = await asyncpg.connect(url)
    await _fill(connection, healthy, hanging)
    await connection.execute(INSERT, ENDPOINTS, 0, events, ENDPOINTS // HANGING, hanging is not None)
    await connection.execute("checkpoint")
    async with running(url) as daemon:
        ready = str(daemon.log[-1]["timestamp"])
        await asyncio.sleep(seconds)
    delivered, last = await connection.fetchrow(
        """select count(*), extract(epoch from max(attempted_at) - $1::text::timestamptz)::float8
           from webhooks.attempts
           where outcome = 'delivered' and attempted_at < $1::text::timestamptz + $2::float8 * interval '1 s'""",
        ready,
        seconds,
    )
    assert delivered < events * 0.8, "they ran out of work"
    await connection.close()
    return float(delivered / last)


async def latencies(own: EmbeddedServer, healthy: str, hanging: str | None, seconds: float) -> list[float]:
    """Return milliseconds from commit to arrival at the healthy ones, 250 events a second for all."""
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


async def pair(
    figures: dict[str, list[float]],
    what: str,
    own: EmbeddedServer,
    hosts: tuple[str, str],
    seconds: float,
    per_s: int,
) -> None:
    """Measure rates alone and beside."""
    events = int(per_s * seconds * ENDPOINTS / (ENDPOINTS - HANGING))
    alone, beside = [await rate(own, hosts[0], each, events, seconds) for each in (None, hosts[1])]
    figures.setdefault(what, []).append(beside / alone)
    print(f"{time.strftime('%X')} {what}: {alone:.0f}/s alone, {beside:.0f}/s beside", flush=True)


async def waits(
    figures: dict[str, list[float]], own: EmbeddedServer, hosts: tuple[str, str], seconds: float
) -> None:
    """Measure latencies alone and beside."""
    calm, loud = [await latencies(own, hosts[0], each, seconds) for each in (None, hosts[1])]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        alone, beside = percentile(calm, share), percentile(loud, share)
        figures.setdefault(f"{name} latency", []).append(beside / alone)
        print(f"{time.strftime('%X')} {name}: {alone:.1f} ms alone, {beside:.1f} ms beside", flush=True)


async def main(*, quick: bool) -> None:
    short, minute, pairs = (2.0, 3.0, 1) if quick else (10.0, 60.0, 4)
    figures: dict[str, list[float]] = {}
    nginx = Nginx()
    counter = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    watched = f"http://127.0.0.1:{counter.sockets[0].getsockname()[1]}/"
    try:
        with server(max_wal_size="8GB") as own, slow() as (host, other):
            hook, mute = f"{host}/hook", f"{other}/mute"
            for n in range(pairs):
                await pair(figures, "from the first second", own, (hook, mute), short, 6_000)
                await pair(figures, "at one port", own, (hook, f"{host}/mute"), short, 6_000)
                await pair(figures, "answered at once", own, (nginx.url, mute), short, 30_000)
                await waits(figures, own, (watched, mute), short)
                if n % 3 == 0:
                    await pair(figures, "over a minute", own, (hook, mute), minute, 6_000)
    finally:
        nginx.stop()
        counter.close()
    kept = {f"{name}, ratio to alone": spread(values) for name, values in figures.items()}
    keep("neighbours", {**kept, "endpoints": ENDPOINTS, "of them hang": HANGING}, quick=quick)


if __name__ == "__main__":
    if "--slow" in sys.argv:
        uvloop.run(_be_slow([int(port) for port in sys.argv[2:]]))
    else:
        uvloop.run(main(quick="--quick" in sys.argv))
