"""What an answer means for a delivery: one pure function from what came back to what happens next.

    2xx                                 delivered, whatever else it says (or those that the endpoint names)
    webhook-delivery: abort-message     dead, aborted
    webhook-delivery: disable, 410      the endpoint is disabled, its deliveries held
    blocked by the URL itself           dead, blocked
    anything else                       tried again on the schedule; then dead, exhausted or too_old

Redirects are not followed, other 4xx are tried again: receivers answer so for faults that pass.

Never here: counting of failures over deliveries (that is the breaker's and care's), time, randomness, SQL.
"""

from __future__ import annotations

import dataclasses
from typing import Final
from urllib.parse import urlsplit

from pghookd.model.delivery import OAUTH2, Answer, DisabledReason, Fault, Outcome, Reason, Reply
from pghookd.model.verdict import Dead, Delivered, Disable, Retry, Verdict
from pghookd.webhook.retry_schedule import retry_after_s, wait

ATTEMPT_MAX: Final = 32767  # attempts.attempt is a smallint
SPARED_S: Final = 5.0  # the first wait after a fault of our own, doubled each time
SPARED_MAX_S: Final = 900.0
_ERROR_LENGTH_MAX: Final = 200  # characters
_GONE: Final = 410
_WITH_RETRY_AFTER: Final = frozenset({429, 503})
_THROTTLED: Final = frozenset({429, 502, 504})


@dataclasses.dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The settings `retry.*`, an endpoint's own schedule in their place where it has one. Times in seconds.

    Attributes:
        schedule: the wait after failure 1, 2, ...; attempts are one more.
        jitter: 0.2 is plus or minus 20 %; 0: none.
        throttle_floor_s: the least wait after a timeout, 429, 502 or 504; 0: none.
        retry_after_max_s: the longest wait that a receiver may ask for.
        age_max_s: a failure of an event older than this is its last, also on an endpoint's own schedule.
        successes: the statuses that count as success; None: any 2xx.
    """

    schedule: tuple[float, ...]
    jitter: float = 0.2
    throttle_floor_s: float = 60.0
    retry_after_max_s: float = 86400.0
    age_max_s: float = 358500.0
    successes: frozenset[int] | None = None


_DELIVERED: Final = Delivered()


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What the row of an attempt says of the answer (columns outcome, status, error)."""

    outcome: Outcome
    status: int | None = None
    error: str | None = None


_RECORDS: Final = {status: Record(Outcome.DELIVERED, status) for status in range(200, 300)}


def judge(
    answer: Answer,
    failure_n: int,
    policy: RetryPolicy,
    *,
    now_s: float,
    age_from_s: float,
    random01: float,
    spared: int = 0,
) -> Verdict:
    """Decide what happens to a delivery after an attempt.

    Args:
        answer: what came back.
        failure_n: which failure this would be, from 1: the attempt's number, less those that do not count.
        policy: the retry settings.
        now_s: Unix seconds.
        age_from_s: Unix seconds from which `age_max_s` counts.
        random01: a random number from 0 to 1, for the jitter.
        spared: attempts that do not count: those before a replay, and those that failed by our own fault.
    """
    if isinstance(answer, Fault) and answer.outcome is Outcome.FAILED:
        return _spared(failure_n, spared, policy, now_s - age_from_s, random01)
    if isinstance(answer, Reply):
        if is_success(answer.status, policy.successes):
            return _DELIVERED
        final = _final_word(answer)
    else:
        final = Dead(Reason.BLOCKED) if _is_blocked_for_good(answer) else None
    if final is not None:
        return final
    scheduled = wait(failure_n, policy.schedule, policy.jitter, random01)
    if scheduled is None or failure_n >= ATTEMPT_MAX:
        return Dead(Reason.EXHAUSTED)
    if now_s - age_from_s > policy.age_max_s:
        return Dead(Reason.TOO_OLD)
    return Retry(_wait_s(answer, scheduled, policy, now_s))


def _spared(failure_n: int, spared: int, policy: RetryPolicy, age_s: float, random01: float) -> Verdict:
    """Judge what the receiver had no part in: only age ends it, and the waits grow by themselves."""
    if age_s > policy.age_max_s:
        return Dead(Reason.TOO_OLD)
    if failure_n + spared >= ATTEMPT_MAX:
        return Dead(Reason.EXHAUSTED)
    wait_s = min(SPARED_S * 2.0 ** min(spared, 32), SPARED_MAX_S)
    return Retry(wait_s * (1.0 + policy.jitter * (2.0 * random01 - 1.0)), is_spared=True)


def pause_s(reply: Reply, policy: RetryPolicy, now_s: float) -> float:
    """Return for how many seconds the receiver asks to be left alone, by all deliveries; 0: it does not.

    `Retry-After` of a 429 or 503 (RFC 9110, 10.2.3; RFC 6585, 4), up to `retry_after_max_s`.
    """
    if reply.status not in _WITH_RETRY_AFTER:
        return 0.0
    return min(retry_after_s(reply.retry_after, now_s) or 0.0, policy.retry_after_max_s)


def record(answer: Answer, successes: frozenset[int] | None = None) -> Record:
    """Say what the row of the attempt holds; no path, query or body gets into it.

    Args:
        answer: what came back.
        successes: the policy's.
    """
    if isinstance(answer, Fault):
        return Record(answer.outcome, None, answer.error)
    known = _RECORDS.get(answer.status)
    if known is not None:
        return known if successes is None or answer.status in successes else _unwanted(answer.status)
    return Record(Outcome.REFUSED, answer.status, _redirect(answer))


def _unwanted(status: int) -> Record:
    return Record(Outcome.REFUSED, status, "success_statuses")  # why a 2xx is none, for whoever wonders


def is_success(status: int, successes: frozenset[int] | None = None) -> bool:
    """Whether a status is a success: any 2xx, nothing else (Standard Webhooks), or those 2xx that are named."""
    if not 200 <= status < 300:  # noqa: PLR2004 - the meaning of 2xx
        return False
    return successes is None or status in successes


def _final_word(reply: Reply) -> Verdict | None:
    """Return what the receiver itself asked for, if it did."""
    if reply.control == "abort-message":
        return Dead(Reason.ABORTED)
    if reply.control == "disable":
        return Disable(DisabledReason.RECEIVER)
    if reply.status == _GONE:  # RFC 9110, 15.5.11
        return Disable(DisabledReason.GONE)
    return None


def _is_blocked_for_good(fault: Fault) -> bool:
    """Whether the URL itself is refused. Not so a resolved address: one odd resolver must kill nothing."""
    name = fault.error.removeprefix(OAUTH2).partition(":")[0]
    return fault.outcome is Outcome.BLOCKED and name != "address"


def _wait_s(answer: Answer, scheduled: float, policy: RetryPolicy, now_s: float) -> float:
    least = max(scheduled, policy.throttle_floor_s) if _is_throttled(answer) else scheduled
    if isinstance(answer, Reply) and answer.status in _WITH_RETRY_AFTER:
        asked = retry_after_s(answer.retry_after, now_s)
        if asked is not None:
            return max(least, min(asked, policy.retry_after_max_s))
    return least


def _is_throttled(answer: Answer) -> bool:
    if isinstance(answer, Fault):
        return answer.outcome is Outcome.TIMEOUT
    return answer.status in _THROTTLED


def _redirect(reply: Reply) -> str | None:
    """Say where a redirect points: scheme and host alone, since paths and queries carry tokens."""
    if reply.location is None or not 300 <= reply.status < 400:  # noqa: PLR2004 - the meaning of 3xx
        return None
    try:
        to = urlsplit(reply.location)
    except ValueError:  # "Invalid IPv6 URL"
        return "redirect"
    host = to.netloc.rpartition("@")[2]
    shown = f"{to.scheme}://{host}" if to.scheme else host
    if not host or not (shown.isascii() and shown.isprintable()):
        return "redirect"
    return f"redirect: {shown}"[:_ERROR_LENGTH_MAX]
