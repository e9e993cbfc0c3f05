"""The checks are checked on real daemons: each that is broken on purpose is caught by the check that is meant for it.

The table is `saboteurs.SABOTAGES`. Each story also runs with an intact daemon, which must pass all checks.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support import SUPPORT, checker
from support.events import emit
from support.mail_server import Mailbox
from support.receiver import Receiver, Response, read_log
from support.saboteurs import SABOTAGES
from support.secrecy import seen_in

pytestmark = pytest.mark.slow

PROGRAM = str(SUPPORT / "saboteurs.py")
HONEST = "nothing"
SECRET = "whsec_" + base64.b64encode(b"marker of the secret, 32 bytes..").decode()
PAYLOAD = '{ "n":  1e0 }'
WAITS_S = (0.5,)
PATIENCE_S = 20.0
GIVEN_UP_AFTER_S = 2.0  # on what never comes, of a broken daemon
AWAKE_WITHIN_S = 3.0  # ten times the poll: the machine may be busy
SETTINGS = {
    "retry_schedule": ",".join(f"{wait_s}s" for wait_s in WAITS_S),
    "retry_jitter": 0,
    "breaker_share": 0,
    "log_level": "debug",
}
ANSWERS = {
    "/flaky": lambda request: 500 if request.attempt == 1 else 200,
    "/lost": lambda _request: 500,
    "/slow": lambda _request: Response(delay_s=0.04),
}
LEASE = {"database_lease_s": 1.5, "database_heartbeat_s": 0.5, "delivery_concurrency": 32}
IN_FLIGHT = 32 + 100  # and what one batch has not recorded
MAILS = {
    "mail_sender": "hooks@platform.example",
    "mail_first_wait_s": 0.5,
    "mail_gap_s": 0.5,
    "mail_urgent_gap_s": 0.5,
    "mail_check_s": 0.1,
    "smtp_tls": "none",
    "smtp_host": "127.0.0.1",
}


@dataclasses.dataclass
class Stage:
    """The stage of a story: database, receiver and daemons."""

    name: str  # of the sabotage
    db: Any
    url: str
    receiver: Receiver
    log: Path
    start: Callable
    until: Callable

    async def daemon(self, name=None, **settings):
        program = [PROGRAM, name or self.name]
        return await self.start(self.url, program=program, **SETTINGS | settings)

    async def open(self, *paths, site="s"):
        await self.db.execute(
            "insert into webhooks.sites (site_id, name, owner_email) values ($1, 'a site', 'anna@shop.example')",
            site,
        )
        await self.db.executemany(
            "insert into webhooks.endpoints (site_id, url, secret, concurrency) values ($1, $2, $3, 32)",
            [(site, self.receiver.url(path), SECRET) for path in paths],
        )

    async def emit(self, count=1, site="s", db=None):
        await emit(db or self.db, count, site=site, payload=PAYLOAD)

    async def come_to_an_end(self, count):
        """Wait until so many deliveries have; of a broken daemon, until it is clear that they do not."""
        seconds = PATIENCE_S if self.name == HONEST else GIVEN_UP_AFTER_S
        ended = "select count(*) = $1 from webhooks.deliveries where state in ('delivered', 'dead')"
        with contextlib.suppress(TimeoutError):
            await self.until(lambda: self.db.fetchval(ended, count), seconds)

    async def check(self, daemon, *, repeats_max=0, **more):
        daemon.stop()
        await daemon.ended()
        return await checker.check(self.db, read_log(self.log), repeats_max=repeats_max, **more)


@pytest.fixture
async def stage(db, database, tmp_path, start, until):
    log = tmp_path / "received.jsonl"
    async with Receiver(log=log) as receiver:
        receiver.paths.update(ANSWERS)
        yield Stage(HONEST, db, database, receiver, log, start, until)


# Stories --------------------------------------------------------------------------------------------------------------


async def shop(stage):
    """Receivers that take everything, that refuse once, and that take nothing; another site's beside them."""
    await stage.open("/ok", "/flaky", "/lost")
    await stage.open("/other", site="t")
    daemon = await stage.daemon()
    await stage.emit(20)
    await stage.emit(20, "t")
    await stage.come_to_an_end(80)
    await stage.check(daemon, states=("delivered", "dead"), waits_s=WAITS_S)


async def thousand(stage):
    await stage.open("/ok")
    daemon = await stage.daemon()
    await stage.emit(1000)
    await stage.until(lambda: stage.receiver.count >= 999, 20)
    await stage.come_to_an_end(1000)
    await stage.check(daemon)


async def overtaken(stage, connect):
    """A transaction commits after a later one's event was delivered."""
    await stage.open("/ok")
    daemon = await stage.daemon()
    slow = await connect(stage.url)
    async with slow.transaction():
        await stage.emit(db=slow)
        await stage.emit()
        await stage.come_to_an_end(1)
    await stage.come_to_an_end(2)
    await stage.check(daemon)


async def killed(stage):
    """A daemon ends by SIGKILL, at the latest soon after a request; another one goes on."""
    await stage.open("/ok")
    dying = await stage.daemon()
    await stage.emit()
    await stage.receiver.wait_for(1)
    with contextlib.suppress(AssertionError):
        await dying.ended(0.5)
    await dying.kill()
    after = await stage.daemon(HONEST)
    await stage.come_to_an_end(1)
    await stage.check(after, repeats_max=1)


async def frozen(stage):
    """The owner is stopped until another one has taken over, then continues."""
    await stage.open("/slow")
    first = await stage.daemon(delivery_user_agent="first", **LEASE)
    second = await stage.daemon(HONEST, ready="standing by", delivery_user_agent="second", **LEASE)
    await stage.emit(1200)
    await stage.receiver.wait_for(200)
    first.freeze()
    await stage.until(lambda: stage.receiver.requests[-1].headers["user-agent"] == "second", 20)
    first.thaw()
    await first.wait_for("database.lost")
    await stage.come_to_an_end(1200)
    await first.kill()
    await stage.check(second, repeats_max=IN_FLIGHT, owners=("first", "second"))


async def unheard(stage):
    """Nobody rings."""
    await stage.open("/ok")
    daemon = await stage.daemon(poll_fallback_s=0.3)
    await daemon.wait_for("bell.slept")
    await stage.db.execute("set webhooks.bell = off")
    await stage.emit(3)
    await stage.come_to_an_end(3)
    await stage.check(daemon, awake_within_s=AWAKE_WITHIN_S)


async def mailed(stage):
    """An owner gets a mail."""
    await stage.open("/lost")
    async with Mailbox() as box:
        daemon = await stage.daemon(smtp_port=box.port, **MAILS)
        await stage.emit()
        sent = "select count(*) > 0 from webhooks.emails where state = 'sent'"
        await stage.until(lambda: stage.db.fetchval(sent), 20)
        daemon.stop()
        await daemon.ended()
        await checker.check_outbox(stage.db, box.accepted)


async def secret(stage):
    """A daemon says all that it can say."""
    await stage.open("/ok")
    daemon = await stage.daemon(log_successes="all")
    await stage.emit()
    await stage.come_to_an_end(1)
    daemon.stop()
    await daemon.ended()
    findings = checker.Findings()
    seen = seen_in("\n".join([*map(str, daemon.lines), *daemon.noise]), [SECRET])
    findings.hold("secrecy", not seen, "a secret was logged")
    findings.done()


async def redirected(stage):
    """A receiver redirects us to a server that must get no request."""
    await stage.open("/moved")
    async with Receiver() as canary:
        answer = Response(302, headers=(("location", canary.url("/canary")),))
        stage.receiver.paths["/moved"] = lambda _request: answer
        daemon = await stage.daemon()
        await stage.emit()
        await stage.until(lambda: stage.db.fetchval("select count(*) > 0 from webhooks.attempts"))
        daemon.stop()
        await daemon.ended()
        findings = checker.Findings()
        findings.hold("destinations", not canary.connections, f"{canary.connections} came to the canary")
        findings.done()


STORIES = {
    story.__name__: story
    for story in (shop, thousand, overtaken, killed, frozen, unheard, mailed, secret, redirected)
}


async def tell(story, stage, connect):
    await (story(stage, connect) if story is overtaken else story(stage))


@pytest.mark.parametrize("name", STORIES)
async def test_an_intact_daemon_passes_every_check(stage, connect, name):
    await tell(STORIES[name], stage, connect)


@pytest.mark.parametrize("name", SABOTAGES)
async def test_a_broken_daemon_is_caught_by_the_check_that_is_meant_for_it(stage, connect, name):
    stage.name, broken = name, SABOTAGES[name]
    with pytest.raises(checker.BrokenError) as caught:
        await tell(STORIES[broken.story], stage, connect)
    print(caught.value.checks)
    assert broken.caught_by <= caught.value.checks, str(caught.value)[:2000]
