"""Figure 6: 1,000,000 events inserted while the daemon was down: the rate of catching up, against that of figure 3 in
the same run, and the peak of its memory.

usage: catch_up.py [--quick]
"""

from __future__ import annotations

import asyncio
import sys

from common import Nginx, keep, server, spread
from throughput import ours

from pghookd.cli.devtools.embedded_postgres import EmbeddedServer


async def main(*, quick: bool) -> None:
    few, many, rounds = (2_000, 10_000, 1) if quick else (20_000, 1_000_000, 3)
    receiver = Nginx()
    try:
        with server(max_wal_size="8GB") as own:
            ratios, rates, peaks = [], [], []
            for _ in range(rounds):
                before = await _median(own, receiver, few)
                run = await ours(own, receiver, many)
                after = await _median(own, receiver, few)
                rates.append(run.rate)
                peaks.append(run.rss)
                ratios.append(run.rate / ((before + after) / 2))
                print(
                    f"caught up at {run.rate:.0f}/s, {ratios[-1]:.2f} of figure 3, peak {run.rss:.0f} MB",
                    flush=True,
                )
            keep(
                "catch_up",
                {
                    "ratio to figure 3": spread(ratios),
                    "deliveries per second": spread(rates, 0),
                    "peak RSS MB": spread(peaks, 0),
                    "events": many,
                },
                quick=quick,
            )
    finally:
        receiver.stop()


async def _median(own: EmbeddedServer, receiver: Nginx, events: int) -> float:
    return sorted([(await ours(own, receiver, events)).rate for _ in range(3)])[1]


if __name__ == "__main__":
    asyncio.run(main(quick="--quick" in sys.argv))
