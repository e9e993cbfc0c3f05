"""The `rate_per_s` and `concurrency` of endpoints over a minute of overload, and the effect on their neighbours.

One endpoint may have 50 requests a second and gets events for 100; one may have 4 at a time, which take it 100 ms each,
and gets events for twice as many; one asks for a pause of 5 s now and then; twenty have no limit. All at the receiver.

usage: pacing.py [--quick]
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import Counter
from typing import ClassVar

import asyncpg
import uvloop
from common import fresh, keep, percentile, running, server

RATE, LIMIT, TAKES_S, PAUSE_S = 50.0, 4, 0.1, 5.0
NEIGHBOURS = 20
LIVE_PER_S = {"rated": 2 * RATE, "narrow": 2 * LIMIT / TAKES_S, "asks": 40.0, "n": 200.0}
TICK_S = 0.05
REFUSE_EVERY_S = 12.0
NUMBER = re.compile(rb'"n" : (\d+)')
SITES = """insert into webhooks.sites (site_id, name)
  select s, 'S' from unnest('{rated,narrow,asks}'::text[] || array(select 'n' || n from generate_series(0, $1::int - 1) n)) s"""
ENDPOINTS = """insert into webhooks.endpoints (site_id, url, rate_per_s, concurrency)
  select site_id, $1 || site_id, case site_id when 'rated' then $2::float8::real end, case site_id when 'narrow' then $3::int end
  from webhooks.sites"""
INSERT = """insert into webhooks.events (site_id, type, payload)
  select case when $1 = 'n' then 'n' || g % $4::int else $1 end, 'order_created', json_build_object('n', g)
  from generate_series($2::int, $2::int + $3::int - 1) g"""


class Receiver(asyncio.Protocol):
    """Notes when each request arrived, and how many of the narrow endpoint's are there at a time."""

    arrived: ClassVar[dict[str, list[float]]] = {}
    numbers: ClassVar[dict[int, float]] = {}
    inside: ClassVar[int] = 0
    most: ClassVar[int] = 0
    refused: ClassVar[list[float]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write
        self._data = b""

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._data.endswith(b"}}"):
            return
        request, self._data = self._data, b""
        now, path = time.perf_counter(), request[6 : request.index(b" ", 6)].decode()
        self.arrived.setdefault(path, []).append(now)
        if path == "narrow":
            Receiver.inside += 1
            Receiver.most = max(Receiver.most, Receiver.inside)
            asyncio.get_running_loop().call_later(TAKES_S, self._answer_late)
        elif path == "asks" and (not self.refused or now > self.refused[-1] + REFUSE_EVERY_S):
            self.refused.append(now)
            self._write(b"HTTP/1.1 429 -\r\nretry-after: %d\r\ncontent-length: 0\r\n\r\n" % PAUSE_S)
        else:
            if path[0] == "n" and (number := NUMBER.search(request)):
                self.numbers.setdefault(int(number[1]), now)
            self._write(b"HTTP/1.1 204 No Content\r\n\r\n")

    def _answer_late(self) -> None:
        Receiver.inside -= 1
        self._write(b"HTTP/1.1 204 No Content\r\n\r\n")


async def load(connection: asyncpg.Connection, seconds: float) -> dict[int, float]:
    """Insert steadily; return when each event of the neighbours was committed."""
    begun, committed = time.perf_counter(), dict[int, float]()
    given: Counter[str] = Counter()
    while (passed := time.perf_counter() - begun) < seconds:
        for what, per_s in LIVE_PER_S.items():
            count = int(per_s * passed) - given[what]
            await connection.execute(INSERT, what, given[what], count, NEIGHBOURS)
            if what == "n":
                committed |= dict.fromkeys(range(given[what], given[what] + count), time.perf_counter())
            given[what] += count
        await asyncio.sleep(TICK_S)
    return committed


def within(moments: list[float], begin: float, end: float) -> list[float]:
    return [each for each in moments if begin <= each < end]


def early(seconds: float) -> list[float]:
    """Return by how much the first request after each refusal came after its time; those in flight apart."""
    asks = Receiver.arrived["asks"]
    late = []
    for refused in Receiver.refused:
        in_flight = refused + 0.1  # in flight when it was refused
        after = [each for each in asks if each > in_flight]
        if after and refused < asks[0] + seconds - PAUSE_S:
            late.append(after[0] - refused - PAUSE_S)
    return late


async def main(*, quick: bool) -> None:
    seconds, warm_s = (4.0, 2.0) if quick else (60.0, 5.0)
    receiver = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    port = receiver.sockets[0].getsockname()[1]
    with server() as own:
        url = await fresh(own, "bench")
        connection = await asyncpg.connect(url)
        await connection.execute(SITES, NEIGHBOURS)
        await connection.execute(ENDPOINTS, f"http://127.0.0.1:{port}/", RATE, LIMIT)
        async with running(url):
            await load(connection, warm_s)
            Receiver.numbers.clear()
            begin = time.perf_counter()
            committed = await load(connection, seconds)
            end = begin + seconds
            async with asyncio.timeout(20):
                while not committed.keys() <= Receiver.numbers.keys():
                    await asyncio.sleep(0.01)
        await connection.close()
    receiver.close()
    rated = within(Receiver.arrived["rated"], begin, end)
    narrow = within(Receiver.arrived["narrow"], begin, end)
    by_second = Counter(int(each - begin) for each in rated)
    waits = [1000 * (Receiver.numbers[n] - at) for n, at in committed.items()]
    figures = {
        "seconds": seconds,
        "rate, share of what is allowed": round(len(rated) / (RATE * seconds), 4),
        "rate, busiest second": max(by_second.values()),
        "concurrency, most at a time": Receiver.most,
        "concurrency, share of it used": round(len(narrow) * TAKES_S / (LIMIT * seconds), 4),
        "pauses kept": len(late := early(seconds + warm_s)),
        "pauses, soonest after their end, s": round(min(late), 3) if late else None,
        "neighbours p50 ms": round(percentile(waits, 0.5), 1),
        "neighbours p99 ms": round(percentile(waits, 0.99), 1),
    }
    keep("pacing", figures, quick=quick)


if __name__ == "__main__":
    uvloop.run(main(quick="--quick" in sys.argv))
