"""A whole history in virtual time: producers, receivers, faults, and the daemon's own loops, life after life.

One seed is one history. The invariants are checked at the end (`check`), on the stored rows and the receivers'
requests.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import dataclasses
import itertools
import random

from instance import SHARDS, Instance
from memory_postgres import Database, Stored
from virtual import VirtualLoop

from pghookd.event_log.reading import endpoints, pages, reader, refill, settled
from pghookd.scheduling import capacity as memory
from support.life import is_move

OF_INSTANCES = ("crash", "freeze", "session")
FAULTS = (*OF_INSTANCES, "restart", "slow", "refuse", "mood", "replay", "cancel", "switch", "switch")
HEARD = 0.9  # of notifications
HOSTS = ("even.example", "odd.example")  # of receivers
FATES = ("fine", "fine", "fine", "invalid", "expired", "later")  # of events with keys
MOODS = ("good", "flaky", "hangs", "busy", "down", "gone")
FAULTS_END_S = (8.0, 14.0, 14.0, 40.0)  # then everything heals
DRAINED_WITHIN_S = 400.0
LOST_AFTER_S = 60.0  # a delivery without a row by then is lost
PROBES_EVERY_S = 0.2  # between two checks of the waits of open breakers
IDLE_PAUSE_S = 0.05  # of a reader; the daemon's own would make most of a history reads of nothing


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


class World:
    """One history.

    Args:
        seed: of everything.
        make: other classes in the place of the daemon's: recorder, reader, order, lanes, sender, marks, fan_out, due,
            keys.
        instances: how many share the database; None: as the seed says.
    """

    def __init__(self, seed, make=None, instances=None):
        self.seed = seed
        self.make = make or {}
        self.rng = random.Random(seed)
        self.loop = VirtualLoop(random.Random(seed + 1))
        self.database = Database(self.loop, SHARDS)
        self.database.switched = self._notify
        self.database.superseding = self._note_superseded
        self.database.moved = self._note_move
        self.logger = Quiet()
        self.seen = []
        self.lives = 0
        self.failure = None
        self.trouble = Trouble()
        self.moods = {}
        self.ends = []  # of lives
        self.firsts = []  # the event recorded as the first of each dedupe_key, at the beginning of each life that owns
        self.unfounded = []  # deliveries that died superseded, and no newer event may replace them
        rng = self.rng
        self.concurrency = rng.choice((2, 8, 32))
        self.batch_max = rng.choice((2, 5, 50))
        self.queue_bytes_max = rng.choice((20, 10**6))
        self.page = rng.choice((2, 5, 1000))
        self.sizes = self._sizes(random.Random(seed + 2))
        self.stormy = rng.random()
        self.faults_end_s = rng.choice(FAULTS_END_S)
        self.timeout_s = rng.choice((4.0, 15.0))
        self.schedule = rng.choice(((0.3, 1.0, 2.0, 3.0, 5.0), (0.2, 0.2)))
        self.share_ordered = rng.choice((0.2, 0.9))
        self.wishes = random.Random(seed + 2)  # of producers: further fates of an event
        self.share_unsendable = self.wishes.choice((0.0, 0.0, 0.3, 0.9))
        self.share_keyed = rng.choice((0.0, 0.3, 0.9))
        self.context = (
            contextvars.copy_context()
        )  # of the parts that belong to no instance: the network, receivers
        self._make_endpoints()
        count = instances or rng.choice((1, 1, 1, 2, 3))
        self.instances = [Instance(self, f"instance {n}") for n in range(count)]

    def _sizes(self, rng):
        """Return the daemon's bounds as this history has them: small enough that a few events and endpoints part."""
        at_once = rng.choice((1, 3, memory.SITE_PAGE_MAX))
        pairs = rng.choice((1, 3, pages.PAIRS_A_STEP))
        settled_max = rng.choice((1, settled.SETTLED_MAX))
        sites = rng.choice((1, pages.SITES_A_READ))
        return [
            (reader, "PAGE", self.page),
            (pages, "PAGE", self.page),
            (pages, "SKIM", 3 * self.page),
            (reader, "PAUSE_MAX_S", IDLE_PAUSE_S),
            (refill, "PAUSE_S", IDLE_PAUSE_S),
            (pages, "PAUSE_S", IDLE_PAUSE_S),
            *((module, "PAIRS_A_STEP", pairs) for module in (pages, refill)),
            (settled, "SETTLED_MAX", settled_max),
            *((module, "SITES_A_READ", sites) for module in (pages, refill)),
            (endpoints, "SLICE", rng.choice((1, 2, endpoints.SLICE))),
            (memory, "SITE_PAGE_MAX", at_once),
            (memory, "REFILL_LEAST", min(at_once, memory.REFILL_LEAST)),
        ]

    def now(self):
        return self.loop.time()

    def _make_endpoints(self):
        for endpoint_id in range(1, self.rng.randint(2, 5) + 1):
            ordered = self.rng.random() < self.share_ordered
            self.database.endpoints[endpoint_id] = {
                "endpoint_id": endpoint_id,
                "site_id": f"s{self.rng.randrange(2)}",
                "url": f"http://{HOSTS[endpoint_id % 2]}/{endpoint_id}",
                "event_types": ["*"],
                "enabled": self.rng.random() > 0.1,
                "from_event_id": 0,
                "secret": None,
                "source": None,
                "concurrency": None,
                "timeout_s": None,
                "options": '{"ordered":true}' if ordered else None,
                "revision": endpoint_id,
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
                events.append(self._perhaps_unsendable(self._event(transaction)))
                if rng.random() < 0.5:
                    await asyncio.sleep(rng.random() * rng.choice((0.01, 0.1, 4.0)))
            if rng.random() < 0.15:
                database.end(transaction, commit=False)
            else:
                database.commit_events(transaction, events)

    def _perhaps_unsendable(self, event):
        """Make some events expire soon, and others too large, which shows only when one is sent."""
        wishes = self.wishes
        if wishes.random() < self.share_unsendable:
            if wishes.random() < 0.5:
                event.is_too_large = True
            else:
                event.deliver_before = event.created_at + int(wishes.random() * 5e6)
        return event

    def _event(self, transaction):
        """Make an event; a third has keys, and some of those can never be delivered, or not yet."""
        rng, database = self.rng, self.database
        key = rng.choice((None, "a", "b"))
        site = f"s{rng.randrange(2)}"
        now = database.now_us()
        event = Stored(transaction.xid, database.draw(), site, key, now, self.now())
        if rng.random() < self.share_keyed:
            event.dedupe_key = rng.choice((None, "a", "b", "c"))
            event.supersede_key = rng.choice((None, "a", "b"))
            match rng.choice(FATES):
                case "invalid":
                    event.type = "no type"
                case "expired":
                    event.deliver_before = now
                case "later":
                    event.deliver_after = now + int(rng.random() * 10e6)
        return event

    async def _harass(self):
        rng = self.rng
        while self.now() < self.faults_end_s:
            await asyncio.sleep(rng.random() * 4 / (0.2 + self.stormy))
            fault = rng.choice(FAULTS)
            if fault in OF_INSTANCES:
                self._harm(rng.choice(self.instances), fault)
            else:
                self._hamper(fault)

    def _harm(self, instance, fault):
        match fault:
            case "crash":
                instance.kill()
            case "freeze":
                instance.freeze(self.rng.random() * self.rng.choice((1.0, 15.0)))
            case "session" if instance.sessions:
                instance.lose([self.rng.choice(instance.sessions)])

    def _hamper(self, fault):
        rng = self.rng
        match fault:
            case "restart":
                self.database.restart()
                for instance in self.instances:
                    instance.lose()
            case "slow":
                self.trouble.slow = rng.choice((0.0, 0.05, 0.3))
            case "refuse":
                self.trouble.refuse = rng.choice((0.0, 0.02, 0.1))
            case "mood":
                self.moods[rng.choice(list(self.moods))] = rng.choice(MOODS)
            case "replay":
                self._replay()
            case "cancel" if self.database.table["backlog"]:
                self.database.cancel(rng.choice(sorted(self.database.table["backlog"])))
            case _:
                self._switch(rng.choice(list(self.moods)), on=rng.random() < 0.5, heard=HEARD)

    def _replay(self):
        rng = self.rng
        states = rng.choice((("dead",), ("delivered",), ("dead", "delivered")))
        self.database.start_replay(states, rng.choice((1.0, 10.0, 1000.0)), self.database.last_value)
        if self.crew is not None and rng.random() < HEARD:
            self.crew.engine.replays.ring()

    def _switch(self, endpoint_id, *, on, heard=1.0):
        self.database.endpoints[endpoint_id]["enabled"] = on
        self._notify(endpoint_id, heard)

    def _notify(self, endpoint_id, heard=1.0):
        for crew in [instance.crew for instance in self.instances if instance.crew is not None]:
            if self.rng.random() < heard:
                delay_s = self.rng.random() * 0.2
                for listener in (crew.engine.fan_out, crew.engine.backlog):
                    self.loop.call_later(delay_s, listener.endpoints_changed, [endpoint_id])

    def _heal(self):
        self.trouble = self.trouble.__class__()
        for instance in self.instances:
            self.loop.thaw(instance.name)
            for session in instance.sessions:
                session._trouble = self.trouble
        for endpoint_id in self.moods:
            self.moods[endpoint_id] = "good"
            self._switch(endpoint_id, on=True)

    @property
    def crew(self):
        """The loops of the instance that owns; None where it is not clear which."""
        crews = [instance.crew for instance in self.instances if instance.crew is not None]
        return crews[0] if len(crews) == 1 else None

    # The history

    async def _history(self):
        living = [instance.start() for instance in self.instances]
        living.append(self.loop.create_task(self._watch_probes()))
        harassing = asyncio.ensure_future(self._harass())
        await asyncio.gather(*(self._produce() for _ in range(self.rng.randint(1, 5))), harassing)
        self._heal()
        end = self.now() + DRAINED_WITHIN_S
        while self.failure is None and not self._drained():
            if self.now() > end:
                raise BrokenError(f"not drained: {self._left()}")
            await asyncio.sleep(0.5)
            for endpoint_id, row in self.database.endpoints.items():
                if not row["enabled"]:  # by an answer in flight
                    self._switch(endpoint_id, on=True)
        if self.failure is not None:
            raise BrokenError(f"the daemon ended with {self.failure!r}") from self.failure
        self._check()
        for each in living:
            each.cancel()
        for instance in self.instances:
            instance.kill()
        await asyncio.wait((*living, *(instance.living for instance in self.instances)))

    async def _watch_probes(self):
        """Note each wait of an open breaker that begins although no request was sent since the one before."""
        waits = {}  # when a probe may go out, and how many requests there were when that was found out
        while True:
            await asyncio.sleep(PROBES_EVERY_S)
            asked = collections.Counter((one.life, one.endpoint_id) for one in self.seen)
            found = {}
            for instance in self.instances:
                lanes = {} if instance.crew is None else instance.crew.lanes.known.by_endpoint
                for endpoint_id, lane in lanes.items():
                    if lane.breaker.is_open:
                        key = (instance.life, endpoint_id)
                        probe_at, before = waits.get(key, (lane.breaker.probe_at, asked[key] - 1))
                        if lane.breaker.probe_at > probe_at:
                            if asked[key] == before:
                                self.logger.broken.append(f"waits again for a probe that was not sent {key}")
                            before = asked[key]
                        found[key] = (lane.breaker.probe_at, before)
            waits = found

    def _drained(self):
        crew = self.crew
        if crew is None or not crew.idle or self.database.table["backlog"]:
            return False
        if self.database.find_replays():
            return False
        newest = max((event.committed_at for event in self.database.events.values()), default=0.0)
        return not self._lost() or self.now() - newest > LOST_AFTER_S

    def _left(self):
        crew = self.crew
        if crew is None:
            return "no life"
        lanes = crew.lanes
        in_flight, queued = lanes.turns.in_flight, lanes.capacity.queued
        in_memory = len(lanes.backlog_index.in_memory)
        backlog = list(self.database.table["backlog"].values())[:3]
        return f"in flight {in_flight} queued {queued} in memory {in_memory} backlog {backlog}"

    def run(self):
        """Live the history; raise BrokenError, with the seed in it, where an invariant does not hold."""
        sizes = [(module, name, getattr(module, name)) for module, name, _ in self.sizes]
        for module, name, size in self.sizes:
            setattr(module, name, size)
        try:
            self.loop.run_until_complete(self._history())
        except BaseException as error:
            error.add_note(f"PGHOOKD_TEST_SEED={self.seed}")
            raise
        finally:
            for module, name, size in sizes:
                setattr(module, name, size)
            with contextlib.suppress(Exception):
                self._end()
            self.loop.close()

    def _end(self):
        left = asyncio.all_tasks(self.loop)
        for task in left:
            task.cancel()
        if left:
            self.loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    # Invariants

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

    def note_firsts(self):
        """Note which events are recorded as the first of their dedupe_keys: an instance begins to own."""
        taken = self.database.taken_for_firsts()
        firsts = {}
        for event in self.database.events.values():
            if event.dedupe_key is not None and event.event_id in taken:
                firsts.setdefault((event.site_id, event.dedupe_key), set()).add(event.event_id)
        self.firsts.append(firsts)

    def _note_move(self, key, before, state, reason):
        if not is_move(before, state, reason):
            self.logger.broken.append(f"{key} went from {before} to {state}, {reason}")

    def _note_superseded(self, event_id, endpoint_id):
        """Take a delivery that dies superseded: a newer event must be there that can go, or was sent in time.

        One that has expired itself while its death was not recorded has lost nothing by it.
        """
        events = self.database.events
        sent = {one.key[0] for one in self.seen if one.key[1] == endpoint_id}
        older, dead = events[event_id], self.database.table["dead"]
        if older.can_go(self.database.now_us()) and not any(
            (newer.site_id, newer.supersede_key) == (older.site_id, older.supersede_key)
            and newer.event_id > event_id
            and (newer.event_id in sent or newer.can_go(self.database.now_us()))
            and dead.get((newer.event_id, endpoint_id), {}).get("reason") not in {"duplicate", "superseded"}
            for newer in events.values()
        ):
            self.unfounded.append((event_id, endpoint_id))

    def _check_keys(self):
        """Of each dedupe_key one event goes out: a second one only if a crash came before the first was recorded."""
        self.note_firsts()
        for before, after in itertools.pairwise([{}, *self.firsts]):
            for key, firsts in after.items():
                known = before.get(key, set())
                if len(firsts - known) > (not known):
                    raise BrokenError(f"duplicates of {key} sent: {sorted(firsts)}, known {sorted(known)}")
        keys = {(e.site_id, e.dedupe_key) for e in self.database.events.values() if e.dedupe_key is not None}
        for key in keys:
            if key not in self.firsts[-1] and any(row["site_id"] == key[0] for row in self._endpoints()):
                raise BrokenError(f"nothing of {key} sent")
        if self.unfounded:
            raise BrokenError(f"superseded by nothing {self.unfounded}")

    def _endpoints(self):
        return self.database.endpoints.values()

    def _check(self):
        if self.logger.broken:
            raise BrokenError(f"logged {self.logger.broken}")
        if lost := self._lost():
            raise BrokenError(f"lost {sorted(lost)}")
        done, waiting, dead = self._settled()
        replayed = self._check_replays(dead)
        cancelled = {k for k, row in self.database.table["dead"].items() if row["reason"] == "cancelled"}
        if twice := (done & waiting) | (done & dead) - replayed.keys() - cancelled | (waiting & dead):
            raise BrokenError(f"in two states {sorted(twice)}")
        if unexpected := (done | waiting | dead) - self._expected():
            raise BrokenError(f"unexpected {sorted(unexpected)}")
        self._check_keys()
        self._check_attempts(replayed)
        self._check_evidence()
        self._check_order(dead | replayed.keys())
        lanes, capacity = self.crew.lanes, self.crew.lanes.capacity
        if lanes.turns.in_flight or capacity.queued or capacity.queued_bytes or lanes.backlog_index.in_memory:
            raise BrokenError(f"counters: {self._left()}, bytes {capacity.queued_bytes}")

    def _check_replays(self, dead):
        """Count the replays of each delivery; each time it was attempted again, with any outcome."""
        attempts = self.database.table["attempts"]
        replayed = collections.Counter()
        for replay in self.database.table["replays"].values():
            for key, before in replay["taken"]:
                replayed[key] += 1
                if (*key, before + 1) not in attempts and key not in dead:
                    raise BrokenError(f"replayed and not sent {key}")
        return replayed

    def _check_attempts(self, replayed):
        attempts = self.database.table["attempts"]
        numbers, seen = {}, {}
        alive = next(instance.life for instance in self.instances if instance.crew is not None)
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
            if one.life == alive and (*one.key, one.attempt) not in attempts:
                raise BrokenError(f"hidden send {one}")
        for key, row in attempts.items():
            if (row["status"] or 0) not in seen.get(key, ()):
                raise BrokenError(f"phantom attempt {key} {row}")
        if repeated := [f for (*key, _), f in successes.items() if len(f) > 1 + replayed[tuple(key)]]:
            raise BrokenError(f"delivered twice without a crash {repeated[0]}")

    def _check_evidence(self):
        """Compare the cause and the revision of each attempt with those that the rows of all replays leave open."""
        table = self.database.table
        replayed = {(*key, n + 1) for replay in table["replays"].values() for key, n in replay["taken"]}
        for key, row in table["attempts"].items():
            first = {"replay"} if key in replayed else {"live", "recovery"}
            causes = first if key[2] == 1 or key in replayed else {"retry"}
            if row["cause"] not in {"probe", *causes} or row["revision"] != key[1]:
                raise BrokenError(f"evidence of {key} {row}")

    def _check_order(self, dead):
        first, delivered = {}, {}  # when
        for one in self.seen:
            first.setdefault(one.key, one.at)
            if one.status == 200:
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
        lives += world.lives
    return requests, lives
