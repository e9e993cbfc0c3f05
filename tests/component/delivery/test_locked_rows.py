"""An application or a person holds rows or tables in an open transaction: every other site goes on, records included.

No test waits for the lock to be old: the daemon's clock is put forward past the age at which outcomes close the gate.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest

from support import crew
from support.crew import living
from support.events import emit

ROUNDS = 12
RECORDED_WITHIN_S = (
    1.5  # of a healthy site, from INSERT to a row in `attempts`; a lock must not add its timeout
)
LOCK_TIMEOUT = "200ms"  # what a producer may wait for a lock
RETRY = {"schedule": (0.2, 300.0, 300.0), "jitter": 0.0, "throttle_floor_s": 0}
LATER = {**RETRY, "schedule": (300.0, 300.0)}
SILENT = {"share": 0}  # no breaker: it would hide what the locks do


@dataclasses.dataclass(frozen=True)
class Case:
    """A lock held while the answer of endpoint `a` arrives.

    Attributes:
        statement: run in a transaction that stays open; {a} is the endpoint, {event} its failed event.
        answer: of endpoint `a` to the event that is sent then.
        failed_before: its event has failed once, and has a row in `backlog`.
        all_record: other sites' failures are recorded meanwhile too; not where a table is locked that they need.
    """

    statement: str
    answer: int = 500
    failed_before: bool = False
    all_record: bool = True


CASES = {
    "an endpoint is selected for update": Case(
        "select from webhooks.endpoints where endpoint_id = {a} for update"
    ),
    "enable_endpoint() is open": Case("select webhooks.enable_endpoint({a})"),
    "latest_per_key is open": Case(
        "update webhooks.endpoints set enabled = false where endpoint_id = {a};"
        " select webhooks.enable_endpoint({a}, 'latest_per_key')",
        failed_before=True,
    ),
    "an endpoint is deleted": Case("delete from webhooks.endpoints where endpoint_id = {a}"),
    "an endpoint is deleted that answers 200": Case(
        "delete from webhooks.endpoints where endpoint_id = {a}", answer=200, failed_before=True
    ),
    "an endpoint is updated that says it is gone": Case(
        "update webhooks.endpoints set description = 'x' where endpoint_id = {a}", answer=410
    ),
    "an endpoint is inserted": Case(
        "insert into webhooks.endpoints (site_id, url) values ('a', 'http://127.0.0.1:9/')"
    ),
    "a site is updated": Case("update webhooks.sites set name = 'x' where site_id = 'a'"),
    "a site is deleted": Case("delete from webhooks.sites where site_id = 'a'"),
    "cancel() is open": Case("select webhooks.cancel({event})", failed_before=True),
    "cancel() is open and the delivery succeeds": Case(
        "select webhooks.cancel({event})", answer=200, failed_before=True
    ),
    "rows of the backlog are selected for update": Case(
        "select from webhooks.backlog where endpoint_id = {a} for update", failed_before=True
    ),
    "an incident is selected for update": Case(
        "select from webhooks.incidents where endpoint_id = {a} for update", failed_before=True
    ),
    "the stored positions are selected for update": Case("select from webhooks.shards for update"),
    "tables are analyzed": Case("analyze webhooks.backlog, webhooks.endpoints, webhooks.attempts"),
    "endpoints are locked in share mode": Case("lock table webhooks.endpoints in share mode", answer=410),
    "incidents are locked": Case("lock table webhooks.incidents in access exclusive mode"),
    "the backlog is locked": Case("lock table webhooks.backlog in access exclusive mode", all_record=False),
    "an index is made on the backlog": Case("create index on webhooks.backlog (site_id)", all_record=False),
}


class Platform:
    """Three sites: `a`, whose rows are held; `b`, which is well; `c`, which fails all the time."""

    def __init__(self, database, con, receiver, until):
        self.database = database
        self.con = con
        self.receiver = receiver
        self.until = until
        self.answer = 500
        self.endpoints = {}
        self.worst_s = 0.0

    async def make(self):
        self.receiver.paths["/a"] = lambda _: self.answer
        self.receiver.paths["/c"] = lambda _: 500
        for site in "abc":
            await self.con.execute("insert into webhooks.sites (site_id, name) values ($1, $1)", site)
            self.endpoints[site] = await self.con.fetchval(
                "insert into webhooks.endpoints (site_id, url) values ($1, $2) returning endpoint_id",
                site,
                self.receiver.url(f"/{site}"),
            )
        await self.con.execute(f"set lock_timeout = '{LOCK_TIMEOUT}'")

    async def recorded(self, site):
        return await self.con.fetchval(
            "select count(*) from webhooks.attempts where site_id = $1 and event_id > 0", site
        )

    async def goes_on(self, rounds=ROUNDS):
        """Deliver and record events of the site that is well, one after another."""
        before = await self.recorded("b")
        for n in range(1, rounds + 1):
            began = time.monotonic()
            await emit(self.con, site="b")
            await self.until(lambda n=n: self._has(before + n))
            self.worst_s = max(self.worst_s, time.monotonic() - began)

    async def _has(self, count):
        return await self.recorded("b") == count


@pytest.fixture
async def platform(database, connect, receiver, until):
    made = Platform(database, await connect(database), receiver, until)
    await made.make()
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
async def test_everybody_else_goes_on_while_something_is_held(name, platform, connect, until):
    case, clock, con = CASES[name], crew.Clock(), platform.con
    admin = await connect(platform.database)
    retry = RETRY if case.failed_before else LATER
    async with living(platform.database, clock=clock, retry=retry, breaker=SILENT) as life:
        await platform.goes_on(1)
        event = await emit(platform.con, site="a") if case.failed_before else 0
        if event:
            await until(lambda: _has_row(con, event))
        await admin.execute("begin")
        await admin.execute(case.statement.format(a=platform.endpoints["a"], event=event))
        platform.answer = case.answer
        event = event or await emit(platform.con, site="a")
        await until(lambda: len(platform.receiver.of("/a")) == 1 + case.failed_before)
        platform.worst_s = 0.0
        await platform.goes_on()
        failing = await emit(platform.con, site="c")
        if case.all_record:
            await until(lambda: _has_row(con, failing))
        clock.ahead_s += 5.5  # an outcome not recorded by now closes the gate, unless it was set aside
        await platform.goes_on()
        assert platform.worst_s < RECORDED_WITHIN_S
        assert not life.ended
        await admin.execute("rollback")
        await until(lambda: _attempts(con, event, 1 + case.failed_before))
        await until(lambda: _has_row(con, failing))
        if case.answer == 410:
            await until(lambda: _is_off(con, platform.endpoints["a"]))
        if case.answer == 500:
            await until(lambda: _has_incident(con, platform.endpoints["a"]))
        await platform.goes_on(1)
        assert not life.ended
        assert len(platform.receiver.of("/a")) == 1 + case.failed_before


async def _has_row(con, event):
    return await con.fetchval("select count(*) from webhooks.backlog where event_id = $1", event)


async def _attempts(con, event, count):
    return await con.fetchval("select count(*) = $2 from webhooks.attempts where event_id = $1", event, count)


async def _is_off(con, endpoint_id):
    return await con.fetchval(
        "select disabled_reason = 'gone' from webhooks.endpoints where endpoint_id = $1", endpoint_id
    )


async def _has_incident(con, endpoint_id):
    return await con.fetchval(
        "select count(*) from webhooks.incidents where endpoint_id = $1 and last_failure_at is not null",
        endpoint_id,
    )


@pytest.mark.slow
async def test_an_endpoint_is_sent_nothing_while_its_outcome_is_set_aside(platform, connect, until):
    """So that a crash repeats only requests in flight."""
    admin, con = await connect(platform.database), platform.con
    async with living(platform.database, retry=RETRY, breaker=SILENT) as life:
        event = await emit(platform.con, site="a")
        await until(lambda: _has_row(con, event))
        await admin.execute("begin")
        await admin.execute("select from webhooks.backlog for update")
        platform.answer = 200
        [delayed] = await life.diary.wait_for("outcome.delayed")
        assert (delayed["endpoint_id"], delayed["reason"]) == (platform.endpoints["a"], "locked")
        sent = len(platform.receiver.of("/a"))
        for _ in range(20):
            await emit(platform.con, site="a")
        await platform.goes_on()
        assert len(platform.receiver.of("/a")) == sent
        await admin.execute("commit")
        await life.diary.wait_for("outcome.resumed")
        await until(lambda: len(platform.receiver.of("/a")) == sent + 20)
        await until(lambda: _is_empty(con))
    assert len({request.event_id for request in platform.receiver.of("/a")}) == 21


async def _is_empty(con):
    return not await con.fetchval("select count(*) from webhooks.backlog where site_id = 'a'")


async def test_a_gone_receiver_is_switched_off_though_the_daemon_died_in_between(platform, connect, until):
    """The endpoint's row was locked when it answered 410: it gets one more request, and is disabled then."""
    admin, con = await connect(platform.database), platform.con
    platform.answer = 410
    async with living(platform.database, retry=RETRY, breaker=SILENT) as life:
        await platform.goes_on(1)
        await admin.execute("begin")
        await admin.execute("update webhooks.endpoints set description = 'x' where site_id = 'a'")
        event = await emit(platform.con, site="a")
        await life.diary.wait_for("outcome.delayed")
    assert not await con.fetchval("select count(*) from webhooks.attempts where event_id = $1", event)
    await admin.execute("commit")
    async with living(platform.database, retry=RETRY, breaker=SILENT):
        await until(lambda: _is_off(con, platform.endpoints["a"]))
        await until(lambda: _is_held(con, event))
    assert len(platform.receiver.of("/a")) == 2


async def _is_held(con, event):
    return await con.fetchval("select state = 'held' from webhooks.backlog where event_id = $1", event)


async def test_the_orderly_end_does_not_wait_for_a_lock(platform, connect, until):
    admin, con = await connect(platform.database), platform.con
    async with living(platform.database, retry=RETRY, breaker=SILENT) as life:
        event = await emit(platform.con, site="a")
        await until(lambda: _has_row(con, event))
        await admin.execute("begin")
        await admin.execute("select from webhooks.backlog for update")
        await life.diary.wait_for("outcome.delayed")
        async with asyncio.timeout(3.0):
            await life.stop()
