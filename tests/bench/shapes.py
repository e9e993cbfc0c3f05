"""Shapes of load: many sites or one, few endpoints or many, live and catching up, ordered or not.

Each shape's rate is compared with that of one site with one endpoint, measured before and after it in the same run. An
endpoint gets ten deliveries at least: the first prepares it, and takes twice as long.

usage: shapes.py [--quick] [NAME...]       NAME: a part of a shape's name; without one, all
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import sys
import time
from datetime import datetime

import asyncpg
from common import SECRET, Nginx, fresh, keep, running, server, spread

from pghookd.cli.devtools.embedded_postgres import EmbeddedServer

IN_FLIGHT = 64
DELIVERIES, ONE_BY_ONE, ROUNDS = 20_000, 2_000, 5
AN_ENDPOINT = 10  # deliveries at least
CHUNK = 200  # events that a producer of a live shape inserts in one transaction
SITES = """insert into webhooks.sites (site_id, name, url)
select 's' || n, 'S', 'https://shop.example' from generate_series(0, $1::int - 1) n"""
ENDPOINTS = """insert into webhooks.endpoints (site_id, url, secret, ordered)
select 's' || s, $3, $4, $5 from generate_series(0, $1::int - 1) s, generate_series(1, $2::int)"""
# Of all sites in turn, as on a platform; each with one of so many ordering keys, or none.
EVENTS = """insert into webhooks.events (site_id, type, payload, ordering_key)
select 's' || n % $1::int, 'order_created', json_build_object('id', n, 'x', repeat('a', 400)),
  case when $2::int > 0 then 'k' || n / $1::int % $2::int end
from generate_series($3::int, $4::int - 1) n"""


@dataclasses.dataclass(frozen=True)
class Shape:
    """One load.

    Attributes:
        sites: how many, taking turns in the log.
        endpoints: of each.
        live: events are inserted while the daemon runs; else they are there before it starts.
        keys: ordering keys of each site; 0: nothing is ordered.
    """

    sites: int = 1
    endpoints: int = 1
    live: bool = False
    keys: int = 0

    @property
    def name(self) -> str:
        kind = "live" if self.live else "catching up"
        ordered = f", ordered by {self.keys}" if self.keys else ""
        return f"{self.sites} x {self.endpoints}, {kind}{ordered}"

    @property
    def deliveries(self) -> int:
        """How many it makes."""
        if self.keys == 1:
            return ONE_BY_ONE
        return max(DELIVERIES, AN_ENDPOINT * self.sites * self.endpoints)

    @property
    def standard(self) -> Shape:
        """The shape that it is compared with."""
        return Shape(live=self.live, keys=self.keys)


SHAPES = [
    *(Shape(sites, endpoints, live) for live in (False, True) for sites in (1, 5, 20, 100, 1000) for endpoints in (1, 3, 10)),
    *(Shape(sites, 1, live, keys) for live in (False, True) for sites in (1, 20) for keys in (1, 1000)),
]  # fmt: skip


async def _fill(connection: asyncpg.Connection, receiver: Nginx, shape: Shape) -> None:
    await connection.execute(SITES, shape.sites)
    await connection.execute(ENDPOINTS, shape.sites, shape.endpoints, receiver.url, SECRET, shape.keys > 0)


async def _insert(connection: asyncpg.Connection, shape: Shape, events: int, chunk: int) -> None:
    for first in range(0, events, chunk):
        await connection.execute(EVENTS, shape.sites, shape.keys, first, min(events, first + chunk))


async def rate(own: EmbeddedServer, receiver: Nginx, shape: Shape, deliveries: int) -> float:
    """Return deliveries a second, from `ready` or the first insert to the last answer, as `attempts` says."""
    events = deliveries // shape.endpoints
    url = await fresh(own, "bench")
    connection = await asyncpg.connect(url)
    await _fill(connection, receiver, shape)
    if not shape.live:
        await _insert(connection, shape, events, events)
    await connection.execute("checkpoint")
    settings = {"delivery_concurrency": 4 * IN_FLIGHT, "delivery_endpoint_concurrency": IN_FLIGHT}
    async with running(url, **settings) as daemon:
        began = datetime.fromisoformat(str(daemon.log[-1]["timestamp"]))
        if shape.live:
            began = await connection.fetchval("select clock_timestamp()")
            await _insert(connection, shape, events, CHUNK)
        wanted = events * shape.endpoints
        async with asyncio.timeout(300):
            while await connection.fetchval("select count(*) from webhooks.attempts") < wanted:
                await asyncio.sleep(0.05)
    ended = await connection.fetchval(
        "select max(attempted_at + duration_ms * interval '1 ms') from webhooks.attempts"
    )
    await connection.close()
    return wanted / float((ended - began).total_seconds())


async def main(names: list[str], *, quick: bool) -> None:
    rounds, most = (1, 300) if quick else (ROUNDS, None)
    shapes = [each for each in SHAPES if not names or any(name in each.name for name in names)]
    ratios: dict[str, list[float]] = {each.name: [] for each in shapes}
    receiver = Nginx()
    try:
        with server() as own:
            for _ in range(rounds):
                before: dict[Shape, float] = {}
                for shape in shapes:
                    base = shape.standard
                    if base not in before:
                        before[base] = await rate(own, receiver, base, most or base.deliveries)
                    found = await rate(own, receiver, shape, most or shape.deliveries)
                    after = await rate(own, receiver, base, most or base.deliveries)
                    ratio = found / statistics.mean((before[base], after))
                    before[base] = after
                    ratios[shape.name].append(ratio)
                    line = f"{shape.name}: {found:.0f}/s, {ratio:.2f} of {base.name}"
                    print(f"{time.strftime('%X')} {line}", flush=True)
    finally:
        receiver.stop()
    keep("shapes", {name: spread(found, 2) for name, found in ratios.items()}, quick=quick or bool(names))


if __name__ == "__main__":
    asyncio.run(main([a for a in sys.argv[1:] if a != "--quick"], quick="--quick" in sys.argv))
