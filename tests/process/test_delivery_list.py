"""`delivery list` as an operator types it: the commonest question, and an answer also where there is nothing."""

from __future__ import annotations

import functools

import pytest

from support.command import command
from support.events import Sql, emit


@pytest.fixture
def listed(database):
    """Return `await listed(*words)`: the command on the test's database, in a zone that is not UTC."""
    return functools.partial(command, "delivery", "list", url=database, TZ="Europe/Sofia")


@pytest.fixture
async def orders(db):
    """Return the ids of three orders: delivered, waiting and dead."""
    await db.execute("insert into webhooks.sites (site_id, name) values ('s', 'A shop'), ('t', 'Another')")
    endpoint_id = await db.fetchval(
        "insert into webhooks.endpoints (site_id, url) values ('s', 'http://x') returning endpoint_id"
    )
    ids = [
        await emit(db, subject=f"order/{n}", created_at=Sql(f"'2026-01-02 07:0{n}:00Z'::timestamptz"))
        for n in range(3)
    ]
    await db.execute(
        "insert into webhooks.attempts"
        " (event_id, endpoint_id, attempted_at, duration_ms, attempt, status, outcome, site_id)"
        f" values ({ids[0]}, {endpoint_id}, now(), 1, 1, 200, 'delivered', 's'),"
        f" ({ids[1]}, {endpoint_id}, now(), 1, 1, 503, 'refused', 's')"
    )
    await db.execute(
        "insert into webhooks.backlog (event_id, endpoint_id, site_id, state, reason, attempts, next_attempt_at)"
        f" values ({ids[1]}, {endpoint_id}, 's', 'waiting', 'retry', 1, '2026-01-02 08:00:00Z')"
    )
    await db.execute(
        "insert into webhooks.dead (event_id, endpoint_id, site_id, reason, attempts)"
        f" values ({ids[2]}, {endpoint_id}, 's', 'exhausted', 0)"
    )
    return ids


async def test_deliveries_are_listed_newest_first_in_the_operators_time(listed, orders):
    done = await listed("--site", "s")
    lines = done.out.splitlines()
    assert done.status == 0
    assert [line.split()[0] for line in lines] == ["failed", "pending", "delivered"]
    assert "2026-01-02 09:01:00" in lines[1]
    assert "waiting: retry" in lines[1]
    assert "attempt 1: 503" in lines[1]
    assert "next at 2026-01-02 10:00:00" in lines[1]
    assert f"event {orders[1]}" in lines[1]


async def test_filters_and_pages(listed, orders):
    assert (await listed("--site", "s", "--subject", "order/1", "--json")).told["deliveries"][0][
        "event_id"
    ] == orders[1]
    assert (await listed("--site", "s", "--state", "failed", "--json")).told["deliveries"][0][
        "event_id"
    ] == orders[2]
    done = await listed("--site", "s", "--since", "2026-01-02 09:01", "--json")
    assert [each["event_id"] for each in done.told["deliveries"]] == [orders[2], orders[1]]
    first = await listed("--site", "s", "-n", "2")
    cursor = first.out.split()[-1]
    second = await listed("--site", "s", "--before", cursor, "--json")
    assert [each["event_id"] for each in second.told["deliveries"]] == [orders[0]]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--site", "u"), "there is no site u"),
        (("--site", "t"), "site t has no endpoint"),
        (("--site", "s", "--endpoint", "99"), "site s has no endpoint 99"),
        (("--site", "s", "--subject", "order/9"), "site s has no event with the subject order/9"),
        (("--site", "s", "--type", "order_deleted"), "site s has no such delivery"),
        (
            ("--site", "s", "--since", "2026-01-02 12:00"),
            "nothing since 2026-01-02 12:00; the last one before is of 2026-01-02 09:02",
        ),
    ],
)
async def test_an_empty_list_says_why(listed, orders, words, why):
    done = await listed(*words)
    assert (done.status, done.out) == (1, f"{why}\n")


async def test_an_invalid_time_or_cursor_is_refused(listed, orders):
    done = await listed("--site", "s", "--since", "soon")
    assert done.status == 2
    assert "is not a time such as 9:00" in done.err
    assert (await listed("--site", "s", "--before", "x")).status == 1


async def test_unclaimed_events_are_listed_with_the_nearest_name(database, db, orders):
    done = await command("event", "unclaimed", url=database)
    assert (done.status, done.out) == (0, "no event of an unknown site or type\n")
    await db.execute(
        "insert into webhooks.unclaimed_events (day, what, name, events)"
        " values (current_date, 'type', 'order_creatd', 3), (current_date, 'site', 'x', 1),"
        " (current_date - 7, 'site', 'y', 1)"
    )
    done = await command("event", "unclaimed", url=database)
    today = await db.fetchval("select current_date::text")
    assert done.out.splitlines() == [
        f"{today}  type order_creatd: 3 events, the nearest known is order_created",
        f"{today}  site x: 1 events",
    ]
    assert (
        len((await command("event", "unclaimed", "--days", "8", "--json", url=database)).told["unclaimed"])
        == 3
    )
