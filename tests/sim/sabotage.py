"""Daemons that are broken on purpose, to show that the simulation would notice. Each takes the place of a real part."""

from __future__ import annotations

from instance import Receivers
from memory_postgres import visible

from pghookd.core.lanes import Offer
from pghookd.core.model import Outcome, Reply
from pghookd.core.order import Order
from pghookd.core.snapshot import Marks, settle
from pghookd.core.writes import Attempted
from pghookd.edge.postgres import columns, query
from pghookd.loops.mail import Mailer
from pghookd.loops.read import Reader
from pghookd.loops.record import Recorder
from pghookd.loops.replay import Replays


class StoresTooEarly(Recorder):
    """Stores the position before the batch commits."""

    async def _flush(self, rows):
        for write in self._pending[:rows]:
            settle(write.delivery)
        self._stored_rows, self._stored_at = -1, -100.0
        await self._store(self._monotonic())
        await super()._flush(rows)


class DropsOutcomes(Recorder):
    """Takes an outcome in so many for recorded."""

    async def _write(self, writes):
        kept = [w for w in writes if not (isinstance(w, Attempted) and w.delivery.event.event_id % 5 == 0)]
        if kept:
            await super()._write(kept)


class HasNoFence(Recorder):
    """Sends on, whether it owns or not."""

    def closed(self, _now):
        return None


class DropsReplays(Replays):
    """Takes what is on its way for what has been sent."""

    async def step(self, session, now, put):
        await super().step(session, now, put)
        table = session._database.table
        replayed = [key for key, row in table["backlog"].items() if row["reason"] == "replay"]
        await session.execute(query("clear_backlog"), *columns(replayed, 2))


class HighFloor(Marks):
    """Takes a snapshot's xmax for a border below which every transaction has ended."""

    def __init__(self, real):
        super().__init__(real._floor, real._front)
        self._marks = real._marks

    def floor(self, snapshot):
        return self.front(snapshot)


class ReadsByGreatestId(Reader):
    """Takes whatever lies below the greatest id that it has seen for read."""

    _greatest = 0

    async def _page(self, rows, *args, **kwargs):
        rows = [row for row in rows if row[0] > self._greatest]
        self._greatest = max([self._greatest, *(row[0] for row in rows)])
        await super()._page(rows, *args, **kwargs)


class SkipsRunning(Reader):
    """Forgets what was running when it read last: new is only what began since."""

    async def _page(self, rows, end, shards, difference):
        if not difference.again:
            events = self._session._database.events
            rows = [
                row for row in rows if not visible(events[row[0]].xid, difference.since._replace(xips=()))
            ]
        await super()._page(rows, end, shards, difference)


class ForgetsWhatWasLeft(Reader):
    """Takes what a site had too much of for read."""

    async def _take_aside(self):
        for site_id, parts in self._aside.turns(1):
            self._aside.taken(site_id, len(parts[0].event_ids), None)
        return 0


class ForgetsSlices(Reader):
    """Takes an event for dealt with once the first of a site's endpoints have it."""

    def _take(self, site_id, part, event_ids, rows, takers, *args):
        if takers is not None:
            takers.slice_end = None
        return super()._take(site_id, part, event_ids, rows, takers, *args)


class ClosesPagesEarly(Reader):
    """Takes a page for settled while some of its events are still to be dealt with."""

    async def _deal(self, rows, takers, page, difference):
        await super()._deal(rows, takers, page, difference)
        page.close()
        page._tickets.clear()


class SkipsEvents(Reader):
    """Leaves an event in so many out."""

    async def _page(self, rows, *args, **kwargs):
        await super()._page([row for row in rows if row[0] % 7], *args, **kwargs)


class SendsTwice(Receivers):
    """Sends now and then a second time."""

    async def post(self, target, head, body, timeout_s):
        answer = await super().post(target, head, body, timeout_s)
        if self._world.rng.random() < 0.1:
            await super().post(target, head, body, timeout_s)
        return answer


class NeverSends(Receivers):
    """Takes a delivery for made before it is."""

    async def post(self, target, head, body, timeout_s):
        if self._world.rng.random() < 0.1:
            return Reply(200)
        return await super().post(target, head, body, timeout_s)


class TakesTimeoutsForDelivered(Receivers):
    """Takes no answer for a good one."""

    async def post(self, target, head, body, timeout_s):
        answer = await super().post(target, head, body, timeout_s)
        timed_out = getattr(answer, "outcome", None) is Outcome.TIMEOUT
        return Reply(200) if timed_out else answer


class Disorder(Order):
    """Lets everything of a line into the lane at once."""

    def offer(self, lane, delivery, now):
        offer = self._lanes.offer(lane, delivery, now)
        return offer if offer is not Offer.BEHIND else Offer.WAIT


class TakesRowsEarly(Order):
    """After recovery, takes rows of a line while earlier ones, that recovery has put behind, are not written yet."""

    def _note_row(self, lot, line, delivery, *, was_in):
        super()._note_row(lot, line, delivery, was_in=was_in)
        if not self._is_read(delivery.event.site_id) and not delivery.in_backlog:
            line.returning.discard(delivery.event.event_id)


class TakesRowsBeforeTheUnread(Order):
    """Takes rows of a site while earlier events of it, that recovery has left in the log, are still unread."""

    @property
    def unread(self):
        return set()

    @unread.setter
    def unread(self, _sites):
        pass


class ForgetsItsMails(Mailer):
    """Takes what was sent for what is still to be sent."""

    async def _settle(self, row, state, error, sent_us=None):
        if state != "sent" or row["attempts"]:
            await super()._settle(row, state, error, sent_us)


class GivesMailsUp(Mailer):
    """Takes not now for never."""

    async def _defer(self, row, outcome, _again_us):
        await self._settle(row, "failed", outcome.error)
        return 0.0


class ForgetsDoubts(Mailer):
    """Takes a mail for not sent because a later try was refused."""

    async def _take(self, row):
        return await super()._take({**row, "perhaps_sent": False})


class NamesMailsAnew(Mailer):
    """Gives each try of a mail a name of its own."""

    def _render(self, row):
        subject, message = super()._render({**row, "message_id": None})
        message.replace_header("Message-ID", f"<{row['attempts']}{message['Message-ID'][1:]}")
        return subject, message


# What takes the daemon's place, and what it is caught by.
SABOTAGES = {
    "stores the position before the batch commits": ({"recorder": StoresTooEarly}, "lost"),
    "drops outcomes": ({"recorder": DropsOutcomes}, "lost|hidden|attempts of|not drained"),
    "takes xmax for the floor": ({"marks": HighFloor}, "lost"),
    "reads by the greatest id": ({"reader": ReadsByGreatestId}, "lost"),
    "forgets what was running": ({"reader": SkipsRunning}, "lost"),
    "skips events": ({"reader": SkipsEvents}, "lost"),
    "sends twice": ({"sender": SendsTwice}, "twice"),
    "takes it for sent before it is": ({"sender": NeverSends}, "phantom"),
    "takes a timeout for delivered": ({"sender": TakesTimeoutsForDelivered}, "phantom"),
    "lets lines run loose": ({"order": Disorder}, "out of order"),
    "has no fence": ({"recorder": HasNoFence}, "does not own"),
    "forgets what was left in the log": ({"reader": ForgetsWhatWasLeft}, "lost"),
    "forgets slices": ({"reader": ForgetsSlices}, "lost"),
    "closes pages early": ({"reader": ClosesPagesEarly}, "lost"),
    "takes rows before what recovery has left": ({"order": TakesRowsBeforeTheUnread}, "out of order"),
    "drops replays": ({"replays": DropsReplays}, "replayed and not sent|lost"),
    "takes rows before recovery has written": ({"order": TakesRowsEarly}, "out of order"),
}

MAIL_SABOTAGES = {
    "forgets what it has mailed": (ForgetsItsMails, "came again"),
    "gives mails up": (GivesMailsUp, "given up"),
    "forgets that a mail may have been sent": (ForgetsDoubts, "replaced what was sent"),
    "names mails anew": (NamesMailsAnew, "another name"),
}

# These show in one of some hundred or thousand histories: where to begin.
FIRST_SEED = {
    "has no fence": 100,
    "takes rows before recovery has written": 600_300,
}
# How many it takes to notice; None: as the seed says.
INSTANCES = {"has no fence": 2}
