"""Care on a real database: the same mails as the pure machine, folding, storms, muting, switching off."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import random
import time

import pytest

from pghookd.endpoint_health.faults import FaultReports
from pghookd.endpoint_health.incident import POLICY_BLOCKS, IncidentPolicy
from pghookd.endpoint_health.monitor import Monitor, MonitorHooks
from pghookd.model.delivery import Delivery, DisabledReason, Event, Outcome, Reason, State
from pghookd.model.outcome import AttemptWrite, BacklogWrite, DeadWrite
from pghookd.model.verdict import Dead, Delivered, Disable, Retry
from pghookd.owner_mail import digest as digests
from pghookd.postgres.client import query
from pghookd.process import fail_points
from support.crew import Diary, desk, seed, session_on, settings_of
from support.events import emit
from support.ledger import DAY, SECOND, Endpoint, Ledger

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
SMTP = {"smtp": {"host": "127.0.0.1", "tls": "none"}, "mail": {"sender": "hooks@platform.example"}}
OPERATOR = {"sender": "hooks@platform.example", "operator": "ops@platform.example"}
WAITS = (5 * SECOND, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR)


class House:
    """Sites, endpoints and events in a database; attempts recorded at made-up times by the real recorder."""

    def __init__(self, session, it, url, **changes):
        self.session = session
        self.desk = it
        self.settings = settings_of(url, **{**SMTP, **changes})
        self.policy = IncidentPolicy.of(self.settings)
        self.diary = Diary()
        self.attempts = {}
        self.revision = 1  # of the endpoint, as attempts are made
        self.in_backlog = set()
        self.traffic = 1000
        self.unwatched = []

    async def open(self, url):
        self.it = await session_on(url)
        self.care = self.make_care()

    def make_care(self, *, wall_us=lambda: time.time_ns() // 1000, **around):
        return Monitor(
            self.it,
            self.settings,
            MonitorHooks(traffic=lambda: self.traffic, unwatch=self.desk.recorder.unwatch, **around),
            logger=self.diary.logger,
            wall_us=wall_us,
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
                    "insert into webhooks.endpoints (site_id, url) values ($1, $2) returning endpoint_id",
                    site, f"https://h{n}-{m}.example/hook?token=x",
                )  # fmt: skip
                made.append(Endpoint(number, owner, f"h{n}-{m}.example"))
        return made

    async def events(self, count):
        return await emit(self.session, count, site="site0")

    def attempt(
        self,
        endpoint_id,
        event_id,
        at,
        verdict,
        outcome=Outcome.REFUSED,
        status=500,
        response=None,
        *,
        took_ms=1.0,
        error=None,
    ):
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
        write = AttemptWrite(
            delivery,
            Outcome.DELIVERED if delivered else outcome,
            200 if delivered else status,
            error,
            response,
            at,
            took_ms,
            verdict,
            revision=self.revision,
        )
        self.desk.recorder.put(write, 0.0)

    async def record(self):
        while self.desk.recorder.waiting:
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


# The same as the pure machine --------------------------------------------------------------------------------


@pytest.mark.slow
async def test_sql_and_the_pure_machine_make_the_same_mails(house):
    """2,000 failures of 60 endpoints in two days: every mail, section and reported delivery is the same in both."""
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
        if one != other:
            print("ONE", one, "\nOTHER", other)
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


# One thing at a time --------------------------------------------------------------------------------


class Story:
    """One endpoint that fails from `start` on, every minute with another event, until changed."""

    def __init__(self, house, endpoint, events):
        self.house, self.endpoint, self.events = house, endpoint, iter(events)
        self.now = self.start = now_us()
        self.open = []

    async def fail(
        self, minutes=1, *, outcome=Outcome.REFUSED, status=500, response=None, verdict=None, error=None
    ):
        for _ in range(minutes):
            event = next(self.events)
            self.open.append(event)
            self.house.attempt(
                self.endpoint, event, self.now, verdict or Retry(1e6), outcome, status, response, error=error
            )
            await self.house.record()
            await self.pass_s(60)

    async def work(self):
        """Deliver everything that is open."""
        for event in self.open or [next(self.events)]:
            self.house.attempt(self.endpoint, event, self.now, Delivered())
        self.open = []
        await self.house.record()

    async def pass_s(self, seconds, step=60):
        until = self.now + int(seconds * SECOND)
        while self.now < until:
            self.now = min(until, self.now + step * SECOND)
            await self.house.look(self.now)


@pytest.fixture
async def story(house):
    endpoint = (await house.endpoints(1, 1))[0]
    return Story(house, endpoint.number, await house.events(2000))


async def tell(story, *hours):
    for _ in hours:
        await story.pass_s(3600)


async def sent(house):
    """Mark queued mails as sent."""
    await house.session.execute("update webhooks.emails set state = 'sent' where state = 'queued'")


async def kinds(house):
    return [(row["kind"], row["state"]) for row in await house.mails()]


async def test_a_blip_is_nobodys_business(house, story):
    await story.fail()
    await story.work()
    await story.pass_s(1200)
    assert await house.mails() == []
    assert await house.session.fetchval("select count(*) from webhooks.incidents") == 0
    assert (await house.health(story.endpoint))["health"] == "healthy"


async def test_health_names_the_fault(house, story):
    await story.fail(4)
    found = await house.health(story.endpoint)
    assert (found["health"], found["last_status"], found["waiting"]) == ("shaky", 500, 4)
    assert _us(found["failing_since"]) == story.start
    await story.fail(7)
    assert (await house.health(story.endpoint))["health"] == "failing"
    assert await kinds(house) == [("failing", "queued")]


@pytest.mark.parametrize("worked", [False, True])
async def test_a_mail_names_the_change_after_which_nothing_worked(house, story, worked):
    await story.work()
    await house.session.execute(
        "update webhooks.endpoints set url = 'https://new.example/', headers = '{\"a\": \"b\"}' where endpoint_id = $1",
        story.endpoint,
    )
    house.revision = 2
    story.now = story.start = now_us() + SECOND
    if worked:
        await story.work()
        story.now += SECOND
    await story.fail(12)
    (section,) = digest_in((await house.mails())[0]).sections
    if worked:
        assert (section.changed_us, section.changed) == (None, ())
    else:
        assert story.start - 60 * SECOND < section.changed_us <= section.since_us == story.start
        assert section.changed == ("headers", "url")


async def test_a_first_wait_of_nothing_reports_the_first_failure(make_house):
    house = await make_house(mail={"sender": "hooks@platform.example", "first_wait_s": 0})
    story = Story(house, (await house.endpoints(1, 1))[0].number, await house.events(10))
    await story.fail()
    assert await kinds(house) == [("failing", "queued")]


async def test_deliveries_in_flight_when_a_mail_was_made_are_in_the_next(house, story):
    await story.fail(9)
    under_way, asked_at = next(story.events), story.now + 355 * SECOND
    await story.pass_s(360)
    assert [_told(row) for row in await house.mails()] == [{story.endpoint: 9}]
    await sent(house)
    house.attempt(story.endpoint, under_way, asked_at, Retry(1e6), took_ms=15_000.0)
    await house.record()
    await story.pass_s(7 * 3600, step=600)
    rows = await house.mails()
    assert [_told(row) for row in rows] == [{story.endpoint: 9}, {story.endpoint: 1}]
    assert digest_in(rows[1]).sections[0].failed == 10


async def test_a_look_is_at_the_moment_up_to_which_all_is_recorded(house, story):
    """An outcome that has waited for 2.5 seconds must not count as reported by a mail that cannot name it."""
    await story.fail()
    recorder, queued = house.desk.recorder, asyncio.Event()
    slow = unsent(house, story.endpoint, next(story.events))
    recorder.put(BacklogWrite(slow, State.PARKED, Reason.FILTER_SLOW), 100.0)
    story.now += 900 * SECOND
    house.care = house.make_care(
        behind_s=lambda: recorder.behind_s(102.5), queued=queued.set, wall_us=lambda: story.now
    )
    looking = asyncio.create_task(house.care.run())
    await asyncio.wait_for(queued.wait(), 10)
    looking.cancel()
    assert [_us(row["created_at"]) for row in await house.mails()] == [story.now - 5 * SECOND // 2]
    await house.record()
    assert recorder.behind_s(200.0) == 0.0


async def test_a_mail_that_never_went_out_is_folded_into_the_next(house, story):
    """SMTP is down for a day: digests fold together, and one mail at the end says how it began and that it is over."""
    await story.fail(12)
    await story.pass_s(7 * 3600, step=600)
    assert [state for _, state in await kinds(house)].count("queued") == 1
    await story.work()
    await story.pass_s(2 * 3600, step=600)
    rows = await house.mails()
    assert [row["state"] for row in rows] == ["superseded"] * (len(rows) - 1) + ["queued"]
    (section,) = digest_in(rows[-1]).sections
    assert rows[-1]["kind"] == section.kind == "recovered"
    assert (section.failed, section.late, section.since_us) == (12, 12, story.start)
    await story.pass_s(2 * 86_400, step=3600)
    assert len(await house.mails("queued")) == 1


async def test_a_mail_that_may_have_been_sent_is_not_folded(house, story):
    await story.fail(12)
    await house.session.execute("update webhooks.emails set attempts = 1")
    await story.pass_s(7 * 3600, step=600)
    assert await kinds(house) == [("failing", "queued")]
    await sent(house)
    await story.pass_s(1200)
    assert await kinds(house) == [("failing", "sent"), ("reminder", "queued")]


async def test_a_mail_that_is_being_sent_is_not_folded(house, story):
    await story.fail(12)
    email_id = (await house.mails())[0]["email_id"]
    house.care = house.make_care(sending=lambda: email_id)
    await story.pass_s(7 * 3600, step=600)
    assert await kinds(house) == [("failing", "queued")]


async def test_who_wants_no_mail_gets_none_and_is_counted(house, story):
    await house.session.execute(
        "select webhooks.mute_owner('OWNER0@shop.example', now() + interval '1 hour')"
    )
    await story.fail(12)
    assert await kinds(house) == [("failing", "suppressed")]
    await story.pass_s(6 * 3600, step=600)
    assert await kinds(house) == [("failing", "suppressed"), ("reminder", "queued")]


async def test_unsubscribing_by_the_token_in_the_mail(make_house):
    house = await make_house(
        mail={"sender": "hooks@platform.example", "unsubscribe_url": "https://platform.example/u?t={token}"}
    )
    story = Story(house, (await house.endpoints(1, 1))[0].number, await house.events(100))
    await story.fail(12)
    token = digest_in((await house.mails())[0]).unsubscribe_token
    assert len(token) == 64
    await sent(house)
    await house.session.execute("select webhooks.unsubscribe($1)", token)
    await story.pass_s(7 * 3600, step=600)
    assert await kinds(house) == [("failing", "sent"), ("reminder", "suppressed")]
    with pytest.raises(Exception, match="nobody"):
        await house.session.execute("select webhooks.unsubscribe('x')")


async def test_a_snoozed_endpoint_is_reported_when_it_wakes(house, story):
    await house.session.execute(
        "select webhooks.snooze_endpoint($1, now() + interval '2 hours')", story.endpoint
    )
    await story.fail(12)
    await story.pass_s(3600)
    assert await house.mails() == []
    await story.pass_s(7200)
    assert await kinds(house) == [("failing", "queued")]
    what = await house.session.fetchval("select what from webhooks.operations")
    assert what == "snooze_endpoint"


@pytest.mark.slow
async def test_an_endpoint_that_never_works_is_warned_of_and_switched_off(house, story):
    await story.fail(12)
    await sent(house)
    while story.now < story.start + 6 * DAY and not await house.session.fetchval(
        "select count(*) from webhooks.endpoints where not enabled"
    ):
        await story.fail()
        await story.pass_s(3 * 3600, step=1800)
        await sent(house)
    passed = story.now - story.start
    assert 5 * DAY <= passed < 5 * DAY + 8 * HOUR
    await story.pass_s(3600)
    found = await kinds(house)
    assert [kind for kind, _ in found if kind != "reminder"] == ["failing", "warning", "disabled"]
    warned, disabled = (row for row in await house.mails() if row["kind"] in {"warning", "disabled"})
    assert DAY <= _us(disabled["created_at"]) - _us(warned["created_at"]) < DAY + 8 * HOUR
    (section,) = digest_in(warned).sections
    assert section.disable_at_us == story.start + 5 * DAY
    health = await house.health(story.endpoint)
    assert (health["health"], health["disabled_reason"]) == ("disabled", "failing")
    assert house.diary.of("endpoint.disabled")[0]["reason"] == "failing"


@pytest.mark.slow
async def test_one_poisoned_event_never_switches_an_endpoint_off(house, story):
    event = next(story.events)
    for hour in range(7 * 24):
        if hour % 6 == 0:
            house.attempt(story.endpoint, event, story.now, Retry(1e6))
            await house.record()
        await story.pass_s(3600, step=3600)
    assert await house.session.fetchval("select enabled from webhooks.endpoints")
    assert (await house.health(story.endpoint))["disable_at"] is None


@pytest.mark.slow
async def test_a_partly_failing_endpoint_is_reported_daily_and_never_disabled(house, story):
    bad = await house.events(2)
    for hour in range(7 * 24):
        if hour % 4 == 0:
            for event in bad:
                house.attempt(story.endpoint, event, story.now, Retry(1e6))
                house.attempt(story.endpoint, event, story.now + 1, Retry(1e6))
        house.attempt(story.endpoint, next(story.events), story.now - SECOND, Delivered())
        await house.record()
        for _ in range(6):
            house.attempt(story.endpoint, next(story.events), story.now, Delivered()) if hour % 4 else None
            await house.record()
            await story.pass_s(600, step=600)
        await sent(house)
    assert await house.session.fetchval("select enabled from webhooks.endpoints")


async def test_blocked_counts_neither_for_a_storm_nor_for_switching_off(house, story):
    await story.fail(12, outcome=Outcome.BLOCKED, status=None)
    assert await kinds(house) == [("failing", "queued")]
    assert digest_in((await house.mails())[0]).sections[0].cause == "blocked"
    for _ in range(7 * 12):
        await story.fail(outcome=Outcome.BLOCKED, status=None)
        await story.pass_s(7200, step=7200)
        await sent(house)
    assert await house.session.fetchval("select enabled from webhooks.endpoints")


def unsent(house, endpoint_id, event_id):
    return Delivery(Event(event_id, "site0", "order_created", 0, None), endpoint_id, 0, 0.0)


async def test_a_slow_filter_is_mailed_once_and_recovers_once_no_event_waits(house, story):
    await house.session.execute("update webhooks.endpoints set filter = '$.a > 1'")
    for _ in range(12):
        slow = unsent(house, story.endpoint, next(story.events))
        house.desk.recorder.put(BacklogWrite(slow, State.PARKED, Reason.FILTER_SLOW), 0.0)
        await house.record()
        await story.pass_s(60)
    assert await kinds(house) == [("failing", "queued")]
    section = digest_in((await house.mails())[0]).sections[0]
    assert (section.cause, section.status, section.waiting) == ("filter_slow", None, section.failed)
    assert section.types == (("order_created", section.failed),)
    health = await house.health(story.endpoint)
    assert (health["health"], health["last_error"], health["parked"]) == ("failing", "filter_slow", 12)
    await sent(house)
    await story.pass_s(3 * 3600, step=300)
    assert len(await house.mails()) == 1
    await house.session.execute("delete from webhooks.backlog")
    await story.pass_s(3600)
    assert await kinds(house) == [("failing", "sent"), ("recovered", "queued")]
    assert (await house.health(story.endpoint))["health"] == "healthy"


async def test_a_filter_that_was_slow_for_a_moment_is_nobodys_business(house, story):
    await house.session.execute("update webhooks.endpoints set filter = '$.a > 1'")
    slow = unsent(house, story.endpoint, next(story.events))
    house.desk.recorder.put(BacklogWrite(slow, State.PARKED, Reason.FILTER_SLOW), 0.0)
    await house.record()
    assert (await house.health(story.endpoint))["health"] == "shaky"
    await house.session.execute("delete from webhooks.backlog")  # it was left out after all
    await story.pass_s(1200)
    assert await house.mails() == []
    assert (await house.health(story.endpoint))["health"] == "healthy"


def reports_of(house):
    """Return the operator's digest of events that cannot be sent, on the house's session."""
    return FaultReports(house.it, house.settings, logger=house.diary.logger, queued=lambda: None)


async def buried(house, endpoint_id, events, reason):
    """Give deliveries up without an attempt; return a moment at which that is settled and reported."""
    for event_id in events:
        house.desk.recorder.put(DeadWrite(unsent(house, endpoint_id, event_id), reason), 0.0)
    await house.record()
    return time.time_ns() // 1000 + 11 * MINUTE


@pytest.mark.parametrize("reason", [Reason.TOO_LARGE, Reason.INVALID])
async def test_what_only_the_platform_can_mend_goes_to_the_operator(make_house, reason):
    """An event of the producer's that cannot be sent is not its shop's trouble: neither mail nor health speak of it."""
    house = await make_house(mail=OPERATOR)
    endpoint, *_ = await house.endpoints(1, 1)
    events = await house.events(3)
    now = await buried(house, endpoint.number, events, reason)
    await house.look(now)
    await reports_of(house).step(now)
    (row,) = await house.mails()
    assert (row["owner_email"], row["kind"], row["state"]) == ("ops@platform.example", "faults", "queued")
    (fault,) = digest_in(row).faults
    assert (fault.cause, fault.site_id, fault.type, fault.events) == (
        reason.value,
        "site0",
        "order_created",
        3,
    )
    assert fault.webhook_id.startswith("evt_")
    assert (await house.health(endpoint.number))["health"] == "healthy"
    assert await house.session.fetchval("select count(*) from webhooks.incidents") == 0


async def test_the_operator_is_notified_once_and_not_too_often(make_house):
    house = await make_house(mail=OPERATOR)
    endpoint, *_ = await house.endpoints(1, 1)
    events = iter(await house.events(100))
    reports = reports_of(house)
    now = await buried(house, endpoint.number, [next(events)], Reason.INVALID)
    await reports.step(now - 8 * MINUTE)
    assert await house.mails() == [], "the window of a first failure"
    await reports.step(now)
    await reports.step(now + HOUR)
    assert len(await house.mails()) == 1, "nothing new"
    await sent(house)
    await reports.step(now + 2 * HOUR)
    assert len(await house.mails()) == 1
    for n in range(1, 40):
        await buried(house, endpoint.number, [next(events)], Reason.INVALID)
        await house.session.execute(
            "update webhooks.dead set since = $1 where since > now() - interval '1 hour'",
            _at(now + n * HOUR // 2),
        )
        await reports.step(now + n * HOUR // 2 + 15 * MINUTE)
        await sent(house)
    rows = await house.mails()
    times = [_us(row["created_at"]) for row in rows]
    assert len(times) == house.policy.daily_max, "in less than a day"
    assert all(later - earlier >= house.policy.gap_us for earlier, later in itertools.pairwise(times))


async def test_faults_are_not_mailed_without_an_operator(make_house):
    house = await make_house()
    endpoint, *_ = await house.endpoints(1, 1)
    now = await buried(house, endpoint.number, await house.events(1), Reason.INVALID)
    await reports_of(house).step(now)
    assert await house.mails() == []


@pytest.mark.parametrize("error", sorted(POLICY_BLOCKS))
async def test_what_the_platforms_policy_blocks_is_not_failing(make_house, error):
    """Its owner gets no mail, health says `blocked`, the operator is notified; a 2xx makes it healthy at once."""
    house = await make_house(mail=OPERATOR)
    story = Story(house, (await house.endpoints(1, 1))[0].number, await house.events(50))
    blocked = {
        "outcome": Outcome.BLOCKED,
        "status": None,
        "verdict": Dead(Reason.BLOCKED),
        "error": f"{error}: detail",
    }
    await story.fail(12, **blocked)
    assert await house.mails() == []
    health = await house.health(story.endpoint)
    assert (health["health"], health["last_error"]) == ("blocked", f"{error}: detail")
    await reports_of(house).step(story.now)
    (row,) = await house.mails()
    (fault,) = digest_in(row).faults
    assert (fault.cause, fault.error, fault.endpoint_id) == ("blocked", f"{error}: detail", story.endpoint)
    await sent(house)
    story.open = []
    await story.work()
    await story.pass_s(60)
    assert (await house.health(story.endpoint))["health"] == "healthy"
    assert len(await house.mails()) == 1


async def test_a_real_failure_of_a_blocked_endpoint_is_mailed(house, story):
    blocked = {
        "outcome": Outcome.BLOCKED,
        "status": None,
        "verdict": Dead(Reason.BLOCKED),
        "error": "literal",
    }
    await story.fail(20, **blocked)
    assert (await house.health(story.endpoint))["health"] == "blocked"
    await story.fail(3)
    assert await house.mails() == []
    await story.pass_s(600)
    assert await kinds(house) == [("failing", "queued")]


async def test_a_url_that_nobody_can_deliver_to_is_its_owners(house, story):
    blocked = {"outcome": Outcome.BLOCKED, "status": None, "verdict": Dead(Reason.BLOCKED), "error": "scheme"}
    await story.fail(11, **blocked)
    assert await kinds(house) == [("failing", "queued")]
    (section,) = digest_in((await house.mails())[0]).sections
    assert (section.cause, section.dead, section.dead_by) == ("blocked", 10, (("blocked", 10),))


async def test_given_up_events_are_counted_by_how(house, story):
    """After two attempts, after one, at the receiver's word; what people cancelled counts for none."""
    first, second, third, fourth = (next(story.events) for _ in range(4))
    house.attempt(story.endpoint, first, story.now, Retry(1e6))
    house.attempt(story.endpoint, first, story.now + SECOND, Dead(Reason.EXHAUSTED))
    house.attempt(story.endpoint, second, story.now, Dead(Reason.TOO_OLD))
    house.attempt(story.endpoint, third, story.now, Dead(Reason.ABORTED))
    house.attempt(story.endpoint, fourth, story.now, Retry(1e6))
    await house.record()
    await house.session.execute("select webhooks.cancel($1)", fourth)
    await story.pass_s(900)
    (section,) = digest_in((await house.mails())[0]).sections
    assert (section.failed, section.dead) == (4, 3)
    assert dict(section.dead_by) == {"tried": 1, "once": 1, "aborted": 1}


async def test_a_slow_filter_makes_no_storm(house):
    endpoints = await house.endpoints(40, 1)
    for endpoint, event_id in zip(endpoints, await house.events(40), strict=True):
        house.desk.recorder.put(
            BacklogWrite(unsent(house, endpoint.number, event_id), State.PARKED, Reason.FILTER_SLOW), 0.0
        )
    await house.record()
    assert await house.it.fetch(query("find_storm_evidence"), 0, 0) == []


async def test_our_own_faults_are_nobodys_trouble(house, story):
    await story.fail(12, outcome=Outcome.FAILED, status=None)
    assert await house.session.fetchval("select count(*) from webhooks.incidents") == 0


@pytest.mark.slow
async def test_gone_is_mailed_as_disabled_and_held_events_before_they_expire(house, story):
    await story.fail(verdict=Disable(reason=DisabledReason.GONE), status=410)
    await story.pass_s(900)
    assert await kinds(house) == [("disabled", "queued")]
    await sent(house)
    await house.session.execute("update webhooks.backlog set since = $1", _at(story.start))
    await story.pass_s(13 * 86_400, step=3600)
    found = await kinds(house)
    assert found[0] == ("disabled", "sent")
    assert set(found[1:-1]) == {("held_expiring", "superseded")}  # nobody sends here
    assert found[-1] == ("held_expiring", "queued")
    (section,) = digest_in((await house.mails())[1]).sections
    assert section.held_until_us == story.start + 14 * DAY


async def test_an_endpoint_disabled_by_its_owner_is_not_reported(house, story):
    await story.fail(3)
    await house.session.execute("update webhooks.endpoints set enabled = false")
    await story.pass_s(2 * 86_400, step=3600)
    assert await house.mails() == []


async def test_sites_of_one_owner_are_one_mail_or_one_each(make_house):
    for by, count in (("owner", 1), ("site", 3)):
        house = await make_house(mail={"sender": "hooks@platform.example", "digest_by": by})
        await house.session.execute("truncate webhooks.emails, webhooks.incidents")
        await house.session.execute("delete from webhooks.sites")
        endpoints = await house.endpoints(3, 2)
        await house.session.execute("update webhooks.sites set owner_email = 'one@shop.example'")
        start = now_us()
        events = await house.events(60)
        for n, event in enumerate(events):
            house.attempt(endpoints[n % 6].number, event, start + n * SECOND, Retry(1e6))
        await house.record()
        await house.look(start + 11 * MINUTE)
        for hours in range(1, 4):
            await sent(house)
            await house.look(start + hours * HOUR)
        first = [row for row in await house.mails() if row["kind"] == "failing"]
        assert len(first) == count
        assert sum(len(digest_in(row).sections) for row in first) == 6


async def test_a_storm_holds_first_mails_and_clocks_and_notifies_the_operator(make_house):
    house = await make_house(mail={"sender": "hooks@platform.example", "operator": "ops@platform.example"})
    endpoints = await house.endpoints(30, 1)
    house.traffic = 60
    start = now_us()
    events = await house.events(400)
    for n in range(12):
        for k, endpoint in enumerate(endpoints):
            house.attempt(endpoint.number, events[n * 30 + k], start + n * MINUTE, Retry(1e6))
        await house.record()
        await house.look(start + n * MINUTE + 1)
    await house.look(start + HOUR // 4)
    assert await kinds(house) == [("storm", "queued")]
    row = (await house.mails())[0]
    assert row["owner_email"] == "ops@platform.example"
    assert digest_in(row).storm == (30, 60, 30)
    assert house.diary.of("storm.suspected")
    paused = await house.session.fetchval("select min((marks->>'paused_us')::bigint) from webhooks.incidents")
    assert paused > 10 * MINUTE
    house.traffic = 1000  # others work: it was not ours, or is over
    await house.look(start + HOUR // 3)
    assert len(await kinds(house)) == 1, "what it left behind has a first window's time to arrive"
    await house.look(start + HOUR)
    assert [kind for kind, _ in await kinds(house)].count("failing") == 30


class Flood:
    """Endpoints that refuse everything from `start` on, an attempt each every `every` microseconds."""

    def __init__(self, house, numbers, events):
        self.house, self.numbers, self.events = house, numbers, events
        self.start = now_us()

    async def go_on(self, until, every=15 * MINUTE, *, since=0):
        """Fail and look, from `since` to `until` after the start; mails go out at once."""
        for after in range(since, until, every):
            for number, event in zip(self.numbers, self.events, strict=True):
                self.house.attempt(number, event, self.start + after, Retry(1e6))
            await self.house.record()
            await self.house.look(self.start + after + SECOND)
            await sent(self.house)

    async def paused_us(self):
        sql = "select max((marks->>'paused_us')::bigint) from webhooks.incidents"
        return await self.house.session.fetchval(sql) or 0


@pytest.mark.slow
async def test_a_storm_that_goes_on_holds_mails_for_six_hours(make_house):
    """25 dead endpoints of 25 sites are a third of all; their owners are notified all the same, and each clock runs."""
    house = await make_house(mail=OPERATOR)
    endpoints = await house.endpoints(25, 1)
    house.traffic = 80
    flood = Flood(house, [e.number for e in endpoints], await house.events(25))
    await flood.go_on(6 * HOUR)
    assert {kind for kind, _ in await kinds(house)} == {"storm"}
    assert 5 * HOUR < await flood.paused_us() <= 6 * HOUR
    await flood.go_on(8 * HOUR, since=6 * HOUR)
    assert [kind for kind, _ in await kinds(house)].count("failing") == 25
    assert await flood.paused_us() <= 6 * HOUR
    assert await house.session.fetchval("select count(*) from webhooks.incidents where state = 'shaky'") == 0


async def test_a_storm_that_comes_and_goes_does_not_flood_mailboxes(make_house):
    """Somebody makes one every few minutes: the operator gets an email an hour at most."""
    house = await make_house(mail=OPERATOR)
    endpoints = await house.endpoints(25, 1)
    flood = Flood(house, [e.number for e in endpoints], await house.events(25))
    for n in range(30):
        house.traffic = 80 if n % 3 else 1000
        await flood.go_on((n + 1) * 4 * MINUTE, 4 * MINUTE, since=n * 4 * MINUTE)
    assert 1 <= [kind for kind, _ in await kinds(house)].count("storm") <= 2


@pytest.mark.slow
async def test_long_dead_endpoints_keep_no_storm_alive(make_house):
    """Notified owners are not evidence, nor are failures of six hours ago: a new failure is mailed in time."""
    house = await make_house(mail=OPERATOR)
    endpoints = await house.endpoints(26, 1)
    house.traffic = 80
    old, new = endpoints[:25], endpoints[25]
    events = await house.events(40)
    flood = Flood(house, [e.number for e in old], events[:25])
    await flood.go_on(9 * HOUR)
    at = flood.start + 9 * HOUR
    for n in range(12):
        house.attempt(new.number, events[25 + n], at + n * MINUTE, Retry(1e6))
        await house.record()
        await house.look(at + n * MINUTE + SECOND)
    told = [row for row in await house.mails() if row["owner_email"] == new.owner]
    assert [row["kind"] for row in told] == ["failing"]


async def test_one_tenant_makes_no_storm(make_house):
    """100 endpoints of one site fail on 100 hosts, of 30 sites with traffic: another owner's first mail goes out."""
    house = await make_house(mail=OPERATOR)
    good, *_ = await house.endpoints(1, 1)
    await house.session.execute(
        "insert into webhooks.sites (site_id, name, owner_email) values ('evil', 'E', 'e@e.example')"
    )
    rows = await house.session.fetch(
        "insert into webhooks.endpoints (site_id, url) select 'evil', 'https://a.evil' || n || '.example/'"
        " from generate_series(1, 100) n returning endpoint_id"
    )
    house.traffic = 30
    numbers = [good.number, *(row["endpoint_id"] for row in rows)]
    flood = Flood(house, numbers, await house.events(101))
    await flood.go_on(12 * MINUTE, MINUTE)
    assert not house.diary.of("storm.suspected")
    assert {(row["owner_email"], row["kind"]) for row in await house.mails()} == {
        (good.owner, "failing"),
        ("e@e.example", "failing"),
    }
    assert await flood.paused_us() == 0


@pytest.mark.slow
async def test_a_mailbox_has_its_cap_whatever_its_spellings(house):
    """20 sites of `victim+N@bank.example`: six mails in a day to the first spelling, and six to all the others."""
    endpoints = await house.endpoints(21, 1)
    await house.session.execute(
        "update webhooks.sites set owner_email = 'Victim+' || site_id || '@bank.example' where site_id <> 'site0'"
    )
    flood = Flood(house, [e.number for e in endpoints], await house.events(21))
    await flood.go_on(24 * HOUR)
    rows = await house.mails()
    to_bank = [row for row in rows if "bank.example" in row["owner_email"]]
    assert house.policy.daily_max <= len(to_bank) <= 2 * house.policy.daily_max
    assert sum(row["owner_email"] != to_bank[0]["owner_email"] for row in to_bank) <= house.policy.daily_max
    assert (
        _us(next(row["created_at"] for row in rows if row["owner_email"] == "owner0@shop.example"))
        < flood.start + HOUR
    )


async def test_nobody_silences_an_owner_with_other_spellings(house):
    """The owner had a mail before: a flood of mails to tags of their address takes none of theirs."""
    endpoints = await house.endpoints(21, 1)
    await house.session.execute(
        "update webhooks.sites set owner_email = 'owner0+' || site_id || '@shop.example' where site_id <> 'site0'"
    )
    owner, *others = [e.number for e in endpoints]
    events = await house.events(21)
    first = Flood(house, [owner], events[:1])
    await first.go_on(30 * MINUTE, 5 * MINUTE)
    first.house.attempt(owner, events[0], first.start + 40 * MINUTE, Delivered())
    await house.record()
    await house.look(first.start + 2 * HOUR)
    await sent(house)
    flood = Flood(house, others, events[1:])
    flood.start = first.start
    await flood.go_on(13 * HOUR, since=3 * HOUR)
    again = first.start + 13 * HOUR
    for n in range(12):
        house.attempt(owner, events[0], again + n * MINUTE, Retry(1e6))
        await house.record()
        await house.look(again + n * MINUTE + SECOND)
    rows = await house.mails()
    to_tags = [row for row in rows if "+" in row["owner_email"]]
    mine = [
        (row["kind"], _us(row["created_at"]) - again < 12 * MINUTE)
        for row in rows
        if "+" not in row["owner_email"]
    ]
    assert mine == [("failing", True), ("recovered", True), ("failing", True)]
    assert len(to_tags) <= house.policy.daily_max


async def test_a_mail_about_a_sold_site_goes_to_its_new_owner(house, story):
    await story.fail(12)
    assert await kinds(house) == [("failing", "queued")]
    await house.session.execute("update webhooks.sites set owner_email = 'new@other.example'")
    await story.pass_s(120)
    assert [(row["owner_email"], row["kind"], row["state"]) for row in await house.mails()] == [
        ("owner0@shop.example", "failing", "superseded"),
        ("new@other.example", "failing", "queued"),
    ]
    assert _told((await house.mails())[1]) == {story.endpoint: 12}


async def test_many_sites_without_an_owner_are_checked_one_by_one(house):
    """None of them waits for what another's rows hold, and one check of a page of them is bounded."""
    endpoints = await house.endpoints(120, 1)
    await house.session.execute("update webhooks.sites set owner_email = null")
    flood = Flood(house, [e.number for e in endpoints], await house.events(120))
    await flood.go_on(20 * MINUTE, 4 * MINUTE)
    due = await house.it.fetch(query("find_due_owners"), flood.start + DAY, 1000)
    assert len({(row["owner_email"], row["site_id"]) for row in due}) == 120
    sql = "select count(*) from webhooks.incidents where state = 'failing'"
    assert await house.session.fetchval(sql) == 120
    assert await house.mails() == []


async def test_a_second_monitor_mails_nothing_twice(house, story):
    """Another monitor checks at the same moment: it decides on the same marks, and only one of them writes."""
    await story.fail(10)
    await sent(house)

    async def meanwhile(name):
        if name == "care.decided" and not beside:
            beside.append(name)
            await other.step(story.now + 7 * HOUR - SECOND)

    beside = []
    other = house.make_care()
    with fail_points.interrupted_by(meanwhile):
        await house.look(story.now + 7 * HOUR)
    assert beside
    assert [kind for kind, _ in await kinds(house)] == ["failing", "reminder"]


async def test_a_site_without_an_owner_is_cared_for_without_mails(house, story):
    await house.session.execute("update webhooks.sites set owner_email = null")
    await story.fail(12)
    assert await house.mails() == []
    assert (await house.health(story.endpoint))["health"] == "failing"


async def test_a_failure_that_comes_while_care_decides_is_not_forgotten(house, story):
    """An endpoint fails once more just before it counts as healthy: the row has moved, and the monitor checks again."""
    await story.fail(12)
    await sent(house)
    await story.work()

    async def meanwhile(name):
        if name == "care.decided" and not missed:
            missed.append(name)
            house.attempt(story.endpoint, next(story.events), story.now, Retry(1e6))
            await house.record()

    missed = []
    with fail_points.interrupted_by(meanwhile):
        await story.pass_s(1860, step=1860)
    assert missed
    await house.look(story.now + SECOND)
    assert (await house.health(story.endpoint))["health"] in {"failing", "partly_failing"}
    assert [kind for kind, _ in await kinds(house)] == ["failing"]


def _at(us):
    return dt.datetime.fromtimestamp(us / 1e6, dt.UTC)


async def test_a_poisoned_owner_delays_no_other_owner(house):
    """One owner's marks are invalid: they are checked later, the other owner is notified in time."""
    endpoints = await house.endpoints(2, 1)
    start = now_us()
    events = await house.events(40)
    for n, event in enumerate(events):
        house.attempt(endpoints[n % 2].number, event, start + n * SECOND, Retry(1e6))
    await house.record()
    await house.session.execute(
        """update webhooks.incidents set marks = '{"recovered": 1}' where endpoint_id = $1""",
        endpoints[0].number,
    )
    assert await house.look(start + 11 * MINUTE) == 1
    assert [row["owner_email"] for row in await house.mails()] == ["owner1@shop.example"]
    assert house.diary.of("email.failed")
    assert await house.look(start + 12 * MINUTE) == 0
    await house.session.execute(
        "update webhooks.incidents set marks = '{}' where endpoint_id = $1", endpoints[0].number
    )
    assert await house.look(start + 22 * MINUTE) == 1


async def test_a_mail_that_is_in_the_outbox_already_ends_the_check(house, story):
    """The same owner, kind and window are there: this check ends, and the next one finds another moment."""
    await story.fail(9)
    await house.session.execute(
        "insert into webhooks.emails (owner_email, kind, window_start, digest, state)"
        " select 'owner0@shop.example', 'failing', window_at, '{}', 'failed' from webhooks.incidents"
    )
    async with asyncio.timeout(5):
        await story.pass_s(120)
    assert await kinds(house) == [("failing", "failed")]
    assert (await house.health(story.endpoint))["health"] == "shaky"
