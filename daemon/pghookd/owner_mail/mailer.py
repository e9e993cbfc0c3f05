"""Sends the mails of the outbox: one at a time, domains in turn, within the rate limit `mail.rate_per_min`.

The gravest mail of a domain goes first. A domain has a share of the rate, so that nobody can flood one domain or delay
the mails of others. A company with fifty shops at one domain gets all its mails, only later.

The mailer claims a mail before it contacts the server, and settles it when the outcome is known. A process killed in
between leaves a row with attempts and no error, which means `perhaps sent`. The mail is then sent again unchanged, with
the same Message-ID. While the server is away no mail is claimed, so that newer content can still replace it.

Never here: a mail's content, the decision to send one (endpoint_health/monitor.py), or anything that a delivery waits
for.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import re
from collections.abc import Callable
from email.message import EmailMessage
from typing import Final, TypeVar

import orjson

from pghookd.owner_mail import message
from pghookd.owner_mail.digest import GRAVITY, OF_OPERATOR, Kind, clean_line, digest_of
from pghookd.owner_mail.mailbox import is_of_strangers
from pghookd.owner_mail.message import Letters
from pghookd.owner_mail.smtp import Deferred, Outcome, Rejected, Sent, SmtpClient
from pghookd.postgres.client import DatabaseError, Row, Session, query
from pghookd.process import beating, fail_points
from pghookd.process.context import Context
from pghookd.process.logs import LogEvent
from pghookd.settings.schema import MailSettings

LOOK_EVERY_S: Final = 5.0
PAGE: Final = 20
BURST: Final = 5.0  # mails at once after a quiet minute, in total and to one domain
DOMAIN_SHARE: Final = 0.1  # share of the rate for one domain
BACKOFF_S: Final = (
    60.0,
    300.0,
    900.0,
    3600.0,
)  # after attempt 1, 2, ...; the last value repeats
HOLD_S: Final = (5.0, 15.0, 60.0)  # between two connection attempts to a server that is away
DOUBTS_MAX: Final = 3  # attempts after which a perhaps sent mail may be replaced all the same
SUSPENDED_S: Final = 7 * 86_400.0  # no mails to an address that the server rejected
REFUSED_PAUSE_S: Final = 30.0
OPERATORS: Final = sorted(OF_OPERATOR, key=GRAVITY.__getitem__)  # not limited by domain
ORDER: Final = [*OPERATORS, *sorted(set(Kind) - OF_OPERATOR, key=GRAVITY.__getitem__)]
_ROUNDING: Final = 1e-6  # of a token, so that after the returned wait there is a token
# Raised for a row that is not a digest, or a letter that cannot be rendered.
_FAULTY: Final = (AttributeError, KeyError, TypeError, ValueError)
T = TypeVar("T")


class Bucket:
    """A token bucket.

    Args:
        per_minute: tokens per minute, above 0.
        burst: capacity; at least 1.
        now: monotonic seconds.
    """

    def __init__(self, per_minute: float, burst: float, now: float) -> None:
        self._per_s = per_minute / 60
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> float:
        """Take one token and return 0, or return the seconds until there is one."""
        wait_s = self.wait_s(now)
        if not wait_s:
            self._tokens = max(0.0, self._tokens - 1)
        return wait_s

    def wait_s(self, now: float) -> float:
        """Return the seconds until there is a token, or 0 if there is one."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._per_s)
        self._at = now
        return 0.0 if self._tokens >= 1 - _ROUNDING else (1 - self._tokens) / self._per_s

    def is_full(self, now: float) -> bool:
        """Return True if the bucket is full, so that it need not be kept."""
        return not self.wait_s(now) and self._tokens >= self._burst


class Shares:
    """The rate limit of each domain. Only domains that recently got mails are kept.

    Args:
        per_minute: the rate of one domain, above 0.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._buckets: dict[str, Bucket] = {}

    def waits(self, now: float) -> dict[str, float]:
        """Return the domains that must wait, with the seconds; drop those whose bucket is full."""
        self._buckets = {name: each for name, each in self._buckets.items() if not each.is_full(now)}
        waits = {name: each.wait_s(now) for name, each in self._buckets.items()}
        return {name: wait_s for name, wait_s in waits.items() if wait_s}

    def has(self, domain: str, now: float) -> bool:
        """Return True if a mail may go to the domain now."""
        bucket = self._buckets.get(domain)
        return bucket is None or not bucket.wait_s(now)

    def take(self, domain: str, now: float) -> None:
        """Count a mail to a domain; public providers have no limit of their own."""
        if not is_of_strangers(domain):
            if domain not in self._buckets:
                self._buckets[domain] = Bucket(self._per_minute, BURST, now)
            self._buckets[domain].take(now)


class Mailer:
    """The only loop that sends mails, on its own session; `run` runs until cancelled or stopped.

    Args:
        session: not in a transaction, and not shared.
        post: the SMTP client, entered and left by `run`.
        letters: renders mails.
        settings: sender and rate.
        context: its log gets each mail, and once a server that is away.
        wake: set when a mail has been queued.
        beat: called about once a second while the loop is alive.
        message_id: makes the Message-ID from an email_id and the sender's address.

    Attributes:
        sending: the email_id of the mail being sent now; None if there is none.
    """

    def __init__(
        self,
        session: Session,
        post: SmtpClient,
        letters: Letters,
        context: Context,
        *,
        settings: MailSettings,
        wake: asyncio.Event,
        beat: Callable[[], None],
        message_id: Callable[[int, str], str] = message.message_id,
    ) -> None:
        self.sending: int | None = None
        self._session = session
        self._post = post
        self._letters = letters
        self._message_id = message_id
        self._sender = settings.sender
        self._logger = context.logger
        self._monotonic = context.monotonic
        self._wall_us = context.wall_us
        self._wake = wake
        self._beat = beat
        self._bucket = Bucket(settings.rate_per_min, BURST, context.monotonic())
        self._shares = Shares(DOMAIN_SHARE * settings.rate_per_min)
        self._away = 0  # consecutive attempts that failed because of the server
        self._held_until = 0.0
        self._stopping = False
        self._told: tuple[str, ...] = ()  # template faults already logged

    def stop(self) -> None:
        """Begin no further mail; `run` ends after the one being sent."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        self._tell_faults()
        async with self._post:
            while not self._stopping:
                self._wake.clear()
                wait_s = await beating.while_working(self._step_or_wait(), self._beat)
                await self._post.rest()
                await self._sleep(wait_s)

    async def step(self) -> float:
        """Send the mails that are due and within the limits; return the seconds until the next check."""
        held_s = self._held_until - self._monotonic()
        if held_s > 0:
            return held_s
        waits = self._shares.waits(self._monotonic())
        rows = await self._session.fetch(
            query("read_emails"), self._wall_us(), ORDER, PAGE, list(waits), OPERATORS
        )
        await fail_points.reached("mail.read")
        for row in rows:
            wait_s = await self._take(row)
            if wait_s or self._stopping:
                return wait_s
        if len(rows) == PAGE and not all(row["moved"] for row in rows):
            return 0.0
        return min([LOOK_EVERY_S, *self._shares.waits(self._monotonic()).values()])

    async def _step_or_wait(self) -> float:
        try:
            return await self.step()
        except DatabaseError as error:  # must not end the epoch and its deliveries
            self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error))
            return REFUSED_PAUSE_S

    async def _sleep(self, wait_s: float) -> None:
        until = self._monotonic() + wait_s
        while not self._wake.is_set() and (left := until - self._monotonic()) > 0:
            self._beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, beating.BEAT_S)):
                    await self._wake.wait()
        self._beat()

    # One mail ---------------------------------------------------------------------------------------------------------

    async def _take(self, row: Row) -> float:
        """Process one row; return the seconds to wait before the next, or 0."""
        of_operator = row["kind"] in OPERATORS
        if row["moved"] or not (of_operator or self._shares.has(row["mail_domain"], self._monotonic())):
            return 0.0  # the monitor supersedes it if its site changed owner; a later page has the others
        if row["hushed"]:
            await self._settle(row, "suppressed", None)
            return 0.0
        try:
            subject, message = await asyncio.to_thread(self._render, row)
        except _FAULTY as error:
            await self._fail(row, f"cannot be rendered: {error}")
            return 0.0
        self._tell_faults()
        wait_s = self._bucket.take(self._monotonic())
        if wait_s:
            return wait_s
        if not of_operator:
            self._shares.take(row["mail_domain"], self._monotonic())
        self.sending = row["email_id"]
        try:
            return await self._send(row, subject, message)
        finally:
            self.sending = None

    def _render(self, row: Row) -> tuple[str, EmailMessage]:
        """Render a mail; called in a thread, because it takes milliseconds that would delay deliveries."""
        digest = digest_of(orjson.loads(row["digest"]))
        name = row["message_id"] or self._message_id(row["email_id"], self._sender)
        return self._letters.subject(digest), self._letters.render(digest, message_id=name)

    def _tell_faults(self) -> None:
        """Log the faults of the operator's templates whenever they have changed."""
        if self._letters.faults != self._told:
            self._told = self._letters.faults
            self._logger.warning(LogEvent.SETTINGS_REJECTED, faults="; ".join(self._told))

    async def _send(self, row: Row, subject: str, message: EmailMessage) -> float:
        again_us = self._wall_us() + round(_backoff_s(row["attempts"]) * 1_000_000)
        claimed = await self._session.fetch(
            query("claim_email"),
            row["email_id"],
            row["attempts"],
            again_us,
            str(message["Message-ID"]),
            subject,
        )
        if not claimed:
            return 0.0
        await fail_points.reached("mail.claimed")
        outcome = await self._post.send(message, connected=lambda: fail_points.reached("mail.connected"))
        if isinstance(outcome, Sent):
            await fail_points.reached("mail.accepted")
        wait_s = await self._record(row, outcome, again_us)
        await fail_points.reached("mail.recorded")
        return wait_s

    # The result -------------------------------------------------------------------------------------------------------

    async def _record(self, row: Row, outcome: Outcome, again_us: int) -> float:
        match outcome:
            case Sent(answer):
                self._away = 0
                await self._settle(row, "sent", None, self._wall_us())
                self._logger.info(LogEvent.EMAIL_SENT, **_keys(row), answer=_unnamed(answer, row))
                return 0.0
            case Rejected(error, recipient):
                self._away = 0
                await self._fail(row, error, suspend=recipient)
                return 0.0
            case Deferred():
                return await self._defer(row, outcome, again_us)

    async def _defer(self, row: Row, outcome: Deferred, again_us: int) -> float:
        # A deferral now does not show that an earlier attempt failed.
        doubt = outcome.doubt or row["perhaps_sent"]
        if not (doubt and row["attempts"] < DOUBTS_MAX):  # otherwise it stays claimed, as perhaps sent
            await self._settle(row, "queued", outcome.error)
        if not (outcome.server and self._away):
            error = _unnamed(outcome.error, row)
            self._logger.warning(LogEvent.EMAIL_FAILED, **_keys(row), error=error, again_at=_shown(again_us))
        if not outcome.server:
            return 0.0
        hold_s = HOLD_S[min(self._away, len(HOLD_S) - 1)]
        self._away += 1
        self._held_until = self._monotonic() + hold_s
        return hold_s

    async def _fail(self, row: Row, error: str, *, suspend: bool = False) -> None:
        error = clean_line(error, 300)
        until_us = self._wall_us() + round(SUSPENDED_S * 1_000_000) if suspend else None
        async with self._session.transaction():
            if until_us is not None:
                await self._session.execute(query("suspend_owner"), row["owner_email"], until_us, error)
            await self._settle(row, "failed", error)
        self._logger.error(
            LogEvent.EMAIL_FAILED,
            **_keys(row),
            error=_unnamed(error, row),
            suspended_until=until_us and _shown(until_us),
        )

    async def _settle(self, row: Row, state: str, error: str | None, sent_us: int | None = None) -> None:
        await self._session.execute(query("settle_email"), row["email_id"], state, error, sent_us)


def _backoff_s(attempts: int) -> float:
    """Return the wait after the next attempt."""
    return BACKOFF_S[min(attempts, len(BACKOFF_S) - 1)]


def _keys(row: Row) -> dict[str, object]:
    """Return the log keys of a mail: of the address, only the domain."""
    return {
        "email_id": row["email_id"],
        "kind": row["kind"],
        "domain": clean_line(row["owner_email"].rpartition("@")[2]),
        "attempt": row["attempts"] + 1,
    }


def _unnamed(text: str, row: Row) -> str:
    """Return a server's text without the recipient's address, because logs are read more widely than the table."""
    return re.sub(re.escape(row["owner_email"]), "(address)", text, flags=re.IGNORECASE)


def _shown(us: int) -> str:
    return dt.datetime.fromtimestamp(us / 1_000_000, dt.UTC).isoformat(timespec="seconds")
