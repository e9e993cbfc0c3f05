"""Storms: so many sites fail at once that the fault is probably the platform's own.

A storm delays first mails and pauses disabling clocks, so no single customer may cause or prolong one:

- a site counts once, however many of its endpoints fail, and so does a registrable domain;
- only endpoints that began to fail within HOLD_MAX_US count, so endpoints that failed earlier prolong no storm;
- a storm delays each endpoint's first mail, and each endpoint's clock, for HOLD_MAX_US in total. Both limits are
  computed from the endpoint's own row, so that neither a restart nor a new storm resets them.

Never here: a clock, SQL, wording.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

from pghookd.endpoint_health.incident import LOOK_EVERY_US, SECOND_US, Case, IncidentPolicy
from pghookd.model.domains import registrable_of

HOLD_MAX_US: Final = (
    6 * 3600 * SECOND_US
)  # operators notice an outage of the platform earlier; an owner's mail is not delayed longer
SITES_MIN: Final = 5  # minimum number of failing sites in a storm, whatever their share


@dataclasses.dataclass(frozen=True, slots=True)
class Extent:
    """The extent of current failures.

    Attributes:
        sites: sites that recently began to fail, still fail, and whose owners were not mailed about it.
        domains: registrable domains among their hosts, one host per site.
        traffic: sites that recently had deliveries, including the failing ones.
    """

    sites: int
    domains: int
    traffic: int


def extent(failing: Iterable[tuple[str, str]], traffic: int) -> Extent:
    """Return the extent of current failures.

    Args:
        failing: site and URL of endpoints that may be evidence; only the first URL of a site counts.
        traffic: number of sites that recently had deliveries.
    """
    first: dict[str, str] = {}
    for site_id, url in failing:
        first.setdefault(site_id, url)
    return Extent(len(first), len({registrable_of(url) for url in first.values()}), max(traffic, len(first)))


def is_storm(found: Extent, *, share: float, hosts_min: int) -> bool:
    """Return True if failures are so widespread that the fault is probably the platform's own.

    Args:
        found: the extent of current failures.
        share: a storm needs more than this share of the sites with traffic; 0 if there are never storms.
        hosts_min: a storm also needs more domains than this.
    """
    if not share or found.sites < SITES_MIN or found.domains <= hosts_min:
        return False
    return found.sites > share * found.traffic


def evidence_from_us(now_us: int, policy: IncidentPolicy) -> tuple[int, int]:
    """Return the earliest times that an endpoint's first and latest failure may have to count as evidence."""
    return now_us - HOLD_MAX_US, now_us - 2 * max(policy.first_wait_us, LOOK_EVERY_US)


def holds_mail(case: Case) -> bool:
    """Return True if a storm may still delay the first mail about an endpoint."""
    return case.now_us - case.incident.first_failure_us < HOLD_MAX_US


def holds_clock(case: Case) -> bool:
    """Return True if a storm may still pause an endpoint's disabling clock."""
    return case.marks.paused_us < HOLD_MAX_US
