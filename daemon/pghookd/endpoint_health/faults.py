"""Reports to the operator which deliveries fail because of the platform.

These are events with an invalid type, payloads over the limit, and endpoints whose destination the platform's own
policy blocks. Owners get no mail about these, because they could not fix them. The only state is the rows of `dead`
and `incidents`; the latest mail records up to which time the operator is informed.

Never here: wording, SMTP, or anything that a delivery waits for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from pghookd.endpoint_health.incident import DAY_US, SECOND_US, IncidentPolicy
from pghookd.endpoint_health.owner_plan import Owner, allowed_us
from pghookd.owner_mail.digest import Cause, Digest, Kind, OperatorLine, clean_line
from pghookd.owner_mail.mailbox import mailbox_of
from pghookd.owner_mail.outbox import put_email
from pghookd.postgres.client import Row, Session, query
from pghookd.process.logs import LogEvent
from pghookd.settings.schema import Settings

FAULTS_MAX: Final = 20  # lines in one mail; further lines are counted, up to LINES_MAX
LINES_MAX: Final = 500
SETTLE_US: Final = 5 * SECOND_US  # rows have the start time of their transaction, but appear at its commit


class FaultReports:
    """The operator's digest of events that cannot be sent; the same gap and daily limit as for an owner's mails.

    Args:
        session: the monitor's session, between two of its checks.
        settings: `mail.operator`, and the limits.
        logger: logs one line for each mail.
        queued: called when a mail is in the outbox.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        *,
        logger: FilteringBoundLogger,
        queued: Callable[[], None],
    ) -> None:
        self._session = session
        self._policy = IncidentPolicy.of(settings)
        self._operator = settings.mail.operator if settings.smtp.host else ""
        self._logger = logger
        self._queued = queued

    async def step(self, now_us: int) -> None:
        """Put a mail into the outbox if there are faults not yet reported and the limits allow a mail now."""
        if not self._operator:
            return
        told = await self._session.fetchrow(query("read_reports"), mailbox_of(self._operator), now_us)
        if told is None or told["waiting"]:
            return
        if now_us < allowed_us(Owner(tuple(told["mails"])), [Kind.FAULTS], self._policy):
            return
        until_us = now_us - SETTLE_US
        since_us = max(told["told_us"] or 0, now_us - DAY_US)
        rows = await self._session.fetch(query("find_faults"), since_us, until_us, LINES_MAX)
        if rows and until_us - rows[0]["first_at"] >= self._policy.first_wait_us:
            await self._tell(rows, until_us, now_us)

    async def _tell(self, rows: list[Row], until_us: int, now_us: int) -> None:
        digest = Digest(
            kind=Kind.FAULTS,
            owner_email=self._operator,
            language="en",
            at_us=until_us,
            since_us=rows[0]["first_at"],
            more=max(0, len(rows) - FAULTS_MAX),
            faults=tuple(map(_fault_of, rows[:FAULTS_MAX])),
        )
        email_id = await put_email(self._session, digest, window_us=until_us, now_us=now_us)
        if email_id is not None:
            self._logger.info(
                LogEvent.EMAIL_QUEUED,
                email_id=email_id,
                kind=Kind.FAULTS.value,
                endpoints=len({row["endpoint_id"] for row in rows}),
                state="queued",
            )
            self._queued()


def _fault_of(row: Row) -> OperatorLine:
    """Return an OperatorLine from a row of find_faults."""
    return OperatorLine(
        cause=Cause(row["reason"]),
        site_id=clean_line(row["site_id"]),
        type=clean_line(row["type"]),
        endpoint_id=row["endpoint_id"],
        events=row["events"],
        first_us=row["first_at"],
        webhook_id=row["webhook_id"],
        error=clean_line(row["error"]) or None,
    )
