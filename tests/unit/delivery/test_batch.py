"""How writes become rows: the last word on a delivery wins; the healthy path touches one table."""

from __future__ import annotations

from pghookd.delivery.recording.batch import batch_of, failures
from pghookd.model.delivery import AttemptCause, Delivery, DisabledReason, Event, Outcome, Reason, State
from pghookd.model.outcome import AttemptWrite, BacklogWrite, DeadWrite
from pghookd.model.verdict import Dead, Delivered, Disable, Retry


def delivery(event_id=1, endpoint_id=7, *, attempts=0, in_backlog=False):
    made = Delivery(Event(event_id, "site", "order_created", 5, b"{}"), endpoint_id, attempts, 0.0)
    made.in_backlog = in_backlog
    return made


def attempted(to, verdict, outcome=Outcome.REFUSED, status=500):
    return AttemptWrite(to, outcome, status, None, b"no", 1_000_000, 12.5, verdict, 4)


def delivered(to):
    return attempted(to, Delivered(), Outcome.DELIVERED, 200)


def test_a_success_on_the_healthy_path_is_one_row_and_one_statement():
    batch = batch_of([delivered(delivery())])
    assert batch.attempts == [(1, 7, 1, 1_000_000, 12.5, 200, 4, "delivered", None, b"no", "site", "live")]
    assert (batch.backlog, batch.cleared, batch.dead, batch.disabled) == ([], [], [], {})
    assert batch.single


def test_evidence_is_kept_by_the_row_of_its_attempt():
    failed = attempted(delivery(2), Retry(1.0))
    failed.evidence = '{"ms":{}}'
    batch = batch_of([delivered(delivery(1)), BacklogWrite(delivery(9), State.PARKED, Reason.PAUSED), failed])
    assert batch.evidence == {1: '{"ms":{}}'}
    assert batch.attempts[1][0] == 2


def test_a_success_clears_only_deliveries_with_a_row():
    batch = batch_of([delivered(delivery(1)), delivered(delivery(2, attempts=3, in_backlog=True))])
    assert batch.cleared == [(2, 7)]
    assert [row[2] for row in batch.attempts] == [1, 4]
    assert not batch.single


def test_an_event_for_one_endpoint_alone_is_a_test():
    to = delivery()
    to.event.endpoint_id = 7
    assert [row[-1] for row in batch_of([delivered(to), delivered(delivery(2))]).attempts] == ["test", "live"]


def test_a_failure_waits_for_its_next_attempt():
    batch = batch_of([attempted(delivery(attempts=2), Retry(30.0))])
    assert batch.backlog == [(1, 7, "site", "waiting", "retry", 3, 30.0, None, 0, "retry")]
    assert len(batch.attempts) == 1


def test_an_attempt_that_failed_by_our_own_fault_is_not_counted():
    again = batch_of([attempted(delivery(attempts=2), Retry(5.0, is_spared=True))])
    assert again.backlog == [(1, 7, "site", "waiting", "retry", 3, 5.0, None, 1, "retry")]


def test_a_dead_one_leaves_the_backlog_if_it_was_there():
    for in_backlog in [False, True]:
        batch = batch_of([attempted(delivery(attempts=9, in_backlog=in_backlog), Dead(Reason.EXHAUSTED))])
        assert batch.dead == [(1, 7, "site", "exhausted", 10)]
        assert batch.cleared == ([(1, 7)] if in_backlog else [])
        assert batch.backlog == []


def test_death_without_an_attempt_counts_none():
    batch = batch_of([DeadWrite(delivery(attempts=2, in_backlog=True), Reason.NO_ENDPOINT)])
    assert (batch.attempts, batch.dead, batch.cleared) == ([], [(1, 7, "site", "no_endpoint", 2)], [(1, 7)])


def test_a_disabling_answer_holds_its_own_delivery_and_says_why():
    batch = batch_of([attempted(delivery(), Disable(DisabledReason.GONE))])
    assert batch.disabled == {7: "gone"}
    assert batch.backlog == [(1, 7, "site", "held", "disabled", 1, None, None, 0, "retry")]


def test_rows_without_an_attempt_keep_the_number_of_attempts():
    to = delivery(attempts=4)
    to.cause = AttemptCause.REPLAY
    batch = batch_of([BacklogWrite(to, State.PARKED, Reason.LANE_FULL)])
    assert batch.backlog == [(1, 7, "site", "parked", "lane_full", 4, None, None, 0, "replay")]
    assert not batch.single


def test_the_last_word_on_a_delivery_wins():
    same = delivery()
    batch = batch_of([attempted(same, Retry(30.0)), BacklogWrite(same, State.HELD, Reason.DISABLED)])
    assert [row[3] for row in batch.backlog] == ["held"]
    assert len(batch.attempts) == 1


def test_a_success_after_a_row_was_asked_for_leaves_no_row():
    same = delivery()
    batch = batch_of([BacklogWrite(same, State.WAITING, Reason.QUEUED), delivered(same)])
    assert batch.backlog == []


def test_a_checkpoint_then_a_success_in_the_same_batch_clears_the_row():
    same = delivery(in_backlog=True)
    batch = batch_of([BacklogWrite(same, State.WAITING, Reason.QUEUED), delivered(same)])
    assert (batch.backlog, batch.cleared) == ([], [(1, 7)])


def test_two_endpoints_of_one_event_do_not_replace_each_other():
    batch = batch_of([attempted(delivery(1, 7), Retry(1.0)), attempted(delivery(1, 8), Retry(2.0))])
    assert [row[1] for row in batch.backlog] == [7, 8]


def test_an_empty_batch_is_nothing():
    batch = batch_of([])
    assert (batch.attempts, batch.single) == ([], True)


# Tests of an endpoint: addressed to it alone --------------------------------------------------------------------


def addressed(*, in_backlog=False):
    made = delivery(in_backlog=in_backlog)
    made.event.endpoint_id = made.endpoint_id
    return made


def test_a_test_that_fails_is_dead_at_once_and_nobodys_trouble():
    batch = batch_of([attempted(addressed(in_backlog=True), Retry(30.0))], watched={7})
    assert batch.dead == [(1, 7, "site", "exhausted", 1)]
    assert (batch.backlog, batch.cleared, batch.troubles) == ([], [(1, 7)], {})


def test_a_test_that_works_says_nothing_of_a_recovery():
    batch = batch_of([delivered(addressed())], watched={7})
    assert batch.single


def test_a_test_may_switch_its_endpoint_off_and_is_not_held():
    batch = batch_of([attempted(addressed(), Disable(DisabledReason.GONE))])
    assert batch.disabled == {7: "gone"}
    assert batch.dead == [(1, 7, "site", "exhausted", 1)]
    assert batch.backlog == []


def test_an_event_for_another_endpoint_alone_is_not_a_test_of_this_one():
    other = addressed()
    other.event.endpoint_id = 8
    assert batch_of([attempted(other, Retry(30.0))]).backlog


def test_what_is_not_even_tried_is_trouble_if_its_owner_can_mend_it():
    batch = batch_of(
        [
            BacklogWrite(delivery(1, 7), State.PARKED, Reason.FILTER_SLOW),
            DeadWrite(delivery(2, 8), Reason.TOO_LARGE),
            DeadWrite(delivery(3, 9), Reason.INVALID),
            BacklogWrite(delivery(4, 10), State.PARKED, Reason.LANE_FULL),
            DeadWrite(delivery(5, 11), Reason.DUPLICATE),
        ]
    )
    assert failures(batch.troubles) == [
        (7, None, None, None, None, 0, "unsent", None, "filter_slow", 1, 0),
    ]


def test_a_test_that_a_slow_filter_holds_up_is_nobodys_trouble():
    tested = delivery(1, 7)
    tested.event.endpoint_id = 7
    assert failures(batch_of([BacklogWrite(tested, State.PARKED, Reason.FILTER_SLOW)]).troubles) == []


def test_what_is_not_tried_after_a_success_or_a_failure_is_the_latest():
    slow = BacklogWrite(delivery(3), State.PARKED, Reason.FILTER_SLOW)
    [row] = failures(
        batch_of([attempted(delivery(1), Retry(1.0)), delivered(delivery(2)), slow], {7}).troubles
    )
    assert row == (7, 1_000_000, None, 1_000_000, None, 1, "unsent", None, "filter_slow", 3, 0)
    [row] = failures(batch_of([slow, attempted(delivery(1), Retry(1.0))], {7}).troubles)
    assert row[1:3] == (1_000_000, 1_000_000)
    assert row[6:] == ("refused", 500, None, 1, 1)


def test_a_success_after_the_first_failure_in_one_batch_is_noted():
    [row] = failures(batch_of([attempted(delivery(1), Retry(1.0)), delivered(delivery(2))]).troubles)
    assert row[:6] == (7, 1_000_000, 1_000_000, 1_000_000, 1_000_000, 1)
    assert failures(batch_of([delivered(delivery(2)), attempted(delivery(1), Retry(1.0))]).troubles)[0][
        3:6
    ] == (
        None,
        None,
        0,
    )


# Troubles of several batches ----------------------------------------------------------------------------------------


def test_troubles_of_two_batches_say_what_one_batch_would():
    at = iter(range(1, 10**6))

    def attempt(*, works):
        write = delivered(delivery(1)) if works else attempted(delivery(1), Retry(1.0))
        write.attempted_at_us = next(at)
        return write

    for pattern in range(2**6):
        writes = [attempt(works=bool(pattern >> n & 1)) for n in range(6)]
        whole = batch_of(writes, {7}).troubles[7]
        for cut in range(1, 6):
            parts = [batch_of(part, {7}).troubles[7] for part in (writes[:cut], writes[cut:])]
            parts[0].then(parts[1])
            assert parts[0] == whole, (pattern, cut)
