"""Watches for storms: many endpoints of many sites fail at once, so that the fault is probably on our side.

Meanwhile first mails to owners wait, and so does the disabling of endpoints, for six hours at most; the operator gets a
mail. The rule for a storm is in storm.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.endpoint_health import incident, storm
from pghookd.endpoint_health.storm import Extent
from pghookd.owner_mail.digest import Digest, Kind
from pghookd.owner_mail.outbox import put_email
from pghookd.postgres.client import Session, query
from pghookd.process.logs import LogEvent
from pghookd.settings.schema import Settings

RECALL_US: Final = incident.DAY_US  # interval between mails to the operator about a continuing storm
GAP_US: Final = 3600 * incident.SECOND_US  # minimum interval before a mail about a new storm
CHECKS: Final = 2  # consecutive checks that must find a storm


class StormWatch:
    """Remembers the present storm, if any."""

    def __init__(
        self,
        session: Session,
        settings: Settings,
        *,
        traffic: Callable[[], int],
        queued: Callable[[], None],
        logger: FilteringBoundLogger,
    ) -> None:
        self._session = session
        self._traffic = traffic
        self._queued = queued
        self._logger = logger
        self._found = 0  # consecutive checks that found a storm
        self._told = False  # True if the operator was mailed about the present storm
        self._told_us: int | None = None
        self._checked_us: int | None = None
        self.apply(settings)

    def apply(self, settings: Settings) -> None:
        """Replace the settings."""
        self._settings = settings
        self._policy = incident.IncidentPolicy.of(settings)

    async def step(self, now_us: int) -> bool:
        """Return True if a storm is on, so that first mails and disabling clocks wait; mail the operator about it."""
        from_us = storm.evidence_from_us(now_us, self._policy)
        rows = await self._session.fetch(query("find_storm_evidence"), *from_us)
        found = storm.extent(((row["site_id"], row["url"]) for row in rows), self._traffic())
        limits = self._settings.storm
        if not storm.is_storm(found, share=limits.share, hosts_min=limits.hosts_min):
            await self._calm(now_us)
            return False
        self._found += 1
        before_us = self._checked_us
        if self._found >= CHECKS and before_us is not None:
            await self._session.execute(query("pause_disabling"), now_us - before_us, storm.HOLD_MAX_US)
        self._checked_us = now_us
        wait_us = RECALL_US if self._told else GAP_US
        if self._found >= CHECKS and (self._told_us is None or now_us - self._told_us >= wait_us):
            self._told, self._told_us = True, now_us
            await self._tell(found, now_us)
        return True

    async def _calm(self, now_us: int) -> None:
        """End the storm, if there was one: what it held goes on."""
        if self._found:
            was_one = self._found >= CHECKS
            held_from_us = now_us - storm.HOLD_MAX_US
            await self._session.execute(query("recall_incidents"), now_us, was_one, held_from_us)
        self._found, self._told, self._checked_us = 0, False, now_us

    async def _tell(self, found: Extent, now_us: int) -> None:
        self._logger.error(
            LogEvent.STORM_SUSPECTED,
            sites=found.sites,
            traffic=found.traffic,
            domains=found.domains,
            note="first mails to owners and the disabling of endpoints wait, for six hours at most",
        )
        operator = self._settings.mail.operator
        if operator and self._settings.smtp.host:
            extent = (found.sites, found.traffic, found.domains)
            digest = Digest(Kind.STORM, operator, "en", now_us, now_us, storm=extent)
            await put_email(self._session, digest, window_us=now_us, now_us=now_us)
            self._queued()
