"""Mails without a database: incidents, facts and marks in memory, decided by endpoint_health/owner_plan alone.

Computes from lists the same as SQL from rows, so that a week passes in seconds and the two can be compared.
"""

from __future__ import annotations

import bisect
import dataclasses

from pghookd.endpoint_health import owner_plan, storm
from pghookd.endpoint_health.incident import Case, Facts, Health, Incident, MailMarks
from pghookd.endpoint_health.owner_plan import Owner

SECOND = 1_000_000
DAY = 86_400 * SECOND


@dataclasses.dataclass(slots=True)
class Delivery:
    """One event on its way to one endpoint; `failures` are the times of its failed attempts."""

    event: int
    failures: list[int] = dataclasses.field(default_factory=list)
    delivered: int | None = None
    dead: int | None = None


@dataclasses.dataclass(slots=True)
class Endpoint:
    """The state of one endpoint."""

    number: int
    owner: str
    host: str
    health: Health = Health.HEALTHY
    first: int = 0
    last: int = 0
    success: int | None = None
    recovering: int | None = None
    window: int | None = None
    successes: int = 0
    marks: MailMarks = dataclasses.field(default_factory=MailMarks)
    look: int = 0
    known: bool = False  # has a row in `incidents`
    enabled: bool = True
    reason: str | None = None
    attempts: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # failed: when, event
    deaths: list[int] = dataclasses.field(default_factory=list)
    open: dict[int, Delivery] = dataclasses.field(default_factory=dict)
    all: dict[int, Delivery] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Mail:
    """A mail that an owner got: kinds by endpoint, and the reported deliveries."""

    at: int
    owner: str
    sections: dict[int, str]
    told: dict[int, frozenset[int]]
    kind: str


class Ledger:
    """Endpoints and their owners."""

    def __init__(self, policy, endpoints, *, storm_share=0.3, hosts_min=20):
        self.policy = policy
        self.endpoints = {e.number: e for e in endpoints}
        self.owners = {}
        for each in endpoints:
            self.owners.setdefault(each.owner, []).append(each)
        self.mails = []
        self.of_owner = {}
        self.storm_share, self.hosts_min = storm_share, hosts_min
        self.storms = []
        self.switched_off = []

    # Occurrences ------------------------------------------------------------------------------------------------------

    def failed(self, number, event, at):
        e = self.endpoints[number]
        delivery = e.all.setdefault(event, Delivery(event))
        e.open[event] = delivery
        delivery.failures.append(at)
        e.attempts.append((at, event))
        if not e.known or e.health is Health.HEALTHY:
            e.health, e.first, e.success, e.successes = Health.SHAKY, at, None, 0
            e.known = True
        if e.window is None or e.recovering is not None:
            e.look = min(e.look, at) if e.look else at
        e.last, e.recovering = max(e.last, at), None
        e.window = at if e.window is None else e.window

    def delivered(self, number, event, at):
        e = self.endpoints[number]
        if event in e.open:
            e.open.pop(event).delivered = at
        if e.known and e.health is not Health.HEALTHY:
            e.success, e.successes = at, e.successes + 1
            if e.recovering is None:
                e.recovering = at
                e.look = min(e.look, at)

    def died(self, number, event, at):
        e = self.endpoints[number]
        e.open.pop(event).dead = at
        e.deaths.append(at)

    def disable(self, number, reason, at):
        e = self.endpoints[number]
        e.enabled, e.reason, e.look = False, reason, at

    def enable(self, number, at):
        e = self.endpoints[number]
        e.enabled, e.reason, e.look = True, None, at

    # Reactions --------------------------------------------------------------------------------------------------------

    def case(self, e, now):
        since = max(e.first, (e.success or 0) + 1)
        recent = e.attempts[bisect.bisect_left(e.attempts, (since, 0)) :]
        facts = Facts(
            enabled=e.enabled,
            disabled_reason=e.reason,
            failures=len(recent),
            unsettled=int(bool(e.open)),
            dead=len(e.deaths) - bisect.bisect_left(e.deaths, e.first),
            events_failed=len({event for _, event in recent}),
            days_failed=len({at // DAY for at, _ in recent}),
        )
        row = Incident(
            e.number, e.health, e.first, e.last, e.success, e.recovering, e.window, e.successes, e.marks
        )
        return Case(row, facts, now, self.policy)

    def look(self, now, traffic):
        """Check every owner with something due; return the mails of this check."""
        in_storm = self._storm(now, traffic)
        made = []
        for owner, endpoints in self.owners.items():
            known = [e for e in endpoints if e.known]
            if known and any(e.look <= now for e in known):
                made += self._owner(owner, known, now, storm=in_storm)
        return made

    def _storm(self, now, traffic):
        began, failed = storm.evidence_from_us(now, self.policy)
        unknown = [
            (e.owner, f"https://{e.host}/")
            for e in self.endpoints.values()
            if e.known and e.health is Health.SHAKY and e.window is not None and e.recovering is None
            and e.first >= began and e.last >= failed
        ]  # fmt: skip
        extent = storm.extent(unknown, traffic)
        found = storm.is_storm(extent, share=self.storm_share, hosts_min=self.hosts_min)
        if found:
            self.storms.append(now)
        return found

    def _owner(self, owner, known, now, *, storm):
        sent = tuple(at for at in self.of_owner.get(owner, ()) if now - at < DAY)
        plan = owner_plan.plan([self.case(e, now) for e in known], Owner(sent), storm=storm)
        made = []
        if plan.sections:
            told = {number: self._told(self.endpoints[number], now) for number, _ in plan.sections}
            kinds = {number: kind.value for number, kind in plan.sections}
            made.append(Mail(now, owner, kinds, told, plan.kind.value))
            self.of_owner[owner] = (*sent, now)
            self.mails += made
        for e in known:
            e.look = max(plan.look_us, now + SECOND)
            step = plan.steps.get(e.number)
            if step is None:
                continue
            e.health, e.marks = step.health, step.marks
            if step.closed and e.window is not None and e.window <= now:
                e.window = None
            if step.over:
                e.known = False
        for number in plan.switch_off:
            self.switched_off.append((number, now))
            self.disable(number, "failing", now)
        return made

    def _told(self, e, now):
        """Return the events that a mail made now reports, as read_told does."""
        return frozenset(
            d.event
            for d in e.all.values()
            if d.failures
            and d.failures[0] > e.marks.told_us
            and d.failures[0] >= e.first
            and d.failures[-1] >= e.first
            and (d.delivered is None or d.delivered > now)
        )
