"""The cost of a site's pages, and of the count of an hour, on 90 days with 50 million attempts and a million endpoints.

Sites have one to five endpoints, and the busiest endpoints most of the attempts. One site has 10 endpoints and 6 % of the
attempts, another 100 endpoints and 1 %. Of the deliveries 3 % fail at first, 0.2 % for good. The last full hour has a
million attempts and is not counted yet; some thousand events at the end are unread.

usage: year.py [--quick] [--attempts N] [--endpoints N] [--days N] [--rush N] [--reuse]
Takes the server of PGHOOKD_TEST_DATABASE_URL, a superuser's, or one of its own. The database `year` is left there, and
--reuse measures it again. Prints milliseconds and keeps no baseline; CPU is that of the server's process, which a busy
machine changes less.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import asyncpg
from common import fresh, percentile, server

from pghookd.postgres import migrate
from pghookd.postgres.client import query

DATABASE = "year"
BIG, MANY = 10, 100  # endpoints of the sites `big` and `many`
FIRST_FAILED, DEAD, WAITING = 0.03, 0.002, 0.02
ATTEMPTS_PER_EVENT = 1.22  # every fifth event goes to two endpoints, if its site has them
CALLS = 50

SITES = f"""
insert into webhooks.sites (site_id, name, endpoints_max)
values ('big', 'Big', {BIG}), ('many', 'Many', {MANY});
insert into webhooks.sites (site_id, name)
select 's' || n, 'Shop ' || n from generate_series(0, ($1::int - {BIG + MANY} - 1) / 15 * 5 + 4) n
"""
ENDPOINTS = f"""
with places as (
  select n, case when n < {BIG} then 'big' when n < {BIG + MANY} then 'many'
      else 's' || (m / 15 * 5 + ('{{0,1,1,2,2,2,3,3,3,3,4,4,4,4,4}}'::int[])[1 + m % 15]) end as site_id
  from generate_series(0, $1::int - 1) n, lateral (select n - {BIG + MANY} as m) t
), placed as (
  insert into webhooks.endpoints (site_id, url, event_types, ready, judged_at)
  select p.site_id, 'https://' || p.site_id || '.example/hooks/' || p.n,
    array['order_created', ('{{order_updated,product_created,product_updated,form_submitted}}'::text[])[1 + p.n % 4]],
    true, now()
  from places p order by p.n
  returning endpoint_id, site_id, url
)
insert into webhooks.endpoint_revisions (endpoint_id, revision, site_id, actor, changed)
select endpoint_id, 1, site_id, 'bench', jsonb_build_object('url', jsonb_build_array(null, url)) from placed
"""
SHAPE = """
create unlogged table public.shape as
select endpoint_id, site_id, event_types[2] as type,
  coalesce(lead(endpoint_id) over site, first_value(endpoint_id) over site) as mate
from webhooks.endpoints
window site as (partition by site_id order by endpoint_id)
"""
MADE = f"""
create temp table made on commit drop as
select $1::bigint * 4294967296 + row_number() over (order by t.at) as event_id, t.at, s.endpoint_id, s.site_id,
  case when t.both then s.mate end as mate, case when t.both then 'order_created' else s.type end as type,
  case when t.about < 0.1 then 'customer/1' when t.about < 0.3 then 'order/' || floor(t.about * 100000) end as subject
from (
  select timestamptz '2020-01-01 00:00Z' + $1::int * interval '1 day' + p.at as at, random() < 0.2 as both,
    random() as about, case when p.place < 0.06 then 1 + floor(p.which * {BIG})
      when p.place < 0.07 then {BIG + 1} + floor(p.which * {MANY})
      else {BIG + MANY + 1} + floor(p.which * p.which * ($4::int - {BIG + MANY})) end::bigint as endpoint_id
  from (
    select n * interval '23.8 hours' / $2::int as at, random() as place, random() as which
    from generate_series(0, $2::int - 1) n
    union all
    select interval '22 hours' + n * interval '54 minutes' / $3::int, random(), random()
    from generate_series(0, $3::int - 1) n
    offset 0) p
  offset 0) t
join public.shape s using (endpoint_id)
"""
EVENTS = """
insert into webhooks.events (event_id, site_id, type, payload, created_at, subject) overriding system value
select event_id, site_id, type, json_build_object('id', event_id % 4294967296, 'total', 59.9, 'currency', 'EUR'), at, subject
from made order by event_id
"""
SENT = """
create temp table sent on commit drop as
select event_id, endpoint_id, site_id, at, random() as luck from made
union all
select event_id, mate, site_id, at, random() from made where mate <> endpoint_id
"""
ATTEMPTED = f"""
insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, revision, attempt, status, outcome, error,
  cause, site_id)
select event_id, endpoint_id, at + ms * interval '1 ms', ms, 1, attempt, case when good then 200 else 503 end,
  case when good then 'delivered' else 'refused' end, case when not good then 'status' end,
  case when attempt = 1 then 'live' else 'retry' end, site_id
from (
  select event_id, endpoint_id, site_id, 1 as attempt, at, luck >= {FIRST_FAILED} + $1::float8 as good,
    exp(3 + 3 * random())::real as ms
  from sent
  union all
  select event_id, endpoint_id, site_id, 2, at + interval '5 minutes', luck >= {DEAD}, exp(3 + 3 * random())::real
  from sent where luck < {FIRST_FAILED}) t
order by at
"""
GIVEN_UP = f"""
insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts, since)
select event_id, endpoint_id, site_id, 'exhausted', 2, at + interval '5 minutes' from sent where luck < {DEAD}
"""
WAIT = f"""
insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, attempts, next_attempt_at, cause)
select event_id, endpoint_id, site_id, 'waiting', 'retry', 1, at + interval '2 days', 'retry'
from sent where luck >= {FIRST_FAILED} and luck < {FIRST_FAILED} + $1::float8
"""
UNREAD = """
insert into webhooks.events (site_id, type, payload)
select case when n % 10 = 0 then 'big' else 's' || floor(random() * $1::int / 4) end, 'order_created', '{"id": 1}'
from generate_series(1, 3000) n
"""
UNCLAIMED = """
insert into webhooks.unclaimed_events (day, what, name, events)
select current_date - d, case when n % 2 = 0 then 'site' else 'type' end, 'order_craeted_' || n, n
from generate_series(0, 89) d, generate_series(1, 20) n
"""


# Loading --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scale:
    attempts: int
    endpoints: int
    days: int
    rush: int  # attempts of the last full hour


class Server(Protocol):
    def url(self, database: str = ...) -> str: ...


class GivenServer:
    """The server of PGHOOKD_TEST_DATABASE_URL."""

    def url(self, database: str = "") -> str:
        given = urlsplit(os.environ["PGHOOKD_TEST_DATABASE_URL"])
        return given._replace(path=f"/{database}" if database else given.path).geturl()


async def load(url: str, scale: Scale) -> None:
    await migrate.migrate(url, roles=True)
    connection = await asyncpg.connect(url)
    today = await connection.fetchval("select webhooks.day_of()")
    days = range(today - scale.days, today)
    for day in days:
        await connection.execute(f"select webhooks.attach_day({day})")
        await connection.execute(f"select webhooks.note_day({day})")
    await connection.execute("set session_replication_role = replica")
    for statement in filter(str.strip, SITES.split(";")):
        await connection.execute(statement, *([scale.endpoints] if "$1" in statement else []))
    await connection.execute(ENDPOINTS, scale.endpoints)
    await connection.execute(SHAPE)
    await connection.execute("vacuum (freeze, analyze)")
    await connection.execute("insert into webhooks.shards (shard) select generate_series(0, 15)")
    waiting = list(days)
    await asyncio.gather(*(load_days(url, scale, waiting) for _ in range(os.cpu_count() or 1)))
    await connection.execute(
        "update webhooks.shards set snapshot = pg_current_snapshot(), floor = webhooks.newest_event_id()"
    )
    await connection.execute(UNREAD, scale.endpoints)
    await connection.execute(UNCLAIMED)
    await connection.execute(
        "update webhooks.upkeep set next_hour = date_trunc('day', now(), 'UTC') - interval '2 hours' where what = 'activity'"
    )
    waiting = list(days)
    await asyncio.gather(*(count_days(url, waiting, today) for _ in range(os.cpu_count() or 1)))
    await connection.execute(
        "create table public.rush as select next_hour as hour from webhooks.upkeep where what = 'activity'"
    )
    await connection.execute("drop table public.shape")
    await connection.execute("vacuum (analyze)")
    await connection.close()


async def load_days(url: str, scale: Scale, waiting: list[int]) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(
        "set session_replication_role = replica; set work_mem = '256MB'; set temp_buffers = '256MB'"
    )
    events = int((scale.attempts - scale.rush) / scale.days / ATTEMPTS_PER_EVENT)
    while waiting:
        day = waiting.pop(0)
        rush = 0 if waiting else int(scale.rush / ATTEMPTS_PER_EVENT)
        still = 0.0 if waiting else WAITING
        async with connection.transaction():
            await connection.execute(MADE, day, events, rush, scale.endpoints)
            await connection.execute(EVENTS)
            await connection.execute(SENT)
            await connection.execute(ATTEMPTED, still)
            await connection.execute(GIVEN_UP)
            await connection.execute(WAIT, still)
        for table in ("events", "attempts", "dead"):
            await connection.execute(f"vacuum (freeze) webhooks.{table}_{day}")
    await connection.close()


async def count_days(url: str, waiting: list[int], today: int) -> None:
    """Fill endpoint_hours up to the hour that is measured."""
    connection = await asyncpg.connect(url)
    await connection.execute("set work_mem = '256MB'; set max_parallel_workers_per_gather = 0")
    while waiting:
        day = waiting.pop(0)
        await connection.execute(
            """insert into webhooks.endpoint_hours
            select c.* from (select timestamptz '2020-01-01 00:00Z' + $1::int * interval '1 day' as at) d, webhooks.upkeep u,
              webhooks.count_attempts(d.at, least(d.at + interval '1 day', u.next_hour)) c where u.what = 'activity' order by 1, 2""",
            day,
        )
    await connection.close()


# Measuring ------------------------------------------------------------------------------------------------------------

PAGE = 50
MISSED = "select * from webhooks.missed_since($1, now() - $2::text::interval, $3, $4)"
ACTIVITY = "select * from webhooks.endpoint_activity($1, now() - $2::text::interval, null, $3)"
DETAIL = "select * from webhooks.delivery_detail($1, $2)"
FILTERS: dict[str, tuple[str, ...]] = {  # an argument of site_deliveries, and its value
    "any": (),
    "delivered": ("state => $4,", "delivered"),
    "pending": ("state => $4,", "pending"),
    "failed": ("state => $4,", "failed"),
    "type": ("type => $4,", "product_created"),
    "subject": ("subject => $4,", "customer/1"),
    "since 30 days": ("since => now() - $4::text::interval,", "30 days"),
    "until 30 days ago": ("until => now() - $4::text::interval,", "30 days"),
}


def named(argument: str = "") -> str:
    """Return the statement of a page of a site, its cursor and its rows; a filter has the fourth parameter."""
    return f"select * from webhooks.site_deliveries($1, {argument} before => $2, lim => $3)"


def worked_ms(connection: asyncpg.Connection) -> float:
    """Return the CPU time of a session's process, which a busy machine spoils less; 0 if the server runs elsewhere."""
    schedule = Path(f"/proc/{connection.get_server_pid()}/schedstat")
    return int(schedule.read_text().split()[0]) / 1e6 if schedule.exists() else 0.0


class Table:
    """Calls every statement with its arguments, and prints a line for each."""

    def __init__(self, connection: asyncpg.Connection, calls: int) -> None:
        self._connection, self._calls = connection, calls

    async def line(self, name: str, sql: str, arguments: list[tuple[object, ...]]) -> None:
        """Warm up with one call of each, then call; the rows are those of one call, on average."""
        if not arguments:
            print(f"{name:55}  has no such page", flush=True)
            return
        found = [len(await self._connection.fetch(sql, *each)) for each in arguments]
        took, worked = [], []
        for n in range(self._calls):
            began, before = time.perf_counter(), worked_ms(self._connection)
            await self._connection.fetch(sql, *arguments[n % len(arguments)])
            took.append(1000 * (time.perf_counter() - began))
            worked.append(worked_ms(self._connection) - before)
        print(
            f"{name:55} {statistics.median(took):9.2f} {percentile(took, 0.99):9.2f} {statistics.median(worked):9.2f}"
            f" {statistics.mean(found):7.1f}",
            flush=True,
        )


async def cursor(
    connection: asyncpg.Connection, sql: str, first: tuple[object, ...], rest: tuple[object, ...], page: int
) -> str | None:
    """Return the cursor before a page, or before the last one if there are fewer; None if there is one page only.

    The cursor and the number of rows are between the first arguments and the rest.
    """
    cursors: list[str] = []
    while missing := PAGE * (page - 1) - len(cursors):
        at = cursors[-1] if cursors else None
        rows = await connection.fetch(sql, *first, at, min(1000, missing), *rest)
        if not rows:
            cursors = cursors[: (len(cursors) - 1) // PAGE * PAGE]
            break
        cursors += [row["cursor"] for row in rows]
    return cursors[-1] if cursors else None


async def measure(url: str, scale: Scale, calls: int) -> None:
    connection = await asyncpg.connect(url)
    table = Table(connection, calls)
    small = [
        row[0]
        for row in await connection.fetch(
            """select site_id from webhooks.endpoints
            where endpoint_id > $1 and endpoint_id % 7 = 0 order by hashint8(endpoint_id) limit $2""",
            scale.endpoints // 2,
            calls,
        )
    ]
    sites = {
        "small sites": small,
        "busy sites": [f"s{n}" for n in range(20)],
        "100 endpoints": ["many"],
        "big site": ["big"],
    }
    print(f"{'':55} {'median ms':>9} {'p99 ms':>9} {'CPU ms':>9} {'rows':>7}")
    for what, (argument, *value) in {name: found or ("",) for name, found in FILTERS.items()}.items():
        sql = named(argument)
        for kind, names in sites.items():
            for page in (1,) if len(names) > 1 else (1, 100):
                pages = []
                for site in names:
                    at = await cursor(connection, sql, (site,), tuple(value), page)
                    pages += [(site, at, PAGE, *value)] if at or page == 1 else []
                await table.line(f"site_deliveries, {what}, {kind}, page {page}", sql, pages)
    await endpoints(connection, table, small)
    await table.line("unclaimed", query("list_unclaimed"), [(90, PAGE)])
    await table.line("storage", query("read_storage"), [("webhooks",)])
    await as_site(url, small, calls)
    await connection.close()


async def endpoints(connection: asyncpg.Connection, table: Table, small: list[str]) -> None:
    """Measure the functions that are asked for an endpoint."""
    rows = await connection.fetch(
        "select site_id, min(endpoint_id) from webhooks.endpoints where site_id = any ($1::text[]) group by 1",
        small,
    )
    one = named("endpoint_id => $4,")
    kinds = {
        "small endpoints": [tuple(row) for row in rows],
        "big endpoints": [("big", endpoint) for endpoint in range(1, BIG + 1)],
    }
    for kind, pairs in kinds.items():
        await table.line(
            f"site_deliveries, endpoint, {kind}, page 1",
            one,
            [(site, None, PAGE, which) for site, which in pairs],
        )
        for days in ("1 day", "90 days"):
            await table.line(
                f"missed_since, {days}, {kind}, page 1",
                MISSED,
                [(which, days, None, PAGE) for _, which in pairs],
            )
        for days, unit in (("1 day", "hour"), ("90 days", "hour"), ("90 days", "day")):
            await table.line(
                f"endpoint_activity, {days} by {unit}, {kind}",
                ACTIVITY,
                [(which, days, unit) for _, which in pairs],
            )
    at = await cursor(connection, one, ("big",), (1,), 100)
    await table.line(
        "site_deliveries, endpoint, big endpoints, page 100", one, [("big", at, PAGE, 1)] if at else []
    )
    at = await cursor(connection, MISSED, (1, "90 days"), (), 100)
    await table.line(
        "missed_since, 90 days, big endpoints, last page", MISSED, [(1, "90 days", at, PAGE)] if at else []
    )
    for page in (1, 100):
        at = await cursor(connection, named(), ("big",), (), page)
        rows = await connection.fetch(named("state => $4,"), "big", at, PAGE, "delivered")
        await table.line(
            f"delivery_detail, of page {page}",
            DETAIL,
            [(row["event_id"], row["endpoint_id"]) for row in rows],
        )


async def as_site(url: str, small: list[str], calls: int) -> None:
    """Measure the first pages as the role of a site's own pages."""
    connection = await asyncpg.connect(url)
    await connection.execute("set role webhooks_site")
    for kind, site in (("a small site", small[0]), ("100 endpoints", "many"), ("big site", "big")):
        await connection.execute("select set_config('webhooks.site_id', $1, false)", site)
        await Table(connection, calls).line(
            f"site_deliveries, as webhooks_site, {kind}", named(), [(site, None, PAGE)]
        )
    await connection.close()


# The count of an hour -------------------------------------------------------------------------------------------------

INSERT = """insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, outcome, site_id)
select (last_value / 4294967296) * 4294967296 + 4294967295, 1, now(), 1, 1, 'delivered', 'big' from webhooks.events_event_id_seq"""
LOCKS = """select distinct l.mode from pg_locks l join pg_class c on c.oid = l.relation
where l.pid = $1 and l.locktype = 'relation' and c.relnamespace = 'webhooks'::regnamespace"""
NOT_GRANTED = "select count(*) from pg_locks where not granted"


async def roll_up(url: str) -> None:
    """Count the hour beside inserts of attempts."""
    counting, inserting, looking = [await asyncpg.connect(url) for _ in range(3)]
    pid = counting.get_server_pid()
    began, before = time.perf_counter(), worked_ms(counting)
    counted = asyncio.create_task(counting.fetchval("select webhooks.roll_up_hour('0')"))
    modes: set[str] = set()
    slowest_ms, waits, inserts = 0.0, 0, 0
    while not counted.done():
        at = time.perf_counter()
        beside = inserting.transaction()
        await beside.start()
        await inserting.execute(INSERT)
        await beside.rollback()
        slowest_ms = max(slowest_ms, 1000 * (time.perf_counter() - at))
        inserts += 1
        modes |= {row[0] for row in await looking.fetch(LOCKS, pid)}
        waits += await looking.fetchval(NOT_GRANTED)
        await asyncio.sleep(0.01)
    took, worked = time.perf_counter() - began, (worked_ms(counting) - before) / 1000
    counts = "select sum(attempts), count(*) from webhooks.endpoint_hours where hour = $1"
    attempts, rows = await counting.fetchrow(counts, await counted)
    print(
        f"roll_up_hour: {took:.2f} s, {worked:.2f} s of them CPU, for {attempts} attempts, {rows} endpoints; {inserts} inserts beside it, the slowest"
        f" {slowest_ms:.1f} ms; locks {', '.join(sorted(modes))}; {waits} waits seen"
    )
    for each in (counting, inserting, looking):
        await each.close()


async def uncount(url: str) -> None:
    """Take the hour out of the counts: it is counted again."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "update webhooks.upkeep set next_hour = (select hour from public.rush) where what = 'activity'"
    )
    await connection.execute(
        "delete from webhooks.endpoint_hours where hour >= (select hour from public.rush)"
    )
    await connection.execute("vacuum (analyze) webhooks.endpoint_hours")
    await connection.close()


@contextlib.contextmanager
def place() -> Iterator[Server]:
    if "PGHOOKD_TEST_DATABASE_URL" in os.environ:
        yield GivenServer()
        return
    with server(max_wal_size="8GB") as own:
        yield own


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tiny log")
    parser.add_argument("--attempts", type=int, default=50_000_000)
    parser.add_argument("--endpoints", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--rush", type=int, default=1_000_000, help="attempts in the last full hour")
    parser.add_argument("--reuse", action="store_true", help="measure what an earlier run has loaded")
    given = parser.parse_args()
    scale = Scale(given.attempts, given.endpoints, given.days, given.rush)
    if given.quick:
        scale = Scale(20_000, 2_000, 4, 2_000)
    with place() as own:
        if given.reuse:
            url = own.url(DATABASE)
            await migrate.migrate(url)
        else:
            url = await fresh(own, DATABASE)
            await load(url, scale)
        for _ in range(1 if given.quick else 3):
            await uncount(url)
            await roll_up(url)
        await measure(url, scale, 2 if given.quick else CALLS)


if __name__ == "__main__":
    asyncio.run(main())
