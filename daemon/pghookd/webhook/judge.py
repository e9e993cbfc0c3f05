"""The verdict on a delivery: one pure function from the result of an attempt to the next step.

    2xx                                 delivered, whatever its headers (or only the statuses that the endpoint lists)
    webhook-delivery: abort-message     dead, aborted
    webhook-delivery: disable, 410      the endpoint is disabled, its deliveries held
    blocked because of the URL          dead, blocked
    anything else                       retried on the schedule; then dead, exhausted or too_old

Redirects are not followed. Other 4xx are retried, because receivers also send them for temporary faults.

Never here: counting failures over several deliveries (the breaker and endpoint_health do that), time, randomness, SQL.
"""

from __future__ import annotations

import dataclasses
from typing import Final
from urllib.parse import urlsplit

from pghookd.model.delivery import OAUTH2, Answer, DisabledReason, Fault, Outcome, Reason, Reply
from pghookd.model.verdict import Dead, Delivered, Disable, Retry, Verdict
from pghookd.webhook.retry_schedule import retry_after_s, wait

ATTEMPT_MAX: Final = 32767  # attempts.attempt is a smallint
SPARED_S: Final = 5.0  # the first wait after a fault on the daemon's side; doubled each time
SPARED_MAX_S: Final = 900.0
_ERROR_LENGTH_MAX: Final = 200  # characters
_GONE: Final = 410
_WITH_RETRY_AFTER: Final = frozenset({429, 503})
_THROTTLED: Final = frozenset({429, 502, 504})


@dataclasses.dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The settings `retry.*`, or an endpoint's own schedule and statuses where it has them. Times in seconds.

    Attributes:
        schedule: the waits after failure 1, 2, ...; there is one attempt more than waits.
        jitter: 0.2 is plus or minus 20 %; 0 switches it off.
        throttle_floor_s: the shortest wait after a timeout, 429, 502 or 504; 0 switches it off.
        retry_after_max_s: the longest wait that a receiver may request.
        age_max_s: an event older than this is not retried after a failure, even on an endpoint's own schedule.
        successes: the statuses that count as success; None if any 2xx does.
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
    """The columns `outcome`, `status` and `error` of an attempt's row."""

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
        answer: the result of the attempt.
        failure_n: the number of this failure, from 1: the attempt's number minus the attempts that do not count.
        policy: the retry settings.
        now_s: Unix seconds.
        age_from_s: Unix seconds from which `age_max_s` counts.
        random01: a random number from 0 to 1, for the jitter.
        spared: attempts that do not count: those before a replay, and those that failed on the daemon's side.
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
    """Judge a failure on the daemon's side: age or ATTEMPT_MAX ends the delivery, and waits double per failure."""
    if age_s > policy.age_max_s:
        return Dead(Reason.TOO_OLD)
    if failure_n + spared >= ATTEMPT_MAX:
        return Dead(Reason.EXHAUSTED)
    wait_s = min(SPARED_S * 2.0 ** min(spared, 32), SPARED_MAX_S)
    return Retry(wait_s * (1.0 + policy.jitter * (2.0 * random01 - 1.0)), is_spared=True)


def pause_s(reply: Reply, policy: RetryPolicy, now_s: float) -> float:
    """Return the seconds for which the receiver requests that all deliveries pause, or 0 if it does not.

    This is `Retry-After` of a 429 or 503 (RFC 9110, 10.2.3; RFC 6585, 4), at most `retry_after_max_s`.
    """
    if reply.status not in _WITH_RETRY_AFTER:
        return 0.0
    return min(retry_after_s(reply.retry_after, now_s) or 0.0, policy.retry_after_max_s)


def record(answer: Answer, successes: frozenset[int] | None = None) -> Record:
    """Return the values for the attempt's row; they contain no path, query or body.

    Args:
        answer: the result of the attempt.
        successes: `RetryPolicy.successes`.
    """
    if isinstance(answer, Fault):
        return Record(answer.outcome, None, answer.error)
    known = _RECORDS.get(answer.status)
    if known is not None:
        return known if successes is None or answer.status in successes else _unwanted(answer.status)
    return Record(Outcome.REFUSED, answer.status, _redirect(answer))


def _unwanted(status: int) -> Record:
    return Record(Outcome.REFUSED, status, "success_statuses")  # explains why this 2xx was not accepted


def is_success(status: int, successes: frozenset[int] | None = None) -> bool:
    """Return True if a status is a success: any 2xx (Standard Webhooks), or only the 2xx in `successes` if given."""
    if not 200 <= status < 300:  # noqa: PLR2004 - the meaning of 2xx
        return False
    return successes is None or status in successes


def _final_word(reply: Reply) -> Verdict | None:
    """Return the verdict that the receiver itself requested, or None if it requested none."""
    if reply.control == "abort-message":
        return Dead(Reason.ABORTED)
    if reply.control == "disable":
        return Disable(DisabledReason.RECEIVER)
    if reply.status == _GONE:  # RFC 9110, 15.5.11
        return Disable(DisabledReason.GONE)
    return None


def _is_blocked_for_good(fault: Fault) -> bool:
    """Return True if the URL itself is blocked; a blocked address is retried, because a resolver may be wrong."""
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
    """Return the target of a redirect, or None if there is none; only scheme and host, as the rest may hold tokens."""
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
