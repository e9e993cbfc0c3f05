"""Figure 5: 32 clients inserting, with the daemon awake and keeping up, with it down, and with one producer's
transaction held open meanwhile; each slice bracketed by the same partitioned table without the trigger.

usage: producers.py [--quick]
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import asyncpg
from common import SECRET, Nginx, fresh, keep, running, server, spread

CLIENTS = 32
INSERT = "insert into {} (site_id, type, payload) values ('s', 'order_created', '{{\"id\": 1042, \"total\": 59.9}}');\n"


def pgbench(program: Path, url: str, script: Path, seconds: float) -> float:
    """Run 32 clients for that long; return transactions per second."""
    command = [
        str(program),
        "-n",
        "-M",
        "prepared",
        "-c",
        str(CLIENTS),
        "-j",
        "2",
        "-T",
        str(seconds),
        "-f",
        str(script),
        url,
    ]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(re.search(r"tps = ([0-9.]+)", out)[1])


async def make_bare(connection: asyncpg.Connection) -> None:
    """The same table, partitions and indexes, without the trigger."""
    await connection.execute(
        """create table webhooks.bare (like webhooks.events including defaults including constraints including indexes
             including compression including storage) partition by range (event_id);
           alter table webhooks.bare alter event_id add generated always as identity (cache 1);"""
    )
    for day in await connection.fetch("select day from webhooks.partitions"):
        await connection.execute(
            f"""create table webhooks.bare_{day[0]} partition of webhooks.bare
                for values from ({day[0] * 2**32}) to ({(day[0] + 1) * 2**32})"""
        )
    await connection.execute(
        "select setval('webhooks.bare_event_id_seq', webhooks.day_of() * 4294967296, false)"
    )


class Slices:
    """Interleaved slices: the bare table before and after each of ours."""

    def __init__(self, program: Path, url: str, folder: Path, seconds: float) -> None:
        self.program, self.url, self.seconds = program, url, seconds
        self.bare, self.events = folder / "bare.sql", folder / "events.sql"
        self.bare.write_text(INSERT.format("webhooks.bare"))
        self.events.write_text(INSERT.format("webhooks.events"))

    async def ratios(self, name: str, pairs: int) -> list[float]:
        run = asyncio.to_thread
        yards = [await run(pgbench, self.program, self.url, self.bare, self.seconds)]
        found = []
        for _ in range(pairs):
            ours = await run(pgbench, self.program, self.url, self.events, self.seconds)
            yards.append(await run(pgbench, self.program, self.url, self.bare, self.seconds))
            found.append(ours / ((yards[-2] + yards[-1]) / 2))
            print(
                f"{time.strftime('%X')} {name}: {ours:.0f} tps of {yards[-1]:.0f}, ratio {found[-1]:.3f}",
                flush=True,
            )
        return found


async def main(*, quick: bool) -> None:
    seconds, pairs = (1, 1) if quick else (3, 25)
    receiver = Nginx()
    try:
        with server() as own, tempfile.TemporaryDirectory() as folder:
            url = await fresh(own, "bench")
            connection, other = await asyncpg.connect(url), await asyncpg.connect(url)
            await make_bare(connection)
            # No endpoint: the figure is the cost for producers, without that of sending on the same two cores.
            await connection.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
            slices = Slices(own.binary("pgbench"), url, Path(folder), seconds)
            figures: dict[str, object] = {"clients": CLIENTS, "seconds a slice": seconds}
            figures["daemon down"] = spread(await slices.ratios("down", pairs))
            async with running(url):
                await slices.ratios("warming up", 1)
                figures["daemon awake"] = spread(await slices.ratios("awake", pairs))
                transaction = other.transaction()
                await transaction.start()
                await other.execute(
                    "insert into webhooks.events (site_id, type, payload) values ('s', 'order_created', '{}')"
                )
                figures["daemon awake, one producer open"] = spread(await slices.ratios("open", pairs))
                await transaction.rollback()
            await connection.execute(
                "insert into webhooks.endpoints (site_id, url, secret) values ('s', $1, $2)",
                receiver.url,
                SECRET,
            )
            async with running(url):
                figures["daemon awake and delivering"] = spread(
                    await slices.ratios("delivering", max(1, pairs // 3))
                )
            await connection.close()
            await other.close()
            keep("producers", figures, quick=quick)
    finally:
        receiver.stop()


if __name__ == "__main__":
    asyncio.run(main(quick="--quick" in sys.argv))
