"""Outcomes that wait to be recorded: outcomes first, a delivery's last word last, delayed ones in order."""

from __future__ import annotations

from pghookd.delivery.recording.pending import (
    ASIDE_MAX,
    BATCH_BYTES_MAX,
    OTHERS_LEAST,
    OUTCOMES_ASIDE_MAX,
    DelayedOutcomes,
    Pending,
)
from pghookd.model.delivery import Delivery, Event, Outcome, Reason, State
from pghookd.model.outcome import AttemptWrite, BacklogWrite
from pghookd.model.verdict import Delivered


def delivery(event_id=1, endpoint_id=7):
    return Delivery(Event(event_id, "site", "order_created", 5, b"{}"), endpoint_id, 0, 0.0)


def outcome(of=None, response=None):
    return AttemptWrite(of or delivery(), Outcome.DELIVERED, 200, None, response, 1, 1.0, Delivered(), 1)


def failure(evidence):
    write = outcome()
    write.evidence = evidence
    return write


def kept(of=None):
    return BacklogWrite(of or delivery(), State.PARKED, Reason.LANE_FULL)


def test_outcomes_go_first_however_many_others_wait():
    pending = Pending()
    others = [kept() for _ in range(1000)]
    for write in others:
        pending.put(write, 1.0)
    outcomes = [outcome() for _ in range(20)]
    for write in outcomes:
        pending.put(write, 2.0)
    assert pending.take(500) == [*outcomes, *others[:480]]
    assert (pending.outcomes, pending.others) == (0, 520)


def test_others_keep_a_share_of_each_batch():
    pending = Pending()
    for _ in range(1000):
        pending.put(outcome(), 1.0)
        pending.put(kept(), 1.0)
    assert sum(isinstance(write, BacklogWrite) for write in pending.take(500)) == OTHERS_LEAST


def test_others_that_rest_are_not_taken():
    pending = Pending()
    pending.put(kept(), 1.0)
    pending.others_rest = True
    assert (pending.takeable, pending.take(500)) == (0, [])


def test_an_outcome_replaces_earlier_writes_of_its_delivery():
    pending, same = Pending(), delivery()
    pending.put(kept(same), 1.0)
    pending.put(kept(same), 2.0)
    pending.put(outcome(same), 3.0)
    [write] = pending.take(500)
    assert isinstance(write, AttemptWrite)
    assert pending.oldest_at is None


def test_a_batch_is_bounded_by_the_bytes_of_its_responses():
    pending = Pending()
    for _ in range(30):
        pending.put(outcome(response=bytes(BATCH_BYTES_MAX // 10)), 1.0)
    assert [len(pending.take(500)) for _ in range(3)] == [10, 10, 10]
    pending.put(outcome(response=bytes(2 * BATCH_BYTES_MAX)), 1.0)
    assert len(pending.take(500)) == 1


def test_evidence_counts_as_bytes_of_a_batch():
    pending = Pending()
    for _ in range(20):
        pending.put(failure("x" * (BATCH_BYTES_MAX // 10)), 1.0)
    assert [len(pending.take(500)) for _ in range(2)] == [10, 10]


def test_only_outcomes_have_an_age_for_the_gate():
    pending = Pending()
    pending.put(kept(), 1.0)
    assert (pending.oldest_outcome_at, pending.oldest_at) == (None, 1.0)
    pending.put(outcome(), 2.0)
    assert (pending.oldest_outcome_at, pending.oldest_at) == (2.0, 1.0)


def test_later_writes_of_a_delivery_stay_behind_delayed_ones():
    pending, same = Pending(), delivery()
    first, second, other = kept(same), outcome(same), outcome(delivery(2))
    assert pending.set_aside(first, DelayedOutcomes.LOCKED, 1.0)
    pending.put(second, 0.5)
    pending.put(other, 0.5)
    assert pending.take(500) == [other]
    assert pending.retry(7, 500) == [first, second]
    assert pending.retried(7, 2, [first, second], DelayedOutcomes.LOCKED, 2.0) is False
    assert pending.ready(1.5, 10) == []
    assert pending.ready(2.0, 10) == [7]
    assert pending.retried(7, 2, [], DelayedOutcomes.LOCKED, 2.0) is True
    assert (pending.aside, pending.outcomes_aside, pending.endpoints_aside) == (0, 0, 0)
    pending.put(second, 3.0)
    assert pending.take(500) == [second]


def test_what_comes_during_a_retry_stays():
    pending, same = Pending(), delivery()
    pending.set_aside(kept(same), DelayedOutcomes.LOCKED, 1.0)
    tried = pending.retry(7, 500)
    late = outcome(same)
    pending.put(late, 1.0)
    assert pending.retried(7, len(tried), [], DelayedOutcomes.LOCKED, 1.0) is False
    assert pending.retry(7, 500) == [late]


def test_endpoints_take_turns_at_retries():
    pending = Pending()
    for endpoint_id in (7, 8, 9):
        pending.set_aside(outcome(delivery(1, endpoint_id)), DelayedOutcomes.LOCKED, 1.0)
    [first] = pending.ready(1.0, 1)
    pending.retried(first, 1, pending.retry(first, 10), DelayedOutcomes.LOCKED, 1.0)
    assert pending.ready(1.0, 3) == [8, 9, 7]


def test_an_endpoint_is_delayed_by_an_outcome_and_by_nothing_else():
    pending = Pending()
    pending.set_aside(kept(), DelayedOutcomes.LOCKED, 1.0)
    assert not pending.is_aside(7)
    assert not pending.set_aside(outcome(delivery(2)), DelayedOutcomes.LOCKED, 1.0)
    assert pending.is_aside(7)
    assert not pending.is_aside(8)


def test_delayed_outcomes_are_bounded():
    pending = Pending()
    for number in range(OUTCOMES_ASIDE_MAX):
        assert not pending.is_full
        pending.set_aside(outcome(delivery(number, number)), DelayedOutcomes.LOCKED, 1.0)
    assert pending.is_full
    pending = Pending()
    for number in range(ASIDE_MAX):
        pending.set_aside(kept(delivery(number)), DelayedOutcomes.LOCKED, 1.0)
    assert pending.is_full


def test_what_a_locked_table_stops_goes_back_to_the_front():
    pending = Pending()
    first, second, third = kept(), kept(), kept()
    for write in (first, second, third):
        pending.put(write, 1.0)
    taken = pending.take(2)
    pending.put_back(taken, 2.0)
    assert pending.take(500) == [first, second, third]
