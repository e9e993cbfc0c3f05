"""A history of mails in virtual time: an outbox, its mailer life after life, a mail server with moods, and faults.

One seed is one history. It is the mailer's and the outbox's: the content and the time of mails are not simulated
(tests/unit covers the incident machine itself). Here one desk writes that there is news, and folds waiting mails.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import dataclasses
import random
from email.message import EmailMessage

import orjson
from virtual import WHOSE, VirtualLoop
from world import BrokenError, Quiet

from pghookd.owner_mail.digest import Digest, Kind
from pghookd.owner_mail.mailbox import domain_of
from pghookd.owner_mail.mailer import DOUBTS_MAX, Mailer
from pghookd.owner_mail.smtp import Deferred, Rejected, Sent
from pghookd.postgres.client import DatabaseAway, DatabaseError, query
from pghookd.process import beating
from pghookd.process.context import Context
from pghookd.settings.schema import MailSettings

NAMES = {query(name): name for name in ("read_emails", "claim_email", "settle_email", "suspend_owner")}
MOODS = ("good", "good", "defers", "away", "silent", "cuts")
FAULTS = ("kill", "freeze", "session", "refuse", "mood", "mood")
NOON_US = 1_800_000_000_000_000
FAULTS_END_S = 900.0
SILENT_S = 60.0
ENDED_WITHIN_S = 20_000.0  # the longest wait of a mail is an hour
OWNERS = 3
BEAT_S = 30.0  # of the mailer; its own would make most of a history beats


class Letters:
    """Writes letters of nothing but a name."""

    faults = ()

    def subject(self, digest):
        return digest.owner_email

    def render(self, digest, *, message_id):
        message = EmailMessage()
        message["Message-ID"] = message_id
        message["To"] = digest.owner_email
        return message


@dataclasses.dataclass
class Email:
    """One row of `emails`, and what the history knows of it beside.

    Attributes:
        accepted: the Message-IDs under which the server has taken it.
        explained: how many of these a fault explains beyond the first.
        refused: the server has rejected it for good.
    """

    email_id: int
    owner_email: str
    next_attempt_at: int
    digest: str
    state: str = "queued"
    attempts: int = 0
    error: str | None = None
    message_id: str | None = None
    kind: str = Kind.FAILING.value
    hushed: bool = False
    moved: bool = False
    accepted: list = dataclasses.field(default_factory=list)
    explained: int = 0
    refused: bool = False

    @property
    def perhaps_sent(self):
        return self.attempts > 0 and self.error is None

    @property
    def mail_domain(self):
        return domain_of(self.owner_email)


class Outbox:
    """The mailer's session; what it asks takes effect between being sent and being answered."""

    def __init__(self, world):
        self._world = world
        self._held = None  # what a transaction has not committed yet
        self.closed = False

    async def fetch(self, sql, *args):
        await self._travel()
        name = NAMES[sql]
        if self._world.rng.random() < self._world.refuses:
            if name == "settle_email":
                self._world.rows[args[0]].explained += 1
            raise DatabaseError("55P03", "refused")
        rows = getattr(self, name)(*args)
        await self._travel()
        return rows

    execute = fetch

    async def _travel(self):
        await asyncio.sleep(self._world.rng.random() * 0.01)
        if self.closed:
            raise DatabaseAway("gone")

    @contextlib.asynccontextmanager
    async def transaction(self):
        self._held = held = []
        try:
            yield
            await self._travel()
        finally:
            self._held = None
        for change in held:
            change()

    def _do(self, change):
        if self._held is None:
            change()
        else:
            self._held.append(change)
        return []

    def read_emails(self, now_us, _order, page, waiting, _operators):
        due = [
            row
            for row in self._world.queued()
            if row.next_attempt_at <= now_us and row.mail_domain not in waiting
        ]
        due.sort(key=lambda row: (row.next_attempt_at, row.email_id))
        return [
            {**dataclasses.asdict(row), "perhaps_sent": row.perhaps_sent, "mail_domain": row.mail_domain}
            for row in due[:page]
        ]

    def claim_email(self, email_id, attempts, again_us, message_id, _subject):
        row = self._world.rows[email_id]
        if row.state != "queued" or row.attempts != attempts:
            return []
        row.attempts, row.error, row.next_attempt_at = attempts + 1, None, again_us
        row.message_id = row.message_id or message_id
        return [row.message_id]

    def settle_email(self, email_id, state, error, _sent_us):
        row = self._world.rows[email_id]

        def change():
            if row.state == "queued":
                row.state, row.error = state, error

        return self._do(change)

    def suspend_owner(self, *_):
        return []


class Server:
    """A Post, and the server behind it."""

    def __init__(self, world):
        self._world = world

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        """Nothing is open."""

    async def rest(self):
        """Nothing is open."""

    async def send(self, message, *, connected):
        world, rng = self._world, self._world.rng
        row = world.rows[int(message["Message-ID"].partition(".")[2].partition("@")[0])]
        await asyncio.sleep(rng.random() * 0.2)
        if world.mood == "away":
            return Deferred("connection: refused", server=True)
        await connected()
        await asyncio.sleep(rng.random() * 0.2)
        if row.owner_email.startswith("nobody") and world.mood == "good":
            row.refused = True
            return Rejected("RCPT TO: 550 no such user", recipient=True)
        if world.mood == "defers":
            return Deferred("DATA: 451 later")
        if world.mood in {"silent", "cuts"}:
            return await self._in_doubt(row, message)
        row.accepted.append(message["Message-ID"])
        await asyncio.sleep(rng.random() * 0.2)
        return Sent("OK queued")

    async def _in_doubt(self, row, message):
        world = self._world
        if world.rng.random() < 0.5:
            row.accepted.append(message["Message-ID"])
            row.explained += 1
        if world.mood == "silent":
            await asyncio.sleep(SILENT_S)
        return Deferred("DATA: the server ended the connection", doubt=True)


class MailWorld:
    """One history of mails.

    Args:
        seed: of everything.
        make: the class that takes the Mailer's place.
    """

    def __init__(self, seed, make=Mailer):
        self.seed = seed
        self.make = make
        self.rng = random.Random(seed)
        self.loop = VirtualLoop(random.Random(seed + 1))
        self.context = contextvars.copy_context()
        self.logger = Quiet()
        self.rows = {}
        self.mood, self.refuses = "good", 0.0
        self.mailer = self.session = self.living = self.failure = None
        self.lives = 0
        self.owners = [f"owner{n}@shop.example" for n in range(OWNERS)] + ["nobody@shop.example"]

    def wall_us(self):
        return NOON_US + round(self.loop.time() * 1e6)

    def queued(self):
        return [row for row in self.rows.values() if row.state == "queued"]

    # The desk and its nemesis

    def _tell(self, owner):
        """Put news into the outbox, as the monitor does: a waiting mail is superseded, unless perhaps sent."""
        waiting = [row for row in self.queued() if row.owner_email == owner]
        if any(row.perhaps_sent or row.email_id == self.mailer.sending for row in waiting):
            return
        for row in waiting:
            row.state = "superseded"
        email_id = len(self.rows) + 1
        now_us = self.wall_us()
        digest = orjson.dumps(dataclasses.asdict(Digest(Kind.FAILING, owner, "en", now_us, now_us))).decode()
        self.rows[email_id] = Email(email_id, owner, now_us, digest)
        self.wake.set()

    async def _write(self):
        while self.loop.time() < FAULTS_END_S:
            await asyncio.sleep(self.rng.random() * 60)
            self._tell(self.rng.choice(self.owners))

    async def _harass(self):
        rng = self.rng
        while self.loop.time() < FAULTS_END_S:
            await asyncio.sleep(rng.random() * rng.choice((1.0, 60.0)))
            match rng.choice(FAULTS):
                case "kill":
                    self._kill()
                case "freeze":
                    self._excuse()
                    self.loop.freeze("mailer")
                    self.loop.call_later(rng.random() * 100, self.loop.thaw, "mailer")
                case "session":
                    self._excuse()
                    self.session.closed = True
                case "refuse":
                    self.refuses = rng.choice((0.0, 0.0, 0.2))
                case _:
                    self.mood = rng.choice(MOODS)

    def _excuse(self):
        """Explain that the mail being sent now will come again."""
        if self.mailer.sending is not None:
            self.rows[self.mailer.sending].explained += 1

    def _kill(self):
        self._excuse()
        self.loop.thaw("mailer")
        self.living.cancel()

    # The mailer

    async def _live(self):
        while True:
            self.lives += 1
            self.session = Outbox(self)
            self.mailer = self._make()
            self.living = self.loop.create_task(self.mailer.run())
            await asyncio.wait((self.living,))
            if not self.living.cancelled() and not isinstance(self.living.exception(), DatabaseAway):
                self.failure = self.living.exception()
                return
            await asyncio.sleep(self.rng.random())

    def _make(self):
        self.wake = asyncio.Event()
        return self.make(
            self.session,
            Server(self),
            Letters(),
            Context(self.logger, self.loop.time, self.wall_us, self.rng.random),
            settings=MailSettings(sender="hooks@platform.example"),
            wake=self.wake,
            beat=lambda: None,
        )

    # The history

    async def _history(self):
        context = contextvars.copy_context()
        context.run(WHOSE.set, "mailer")
        living = self.loop.create_task(self._live(), context=context)
        await asyncio.sleep(0)
        await asyncio.gather(self._write(), self._harass())
        self.loop.thaw("mailer")
        self.mood, self.refuses = "good", 0.0
        end = self.loop.time() + ENDED_WITHIN_S
        while self.queued() and self.failure is None:
            if self.loop.time() > end:
                raise BrokenError(f"never sent: {self.queued()[:3]}")
            await asyncio.sleep(30)
        if self.failure is not None:
            raise BrokenError(f"the mailer ended with {self.failure!r}") from self.failure
        self._check()
        living.cancel()
        self._kill()
        await asyncio.wait((living, self.living))

    def run(self):
        """Live the history; raise BrokenError, with the seed in it, where an invariant does not hold."""
        beat, beating.BEAT_S = beating.BEAT_S, BEAT_S
        try:
            self.loop.run_until_complete(self._history())
        except BaseException as error:
            error.add_note(f"PGHOOKD_TEST_SEED={self.seed}")
            raise
        finally:
            beating.BEAT_S = beat
            left = asyncio.all_tasks(self.loop)
            for task in left:
                task.cancel()
            if left:
                self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self.loop.close()

    # Invariants

    def _check(self):
        latest = {}
        for row in self.rows.values():
            latest[row.owner_email] = row
            self._check_row(row)
        if untold := [row for row in latest.values() if row.state not in {"sent", "failed"}]:
            raise BrokenError(f"untold {untold}")

    def _check_row(self, row):
        came = collections.Counter(row.accepted)
        if row.state == "sent" and not came:
            raise BrokenError(f"never came {row}")
        if row.state == "failed" and not row.refused:
            raise BrokenError(f"given up {row}")
        if row.state == "superseded" and came and row.attempts <= DOUBTS_MAX:
            raise BrokenError(f"replaced what was sent {row}")
        if came.keys() - {row.message_id}:
            raise BrokenError(f"under another name {row}")
        if came.total() > 1 + row.explained:
            raise BrokenError(f"came again {row}")


def mail_histories(seeds):
    """Live several; return how many mails came and how many lives there were."""
    mails = lives = 0
    for seed in seeds:
        world = MailWorld(seed)
        world.run()
        mails += sum(len(row.accepted) for row in world.rows.values())
        lives += world.lives
    return mails, lives
