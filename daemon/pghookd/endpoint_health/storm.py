"""Storms: so many sites fail at once that the fault is probably the platform's own.

A storm holds first mails and the disabling clocks, so nobody must be able to make one alone or to keep one up:

- a site counts once, however many endpoints of it fail, and so does a registrable domain;
- only endpoints that began to fail within HOLD_MAX_US count, so what is dead for long keeps no storm alive;
- a storm holds each endpoint's first mail, and each endpoint's clock, for HOLD_MAX_US in all. Both bounds are computed
  from the endpoint's own row, so that neither a restart nor a new storm begins them anew.

Never here: a clock, SQL, words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

from pghookd.endpoint_health.incident import LOOK_EVERY_US, SECOND_US, Case, IncidentPolicy
from pghookd.model.domains import registrable_of

HOLD_MAX_US: Final = (
    6 * 3600 * SECOND_US
)  # a platform's own outage is noticed before this; an owner waits no longer
SITES_MIN: Final = 5  # failing sites that make a storm at least, whatever their share


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """How far a trouble reaches.

    Attributes:
        sites: that began to fail lately, still fail, and whose owners were not told.
        domains: registrable domains among their hosts, one host a site.
        traffic: sites that had work lately, the failing ones included.
    """

    sites: int
    domains: int
    traffic: int


def extent(failing: Iterable[tuple[str, str]], traffic: int) -> Extent:
    """Measure a trouble.

    Args:
        failing: site and URL of endpoints that may be evidence; the first URL of a site counts.
        traffic: sites that had work lately.
    """
    first: dict[str, str] = {}
    for site_id, url in failing:
        first.setdefault(site_id, url)
    return Extent(len(first), len({registrable_of(url) for url in first.values()}), max(traffic, len(first)))


def is_storm(found: Extent, *, share: float, hosts_min: int) -> bool:
    """Return True if a trouble reaches so far that it is probably the platform's own.

    Args:
        found: how far it reaches.
        share: of the sites with traffic that makes a storm; 0: never.
        hosts_min: and over more domains than this.
    """
    if not share or found.sites < SITES_MIN or found.domains <= hosts_min:
        return False
    return found.sites > share * found.traffic


def evidence_from_us(now_us: int, policy: IncidentPolicy) -> tuple[int, int]:
    """Return from when on an endpoint must have begun to fail, and must have failed again, to be evidence."""
    return now_us - HOLD_MAX_US, now_us - 2 * max(policy.first_wait_us, LOOK_EVERY_US)


def holds_mail(case: Case) -> bool:
    """Return True if a storm may still hold the first mail about an endpoint."""
    return case.now_us - case.incident.first_failure_us < HOLD_MAX_US


def holds_clock(case: Case) -> bool:
    """Return True if a storm may still stop the clock that leads to an endpoint being switched off."""
    return case.marks.paused_us < HOLD_MAX_US
