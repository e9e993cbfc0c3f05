"""Turns a batch of the recorder's writes, a closed union, into rows.

Within a batch the last write about a delivery wins. Memory knows whether a delivery has a row in `backlog`, so that
the healthy path neither reads nor deletes one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Mapping
from typing import Final, assert_never

from pghookd.model.delivery import AttemptCause, Delivery, Outcome, Reason, State
from pghookd.model.outcome import UNSENT, AttemptWrite, BacklogWrite, DeadWrite, Write
from pghookd.model.verdict import Dead, Delivered, Disable, Retry, Verdict

_TROUBLING: Final = frozenset({Reason.FILTER_SLOW})  # without an attempt, for causes that an owner can fix


def is_plain(write: Write) -> bool:
    """Return True if the write needs only a row of `attempts`, so that no lock on another table can block it."""
    return (
        isinstance(write, AttemptWrite)
        and isinstance(write.verdict, Delivered)
        and not write.delivery.in_backlog
    )


def key_of(write: Write) -> tuple[int, int]:
    """Return the event and endpoint of a write, the key of its row in `backlog`."""
    return write.delivery.event.event_id, write.delivery.endpoint_id


@dataclasses.dataclass(slots=True)
class Trouble:
    """The results in a batch for an endpoint that fails or has failed recently. Times are microseconds since 1970.

    Attributes:
        first_failure_us: the first failed attempt; None if no attempt failed.
        failed: the latest failed attempt, or a write without an attempt; None if there is neither.
        first_success_us: the first 2xx after it; None if there was none.
        last_success_us: the latest 2xx of all; None if there was none.
        successes: number of 2xx.
    """

    first_failure_us: int | None = None
    failed: Write | None = None
    first_success_us: int | None = None
    last_success_us: int | None = None
    successes: int = 0

    def note(self, write: AttemptWrite) -> None:
        """Add the next attempt; attempts come in the order of their outcomes."""
        at_us = write.attempted_at_us
        if write.outcome is Outcome.DELIVERED:
            self.successes += 1
            self.last_success_us = max(at_us, self.last_success_us or at_us)
            self.first_success_us = at_us if self.first_success_us is None else self.first_success_us
        else:
            self.first_failure_us = at_us if self.first_failure_us is None else self.first_failure_us
            self.failed, self.first_success_us = write, None

    def note_unsent(self, write: BacklogWrite | DeadWrite) -> None:
        """Add a delivery that should have been attempted but was not; its failure time is that of recording."""
        self.failed, self.first_success_us = write, None

    def then(self, later: Trouble) -> None:
        """Merge the results of a later batch for the same endpoint."""
        if later.failed is not None:
            self.failed, self.first_success_us = later.failed, later.first_success_us
        elif self.first_success_us is None:
            self.first_success_us = later.first_success_us
        if self.first_failure_us is None:
            self.first_failure_us = later.first_failure_us
        if later.last_success_us is not None:
            self.last_success_us = max(later.last_success_us, self.last_success_us or later.last_success_us)
        self.successes += later.successes

    def row(self, endpoint_id: int, failed: Write) -> tuple[object, ...]:
        """Return the row of note_failures."""
        what: tuple[object, ...]
        if isinstance(failed, AttemptWrite):
            at_us, attempt = failed.attempted_at_us, failed.delivery.attempts + 1
            what = (failed.outcome.value, failed.status, failed.error)
        else:
            at_us, attempt = None, 0
            what = (UNSENT, None, failed.reason.value)
        times = (self.first_failure_us, at_us, self.last_success_us, self.first_success_us)
        return (endpoint_id, *times, self.successes, *what, failed.delivery.event.event_id, attempt)


def failures(troubles: Mapping[int, Trouble]) -> list[tuple[object, ...]]:
    """Return the rows of note_failures."""
    return [
        trouble.row(endpoint_id, trouble.failed)
        for endpoint_id, trouble in sorted(troubles.items())
        if trouble.failed is not None
    ]


def successes(troubles: Mapping[int, Trouble]) -> list[tuple[object, ...]]:
    """Return the rows of note_successes."""
    return [
        (endpoint_id, trouble.first_success_us, trouble.last_success_us, trouble.successes)
        for endpoint_id, trouble in sorted(troubles.items())
        if trouble.failed is None
    ]


@dataclasses.dataclass(slots=True)
class Batch:
    """The rows of one transaction, with columns in the order of the statements.

    `evidence` has the last column of `attempts`, by the index of the row: successes have none. `troubles` are not part
    of it: they are noted afterwards (delivery/recording/notes).
    """

    attempts: list[tuple[object, ...]] = dataclasses.field(default_factory=list)
    evidence: dict[int, str] = dataclasses.field(default_factory=dict)
    backlog: list[tuple[object, ...]] = dataclasses.field(default_factory=list)
    cleared: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    dead: list[tuple[object, ...]] = dataclasses.field(default_factory=list)
    disabled: dict[int, str] = dataclasses.field(default_factory=dict)
    troubles: dict[int, Trouble] = dataclasses.field(default_factory=dict)

    @property
    def single(self) -> bool:
        """Return True if one statement suffices, so that no transaction is needed around it."""
        return not (self.backlog or self.cleared or self.dead or self.disabled)


def batch_of(writes: Iterable[Write], watched: Container[int] = ()) -> Batch:
    """Turn writes into rows; a later write about the same delivery replaces the state of an earlier one.

    Args:
        writes: in the order in which they came.
        watched: endpoints that failed recently, whose successes are noted.
    """
    batch = Batch()
    states: dict[tuple[int, int], Write] = {}
    for write in writes:
        delivery = write.delivery
        if isinstance(write, AttemptWrite):
            if write.evidence is not None:
                batch.evidence[len(batch.attempts)] = write.evidence
            batch.attempts.append(_attempt_row(write))
            # A success counts if the endpoint was in trouble before, or has failed in this batch.
            if (
                write.outcome is not Outcome.DELIVERED
                or (watched and delivery.endpoint_id in watched)
                or (batch.troubles and delivery.endpoint_id in batch.troubles)
            ):
                _note(batch, write)
            if isinstance(write.verdict, Delivered) and not delivery.in_backlog:
                if states:
                    states.pop((delivery.event.event_id, delivery.endpoint_id), None)
                continue
        elif write.reason in _TROUBLING and not _is_test(delivery):
            batch.troubles.setdefault(delivery.endpoint_id, Trouble()).note_unsent(write)
        states[delivery.event.event_id, delivery.endpoint_id] = write
    for write in states.values():
        _add_state(batch, write)
    return batch


def _note(batch: Batch, write: AttemptWrite) -> None:
    """Note a failure, or a success after one; our own faults and tests do not count as trouble."""
    if write.outcome is not Outcome.FAILED and not _is_test(write.delivery):
        batch.troubles.setdefault(write.delivery.endpoint_id, Trouble()).note(write)


def _is_test(delivery: Delivery) -> bool:
    """Return True for a delivery of `send_test`, addressed to this endpoint alone: tried once, and not reported."""
    return delivery.event.endpoint_id == delivery.endpoint_id


def _attempt_row(write: AttemptWrite) -> tuple[object, ...]:
    delivery = write.delivery
    event = delivery.event
    cause = delivery.cause if event.endpoint_id is None else AttemptCause.TEST
    return (
        event.event_id,
        delivery.endpoint_id,
        delivery.attempts + 1,
        write.attempted_at_us,
        write.duration_ms,
        write.status,
        write.revision,
        write.outcome.value,
        write.error,
        write.response,
        event.site_id,
        cause.value,
    )


def _add_state(batch: Batch, write: Write) -> None:
    match write:
        case AttemptWrite():
            _add_verdict(batch, write.delivery, write.verdict)
        case BacklogWrite():
            delivery = write.delivery
            _keep(batch, delivery, write.state, write.reason, delivery.attempts, write.wait_s, delivery.cause)
        case DeadWrite():
            _die(batch, write.delivery, write.reason, write.delivery.attempts)
        case _:
            assert_never(write)


def _add_verdict(batch: Batch, delivery: Delivery, verdict: Verdict) -> None:
    attempts = delivery.attempts + 1
    match verdict:
        case Delivered():
            batch.cleared.append((delivery.event.event_id, delivery.endpoint_id))
        case Retry() if _is_test(delivery):
            _die(batch, delivery, Reason.EXHAUSTED, attempts)
        case Retry():
            _keep(
                batch,
                delivery,
                State.WAITING,
                Reason.RETRY,
                attempts,
                verdict.wait_s,
                AttemptCause.RETRY,
                spared=verdict.is_spared,
            )
        case Dead():
            _die(batch, delivery, verdict.reason, attempts)
        case Disable():
            batch.disabled[delivery.endpoint_id] = verdict.reason.value
            if _is_test(delivery):  # the receiver's request counts, but a test is not sent a second time
                _die(batch, delivery, Reason.EXHAUSTED, attempts)
            else:
                _keep(batch, delivery, State.HELD, Reason.DISABLED, attempts, None, AttemptCause.RETRY)
        case _:
            assert_never(verdict)


def _keep(
    batch: Batch,
    delivery: Delivery,
    state: State,
    reason: Reason,
    attempts: int,
    wait_s: float | None,
    cause: AttemptCause,
    *,
    spared: bool = False,
) -> None:
    event = delivery.event
    line = None if delivery.line is None else delivery.line.name
    place = (event.event_id, delivery.endpoint_id, event.site_id)
    before = delivery.attempts_before + spared
    batch.backlog.append((*place, state.value, reason.value, attempts, wait_s, line, before, cause.value))


def _die(batch: Batch, delivery: Delivery, reason: Reason, attempts: int) -> None:
    event = delivery.event
    batch.dead.append((event.event_id, delivery.endpoint_id, event.site_id, reason.value, attempts))
    if delivery.in_backlog:
        batch.cleared.append((event.event_id, delivery.endpoint_id))
