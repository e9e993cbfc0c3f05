"""A week of 5,000 endpoints in some seconds: owners get enough mails, and never too many."""

from __future__ import annotations

import heapq
import random

import pytest

from pghookd.endpoint_health.incident import LOOK_EVERY_US, IncidentPolicy
from pghookd.settings.schema import Settings
from support.crew import seed
from support.ledger import DAY, SECOND, Endpoint, Ledger

pytestmark = pytest.mark.slow

MINUTE, HOUR = 60 * SECOND, 3600 * SECOND
CHECK = 30 * SECOND
EVERY = 12 * MINUTE
OWNERS, FAILING_EACH, ENDPOINTS = 100, 5, 5000
POLICY = IncidentPolicy.of(Settings())
WAITS = (5 * SECOND, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR)


def outages_of(rng, start, days):
    """Return the hours in which an owner's server is down: some short, some long, one of two days."""
    found, at = [], start + rng.randrange(6 * HOUR)
    while at < start + days * DAY:
        length = rng.choice((2 * MINUTE, 20 * MINUTE, HOUR, 4 * HOUR, 12 * HOUR))
        found.append((at, at + length))
        at += length + rng.randrange(8 * HOUR, 40 * HOUR)
    return found


class Week:
    """Deliveries of the failing owners, an event every so often; the others have traffic and never fail."""

    def __init__(self, rng, ledger, start, *, days, every):
        self.rng, self.ledger, self.start = rng, ledger, start
        self.end = start + days * DAY
        self.queue = []  # when, endpoint, event, failures so far
        self.failures = 0
        self.events = 0
        self.down = {}
        for owner in sorted(o for o in ledger.owners if o.startswith("owner")):
            outages = outages_of(rng, start, days)
            for e in ledger.owners[owner]:
                shift = rng.randrange(3 * MINUTE)
                self.down[e.number] = [(a + shift, b + shift) for a, b in outages]
                heapq.heappush(self.queue, (start + rng.randrange(every), e.number, 0, 0))
        self.every = every

    def is_down(self, number, at):
        return any(a <= at < b for a, b in self.down[number])

    def step(self, until):
        """Make every attempt that is due before `until`."""
        while self.queue and self.queue[0][0] < until:
            at, number, event, failures = heapq.heappop(self.queue)
            if not event:
                self.events += 1
                event = self.events
                heapq.heappush(
                    self.queue, (at + self.rng.randrange(self.every // 2, self.every * 3 // 2), number, 0, 0)
                )
            if not self.is_down(number, at):
                self.ledger.delivered(number, event, at)
            else:
                self.failures += 1
                self.ledger.failed(number, event, at)
                if failures < len(WAITS):
                    heapq.heappush(self.queue, (at + WAITS[failures], number, event, failures + 1))
                else:
                    self.ledger.died(number, event, at)


def endpoints_of(hosts_each=1):
    failing = [
        Endpoint(o * FAILING_EACH + n + 1, f"owner{o:03}", f"host{o * hosts_each + n % hosts_each}")
        for o in range(OWNERS)
        for n in range(FAILING_EACH)
    ]
    others = [Endpoint(n, f"other{n}", f"h{n}") for n in range(OWNERS * FAILING_EACH + 1, ENDPOINTS + 1)]
    return failing + others


def test_a_week_in_which_a_tenth_fails():
    rng = random.Random(seed())
    ledger = Ledger(POLICY, endpoints_of())
    start = 20_000 * DAY
    week = Week(rng, ledger, start, days=7, every=EVERY)
    for now in range(start, week.end, CHECK):
        week.step(now)
        ledger.look(now, ENDPOINTS)
    assert week.failures > 200_000
    assert not ledger.storms
    check_cap(ledger)
    check_told_once(ledger, week.end)
    check_first_mails(ledger, week)
    check_recoveries(ledger)


def check_cap(ledger):
    for mails in by_owner(ledger).values():
        times = [mail.at for mail in mails]
        assert all(
            later - earlier >= DAY for earlier, later in zip(times, times[POLICY.daily_max :], strict=False)
        )


def by_owner(ledger):
    found = {}
    for mail in ledger.mails:
        found.setdefault(mail.owner, []).append(mail)
    return found


def check_told_once(ledger, end):
    """Each failed delivery is reported once, unless it was delivered before a window closed."""
    told = {}
    for mail in ledger.mails:
        for number, events in mail.told.items():
            for event in events:
                told[number, event] = told.get((number, event), 0) + 1
    assert set(told.values()) <= {1}
    untold = [
        (e.number, d.event)
        for e in ledger.endpoints.values()
        for d in e.all.values()
        if d.failures and (e.number, d.event) not in told and d.dead is not None and d.dead < end - 2 * DAY
    ]
    assert not untold


def check_first_mails(ledger, week):
    """An outage that makes an endpoint a failing one is in a mail when the owner's window closes."""
    mails = by_owner(ledger)
    seen = 0
    for number, outages in week.down.items():
        owner = ledger.endpoints[number].owner
        of_owner = mails[owner]
        for begin, end in outages:
            if end - begin < HOUR or end > week.end:
                continue
            # the first failure comes with the next event, within one and a half of the time between events
            allowed = begin + EVERY * 3 // 2 + POLICY.first_wait_us + CHECK
            if flaps(of_owner, number, begin):  # its owner knows the pattern, and gets a digest a day
                allowed = max(allowed, latest(of_owner, number, begin) + DAY + LOOK_EVERY_US + CHECK)
            for number_n, mail in enumerate(of_owner):
                if mail.at > allowed or (number in mail.sections and mail.at > begin):
                    break
                allowed = max(allowed, mail.at + POLICY.gap_us + CHECK)
                if number_n + 1 >= POLICY.daily_max:
                    allowed = max(allowed, of_owner[number_n + 1 - POLICY.daily_max].at + DAY + CHECK)
            if allowed >= end:
                continue  # the gap or the cap outlasts it
            seen += 1
            assert any(number in m.sections and begin < m.at <= allowed for m in of_owner), (number, begin)
    assert seen > 500


def flaps(mails, number, at):
    """Return True if an owner got a mail that an endpoint flaps, and none since that it works again."""
    kinds = [m.sections[number] for m in mails if m.at <= at and number in m.sections]
    since = kinds[len(kinds) - kinds[::-1].index("recovered") :] if "recovered" in kinds else kinds
    return "flapping" in since


def latest(mails, number, at):
    return max(m.at for m in mails if m.at <= at and number in m.sections)


def check_recoveries(ledger):
    """Each endpoint's mails alternate: a report of the failure, reminders, one report that it works again."""
    state = {}
    for mail in ledger.mails:
        for number, kind in mail.sections.items():
            known = state.get(number, "healthy")
            if kind == "recovered":
                assert known == "failing", (number, mail)
                state[number] = "healthy"
            elif kind == "failing":
                assert known == "healthy", (number, mail)
                state[number] = "failing"
            elif kind in {"reminder", "warning", "flapping"}:
                assert known == "failing", (number, mail)


@pytest.mark.parametrize("hours", [3])
def test_a_storm_mails_nobody_but_the_operator(hours):
    rng = random.Random(seed())
    ledger = Ledger(POLICY, endpoints_of())
    start = 20_000 * DAY
    failing = sorted(rng.sample(sorted(ledger.endpoints), ENDPOINTS * 4 // 10))
    event = 0
    for minute in range(hours * 60):
        now = start + minute * MINUTE
        for number in failing if minute % 5 == 0 else ():
            event += 1
            ledger.failed(number, event, now + number)
        ledger.look(now, ENDPOINTS)
        ledger.look(now + CHECK, ENDPOINTS)
    assert ledger.storms
    assert not ledger.mails
    for number in failing:  # our network is back
        for each in list(ledger.endpoints[number].open):
            ledger.delivered(number, each, start + hours * HOUR)
    for minute in range(120):
        ledger.look(start + hours * HOUR + minute * MINUTE, ENDPOINTS)
    assert not ledger.mails
    assert not ledger.switched_off
