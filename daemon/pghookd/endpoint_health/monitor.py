"""The incident monitor: mails owners digests about failing endpoints, and disables endpoints that fail for days.

Every half minute it checks the owners with due incidents, all incidents of an owner together; owner_plan.py decides.
It writes a mail and the new marks of its incidents in one transaction; the mailer sends the mail.

Never here: wording, SMTP, the deliveries themselves. Nothing here can slow deliveries.
"""

from __future__ import annotations

import asyncio
import dataclasses
import zlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final, TypeAlias

import orjson
from structlog.typing import FilteringBoundLogger

from pghookd.endpoint_health import incident, owner_plan
from pghookd.endpoint_health.incident import POLICY_BLOCKS, Case, Health
from pghookd.endpoint_health.incident_rules import disable_us
from pghookd.endpoint_health.owner_plan import Owner, OwnerPlan, PlanStep
from pghookd.endpoint_health.rows import case_of, section_of, types_of
from pghookd.endpoint_health.storm_watch import StormWatch
from pghookd.model.delivery import DisabledReason
from pghookd.owner_mail.digest import GRAVITY, SECTIONS_MAX, Digest, Kind, MailSection, arranged, excerpt
from pghookd.owner_mail.mailbox import mailbox_of
from pghookd.owner_mail.outbox import put_email
from pghookd.postgres.client import DatabaseAway, DatabaseError, Row, Session, columns, query
from pghookd.process import beating, fail_points
from pghookd.process.logs import LogEvent
from pghookd.settings.schema import Settings

OWNERS_PAGE: Final = 100  # owners per query
FOLD_AFTER_US: Final = (
    2 * 3600 * incident.SECOND_US
)  # a mail unsent for this long is replaced by one with the present state
NOBODY: Final = ""  # the owner of sites without an owner address; each such site is checked separately
Whose: TypeAlias = tuple[str, str]  # (owner's address in lower case, site id if the owner is NOBODY)


async def no_report(_now_us: int) -> None:
    """Report nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class MonitorHooks:
    """Callbacks that connect the monitor to other loops.

    Attributes:
        traffic: returns the number of sites that recently had deliveries.
        unwatch: called when an endpoint's incident is over, with its latest failure; a newer failure overrides it.
        behind_s: returns the age in seconds of the oldest outcome not yet committed.
        sending: returns the email_id of the mail being sent now, or None if there is none.
        queued: called when a mail is in the outbox.
        report: called after each check with its time; reports faults of the platform to the operator.
    """

    traffic: Callable[[], int]
    unwatch: Callable[[int, int], None]
    behind_s: Callable[[], float] = lambda: 0.0
    sending: Callable[[], int | None] = lambda: None
    queued: Callable[[], None] = lambda: None
    report: Callable[[int], Awaitable[None]] = no_report


class Monitor:
    """Checks incidents at intervals, queues mails and disables endpoints."""

    def __init__(
        self,
        session: Session,
        settings: Settings,
        around: MonitorHooks,
        *,
        logger: FilteringBoundLogger,
        wall_us: Callable[[], int],
        beat: Callable[[], None],
    ) -> None:
        self._session = session
        self._settings = settings
        self._policy = incident.IncidentPolicy.of(settings)
        self._around = around
        self._logger = logger
        self._wall_us = wall_us
        self._beat = beat
        self._failed = asyncio.Event()
        self._storms = StormWatch(
            session, settings, traffic=around.traffic, queued=around.queued, logger=logger
        )

    def apply(self, settings: Settings) -> None:
        """Replace the settings, and check at once."""
        self._settings = settings
        self._policy = incident.IncidentPolicy.of(settings)
        self._storms.apply(settings)
        self._failed.set()

    def failed(self) -> None:
        """Record that an endpoint failed; check at once if owners get a mail at the first failure."""
        if not self._policy.first_wait_us:
            self._failed.set()

    async def run(self) -> None:
        """Check at intervals until cancelled."""
        while True:
            self._failed.clear()
            try:
                # An outcome not yet committed must not count as mailed: check as of the time before the oldest one.
                before_us = self._wall_us() - int(self._around.behind_s() * 1e6)
                await beating.while_working(self.step(before_us), self._beat)
            except DatabaseError as error:  # a lock or a timeout; the next check repeats it
                self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error), statement="care")
            await beating.until_set(self._failed, self._settings.mail.check_s, self._beat)

    async def step(self, now_us: int) -> int:
        """Check everything that is due; return the number of mails put into the outbox."""
        in_storm = await self._storms.step(now_us)
        await self._withdraw(now_us)
        mails = 0
        while True:
            found = await self._session.fetch(query("find_due_owners"), now_us, OWNERS_PAGE)
            if not found:
                await self._around.report(now_us)
                return mails
            due = [(row["owner_email"], row["site_id"]) for row in found]
            mails += await self._owners(due, now_us, storm=in_storm)

    async def _withdraw(self, now_us: int) -> None:
        """Supersede unsent mails about sites that have changed their owner; if the query fails, log it and go on."""
        try:
            await self._session.fetch(query("withdraw_emails"), now_us, self._around.sending())
        except DatabaseError as error:
            self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error), statement="withdraw_emails")

    # Owners -----------------------------------------------------------------------------------------------------------

    async def _owners(self, due: list[Whose], now_us: int, *, storm: bool) -> int:
        """Check owners, each with its own error handling, so that one owner's bad rows affect no other owner."""
        try:
            rows = await self._session.fetch(query("read_cases"), *_apart(due, now_us), sorted(POLICY_BLOCKS))
        except DatabaseError as error:  # an owner has more rows than the query can count in time
            if len(due) > 1:
                return sum([await self._owners([each], now_us, storm=storm) for each in due])
            await self._postpone(due[0], now_us, error)
            return 0
        groups: dict[tuple[str, str], dict[int, Row]] = {}
        for row in rows:
            groups.setdefault((row["owner_email"], self._site_of(row)), {})[row["endpoint_id"]] = row
        mails = 0
        for (owner, site_id), group in groups.items():
            try:
                mails += await self._look(await self._told_lately(owner, group, now_us), storm=storm)
            except DatabaseAway:
                raise
            except Exception as error:  # noqa: BLE001 - an owner's rows may contain anything
                await self._postpone((owner, site_id), now_us, error)
        return mails

    def _site_of(self, row: Row) -> str:
        """Return the site if its digest is separate from the owner's other sites, otherwise an empty text."""
        apart = self._settings.mail.digest_by == "site" or row["owner_email"] == NOBODY
        return str(row["site_id"]) if apart else ""

    async def _told_lately(self, owner: str, rows: dict[int, Row], now_us: int) -> _Look:
        found = await self._session.fetchrow(query("read_owners"), [owner], now_us, [mailbox_of(owner)])
        if found is None:
            raise _Moved
        site = self._site_of(next(iter(rows.values())))
        return _Look(found, rows, now_us, zlib.crc32(site.encode()) % 1000 if site else 0)

    async def _postpone(self, whose: Whose, now_us: int, error: Exception) -> None:
        self._logger.error(
            LogEvent.EMAIL_FAILED,
            domain=whose[0].rpartition("@")[2],
            error=f"{type(error).__name__}: {error}",
        )
        later_us = now_us + incident.LOOK_EVERY_US
        await self._session.execute(query("postpone_owners"), *_apart([whose], later_us))

    async def _look(self, look: _Look, *, storm: bool) -> int:
        """Decide for one owner and write it in one transaction; check again in a second if a row changed meanwhile."""
        cases = [case_of(row, look.now_us, self._policy) for row in look.rows.values()]
        owner = Owner(mails=tuple(look.owner["mails"]), busy=look.is_busy(self._around.sending()))
        plan = owner_plan.plan(cases, owner, storm=storm)
        fold = self._is_to_be_folded(look, plan)
        if fold:
            cases = [_unfolded(case, look.before) for case in cases]
            owner = dataclasses.replace(owner, mails=_without(owner.mails, look.queued_us))
            plan = owner_plan.plan(cases, owner, storm=storm)
        digest = await self._digest(look, cases, plan) if plan.sections else None
        await fail_points.reached("care.decided")
        try:
            async with self._session.transaction():
                if fold:
                    await self._fold(look)
                await self._take_steps(look, cases, plan)
                state = await self._mail(look, cases, plan, digest)
                await fail_points.reached("care.written")
        except _Moved:  # not at once: with the same time the same conflict might repeat forever
            again_us = look.now_us + incident.SECOND_US
            await self._session.execute(query("postpone_owners"), *_apart([look.whose], again_us))
            return 0
        await fail_points.reached("care.committed")
        self._after(cases, plan)
        await self._switch_off(plan.switch_off)
        if state == "queued":
            self._around.queued()
        return int(state is not None)

    def _is_to_be_folded(self, look: _Look, plan: OwnerPlan) -> bool:
        if look.queued_us is None or look.is_busy(self._around.sending()):
            return False
        return bool(plan.sections) or look.now_us - look.queued_us >= FOLD_AFTER_US

    async def _fold(self, look: _Look) -> None:
        if not await self._session.fetch(query("fold_email"), look.owner["queued_id"]):
            raise _Moved

    async def _take_steps(self, look: _Look, cases: Sequence[Case], plan: OwnerPlan) -> None:
        rows: list[tuple[object, ...]] = []
        ended: list[tuple[int, int]] = []
        for case in cases:
            step = plan.steps.get(case.endpoint_id) or PlanStep(case.incident.health, case.marks)
            if step.over:
                ended.append((case.endpoint_id, case.incident.last_failure_us))
                continue
            marks = orjson.dumps(incident.stored_marks(step.marks)).decode()
            rows.append(
                (
                    case.endpoint_id,
                    step.health.value,
                    marks,
                    step.closed,
                    case.incident.last_failure_us,
                    disable_us(case),
                    look.rows[case.endpoint_id]["marks"],
                )
            )
        look_us = max(plan.look_us, look.now_us + incident.SECOND_US)
        moved = len(rows) + len(ended)
        if rows:
            *decided, was = columns(rows, 7)
            found = await self._session.fetch(query("step_incidents"), *decided, look.now_us, look_us, was)
            moved -= len(found)
        if ended:
            moved -= len(await self._session.fetch(query("end_incidents"), *columns(ended, 2)))
        if moved:
            raise _Moved

    async def _mail(
        self, look: _Look, cases: Sequence[Case], plan: OwnerPlan, digest: Digest | None
    ) -> str | None:
        """Put the mail into the outbox; return its state, or None if there is no mail."""
        if digest is None or plan.kind is None or not self._settings.smtp.host:
            return None
        state = "suppressed" if look.wants_none else "queued"
        before = {
            str(case.endpoint_id): {
                "state": case.incident.health.value,
                "marks": incident.stored_marks(case.marks),
                "owed": case.endpoint_id in {n for n, kind in plan.sections if kind is Kind.FAILING},
            }
            for case in cases
            if case.endpoint_id in dict(plan.sections)
        }
        email_id = await put_email(
            self._session,
            digest,
            window_us=plan.window_us + look.number,
            now_us=look.now_us,
            before=before,
            state=state,
        )
        if email_id is None:
            raise _Moved
        self._logger.info(
            LogEvent.EMAIL_QUEUED,
            email_id=email_id,
            kind=plan.kind.value,
            endpoints=len(plan.sections),
            state=state,
        )
        return state

    def _after(self, cases: Sequence[Case], plan: OwnerPlan) -> None:
        for case in cases:
            step = plan.steps.get(case.endpoint_id)
            if step is not None and step.health is Health.HEALTHY:
                self._around.unwatch(case.endpoint_id, case.incident.last_failure_us)

    async def _switch_off(self, endpoint_ids: Iterable[int]) -> None:
        ids = list(endpoint_ids)
        if not ids:
            return
        reasons = [DisabledReason.FAILING.value] * len(ids)
        for row in await self._session.fetch(query("disable_endpoints"), ids, reasons):
            self._logger.warning(
                LogEvent.ENDPOINT_DISABLED,
                endpoint_id=row["endpoint_id"],
                site_id=row["site_id"],
                reason=row["disabled_reason"],
            )

    # Contents of mails ------------------------------------------------------------------------------------------------

    async def _digest(self, look: _Look, cases: Sequence[Case], plan: OwnerPlan) -> Digest | None:
        if not self._settings.smtp.host or look.owner["owner_email"] == NOBODY:
            return None
        kinds = dict(plan.sections)
        told = sorted(
            (c for c in cases if c.endpoint_id in kinds), key=lambda c: GRAVITY[kinds[c.endpoint_id]]
        )
        sections = [
            await self._section(look.rows[case.endpoint_id], case, kinds[case.endpoint_id])
            for case in told[:SECTIONS_MAX]
        ]
        shown, _ = arranged(sections)
        first = look.rows[told[0].endpoint_id]
        return Digest(
            kind=plan.kind or Kind.REMINDER,
            owner_email=look.owner["owner_email"],
            language=first["language"],
            at_us=look.now_us,
            since_us=min(section.since_us for section in shown),
            sections=shown,
            more=len(told) - len(shown),
            unsubscribe_token=await self._token(look),
        )

    async def _token(self, look: _Look) -> str | None:
        if not self._settings.mail.unsubscribe_url:
            return None
        token: str = look.owner["unsubscribe_token"] or await self._session.fetchval(
            query("give_token"), look.owner["owner_email"]
        )
        return token

    async def _section(self, row: Row, case: Case, kind: Kind) -> MailSection:
        session, number = self._session, case.endpoint_id
        told = await session.fetch(
            query("read_told"), number, case.incident.first_failure_us, case.marks.told_us, case.now_us
        )
        waiting = await session.fetchrow(query("read_waiting"), number)
        answer = await session.fetchval(
            query("read_answer"), row["last_event_id"], number, row["last_attempt"]
        )
        section = section_of(row, case, kind, types_of(told), waiting)
        return dataclasses.replace(
            section,
            response=excerpt(answer),
            timeout_s=row["timeout_s"] or self._settings.delivery.timeout_s,
        )


class _Moved(Exception):  # noqa: N818 - not an error but a concurrent change
    """A row changed concurrently; retry at the next check."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Look:
    """One owner's rows, as read.

    Attributes:
        owner: the row of read_owners.
        rows: the rows of read_cases, by endpoint.
        now_us: the time of the check.
        number: microseconds added to the window, which make it unique among an owner's digests if they are by site.
    """

    owner: Row
    rows: dict[int, Row]
    now_us: int
    number: int

    @property
    def whose(self) -> Whose:
        """The owner, and the site if there is no owner."""
        owner = self.owner["owner_email"]
        return owner, "" if owner else next(iter(self.rows.values()))["site_id"]

    @property
    def queued_us(self) -> int | None:
        """The creation time of the owner's unsent mail; None if there is none."""
        made: int | None = self.owner["queued_at"]
        return made

    def is_busy(self, sending: int | None) -> bool:
        """Return True if the owner's unsent mail may have been sent; `sending` is the mail that is being sent now."""
        row = self.owner
        return row["queued_id"] is not None and (row["perhaps_sent"] or row["queued_id"] == sending)

    @property
    def before(self) -> dict[str, Any]:
        """The incidents as they were before the unsent mail."""
        found: dict[str, Any] = orjson.loads(self.owner["before"] or "{}")
        return found

    @property
    def wants_none(self) -> bool:
        """Return True if the owner is muted or suspended, or has unsubscribed."""
        row = self.owner
        until = max(row["muted_until"] or 0, row["suspended_until"] or 0)
        return row["unsubscribed_at"] is not None or until > self.now_us


def _apart(due: Sequence[Whose], at_us: int) -> tuple[list[str], int, list[str]]:
    """Return the parameters of queries that take owners, a time, and sites without an owner."""
    owners = [owner for owner, _ in due if owner != NOBODY]
    return owners, at_us, [site_id for owner, site_id in due if owner == NOBODY]


def _without(mails: tuple[int, ...], made_us: int | None) -> tuple[int, ...]:
    """Return the times of an owner's mails without that of a superseded one."""
    left = list(mails)
    if made_us in left:
        left.remove(made_us)
    return tuple(left)


def _unfolded(case: Case, before: dict[str, Any]) -> Case:
    """Return the case as it was before a mail that was never sent."""
    was = before.get(str(case.endpoint_id))
    if was is None:
        return case
    marks = incident.marks_of(was["marks"])
    marks = dataclasses.replace(marks, owed=marks.owed or was["owed"])
    health = Health(was["state"])
    return dataclasses.replace(case, incident=dataclasses.replace(case.incident, health=health, marks=marks))
