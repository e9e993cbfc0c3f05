"""Figure 7: what an idle and a busy read, and a due page, cost with no history and with 10,000,000 events and attempts,
and with a writing transaction held open while 500,000 rows go through `backlog`.

usage: history.py [--quick]       ratios of medians of one statement's time, rounds interleaved
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time

import asyncpg
from common import fresh, keep, server, spread

from pghookd.cli.devtools.embedded_postgres import EmbeddedServer
from pghookd.event_log.position import BEGINNING, Snapshot, XidMarks
from pghookd.event_log.reading.reader import read_new_events, upper_end
from pghookd.postgres.client import Session, connect, query
from pghookd.runtime.sessions import PLANS

PAGE = 1000
BUSY = 200  # events in a busy read


class Place:
    """One database with a reader's session and its marks."""

    def __init__(self, session: Session, admin: asyncpg.Connection) -> None:
        self.session, self.admin = session, admin
        self.read = BEGINNING
        self.marks = XidMarks()
        self.upper = 0

    async def anchor(self) -> None:
        """Set the position to now, as of a daemon that has just stored it."""
        newest = await self.session.fetchval(query("read_newest_event_id"))
        self.marks = XidMarks(newest, newest)
        self.upper = upper_end(newest)
        self.read = Snapshot(*await self.session.fetchval("select pg_current_snapshot()"))

    async def once(self) -> float:
        """Read; return the milliseconds it took."""
        floors = (self.marks.floor(self.read), self.marks.front(self.read))
        started = time.perf_counter()
        rows = await self.session.fetch(read_new_events(floors[0], self.upper), self.read, *floors, PAGE)
        took = 1000 * (time.perf_counter() - started)
        self.read = Snapshot(*rows[0]["snapshot"])
        return took

    async def insert(self, events: int) -> None:
        await self.admin.execute(
            """insert into webhooks.events (site_id, type, payload)
               select 's', 'order_created', json_build_object('id', g, 'x', repeat('a', 400)) from generate_series(1, $1::int) g""",
            events,
        )

    async def costs(self, reads: int) -> tuple[float, float]:
        """Return the medians of an idle read and of one that finds BUSY events."""
        await self.anchor()
        idle = [await self.once() for _ in range(reads)]
        busy = []
        for _ in range(max(5, reads // 10)):
            await self.insert(BUSY)
            busy.append(await self.once())
        return statistics.median(idle), statistics.median(busy)


async def place(own: EmbeddedServer, name: str) -> Place:
    url = await fresh(own, name)
    made = Place(await connect(url, name="read", settings=PLANS), await asyncpg.connect(url))
    await made.admin.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    await made.admin.execute(
        "insert into webhooks.endpoints (site_id, url) values ('s', 'http://127.0.0.1:9/')"
    )
    return made


async def fill(target: Place, events: int) -> None:
    """Give a place a history of 90 days, delivered."""
    today = await target.admin.fetchval("select webhooks.day_of()")
    per_day = events // 90
    for day in range(today - 90, today):
        await target.admin.execute("select webhooks.attach_day($1)", day)
        await target.admin.execute("select webhooks.note_day($1)", day)
        await target.admin.execute(
            """insert into webhooks.events (event_id, site_id, type, payload) overriding system value
               select $1::bigint * 4294967296 + g, 's', 'order_created', '{"id": 1}' from generate_series(1, $2::int) g""",
            day,
            per_day,
        )
        await target.admin.execute(
            """insert into webhooks.attempts (event_id, endpoint_id, attempt, attempted_at, duration_ms, outcome, status, site_id)
               select $1::bigint * 4294967296 + g, 1, 1, now(), 3, 'delivered', 200, 's' from generate_series(1, $2::int) g""",
            day,
            per_day,
        )
    await target.admin.execute("vacuum (freeze, analyze) webhooks.events, webhooks.attempts")


async def backlog_through(target: Place, rows: int) -> list[float]:
    """Pass rows through backlog, page after page from the remembered cursor; return the milliseconds of each page."""
    await target.admin.execute(
        """insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, next_attempt_at)
           select g, 1, 's', 'waiting', 'retry', now() - interval '1 hour' + g * interval '1 ms' from generate_series(1, $1::int) g""",
        rows,
    )
    cursor: tuple[int, int, int] = (0, 0, 0)
    took = []
    while True:
        started = time.perf_counter()
        page = await target.session.fetch(query("read_due"), *cursor, 200)
        took.append(1000 * (time.perf_counter() - started))
        if not page:
            return took
        cursor = (page[-1]["next_attempt_at"], page[-1]["event_id"], page[-1]["endpoint_id"])
        await target.session.execute(
            query("clear_backlog"), [row["event_id"] for row in page], [row["endpoint_id"] for row in page]
        )


async def main(*, quick: bool) -> None:
    events, rounds, reads, rows = (9_000, 2, 20, 2_000) if quick else (10_000_000, 12, 200, 500_000)
    with server(max_wal_size="8GB") as own:
        empty, full = await place(own, "bare"), await place(own, "filled")
        await fill(full, events)
        await full.admin.execute("checkpoint")
        idle, busy, idle_ms, busy_ms = [], [], [], []
        for _ in range(rounds):
            before, ours, after = await empty.costs(reads), await full.costs(reads), await empty.costs(reads)
            idle.append(ours[0] / ((before[0] + after[0]) / 2))
            busy.append(ours[1] / ((before[1] + after[1]) / 2))
            idle_ms.append(ours[0])
            busy_ms.append(ours[1])
        quiet = await backlog_through(empty, rows)
        other = await asyncpg.connect(own.url())
        await other.execute("create table if not exists elsewhere (n int)")
        held = other.transaction()
        await held.start()
        await other.execute("insert into elsewhere values (1)")
        writer = await asyncpg.connect(own.url("bare"))
        held_here = writer.transaction()
        await held_here.start()
        await writer.execute(
            "insert into webhooks.events (site_id, type, payload) values ('s', 'order_created', '{}')"
        )
        beside = await backlog_through(empty, rows)
        idle_beside, busy_beside = [], []
        for _ in range(rounds):
            before, ours = await full.costs(reads), await empty.costs(reads)
            idle_beside.append(ours[0] / before[0])
            busy_beside.append(ours[1] / before[1])
        await held_here.rollback()
        await held.rollback()
        keep(
            "history",
            {
                "events and attempts": events,
                "idle read, ratio to an empty log": spread(idle),
                "busy read, ratio to an empty log": spread(busy),
                "idle read ms": spread(idle_ms),
                "busy read ms": spread(busy_ms),
                "rows through backlog": rows,
                "due page ms": spread([statistics.median(quiet)]),
                "due page, ratio beside a writing transaction": round(
                    statistics.median(beside) / statistics.median(quiet), 3
                ),
                "last tenth of the due pages, same ratio": round(_tail(beside) / _tail(quiet), 3),
                "idle read after that, transactions still open, ratio to the history's": spread(idle_beside),
                "busy read after that, transactions still open, ratio to the history's": spread(busy_beside),
            },
            quick=quick,
        )
        for each in (empty, full):
            await each.session.close()
            await each.admin.close()
        await other.close()
        await writer.close()


def _tail(times: list[float]) -> float:
    return statistics.median(times[-max(1, len(times) // 10) :])


if __name__ == "__main__":
    asyncio.run(main(quick="--quick" in sys.argv))
