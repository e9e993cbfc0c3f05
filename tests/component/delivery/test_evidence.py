"""The evidence of each attempt: why it was made, and with which revision of its endpoint."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest

from support.crew import Clock, living
from support.events import emit
from support.receiver import Response

NO_BREAKER = {"breaker": {"share": 0}}
PROBE_S = 60.0
LONG_BREAKER = {
    "breaker": {"attempts": 2, "share": 0.5, "probe_s": PROBE_S},
    "retry": {"schedule": (3600,)},
}


@pytest.fixture
async def con(database, connect, receiver):
    con = await connect(database)
    await con.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    await con.execute("insert into webhooks.endpoints (site_id, url) values ('s', $1)", receiver.url("/"))
    return con


async def evidence(con, column="cause", event_id=None):
    """Return a column of all attempts, in the order of their event and number."""
    rows = await con.fetch(
        f"select {column} from webhooks.attempts where $1::bigint is null or event_id = $1 order by event_id, attempt",
        event_id,
    )
    return [row[column] for row in rows]


def count_is(con, count):
    async def holds():
        return await con.fetchval("select count(*) = $1 from webhooks.attempts", count)

    return holds


async def test_the_first_attempt_is_live_and_the_others_are_retries(database, con, receiver, until):
    receiver.script = lambda request: 200 if request.attempt == 3 else 500
    async with living(database, **NO_BREAKER):
        await emit(con)
        await until(count_is(con, 3))
    assert await evidence(con) == ["live", "retry", "retry"]


async def test_a_test_is_a_test(database, con, until):
    async with living(database):
        await con.execute("select webhooks.send_test(1)")
        await until(count_is(con, 1))
    assert await evidence(con) == ["test"]


async def test_the_first_attempt_of_a_replay_is_one(database, con, receiver, until):
    """Each life of the delivery fails twice: then its attempts are over."""
    receiver.script = lambda _request: 500
    async with living(database, retry={"schedule": (0.01,)}, **NO_BREAKER):
        await emit(con)
        await until(count_is(con, 2))
        await until(lambda: con.fetchval("select count(*) = 1 from webhooks.dead"))
        await con.execute("select webhooks.replay(site_id => 's', dry_run => false)")
        await until(count_is(con, 4))
    assert await evidence(con) == ["live", "retry", "replay", "retry"]


async def test_a_replay_that_was_parked_remains_one(database, con, receiver, until):
    """Two are replayed to an endpoint whose breaker is open: one goes as its probe, the other one later."""
    clock = Clock()
    async with living(database, clock=clock, **LONG_BREAKER) as life:
        ids = await emit(con, 2)
        await until(count_is(con, 2))
        receiver.script = lambda _request: 500
        await emit(con)
        await life.diary.wait_for("breaker.opened")
        await con.execute(
            "select webhooks.replay(event_ids => $1, states => '{delivered}', dry_run => false)", ids
        )
        await until(
            lambda: con.fetchval("select count(*) = 2 from webhooks.backlog where reason = 'breaker_open'")
        )
        receiver.script = lambda _request: 200
        clock.ahead_s = PROBE_S * 2
        await until(count_is(con, 5))
    later = [each for event_id in ids for each in (await evidence(con, event_id=event_id))[1:]]
    assert sorted(later) == ["probe", "replay"]


async def test_an_event_that_a_start_reads_may_have_been_sent_before(database, con, until):
    async with living(database):
        await until(lambda: con.fetchval("select count(snapshot) > 0 from webhooks.shards"))
    await emit(con)
    async with living(database):
        await until(count_is(con, 1))
        await emit(con)
        await until(count_is(con, 2))
    assert await evidence(con) == ["recovery", "live"]


async def test_a_probe_is_one_and_the_next_event_is_live_again(database, con, receiver, until):
    receiver.script = lambda _request: 500
    async with living(
        database, breaker={"attempts": 2, "share": 0.5, "probe_s": 0.1}, retry={"schedule": (0.01,) * 9}
    ) as life:
        event_id = await emit(con)
        await life.diary.wait_for("breaker.opened")
        receiver.script = lambda _request: 200
        await life.diary.wait_for("breaker.closed")
        await until(lambda: con.fetchval("select count(*) = 0 from webhooks.backlog"))
        await emit(con)
        await until(lambda: con.fetchval("select count(distinct event_id) = 2 from webhooks.attempts"))
    assert await evidence(con, event_id=event_id) == ["live", "probe"]
    assert (await evidence(con))[-1] == "live"


async def test_a_parked_event_is_as_live_as_it_was(database, con, receiver, until):
    """Behind an open breaker one waits as the next probe, another until it has closed."""
    receiver.script = lambda _request: 500
    clock = Clock()
    async with living(database, clock=clock, **LONG_BREAKER) as life:
        await emit(con)
        await life.diary.wait_for("breaker.opened")
        await emit(con, 2)
        await until(lambda: con.fetchval("select count(*) = 2 from webhooks.backlog where state = 'parked'"))
        receiver.script = lambda _request: 200
        clock.ahead_s = PROBE_S * 2
        await until(count_is(con, 3))
    assert await evidence(con) == ["live", "probe", "live"]


async def test_an_attempt_has_the_revision_that_its_request_was_made_with(database, con, receiver, until):
    """The endpoint changes while the receiver has not answered yet; a description concerns no request, but counts."""
    changed = asyncio.Event()

    async def answer(_request):
        await changed.wait()
        return 200

    async with living(database):
        receiver.script = answer
        await emit(con)
        await receiver.wait_for(1)
        await con.execute("update webhooks.endpoints set description = 'mine'")
        changed.set()
        await until(count_is(con, 1))
        await emit(con)
        await until(count_is(con, 2))
        await con.execute("update webhooks.endpoints set url = $1", receiver.url("/other"))
        await emit(con)
        await until(count_is(con, 3))
    assert await evidence(con, "revision") == [1, 2, 3]


async def test_failed_attempts_have_evidence_and_others_none(database, con, receiver, until):
    """A batch has evidence up to its last failure only."""
    receiver.script = lambda request: 503 if request.number in {3, 6} else 200
    async with living(database, recorder={"batch_wait_ms": 50}, **NO_BREAKER):
        await emit(con, 10)
        await until(count_is(con, 12))
    rows = await con.fetch("select status, evidence from webhooks.attempts where evidence is not null")
    assert [row["status"] for row in rows] == [503, 503]
    assert [json.loads(row["evidence"])["headers"] for row in rows] == [{"content-length": "0"}] * 2
    assert {json.loads(row["evidence"])["reached"] for row in rows} == {"body"}


async def test_no_secret_of_an_endpoint_is_in_evidence(database, con, receiver, until):
    """A receiver that knows the secret repeats it, and the token that the request had."""
    secret = "whsec_" + base64.b64encode(b"s" * 32).decode()
    await con.execute(
        "update webhooks.endpoints set secret = $1, auth = $2",
        secret,
        json.dumps({"bearer": {"token": "b34rer-t0ken"}}),
    )
    receiver.script = lambda _request: Response(
        500, headers=(("x-a", secret), ("x-b", "b34rer-t0ken"), ("x-c", "fine"))
    )
    async with living(database, **NO_BREAKER):
        await emit(con)
        await until(count_is(con, 1))
    [text] = await evidence(con, "evidence")
    told = json.loads(text)
    assert (told["headers"]["x-c"], told["headers_left_out"]) == ("fine", 2)
    assert not {"x-a", "x-b"} & set(told["headers"])


async def test_an_attempt_that_dials_nothing_has_no_evidence(database, con, until):
    await con.execute("update webhooks.endpoints set url = 'http://10.0.0.1/'")
    async with living(database):
        await emit(con)
        await until(count_is(con, 1))
    assert (await evidence(con, "outcome"), await evidence(con, "evidence")) == (["blocked"], [None])
