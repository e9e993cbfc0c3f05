"""Figure 3: end to end, events already in the table, one endpoint, 64 in flight, against a plain aiohttp loop.

It also says what a delivery writes: bytes of WAL, and of `attempts` with its indexes.

usage: throughput.py [--quick]
"""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
import time
from datetime import datetime

import asyncpg
from common import HERE, SECRET, Nginx, fresh, keep, running, server, spread

from pghookd.cli.devtools.embedded_postgres import EmbeddedServer

IN_FLIGHT = 64


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: deliveries per second, peak memory in MB, and the bytes that a delivery wrote (see `written`)."""

    rate: float
    rss: float
    bytes_each: list[float]


def yardstick(url: str, requests: int) -> float:
    command = [sys.executable, str(HERE / "yardstick.py"), url, str(requests), str(IN_FLIGHT)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def fill(connection: asyncpg.Connection, url: str, events: int) -> None:
    await connection.execute(
        "insert into webhooks.sites (site_id, name, url) values ('s', 'S', 'https://shop.example')"
    )
    await connection.execute(
        "insert into webhooks.endpoints (site_id, url, secret) values ('s', $1, $2)", url, SECRET
    )
    await connection.execute(
        """insert into webhooks.events (site_id, type, payload)
           select 's', 'order_created', json_build_object('id', g, 'x', repeat('a', 400)) from generate_series(1, $1::int) g""",
        events,
    )
    await connection.execute("checkpoint")


async def written(connection: asyncpg.Connection) -> tuple[int, int, int]:
    """Return bytes since the server was made: of WAL, of the rows of `attempts`, and of its indexes."""
    row = await connection.fetchrow(
        """select pg_current_wal_insert_lsn() - '0/0'::pg_lsn, sum(pg_table_size(relid))::bigint, sum(pg_indexes_size(relid))::bigint
           from pg_partition_tree('webhooks.attempts') where isleaf"""
    )
    return int(row[0]), row[1], row[2]


async def ours(own: EmbeddedServer, receiver: Nginx, events: int) -> Run:
    """Deliver all, from `ready` to the last answer, as `attempts` says."""
    url = await fresh(own, "bench")
    connection = await asyncpg.connect(url)
    await fill(connection, receiver.url, events)
    before, at_first = receiver.arrived(), await written(connection)
    settings = {"delivery_concurrency": 4 * IN_FLIGHT, "delivery_endpoint_concurrency": IN_FLIGHT}
    async with running(url, **settings) as daemon:
        ready = datetime.fromisoformat(str(daemon.log[-1]["timestamp"]))
        async with asyncio.timeout(600):
            while (await connection.fetchval("select count(*) from webhooks.attempts")) < events:
                await asyncio.sleep(max(0.05, events / 400_000))
        rss = daemon.peak_rss_mb()
    row = await connection.fetchrow(
        """select count(*) filter (where outcome = 'delivered') as delivered, count(*) as attempts,
             max(attempted_at + duration_ms * interval '1 ms') as last from webhooks.attempts"""
    )
    arrived = receiver.arrived() - before - 1
    assert (row["delivered"], row["attempts"], arrived) == (events, events, events), (dict(row), arrived)
    bytes_each = [
        (after - first) / events for after, first in zip(await written(connection), at_first, strict=True)
    ]
    await connection.close()
    return Run(events / (row["last"] - ready).total_seconds(), rss, bytes_each)


async def main(*, quick: bool) -> None:
    events, pairs = (2_000, 1) if quick else (20_000, 10)
    receiver = Nginx()
    try:
        with server() as own:
            ratios, runs, yards = [], list[Run](), [yardstick(receiver.url, events)]
            for _ in range(pairs):
                run = await ours(own, receiver, events)
                yards.append(yardstick(receiver.url, events))
                runs.append(run)
                ratios.append(run.rate / ((yards[-2] + yards[-1]) / 2))
                print(
                    f"{time.strftime('%X')} ours {run.rate:.0f}/s, yardstick {yards[-1]:.0f}/s, ratio {ratios[-1]:.2f}",
                    flush=True,
                )
            keep(
                "throughput",
                {
                    "ratio to a plain aiohttp loop": spread(ratios),
                    "deliveries per second": spread([run.rate for run in runs], 0),
                    "yardstick per second": spread(yards, 0),
                    "events": events,
                }
                | {
                    f"bytes a delivery: {what}": spread([run.bytes_each[place] for run in runs], 0)
                    for place, what in enumerate(("WAL", "attempts", "indexes of attempts"))
                },
                quick=quick,
            )
    finally:
        receiver.stop()


if __name__ == "__main__":
    asyncio.run(main(quick="--quick" in sys.argv))
