"""What events ask for, kept by a whole daemon at a real receiver."""

from __future__ import annotations

import pytest
from crew import living

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def con(database, connect, receiver):
    con = await connect(database)
    await con.execute("insert into webhooks.sites (site_id, name) values ('s', 'S'), ('t', 'T')")
    await con.execute(
        "insert into webhooks.endpoints (site_id, url) values ('s', $1), ('t', $1)", receiver.url("/")
    )
    return con


async def emit(con, site="s", payload="{}", kind="a", **options):
    """Insert an event; an option is an SQL expression."""
    names = "".join(f", {name}" for name in options)
    values = "".join(f", {value}" for value in options.values())
    return await con.fetchval(
        f"insert into webhooks.events (site_id, type, payload{names}) values ($1, $2, $3{values})"
        " returning event_id",
        site, kind, payload,
    )  # fmt: skip


def state_of(con, event_id, *wanted):
    """Return a condition: what the view says of an event's delivery."""

    async def holds():
        sql = "select state, reason from webhooks.deliveries where event_id = $1"
        return [tuple(row) for row in await con.fetch(sql, event_id)] == [wanted]

    return holds


# traceparent ------------------------------------------------------------------------------------------------------


async def test_a_trace_is_passed_on_unless_the_endpoint_has_one_of_its_own(database, con, receiver, until):
    await con.execute(
        """update webhooks.endpoints set headers = '{"TraceParent": "mine"}' where site_id = 't'"""
    )
    sent = {
        await emit(con, site, traceparent=f"'{value}'"): (site, value)
        for site in "st"
        for value in (TRACE, "x")
    }
    sent[await emit(con)] = ("s", "x")
    async with living(database):
        await receiver.wait_for(len(sent))
    for request in receiver.requests:
        site, value = sent[request.event_id]
        wanted = "mine" if site == "t" else TRACE if value == TRACE else None
        assert request.headers.get("traceparent") == wanted
        assert request.raw_head.lower().count(b"traceparent") == (wanted is not None)


# deliver_after, deliver_before ------------------------------------------------------------------------------------


async def test_an_event_is_not_delivered_before_its_time(database, con, receiver, until):
    later = await emit(con, deliver_after="now() + '1.2 s'::interval")
    past = await emit(con, deliver_after="now() - '1 s'::interval")
    never = await emit(con, deliver_after="'infinity'")
    async with living(database):
        await until(state_of(con, later, "waiting", "deliver_after"))
        await until(state_of(con, never, "waiting", "deliver_after"))
        await until(state_of(con, past, "delivered", None))
        assert [request.event_id for request in receiver.requests] == [past]
        await until(state_of(con, later, "delivered", None))
    assert await con.fetchval(
        "select bool_and(attempted_at >= deliver_after) from webhooks.attempts join webhooks.events using (event_id)"
    )


async def test_its_age_counts_from_its_time(database, con, receiver, until):
    receiver.script = lambda request: 500 if request.attempt < 3 else 200
    old = await emit(con, created_at="now() - '30 days'::interval", deliver_after="now() + '0.1 s'::interval")
    async with living(database):
        await until(state_of(con, old, "delivered", None))
    assert len(receiver.requests) == 3


async def test_its_time_outlasts_a_disabled_endpoint(database, con, receiver, until):
    await con.execute("update webhooks.endpoints set enabled = false")
    later = await emit(con, deliver_after="now() + '1 hour'::interval")
    async with living(database):
        await until(state_of(con, later, "held", "disabled"))
        await con.execute("update webhooks.endpoints set enabled = true")
        await until(state_of(con, later, "waiting", "deliver_after"))
        assert await con.fetchval("select next_attempt_at - now() > '59 minutes' from webhooks.backlog")
    assert not receiver.requests


async def test_no_attempt_starts_after_its_end(database, con, receiver, until):
    receiver.script = lambda _request: 500
    over = await emit(con, deliver_before="now()")
    long_over = await emit(con, deliver_before="'-infinity'")
    soon = await emit(con, deliver_before="now() + '1 s'::interval")
    async with living(database, retry={"schedule": (0.05,) * 99}, breaker={"share": 0}):
        for event_id in (over, long_over, soon):
            await until(state_of(con, event_id, "dead", "expired"))
    assert {request.event_id for request in receiver.requests} == {soon}
    assert await con.fetchval("select attempts > 0 from webhooks.dead where event_id = $1", soon)
    assert await con.fetchval("select count(*) from webhooks.backlog") == 0


# Types by their beginning -----------------------------------------------------------------------------------------


async def test_types_are_taken_by_how_they_begin_and_explained_so(database, con, receiver):
    await con.execute("update webhooks.endpoints set event_types = '{order_*,web*,note}'")
    wanted = ("order_created", "order_updated", "note", "website")
    ids = {kind: await emit(con, kind=kind) for kind in (*wanted, "orders", "notes", "webhook_x")}
    explain = "select what from webhooks.explain($1) where endpoint_id is not null or what = 'no_taker'"
    for kind, event_id in ids.items():
        assert await con.fetchval(explain, event_id) == ("not_read_yet" if kind in wanted else "no_taker")
    async with living(database):
        last = await emit(con, kind="note")
        await receiver.wait_for(len(wanted) + 1)
    assert {request.event_id for request in receiver.requests} == {ids[kind] for kind in wanted} | {last}
