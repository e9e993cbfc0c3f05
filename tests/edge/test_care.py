"""Care on a real database: the same mails as the pure machine, folding, storms, muting, switching off."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import time

import pytest
from crew import Diary, desk, seed, session_on, settings_of
from ledger import DAY, SECOND, Endpoint, Ledger

from pghookd.core import digest as digests
from pghookd.core.incident import Policy
from pghookd.core.model import Delivery, Event, Outcome, Reason
from pghookd.core.verdict import Dead, Delivered, Disable, Retry
from pghookd.core.writes import Attempted
from pghookd.edge.postgres import query
from pghookd.loops.care import Around, Care

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
SMTP = {"smtp": {"host": "127.0.0.1", "tls": "none"}, "mail": {"sender": "hooks@platform.example"}}
WAITS = (5 * SECOND, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR)


class House:
    """Sites, endpoints and events in a database; attempts recorded at made-up times by the real recorder."""

    def __init__(self, session, it, url, **changes):
        self.session = session
        self.desk = it
        self.settings = settings_of(url, **{**SMTP, **changes})
        self.policy = Policy.of(self.settings)
        self.diary = Diary()
        self.attempts = {}
        self.in_backlog = set()
        self.traffic = 1000
        self.unwatched = []

    async def open(self, url):
        self.it = await session_on(url)
        self.desk.recorder._watched = {}
        self.care = self.make_care()

    def make_care(self, **around):
        return Care(
            self.it,
            self.settings,
            Around(traffic=lambda: self.traffic, unwatch=self.desk.recorder.unwatch, **around),
            logger=self.diary.logger,
            wall_us=lambda: time.time_ns() // 1000,
            beat=lambda: None,
        )

    async def endpoints(self, owners, each):
        """Make owners' sites with endpoints; return the endpoints as the ledger has them."""
        made = []
        for n in range(owners):
            owner, site = f"owner{n}@shop.example", f"site{n}"
            await self.session.execute(
                "insert into webhooks.sites (site_id, name, owner_email) values ($1, $2, $3)",
                site, f"Shop {n}", owner.upper() if n % 2 else owner,
            )  # fmt: skip
            for m in range(each):
                number = await self.session.fetchval(
                    "insert into webhooks.endpoints (site_id, url, from_event_id) values ($1, $2, 0) returning endpoint_id",
                    site, f"https://h{n}-{m}.shop.example/hook?token=x",
                )  # fmt: skip
                made.append(Endpoint(number, owner, f"h{n}-{m}.shop.example"))
        return made

    async def events(self, count):
        rows = await self.session.fetch(
            "insert into webhooks.events (site_id, type, payload) select 'site0', 'order_created', '{}' "
            "from generate_series(1, $1) returning event_id",
            count,
        )
        return [row[0] for row in rows]

    def attempt(self, endpoint_id, event_id, at, verdict, outcome=Outcome.REFUSED, status=500, response=None):
        """Put one attempt to be recorded."""
        key = event_id, endpoint_id
        delivery = Delivery(
            Event(event_id, "site0", "order_created", at, b"{}"), endpoint_id, self.attempts.get(key, 0), 0.0
        )
        delivery.in_backlog = key in self.in_backlog
        self.attempts[key] = delivery.attempts + 1
        if isinstance(verdict, Retry):
            self.in_backlog.add(key)
        else:
            self.in_backlog.discard(key)
        delivered = isinstance(verdict, Delivered)
        write = Attempted(
            delivery,
            Outcome.DELIVERED if delivered else outcome,
            200 if delivered else status,
            None,
            response,
            at,
            1.0,
            verdict,
        )
        self.desk.recorder.put(write, 0.0)

    async def record(self):
        while self.desk.recorder.unrecorded:
            await self.desk.recorder._flush(500)

    async def look(self, now):
        return await self.care.step(now)

    async def mails(self, state=None):
        rows = await self.session.fetch("select * from webhooks.emails order by email_id")
        return [row for row in rows if state is None or row["state"] == state]

    async def health(self, endpoint_id):
        return await self.session.fetchrow(
            "select * from webhooks.endpoint_health where endpoint_id = $1", endpoint_id
        )


def digest_in(row):
    return digests.digest_of(json.loads(row["digest"]))


def kinds_in(row):
    return {s.endpoint_id: s.kind.value for s in digest_in(row).sections}


@pytest.fixture
async def make_house(database, connect):
    opened = []

    async def make(**changes):
        context = desk(database)
        it = await context.__aenter__()
        opened.append((context, None))
        made = House(await connect(database), it, database, **changes)
        await made.open(database)
        opened[-1] = (context, made)
        return made

    yield make
    for context, made in opened:
        if made is not None:
            made.it.terminate()
        await context.__aexit__(None, None, None)


@pytest.fixture
async def house(make_house):
    return await make_house()


def now_us():
    return time.time_ns() // 1000 // SECOND * SECOND


# The same as the pure machine ------------------------------------------------------------------------------------------


async def test_sql_and_the_pure_machine_make_the_same_mails(house):
    """2,000 failures of 60 endpoints in two days: every mail, section and delivery told of is the same in both."""
    rng = random.Random(seed())
    endpoints = await house.endpoints(20, 3)
    events = iter(await house.events(6000))
    ledger = Ledger(house.policy, endpoints)
    start = now_us()
    agenda, failures = [], 0
    down = {e.number: _outages(rng, start) for e in endpoints}
    for e in endpoints:
        at = start + rng.randrange(HOUR)
        while at < start + 2 * DAY:
            agenda.append((at, e.number, next(events), 0))
            at += rng.randrange(HOUR, 2 * HOUR)
    agenda.sort()
    for now in range(start, start + 2 * DAY, 150 * SECOND):
        while agenda and agenda[0][0] < now:
            at, number, event, n = agenda.pop(0)
            if not any(a <= at < b for a, b in down[number]):
                ledger.delivered(number, event, at)
                house.attempt(number, event, at, Delivered())
                continue
            failures += 1
            ledger.failed(number, event, at)
            if n == len(WAITS):
                ledger.died(number, event, at)
                house.attempt(number, event, at, Dead(Reason.EXHAUSTED))
                continue
            house.attempt(number, event, at, Retry(1.0))
            agenda.append((at + WAITS[n], number, event, n + 1))
            agenda.sort()
        await house.record()
        await house.session.execute(
            "update webhooks.dead d set since = a.at from (select event_id, endpoint_id, max(attempted_at) as at "
            "from webhooks.attempts group by 1, 2) a where a.event_id = d.event_id and a.endpoint_id = d.endpoint_id "
            "and d.since <> a.at"
        )
        ledger.look(now, house.traffic)
        await house.look(now)
        await house.session.execute("update webhooks.emails set state = 'sent' where state = 'queued'")
    rows = await house.mails()
    assert failures > 2000
    assert len(ledger.mails) > 40
    found = [
        (_us(row["created_at"]), row["owner_email"], row["kind"], kinds_in(row), _told(row)) for row in rows
    ]
    expected = [
        (m.at, m.owner, m.kind, m.sections, {n: len(events) for n, events in m.told.items()})
        for m in ledger.mails
    ]
    order = lambda mail: (mail[0], mail[1])  # noqa: E731 - two lines below
    for one, other in zip(sorted(found, key=order), sorted(expected, key=order), strict=True):
        if one != other: print('ONE', one, '\nOTHER', other)
        assert one == other


def _outages(rng, start):
    found, at = [], start + rng.randrange(4 * HOUR)
    while at < start + 2 * DAY:
        length = rng.choice((3 * MINUTE, HOUR, 5 * HOUR, 14 * HOUR))
        found.append((at, at + length))
        at += length + rng.randrange(2 * HOUR, 8 * HOUR)
    return found


def _told(row):
    return {s.endpoint_id: sum(count for _, count in s.types) for s in digest_in(row).sections}


def _us(at):
    return round(at.timestamp() * 1e6)
