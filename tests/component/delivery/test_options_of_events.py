"""Options of events, kept by a whole daemon at a real receiver."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from pghookd.delivery.recording.pending import Pending
from support import crew
from support.crew import desk, living
from support.events import Sql, emit

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def con(database, connect, receiver):
    con = await connect(database)
    await con.execute("insert into webhooks.sites (site_id, name) values ('s', 'S'), ('t', 'T')")
    await con.execute(
        "insert into webhooks.endpoints (site_id, url) values ('s', $1), ('t', $1)", receiver.url("/")
    )
    return con


def state_of(con, event_id, *wanted):
    """Return a condition: the view's row of an event's delivery."""

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
        await emit(con, site=site, traceparent=value): (site, value)
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
    later = await emit(con, deliver_after=Sql("now() + '1.2 s'::interval"))
    past = await emit(con, deliver_after=Sql("now() - '1 s'::interval"))
    never = await emit(con, deliver_after=Sql("'infinity'"))
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
    old = await emit(
        con, created_at=Sql("now() - '30 days'::interval"), deliver_after=Sql("now() + '0.1 s'::interval")
    )
    async with living(database):
        await until(state_of(con, old, "delivered", None))
    assert len(receiver.requests) == 3


async def test_its_time_outlasts_a_disabled_endpoint(database, con, receiver, until):
    await con.execute("update webhooks.endpoints set enabled = false")
    later = await emit(con, deliver_after=Sql("now() + '1 hour'::interval"))
    async with living(database):
        await until(state_of(con, later, "held", "disabled"))
        await con.execute("update webhooks.endpoints set enabled = true")
        await until(state_of(con, later, "waiting", "deliver_after"))
        assert await con.fetchval("select next_attempt_at - now() > '59 minutes' from webhooks.backlog")
    assert not receiver.requests


async def test_no_attempt_starts_after_its_end(database, con, receiver, until):
    receiver.script = lambda _request: 500
    over = await emit(con, deliver_before=Sql("now()"))
    long_over = await emit(con, deliver_before=Sql("'-infinity'"))
    soon = await emit(con, deliver_before=Sql("now() + '1 s'::interval"))
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


# supersede_key ----------------------------------------------------------------------------------------------------


async def test_a_newer_event_replaces_those_that_wait_in_memory(database, con, receiver, until):
    gate = asyncio.Event()

    async def script(_request):
        await gate.wait()
        return 200

    receiver.script = script
    await con.execute("update webhooks.endpoints set concurrency = 1")
    async with living(database) as life:
        first = await emit(con, supersede_key="k")
        await receiver.wait_for(1)
        older = await emit(con, supersede_key="k")
        others = [await emit(con, supersede_key="other"), await emit(con)]
        newest = await emit(con, supersede_key="k")
        last = await emit(con)
        others.append(await emit(con, site="t", supersede_key="k"))
        await receiver.wait_for(2)  # so that all of them have been read
        gate.set()
        await until(state_of(con, last, "delivered", None))
        for event_id in (first, *others, newest):
            await until(state_of(con, event_id, "delivered", None))
        await until(state_of(con, older, "dead", "superseded"))
        assert not life.diary.of("delivery.died")
    assert older not in {request.event_id for request in receiver.requests}


async def test_a_newer_event_replaces_those_that_have_rows(database, con, receiver, until):
    """Waiting for a retry, for their time, or held; and not what its endpoint does not take, or may be a duplicate."""
    await con.execute("update webhooks.endpoints set enabled = false")
    await con.execute("update webhooks.endpoints set event_types = '{order_created}' where site_id = 't'")
    older = [
        await emit(con, supersede_key="k"),
        await emit(con, supersede_key="k", deliver_after=Sql("now() + '1 h'::interval")),
    ]
    alone = [
        await emit(con, supersede_key="k2", dedupe_key="d"),
        await emit(con, site="t", supersede_key="k"),
    ]
    await emit(con, site="t", kind="b", supersede_key="k")
    again = await emit(con, supersede_key="k2", dedupe_key="d")
    async with living(database):
        await until(state_of(con, older[1], "held", "disabled"))
        await until(state_of(con, again, "dead", "duplicate"))
        newest = await emit(con, supersede_key="k")
        await until(state_of(con, newest, "held", "disabled"))
        await con.execute("update webhooks.endpoints set enabled = true")
        for event_id in (*alone, newest):
            await until(state_of(con, event_id, "delivered", None))
        for event_id in older:
            await until(state_of(con, event_id, "dead", "superseded"))
    assert {request.event_id for request in receiver.requests} == {*alone, newest}


async def test_a_replaced_event_gets_no_retry_but_may_be_replayed(database, con, receiver, until):
    receiver.script = lambda request: 500 if request.event_id == older and request.attempt == 1 else 200
    older = await emit(con, supersede_key="k")
    async with living(database, retry={"schedule": (1.0,)}):
        await until(state_of(con, older, "waiting", "retry"))
        newer = await emit(con, supersede_key="k")
        await until(state_of(con, newer, "delivered", None))
        await until(state_of(con, older, "dead", "superseded"))
        await con.fetch("select webhooks.replay(event_ids => $1, dry_run => false)", [older])
        await until(state_of(con, older, "delivered", None))
    assert len(receiver.requests) == 3


# dedupe_key -------------------------------------------------------------------------------------------------------


async def test_the_first_event_of_a_key_is_delivered_and_no_other(database, con, receiver, until):
    async with con.transaction():
        first, second = [await emit(con, dedupe_key="d") for _ in range(2)]
    async with living(database) as life:
        third = await emit(con, dedupe_key="d")
        free = [
            await emit(con, dedupe_key="other"),
            await emit(con, site="t", dedupe_key="d"),
            await emit(con),
        ]
        for event_id in (first, *free):
            await until(state_of(con, event_id, "delivered", None))
        for event_id in (second, third):
            await until(state_of(con, event_id, "dead", "duplicate"))
        assert not life.diary.of("delivery.died")
    async with living(database):
        fourth = await emit(con, dedupe_key="d")
        await until(state_of(con, fourth, "dead", "duplicate"))
    assert {request.event_id for request in receiver.requests} == {first, *free}


async def test_a_page_of_them_is_looked_through_in_one_statement(database, con):
    await emit(con, 2500, dedupe_key=Sql("'d' || n % 700"))
    async with desk(database) as it:
        recording = asyncio.create_task(it.recorder.run())
        await it.recover()
        recording.cancel()
    assert len(it.seen) == 700


async def test_the_first_stays_the_first_after_a_crash(database, con, connect):
    """The later of two ids is read first, then the other: whatever of it was recorded, exactly one is delivered."""
    for recorded in ("nothing", "the first", "the duplicate", "both"):
        slow = await connect(database)
        async with desk(database, settling=False) as it:
            await it.recover()
            it.seen.clear()
            it.settle_all()
            await it.store()
            await slow.execute("begin")
            low = await emit(slow, dedupe_key=recorded)
            high = await emit(con, dedupe_key=recorded)
            await it.read()
            await slow.execute("commit")
            await it.read()
            assert [event.event_id for event in it.seen] == [high]
            if recorded in {"the duplicate", "both"}:
                while it.recorder.waiting:
                    await it.recorder._flush(500)
            if recorded in {"the first", "both"}:
                it.recorder._pending = Pending()
                await it.record(it.open)
        async with desk(database) as other:
            await other.recover()
            seen = [event.event_id for event in other.seen]
            while other.recorder.waiting:
                await other.recorder._flush(500)
            await other.store()
        wanted = {"nothing": [low], "the first": [], "the duplicate": [high], "both": []}
        assert seen == wanted[recorded]
        assert (
            await con.fetchval("select count(*) from webhooks.dead where event_id in ($1, $2)", low, high)
            <= 1
        )


# Filters ----------------------------------------------------------------------------------------------------------

SLOW = "exists($.a[*] ? (exists($.a[*] ? (@ == -1))))"  # the square of the array's length
LONG = json.dumps({"a": list(range(3000)), "total": 1})
NUL = '{"text": "\\u0000", "total": 1}'


@pytest.fixture
async def sift(con):
    """Return a way to set the first site's filter."""

    async def set_filter(text):
        await con.execute("update webhooks.endpoints set filter = $1 where site_id = 's'", text)

    return set_filter


async def test_a_filter_leaves_out_only_clearly_false_events(database, con, receiver, until, sift):
    await sift("$.total > 100")
    payloads = {
        '{"total": 101}': True,
        '{"total": 100}': False,
        "{}": False,
        '{"total": "101"}': True,  # neither true nor false
        "7": False,
        NUL: True,
        '{"total": 1, "text": "%s"}' % ("x" * 20_000): False,
        '{"total": 1, "text": "%s"}' % ("x" * 1_000_000): True,
    }  # fmt: skip
    ids = [await emit(con, payload=payload) for payload in payloads]
    other = await emit(con, site="t", payload='{"total": 1}')
    tested = await con.fetchval("select webhooks.send_test(1)")
    explain = "select what from webhooks.explain($1) where endpoint_id = 1"
    said = [await con.fetchval(explain, event_id) for event_id in ids]
    assert said[:3] == ["not_read_yet", "filtered", "filtered"]
    wanted = {event_id for event_id, taken in zip(ids, payloads.values(), strict=True) if taken}
    wanted |= {other, tested}
    async with living(database) as life:
        await receiver.wait_for(len(wanted))
        last = await emit(con, payload='{"total": 101}')
        await until(state_of(con, last, "delivered", None))
        await life.stop()
    assert {request.event_id for request in receiver.requests} == wanted | {last}
    assert await con.fetchval("select count(*) from webhooks.backlog") == 0
    assert await con.fetchval("select count(*) from webhooks.dead") == 0
    async with desk(database) as it:  # the log is settled beyond the events left out
        await it.recover()
        assert not it.seen


@pytest.mark.slow
async def test_a_slow_filter_parks_its_own_and_holds_up_nobody(database, con, receiver, until, sift):
    await sift(SLOW)
    slow = [await emit(con, payload=LONG) for _ in range(20)]
    async with living(database) as life:
        for event_id in slow:
            await until(state_of(con, event_id, "parked", "filter_slow"))
        [told] = await life.diary.wait_for("delivery.parked")
        assert (told["reason"], told["rest_s"]) == ("filter_slow", 30)
        detail = await con.fetchval("select detail from webhooks.explain($1) where endpoint_id = 1", slow[0])
        assert detail.startswith("filter_slow, the filter of the endpoint takes too long: exists ")
        quick = await emit(con, site="t")
        await until(state_of(con, quick, "delivered", None))
        kept = await emit(con, payload='{"total": 101}')
        await until(state_of(con, kept, "parked", "filter_slow"))
        await sift("$.total > 100")
        await until(state_of(con, kept, "delivered", None))
        for event_id in slow:
            await until(state_of(con, event_id, "dead", "dropped"))
    assert {request.event_id for request in receiver.requests} == {quick, kept}


@pytest.mark.slow
async def test_a_slow_filter_is_found_out_among_others_that_are_asked_together(
    database, con, receiver, until, sift
):
    await sift(SLOW)
    await con.execute("update webhooks.endpoints set filter = '$.total > 100' where site_id = 't'")
    slow = await emit(con, payload=LONG)
    quick = [await emit(con, site="t", payload='{"total": 101}') for _ in range(20)]
    async with living(database) as life:
        for event_id in quick:
            await until(state_of(con, event_id, "delivered", None))
        await until(state_of(con, slow, "parked", "filter_slow"))
        await life.diary.wait_for("delivery.parked")
        assert {line["endpoint_id"] for line in life.diary.of("delivery.parked")} == {1}
        later = await emit(con, site="t", payload='{"total": 101}')
        await until(state_of(con, later, "delivered", None))
    assert not await con.fetchval("select count(*) from webhooks.backlog where site_id = 't'")


@pytest.mark.slow
async def test_what_stands_behind_the_event_that_a_filter_is_slow_with_goes_out(
    database, con, receiver, until, sift
):
    await sift(f"!{SLOW}")
    slow = await emit(con, payload=LONG)
    quick = [await emit(con, payload='{"a": [1, 2, 3]}') for _ in range(20)]
    clock = crew.Clock()
    async with living(database, clock=clock) as life:
        for event_id in (slow, *quick):
            await until(state_of(con, event_id, "parked", "filter_slow"))
        await life.diary.wait_for("delivery.parked")
        clock.ahead_s += 31  # the first rest is over
        for event_id in quick:
            await until(state_of(con, event_id, "delivered", None))
        await life.diary.wait_for("delivery.parked", 2)  # evaluated once more from the beginning
        clock.ahead_s += 61
        lines = await life.diary.wait_for("delivery.parked", 3)
        await until(state_of(con, slow, "parked", "filter_slow"))
    assert [line["rest_s"] for line in lines] == [30, 60, 120]
    assert {request.event_id for request in receiver.requests} == set(quick)


@pytest.mark.slow
async def test_a_filter_is_not_slow_because_it_is_asked_for_much(database, con, receiver, until, sift):
    await sift(f"!{SLOW}")
    some = json.dumps({"a": list(range(150))})  # a few milliseconds
    ids = [await emit(con, payload=some) for _ in range(100)]
    async with living(database) as life:
        await receiver.wait_for(len(ids), 20)
        assert not [line for line in life.diary.of("delivery.parked") if line["reason"] == "filter_slow"]
    assert {request.event_id for request in receiver.requests} == set(ids)


async def test_an_undecided_filter_is_logged_once_an_hour(database, con, receiver, until, sift):
    await sift("$.total > 100")
    clock = crew.Clock()
    async with living(database, clock=clock) as life:
        first = await emit(con, payload=NUL)
        await until(state_of(con, first, "delivered", None))
        for _ in range(3):
            await until(state_of(con, await emit(con, payload='{"total": "x"}'), "delivered", None))
        clock.ahead_s += 3601
        again = await emit(con, payload='{"total": "x"}')
        await until(state_of(con, again, "delivered", None))
        lines = life.diary.of("filter.undecided")
    assert [(line["endpoint_id"], line["event_id"]) for line in lines] == [(1, first), (1, again)]
    detail = await con.fetchval("select detail from webhooks.explain($1) where endpoint_id = 1", again)
    assert detail.endswith(
        ' ms, revision 2, the filter of the endpoint says neither true nor false of it: ($."total" > 100)'
    )


async def test_held_events_are_filtered_when_they_go_out(database, con, receiver, until, sift):
    await con.execute("update webhooks.endpoints set enabled = false")
    ids = [await emit(con, payload=json.dumps({"total": total})) for total in (1, 101)]
    async with living(database):
        for event_id in ids:
            await until(state_of(con, event_id, "held", "disabled"))
        await sift("$.total > 100")
        await con.execute("update webhooks.endpoints set enabled = true")
        await until(state_of(con, ids[0], "dead", "dropped"))
        await until(state_of(con, ids[1], "delivered", None))
    assert [request.event_id for request in receiver.requests] == [ids[1]]


class Writers:
    """Transactions that overlap, each with events of a few keys."""

    def __init__(self, connections, rnd):
        self._idle, self._open = list(connections), []
        self._rnd = rnd

    async def step(self):
        """Begin one, insert into one, or end one."""
        choice = self._rnd.random()
        if self._idle and (choice < 0.3 or not self._open):
            begun = self._idle.pop()
            await begun.execute("begin")
            self._open.append(begun)
        elif choice < 0.7:
            await emit(self._rnd.choice(self._open), dedupe_key=f"d{self._rnd.randrange(8)}")
        else:
            await self.end(self._rnd.choice(self._open))

    async def end(self, connection=None):
        """End one, or all."""
        for each in [connection] if connection else list(self._open):
            self._open.remove(each)
            await each.execute("commit" if self._rnd.random() < 0.8 else "rollback")
            self._idle.append(each)


@pytest.mark.parametrize("crashes", [False, True])
async def test_of_each_key_one_is_delivered_whatever_overlaps(database, con, connect, crashes):
    """After crashes a second one may be, since the first was in flight; never none."""
    rnd = random.Random(crew.seed())
    writers = Writers([await connect(database) for _ in range(4)], rnd)
    for life in range(6):
        async with desk(database, settling=False) as it:
            await it.recover()
            for _ in range(25):
                await writers.step()
                if rnd.random() < 0.3:
                    await it.read()
                if rnd.random() < 0.2:  # some outcomes become durable, others may be lost
                    await it.record(it.open)
                    it.settle_all()
                if rnd.random() < 0.2:
                    await it.store()
            if life == 5:
                await writers.end()
            if life == 5 or not crashes:
                await it.read()
                await it.record(it.open)
                it.settle_all()
                await it.store()
    rows = await con.fetch(
        "select dedupe_key, count(*) filter (where state = 'delivered'),"
        " count(*) filter (where reason = 'duplicate'), count(*)"
        " from webhooks.events left join webhooks.deliveries using (event_id) group by 1"
    )
    for key, delivered, duplicates, events in rows:
        assert delivered + duplicates == events, key
        assert delivered >= 1 if crashes else delivered == 1, key
