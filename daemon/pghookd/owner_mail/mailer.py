"""Sends the mails of the outbox: one at a time, domains by turns, no more in a minute than the server should bear.

The gravest of a domain goes first. A domain has a share of the rate, so that nobody bombs one, and so that the mails of
others never wait behind a bomb; a company with fifty shops at one domain gets them all, later.

A mail is claimed before the server hears of it, and settled when its end is known. Whoever is killed in between leaves
a row with attempts and no error, which means `perhaps sent`: it is sent again as it was, under the same Message-ID.
While the server is away nothing is worked off: what waits stays free to be replaced by what is true later.

Never here: what a mail says, when there is one to say (endpoint_health/monitor.py); anything that a delivery waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import re
from collections.abc import Awaitable, Callable
from email.message import EmailMessage
from typing import Final, TypeVar

import orjson
from structlog.typing import FilteringBoundLogger

from pghookd.owner_mail import message
from pghookd.owner_mail.digest import GRAVITY, OF_OPERATOR, Kind, clean_line, digest_of
from pghookd.owner_mail.mailbox import is_of_strangers
from pghookd.owner_mail.message import Letters
from pghookd.owner_mail.smtp import Deferred, Outcome, Rejected, Sent, SmtpClient
from pghookd.postgres.client import DatabaseError, Row, Session, query
from pghookd.process.logs import LogEvent
from pghookd.settings.schema import MailSettings

LOOK_EVERY_S: Final = 5.0
PAGE: Final = 20
BURST: Final = 5.0  # mails at once after a quiet minute, in all and to one domain
DOMAIN_SHARE: Final = 0.1  # of the rate, to one domain
BACKOFF_S: Final = (
    60.0,
    300.0,
    900.0,
    3600.0,
)  # after the first, second, ... attempt; the last for all further ones
HOLD_S: Final = (5.0, 15.0, 60.0)  # between two tries of a server that is away
DOUBTS_MAX: Final = 3  # attempts before a mail that one of them left in doubt may be replaced after all
SUSPENDED_S: Final = 7 * 86_400.0  # an address that a server does not know
BEAT_S: Final = 1.0
REFUSED_PAUSE_S: Final = 30.0
OPERATORS: Final = sorted(OF_OPERATOR, key=GRAVITY.__getitem__)  # they wait for no domain
ORDER: Final = [*OPERATORS, *sorted(set(Kind) - OF_OPERATOR, key=GRAVITY.__getitem__)]
_ROUNDING: Final = 1e-6  # of a token: who has waited as long as was said gets it
# What a digest raises that is none, or a letter that cannot be written.
_FAULTY: Final = (AttributeError, KeyError, TypeError, ValueError)
T = TypeVar("T")

Checkpoint = Callable[[str], Awaitable[None]]


class Bucket:
    """Lets so many through in a minute, a few of them at once.

    Args:
        per_minute: above 0.
        burst: how many may go at once; at least 1.
        now: monotonic seconds.
    """

    def __init__(self, per_minute: float, burst: float, now: float) -> None:
        self._per_s = per_minute / 60
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> float:
        """Take one token: 0, or the seconds until there is one."""
        wait_s = self.wait_s(now)
        if not wait_s:
            self._tokens = max(0.0, self._tokens - 1)
        return wait_s

    def wait_s(self, now: float) -> float:
        """Return the seconds until there is a token; 0 if there is one."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._per_s)
        self._at = now
        return 0.0 if self._tokens >= 1 - _ROUNDING else (1 - self._tokens) / self._per_s

    def is_full(self, now: float) -> bool:
        """Return True if the bucket is as it was made, so that it need not be remembered."""
        return not self.wait_s(now) and self._tokens >= self._burst


class Shares:
    """The rate of each domain: a share of the whole. Only domains that got mails lately are remembered.

    Args:
        per_minute: the rate of one domain, above 0.
    """

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._buckets: dict[str, Bucket] = {}

    def waits(self, now: float) -> dict[str, float]:
        """Return the domains that have to wait, and for how many seconds; forget those that are at rest."""
        self._buckets = {name: each for name, each in self._buckets.items() if not each.is_full(now)}
        waits = {name: each.wait_s(now) for name, each in self._buckets.items()}
        return {name: wait_s for name, wait_s in waits.items() if wait_s}

    def has(self, domain: str, now: float) -> bool:
        """Return True if a mail may go to the domain now."""
        bucket = self._buckets.get(domain)
        return bucket is None or not bucket.wait_s(now)

    def take(self, domain: str, now: float) -> None:
        """Count a mail to a domain; those whose mailboxes belong to strangers have no share of their own."""
        if not is_of_strangers(domain):
            if domain not in self._buckets:
                self._buckets[domain] = Bucket(self._per_minute, BURST, now)
            self._buckets[domain].take(now)


async def _nowhere(_name: str) -> None:
    pass


class Mailer:
    """The one sender of mails, on a session of its own; `run` until cancelled or told to stop.

    Args:
        session: in no transaction, and nobody else's.
        post: entered and left by `run`.
        letters: renders.
        settings: sender and rate.
        logger: is told of each mail, and once of a server that is away.
        monotonic: seconds.
        wall_us: microseconds since 1970.
        wake: set by whoever has queued a mail.
        beat: called while it lives.
        message_id: of an email_id and the sender's address.
        checkpoint: awaited at each step of a mail's way, with its name.

    Attributes:
        sending: the email_id of the mail that is on its way now.
    """

    def __init__(
        self,
        session: Session,
        post: SmtpClient,
        letters: Letters,
        *,
        settings: MailSettings,
        logger: FilteringBoundLogger,
        monotonic: Callable[[], float],
        wall_us: Callable[[], int],
        wake: asyncio.Event,
        beat: Callable[[], None],
        message_id: Callable[[int, str], str] = message.message_id,
        checkpoint: Checkpoint = _nowhere,
    ) -> None:
        self.sending: int | None = None
        self._session = session
        self._post = post
        self._letters = letters
        self._message_id = message_id
        self._sender = settings.sender
        self._logger = logger
        self._monotonic = monotonic
        self._wall_us = wall_us
        self._wake = wake
        self._beat = beat
        self._checkpoint = checkpoint
        self._bucket = Bucket(settings.rate_per_min, BURST, monotonic())
        self._shares = Shares(DOMAIN_SHARE * settings.rate_per_min)
        self._away = 0  # how often in a row the server was not to be had
        self._held_until = 0.0
        self._stopping = False
        self._told: tuple[str, ...] = ()  # of the faults of templates

    def stop(self) -> None:
        """Begin no further mail; `run` ends after the one that is on its way."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        self._tell_faults()
        async with self._post:
            while not self._stopping:
                self._wake.clear()
                wait_s = await self._step_or_wait()
                await self._post.rest()
                await self._sleep(wait_s)

    async def step(self) -> float:
        """Send what is due and may go now; return the seconds until it is worth to look again."""
        held_s = self._held_until - self._monotonic()
        if held_s > 0:
            return held_s
        waits = self._shares.waits(self._monotonic())
        rows = await self._session.fetch(
            query("read_emails"), self._wall_us(), ORDER, PAGE, list(waits), OPERATORS
        )
        await self._checkpoint("mail.read")
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
        except DatabaseError as error:  # no reason to end the epoch, with all its deliveries
            self._logger.warning(LogEvent.DATABASE_REFUSED, error=str(error))
            return REFUSED_PAUSE_S

    async def _sleep(self, wait_s: float) -> None:
        until = self._monotonic() + wait_s
        while not self._wake.is_set() and (left := until - self._monotonic()) > 0:
            self._beat()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, BEAT_S)):
                    await self._wake.wait()
        self._beat()

    # One mail ---------------------------------------------------------------------------------------------------------

    async def _take(self, row: Row) -> float:
        """Deal with one row; seconds to wait before the next, 0 for none."""
        of_operator = row["kind"] in OPERATORS
        if row["moved"] or not (of_operator or self._shares.has(row["mail_domain"], self._monotonic())):
            return 0.0  # care takes it back; another page has the others
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
        """Render in a thread: markup and style sheets take some milliseconds that deliveries would wait for."""
        digest = digest_of(orjson.loads(row["digest"]))
        name = row["message_id"] or self._message_id(row["email_id"], self._sender)
        return self._letters.subject(digest), self._letters.render(digest, message_id=name)

    def _tell_faults(self) -> None:
        """Say once of each of the operator's templates that it is not as it should be."""
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
        await self._checkpoint("mail.claimed")
        outcome = await self._beating(
            self._post.send(message, connected=lambda: self._checkpoint("mail.connected"))
        )
        if isinstance(outcome, Sent):
            await self._checkpoint("mail.accepted")
        wait_s = await self._record(row, outcome, again_us)
        await self._checkpoint("mail.recorded")
        return wait_s

    async def _beating(self, work: Awaitable[T]) -> T:
        """Await what may take a minute, and live."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self._beat()
                await asyncio.wait((task,), timeout=BEAT_S)
            return await task
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait((task,))

    # What became of it ------------------------------------------------------------------------------------------------

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
        # That it is not taken now says nothing of the time before.
        doubt = outcome.doubt or row["perhaps_sent"]
        if not (doubt and row["attempts"] < DOUBTS_MAX):  # else it stays as claimed: perhaps sent
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
    """Return the wait after one more attempt than these."""
    return BACKOFF_S[min(attempts, len(BACKOFF_S) - 1)]


def _keys(row: Row) -> dict[str, object]:
    """Return what a log line says of a mail: of the address, only where it is."""
    return {
        "email_id": row["email_id"],
        "kind": row["kind"],
        "domain": clean_line(row["owner_email"].rpartition("@")[2]),
        "attempt": row["attempts"] + 1,
    }


def _unnamed(text: str, row: Row) -> str:
    """Return what a server said without the address, which it likes to repeat: logs go further than the table."""
    return re.sub(re.escape(row["owner_email"]), "(address)", text, flags=re.IGNORECASE)


def _shown(us: int) -> str:
    return dt.datetime.fromtimestamp(us / 1_000_000, dt.UTC).isoformat(timespec="seconds")
