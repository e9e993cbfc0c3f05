"""Daemons that are broken on purpose, to show that the simulation would notice. Each takes the place of a real part."""

from __future__ import annotations

import dataclasses

from instance import Receivers
from memory_postgres import visible

from pghookd.delivery.backlog.admission import Admission
from pghookd.delivery.backlog.due import Backlog
from pghookd.delivery.recording.recorder import Recorder
from pghookd.delivery.replays import Replays
from pghookd.event_log.fan_out import FanOut
from pghookd.event_log.position import BEGINNING, XidMarks, settle
from pghookd.event_log.reading.pages import Pages
from pghookd.event_log.reading.refill import Refill
from pghookd.event_log.sieve import Sieve
from pghookd.event_log.supersede import Keys
from pghookd.model.delivery import Outcome, Reason, Reply, State
from pghookd.model.event_type import valid_type
from pghookd.model.outcome import AttemptWrite, BacklogWrite
from pghookd.owner_mail.mailer import Mailer
from pghookd.postgres.client import columns, query
from pghookd.scheduling.intake import Offer
from pghookd.scheduling.lanes import Lanes
from pghookd.scheduling.ordering import Order


class StoresTooEarly(Recorder):
    """Stores the position before the batch commits."""

    async def _flush(self, rows):
        for delivery in self._pending.deliveries():
            settle(delivery)
        await self._positions.store(self._monotonic())
        await super()._flush(rows)


class DropsOutcomes(Recorder):
    """Takes an outcome in so many for recorded."""

    async def _write(self, writes):
        dropped = [w for w in writes if isinstance(w, AttemptWrite) and w.delivery.event.event_id % 5 == 0]
        await super()._write([write for write in writes if write not in dropped])
        for write in dropped:
            self._settle(write)


class HasNoFence(Recorder):
    """Sends on, whether it owns or not."""

    def closed(self, _now):
        return None


class DropsReplays(Replays):
    """Takes deliveries in flight for sent ones."""

    async def step(self, session, now, put):
        await super().step(session, now, put)
        table = session._database.table
        replayed = [key for key, row in table["backlog"].items() if row["reason"] == "replay"]
        await session.execute(query("clear_backlog"), *columns(replayed, 2))
        return False


class HighFloor(XidMarks):
    """Takes a snapshot's xmax for a border below which every transaction has ended."""

    def __init__(self, real):
        super().__init__(real._floor, real._front)
        self._marks = real._marks

    def floor(self, snapshot):
        return self.front(snapshot)


class ReadsByGreatestId(Pages):
    """Takes every event below the greatest id that it has seen for read."""

    _greatest = 0

    async def page(self, rows, *args, **kwargs):
        rows = [row for row in rows if row[0] > self._greatest]
        self._greatest = max([self._greatest, *(row[0] for row in rows)])
        await super().page(rows, *args, **kwargs)


class SkipsRunning(Pages):
    """Forgets the transactions that ran when it read last: only those that began since are new."""

    async def page(self, rows, end, shards, difference):
        if not difference.again:
            events = self._session._database.events
            rows = [
                row for row in rows if not visible(events[row[0]].xid, difference.since._replace(xips=()))
            ]
        await super().page(rows, end, shards, difference)


class ForgetsWhatWasLeft(Refill):
    """Takes what a site had too much of for read."""

    async def take(self):
        for site_id, parts in self.deferred.turns(1):
            self.deferred.taken(site_id, len(parts[0].event_ids), None)
        return 0


class ForgetsSlices(Refill):
    """Takes an event for dealt with once the first of a site's endpoints have it."""

    def _take(self, site_id, part, event_ids, rows, takers, *args):
        if takers is not None:
            takers.slice_end = None
        return super()._take(site_id, part, event_ids, rows, takers, *args)


class ClosesPagesEarly(Pages):
    """Takes a page for settled while some of its events are still to be dealt with."""

    async def _deal(self, rows, takers, page, difference):
        await super()._deal(rows, takers, page, difference)
        page.close()
        page._tickets.clear()


class SkimsTooFar(Pages):
    """Passes one event more than it has left in the log."""

    async def _skim(self, walk):
        count = await super()._skim(walk)
        walk.last_event_id += count > 0
        return count


class SkipsEvents(Pages):
    """Leaves an event in so many out."""

    async def page(self, rows, *args, **kwargs):
        await super().page([row for row in rows if row[0] % 7], *args, **kwargs)


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
        offer = self._lanes.intake.offer(lane, delivery, now)
        return offer if offer is not Offer.BEHIND else Offer.WAIT


class TakesRowsEarly(Order):
    """After recovery, takes rows of a line while earlier ones, that recovery has put behind, are not written yet."""

    def _note_row(self, lot, line, delivery, *, was_in):
        super()._note_row(lot, line, delivery, was_in=was_in)
        if not self._is_read(delivery.event.site_id) and not delivery.in_backlog:
            line.returning.discard(delivery.event.event_id)


class WaitsAfterNothing(Lanes):
    """Takes a probe that ended without a request for one that failed."""

    def unsent(self, lane, delivery):
        if delivery is lane.probe:
            lane.breaker.probe_at += lane.breaker.wait_s
        super().unsent(lane, delivery)


class SharesNoSlots(Lanes):
    """Gives all slots to the first site that comes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._slots.admits = lambda _member: True


class ForgetsTheDifference(Sieve):
    """Takes the least id of a dedupe_key for the first, despite earlier reads."""

    async def _look_up_firsts(self, keys, difference):
        return await super()._look_up_firsts(keys, dataclasses.replace(difference, since=BEGINNING))


class ForgetsWhatWasDecided(Sieve):
    """Decides about dedupe_keys during recovery as if nothing had been recorded."""

    async def _look_up_firsts(self, keys, difference):
        return await super()._look_up_firsts(keys, dataclasses.replace(difference, again=False))


class DecidesByPage(Sieve):
    """Searches only the page for the first of a dedupe_key."""

    async def _find_firsts(self, keys, _difference):
        firsts = {}
        for event, key in keys.items():
            firsts[key] = min(event.event_id, firsts.get(key, event.event_id))
        return firsts


class GivesDuplicatesRows(FanOut):
    """Gives a duplicate a row, as a checkpoint would that comes before the reader has decided about it."""

    async def _bury_duplicates(self, work, difference):
        self._has_dedupe_keys = False
        others, duplicates = await self._sieve.part(work, difference)
        for delivery in duplicates:
            self._outbox.put(BacklogWrite(delivery, State.WAITING, Reason.QUEUED), self._monotonic())
        return others


class NotesWhatCannotGo(Keys):
    """Takes an event for the newest of its supersede_key although its time is over."""

    def note(self, delivery):
        self._wall_us = lambda: 0
        super().note(delivery)
        if delivery.newest is not None:
            delivery.newest.before_us = None


class NotesWhatHasToWait(FanOut):
    """Takes an event for the newest of its supersede_key before its time has come."""

    def _offer(self, work, **options):
        for _, delivery in work:
            if valid_type(delivery.event.type):
                self._log.keys.note(delivery)
        super()._offer(work, **options)


class NotesBeforeTheType(FanOut):
    """Takes an event for the newest of its supersede_key whatever its type."""

    def _offer(self, work, **options):
        for _, delivery in work:
            if delivery.event.options is not None and not delivery.event.options.wait_s:
                self._log.keys.note(delivery)
        super()._offer(work, **options)


class TakesAnyNewer(Admission):
    """Takes any newer event of a supersede_key for one that replaces, dead or not."""

    __slots__ = ()

    async def _find_superseded(self, session, taken):
        events = session._database.events.values()
        keyed = [d for _, d in taken if d.event.options is not None and d.event.options.supersede_key]
        return {
            (d.event.event_id, d.endpoint_id)
            for d in keyed
            for newer in events
            if newer.supersede_key == d.event.options.supersede_key
            and newer.site_id == d.event.site_id
            and newer.event_id > d.event.event_id
        }


class TakesTheDeadForNewer(Backlog):
    """Admits rows so."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._admission.__class__ = TakesAnyNewer


class TakesRowsBeforeTheUnread(Order):
    """Takes rows of a site while earlier events of it, that recovery has left in the log, are still unread."""

    @property
    def unread(self):
        return set()

    @unread.setter
    def unread(self, _sites):
        pass


class ForgetsItsMails(Mailer):
    """Takes sent mails for unsent ones."""

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


# Parts that take the place of the daemon's, and the error that must catch each.
SABOTAGES = {
    "stores the position before the batch commits": ({"recorder": StoresTooEarly}, "lost"),
    "drops outcomes": ({"recorder": DropsOutcomes}, "lost|hidden|attempts of|not drained"),
    "takes xmax for the floor": ({"marks": HighFloor}, "lost"),
    "reads by the greatest id": ({"pages": ReadsByGreatestId}, "lost"),
    "forgets what was running": ({"pages": SkipsRunning}, "lost"),
    "skips events": ({"pages": SkipsEvents}, "lost"),
    "skims too far": ({"pages": SkimsTooFar}, "lost"),
    "sends twice": ({"sender": SendsTwice}, "twice"),
    "takes it for sent before it is": ({"sender": NeverSends}, "phantom"),
    "takes a timeout for delivered": ({"sender": TakesTimeoutsForDelivered}, "phantom"),
    "lets lines run loose": ({"order": Disorder}, "out of order"),
    "has no fence": ({"recorder": HasNoFence}, "does not own"),
    "forgets what was left in the log": ({"refill": ForgetsWhatWasLeft}, "lost"),
    "forgets slices": ({"refill": ForgetsSlices}, "lost"),
    "closes pages early": ({"pages": ClosesPagesEarly}, "lost"),
    "takes rows before what recovery has left": ({"order": TakesRowsBeforeTheUnread}, "out of order"),
    "drops replays": ({"replays": DropsReplays}, "replayed and not sent|lost"),
    "takes rows before recovery has written": ({"order": TakesRowsEarly}, "out of order"),
    "waits after a probe that was not sent": ({"lanes": WaitsAfterNothing}, "waits again"),
    "shares no slots": ({"lanes": SharesNoSlots}, "more than its share"),
    "forgets what came before a difference": ({"sieve": ForgetsTheDifference}, "duplicates of|nothing of"),
    "forgets what was decided about keys": ({"sieve": ForgetsWhatWasDecided}, "duplicates of|nothing of"),
    "decides about keys by page": ({"sieve": DecidesByPage}, "duplicates of"),
    "gives duplicates rows": ({"fan_out": GivesDuplicatesRows}, "duplicates of"),
    "notes newer events that are over": ({"keys": NotesWhatCannotGo}, "superseded by nothing"),
    "notes newer events that have to wait": ({"fan_out": NotesWhatHasToWait}, "superseded by nothing"),
    "notes newer events of no type": ({"fan_out": NotesBeforeTheType}, "superseded by nothing"),
    "takes the dead for newer": ({"backlog": TakesTheDeadForNewer}, "superseded by nothing"),
}

MAIL_SABOTAGES = {
    "forgets what it has mailed": (ForgetsItsMails, "came again"),
    "gives mails up": (GivesMailsUp, "given up"),
    "forgets that a mail may have been sent": (ForgetsDoubts, "replaced what was sent"),
    "names mails anew": (NamesMailsAnew, "another name"),
}

# These show in one of some hundred or thousand histories: where to begin.
FIRST_SEED = {
    "has no fence": 600,
    "takes rows before recovery has written": 3_460,
}
# How many it takes to notice; None: as the seed says.
INSTANCES = {"has no fence": 2, "takes rows before recovery has written": None}
