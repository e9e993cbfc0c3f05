"""Failing endpoints as values: an endpoint's health, the facts about it, and the history of mails to its owner.

Times are microseconds since 1970; names that end in _us are also used for durations in microseconds. The rules are in
endpoint_health/incident_rules.py; endpoint_health/owner_plan.py decides about all incidents of one owner.

Never here: a decision, a clock, SQL, wording.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Final

from pghookd.settings.schema import Settings

SECOND_US: Final = 1_000_000
DAY_US: Final = 86_400 * SECOND_US
# Errors of the outcome `blocked` caused by the platform's policy (`egress.*`), not by the URL: the owner may have made
# no mistake, and only the operator can decide that. The owner can fix the others: `url`, `scheme` and `userinfo`.
POLICY_BLOCKS: Final = frozenset({"port", "name", "literal", "address"})
LOOK_EVERY_US: Final = 600 * SECOND_US  # interval between checks of an incident when nothing is due earlier


class Health(enum.StrEnum):
    """The health of an endpoint (column `incidents.state`, view `endpoint_health`)."""

    HEALTHY = "healthy"
    SHAKY = "shaky"
    FAILING = "failing"
    PARTLY_FAILING = "partly_failing"
    FLAPPING = "flapping"
    DISABLED = "disabled"
    BLOCKED = "blocked"


@dataclasses.dataclass(frozen=True, slots=True)
class IncidentPolicy:
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
    def of(cls, settings: Settings) -> IncidentPolicy:
        """Return the policy from the settings."""
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
class MailMarks:
    """The stored history of an incident's mails (column `incidents.marks`).

    Attributes:
        mailed_us: time of the first mail that reported the endpoint as failing; None if there was none yet.
        told_us: failures up to this time have been mailed.
        reminded: reminders sent.
        warned_us: time of the mail that warned that the endpoint will be disabled; None if there was none.
        disabled_told: the owner has been mailed that it is disabled.
        expiry_told: the owner has been mailed that held events will be dropped.
        owed: a mail that reported it was superseded before it was sent, so the next one must report it.
        paused_us: duration for which the disabling clock was paused.
        recovered: times of its recoveries within the last day.
        flapping_us: time since which it is flapping; None if it is not.
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


def marks_of(stored: dict[str, Any]) -> MailMarks:
    """Return the marks from stored JSON; keys that a later version added are ignored."""
    known = {f.name for f in dataclasses.fields(MailMarks)}
    values = {k: v for k, v in stored.items() if k in known}
    if "recovered" in values:
        values["recovered"] = tuple(values["recovered"])
    return MailMarks(**values)


def stored_marks(marks: MailMarks) -> dict[str, Any]:
    """Return the marks that differ from their defaults, for JSON."""
    return {
        f.name: value
        for f in dataclasses.fields(MailMarks)
        if (value := getattr(marks, f.name)) not in (f.default, ())
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Incident:
    """One row of `incidents`.

    Attributes:
        endpoint_id: the endpoint.
        health: the health as last decided.
        first_failure_us: start of the incident.
        last_failure_us: latest failure.
        last_success_us: latest 2xx since the start; None if there was none.
        recovering_us: first 2xx after the latest failure; None if there was none.
        window_us: first failure not yet covered by a closed window; None if there is none.
        successes: successful deliveries since the start.
        marks: history of its mails.
        by_filter: the latest failure was not attempted, because the endpoint's filter is slow.
        by_policy: the latest failure was blocked by the platform's own policy.
    """

    endpoint_id: int
    health: Health
    first_failure_us: int
    last_failure_us: int
    last_success_us: int | None = None
    recovering_us: int | None = None
    window_us: int | None = None
    successes: int = 0
    marks: MailMarks = MailMarks()
    by_filter: bool = False
    by_policy: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """Facts about an endpoint, read now from other tables.

    Attributes:
        enabled: True if the endpoint is enabled.
        disabled_reason: why it was disabled; None if it is enabled.
        snoozed_until_us: no mails about it before this time; None if it is not snoozed.
        failures: failed attempts since its last 2xx, or since the incident began; without those that failed on the
            daemon's side or that the platform's policy blocked.
        unsettled: its rows in backlog.
        dead: deliveries given up since the incident began, for reasons that its owner can fix.
        events_failed: distinct events that failed since its last 2xx, without those whose destination was blocked.
        days_failed: number of distinct days with such failures.
        filtering: its slow filter delays deliveries.
        held_since_us: time since which the oldest held delivery is held; None if none is held.
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
    """An incident, the facts and the time of the check; `closing` is True if the owner's window ends now."""

    incident: Incident
    facts: Facts
    now_us: int
    policy: IncidentPolicy
    closing: bool = False

    @property
    def endpoint_id(self) -> int:
        """The incident's endpoint."""
        return self.incident.endpoint_id

    @property
    def marks(self) -> MailMarks:
        """The history of the incident's mails."""
        return self.incident.marks
