"""Decides for one owner: the content of a mail, the next state of each incident, and the time of the next check.

A mail is for an owner, not for an endpoint. Each mail includes every failing endpoint of the owner, and each failed
delivery is reported once. Nothing is reported twice, because the marks of an endpoint store the time up to which its
failures have been mailed.

Never here: a clock, SQL, wording.
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
    """The owner that a mail would go to.

    Attributes:
        mails: creation times of the owner's mails within a day, latest last; without superseded and failed mails.
        busy: a mail to the owner is being sent or perhaps sent; no new mail until its outcome is known.
    """

    mails: tuple[int, ...] = ()
    busy: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class PlanStep:
    """The next state of one incident."""

    health: Health
    marks: MailMarks
    closed: bool = False  # the window covering its failures has closed
    over: bool = False  # the row can be deleted


@dataclasses.dataclass(frozen=True, slots=True)
class OwnerPlan:
    """The decision of one check.

    Attributes:
        sections: endpoints to report, and the kind of each; empty if there is no mail.
        steps: the next states of incidents that change.
        switch_off: endpoints to disable with the reason `failing`.
        window_us: start of the window that the mail covers.
        look_us: time of the next check.
    """

    sections: tuple[tuple[int, Kind], ...]
    steps: dict[int, PlanStep]
    switch_off: tuple[int, ...]
    window_us: int
    look_us: int

    @property
    def kind(self) -> Kind | None:
        """The mail's kind; None if there is no mail."""
        return gravest([kind for _, kind in self.sections]) if self.sections else None


def plan(cases: Sequence[Case], owner: Owner, *, storm: bool = False) -> OwnerPlan:
    """Decide about all incidents of an owner as of one time.

    Args:
        cases: every incident of the owner (or of one site, if digests are by site); at least one.
        owner: the owner's recent mails.
        storm: so many sites fail at once that the fault is probably the platform's. First mails and disabling clocks
            then wait, within the limits of endpoint_health/storm.
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
    """Return True if the window can close without a mail about this endpoint."""
    if case.incident.health is Health.BLOCKED:
        return case.incident.window_us is not None
    unsure = case.marks.owed or case.facts.filtering or is_failing(case)
    return is_window_closed(case) and not unsure


def _with_window(cases: Sequence[Case]) -> list[Case]:
    """Return the cases with `closing` set: one window for all of an owner's cases, from the first failure."""
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
    """Return the earliest time of the owner's next mail, from the minimum gap and the daily limit."""
    if not owner.mails:
        return 0
    gap_us = policy.urgent_gap_us if Kind.DISABLED in kinds else policy.gap_us
    allowed = owner.mails[-1] + gap_us
    if len(owner.mails) >= policy.daily_max:
        allowed = max(allowed, owner.mails[-policy.daily_max] + DAY_US)
    return allowed


def _waits_for_others(due: dict[int, Kind], cases: Sequence[Case]) -> bool:
    """Return True if only recoveries are due, and other recovering endpoints will soon be ready for the same mail."""
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
    """Return the step of an incident that a mail reports."""
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
    """Return the number of reminders that a mail sent now covers: those due, or due soon."""
    passed = case.now_us - mailed_us
    while 4 * passed >= 3 * reminder_after_us(case.policy, reminded):
        reminded += 1
    return reminded


def _unsaid(case: Case, then: Health) -> PlanStep:
    """Return the step of an incident that changes without a mail."""
    marks = case.marks
    if then is Health.HEALTHY:
        return PlanStep(
            then, MailMarks(recovered=recent_recoveries(case)), closed=True, over=not recent_recoveries(case)
        )
    if case.incident.health is Health.DISABLED:  # it was enabled again
        marks = dataclasses.replace(marks, disabled_told=False, expiry_told=False, warned_us=None)
    return PlanStep(then, marks, closed=then is Health.BLOCKED)


def _look_us(cases: Sequence[Case], owner: Owner) -> int:
    """Return the earliest time after now at which something may be due."""
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
