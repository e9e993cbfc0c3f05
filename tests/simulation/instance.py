"""One daemon of a history: its loops, wired as an epoch wires them, life after life, and the Sender of its requests.

This file decides which parts stop with a frozen instance, and which go on without it (its server's part of a statement,
a request in flight). It must never know the invariants.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import dataclasses
import math
import re

from memory_postgres import MemorySession, snapshot_of
from virtual import WHOSE

from pghookd.delivery.attempt import DeliveryTerms
from pghookd.delivery.backlog.due import BacklogTerms
from pghookd.delivery.recording.recorder import RecorderTerms
from pghookd.event_log import identity
from pghookd.event_log.recovery import log_of
from pghookd.event_log.rows import shard_of
from pghookd.event_log.supersede import Keys
from pghookd.model.delivery import Fault, Outcome, Reply
from pghookd.postgres.client import DatabaseAway, DatabaseError, query
from pghookd.process.context import Context
from pghookd.runtime.assembly import Engine, EngineTerms, Parts, Start
from pghookd.runtime.ownership import own
from pghookd.scheduling import breaker
from pghookd.scheduling.lane import LaneTerms
from pghookd.webhook import envelope, judge
from pghookd.webhook.prepared import Defaults

PARTS = {field.name for field in dataclasses.fields(Parts)}
SHARDS = 2
SERVER = identity.ServerIdentity(1, 1, "00000001", 0, in_recovery=False)
LEASE_S = 5.0
PAYLOAD_BYTES_MAX = 10_000
_HEAD = re.compile(rb"webhook-id: (\S+).*x-webhook-attempt: (\d+)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Sighting:
    """A request that a receiver has decided about."""

    at: float
    life: int
    event_id: int
    endpoint_id: int
    attempt: int
    status: int

    @property
    def key(self):
        return (self.event_id, self.endpoint_id)


class Receivers:
    """A Sender whose requests end at receivers with moods; one in flight arrives even if we crash."""

    def __init__(self, instance):
        self._instance = instance
        self._world = instance.world
        self._holding = collections.Counter()  # requests in flight of this life, by site and by host

    def target_of(self, url, _certificate, **_options):
        return url

    async def post(self, target, head, _body, timeout_s):
        match = _HEAD.search(head)
        key = (envelope.event_id_of(match[1].decode()), int(target.rpartition("/")[2]))
        self._instance.sends(key)
        holders = self._world.database.endpoints[key[1]]["site_id"], target.rpartition("/")[0]
        self._holding.update(holders)
        self._check_shares(*holders)
        try:
            return await self._answer(key, int(match[2]), timeout_s)
        finally:
            self._holding.subtract(holders)

    def _check_shares(self, site, host):
        """A site holds half of the slots at most, a host three quarters."""
        slots = self._world.concurrency
        if self._holding[site] > math.ceil(slots / 2) or self._holding[host] > math.ceil(slots * 3 / 4):
            self._world.logger.broken.append(f"more than its share of {slots} slots: {self._holding}")

    async def _answer(self, key, attempt, timeout_s):
        world = self._world
        arriving = self._arrive(self._instance.life, key, attempt)
        task = world.loop.create_task(arriving, context=world.context)
        status, retry_after = await asyncio.shield(task)
        if status == 0:
            await asyncio.sleep(timeout_s)
            return Fault(Outcome.TIMEOUT, "response")
        await asyncio.sleep(world.rng.random() * 0.03)
        return Reply(status, retry_after=retry_after)

    async def _arrive(self, life, key, attempt):
        world = self._world
        await asyncio.sleep(world.rng.random() * 0.03)
        status, retry_after = world.mood(key[1])
        world.seen.append(Sighting(world.now(), life, *key, attempt, status))
        return status, retry_after


class Crew:
    """The daemon's loops of one life, wired as an epoch wires them."""

    def __init__(self, instance, log, stored):
        world, (read, record, work) = instance.world, instance.sessions
        self.news = asyncio.Event()
        self.logger = world.logger
        self.record_session = record
        policy = judge.RetryPolicy(world.schedule, 0.2, 0.5, 5.0, 1e6)
        terms = EngineTerms(
            LaneTerms(
                concurrency=world.concurrency,
                endpoint_concurrency=4,
                queue_bytes_max=world.queue_bytes_max,
                policy=breaker.BreakerPolicy(6, 0.5, 1.0, 5.0),
            ),
            BacklogTerms(1.0, payload_bytes_max=PAYLOAD_BYTES_MAX),
            RecorderTerms(world.batch_max, 0.005, 1.0, LEASE_S),
            DeliveryTerms(
                world.concurrency,
                world.batch_max,
                PAYLOAD_BYTES_MAX,
                Defaults("sim", world.timeout_s, "standard", policy),
                0,
            ),
        )
        self.engine = Engine(
            Start(read, record, work, SERVER, stored, log),
            world.make.get("sender", Receivers)(instance),
            terms,
            Context(world.logger, world.loop.time, world.database.now_us, world.rng.random),
            beats=lambda _name: lambda: None,
            parts=Parts(**{name: part for name, part in world.make.items() if name in PARTS}),
        )
        self.lanes, self.recorder = self.engine.lanes, self.engine.recorder

    async def run(self):
        """Live until something ends it."""
        await self.engine.backlog.begin(self.record_session, 0.0)
        await self.recorder.begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.engine.read(self))
            group.create_task(self.recorder.run())
            group.create_task(self.engine.deliverer.run())

    async def sleep(self, read):
        """Sleep as the bell does: a last read after the ask, then until it rings."""
        self.news.clear()
        if not await read():
            await self.news.wait()

    @property
    def idle(self):
        lanes = self.lanes
        in_lanes = lanes.turns.in_flight + lanes.capacity.queued
        return not (in_lanes or self.recorder.waiting or lanes.backlog_index.in_memory)


async def _nothing():
    """Stand by without a word."""


class Instance:
    """One process after another, each with a life of its own; at any moment at most one of all instances owns.

    Attributes:
        sessions: of the present life: read, record, work.
        crew: while it owns.
        life: a number that no other life has.
        excused: it has lost sessions that others than it took from it, and may not know yet.
    """

    def __init__(self, world, name):
        self.world = world
        self.name = name
        self.sessions = []
        self.crew = None
        self.life = 0
        self.excused = False
        self.living = None
        self._context = contextvars.copy_context()
        self._context.run(WHOSE.set, name)

    def start(self):
        return self.world.loop.create_task(self._live(), context=self._context)

    def kill(self):
        self.world.loop.thaw(self.name)
        if self.living is not None:
            self.living.cancel()

    def freeze(self, for_s):
        loop = self.world.loop
        loop.freeze(self.name)
        loop.call_later(for_s, loop.thaw, self.name)

    def lose(self, sessions=None):
        """Lose sessions as if the server had ended them; None: all."""
        self.excused = True
        for session in self.sessions if sessions is None else sessions:
            session.terminate()

    def sends(self, key):
        """Note that a request leaves: while somebody else owns, none may."""
        owner = self.world.database.owner
        if owner is not None and owner not in self.sessions and not self.excused:
            self.world.logger.broken.append(f"{key} sent by {self.name}, which does not own")

    async def _live(self):
        world = self.world
        while True:
            world.lives += 1
            self.life, self.excused = world.lives, False
            self.living = world.loop.create_task(self._one_life())
            await asyncio.wait((self.living,))
            if self.crew is not None:
                world.database.bells.discard(self.crew.news)
            self.crew = None
            self.lose()
            world.ends.append(world.now())
            if not self.living.cancelled() and (error := self.living.exception()) is not None:
                for one in _leaves(error):
                    if not isinstance(one, DatabaseAway | DatabaseError):
                        world.failure = one
                        return
            await asyncio.sleep(world.rng.random())

    async def _one_life(self):
        world = self.world
        self.sessions = [
            MemorySession(world.database, world.rng, world.trouble, lease_s)
            for lease_s in (float("inf"), LEASE_S, float("inf"))
        ]
        watching = world.loop.create_future()
        for session in self.sessions:
            session.lost = lambda: self._notice(watching)
        running = asyncio.ensure_future(self._own())
        try:
            await asyncio.wait((running, watching), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        finally:
            watching.cancel()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def _notice(self, watching):
        """Find out that a session is lost: late, as in life."""

        def found():
            if not watching.done():
                watching.set_result(None)

        self.world.loop.call_later(self.world.rng.random() * 0.2, found)

    async def _own(self):
        world, record = self.world, self.sessions[1]
        await own(record, SHARDS, standing_by=_nothing)
        stored = [shard_of(row) for row in await record.fetch(query("read_shards"))]
        await asyncio.sleep(world.rng.random() * 0.01)
        now = snapshot_of(world.database)
        reason = identity.why_foreign(SERVER, stored, now, world.database.last_value)
        if reason is not None:
            world.logger.broken.append(f"taken for another database: {reason}")
        world.note_firsts()
        keys = world.make.get("keys", Keys)(PAYLOAD_BYTES_MAX, world.database.now_us)
        log = log_of(now, stored, keys)
        if "marks" in world.make:
            log.marks = world.make["marks"](log.marks)
        self.crew = Crew(self, log, stored)
        world.database.bells.add(self.crew.news)
        await self.crew.run()


def _leaves(error):
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]
