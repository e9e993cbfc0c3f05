"""The cost of bad filters for other sites: from commit to arrival at 20 sites without a filter, 100 events a second, beside
three more sites, whose filters raise, take 4 seconds, and match everything, 15 events a second each.

Slices of two seconds in turn, under one daemon: nobody beside them, three sites with as many events and no filters, and
those three. A new daemon on a new database after some rounds, so that it meets the filters for the first time again.

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

from pghookd.cli.devtools.embedded_postgres import EmbeddedServer

SITES, PER_S, BESIDE_PER_S = 20, 100, 15
SLOW_S = 4.0
NUMBERS = list(range(60))
FILTERS = {
    "raises": "$.text > 1",  # jsonb cannot hold its payload
    "slow": "exists($.a[*] ? (@ == -1))",  # nested until it takes so long
    "all": "exists($.**)",
}
SLICE_S, ROUNDS = 2.0, 10
KINDS = ("alone", "plain", "bad")
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


async def _fill(connection: asyncpg.Connection, url: str, beside: str, slow: str) -> None:
    """Make the sites that are watched, and those beside them: `plain` and `bad` ones."""
    await connection.execute(
        "insert into webhooks.sites (site_id, name) select 's' || n, 'S' from generate_series(0, $1::int - 1) n",
        SITES,
    )
    await connection.execute(
        "insert into webhooks.endpoints (site_id, url, secret) select site_id, $1, $2 from webhooks.sites",
        url,
        SECRET,
    )
    for name, text in {**FILTERS, "slow": slow}.items():
        for kind, of_kind in (("plain", None), ("bad", text)):
            site = f"{kind} {name}"
            await connection.execute("insert into webhooks.sites (site_id, name) values ($1, $1)", site)
            await connection.execute(
                "insert into webhooks.endpoints (site_id, url, secret, filter) values ($1, $2, $3, $4::text::jsonpath)",
                site, beside, SECRET, of_kind,
            )  # fmt: skip


async def _disturb(connection: asyncpg.Connection, kind: str) -> None:
    """Insert events for those beside during a slice."""
    began = time.perf_counter()
    for n in range(int(SLICE_S * BESIDE_PER_S) if kind != "alone" else 0):
        await asyncio.sleep(max(0, began + n / BESIDE_PER_S - time.perf_counter()))
        for name, payload in PAYLOADS.items():
            await connection.execute(INSERT, f"{kind} {name}", payload)


async def _watch(connection: asyncpg.Connection, first: int) -> dict[int, float]:
    """Insert events for the sites that are watched during a slice; return when each was committed."""
    committed: dict[int, float] = {}
    began = time.perf_counter()
    for n in range(int(SLICE_S * PER_S)):
        await asyncio.sleep(max(0, began + n / PER_S - time.perf_counter()))
        await connection.execute(INSERT, f"s{n % SITES}", f'{{"n" : {first + n}}}')
        committed[first + n] = time.perf_counter()
    return committed


async def life(
    own: EmbeddedServer, hosts: tuple[str, str], slow: str, rounds: int
) -> list[dict[str, list[float]]]:
    """Return milliseconds from commit to arrival, for each round, by the kind of neighbours."""
    url = await fresh(own, "bench")
    connection, other = await asyncpg.connect(url), await asyncpg.connect(url)
    await _fill(connection, *hosts, slow)
    Receiver.arrived.clear()
    first, found = 0, list[dict[str, list[float]]]()
    async with running(url):
        await _watch(connection, 1_000_000)
        for n in range(rounds):
            found.append({})
            for kind in KINDS[n % 3 :] + KINDS[: n % 3]:
                committed, _ = await asyncio.gather(_watch(connection, first), _disturb(other, kind))
                first += len(committed)
                async with asyncio.timeout(20):
                    while not committed.keys() <= Receiver.arrived.keys():
                        await asyncio.sleep(0.01)
                found[-1][kind] = [1000 * (Receiver.arrived[n] - at) for n, at in committed.items()]
    await _check(connection, rounds)
    await connection.close()
    await other.close()
    return found


async def _check(connection: asyncpg.Connection, rounds: int) -> None:
    """See that the slow one's events are parked, and that the others' were delivered."""
    parked = await connection.fetchval(
        "select count(*) from webhooks.backlog where site_id = 'bad slow' and reason = 'filter_slow'"
    )
    delivered = await connection.fetchval(
        "select count(*) from webhooks.attempts where site_id in ('bad raises', 'bad all') and outcome = 'delivered'"
    )
    each = rounds * int(SLICE_S * BESIDE_PER_S)
    assert parked == each, parked
    assert delivered >= 2 * each - 10, delivered


async def main(*, quick: bool) -> None:
    rounds, lives = (2, 1) if quick else (ROUNDS, 4)
    found: list[dict[str, list[float]]] = []
    nginx = Nginx()
    receiver = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    hosts = (f"http://127.0.0.1:{receiver.sockets[0].getsockname()[1]}/", nginx.url)
    try:
        with server() as own:
            connection = await asyncpg.connect(own.url())
            slow = await slow_filter(connection)
            await connection.close()
            for _ in range(lives):
                found += await life(own, hosts, slow, rounds)
                print(f"{time.strftime('%X')} {len(found)} rounds", flush=True)
    finally:
        nginx.stop()
        receiver.close()
    figures: dict[str, object] = {}
    for name, share, grouped in (
        ("p50", 0.5, 1),
        ("p99", 0.99, rounds),
    ):  # of a round, and of a daemon's life
        groups = [found[at : at + grouped] for at in range(0, len(found), grouped)]
        ms = {
            kind: [percentile([x for each in group for x in each[kind]], share) for group in groups]
            for kind in KINDS
        }
        figures[f"{name} ms alone"] = spread(ms["alone"])
        for kind in KINDS[1:]:
            ratios = [beside / alone for beside, alone in zip(ms[kind], ms["alone"], strict=True)]
            figures[f"{name} beside {kind} neighbours, ratio to alone"] = spread(ratios)
    keep("filters", {**figures, "events a second": PER_S}, quick=quick)


if __name__ == "__main__":
    uvloop.run(main(quick="--quick" in sys.argv))
