"""Care on a real database: the same mails as the pure machine, folding, storms, muting, switching off."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import random
import time

import pytest
from crew import Diary, desk, seed, session_on, settings_of
from ledger import DAY, SECOND, Endpoint, Ledger

from pghookd.core import digest as digests
from pghookd.core.incident import Policy
from pghookd.core.model import Delivery, DisabledReason, Event, Outcome, Reason, State
from pghookd.core.verdict import Dead, Delivered, Disable, Retry
from pghookd.core.writes import Attempted, Died, Kept
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
        self.care = self.make_care()

    def make_care(self, *, wall_us=lambda: time.time_ns() // 1000, **around):
        return Care(
            self.it,
            self.settings,
            Around(traffic=lambda: self.traffic, unwatch=self.desk.recorder.unwatch, **around),
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
        write = Attempted(
            delivery,
            Outcome.DELIVERED if delivered else outcome,
            200 if delivered else status,
            None,
            response,
            at,
            took_ms,
            verdict,
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
    """One endpoint that fails from `start` on, every minute with another event, until told otherwise."""

    def __init__(self, house, endpoint, events):
        self.house, self.endpoint, self.events = house, endpoint, iter(events)
        self.now = self.start = now_us()
        self.open = []

    async def fail(self, minutes=1, *, outcome=Outcome.REFUSED, status=500, response=None, verdict=None):
        for _ in range(minutes):
            event = next(self.events)
            self.open.append(event)
            self.house.attempt(
                self.endpoint, event, self.now, verdict or Retry(1e6), outcome, status, response
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
    """Say that what is queued went out."""
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


async def test_health_says_what_is_the_matter(house, story):
    await story.fail(4)
    found = await house.health(story.endpoint)
    assert (found["health"], found["last_status"], found["waiting"]) == ("shaky", 500, 4)
    assert _us(found["failing_since"]) == story.start
    await story.fail(7)
    assert (await house.health(story.endpoint))["health"] == "failing"
    assert await kinds(house) == [("failing", "queued")]


async def test_a_first_wait_of_nothing_tells_of_the_first_failure(make_house):
    house = await make_house(mail={"sender": "hooks@platform.example", "first_wait_s": 0})
    story = Story(house, (await house.endpoints(1, 1))[0].number, await house.events(10))
    await story.fail()
    assert await kinds(house) == [("failing", "queued")]


async def test_what_was_under_way_when_a_mail_was_made_is_told_in_the_next(house, story):
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
    """An outcome that has waited for two and a half seconds must not count as told by a mail that cannot name it."""
    await story.fail()
    recorder, queued = house.desk.recorder, asyncio.Event()
    recorder.put(Died(unsent(house, story.endpoint, next(story.events)), Reason.INVALID), 100.0)
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


async def test_a_snoozed_endpoint_is_told_of_when_it_wakes(house, story):
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


async def test_one_poisoned_event_never_switches_an_endpoint_off(house, story):
    event = next(story.events)
    for hour in range(7 * 24):
        if hour % 6 == 0:
            house.attempt(story.endpoint, event, story.now, Retry(1e6))
            await house.record()
        await story.pass_s(3600, step=3600)
    assert await house.session.fetchval("select enabled from webhooks.endpoints")
    assert (await house.health(story.endpoint))["disable_at"] is None


async def test_a_partly_failing_endpoint_is_told_of_daily_and_never_switched_off(house, story):
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


async def test_what_is_blocked_is_told_and_counts_neither_for_a_storm_nor_for_switching_off(house, story):
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


async def test_a_slow_filter_is_told_once_in_plain_words_and_has_recovered_when_nothing_is_held_up(
    house, story
):
    await house.session.execute("update webhooks.endpoints set filter = '$.a > 1'")
    for _ in range(12):
        slow = unsent(house, story.endpoint, next(story.events))
        house.desk.recorder.put(Kept(slow, State.PARKED, Reason.FILTER_SLOW), 0.0)
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
    house.desk.recorder.put(Kept(slow, State.PARKED, Reason.FILTER_SLOW), 0.0)
    await house.record()
    assert (await house.health(story.endpoint))["health"] == "shaky"
    await house.session.execute("delete from webhooks.backlog")  # it was left out after all
    await story.pass_s(1200)
    assert await house.mails() == []
    assert (await house.health(story.endpoint))["health"] == "healthy"


async def test_an_event_that_is_too_large_is_told(house, story):
    house.desk.recorder.put(Died(unsent(house, story.endpoint, next(story.events)), Reason.TOO_LARGE), 0.0)
    await house.record()
    await story.work()
    await story.pass_s(900)
    assert await kinds(house) == [("failing", "queued")]
    section = digest_in((await house.mails())[0]).sections[0]
    assert (section.cause, section.failed, section.dead) == ("too_large", 1, 1)
    assert len(section.event_ids) == 1
    await sent(house)
    await story.pass_s(3600)
    assert [kind for kind, _ in await kinds(house)] == ["failing", "recovered"]


@pytest.mark.parametrize("reason", [Reason.FILTER_SLOW, Reason.INVALID])
async def test_slow_filters_make_no_storm_but_events_that_cannot_be_sent_do(house, reason):
    endpoints = await house.endpoints(40, 1)
    events = await house.events(40)
    for endpoint, event_id in zip(endpoints, events, strict=True):
        it = unsent(house, endpoint.number, event_id)
        slow = reason is Reason.FILTER_SLOW
        house.desk.recorder.put(Kept(it, State.PARKED, reason) if slow else Died(it, reason), 0.0)
    await house.record()
    row = await house.it.fetchrow(query("count_unknown_failures"), 0)
    assert (row["failing"], row["hosts"]) == ((0, 0) if reason is Reason.FILTER_SLOW else (40, 40))


async def test_our_own_faults_are_nobodys_trouble(house, story):
    await story.fail(12, outcome=Outcome.FAILED, status=None)
    assert await house.session.fetchval("select count(*) from webhooks.incidents") == 0


async def test_gone_is_told_as_switched_off_and_held_events_before_they_expire(house, story):
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


async def test_what_its_owner_switched_off_is_no_news_to_them(house, story):
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


async def test_a_storm_holds_first_mails_and_clocks_and_tells_the_operator(make_house):
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


async def test_a_site_without_an_owner_is_cared_for_without_mails(house, story):
    await house.session.execute("update webhooks.sites set owner_email = null")
    await story.fail(12)
    assert await house.mails() == []
    assert (await house.health(story.endpoint))["health"] == "failing"


async def test_a_failure_that_comes_while_care_decides_is_not_forgotten(house, story):
    """An endpoint is about to be called healthy when it fails once more: the row has moved, and care looks again."""
    await story.fail(12)
    await sent(house)
    await story.work()

    async def meanwhile(name):
        if name == "care.decided" and not missed:
            missed.append(name)
            house.attempt(story.endpoint, next(story.events), story.now, Retry(1e6))
            await house.record()

    missed = []
    house.care = house.make_care(checkpoint=meanwhile)
    await story.pass_s(1860, step=1860)
    assert missed
    await house.look(story.now + SECOND)
    assert (await house.health(story.endpoint))["health"] in {"failing", "partly_failing"}
    assert [kind for kind, _ in await kinds(house)] == ["failing"]


def _at(us):
    return dt.datetime.fromtimestamp(us / 1e6, dt.UTC)


async def test_a_poisoned_owner_stands_in_nobodys_way(house):
    """One owner's marks are no marks: they are looked at later, the other owner is told in time."""
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


async def test_a_mail_that_is_in_the_outbox_already_is_no_endless_look(house, story):
    """The same owner, kind and window are there: this look ends, and the next one finds another moment."""
    await story.fail(9)
    await house.session.execute(
        "insert into webhooks.emails (owner_email, kind, window_start, digest, state)"
        " select 'owner0@shop.example', 'failing', window_at, '{}', 'failed' from webhooks.incidents"
    )
    async with asyncio.timeout(5):
        await story.pass_s(120)
    assert await kinds(house) == [("failing", "failed")]
    assert (await house.health(story.endpoint))["health"] == "shaky"
