"""The life cycle of an incident: one table of state transitions, and the conditions that they test.

    state           entered when                        mails to the owner
    healthy         -                                   none
    shaky           a delivery failed, with or without  none; the owner's window opens if none is open
                    an attempt
    failing         judged so when a window closes      failing, then reminders at growing intervals
    partly_failing  the same, while others succeed      failing, then one digest a day
    flapping        three outages in a day              flapping, then one digest a day
    disabled        the endpoint is disabled            disabled, once; held_expiring, once
    blocked         the platform's policy forbids the   none; `mail.operator` gets one
                    destination

The conditions use only rows: the incident's own row (written with the failed attempt) and facts counted from attempts,
backlog and dead.

Never here: other endpoints of the owner, limits on mails, a clock, SQL, wording.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final, TypeAlias

from pghookd.endpoint_health.incident import DAY_US, SECOND_US, Case, Health, Incident, IncidentPolicy
from pghookd.model.delivery import DisabledReason
from pghookd.owner_mail.digest import Kind

FAILURES_MIN: Final = 3  # failed attempts since the last 2xx after which an endpoint counts as failing
FLAPS_MIN: Final = 3  # outages with a recovery within a day after which it counts as flapping
DRAINED_WITHIN: Final = 4  # after this many times recovered_after_s it has recovered despite a backlog
EXPIRY_NOTICE_US: Final = 2 * DAY_US  # held events are announced this long before they are dropped
QUIET_US: Final = 30 * DAY_US  # an incident without any attempt for this long is over
HELD_UP_US: Final = 60 * SECOND_US  # a slow filter can delay others evaluated with it, but for less than this
_BY_PEOPLE: Final = frozenset({DisabledReason.OWNER.value, DisabledReason.OPERATOR.value})
_BY_RECEIVER: Final = frozenset({DisabledReason.GONE.value, DisabledReason.RECEIVER.value})


def is_failing(case: Case) -> bool:
    """Return True if an endpoint that no mail has reported yet counts as failing."""
    incident, facts = case.incident, case.facts
    if not facts.enabled and facts.disabled_reason in _BY_RECEIVER:
        return True
    if facts.dead or _is_held_up(case) or (facts.failures >= FAILURES_MIN and facts.unsettled):
        return True
    if _is_by_filter_alone(case):
        return False
    if not case.policy.first_wait_us:
        return True  # with first_wait_s = 0 the first failure is mailed, as some platforms promise
    return not _has_worked(incident) and case.now_us - incident.first_failure_us >= case.policy.first_wait_us


def _is_held_up(case: Case) -> bool:
    return case.facts.filtering and case.now_us - case.incident.first_failure_us >= HELD_UP_US


def _is_by_filter_alone(case: Case) -> bool:
    return case.incident.by_filter and not case.facts.failures


def calm_since_us(case: Case) -> int | None:
    """Return the time since which nothing fails (the first 2xx after the latest failure), or None if it still fails.

    A slow filter may in the end exclude the events that it delayed. No 2xx follows then, so the latest failure counts.
    """
    if case.facts.filtering:
        return None
    if case.incident.recovering_us is None and _is_by_filter_alone(case):
        return case.incident.last_failure_us
    return case.incident.recovering_us


def works_partly(case: Case) -> bool:
    """Return True if some deliveries to the endpoint succeed while others fail."""
    success = case.incident.last_success_us
    return _has_worked(case.incident) and case.now_us - (success or 0) < case.policy.recovered_after_us


def _has_worked(incident: Incident) -> bool:
    """Return True if there was a 2xx since the incident began; the row may have an earlier 2xx, by milliseconds."""
    return incident.last_success_us is not None and incident.last_success_us >= incident.first_failure_us


def is_calm(case: Case) -> bool:
    """Return True if it has recovered: a 2xx, then no failure for a while, and an empty backlog or a longer wait."""
    since = calm_since_us(case)
    if since is None or not case.facts.enabled:
        return False
    after = case.policy.recovered_after_us
    quiet_us = case.now_us - since
    return quiet_us >= after and (not case.facts.unsettled or quiet_us >= DRAINED_WITHIN * after)


def is_window_closed(case: Case) -> bool:
    """Return True if the owner's window closed after failures of this endpoint, or a superseded mail reported it."""
    return case.marks.owed or (case.closing and case.incident.window_us is not None)


def _fails(case: Case) -> bool:
    return is_window_closed(case) and is_failing(case)


def _is_blocked(case: Case) -> bool:
    """Return True if the platform's policy is the only obstacle to deliveries."""
    facts = case.facts
    return case.incident.by_policy and not (facts.failures or facts.dead or case.marks.owed)


def _is_blocked_no_more(case: Case) -> bool:
    return not _is_blocked(case)


def _delivers_again(case: Case) -> bool:
    return case.incident.recovering_us is not None


def _fails_partly(case: Case) -> bool:
    return _fails(case) and calm_since_us(case) is None and works_partly(case)


def _is_settled(case: Case) -> bool:
    """Return True if no mail is needed: every failed delivery has succeeded since, and no mail is owed."""
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
    return is_calm(case) and len(recent_recoveries(case)) >= FLAPS_MIN - 1


def recent_recoveries(case: Case) -> tuple[int, ...]:
    """Return the times at which the endpoint recovered within the last day."""
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


def is_to_be_switched_off(case: Case) -> bool:
    """Return True if the disabling clock has run out and the owner was warned `warn_us` before."""
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
    return not recent_recoveries(case)


def reminder_us(case: Case) -> int:
    """Return when the next reminder is due; by default 6 h, 24 h, 72 h and 7 d after the first mail, then weekly."""
    first = case.marks.mailed_us or case.incident.first_failure_us
    return first + reminder_after_us(case.policy, case.marks.reminded)


def reminder_after_us(policy: IncidentPolicy, reminded: int) -> int:
    """Return the time from the first mail to reminder number `reminded`; the last step of the schedule repeats."""
    steps = policy.reminders_us
    return steps[reminded] if reminded < len(steps) else steps[-1] * (reminded - len(steps) + 2)


def disable_us(case: Case) -> int | None:
    """Return when the endpoint will be disabled if nothing changes, or None if it will not.

    Two conditions: `disable.after_s` without a 2xx, and enough distinct failed events on enough days. One poison event
    of a quiet shop must not disable its endpoint. A partly failing endpoint is never disabled.
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
    """One transition: state, condition, next state, mail to send. The first match wins."""

    health: Health
    when: When
    then: Health
    tells: Kind | None = None


MAILED: Final = (Health.FAILING, Health.PARTLY_FAILING)
KNOWN: Final = (*MAILED, Health.FLAPPING)

LIFE: Final[tuple[Rule, ...]] = (
    Rule(Health.SHAKY, _is_off_by_people, Health.DISABLED),
    Rule(Health.SHAKY, _is_blocked, Health.BLOCKED),
    Rule(Health.SHAKY, _is_off_unknown, Health.DISABLED, Kind.DISABLED),
    Rule(Health.SHAKY, _is_owed_and_calm, Health.HEALTHY, Kind.RECOVERED),
    Rule(Health.SHAKY, _fails_partly, Health.PARTLY_FAILING, Kind.FAILING),
    Rule(Health.SHAKY, _fails, Health.FAILING, Kind.FAILING),
    Rule(Health.SHAKY, _is_settled, Health.HEALTHY),
    Rule(Health.SHAKY, _is_forgotten, Health.HEALTHY),
    *(
        rule
        for health in MAILED
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
    Rule(Health.BLOCKED, _is_off_by_people, Health.DISABLED),
    Rule(Health.BLOCKED, _delivers_again, Health.HEALTHY),
    Rule(Health.BLOCKED, _is_blocked_no_more, Health.SHAKY),
    Rule(Health.BLOCKED, _is_forgotten, Health.HEALTHY),
    Rule(Health.HEALTHY, _may_be_forgotten, Health.HEALTHY),
)


def rule_of(case: Case) -> Rule | None:
    """Return the rule that applies to a case now, or None if none applies."""
    return next((rule for rule in LIFE if rule.health is case.incident.health and rule.when(case)), None)
