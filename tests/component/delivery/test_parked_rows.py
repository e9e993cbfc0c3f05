"""How parked rows come back: past rows that cannot be sent, under overload, and whatever notifications say."""

from __future__ import annotations

import asyncio

import pytest

from pghookd.delivery.backlog.due import CHANGED_MAX, DUE_PAGE, ENDPOINTS_PAGE, Backlog, BacklogTerms
from pghookd.delivery.backlog.lines import WALK_PAGE, WALKS_A_LOOK
from pghookd.event_log.payload_filter import Filters
from pghookd.event_log.position import EventLog, Position, ShardLog, Snapshot, XidMarks
from pghookd.event_log.rows import endpoint_of
from pghookd.postgres import client
from pghookd.postgres.client import query
from pghookd.runtime.notifications import ID_CHARS_A_SECOND, NotificationRouter
from pghookd.scheduling.lane import LaneTerms
from pghookd.scheduling.lanes import Lanes
from pghookd.scheduling.ordering import Order
from support import crew
from support.crew import living
from support.events import Sql, emit

IN_FRONT = 300  # rows that cannot be sent
PARK = """
with made as (
  insert into webhooks.events (site_id, type, payload{columns}) select 's', {kind}, {payload}{values}
  from generate_series(1, {rows}) n returning event_id)
insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason)
select event_id, 1, 's', 'parked', 'breaker_open' from made
"""


@pytest.fixture
async def con(database, connect, receiver):
    con = await connect(database)
    await con.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    await con.execute("insert into webhooks.endpoints (site_id, url) values ('s', $1)", receiver.url("/"))
    await con.execute("set webhooks.bell = off")
    return con


async def park(con, rows, *, columns="", values="", kind="'a'", payload="'{}'"):
    """Insert events as if their deliveries had been parked by an earlier daemon."""
    columns, values = (f", {columns}", f", {values}") if columns else ("", "")
    await con.execute(PARK.format(rows=rows, columns=columns, values=values, kind=kind, payload=payload))


async def read_everything(con):
    """Start every endpoint after the newest event, so that only backlog has work."""
    await con.execute(
        "update webhooks.endpoints set from_event_id = (select max(event_id) from webhooks.events)"
    )


async def deaths(con):
    rows = await con.fetch("select reason, count(*) from webhooks.dead group by 1")
    return {row["reason"]: row["count"] for row in rows}


# A probe --------------------------------------------------------------------------------------------------------------

# Of those in front: columns, values, type, payload; then the same of the one that can be sent, and why the others die.
UNSENDABLE = {
    "expired": ({"columns": "deliver_before", "values": "now() - interval '1 s'"}, {}, "expired"),
    "superseded": (
        {"columns": "supersede_key", "values": "'stock/7'"},
        {"columns": "supersede_key", "values": "'stock/7'"},
        "superseded",
    ),
    "invalid": ({"kind": "'no type'"}, {}, "invalid"),
    "too large": ({"payload": "to_json(repeat('x', 2000))"}, {}, "too_large"),
    "filtered out": ({"payload": """'{"a": 1}'"""}, {}, "dropped"),
}


@pytest.mark.slow
@pytest.mark.parametrize("ordered", [False, True], ids=["", "ordered"])
@pytest.mark.parametrize("what", UNSENDABLE)
async def test_a_probe_is_the_first_that_can_be_sent(database, con, receiver, until, what, ordered):
    """An open breaker closes after one wait, however many rows in front of the probe can never be sent."""
    in_front, probe, reason = UNSENDABLE[what]
    await con.execute("update webhooks.endpoints set ordered = $1", ordered)
    if reason == "dropped":
        await con.execute("update webhooks.endpoints set filter = '!exists($.a)'")
    await park(con, IN_FRONT, **in_front)
    await park(con, 1, **probe)
    await read_everything(con)
    async with living(
        database, breaker={"probe_s": 0.3, "probe_max_s": 0.3}, delivery={"payload_bytes_max": 1000}
    ) as life:
        await receiver.wait_for(1)
        await until(lambda: con.fetchval("select count(*) = 0 from webhooks.backlog"))
        assert await deaths(con) == {reason: IN_FRONT}
        assert len(receiver.requests) == 1
        if reason in {"expired", "invalid", "too_large"}:
            assert sum(line.get("deliveries", 1) for line in life.diary.of("delivery.died")) == IN_FRONT


async def test_a_probe_that_ends_without_a_request_is_followed_at_once(database, con, receiver, until):
    """Payloads that are loaded apart show only then that they are too large; no wait comes after such a probe."""
    await park(con, 40, payload="to_json(repeat('x', 40000))")
    await park(con, 1, payload="to_json(repeat('x', 20000))")
    await read_everything(con)
    async with living(
        database, breaker={"probe_s": 0.5, "probe_max_s": 0.5}, delivery={"payload_bytes_max": 30_000}
    ):
        await receiver.wait_for(1)
        await until(lambda: con.fetchval("select count(*) = 0 from webhooks.backlog"))
    assert await deaths(con) == {"too_large": 40}


@pytest.mark.parametrize(
    ("column", "value"), [("deliver_before", "now() + interval '0.4 s'"), ("supersede_key", "'stock/7'")]
)
async def test_an_endpoint_comes_back_while_events_expire_or_replace_each_other(
    database, con, receiver, until, column, value
):
    """Events keep coming, and those that were parked longest can never be sent."""
    up = [False]
    receiver.script = lambda _request: 200 if up[0] else 500
    await con.execute("set webhooks.bell = on")
    rows = "select (select count(*) from webhooks.backlog) + (select count(*) from webhooks.dead)"
    async with living(
        database,
        breaker={"attempts": 4, "probe_s": 1.0, "probe_max_s": 1.0},
        retry={"schedule": (3600.0,) * 5},
    ) as life:

        async def has_gone_on():
            return life.diary.of("breaker.closed") or await con.fetchval(rows) > before

        await emit(con, 2)
        await life.diary.wait_for("breaker.opened")
        async with asyncio.timeout(8.0):
            while not life.diary.of("breaker.closed"):
                before = await con.fetchval(rows)
                await emit(con, **{column: Sql(value)})
                await until(has_gone_on)
                up[0] = before > 50


# Overload -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_retry_that_comes_due_on_a_full_lane_goes_before_later_events(database, con, receiver):
    """It is parked behind the parked rows read so far, which do not end while the overload lasts."""
    failed, later = {}, {}

    async def script(request):
        await asyncio.sleep(0.005)
        event_id = request.event_id
        if request.attempt > 1:
            later.setdefault(event_id, len(receiver.requests) - failed[event_id])
        elif event_id % 100 == 50:
            failed[event_id] = len(receiver.requests)
            return 500
        return 200

    receiver.script = script
    await con.execute("set webhooks.bell = on")
    await con.execute("update webhooks.endpoints set concurrency = 2")
    async with living(database, retry={"schedule": (0.3,) * 5, "jitter": 0.0}, breaker={"share": 0}):
        await emit(con, 6000)
        async with asyncio.timeout(20.0):
            while len(later) < 5:
                await receiver.wait_for(len(receiver.requests) + 1)
    assert max(later.values()) < 800, later


# Notifications --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_updates_of_other_endpoints_do_not_delay_one_that_is_switched_on(
    database, con, receiver, until
):
    await con.execute("insert into webhooks.sites (site_id, name, endpoints_max) values ('many', 'M', null)")
    await con.execute(
        "insert into webhooks.endpoints (site_id, url) select 'many', 'http://example.com/' || n"
        " from generate_series(1, 3000) n"
    )
    switched = await con.fetchval(
        "insert into webhooks.endpoints (site_id, url, enabled) values ('s', $1, false) returning endpoint_id",
        receiver.url("/switched"),
    )
    held = "select count(*) = 1 from webhooks.backlog where state = 'held'"
    await con.execute("set webhooks.bell = on")
    async with living(database):
        await emit(con)
        await until(lambda: con.fetchval(held))
        await con.execute(
            """do $$ declare e bigint; begin
                 for e in select endpoint_id from webhooks.endpoints where site_id = 'many' loop
                   update webhooks.endpoints set description = description where endpoint_id = e;
                 end loop; end $$"""
        )
        await con.execute("update webhooks.endpoints set enabled = true where endpoint_id = $1", switched)
        await receiver.wait_for(1, seconds=5.0, path="/switched")


def test_a_flood_of_ids_is_not_read_and_means_any_endpoint():
    now = [0.0]
    heard = []
    hears = NotificationRouter(lambda: now[0])
    hears.route(due=lambda: None, replay=lambda: None, endpoints=[heard.append])
    hears("endpoints:" + ",".join(str(10**9 + n) for n in range(700)))
    assert heard == [list(range(10**9, 10**9 + 700))]
    for n in range(1000):
        hears("endpoints:" + ",".join(str(10**15 + 460 * n + k) for k in range(460)))
    assert sum(len(ids) for ids in heard if ids is not None) * 11 <= ID_CHARS_A_SECOND
    assert heard[-1] is None
    now[0] = 1.0
    hears("endpoints:7,x,-1,99999999999999999999,8")
    hears("endpoints")
    hears("endpointsabc")
    assert heard[-2:] == [[7, 8], None]


class Bench:
    """A scheduler on a real database, each step of which a test takes itself."""

    def __init__(self, session, **lanes):
        self.session = session
        self.now = 0.0
        self.writes = []
        self.lanes = Lanes(
            LaneTerms(**{"concurrency": 8, "endpoint_concurrency": 4, "queue_bytes_max": 10**6, **lanes})
        )
        self.order = Order(self.lanes)
        self.order.recovered = True
        context = crew.context_of(lambda: self.now, wall_us=lambda: 0, random01=lambda: 0.5)
        self.due = Backlog(
            self.lanes,
            self.order,
            EventLog(Snapshot(1, 1, ()), {0: ShardLog(0, Position(Snapshot(1, 1, ())))}, XidMarks()),
            Filters(logger=context.logger, monotonic=context.monotonic),
            context,
            shards=1,
            terms=BacklogTerms(),
        )

    async def step(self, count=1):
        for _ in range(count):
            self.now += 0.3
            await self.due.step(self.session, self.now, lambda write, _now: self.writes.append(write))


@pytest.fixture
async def session(database):
    session = await client.connect(database, name="record")
    yield session
    await session.close()


async def test_ids_without_rows_are_forgotten_however_many_arrive(con, session):
    bench = Bench(session)
    await bench.step()
    for n in range(1, 301):
        bench.due.endpoints_changed(range(n * 1000, n * 1000 + 970))
        assert len(bench.due._changed) <= CHANGED_MAX
    await bench.step(3)
    assert not bench.lanes.backlog_index.parked
    assert not bench.due._changed


async def many_parked(con, count):
    """Give so many endpoints a parked row each."""
    await con.execute(
        "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason)"
        " select 1, n, 's', 'parked', 'lane_full' from generate_series(1, $1::int) n",
        count,
    )


async def test_endpoints_are_found_while_changes_arrive_all_the_time(con, session):
    """Each check of all of them ends before the next one begins."""
    await many_parked(con, 3 * ENDPOINTS_PAGE)
    bench = Bench(session, queue_max=0)  # no room, so that no row is taken
    for _ in range(10):
        bench.due.endpoints_changed(None)
        await bench.step()
    assert len(bench.lanes.backlog_index.parked) == 3 * ENDPOINTS_PAGE


async def test_a_change_of_any_endpoint_lets_an_open_breaker_ask_at_once(con, session):
    """Too many were changed to name them; those that have rows are read, and only real changes count."""
    await con.execute(
        "insert into webhooks.endpoints (site_id, url) select 's', 'http://example.com/' || n"
        " from generate_series(2, 3) n"
    )
    await many_parked(con, 3)
    bench = Bench(session)
    await bench.due.begin(session, 0.0)
    for row in await session.fetch(query("read_endpoints"), [1, 2, 3], 1):
        bench.lanes.lane(endpoint_of(row)).breaker.reopen(600.0)
    await con.execute("update webhooks.endpoints set url = url || '/new' where endpoint_id = 2")
    bench.due.endpoints_changed(None)
    await bench.step()
    assert [bench.lanes.known.by_endpoint[i].breaker.probe_at for i in (1, 2, 3)] == [600.0, 0.0, 600.0]


async def test_lines_are_scanned_while_changes_arrive(con, session):
    """A scan of the rows of an ordered endpoint ends before the next one begins."""
    await con.execute("update webhooks.endpoints set ordered = true")
    await park(con, (WALKS_A_LOOK + 1) * WALK_PAGE)
    bench = Bench(session)
    for _ in range(10):
        bench.due.endpoints_changed([1])
        await bench.step()
    assert bench.lanes.backlog_index.in_memory


async def test_all_due_rows_have_their_turn_during_a_flood_of_due(con, session):
    rows = 3 * DUE_PAGE
    await con.execute(
        "insert into webhooks.endpoints (site_id, url)"
        " select 's', 'http://example.com/' || n from generate_series(2, 10) n"
    )
    await con.execute(
        """with made as (
             insert into webhooks.events (site_id, type, payload)
             select 's', 'a', '{}' from generate_series(1, $1::int) returning event_id)
           insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, next_attempt_at)
           select event_id, 1 + event_id % 10, 's', 'waiting', 'retry', now() from made""",
        rows,
    )
    bench = Bench(session)
    for _ in range(10):
        bench.due.ring()
        await bench.step()
    assert len(bench.lanes.backlog_index.in_memory) == rows


async def test_no_parked_endpoint_is_checked_while_memory_is_full(session):
    bench = Bench(session, queue_max=0)
    for endpoint_id in range(1, 1001):
        bench.lanes.backlog_index.parked.add(endpoint_id)
    await bench.step(3)
    due = [bench.lanes.backlog_index.parked.take(0.0, 60.0) for _ in range(1000)]
    assert due == list(range(1, 1001))
