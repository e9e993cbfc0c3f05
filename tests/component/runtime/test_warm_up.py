"""READY means quick: the first event after a start waits for no statement to be parsed and no type to be learnt."""

from __future__ import annotations

import re
import statistics
import time

import pytest

from support import crew
from support.crew import living
from support.events import emit

COLD_MS = 10.0  # what the first events may take longer than nine in ten of those in a steady state
STARTS = 4  # of which the best counts: a shared machine may stall by itself
PARSED = re.compile(r"^pghookd/(read|record)\|.* parse __asyncpg_stmt_\w+: (.*)", re.MULTILINE)


async def make_site(session, receiver):
    await session.execute("insert into webhooks.sites (site_id, name) values ('s', 'S')")
    await session.execute("insert into webhooks.endpoints (site_id, url) values ('s', $1)", receiver.url("/"))


@pytest.fixture
def talkative(make_server):
    """Return a server that logs every statement as it is parsed."""
    return make_server(log_min_duration_statement="0", log_line_prefix="%a|")


async def test_the_first_deliveries_parse_no_statement(talkative, connect, receiver, until):
    url = talkative.url()
    await crew.migrated(url)
    session = await connect(url)
    await make_site(session, receiver)
    answers = iter([200, 500])
    receiver.script = lambda _request: next(answers, 200)
    async with living(url) as life:
        log = talkative.log
        before = len(log.read_text())
        for _ in range(2):
            await emit(session)
        await receiver.wait_for(3)  # one delivered, one failed and tried again
        await until(lambda: session.fetchval("select count(*) = 3 from webhooks.attempts"))
        assert await life.stop()
    assert PARSED.findall(log.read_text()[:before]), "the log shows no parsing: this shows nothing"
    assert PARSED.findall(log.read_text()[before:]) == []


async def arrival_ms(session, receiver):
    """Insert an event and return how long it took from its commit to its receiver."""
    count = len(receiver.requests)
    await emit(session)
    committed = time.monotonic()
    [*_, request] = await receiver.wait_for(count + 1)
    return (request.arrived - committed) * 1e3


@pytest.mark.slow
async def test_the_first_events_after_a_start_are_as_quick_as_later_ones(database, connect, receiver):
    session = await connect(database)
    await make_site(session, receiver)
    await session.execute("select 1")
    late = []
    for _ in range(STARTS):
        async with living(database) as life:
            first = [await arrival_ms(session, receiver) for _ in range(3)]
            steady = [await arrival_ms(session, receiver) for _ in range(40)]
            late.append(max(first) - statistics.quantiles(steady, n=10)[-1])
            await life.stop()
    assert min(late) < COLD_MS, late
