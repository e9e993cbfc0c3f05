"""The life of a failing endpoint: each rule of the table, and what an owner gets when."""

from __future__ import annotations

import dataclasses

import pytest

from pghookd.endpoint_health.incident import (
    DAY_US,
    SECOND_US,
    Case,
    Facts,
    Health,
    Incident,
    IncidentPolicy,
    MailMarks,
    marks_of,
    stored_marks,
)
from pghookd.endpoint_health.incident_rules import LIFE, disable_us, reminder_us, rule_of
from pghookd.endpoint_health.owner_plan import Owner, allowed_us, plan
from pghookd.owner_mail.digest import OF_OPERATOR, Kind
from pghookd.settings.schema import Settings

POLICY = IncidentPolicy.of(Settings())
T0 = 20_000 * DAY_US
MINUTE, HOUR = 60 * SECOND_US, 3600 * SECOND_US
DOWN = Facts(failures=3, unsettled=1)


def case(health, after_us, facts=DOWN, *, number=1, policy=POLICY, **columns):
    """Return a case whose incident began at T0, checked `after_us` later."""
    known = {"first_failure_us": T0, "last_failure_us": T0 + after_us, **columns}
    return Case(Incident(number, health, **known), facts, T0 + after_us, policy)


def told(*cases, mails=(), **options):
    return dict(plan(list(cases), Owner(tuple(mails)), **options).sections)


def test_the_window_closes_ten_minutes_after_the_owners_first_failure():
    early = case(Health.SHAKY, 599 * SECOND_US, window_us=T0)
    assert told(early) == {}
    assert plan([early], Owner()).look_us == T0 + 10 * MINUTE
    closed = case(Health.SHAKY, 10 * MINUTE, window_us=T0)
    late = case(Health.SHAKY, 10 * MINUTE, number=2, window_us=T0 + 9 * MINUTE)
    assert told(closed, late) == {1: Kind.FAILING, 2: Kind.FAILING}


def test_two_failures_and_a_success_are_not_a_failing_endpoint():
    facts = Facts(failures=2, unsettled=1)
    found = plan([case(Health.SHAKY, 10 * MINUTE, facts, window_us=T0, last_success_us=T0 + MINUTE)], Owner())
    assert not found.sections
    assert found.steps[1].closed


def test_events_delivered_in_the_end_are_forgotten():
    facts = Facts(failures=0, unsettled=0)
    at = T0 + MINUTE
    found = plan(
        [
            case(
                Health.SHAKY,
                10 * MINUTE,
                facts,
                window_us=T0,
                last_success_us=at,
                recovering_us=at,
                last_failure_us=T0,
            )
        ],
        Owner(),
    )
    assert (found.sections, found.steps[1].over) == ((), True)


def test_reminders_come_ever_farther_apart():
    marks = MailMarks(mailed_us=T0)
    due = [
        (reminder_us(case(Health.FAILING, 0, marks=dataclasses.replace(marks, reminded=n))) - T0) // HOUR
        for n in range(6)
    ]
    assert due == [6, 24, 72, 168, 336, 504]


@pytest.mark.parametrize(
    ("kind", "gap"), [(Kind.FAILING, POLICY.gap_us), (Kind.DISABLED, POLICY.urgent_gap_us)]
)
def test_a_gap_lies_between_two_mails(kind, gap):
    assert allowed_us(Owner((T0,)), [kind], POLICY) == T0 + gap


def test_no_owner_gets_more_than_six_in_a_day():
    mails = tuple(T0 + n * HOUR for n in range(6))
    assert allowed_us(Owner(mails), [Kind.FAILING], POLICY) == T0 + DAY_US


def test_a_storm_holds_first_mails_and_nothing_else():
    first = case(Health.SHAKY, HOUR, window_us=T0)
    again = case(Health.FAILING, 7 * HOUR, number=2, marks=MailMarks(mailed_us=T0, told_us=T0))
    assert told(first, storm=True) == {}
    assert told(again, storm=True) == {2: Kind.REMINDER}


def test_nothing_is_planned_while_the_fate_of_a_mail_is_unknown():
    closed = case(Health.SHAKY, HOUR, window_us=T0)
    assert plan([closed], Owner(busy=True)).sections == ()


def test_a_recovery_waits_for_others_that_work_again_but_not_for_ever():
    calm = {"marks": MailMarks(mailed_us=T0, told_us=T0), "last_failure_us": T0, "last_success_us": T0 + 1}
    ready = case(Health.FAILING, HOUR // 2 + 1, Facts(), recovering_us=T0 + 1, **calm)
    other = case(Health.FAILING, HOUR // 2 + 1, Facts(), number=2, recovering_us=T0 + MINUTE, **calm)
    assert told(ready, other) == {}
    assert told(ready) == {1: Kind.RECOVERED}
    stuck = Facts(unsettled=1)
    late = [
        case(Health.FAILING, 3 * HOUR // 2 + 1, Facts(), recovering_us=T0 + 1, **calm),
        case(Health.FAILING, 3 * HOUR // 2 + 1, stuck, number=2, recovering_us=T0 + MINUTE, **calm),
    ]
    assert told(*late)[1] is Kind.RECOVERED


def test_no_recovery_is_mailed_without_a_failure():
    facts = Facts()
    off = case(Health.DISABLED, HOUR, facts, last_failure_us=T0, recovering_us=T0 + 1, last_success_us=T0 + 1)
    assert plan([off], Owner()).steps[1].health is Health.SHAKY


def test_the_third_outage_of_a_day_is_flapping():
    marks = MailMarks(mailed_us=T0, told_us=T0, recovered=(T0 - 8 * HOUR, T0 - 4 * HOUR))
    calm = {"last_failure_us": T0, "last_success_us": T0 + 1, "recovering_us": T0 + 1}
    third = case(Health.FAILING, HOUR, Facts(), marks=marks, **calm)
    assert told(third) == {1: Kind.FLAPPING}
    after = plan([third], Owner()).steps[1]
    assert after.health is Health.FLAPPING
    quiet = case(Health.FLAPPING, 23 * HOUR, Facts(), marks=after.marks, **calm)
    assert told(quiet) == {}
    day = case(Health.FLAPPING, 25 * HOUR, Facts(), marks=after.marks, **calm)
    assert told(day) == {1: Kind.RECOVERED}


def test_switching_off_needs_time_and_events_and_days():
    enough = Facts(failures=9, unsettled=1, events_failed=3, days_failed=2)
    assert disable_us(case(Health.FAILING, HOUR, enough)) == T0 + 5 * DAY_US
    assert disable_us(case(Health.FAILING, HOUR, dataclasses.replace(enough, events_failed=2))) is None
    assert disable_us(case(Health.FAILING, HOUR, dataclasses.replace(enough, days_failed=1))) is None
    paused = case(Health.FAILING, HOUR, enough, marks=MailMarks(paused_us=HOUR))
    assert disable_us(paused) == T0 + 5 * DAY_US + HOUR
    worked = case(Health.FAILING, HOUR, enough, last_success_us=T0 + MINUTE)
    assert disable_us(worked) == T0 + MINUTE + 5 * DAY_US


def test_nobody_is_switched_off_unwarned():
    enough = Facts(failures=9, unsettled=1, events_failed=3, days_failed=2)
    unwarned = case(Health.FAILING, 6 * DAY_US, enough, marks=MailMarks(mailed_us=T0, told_us=T0))
    found = plan([unwarned], Owner())
    assert (found.sections, found.switch_off) == (((1, Kind.WARNING),), ())
    marks = MailMarks(mailed_us=T0, told_us=T0, warned_us=T0 + 4 * DAY_US, reminded=3)
    assert plan([case(Health.FAILING, 5 * DAY_US, enough, marks=marks)], Owner()).switch_off == (1,)


def test_every_state_but_the_last_has_a_way_out():
    ways = {health: {rule.then for rule in LIFE if rule.health is health} for health in Health}
    for health in Health:
        assert ways[health] - {health} or health is Health.HEALTHY
    assert {rule.tells for rule in LIFE} == {*Kind, None} - OF_OPERATOR


def test_nothing_happens_to_a_failing_endpoint_between_two_reminders():
    assert rule_of(case(Health.FAILING, HOUR, marks=MailMarks(mailed_us=T0, told_us=T0 + HOUR))) is None


def test_marks_survive_being_stored():
    marks = MailMarks(mailed_us=1, told_us=2, reminded=3, owed=True, recovered=(4, 5), flapping_us=6)
    assert marks_of(stored_marks(marks) | {"of_a_later_version": 1}) == marks
    assert stored_marks(MailMarks()) == {}


BY_FILTER = {"window_us": T0, "last_failure_us": T0, "by_filter": True}


def test_a_slow_filter_is_reported_if_events_wait_when_the_window_closes():
    assert told(case(Health.SHAKY, 10 * MINUTE, Facts(unsettled=1, filtering=True), **BY_FILTER)) == {
        1: Kind.FAILING
    }
    going_out = case(Health.SHAKY, 10 * MINUTE, Facts(unsettled=1), **BY_FILTER)
    assert told(going_out) == {}
    assert plan([going_out], Owner()).steps[1].closed
    gone = plan([case(Health.SHAKY, 10 * MINUTE, Facts(), **BY_FILTER)], Owner())
    assert (gone.sections, gone.steps[1].over) == ((), True)


def test_a_slow_filter_has_recovered_once_no_event_waits_for_it():
    marks = MailMarks(mailed_us=T0 + 10 * MINUTE, told_us=T0 + 10 * MINUTE)
    held_up, free = Facts(unsettled=1, filtering=True), Facts()
    for after in (30 * MINUTE, 3 * HOUR):
        assert told(case(Health.FAILING, after, held_up, marks=marks, **BY_FILTER)) == {}
        assert told(case(Health.FAILING, after, free, marks=marks, **BY_FILTER)) == {1: Kind.RECOVERED}
    assert told(case(Health.FAILING, 7 * HOUR, held_up, marks=marks, **BY_FILTER)) == {1: Kind.REMINDER}
    worked = {"last_success_us": T0 + MINUTE, "recovering_us": T0 + MINUTE}
    assert told(case(Health.FAILING, 3 * HOUR, held_up, marks=marks, **BY_FILTER, **worked)) == {}


def test_a_filter_that_holds_up_for_a_moment_is_not_reported():
    at_once = dataclasses.replace(POLICY, first_wait_us=0)
    held_up = Facts(unsettled=1, filtering=True)
    young = case(Health.SHAKY, 0, held_up, policy=at_once, **BY_FILTER)
    found = plan([young], Owner())
    assert (found.sections, found.steps, found.look_us) == ((), {}, T0 + MINUTE)
    assert told(case(Health.SHAKY, MINUTE, held_up, policy=at_once, **BY_FILTER)) == {1: Kind.FAILING}


def test_a_slow_filter_switches_nothing_off():
    days = Facts(unsettled=1, filtering=True)
    assert disable_us(case(Health.FAILING, 30 * DAY_US, days, **BY_FILTER)) is None
