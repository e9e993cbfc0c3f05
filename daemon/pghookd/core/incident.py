"""The life of a failing endpoint, as its owner is told of it: a table, and what one look at an owner decides.

    healthy         -                                   no mail, ever
    shaky           an attempt failed, or what was not tried; the owner's window opens if none is open
    failing         judged so when a window closes      failing, then reminders ever farther apart
    partly_failing  the same, while others succeed      failing, then a digest a day
    flapping        three outages in a day              flapping, then a digest a day
    disabled        switched off                        disabled, once; held_expiring, once

A mail is about an owner, not about an endpoint: whenever something is to be told, every endpoint of the owner that
fails is in that mail, and each delivery that failed is told of once. Nothing is told twice because nothing is counted
twice: the marks of an endpoint say up to which moment its owner knows.

All of it is computed from rows: an incident's own (written with the attempt that failed) and facts counted from
attempts, backlog and dead. Times are microseconds since 1970, durations too where the name ends in _us.

Never here: a clock, SQL, words.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

from pghookd.core.digest import Kind, gravest
from pghookd.core.model import DisabledReason
from pghookd.core.settings import Settings

SECOND_US: Final = 1_000_000
DAY_US: Final = 86_400 * SECOND_US
FAILURES_MIN: Final = 3  # failed attempts since the last 2xx that make an endpoint a failing one
FLAPS_MIN: Final = 3  # failing and recovered pairs in a day that make it a flapping one
DRAINED_WITHIN: Final = 4  # times recovered_after_s: then it has recovered, whatever is left in the backlog
EXPIRY_NOTICE_US: Final = 2 * DAY_US  # held events are told of this long before they are dropped
QUIET_US: Final = 30 * DAY_US  # an incident in which nothing has happened for this long is over
HELD_UP_US: Final = 60 * SECOND_US  # a filter may be asked together with a slow one; that is over before this
LOOK_EVERY_US: Final = 600 * SECOND_US  # an incident is looked at this often where nothing is due
_BY_PEOPLE: Final = frozenset({DisabledReason.OWNER.value, DisabledReason.OPERATOR.value})
_BY_RECEIVER: Final = frozenset({DisabledReason.GONE.value, DisabledReason.RECEIVER.value})


class Health(enum.StrEnum):
    """How an endpoint is (column `incidents.state`, view `endpoint_health`)."""

    HEALTHY = "healthy"
    SHAKY = "shaky"
    FAILING = "failing"
    PARTLY_FAILING = "partly_failing"
    FLAPPING = "flapping"
    DISABLED = "disabled"


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """The settings `mail.*`, `disable.*` and `retention.held_days`, in microseconds."""

    first_wait_us: int
    gap_us: int
    urgent_gap_us: int
    reminders_us: tuple[int, ...]
    recovered_after_us: int
    daily_max: int
    disable_after_us: int  # 0: never
    events_min: int
    days_min: int
    warn_us: int
    held_us: int

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """Take from the settings what is decided with."""
        mail, disable = settings.mail, settings.disable
        return cls(
            first_wait_us=_us(mail.first_wait_s),
            gap_us=_us(mail.gap_s),
            urgent_gap_us=_us(mail.urgent_gap_s),
            reminders_us=tuple(map(_us, mail.reminders)),
            recovered_after_us=_us(mail.recovered_after_s),
            daily_max=mail.daily_max,
            disable_after_us=_us(disable.after_s),
            events_min=disable.events_min,
            days_min=disable.days_min,
            warn_us=_us(disable.warn_s),
            held_us=_us(settings.retention.held_days * 86_400),
        )


def _us(seconds: float) -> int:
    return int(seconds * SECOND_US)


@dataclasses.dataclass(frozen=True, slots=True)
class Marks:
    """What the life cycle remembers of an endpoint (column `incidents.marks`).

    Attributes:
        mailed_us: when its owner was first told that it fails; None: not yet.
        told_us: failures up to here are told.
        reminded: reminders sent.
        warned_us: when its owner was told that it will be switched off.
        disabled_told: its owner knows that it is off.
        expiry_told: its owner knows that held events will be dropped.
        owed: a mail that told of it was folded into the next one before it went out.
        paused_us: how long the clock that leads to its being switched off has stood still.
        recovered: when it recovered, as far as within a day.
        flapping_us: since when it is flapping.
    """

    mailed_us: int | None = None
    told_us: int = 0
    reminded: int = 0
    warned_us: int | None = None
    disabled_told: bool = False
    expiry_told: bool = False
    owed: bool = False
    paused_us: int = 0
    recovered: tuple[int, ...] = ()
    flapping_us: int | None = None


def marks_of(stored: dict[str, Any]) -> Marks:
    """Read marks back from JSON; what a later version added is left alone."""
    known = {f.name for f in dataclasses.fields(Marks)}
    values = {k: v for k, v in stored.items() if k in known}
    if "recovered" in values:
        values["recovered"] = tuple(values["recovered"])
    return Marks(**values)


def stored_marks(marks: Marks) -> dict[str, Any]:
    """Return what differs from the beginning, for JSON."""
    return {
        f.name: value
        for f in dataclasses.fields(Marks)
        if (value := getattr(marks, f.name)) not in (f.default, ())
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Incident:
    """One row of `incidents`.

    Attributes:
        endpoint_id: whose.
        health: as last decided.
        first_failure_us: when it began.
        last_failure_us: its latest failure.
        last_success_us: its latest 2xx since it began; None: none.
        recovering_us: its first 2xx after its latest failure; None: none.
        window_us: the first failure that no window has closed over; None: there is none.
        successes: deliveries since it began.
        marks: what was told.
        by_filter: what failed last was not tried: the filter is slow.
    """

    endpoint_id: int
    health: Health
    first_failure_us: int
    last_failure_us: int
    last_success_us: int | None = None
    recovering_us: int | None = None
    window_us: int | None = None
    successes: int = 0
    marks: Marks = Marks()
    by_filter: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What the rows of other tables say of an endpoint now.

    Attributes:
        enabled: whether it is on.
        disabled_reason: who switched it off.
        snoozed_until_us: no mails about it until then.
        failures: failed attempts since its last 2xx, or since it began; not those that were our own fault.
        unsettled: its rows in backlog.
        dead: deliveries given up since it began.
        events_failed: distinct events that failed since its last 2xx; not those whose destination was blocked.
        days_failed: the days on which they did.
        filtering: its filter, which is slow, holds deliveries up.
        held_since_us: since when the oldest held delivery is held; None: none is.
    """

    enabled: bool = True
    disabled_reason: str | None = None
    snoozed_until_us: int | None = None
    failures: int = 0
    unsettled: int = 0
    dead: int = 0
    events_failed: int = 0
    days_failed: int = 0
    filtering: bool = False
    held_since_us: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """An incident, the facts, and the moment they are looked at; `closing`: the owner's window has run its time."""

    incident: Incident
    facts: Facts
    now_us: int
    policy: Policy
    closing: bool = False

    @property
    def endpoint_id(self) -> int:
        """Whose it is."""
        return self.incident.endpoint_id

    @property
    def marks(self) -> Marks:
        """What was told so far."""
        return self.incident.marks


# What may be true of a case -------------------------------------------------------------------------------------------


def is_failing(case: Case) -> bool:
    """Whether an endpoint that nobody was told of is a failing one."""
    incident, facts = case.incident, case.facts
    if not facts.enabled and facts.disabled_reason in _BY_RECEIVER:
        return True
    if facts.dead or _is_held_up(case) or (facts.failures >= FAILURES_MIN and facts.unsettled):
        return True
    if _is_by_filter_alone(case):
        return False
    if not case.policy.first_wait_us:
        return True  # a mail at the first failure, as some platforms promise
    return not _has_worked(incident) and case.now_us - incident.first_failure_us >= case.policy.first_wait_us


def _is_held_up(case: Case) -> bool:
    return case.facts.filtering and case.now_us - case.incident.first_failure_us >= HELD_UP_US


def _is_by_filter_alone(case: Case) -> bool:
    return case.incident.by_filter and not case.facts.failures


def calm_since_us(case: Case) -> int | None:
    """Return since when nothing fails: the first 2xx after the latest failure. None: it does.

    What a slow filter held up may be left out by it in the end, and then no 2xx follows.
    """
    if case.facts.filtering:
        return None
    if case.incident.recovering_us is None and _is_by_filter_alone(case):
        return case.incident.last_failure_us
    return case.incident.recovering_us


def works_partly(case: Case) -> bool:
    """Whether others are delivered to it while some fail."""
    success = case.incident.last_success_us
    return _has_worked(case.incident) and case.now_us - (success or 0) < case.policy.recovered_after_us


def _has_worked(incident: Incident) -> bool:
    """Whether there was a 2xx since it began; the one before may stand there, when both came within milliseconds."""
    return incident.last_success_us is not None and incident.last_success_us >= incident.first_failure_us


def is_calm(case: Case) -> bool:
    """Whether it has recovered: a 2xx, then no failure for a while, and nothing left to deliver."""
    since = calm_since_us(case)
    if since is None or not case.facts.enabled:
        return False
    after = case.policy.recovered_after_us
    quiet_us = case.now_us - since
    return quiet_us >= after and (not case.facts.unsettled or quiet_us >= DRAINED_WITHIN * after)


def _window_closed(case: Case) -> bool:
    return case.marks.owed or (case.closing and case.incident.window_us is not None)


def _fails(case: Case) -> bool:
    return _window_closed(case) and is_failing(case)


def _fails_partly(case: Case) -> bool:
    return _fails(case) and calm_since_us(case) is None and works_partly(case)


def _is_settled(case: Case) -> bool:
    """Nobody was told, and there is nothing to tell: whatever failed was delivered."""
    facts, incident = case.facts, case.incident
    if facts.unsettled or facts.dead or case.marks.owed or not facts.enabled:
        return False
    return calm_since_us(case) is not None and (case.closing or incident.window_us is None)


def _is_off_unknown(case: Case) -> bool:
    return _is_off(case) and _fails(case)


def _is_off_untold(case: Case) -> bool:
    return _is_off(case) and not case.marks.disabled_told


def _is_owed_and_calm(case: Case) -> bool:
    return case.marks.owed and is_calm(case)


def _is_on_again(case: Case) -> bool:
    return case.facts.enabled and case.marks.mailed_us is not None


def _is_off(case: Case) -> bool:
    return not case.facts.enabled and case.facts.disabled_reason not in _BY_PEOPLE


def _is_off_by_people(case: Case) -> bool:
    return not case.facts.enabled and case.facts.disabled_reason in _BY_PEOPLE


def _is_on(case: Case) -> bool:
    return case.facts.enabled


def _flaps(case: Case) -> bool:
    return is_calm(case) and len(_recent(case)) >= FLAPS_MIN - 1


def _recent(case: Case) -> tuple[int, ...]:
    return tuple(at for at in case.marks.recovered if case.now_us - at < DAY_US)


def _is_calm_for_a_day(case: Case) -> bool:
    since = calm_since_us(case)
    return since is not None and case.facts.enabled and case.now_us - since >= DAY_US


def _came_to_work_partly(case: Case) -> bool:
    return works_partly(case) and calm_since_us(case) is None


def _works_no_more(case: Case) -> bool:
    return not works_partly(case) and not is_calm(case)


def _has_news(case: Case) -> bool:
    return case.incident.last_failure_us > case.marks.told_us or bool(case.facts.unsettled)


def _a_day_has_passed(case: Case) -> bool:
    return case.now_us - case.marks.told_us >= DAY_US and _has_news(case)


def _is_to_be_reminded(case: Case) -> bool:
    return calm_since_us(case) is None and case.now_us >= reminder_us(case) and _has_news(case)


def _is_to_be_warned(case: Case) -> bool:
    due = disable_us(case)
    return due is not None and case.marks.warned_us is None and case.now_us >= due - case.policy.warn_us


def _is_to_be_switched_off(case: Case) -> bool:
    due, warned = disable_us(case), case.marks.warned_us
    return due is not None and warned is not None and case.now_us >= max(due, warned + case.policy.warn_us)


def _expires(case: Case) -> bool:
    since = case.facts.held_since_us
    return (
        since is not None
        and not case.facts.enabled
        and not case.marks.expiry_told
        and case.now_us >= since + case.policy.held_us - EXPIRY_NOTICE_US
    )


def _is_forgotten(case: Case) -> bool:
    quiet = case.now_us - max(case.incident.last_failure_us, case.incident.last_success_us or 0) >= QUIET_US
    return quiet and not case.facts.unsettled


def _may_be_forgotten(case: Case) -> bool:
    return not _recent(case)


def reminder_us(case: Case) -> int:
    """When the next reminder is due: 6 h after the first mail, 24 h, 72 h, 7 d, then each week, by default."""
    first = case.marks.mailed_us or case.incident.first_failure_us
    return first + _reminder_after_us(case.policy, case.marks.reminded)


def _reminder_after_us(policy: Policy, reminded: int) -> int:
    steps = policy.reminders_us
    return steps[reminded] if reminded < len(steps) else steps[-1] * (reminded - len(steps) + 2)


def disable_us(case: Case) -> int | None:
    """When the endpoint will be switched off if nothing changes; None: not on these grounds.

    No 2xx for `disable.after_s`, and enough distinct events failed, on enough days: one poisoned event of a quiet
    shop must not kill its endpoint. A partly failing one never is.
    """
    policy, facts, incident = case.policy, case.facts, case.incident
    if not policy.disable_after_us or not facts.enabled or incident.recovering_us is not None:
        return None
    if facts.events_failed < policy.events_min or facts.days_failed < policy.days_min:
        return None
    clock = max(incident.first_failure_us, incident.last_success_us or 0)
    return clock + policy.disable_after_us + case.marks.paused_us


# The table ------------------------------------------------------------------------------------------------------------

When: TypeAlias = Callable[[Case], bool]


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """In this state, when this is true, that is the next state, and this is told. The first that is true holds."""

    health: Health
    when: When
    then: Health
    tells: Kind | None = None


_MAILED: Final = (Health.FAILING, Health.PARTLY_FAILING)
_KNOWN: Final = (*_MAILED, Health.FLAPPING)

LIFE: Final[tuple[Rule, ...]] = (
    Rule(Health.SHAKY, _is_off_by_people, Health.DISABLED),
    Rule(Health.SHAKY, _is_off_unknown, Health.DISABLED, Kind.DISABLED),
    Rule(Health.SHAKY, _is_owed_and_calm, Health.HEALTHY, Kind.RECOVERED),
    Rule(Health.SHAKY, _fails_partly, Health.PARTLY_FAILING, Kind.FAILING),
    Rule(Health.SHAKY, _fails, Health.FAILING, Kind.FAILING),
    Rule(Health.SHAKY, _is_settled, Health.HEALTHY),
    Rule(Health.SHAKY, _is_forgotten, Health.HEALTHY),
    *(
        rule
        for health in _MAILED
        for rule in (
            Rule(health, _is_off_by_people, Health.DISABLED),
            Rule(health, _is_off, Health.DISABLED, Kind.DISABLED),
            Rule(health, _flaps, Health.FLAPPING, Kind.FLAPPING),
            Rule(health, is_calm, Health.HEALTHY, Kind.RECOVERED),
            Rule(health, _is_to_be_warned, health, Kind.WARNING),
            Rule(health, _is_forgotten, Health.HEALTHY),
        )
    ),
    Rule(Health.FAILING, _came_to_work_partly, Health.PARTLY_FAILING),
    Rule(Health.FAILING, _is_to_be_reminded, Health.FAILING, Kind.REMINDER),
    Rule(Health.PARTLY_FAILING, _works_no_more, Health.FAILING),
    Rule(Health.PARTLY_FAILING, _a_day_has_passed, Health.PARTLY_FAILING, Kind.REMINDER),
    Rule(Health.FLAPPING, _is_off_by_people, Health.DISABLED),
    Rule(Health.FLAPPING, _is_off, Health.DISABLED, Kind.DISABLED),
    Rule(Health.FLAPPING, _is_calm_for_a_day, Health.HEALTHY, Kind.RECOVERED),
    Rule(Health.FLAPPING, _is_to_be_warned, Health.FLAPPING, Kind.WARNING),
    Rule(Health.FLAPPING, _a_day_has_passed, Health.FLAPPING, Kind.FLAPPING),
    Rule(Health.DISABLED, _is_on_again, Health.FAILING),
    Rule(Health.DISABLED, _is_on, Health.SHAKY),
    Rule(Health.DISABLED, _expires, Health.DISABLED, Kind.HELD_EXPIRING),
    Rule(Health.DISABLED, _is_off_untold, Health.DISABLED, Kind.DISABLED),
    Rule(Health.HEALTHY, _may_be_forgotten, Health.HEALTHY),
)


def rule_of(case: Case) -> Rule | None:
    """Return the rule that holds for a case now; None: nothing happens."""
    return next((rule for rule in LIFE if rule.health is case.incident.health and rule.when(case)), None)


# One look at an owner -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Owner:
    """Whom a mail would go to.

    Attributes:
        mails: when mails were made for them within a day, latest last; superseded and failed ones apart.
        busy: a mail to them is on its way and its fate unknown: nothing new until it is.
    """

    mails: tuple[int, ...] = ()
    busy: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What becomes of one incident."""

    health: Health
    marks: Marks
    closed: bool = False  # a window has closed over its failures
    over: bool = False  # the row has served its time


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What one look decides.

    Attributes:
        sections: endpoints to tell of, and what; empty: no mail.
        steps: what becomes of the incidents that change.
        switch_off: endpoints to be disabled, `failing`.
        window_us: the beginning of the window that the mail is for.
        look_us: when to look again.
    """

    sections: tuple[tuple[int, Kind], ...]
    steps: dict[int, Step]
    switch_off: tuple[int, ...]
    window_us: int
    look_us: int

    @property
    def kind(self) -> Kind | None:
        """The mail's kind; None: no mail."""
        return gravest([kind for _, kind in self.sections]) if self.sections else None


def plan(cases: Sequence[Case], owner: Owner, *, storm: bool = False) -> Plan:
    """Decide what happens to an owner's incidents, all of them looked at in one moment.

    Args:
        cases: every incident of the owner (or of one site, where digests are made by site); at least one.
        owner: what they were told lately.
        storm: so much fails at once that the fault is probably ours: first mails wait.
    """
    now_us, policy = cases[0].now_us, cases[0].policy
    cases = _with_window(cases)
    rules = {case.endpoint_id: rule_of(case) for case in cases}
    due = _due(cases, rules, storm=storm)
    if due and (
        owner.busy or now_us < allowed_us(owner, due.values(), policy) or _waits_for_others(due, cases)
    ):
        due = {}
    steps: dict[int, Step] = {}
    sections = dict(due)
    for case in cases:
        number, rule = case.endpoint_id, rules[case.endpoint_id]
        if rule is not None and (rule.tells is None or number in due):
            steps[number] = (
                _unsaid(case, rule.then) if rule.tells is None else _told(case, rule.then, rule.tells)
            )
        elif due and case.incident.health in _KNOWN and not _is_snoozed(case):
            sections[number] = Kind.REMINDER
            steps[number] = _told(case, case.incident.health, Kind.REMINDER)
        elif not storm and _is_nothing(case):
            steps[number] = Step(case.incident.health, case.marks, closed=True)
    return Plan(
        sections=tuple(sections.items()),
        steps=steps,
        switch_off=tuple(c.endpoint_id for c in cases if not storm and _is_to_be_switched_off(c)),
        window_us=min(
            (c.incident.window_us or now_us for c in cases if c.endpoint_id in due), default=now_us
        ),
        look_us=now_us if steps else _look_us(cases, owner),
    )


def _is_nothing(case: Case) -> bool:
    """Whether a window closes over what nobody need be told of."""
    unsure = case.marks.owed or case.facts.filtering or is_failing(case)
    return _window_closed(case) and not unsure


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
    return not _is_snoozed(case) and not (storm and kind is Kind.FAILING)


def _is_snoozed(case: Case) -> bool:
    until = case.facts.snoozed_until_us
    return until is not None and case.now_us < until


def allowed_us(owner: Owner, kinds: Iterable[Kind], policy: Policy) -> int:
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
        case.endpoint_id not in due and case.incident.health in _MAILED and calm_since_us(case) is not None
        for case in cases
    )


def _told(case: Case, then: Health, kind: Kind) -> Step:
    """Mark what a section tells."""
    now_us, marks = case.now_us, case.marks
    if then is Health.HEALTHY:
        return Step(then, Marks(recovered=(*_recent(case), now_us)), closed=True)
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
            recovered = (*_recent(case), now_us) if marks.flapping_us is None else marks.recovered
            marks = dataclasses.replace(marks, flapping_us=marks.flapping_us or now_us, recovered=recovered)
        case _:
            pass
    if marks.mailed_us is not None:
        marks = dataclasses.replace(marks, reminded=_reminded(case, marks.mailed_us, marks.reminded))
    return Step(then, marks, closed=True)


def _reminded(case: Case, mailed_us: int, reminded: int) -> int:
    """Count the reminders that a mail of now stands for: those due, or nearly so."""
    passed = case.now_us - mailed_us
    while 4 * passed >= 3 * _reminder_after_us(case.policy, reminded):
        reminded += 1
    return reminded


def _unsaid(case: Case, then: Health) -> Step:
    """Go on without a word."""
    marks = case.marks
    if then is Health.HEALTHY:
        return Step(then, Marks(recovered=_recent(case)), closed=True, over=not _recent(case))
    if case.incident.health is Health.DISABLED:  # it is on again
        marks = dataclasses.replace(marks, disabled_told=False, expiry_told=False, warned_us=None)
    return Step(then, marks)


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


# Storms ---------------------------------------------------------------------------------------------------------------


def is_storm(failing: int, hosts: int, traffic: int, *, share: float, hosts_min: int) -> bool:
    """Whether so many endpoints fail at once that the fault is probably ours.

    Args:
        failing: endpoints that fail and whose owners do not know yet.
        hosts: distinct hosts among them.
        traffic: endpoints with traffic lately, the failing ones included.
        share: of them that makes a storm; 0: never.
        hosts_min: and over more hosts than this.
    """
    return bool(share) and hosts > hosts_min and failing > share * max(traffic, failing)
