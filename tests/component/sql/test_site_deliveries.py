"""The log of a site: each page holds what the tables say, newest first, and nobody sees another site's.

A few hundred events at random, over three days and two sites: the rows of the function are compared with a list that
the test makes of the same events.
"""

from __future__ import annotations

import random

import pytest

from support.events import emit

DAY = 2**32
COLUMNS = ("event_id", "endpoint_id", "state", "detail", "attempts", "last_status")


class SiteLog:
    """Two sites with two endpoints each, and the rows that the first one must see."""

    def __init__(self, con, endpoints):
        self.con, self.endpoints = con, endpoints
        self.rows = []  # dicts, newest first

    async def page(self, site="s", con=None, **asked):
        names = ", ".join(f"{name} => ${n + 2}" for n, name in enumerate(asked))
        return await (con or self.con).fetch(
            f"select * from webhooks.site_deliveries($1{', ' if names else ''}{names})", site, *asked.values()
        )

    async def all(self, lim, **asked):
        """Return the rows of all pages."""
        rows, before = [], None
        for _ in range(1000):
            page = await self.page(lim=lim, before=before, **asked)
            rows += page
            if len(page) < lim:
                return rows
            before = page[-1]["cursor"]
        raise AssertionError("the pages have no end")

    def wanted(self, keep=lambda _row: True):
        return [tuple(row[name] for name in COLUMNS) for row in self.rows if keep(row)]


def seen(rows):
    return [tuple(row[name] for name in COLUMNS) for row in rows]


async def settle(con, rng, event_id, endpoint_id, site):
    """Settle a delivery at random; return its visible state."""
    kind = rng.choice(["delivered", "delivered", "waiting", "parked", "dead", "unread"])
    attempts = {"delivered": rng.randint(1, 3), "waiting": rng.randint(1, 3), "dead": rng.randint(0, 2)}.get(
        kind, 0
    )
    status = None
    for attempt in range(1, attempts + 1):
        delivered = kind == "delivered" and attempt == attempts
        status = 200 if delivered else 503
        await con.execute(
            "insert into webhooks.attempts (event_id, endpoint_id, attempted_at, duration_ms, attempt, status, outcome,"
            " site_id) values ($1, $2, now(), 1, $3, $4, $5, $6)",
            event_id, endpoint_id, attempt, status, "delivered" if delivered else "refused", site,
        )  # fmt: skip
    if kind in {"waiting", "parked"}:
        await con.execute(
            "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, attempts, next_attempt_at)"
            " values ($1, $2, $3, $4, $5, $6, now())",
            event_id, endpoint_id, site, kind, "retry" if kind == "waiting" else "busy", attempts,
        )  # fmt: skip
    if kind == "dead":
        await con.execute(
            "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts) values ($1, $2, $3, $4, $5)",
            event_id, endpoint_id, site, "exhausted", attempts,
        )  # fmt: skip
    state, detail = {
        "delivered": ("delivered", None),
        "waiting": ("pending", "waiting: retry"),
        "parked": ("pending", "parked: busy"),
        "dead": ("failed", "exhausted"),
        "unread": ("pending", "unread"),
    }[kind]
    return {"state": state, "detail": detail, "attempts": attempts, "last_status": status}


@pytest.fixture
async def con(database, connect):
    return await connect(database)


@pytest.fixture
async def log(con):
    rng = random.Random(20)
    await con.execute("insert into webhooks.sites (site_id, name) values ('s', 'S'), ('t', 'T')")
    endpoints = {
        site: [
            await con.fetchval(
                "insert into webhooks.endpoints (site_id, url) values ($1, 'http://x') returning endpoint_id",
                site,
            )
            for _ in range(2)
        ]
        for site in ("s", "t")
    }
    made = SiteLog(con, endpoints)
    for n in range(120):
        if n in {40, 80}:
            await con.execute(
                "select setval('webhooks.events_event_id_seq', (last_value / 4294967296 + 1) * 4294967296)"
                " from webhooks.events_event_id_seq"
            )
        site = rng.choice("sst")
        subject, kind = (
            rng.choice([None, "order/1", "order/2"]),
            rng.choice(["order_created", "order_updated"]),
        )
        event_id = await emit(con, site=site, kind=kind, subject=subject)
        for endpoint_id in endpoints[site]:
            told = await settle(con, rng, event_id, endpoint_id, site)
            if site == "s":
                made.rows.append(
                    {
                        "event_id": event_id,
                        "endpoint_id": endpoint_id,
                        "type": kind,
                        "subject": subject,
                        **told,
                    }
                )
    made.rows.sort(key=lambda row: (row["event_id"], row["endpoint_id"]), reverse=True)
    return made


@pytest.mark.parametrize("lim", [1, 7, 50, 1000])
async def test_the_pages_hold_everything_once_and_in_order(log, lim):
    assert seen(await log.all(lim)) == log.wanted()


@pytest.mark.parametrize("state", ["delivered", "pending", "failed"])
async def test_one_state(log, state):
    assert seen(await log.all(5, state=state)) == log.wanted(lambda row: row["state"] == state)


@pytest.mark.parametrize(
    "asked",
    [
        {"type": "order_updated"},
        {"subject": "order/2"},
        {"subject": "order/1", "type": "order_created", "state": "pending"},
        {"subject": "order/3"},
    ],
    ids=str,
)
async def test_filters(log, asked):
    wanted = log.wanted(lambda row: all(row[name] == value for name, value in asked.items()))
    assert seen(await log.all(3, **asked)) == wanted


async def test_one_endpoint(log):
    endpoint_id = log.endpoints["s"][0]
    wanted = log.wanted(lambda row: row["endpoint_id"] == endpoint_id)
    assert seen(await log.all(4, endpoint_id=endpoint_id)) == wanted
    assert await log.page(endpoint_id=log.endpoints["t"][0]) == []  # it is another site's


async def test_a_time(log):
    first, last = await log.con.fetchrow(
        "select min(created_at), max(created_at) from webhooks.events where site_id = 's'"
    )
    assert len(await log.all(50, since=first)) == len(log.rows)
    assert await log.page(until=first) == []
    middle = await log.con.fetchval(
        "select created_at from webhooks.events where site_id = 's' order by event_id offset 40 limit 1"
    )
    later, earlier = await log.all(9, since=middle), await log.all(9, until=middle)
    assert seen(later) + seen(earlier) == log.wanted()
    assert first < middle < last


async def test_a_time_includes_events_of_slow_transactions(log):
    """An event every half hour of yesterday; that of 9:50 was inserted at 10:40."""
    con = log.con
    await con.execute("select webhooks.attach_day(webhooks.day_of() - 1)")
    await con.execute("update webhooks.endpoints set from_event_id = 0")
    await con.execute(
        "insert into webhooks.events (event_id, site_id, type, payload, created_at) overriding system value"
        " select (webhooks.day_of() - 1) * 4294967296 + k * 10000, 's', 'order_created', '{}',"
        "   date_trunc('day', now(), 'UTC') - interval '1 day' + case k when 21 then interval '590 minutes'"
        "   else k * interval '30 minutes' end"
        " from generate_series(0, 47) k"
    )
    ten = "date_trunc('day', now(), 'UTC') - interval '14 hours'"
    until = await con.fetchval(f"select {ten}")
    last = await con.fetchval(f"select webhooks.last_event_id({ten}) % 4294967296")
    assert 21 * 10_000 <= last < 21 * 10_000 + 1_000  # the next one is that of 11:00, an hour later
    numbers = [row["event_id"] % DAY // 10_000 for row in await log.all(50, until=until)]
    assert numbers == [k for k in (21, *range(19, -1, -1)) for _ in range(2)]


async def test_an_event_that_was_read_and_not_taken_makes_no_delivery(log):
    """Filtered, for example: read to the end, and no row."""
    await log.con.execute(
        "insert into webhooks.shards (shard, snapshot) select 0, pg_current_snapshot() from generate_series(1, 1)"
    )
    assert seen(await log.all(50)) == log.wanted(lambda row: row["detail"] != "unread")


async def test_events_that_were_committed_later_are_unread(log, database, connect):
    open_one = await connect(database)
    await open_one.execute("begin")
    event_id = await emit(open_one)
    await log.con.execute("insert into webhooks.shards (shard, snapshot) values (0, pg_current_snapshot())")
    later = await emit(log.con)
    assert [row["event_id"] for row in await log.page(state="pending", lim=2)] == [later, later]
    await open_one.execute("commit")
    found = [row["event_id"] for row in await log.page(lim=4)]
    assert found == [later, later, event_id, event_id]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"state": "dead"}, "state is delivered, pending or failed, not dead"),
        ({"lim": 0}, "lim is 1 to 1000, not 0"),
        ({"lim": 1001}, "lim is 1 to 1000"),
        ({"before": "yesterday"}, "before is the cursor of a row, not 'yesterday'"),
    ],
)
async def test_wrong_arguments_are_refused(log, asked, message):
    with pytest.raises(Exception, match=message):
        await log.page(**asked)
