"""What one look at an owner decides: what a mail tells of, what becomes of the incidents, when to look again.

A mail is about an owner, not about an endpoint: whenever something is to be told, every endpoint of the owner that
fails is in that mail, and each delivery that failed is told of once. Nothing is told twice because nothing is counted
twice: the marks of an endpoint say up to which moment its owner knows.

Never here: a clock, SQL, words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from pghookd.endpoint_health.incident import DAY_US, LOOK_EVERY_US, Case, Health, IncidentPolicy, MailMarks
from pghookd.endpoint_health.incident_rules import (
    HELD_UP_US,
    KNOWN,
    MAILED,
    Rule,
    calm_since_us,
    disable_us,
    is_failing,
    is_to_be_switched_off,
    is_window_closed,
    recent_recoveries,
    reminder_after_us,
    reminder_us,
    rule_of,
)
from pghookd.endpoint_health.storm import holds_clock, holds_mail
from pghookd.owner_mail.digest import Kind, gravest


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """The address that a mail would go to.

    Attributes:
        mails: when mails were made for them within a day, latest last; superseded and failed ones apart.
        busy: a mail to them is on its way and its fate unknown: nothing new until it is.
    """

    mails: tuple[int, ...] = ()
    busy: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class PlanStep:
    """What becomes of one incident."""

    health: Health
    marks: MailMarks
    closed: bool = False  # a window has closed over its failures
    over: bool = False  # the row has served its time


@dataclasses.dataclass(frozen=True, slots=True)
class OwnerPlan:
    """What one look decides.

    Attributes:
        sections: endpoints to tell of, and what; empty: no mail.
        steps: what becomes of the incidents that change.
        switch_off: endpoints to be disabled, `failing`.
        window_us: the beginning of the window that the mail is for.
        look_us: when to look again.
    """

    sections: tuple[tuple[int, Kind], ...]
    steps: dict[int, PlanStep]
    switch_off: tuple[int, ...]
    window_us: int
    look_us: int

    @property
    def kind(self) -> Kind | None:
        """The mail's kind; None: no mail."""
        return gravest([kind for _, kind in self.sections]) if self.sections else None


def plan(cases: Sequence[Case], owner: Owner, *, storm: bool = False) -> OwnerPlan:
    """Decide what happens to an owner's incidents, all of them looked at in one moment.

    Args:
        cases: every incident of the owner (or of one site, where digests are made by site); at least one.
        owner: what they were told lately.
        storm: so many sites fail at once that the fault is probably ours: first mails and clocks wait, as long as
            endpoint_health/storm lets them.
    """
    now_us, policy = cases[0].now_us, cases[0].policy
    cases = _with_window(cases)
    rules = {case.endpoint_id: rule_of(case) for case in cases}
    due = _due(cases, rules, storm=storm)
    if due and (
        owner.busy or now_us < allowed_us(owner, due.values(), policy) or _waits_for_others(due, cases)
    ):
        due = {}
    steps: dict[int, PlanStep] = {}
    sections = dict(due)
    for case in cases:
        number, rule = case.endpoint_id, rules[case.endpoint_id]
        if rule is not None and (rule.tells is None or number in due):
            steps[number] = (
                _unsaid(case, rule.then) if rule.tells is None else _told(case, rule.then, rule.tells)
            )
        elif due and case.incident.health in KNOWN and not _is_snoozed(case):
            sections[number] = Kind.REMINDER
            steps[number] = _told(case, case.incident.health, Kind.REMINDER)
        elif not (storm and holds_mail(case)) and _is_nothing(case):
            steps[number] = PlanStep(case.incident.health, case.marks, closed=True)
    return OwnerPlan(
        sections=tuple(sections.items()),
        steps=steps,
        switch_off=tuple(
            c.endpoint_id for c in cases if is_to_be_switched_off(c) and not (storm and holds_clock(c))
        ),
        window_us=min(
            (c.incident.window_us or now_us for c in cases if c.endpoint_id in due), default=now_us
        ),
        look_us=now_us if steps else _look_us(cases, owner),
    )


def _is_nothing(case: Case) -> bool:
    """Return True if a window closes over what its owner need not be told of."""
    if case.incident.health is Health.BLOCKED:
        return case.incident.window_us is not None
    unsure = case.marks.owed or case.facts.filtering or is_failing(case)
    return is_window_closed(case) and not unsure


def _with_window(cases: Sequence[Case]) -> list[Case]:
    """Say of each case whether the owner's window has run its time: one window for all, from the first failure."""
    opened = [c.incident.window_us for c in cases if c.incident.health is Health.SHAKY and not _is_snoozed(c)]
    since = min((at for at in opened if at is not None), default=None)
    closing = since is not None and cases[0].now_us - since >= cases[0].policy.first_wait_us
    return [dataclasses.replace(case, closing=closing) for case in cases]


def _due(cases: Sequence[Case], rules: dict[int, Rule | None], *, storm: bool) -> dict[int, Kind]:
    due: dict[int, Kind] = {}
    for case in cases:
        rule = rules[case.endpoint_id]
        if rule is not None and rule.tells is not None and _may_tell(case, rule.tells, storm=storm):
            due[case.endpoint_id] = rule.tells
    return due


def _may_tell(case: Case, kind: Kind, *, storm: bool) -> bool:
    return not _is_snoozed(case) and not (storm and kind is Kind.FAILING and holds_mail(case))


def _is_snoozed(case: Case) -> bool:
    until = case.facts.snoozed_until_us
    return until is not None and case.now_us < until


def allowed_us(owner: Owner, kinds: Iterable[Kind], policy: IncidentPolicy) -> int:
    """When the owner may get the next mail: after the gap, and under the day's cap."""
    if not owner.mails:
        return 0
    gap_us = policy.urgent_gap_us if Kind.DISABLED in kinds else policy.gap_us
    allowed = owner.mails[-1] + gap_us
    if len(owner.mails) >= policy.daily_max:
        allowed = max(allowed, owner.mails[-policy.daily_max] + DAY_US)
    return allowed


def _waits_for_others(due: dict[int, Kind], cases: Sequence[Case]) -> bool:
    """Whether only recoveries are to be told, and others that work again will be able to join them before long."""
    if set(due.values()) != {Kind.RECOVERED}:
        return False
    after = cases[0].policy.recovered_after_us
    ready = [calm_since_us(case) or case.now_us for case in cases if case.endpoint_id in due]
    if cases[0].now_us - min(ready) - after >= 2 * after:
        return False
    return any(
        case.endpoint_id not in due and case.incident.health in MAILED and calm_since_us(case) is not None
        for case in cases
    )


def _told(case: Case, then: Health, kind: Kind) -> PlanStep:
    """Mark what a section tells."""
    now_us, marks = case.now_us, case.marks
    if then is Health.HEALTHY:
        return PlanStep(then, MailMarks(recovered=(*recent_recoveries(case), now_us)), closed=True)
    marks = dataclasses.replace(marks, told_us=now_us, owed=False)
    match kind:
        case Kind.FAILING:
            marks = dataclasses.replace(marks, mailed_us=now_us, reminded=0)
        case Kind.WARNING:
            marks = dataclasses.replace(marks, warned_us=now_us)
        case Kind.DISABLED:
            marks = dataclasses.replace(marks, disabled_told=True, mailed_us=marks.mailed_us or now_us)
        case Kind.HELD_EXPIRING:
            marks = dataclasses.replace(marks, expiry_told=True)
        case Kind.FLAPPING:
            recovered = (*recent_recoveries(case), now_us) if marks.flapping_us is None else marks.recovered
            marks = dataclasses.replace(marks, flapping_us=marks.flapping_us or now_us, recovered=recovered)
        case _:
            pass
    if marks.mailed_us is not None:
        marks = dataclasses.replace(marks, reminded=_reminded(case, marks.mailed_us, marks.reminded))
    return PlanStep(then, marks, closed=True)


def _reminded(case: Case, mailed_us: int, reminded: int) -> int:
    """Count the reminders that a mail of now stands for: those due, or nearly so."""
    passed = case.now_us - mailed_us
    while 4 * passed >= 3 * reminder_after_us(case.policy, reminded):
        reminded += 1
    return reminded


def _unsaid(case: Case, then: Health) -> PlanStep:
    """Go on without a word."""
    marks = case.marks
    if then is Health.HEALTHY:
        return PlanStep(
            then, MailMarks(recovered=recent_recoveries(case)), closed=True, over=not recent_recoveries(case)
        )
    if case.incident.health is Health.DISABLED:  # it is on again
        marks = dataclasses.replace(marks, disabled_told=False, expiry_told=False, warned_us=None)
    return PlanStep(then, marks, closed=then is Health.BLOCKED)


def _look_us(cases: Sequence[Case], owner: Owner) -> int:
    """When something may be due at the earliest, after now."""
    policy, now_us = cases[0].policy, cases[0].now_us
    times = [at for case in cases for at in _times(case)]
    times += [allowed_us(owner, [kind], policy) for kind in (Kind.DISABLED, Kind.FAILING)]
    return min(now_us + LOOK_EVERY_US, *(at for at in times if at > now_us), now_us + LOOK_EVERY_US)


def _times(case: Case) -> list[int]:
    incident, policy = case.incident, case.policy
    times = [reminder_us(case)] if case.marks.mailed_us is not None else []
    if incident.window_us is not None:
        times.append(incident.window_us + policy.first_wait_us)
    if (since := calm_since_us(case)) is not None:
        times.append(since + policy.recovered_after_us)
    if case.facts.filtering:
        times.append(incident.first_failure_us + HELD_UP_US)
    due = disable_us(case)
    if due is not None:
        times += [due - policy.warn_us, max(due, (case.marks.warned_us or 0) + policy.warn_us)]
    return times
