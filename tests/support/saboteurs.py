"""`pghookd run` with one part that is broken on purpose: `python saboteurs.py NAME`, to show that the checks notice.

A broken part is a subclass that takes the real one's place where the daemon is wired; nothing else differs. Never
here: how it is noticed (test_sabotage.py), and parts that break in virtual time as well (tests/simulation/sabotage.py).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import sys

from pghookd.delivery import deliverer
from pghookd.delivery.attempt import Attempts
from pghookd.delivery.deliverer import Deliverer
from pghookd.delivery.recording.recorder import Recorder
from pghookd.egress.sender import Sender
from pghookd.event_log.doorbell import Bell
from pghookd.event_log.position import settle
from pghookd.event_log.reading.pages import Pages
from pghookd.model.delivery import Reply
from pghookd.model.outcome import AttemptWrite
from pghookd.owner_mail.smtp import SmtpClient
from pghookd.runtime import app, loops, mailing
from pghookd.runtime.assembly import Engine, Parts
from pghookd.settings import load
from pghookd.webhook.signing import signer_of

ONE_IN = 7  # of those that come to harm
DAY_US = 86_400_000_000
OTHER_SECRET = "whsec_c29tZWJvZHkgZWxzZSdzIHNlY3JldCwgMzIgYg=="


class NeverSends(Sender):
    """Takes a delivery for made before it is sent."""

    sends = 0

    async def post(self, target, head, body, timeout_s):
        self.sends += 1
        if self.sends % ONE_IN == 0:
            return Reply(200)
        return await super().post(target, head, body, timeout_s)


class SendsTwice(Sender):
    """Sends now and then a second time."""

    sends = 0

    async def post(self, target, head, body, timeout_s):
        self.sends += 1
        if self.sends % ONE_IN == 0:
            await super().post(target, head, body, timeout_s)
        return await super().post(target, head, body, timeout_s)


class TakesAnyAnswer(Sender):
    """Takes every answer for a 200."""

    async def post(self, target, head, body, timeout_s):
        answer = await super().post(target, head, body, timeout_s)
        return dataclasses.replace(answer, status=200) if isinstance(answer, Reply) else answer


class FollowsRedirects(Sender):
    """Goes where an answer says."""

    async def post(self, target, head, body, timeout_s):
        answer = await super().post(target, head, body, timeout_s)
        if isinstance(answer, Reply) and answer.location:
            return await super().post(self.target_of(answer.location), head, body, timeout_s)
        return answer


class AimsAtOthers(Sender):
    """Sends everything to the first destination."""

    first = None

    def target_of(self, url, *args, **options):
        self.first = self.first or super().target_of(url, *args, **options)
        return self.first


class SkipsEvents(Pages):
    """Leaves one event in a thousand out."""

    async def page(self, rows, *args, **kwargs):
        await super().page([row for row in rows if row[0] % 1000], *args, **kwargs)


class ReadsByGreatestId(Pages):
    """Takes every event below the greatest id that it has seen for read."""

    greatest = 0

    async def page(self, rows, *args, **kwargs):
        rows = [row for row in rows if row[0] > self.greatest]
        self.greatest = max([self.greatest, *(row[0] for row in rows)])
        await super().page(rows, *args, **kwargs)


class WritesJsonAnew(Pages):
    """Reads payloads and writes them as it likes: the same values in other bytes."""

    async def page(self, rows, *args, **kwargs):
        rows = [(*row[:5], json.dumps(json.loads(row[5])).encode(), *row[6:]) for row in rows]
        await super().page(rows, *args, **kwargs)


class DropsRows(Recorder):
    """Takes an outcome in so many for recorded."""

    async def _write(self, writes):
        kept = [
            w for w in writes if not (isinstance(w, AttemptWrite) and w.delivery.event.event_id % ONE_IN == 0)
        ]
        if kept:
            await super()._write(kept)


class CountsWrongly(Recorder):
    """Begins to count the attempts at two."""

    async def _write(self, writes):
        for write in writes:
            if isinstance(write, AttemptWrite) and not write.delivery.attempts:
                write.delivery.attempts = 1
        await super()._write(writes)


class HasNoFence(Recorder):
    """Sends on, whether it owns or not."""

    def closed(self, _now):
        return None


class StoresTooEarly(Recorder):
    """Stores the position before the batch commits, and is killed in between."""

    async def _flush(self, rows):
        deliveries = list(self._pending.deliveries())
        tickets = [delivery.ticket for delivery in deliveries if delivery.ticket]
        for delivery in deliveries:
            settle(delivery)
        if any(not ticket.open for ticket in tickets):
            await self._positions.store(self._monotonic())
            os.kill(os.getpid(), signal.SIGKILL)
        await super()._flush(rows)


class SleepsForEver(Bell):
    """Wakes up only if it is rung for."""

    def __init__(self, *parts, **more):
        super().__init__(*parts, **more | {"fallback_s": 0})


class WaitsNotAtAll(Deliverer):
    """Tries again at once."""

    def __init__(self, *parts, **more):
        *parts, terms, context = parts
        retry = dataclasses.replace(
            terms.defaults.retry, schedule=(0.001,) * len(terms.defaults.retry.schedule)
        )
        defaults = dataclasses.replace(terms.defaults, retry=retry)
        super().__init__(*parts, dataclasses.replace(terms, defaults=defaults), context, **more)


class LivesYesterday(Deliverer):
    """Has a clock that is a day slow."""

    def __init__(self, *parts, **more):
        *parts, context = parts
        slow = dataclasses.replace(context, wall_us=lambda: context.wall_us() - DAY_US)
        super().__init__(*parts, slow, **more)


class SignsForOthers(Attempts):
    """Signs with a secret that is not the endpoint's."""

    def _head(self, prepared, delivery, body, *more):
        other = dataclasses.replace(prepared, sign=signer_of(OTHER_SECRET))
        return super()._head(other, delivery, body, *more)


class LogsSecrets(Attempts):
    """Says with what it signs."""

    def _prepare(self, lane):
        self._logger.info("delivery.prepared", endpoint=dataclasses.asdict(lane.endpoint))
        return super()._prepare(lane)


class MailsTwice(SmtpClient):
    """Gives the server every mail a second time."""

    async def send(self, message, **more):
        await super().send(message, **more)
        return await super().send(message, **more)


@dataclasses.dataclass(frozen=True)
class Sabotage:
    """One broken part.

    Attributes:
        part: the class that takes a real part's place.
        story: the test's, in which it does harm.
        caught_by: the names of the checks that must say so; others may as well.
    """

    part: type
    story: str
    caught_by: frozenset[str] = frozenset()


def _caught(part, story, *checks):
    return Sabotage(part, story, frozenset(checks))


SABOTAGES = {
    "marks success before the send": _caught(NeverSends, "shop", "at_least_once", "no_false_success"),
    "skips one event in a thousand": _caught(SkipsEvents, "thousand", "conservation", "termination"),
    "sends twice": _caught(SendsTwice, "shop", "bounded_duplicates"),
    "drops result rows": _caught(DropsRows, "shop", "no_hidden_sends"),
    "writes 200 always": _caught(TakesAnyAnswer, "shop", "no_phantom", "no_false_success"),
    "counts attempts wrongly": _caught(CountsWrongly, "shop", "attempt_discipline"),
    "tries again at once": _caught(WaitsNotAtAll, "shop", "schedule"),
    "sends to others": _caught(AimsAtOthers, "shop", "isolation"),
    "writes the body anew": _caught(WritesJsonAnew, "shop", "integrity"),
    "signs with another secret": _caught(SignsForOthers, "shop", "integrity"),
    "lives a day late": _caught(LivesYesterday, "shop", "integrity"),
    "reads by the greatest id": _caught(ReadsByGreatestId, "overtaken", "conservation"),
    "stores the position before the batch commits": _caught(StoresTooEarly, "killed", "conservation"),
    "has no fence": _caught(HasNoFence, "frozen", "exclusion"),
    "never polls": _caught(SleepsForEver, "unheard", "wake_up", "termination"),
    "mails twice": _caught(MailsTwice, "mailed", "mails"),
    "logs a secret": _caught(LogsSecrets, "secret", "secrecy"),
    "follows redirects": _caught(FollowsRedirects, "redirected", "destinations"),
}
# Parts that the engine is made of, and where the others are wired.
PARTS = {Recorder: "recorder", Deliverer: "deliverer", Pages: "pages"}
PLACES = {
    Sender: (app, "Sender"),
    SmtpClient: (mailing, "SmtpClient"),
    Bell: (loops, "Bell"),
    Attempts: (deliverer, "Attempts"),
}


def put_in_place(part):
    """Build the daemon of this process with it."""
    replaced = part.__base__
    if replaced in PARTS:
        parts = Parts(**{PARTS[replaced]: part})
        loops.Engine = functools.partial(Engine, parts=parts)
    else:
        module, name = PLACES[replaced]
        setattr(module, name, part)


if __name__ == "__main__":
    if (found := SABOTAGES.get(sys.argv[1])) is not None:
        put_in_place(found.part)
    sys.exit(app.run(load.load(None, os.environ, None)))
