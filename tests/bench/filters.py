"""What bad filters cost other sites: from commit to arrival at 20 sites without a filter, 100 events a second, beside
three more sites, whose filters raise, take 4 seconds, and match everything, 15 events a second each.

In turn: nobody beside them, three sites that have no filters and as many events, and those three. Each time from the
start of a daemon on a new database, so that it meets the filters for the first time.

usage: filters.py [--quick]       milliseconds, from the moment the producer's COMMIT returned to the first byte received
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import asyncpg
import uvloop
from common import SECRET, Nginx, fresh, keep, percentile, running, server, spread
from latency import Receiver

from pghookd.edge.embedded import Server

SITES, PER_S, BESIDE_PER_S = 20, 100, 15
SLOW_S = 4.0
NUMBERS = list(range(60))
FILTERS = {
    "raises": "$.text > 1",  # and its payload is none that jsonb can hold
    "slow": "exists($.a[*] ? (@ == -1))",  # nested until it takes so long
    "all": "exists($.**)",
}
PAYLOADS = {
    "raises": '{"text": "\\u0000"}',
    "slow": json.dumps({"a": NUMBERS}),
    "all": json.dumps({"a": NUMBERS}),
}
INSERT = "insert into webhooks.events (site_id, type, payload) values ($1, 'order_created', $2)"


async def slow_filter(connection: asyncpg.Connection) -> str:
    """Return a filter that takes SLOW_S or longer with its payload, on this machine."""
    text = FILTERS["slow"]
    while True:
        began = time.perf_counter()
        try:
            await connection.execute("set statement_timeout = '4s'")
            await connection.fetchval(f"select $1::jsonb @@ '{text}'", PAYLOADS["slow"])
        except asyncpg.QueryCanceledError:
            return text
        finally:
            await connection.execute("reset statement_timeout")
        assert time.perf_counter() - began < SLOW_S
        text = f"exists($.a[*] ? ({text}))"


async def _fill(
    connection: asyncpg.Connection, url: str, beside: str, filters: dict[str, str | None]
) -> None:
    """Make the sites that are watched, and those beside them."""
    await connection.execute(
        "insert into webhooks.sites (site_id, name) select 's' || n, 'S' from generate_series(0, $1::int - 1) n",
        SITES,
    )
    await connection.execute(
        "insert into webhooks.endpoints (site_id, url, secret) select site_id, $1, $2 from webhooks.sites",
        url,
        SECRET,
    )
    for name, text in filters.items():
        await connection.execute("insert into webhooks.sites (site_id, name) values ($1, $1)", name)
        await connection.execute(
            "insert into webhooks.endpoints (site_id, url, secret, filter) values ($1, $2, $3, $4::text::jsonpath)",
            name,
            beside,
            SECRET,
            text,
        )


async def _disturb(connection: asyncpg.Connection, names: list[str]) -> None:
    """Insert events for those beside until cancelled."""
    began, n = time.perf_counter(), 0
    while names:
        for name in names:
            await connection.execute(INSERT, name, PAYLOADS[name])
        n += 1
        await asyncio.sleep(max(0, began + n / BESIDE_PER_S - time.perf_counter()))


async def latencies(
    own: Server, hosts: tuple[str, str], filters: dict[str, str | None], seconds: float
) -> list[float]:
    """Return milliseconds from commit to arrival at the sites that are watched."""
    url = await fresh(own, "bench")
    connection, other = await asyncpg.connect(url), await asyncpg.connect(url)
    await _fill(connection, *hosts, filters)
    committed: dict[int, float] = {}
    Receiver.arrived.clear()
    async with running(url):
        disturbing = asyncio.create_task(_disturb(other, list(filters)))
        began = time.perf_counter()
        for n in range(int(seconds * PER_S)):
            await asyncio.sleep(max(0, began + n / PER_S - time.perf_counter()))
            await connection.execute(INSERT, f"s{n % SITES}", f'{{"n" : {n}}}')
            committed[n] = time.perf_counter()
        async with asyncio.timeout(20):
            while not committed.keys() <= Receiver.arrived.keys():
                await asyncio.sleep(0.01)
        disturbing.cancel()
        await asyncio.wait([disturbing])
    if any(filters.values()):
        await _check(connection, seconds)
    await connection.close()
    await other.close()
    return [1000 * (Receiver.arrived[n] - at) for n, at in committed.items()]


async def _check(connection: asyncpg.Connection, seconds: float) -> None:
    """See that the slow one's events are parked, and that the others' were delivered."""
    parked = await connection.fetchval(
        "select count(*) from webhooks.backlog where site_id = 'slow' and reason = 'filter_slow'"
    )
    delivered = await connection.fetchval(
        "select count(*) from webhooks.attempts where site_id in ('raises', 'all') and outcome = 'delivered'"
    )
    least = 0.8 * seconds * BESIDE_PER_S
    assert parked > least, parked
    assert delivered > 2 * least, delivered


async def main(*, quick: bool) -> None:
    seconds, pairs = (3.0, 1) if quick else (20.0, 8)
    figures: dict[str, list[float]] = {}
    nginx = Nginx()
    receiver = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    hosts = (f"http://127.0.0.1:{receiver.sockets[0].getsockname()[1]}/", nginx.url)
    try:
        with server() as own:
            connection = await asyncpg.connect(own.url())
            bad: dict[str, str | None] = {**FILTERS, "slow": await slow_filter(connection)}
            await connection.close()
            plain = dict.fromkeys(FILTERS)
            for _ in range(pairs):
                alone, calm, beside = [
                    await latencies(own, hosts, each, seconds) for each in ({}, plain, bad)
                ]
                for name, share in (("p50", 0.5), ("p99", 0.99)):
                    a, c, b = [percentile(each, share) for each in (alone, calm, beside)]
                    print(f"{time.strftime('%X')} {name}: {a:.2f} {c:.2f} {b:.2f} ms", flush=True)
                    figures.setdefault(f"{name} ms alone", []).append(a)
                    figures.setdefault(f"{name} ms beside them", []).append(b)
                    figures.setdefault(f"{name}, ratio to alone", []).append(b / a)
                    figures.setdefault(f"{name}, ratio beside as many events without filters", []).append(
                        b / c
                    )
    finally:
        nginx.stop()
        receiver.close()
    kept = {name: spread(values) for name, values in figures.items()}
    keep("filters", {**kept, "events a round": int(seconds * PER_S)}, quick=quick)


if __name__ == "__main__":
    uvloop.run(main(quick="--quick" in sys.argv))
