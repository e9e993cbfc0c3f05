"""A whole history in virtual time: producers, receivers, faults, and the daemon's own loops, life after life.

One seed is one history. What must hold is asked at the end (`check`), of what is stored and what receivers saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import re

from memory_postgres import Database, MemorySession, Stored, snapshot_of
from virtual import VirtualLoop

from pghookd import epoch
from pghookd.core import breaker, envelope, home, verdict
from pghookd.core.lanes import Lanes
from pghookd.core.manner import Defaults
from pghookd.core.model import Fault, Outcome, Reply
from pghookd.core.order import Order
from pghookd.core.snapshot import Log
from pghookd.edge.filter import Filters
from pghookd.edge.postgres import DatabaseAway, DatabaseError, query
from pghookd.edge.rows import shard_of
from pghookd.loops import read as reading
from pghookd.loops.deliver import Deliverer, Terms
from pghookd.loops.read import Reader
from pghookd.loops.record import Recorder
from pghookd.loops.retry import DueRows
from pghookd.loops.retry import Terms as Aside

SHARDS = 2
MOODS = ("good", "flaky", "hangs", "busy", "down", "gone")
SERVER = home.Server(1, 1, "00000001", 0, in_recovery=False)
FAULTS_END_S = (8.0, 14.0, 14.0, 40.0)  # then everything heals
DRAINED_WITHIN_S = 400.0
LOST_AFTER_S = 60.0  # what has no row by then never will
IDLE_PAUSE_S = 0.05  # of a reader; the daemon's own would make most of a history reads of nothing
_HEAD = re.compile(rb"webhook-id: (\S+).*x-webhook-attempt: (\d+)", re.DOTALL)


class BrokenError(AssertionError):
    """An invariant does not hold."""


class Quiet:
    """A logger that keeps only what says that the daemon is broken."""

    def __init__(self):
        self.broken = []

    def info(self, *_, **__):
        """Drop it."""

    debug = warning = error = info

    def exception(self, event, **_):
        self.broken.append(event)


@dataclasses.dataclass
class Trouble:
    """How badly statements fare."""

    slow: float = 0.0
    refuse: float = 0.0

    def travel_s(self, rng):
        if rng.random() < self.slow:
            return rng.random() * 1.5
        return max(0.0, rng.random() - 0.5) * 0.004

    def refuses(self, rng, name):
        return self.refuse > 0 and name != "read_shards" and rng.random() < self.refuse


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
    """A Sender whose requests end at receivers with moods."""

    def __init__(self, world):
        self._world = world

    def aim(self, url):
        return url

    async def post(self, target, head, _body, timeout_s):
        world, rng = self._world, self._world.rng
        match = _HEAD.search(head)
        event_id, attempt = envelope.event_id_of(match[1].decode()), int(match[2])
        endpoint_id = int(target.rpartition("/")[2])
        await asyncio.sleep(rng.random() * 0.03)
        status, retry_after = world.mood(endpoint_id)
        seen = Sighting(world.now(), world.life, event_id, endpoint_id, attempt, status)
        world.seen.append(seen)
        if status == 0:
            await asyncio.sleep(timeout_s)
            return Fault(Outcome.TIMEOUT, "response")
        await asyncio.sleep(rng.random() * 0.03)
        return Reply(status, retry_after=retry_after)


class Crew:
    """The daemon's loops of one life, wired as an epoch wires them."""

    def __init__(self, world, sessions, log, stored):
        self._stored = stored
        self._database = world.database
        self.logger = world.logger
        loop, make = world.loop, world.make
        rng = world.rng
        common = {"logger": world.logger, "monotonic": loop.time}
        room = asyncio.Event()
        self.lanes = Lanes(
            concurrency=world.concurrency,
            endpoint_concurrency=4,
            queue_bytes_max=world.queue_bytes_max,
            policy=breaker.Policy(6, 0.5, 1.0, 5.0),
        )
        filters = Filters(**common)
        self.order = make.get("order", Order)(self.lanes)
        self.due = DueRows(
            self.lanes,
            self.order,
            log,
            filters,
            shards=SHARDS,
            terms=Aside(1.0),
            logger=world.logger,
            random01=rng.random,
        )
        self.record_session = sessions[1]
        self.recorder = make.get("recorder", Recorder)(
            sessions[1],
            log,
            self.lanes,
            self.order,
            SERVER,
            self.due,
            **common,
            batch_max=world.batch_max,
            batch_wait_s=0.005,
            heartbeat_s=2.0,
            recorded=lambda: self.deliverer.kick(),  # noqa: PLW0108 - made later
            beat=lambda: None,
        )
        policy = verdict.Policy(world.schedule, 0.2, 0.5, 5.0, 1e6)
        self.deliverer = Deliverer(
            make.get("sender", Receivers)(world),
            self.lanes,
            self.recorder,
            sessions[2],
            Terms(
                world.concurrency,
                world.batch_max,
                10_000,
                2,
                Defaults("sim", world.timeout_s, "standard", policy),
                0,
            ),
            **common,
            wall_us=world.database.now_us,
            random01=rng.random,
            room=room,
            beat=lambda: None,
        )
        self.reader = make.get("reader", Reader)(
            sessions[0],
            log,
            self.lanes,
            self.order,
            self.recorder,
            filters,
            shards=SHARDS,
            kick=self.deliverer.kick,
            room=room,
            **common,
            beat=lambda: None,
        )

    async def run(self):
        """Live until something ends it."""
        await self.due.begin(self.record_session, 0.0)
        await self.recorder.begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read())
            group.create_task(self.recorder.run())
            group.create_task(self.deliverer.run())

    async def _read(self):
        for (position, floor, front), shards in epoch._walks(self._stored).items():
            await self.reader.recover(position, epoch.Marks(floor, front), shards)
        self.order.recovered = True
        await self.reader.run(self)

    async def sleep(self, read):
        """Sleep as the bell does: a last read after the ask, then until it rings."""
        news = self._database.news
        news.clear()
        if not await read():
            await news.wait()

    @property
    def idle(self):
        lanes = self.lanes
        return not (lanes.flying or lanes.queued or self.recorder.unrecorded or lanes.aboard)


class World:
    """One history.

    Args:
        seed: of everything.
        make: other classes in the place of the daemon's: recorder, reader, order, sender, marks.
    """

    def __init__(self, seed, make=None):
        self.seed = seed
        self.make = make or {}
        self.rng = random.Random(seed)
        self.loop = VirtualLoop(random.Random(seed + 1))
        self.database = Database(self.loop, SHARDS)
        self.database.switched = self._notify
        self.logger = Quiet()
        self.seen = []
        self.life = 0
        self.crew = None
        self.failure = None
        self.trouble = Trouble()
        self.moods = {}
        self.sessions = []
        self.ends = []  # of lives
        rng = self.rng
        self.concurrency = rng.choice((2, 8, 32))
        self.batch_max = rng.choice((2, 5, 50))
        self.queue_bytes_max = rng.choice((20, 10**6))
        self.page = rng.choice((2, 5, 1000))
        self.stormy = rng.random()
        self.faults_end_s = rng.choice(FAULTS_END_S)
        self.timeout_s = rng.choice((4.0, 15.0))
        self.schedule = rng.choice(((0.3, 1.0, 2.0, 3.0, 5.0), (0.2, 0.2)))
        self.share_ordered = rng.choice((0.2, 0.9))
        self._make_endpoints()

    def now(self):
        return self.loop.time()

    def _make_endpoints(self):
        for endpoint_id in range(1, self.rng.randint(2, 5) + 1):
            ordered = self.rng.random() < self.share_ordered
            self.database.endpoints[endpoint_id] = {
                "endpoint_id": endpoint_id,
                "site_id": f"s{self.rng.randrange(2)}",
                "url": f"http://receiver.example/{endpoint_id}",
                "event_types": ["*"],
                "enabled": self.rng.random() > 0.1,
                "from_event_id": 0,
                "secret": None,
                "source": None,
                "concurrency": None,
                "timeout_s": None,
                "options": '{"ordered":true}' if ordered else None,
            }
            self.moods[endpoint_id] = self.rng.choice(("good", *MOODS))

    def mood(self, endpoint_id):
        """Return the status of an answer (0: none comes) and its Retry-After."""
        match self.moods[endpoint_id]:
            case "flaky":
                return (500 if self.rng.random() < 0.4 else 200), None
            case "hangs":
                return (0 if self.rng.random() < 0.5 else 200), None
            case "busy":
                return (429, "1") if self.rng.random() < 0.4 else (200, None)
            case "down":
                return 503, None
            case "gone":
                return (410 if self.rng.random() < 0.1 else 200), None
            case _:
                return 200, None

    # Producers and nemesis

    async def _produce(self):
        rng, database = self.rng, self.database
        for _ in range(rng.randint(1, 5)):
            await asyncio.sleep(rng.random() * 3)
            transaction, events = database.begin(), []
            for _ in range(rng.choice((1, 1, 2, 6))):
                key = rng.choice((None, "a", "b"))
                site = f"s{rng.randrange(2)}"
                now = database.now_us()
                events.append(Stored(transaction.xid, database.draw(), site, key, now, self.now()))
                if rng.random() < 0.5:
                    await asyncio.sleep(rng.random() * rng.choice((0.01, 0.1, 4.0)))
            if rng.random() < 0.15:
                database.end(transaction, commit=False)
            else:
                database.commit_events(transaction, events)

    async def _harass(self):
        rng = self.rng
        while self.now() < self.faults_end_s:
            await asyncio.sleep(rng.random() * 4 / (0.2 + self.stormy))
            match rng.choice(("crash", "session", "restart", "slow", "refuse", "mood", "switch", "switch")):
                case "crash":
                    self._kill()
                case "session":
                    if self.sessions:
                        rng.choice(self.sessions).terminate()
                case "restart":
                    self.database.restart()
                    self._lose_all()
                case "slow":
                    self.trouble.slow = rng.choice((0.0, 0.05, 0.3))
                case "refuse":
                    self.trouble.refuse = rng.choice((0.0, 0.02, 0.1))
                case "mood":
                    endpoint_id = rng.choice(list(self.moods))
                    self.moods[endpoint_id] = rng.choice(MOODS)
                case _:
                    self._switch(rng.choice(list(self.moods)), on=rng.random() < 0.5, heard=0.9)

    def _switch(self, endpoint_id, *, on, heard=1.0):
        self.database.endpoints[endpoint_id]["enabled"] = on
        self._notify(endpoint_id, heard)

    def _notify(self, endpoint_id, heard=1.0):
        if self.crew is not None and self.rng.random() < heard:
            crew, delay_s = self.crew, self.rng.random() * 0.2
            self.loop.call_later(delay_s, crew.reader.endpoints_changed, [endpoint_id])

    def _heal(self):
        self.trouble = self.trouble.__class__()
        for session in self.sessions:
            session._trouble = self.trouble
        for endpoint_id in self.moods:
            self.moods[endpoint_id] = "good"
            self._switch(endpoint_id, on=True)

    def _kill(self):
        if self._living is not None:
            self._living.cancel()

    def _lose_all(self):
        for session in self.sessions:
            session.terminate()

    # The daemon

    async def _live(self):
        while True:
            self.life += 1
            self._living = self.loop.create_task(self._one_life())
            await asyncio.wait((self._living,))
            self.crew = None
            self._lose_all()
            self.ends.append(self.now())
            if not self._living.cancelled() and (error := self._living.exception()) is not None:
                for one in _leaves(error):
                    if not isinstance(one, DatabaseAway | DatabaseError):
                        self.failure = one
                        return
            await asyncio.sleep(self.rng.random())

    async def _one_life(self):
        sessions = self.sessions = [MemorySession(self.database, self.rng, self.trouble) for _ in range(3)]
        stored = [shard_of(row) for row in await sessions[1].fetch(query("read_shards"))]
        await asyncio.sleep(self.rng.random() * 0.01)
        now = snapshot_of(self.database)
        reason = home.why_foreign(SERVER, stored, now, self.database.last_value)
        if reason is not None:
            raise BrokenError(f"taken for another database: {reason}")
        marks = epoch._marks(stored)
        if "marks" in self.make:
            marks = self.make["marks"](marks)
        self.crew = Crew(self, sessions, Log(now, epoch._shard_logs(stored), marks), stored)
        watching = asyncio.ensure_future(_when_lost(sessions))
        try:
            running = asyncio.ensure_future(self.crew.run())
            try:
                await asyncio.wait((running, watching), return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    running.result()
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
        finally:
            watching.cancel()

    # The history

    async def _history(self):
        self._living = None
        living = asyncio.ensure_future(self._live())
        harassing = asyncio.ensure_future(self._harass())
        await asyncio.gather(*(self._produce() for _ in range(self.rng.randint(1, 5))), harassing)
        self._heal()
        end = self.now() + DRAINED_WITHIN_S
        while not living.done() and not self._drained():
            if self.now() > end:
                raise BrokenError(f"not drained: {self._left()}")
            await asyncio.sleep(0.5)
            for endpoint_id, row in self.database.endpoints.items():
                if not row["enabled"]:  # by an answer that was on its way
                    self._switch(endpoint_id, on=True)
        if self.failure is not None:
            raise BrokenError(f"the daemon ended with {self.failure!r}") from self.failure
        self._check()
        living.cancel()
        self._kill()
        await asyncio.wait((living, self._living))

    def _drained(self):
        if self.crew is None or not self.crew.idle or self.database.table["backlog"]:
            return False
        newest = max((event.committed_at for event in self.database.events.values()), default=0.0)
        return not self._lost() or self.now() - newest > LOST_AFTER_S

    def _left(self):
        crew = self.crew
        if crew is None:
            return "no life"
        lanes = crew.lanes
        backlog = list(self.database.table["backlog"].values())[:3]
        return f"flying {lanes.flying} queued {lanes.queued} aboard {len(lanes.aboard)} backlog {backlog}"

    def run(self):
        """Live the history; raise BrokenError, with the seed in it, where an invariant does not hold."""
        paces = reading.PAGE, reading.PAUSE_MAX_S
        reading.PAGE, reading.PAUSE_MAX_S = self.page, IDLE_PAUSE_S
        try:
            self.loop.run_until_complete(self._history())
        except BaseException as error:
            error.add_note(f"PGHOOKD_TEST_SEED={self.seed}")
            raise
        finally:
            reading.PAGE, reading.PAUSE_MAX_S = paces
            with contextlib.suppress(Exception):
                self._end()
            self.loop.close()

    def _end(self):
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    # What must hold

    def _expected(self):
        return {
            (event.event_id, row["endpoint_id"])
            for event in self.database.events.values()
            for row in self.database.endpoints.values()
            if row["site_id"] == event.site_id
        }

    def _settled(self):
        table = self.database.table
        done = {key[:2] for key, row in table["attempts"].items() if row["outcome"] == "delivered"}
        return done, set(table["backlog"]), set(table["dead"])

    def _lost(self):
        done, waiting, dead = self._settled()
        return self._expected() - done - waiting - dead

    def _check(self):
        if self.logger.broken:
            raise BrokenError(f"logged {self.logger.broken}")
        if lost := self._lost():
            raise BrokenError(f"lost {sorted(lost)}")
        done, waiting, dead = self._settled()
        if twice := (done & waiting) | (done & dead) | (waiting & dead):
            raise BrokenError(f"in two states {sorted(twice)}")
        if unexpected := (done | waiting | dead) - self._expected():
            raise BrokenError(f"unexpected {sorted(unexpected)}")
        self._check_attempts()
        self._check_order(dead)
        lanes = self.crew.lanes
        if lanes.flying or lanes.queued or lanes.queued_bytes or lanes.aboard:
            raise BrokenError(f"counters: {self._left()}, bytes {lanes.queued_bytes}")

    def _check_attempts(self):
        attempts = self.database.table["attempts"]
        numbers, seen = {}, {}
        for event_id, endpoint_id, number in attempts:
            numbers.setdefault((event_id, endpoint_id), []).append(number)
        for key, found in numbers.items():
            if sorted(found) != list(range(1, len(found) + 1)):
                raise BrokenError(f"attempts of {key}: {sorted(found)}")
        successes = {}
        for one in self.seen:
            seen.setdefault((*one.key, one.attempt), set()).add(one.status)
            if one.status == 200:
                successes.setdefault((*one.key, one.life), []).append(one)
            if one.life == self.life and (*one.key, one.attempt) not in attempts:
                raise BrokenError(f"hidden send {one}")
        for key, row in attempts.items():
            if (row["status"] or 0) not in seen.get(key, ()):
                raise BrokenError(f"phantom attempt {key} {row}")
        if repeated := [found for found in successes.values() if len(found) > 1]:
            raise BrokenError(f"delivered twice without a crash {repeated[0]}")

    def _check_order(self, dead):
        first, delivered = {}, {}  # when; a last attempt that fails ends a wait, though a crash may repeat it
        for one in self.seen:
            first.setdefault(one.key, one.at)
            if one.status == 200 or one.attempt > len(self.schedule):
                delivered.setdefault(one.key, one.at)
        for row in self.database.endpoints.values():
            if row["options"] is None:
                continue
            lines = {}
            for event in self.database.events.values():
                if event.site_id == row["site_id"]:
                    lines.setdefault(event.key, []).append(event)
            for line in lines.values():
                for a in line:
                    for b in line:
                        self._check_pair(a, b, row["endpoint_id"], first, delivered, dead)

    def _check_pair(self, a, b, endpoint_id, first, delivered, dead):
        if a.committed_at >= b.drawn_at:
            return
        before, after = (a.event_id, endpoint_id), (b.event_id, endpoint_id)
        if before in dead or after not in first:
            return
        if delivered[before] > first[after]:
            raise BrokenError(f"out of order at {endpoint_id}: {a.event_id} after {b.event_id}")


def histories(seeds):
    """Live several; return how many requests and lives they had."""
    requests = lives = 0
    for seed in seeds:
        world = World(seed)
        world.run()
        requests += len(world.seen)
        lives += world.life
    return requests, lives


async def _when_lost(sessions):
    while not any(session.closed for session in sessions):  # noqa: ASYNC110 - found late, as in life
        await asyncio.sleep(0.2)


def _leaves(error):
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]
