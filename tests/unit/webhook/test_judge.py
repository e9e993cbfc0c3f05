"""The table of verdicts, one test per row, and what no answer may ever lead to."""

from __future__ import annotations

import math
from typing import assert_never

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pghookd.model.delivery import DisabledReason, Fault, Outcome, Reason, Reply
from pghookd.model.verdict import Dead, Delivered, Disable, Retry
from pghookd.webhook.judge import Record, RetryPolicy, judge, pause_s, record

POLICY = RetryPolicy(schedule=(10.0, 100.0, 1000.0), jitter=0.0)
NOW_S = 1_764_000_000.0


def verdict_on(answer, failure_n=1, policy=POLICY, age_s=0.0, random01=0.5, spared=0):
    return judge(
        answer,
        failure_n,
        policy,
        now_s=NOW_S,
        age_from_s=NOW_S - age_s,
        random01=random01,
        spared=spared,
    )


def test_any_2xx_is_delivered_whatever_else_it_says():
    for status in [200, 201, 202, 204, 206, 299]:
        reply = Reply(status, b"error", retry_after="60", control="disable")
        assert verdict_on(reply, failure_n=99, age_s=1e9) == Delivered()
        assert record(reply) == Record(Outcome.DELIVERED, status, None)


def test_a_2xx_that_an_endpoint_does_not_name_is_refused():
    narrow = RetryPolicy((10.0,), 0.0, successes=frozenset({200, 204}))
    assert verdict_on(Reply(204), policy=narrow) == Delivered()
    assert verdict_on(Reply(202), policy=narrow) == Retry(10.0)
    assert verdict_on(Reply(202, control="disable"), policy=narrow) == Disable(DisabledReason.RECEIVER)
    assert record(Reply(204), narrow.successes) == Record(Outcome.DELIVERED, 204, None)
    assert record(Reply(202), narrow.successes) == Record(Outcome.REFUSED, 202, "success_statuses")


def test_any_other_answer_is_tried_again_on_the_schedule():
    for status in [300, 301, 302, 304, 307, 308, 400, 401, 403, 404, 408, 418, 425, 500, 503, 599]:
        assert verdict_on(Reply(status)) == Retry(10.0)
        assert verdict_on(Reply(status), failure_n=3) == Retry(1000.0)
        assert record(Reply(status)) == Record(Outcome.REFUSED, status, None)


def test_the_schedule_ends():
    assert verdict_on(Reply(500), failure_n=4) == Dead(Reason.EXHAUSTED)
    assert verdict_on(Fault(Outcome.TIMEOUT, "response"), failure_n=4) == Dead(Reason.EXHAUSTED)


def test_attempts_end_where_their_column_does():
    endless = RetryPolicy(schedule=(1.0,) * 40_000)
    assert verdict_on(Reply(500), failure_n=32_767, policy=endless) == Dead(Reason.EXHAUSTED)


def test_410_disables_the_endpoint():
    assert verdict_on(Reply(410), failure_n=99) == Disable(DisabledReason.GONE)


def test_the_receiver_may_abort_or_disable():
    assert verdict_on(Reply(500, control="abort-message")) == Dead(Reason.ABORTED)
    assert verdict_on(Reply(500, control="disable")) == Disable(DisabledReason.RECEIVER)
    assert verdict_on(Reply(410, control="abort-message")) == Dead(Reason.ABORTED)
    assert verdict_on(Reply(500, control="whatever")) == Retry(10.0)


def test_a_url_that_is_refused_itself_is_dead_at_once():
    for error in ["url", "scheme", "port", "userinfo", "name", "literal", "literal: 10/8"]:
        assert verdict_on(Fault(Outcome.BLOCKED, error)) == Dead(Reason.BLOCKED)


def test_a_refused_address_is_tried_again():
    for error in ["address", "address: not public"]:
        assert verdict_on(Fault(Outcome.BLOCKED, error)) == Retry(10.0)
        assert verdict_on(Fault(Outcome.BLOCKED, error), failure_n=4) == Dead(Reason.EXHAUSTED)


def test_other_faults_are_tried_again_on_the_schedule():
    for outcome, error in [
        (Outcome.UNREACHABLE, "dns"),
        (Outcome.UNREACHABLE, "tls_expired"),
    ]:
        assert verdict_on(Fault(outcome, error)) == Retry(10.0)
        assert record(Fault(outcome, error)) == Record(outcome, None, error)


def test_a_fault_of_our_own_uses_up_no_schedule_and_waits_longer_each_time():
    ours = Fault(Outcome.FAILED, "proxy: refused")
    waits = [verdict_on(ours, failure_n=4, spared=spared) for spared in range(10)]
    assert all(found.is_spared for found in waits)
    assert [found.wait_s for found in waits] == [
        5.0,
        10.0,
        20.0,
        40.0,
        80.0,
        160.0,
        320.0,
        640.0,
        900.0,
        900.0,
    ]
    assert verdict_on(ours, spared=32767) == Dead(Reason.EXHAUSTED)
    assert verdict_on(ours, age_s=POLICY.age_max_s + 1) == Dead(Reason.TOO_OLD)


OVERLOADED = [
    Fault(Outcome.TIMEOUT, "connect"),
    Fault(Outcome.TIMEOUT, "response"),
    Reply(429),
    Reply(502),
    Reply(504),
]


def test_who_is_overloaded_is_left_alone_for_a_minute():
    for answer in OVERLOADED:
        assert verdict_on(answer) == Retry(60.0)
        assert verdict_on(answer, failure_n=2) == Retry(100.0)
        assert verdict_on(answer, policy=RetryPolicy((10.0,), 0.0, throttle_floor_s=0)) == Retry(10.0)


def test_age_counts_only_when_an_attempt_has_failed():
    old = POLICY.age_max_s + 1
    assert verdict_on(Reply(500), age_s=old) == Dead(Reason.TOO_OLD)
    assert verdict_on(Reply(500), age_s=POLICY.age_max_s) == Retry(10.0)
    assert verdict_on(Reply(200), age_s=old) == Delivered()
    assert verdict_on(Reply(410), age_s=old) == Disable(DisabledReason.GONE)
    assert verdict_on(Reply(500), failure_n=4, age_s=old) == Dead(Reason.EXHAUSTED)


RETRY_AFTER_IS_CLAMPED_AND_HEARD_ON_429_AND_503_ALONE = [
    (503, "30", 30.0),
    (503, "5", 10.0),  # never sooner than the schedule
    (503, "999999999", 86400.0),  # never later than retry_after_max_s
    (503, "nonsense", 10.0),
    (503, None, 10.0),
    (503, "Mon, 24 Nov 2025 16:01:00 GMT", 60.0),
    (429, "30", 60.0),  # the floor after 429
    (429, "90", 90.0),
    (500, "90", 10.0),  # on 429 and 503 alone
    (301, "90", 10.0),
    (502, "90", 60.0),
]


def test_retry_after_is_clamped_and_honoured_on_429_and_503_alone():
    for status, retry_after, wait_s in RETRY_AFTER_IS_CLAMPED_AND_HEARD_ON_429_AND_503_ALONE:
        assert verdict_on(Reply(status, retry_after=retry_after)) == Retry(wait_s)


LEAVE_ALONE = [
    (429, "60", 60.0),
    (503, "0", 0.0),
    (429, "1000000000", 86400.0),
    (503, "9" * 4000, 86400.0),
    (429, "-5", 0.0),
    (429, "soon", 0.0),
    (429, None, 0.0),
    (503, "Thu, 01 Jan 1970 00:20:00 GMT", 200.0),
    (503, "Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    (429, "Fri, 31 Dec 9999 23:59:59 GMT", 86400.0),
    (502, "60", 0.0),
    (200, "60", 0.0),
]


def test_retry_after_is_honoured_up_to_its_maximum():
    for status, retry_after, wait_s in LEAVE_ALONE:
        assert pause_s(Reply(status, retry_after=retry_after), POLICY, 1000.0) == wait_s, retry_after


def test_jitter():
    for random01, wait_s in [(0.0, 8.0), (0.5, 10.0), (1.0, 12.0)]:
        spread = RetryPolicy((10.0,), jitter=0.2)
        assert verdict_on(Reply(500), policy=spread, random01=random01) == Retry(pytest.approx(wait_s))


REDIRECTS = [
    (None, None),
    ("https://new.example/hooks/TOKEN?key=TOKEN", "redirect: https://new.example"),
    ("https://user:TOKEN@new.example:8443/", "redirect: https://new.example:8443"),
    ("//new.example/TOKEN", "redirect: new.example"),
    ("/hooks/TOKEN/", "redirect"),
    ("", "redirect"),
    ("https://[TOKEN", "redirect"),
    ("https://\x1b[31mTOKEN", "redirect"),
    ("mailto:TOKEN", "redirect"),
    ("https://" + "x" * 5000, ("redirect: https://" + "x" * 5000)[:200]),
]


def test_a_redirect_names_its_host_and_no_more():
    for location, error in REDIRECTS:
        assert record(Reply(301, location=location)) == Record(Outcome.REFUSED, 301, error)
        assert record(Reply(500, location=location)).error is None


REPLIES = st.builds(
    Reply,
    st.integers(100, 999),
    st.binary(),
    st.none() | st.text(),
    st.none() | st.sampled_from(["disable", "abort-message"]) | st.text(),
    st.none() | st.text(),
)
FAULTS = st.builds(Fault, st.sampled_from(list(Outcome)[2:]), st.text())


@given(REPLIES | FAULTS, st.integers(1, 40_000), st.floats(-1e12, 1e12), st.floats(0, 1))
def test_every_answer_has_a_verdict_and_a_record(answer, failure_n, age_s, random01):
    row = record(answer)
    verdict = judge(answer, failure_n, POLICY, now_s=NOW_S, age_from_s=NOW_S - age_s, random01=random01)
    assert (row.outcome is Outcome.DELIVERED) == isinstance(verdict, Delivered)
    assert row.error is None or row.error.isprintable() or isinstance(answer, Fault)
    match verdict:
        case Delivered() | Dead() | Disable():
            pass
        case Retry(wait_s):
            assert math.isfinite(wait_s)
            if not verdict.is_spared:
                assert POLICY.schedule[failure_n - 1] <= wait_s <= POLICY.retry_after_max_s
        case _:
            assert_never(verdict)
