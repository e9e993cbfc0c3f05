"""Failing endpoints as values: how an endpoint is, what is known of it, and what its owner knows already.

Times are microseconds since 1970; durations are microseconds too where the name ends in _us. The rules are in
endpoint_health/incident_rules.py, what one look at an owner decides is in endpoint_health/owner_plan.py.

Never here: a decision, a clock, SQL, words.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, Final

from pghookd.settings.schema import Settings

SECOND_US: Final = 1_000_000
DAY_US: Final = 86_400 * SECOND_US
# Errors of the outcome `blocked` by which the platform's policy (`egress.*`) is to blame, and not the URL: the owner
# may have done nothing wrong, and the operator alone can tell. `url`, `scheme` and `userinfo` are the owner's to mend.
POLICY_BLOCKS: Final = frozenset({"port", "name", "literal", "address"})
LOOK_EVERY_US: Final = 600 * SECOND_US  # an incident is looked at this often where nothing is due


class Health(enum.StrEnum):
    """How an endpoint is (column `incidents.state`, view `endpoint_health`)."""

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
        """Take from the settings what is decided with."""
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
    """What the life cycle remembers of an endpoint (column `incidents.marks`).

    Attributes:
        mailed_us: when its owner was first told that it fails; None: not yet.
        told_us: failures up to here are told.
        reminded: reminders sent.
        warned_us: when its owner was told that it will be switched off.
        disabled_told: its owner knows that it is off.
        expiry_told: its owner knows that held events will be dropped.
        owed: a mail that told of it was folded into the next one before it went out.
        paused_us: how long the clock that leads to its being switched off has stood still.
        recovered: when it recovered, as far as within a day.
        flapping_us: since when it is flapping.
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
    """Read marks back from JSON; what a later version added is left alone."""
    known = {f.name for f in dataclasses.fields(MailMarks)}
    values = {k: v for k, v in stored.items() if k in known}
    if "recovered" in values:
        values["recovered"] = tuple(values["recovered"])
    return MailMarks(**values)


def stored_marks(marks: MailMarks) -> dict[str, Any]:
    """Return what differs from the beginning, for JSON."""
    return {
        f.name: value
        for f in dataclasses.fields(MailMarks)
        if (value := getattr(marks, f.name)) not in (f.default, ())
    }


@dataclasses.dataclass(frozen=True, slots=True)
class Incident:
    """One row of `incidents`.

    Attributes:
        endpoint_id: whose.
        health: as last decided.
        first_failure_us: when it began.
        last_failure_us: its latest failure.
        last_success_us: its latest 2xx since it began; None: none.
        recovering_us: its first 2xx after its latest failure; None: none.
        window_us: the first failure that no window has closed over; None: there is none.
        successes: deliveries since it began.
        marks: what was told.
        by_filter: what failed last was not tried: the filter is slow.
        by_policy: what failed last was blocked by the platform's own policy.
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
    """What the rows of other tables say of an endpoint now.

    Attributes:
        enabled: whether it is on.
        disabled_reason: who switched it off.
        snoozed_until_us: no mails about it until then.
        failures: failed attempts since its last 2xx, or since it began; not those that were our own fault, nor those
            that our policy blocked.
        unsettled: its rows in backlog.
        dead: deliveries given up since it began, for reasons that its owner can mend.
        events_failed: distinct events that failed since its last 2xx; not those whose destination was blocked.
        days_failed: the days on which they did.
        filtering: its filter, which is slow, holds deliveries up.
        held_since_us: since when the oldest held delivery is held; None: none is.
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
    """An incident, the facts, and the moment they are looked at; `closing`: the owner's window has run its time."""

    incident: Incident
    facts: Facts
    now_us: int
    policy: IncidentPolicy
    closing: bool = False

    @property
    def endpoint_id(self) -> int:
        """Whose it is."""
        return self.incident.endpoint_id

    @property
    def marks(self) -> MailMarks:
        """What was told so far."""
        return self.incident.marks
