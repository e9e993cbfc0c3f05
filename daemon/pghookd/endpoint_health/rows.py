"""Maps rows to values: cases, and sections of a mail."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import orjson

from pghookd.endpoint_health.incident import (
    POLICY_BLOCKS,
    Case,
    Facts,
    Health,
    Incident,
    IncidentPolicy,
    marks_of,
)
from pghookd.endpoint_health.incident_rules import calm_since_us, disable_us, works_partly
from pghookd.model.delivery import OAUTH2, Outcome, Reason
from pghookd.model.outcome import UNSENT
from pghookd.owner_mail.digest import (
    EVENT_IDS_MAX,
    TYPES_MAX,
    Fate,
    Kind,
    MailSection,
    cause_of,
    clean_line,
    shown_url,
)
from pghookd.postgres.client import Row


def case_of(row: Row, now_us: int, policy: IncidentPolicy) -> Case:
    """Return the Case from a row of read_cases."""
    incident = Incident(
        endpoint_id=row["endpoint_id"],
        health=Health(row["state"]),
        first_failure_us=row["first_failure_at"],
        last_failure_us=row["last_failure_at"],
        last_success_us=row["last_success_at"],
        recovering_us=row["recovering_at"],
        window_us=row["window_at"],
        successes=row["successes"],
        by_filter=row["last_outcome"] == UNSENT and row["last_error"] == Reason.FILTER_SLOW,
        by_policy=row["last_outcome"] == Outcome.BLOCKED and _name_of(row["last_error"]) in POLICY_BLOCKS,
        marks=marks_of(orjson.loads(row["marks"])),
    )
    facts = Facts(
        enabled=row["enabled"],
        disabled_reason=row["disabled_reason"],
        snoozed_until_us=row["snoozed_until"],
        failures=row["failures"],
        unsettled=int(row["unsettled"]),
        dead=row["dead"],
        events_failed=row["events_failed"],
        days_failed=row["days_failed"],
        filtering=row["filtering"],
        held_since_us=row["held_since"],
    )
    return Case(incident, facts, now_us, policy)


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """The totals of the rows of read_told."""

    types: tuple[tuple[str, int], ...]
    failed: int
    late: int
    dead_by: tuple[tuple[str, int], ...]
    event_ids: tuple[str, ...]


def types_of(rows: Sequence[Row]) -> Told:
    """Return the totals of the rows of read_told."""
    ids = sorted(webhook_id for row in rows for webhook_id in row["webhook_ids"] or ())
    types = tuple((clean_line(row["type"]), row["told"]) for row in rows if row["told"])
    return Told(
        types=types[:TYPES_MAX],
        failed=sum(row["failed"] for row in rows),
        late=sum(row["late"] for row in rows),
        dead_by=tuple((fate.value, count) for fate in Fate if (count := sum(row[fate] for row in rows))),
        event_ids=tuple(ids[:EVENT_IDS_MAX]),
    )


def _name_of(error: str | None) -> str:
    """Return the constant name in an error, without the prefix of a token server and without a detail."""
    return (error or "").removeprefix(OAUTH2).partition(":")[0]


def _outcome_of(stored: str) -> Outcome | None:
    return None if stored == UNSENT else Outcome(stored)


def section_of(row: Row, case: Case, kind: Kind, told: Told, waiting: Row | None) -> MailSection:
    """Return the MailSection from a row of read_cases and its totals, without the receiver's answer."""
    facts, incident = case.facts, case.incident
    ended = kind is Kind.RECOVERED
    held_until = None if facts.held_since_us is None else facts.held_since_us + case.policy.held_us
    return MailSection(
        kind=kind,
        endpoint_id=case.endpoint_id,
        site_id=row["site_id"],
        site_name=clean_line(row["site_name"]),
        url=shown_url(row["url"]),
        cause=cause_of(_outcome_of(row["last_outcome"]), row["last_status"], row["last_error"]),
        since_us=incident.first_failure_us,
        last_failure_us=incident.last_failure_us,
        time_zone=row["time_zone"],
        description=clean_line(row["description"]) or None,
        partly=works_partly(case) and not ended,
        last_success_us=incident.last_success_us,
        ended_us=calm_since_us(case) if ended else None,
        types=told.types,
        failed=told.failed,
        total=told.failed + max(0, incident.successes - told.late),
        late=told.late,
        dead=sum(count for _, count in told.dead_by),
        dead_by=told.dead_by,
        waiting=waiting["waiting"] if waiting else 0,
        held=waiting["held"] if waiting else 0,
        status=row["last_status"],
        error=clean_line(row["last_error"]) or None,
        next_attempt_us=waiting["next_attempt_at"] if waiting and not ended else None,
        disable_at_us=None if ended else disable_us(case),
        disabled_reason=None if facts.enabled else facts.disabled_reason,
        held_until_us=held_until,
        changed_us=None if ended else row["changed_at"],
        changed=() if ended else tuple(row["changed"] or ()),
        event_ids=told.event_ids,
    )
