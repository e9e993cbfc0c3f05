"""The cost of a site that floods the log, for others: from commit to arrival at 20 sites, 100 events a second, while one more
site, with 20 endpoints, has had 20,000 events inserted at once, 400,000 deliveries.

Slices of ten seconds, alone and beside the flood, on a new database each time.

usage: flood.py [--quick]       milliseconds, from the moment the producer's COMMIT returned to the first byte received
"""

from __future__ import annotations

import asyncio
import sys
import time

import asyncpg
import uvloop
from common import SECRET, Nginx, fresh, keep, percentile, running, server, spread
from latency import Receiver

from pghookd.cli.devtools.embedded_postgres import EmbeddedServer

SITES, PER_S, SLICE_S, ROUNDS = 20, 100, 10.0, 5
ENDPOINTS, FLOOD = 20, 20_000
INSERT = "insert into webhooks.events (site_id, type, payload) values ($1, 'order_created', $2)"
FLOODED = """insert into webhooks.events (site_id, type, payload)
select 'flood', 'product_updated', json_build_object('item', n) from generate_series(1, $1) n"""


async def _fill(connection: asyncpg.Connection, url: str, beside: str) -> None:
    await connection.execute(
        "insert into webhooks.sites (site_id, name) select 's' || n, 'S' from generate_series(0, $1::int - 1) n",
        SITES,
    )
    await connection.execute(
        "insert into webhooks.endpoints (site_id, url, secret) select site_id, $1, $2 from webhooks.sites",
        url,
        SECRET,
    )
    await connection.execute("insert into webhooks.sites (site_id, name) values ('flood', 'F')")
    await connection.execute(
        "insert into webhooks.endpoints (site_id, url) select 'flood', $1 from generate_series(1, $2)",
        beside,
        ENDPOINTS,
    )


async def _watch(connection: asyncpg.Connection, seconds: float, first: int = 0) -> dict[int, float]:
    """Insert events for the sites that are watched; return when each was committed."""
    committed: dict[int, float] = {}
    began = time.perf_counter()
    for n in range(int(seconds * PER_S)):
        await asyncio.sleep(max(0, began + n / PER_S - time.perf_counter()))
        await connection.execute(INSERT, f"s{n % SITES}", f'{{"n" : {first + n}}}')
        committed[first + n] = time.perf_counter()
    return committed


async def life(own: EmbeddedServer, hosts: tuple[str, str], slice_s: float, flood: int) -> list[float]:
    """Return milliseconds from commit to arrival at the sites that are watched; 0: beside nobody."""
    url = await fresh(own, "bench")
    connection, other = await asyncpg.connect(url), await asyncpg.connect(url)
    await _fill(connection, *hosts)
    async with running(url):
        await _watch(connection, 2.0, first=1_000_000)
        Receiver.arrived.clear()
        inserting = asyncio.create_task(other.execute(FLOODED, flood))
        committed = await _watch(connection, slice_s)
        await inserting
        async with asyncio.timeout(120):
            while not committed.keys() <= Receiver.arrived.keys():
                await asyncio.sleep(0.01)
    await connection.close()
    await other.close()
    return [1000 * (Receiver.arrived[n] - at) for n, at in committed.items()]


async def main(*, quick: bool) -> None:
    rounds, slice_s, flood = (1, 2.0, 1000) if quick else (ROUNDS, SLICE_S, FLOOD)
    found: dict[str, list[list[float]]] = {"alone": [], "beside": []}
    nginx = Nginx()
    receiver = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    hosts = (f"http://127.0.0.1:{receiver.sockets[0].getsockname()[1]}/", nginx.url)
    try:
        with server() as own:
            for _ in range(rounds):
                for kind, size in (("alone", 0), ("beside", flood)):
                    found[kind].append(await life(own, hosts, slice_s, size))
                    taken = found[kind][-1]
                    print(
                        f"{time.strftime('%X')} {kind} {percentile(taken, 0.5):.1f} {max(taken):.0f}",
                        flush=True,
                    )
    finally:
        nginx.stop()
        receiver.close()
    figures: dict[str, object] = {}
    for kind, lives in found.items():
        figures[f"{kind}_p50_ms"] = spread([percentile(each, 0.5) for each in lives], 1)
        figures[f"{kind}_p99_ms"] = spread([percentile(each, 0.99) for each in lives], 1)
    figures["slowest_beside_ms"] = round(max(max(each) for each in found["beside"]))
    keep("flood", figures, quick=quick)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(quick="--quick" in sys.argv))
