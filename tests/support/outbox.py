"""An outbox with its mailer, each step of which a test asks for itself; and one as a process that kills itself.

Time is the test's: nothing waits, `office.clock.pass_s(60)` is a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys

import orjson

from pghookd.egress.tls import trust
from pghookd.owner_mail.digest import OF_OPERATOR, Cause, Digest, Kind, MailSection
from pghookd.owner_mail.mailbox import domain_of, mailbox_of
from pghookd.owner_mail.mailer import Mailer
from pghookd.owner_mail.message import Letters
from pghookd.owner_mail.smtp import SmtpClient
from pghookd.postgres.client import connect
from pghookd.process import fail_points
from pghookd.settings.schema import MailSettings, SmtpSettings
from support import FOUND
from support.crew import Diary, context_of

SENDER = "hooks@platform.example"
NOON_US = 1_800_000_000_000_000


class Clock:
    """Both clocks, moved together."""

    def __init__(self):
        self.seconds = 1000.0

    def pass_s(self, seconds):
        self.seconds += seconds

    def monotonic(self):
        return self.seconds

    def wall_us(self):
        return NOON_US + round((self.seconds - 1000.0) * 1_000_000)


def digest(owner, kind=Kind.FAILING):
    section = MailSection(
        kind=Kind(kind),
        endpoint_id=7,
        site_id="s",
        site_name="Shop",
        url="https://shop.example/hook",
        cause=Cause.TIMEOUT,
        since_us=NOON_US - 600_000_000,
        last_failure_us=NOON_US - 1_000_000,
        types=(("order_created", 3),),
    )
    return Digest(
        kind=Kind(kind),
        owner_email=owner,
        language="en",
        at_us=NOON_US,
        since_us=section.since_us,
        sections=() if kind in OF_OPERATOR else (section,),
        storm=(40, 100, 30) if kind == Kind.STORM else None,
    )


class Office:
    """A mailer at a test's own pace, on a real database and a real server."""

    def __init__(self, session, port, *, clock=None, diary=None, mail=None, smtp=None, within_s=5.0):
        self.session = session
        self.clock = clock or Clock()
        self.diary = diary or Diary()
        self.wake = asyncio.Event()
        self.beats = 0
        settings = SmtpSettings(**{"host": "127.0.0.1", "port": port, "tls": "none", **(smtp or {})})
        self.post = SmtpClient(settings, context=trust(), monotonic=self.clock.monotonic, within_s=within_s)
        sending = MailSettings(**{"sender": SENDER, "rate_per_min": 60_000, **(mail or {})})
        self.mailer = Mailer(
            session,
            self.post,
            Letters(sending),
            context_of(self.clock.monotonic, self.diary, wall_us=self.clock.wall_us),
            settings=sending,
            wake=self.wake,
            beat=self._beat,
        )

    def _beat(self):
        self.beats += 1

    async def queue(self, owner, kind="failing", *, digest_text=None, window_us=0):
        """Queue a mail, as care does; return its email_id."""
        text = digest_text or orjson.dumps(dataclasses.asdict(digest(owner, kind))).decode()
        return await self.session.fetchval(
            "insert into webhooks.emails"
            " (owner_email, kind, window_start, digest, next_attempt_at, mailbox, mail_domain)"
            " values ($1, $2, $3, $4::text::jsonb, $5, $6, $7) returning email_id",
            owner,
            kind,
            NOON_US + window_us,
            text,
            self.clock.wall_us(),
            mailbox_of(owner),
            domain_of(owner),
        )

    async def row(self, email_id):
        return await self.session.fetchrow("select * from webhooks.emails where email_id = $1", email_id)

    async def step(self):
        return await self.mailer.step()

    async def drain(self):
        """Step, letting time pass as the mailer says, until nothing is due."""
        while await self.session.fetchval(
            "select count(*) from webhooks.emails where state = 'queued' and next_attempt_at <= $1",
            self.clock.wall_us(),
        ):
            self.clock.pass_s(min(await self.step(), 1.0))


@contextlib.asynccontextmanager
async def office(url, box, **options):
    """Open an Office on a database and a Mailbox."""
    session = await connect(url, name="mail")
    made = Office(session, box.port, **options)
    try:
        async with made.post:
            yield made
    finally:
        session.terminate()


# A process that kills itself ----------------------------------------------------------------------------------------


async def _run(url, port, where):
    async def kill_there(name):
        print(name, flush=True)
        if name == where:
            os.kill(os.getpid(), signal.SIGKILL)

    session = await connect(url, name="mail")
    made = Office(session, port)
    with fail_points.interrupted_by(kill_there):
        async with made.post:
            await made.step()


async def run_until_killed(url, port, where):
    """Run one step of a mailer in a process that ends itself with SIGKILL at a fail point; return its status."""
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, url, str(port), where, env=FOUND)
    async with asyncio.timeout(30):
        return await process.wait()


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
