"""The daemon in the test's own process: whole epochs, or its reader and recorder at a test's own pace.

Log events are kept as values to be waited for; the monotonic clock may be put forward, so that nobody waits
ten seconds for a rule of ten seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path

import structlog

from pghookd.cli.devtools import embedded_postgres
from pghookd.delivery.attempt import DeliveryTerms
from pghookd.delivery.backlog.due import BacklogTerms
from pghookd.delivery.recording.recorder import RecorderTerms
from pghookd.event_log.position import Snapshot, XidMarks, settle
from pghookd.event_log.recovery import log_of, walks_of
from pghookd.event_log.rows import shard_of
from pghookd.event_log.supersede import Keys
from pghookd.model.delivery import Outcome
from pghookd.model.outcome import AttemptWrite
from pghookd.model.verdict import Delivered
from pghookd.postgres import client, lock_keys, migrate
from pghookd.postgres.client import query
from pghookd.process.context import Context
from pghookd.process.host_id import host_id
from pghookd.runtime import app, epoch
from pghookd.runtime.assembly import Engine, EngineTerms, Start
from pghookd.runtime.liveness import Beats
from pghookd.runtime.loops import LOOPS, World
from pghookd.runtime.sessions import Sessions, identify
from pghookd.scheduling.lane import LaneTerms
from pghookd.settings.schema import Settings

SHARDS = 4


def seed():
    """Return a seed and print it; PGHOOKD_TEST_SEED repeats one."""
    chosen = int(os.environ.get("PGHOOKD_TEST_SEED") or random.randrange(1_000_000))
    print(f"PGHOOKD_TEST_SEED={chosen}")
    return chosen


def settings_of(url, **changes):
    """Return settings for tests: the fallback poll off, loopback allowed, few shards."""
    sections = {
        "database": {"url": url},
        "delivery": {"shards": SHARDS, "grace_s": 5.0},
        "egress": {"allow": ("127.0.0.0/8",), "ports": ("1-65535",)},
        "poll": {"fallback_s": 0},
        "retry": {"schedule": (0.01,) * 5, "jitter": 0.0, "throttle_floor_s": 0},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return Settings(**sections)


class Clock:
    """Monotonic seconds that can be put forward."""

    def __init__(self):
        self.ahead_s = 0.0

    def __call__(self):
        return time.monotonic() + self.ahead_s


class Diary:
    """A logger that keeps its lines."""

    def __init__(self):
        self.lines = []
        self._news = asyncio.Event()
        self.logger = structlog.wrap_logger(
            None,
            processors=[self._keep],
            wrapper_class=structlog.make_filtering_bound_logger(10),
            cache_logger_on_first_use=False,
        )

    def _keep(self, _logger, _method, line):
        self.lines.append(dict(line))
        self._news.set()
        raise structlog.DropEvent

    def of(self, event):
        return [line for line in self.lines if line["event"] == event]

    async def wait_for(self, event, count=1, seconds=10.0):
        """Wait until an event has been logged so many times; return its lines."""
        async with asyncio.timeout(seconds):
            while len(found := self.of(event)) < count:
                self._news.clear()
                await self._news.wait()
        return found


def context_of(
    clock=time.monotonic, diary=None, *, wall_us=lambda: time.time_ns() // 1000, random01=random.random
):
    """Return the context of a loop."""
    return Context((diary or Diary()).logger, clock, wall_us, random01)


def world_of(settings, sender=None, diary=None, stop=None, ready=print, clock=time.monotonic):
    """Return what an epoch is given."""
    return World(
        settings=settings,
        host=host_id(),
        run=uuid.uuid4().hex,
        sender=sender,
        context=context_of(clock, diary),
        stop=stop or asyncio.Event(),
        beats=Beats(LOOPS),
        ready=ready,
    )


class Life:
    """One epoch of the daemon, running."""

    def __init__(self, settings, sender, clock, diary):
        self.diary = diary
        self.clock = clock
        self.status = []
        self._stop = asyncio.Event()
        world = world_of(settings, sender, diary, self._stop, self.status.append, clock)
        self._task = asyncio.create_task(epoch.run(world))

    @property
    def ended(self):
        return self._task.done()

    async def ready(self, seconds=10.0):
        """Wait until it reads the log; an ending instead fails the test."""
        async with asyncio.timeout(seconds):
            while not any(status.startswith("reading") for status in self.status):
                assert not self._task.done(), f"it ended: {self._task}"
                await asyncio.sleep(0.002)

    async def ending(self, seconds=10.0):
        """Wait for its end, whatever it is."""
        async with asyncio.timeout(seconds):
            return await asyncio.shield(self._task)

    async def stop(self, seconds=10.0):
        """End it in order."""
        self._stop.set()
        return await self.ending(seconds)

    async def kill(self):
        """End it without any order, as a crash would: outcomes not recorded are lost."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@contextlib.asynccontextmanager
async def living(url, *, clock=None, diary=None, **changes):
    """Run one epoch; yields its Life, already reading. It is killed at the end if it still runs."""
    settings = settings_of(url, **changes)
    async with app.sender_of(settings) as sender:
        life = Life(settings, sender, clock or Clock(), diary or Diary())
        try:
            await life.ready()
            yield life
        finally:
            await life.kill()


class Daemon:
    """Epoch after epoch, as `pghookd run` lives them, without its signals."""

    def __init__(self, settings, diary, clock, environ, host, wall_us):
        self.diary = diary
        self.clock = clock
        self._written = settings  # what the settings' files would say
        self.app = app.App(
            settings,
            context_of(clock, diary, wall_us=wall_us),
            reload=self._read,
            environ=environ,
            host=host,
        )
        self._task = asyncio.create_task(self.app.serve())

    def _read(self):
        if isinstance(self._written, Exception):
            raise self._written
        return self._written

    async def reload(self, written):
        """Reload as SIGHUP does; `written`: settings, or the error that loading them raises."""
        event = "settings.rejected" if isinstance(written, Exception) else "settings.reloaded"
        count = len(self.diary.of(event))
        self._written = written
        self.app.reload()
        return (await self.diary.wait_for(event, count + 1))[-1]

    async def stop(self, seconds=15.0):
        """End it in order; return the exit status."""
        self.app.stop()
        async with asyncio.timeout(seconds):
            return await asyncio.shield(self._task)

    async def kill(self):
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


@contextlib.asynccontextmanager
async def serving(url, *, clock=None, environ=None, host=None, wall_us=None, **changes):
    """Run the daemon, on this machine or one that is called otherwise; yields it at once."""
    wall_us = wall_us or (lambda: time.time_ns() // 1000)
    daemon = Daemon(settings_of(url, **changes), Diary(), clock or Clock(), environ or {}, host, wall_us)
    try:
        yield daemon
    finally:
        await daemon.kill()


class Desk:
    """A reader and a recorder on a real database, each step of which a test asks for itself.

    Whatever the reader queues counts as delivered at once: `seen` has every event of every read, in order.
    """

    def __init__(self, read, record, log, server, stored, *, settling):
        self.log = log
        self.read_session = read
        self.record_session = record
        self.clock = Clock()
        self.seen = []
        self.open = []
        self._settling = settling
        self.engine = Engine(
            Start(read, record, None, server, stored, log),
            None,
            EngineTerms(
                LaneTerms(concurrency=512, endpoint_concurrency=512, queue_bytes_max=10**9),
                BacklogTerms(),
                RecorderTerms(batch_max=500, batch_wait_s=0.005, heartbeat_s=2.0),
                DeliveryTerms(512, 500, 10**6, None, 0),
            ),
            context_of(self.clock),
            beats=lambda _name: lambda: None,
        )
        self.engine.has_room.add(self._deliver)
        self.lanes, self.order = self.engine.lanes, self.engine.order
        self.recorder, self.reader = self.engine.recorder, self.engine.reader

    def _deliver(self):
        while (taken := self.lanes.turns.next(self.clock())) is not None:
            lane, delivery = taken
            self.seen.append(delivery.event)
            self.lanes.succeeded(lane, delivery, self.clock())
            if self._settling:
                settle(delivery)
            else:
                self.open.append(delivery)

    async def read(self):
        """Read once, and what that left in the log; return how many events that were."""
        found = await self.reader.read()
        await self._take_all()
        return found

    async def _take_all(self):
        while self.reader.refill.is_behind:
            self.reader.refill.place()
            await self.reader.refill.take()
            await self.reader._fan_out.attend()
            await asyncio.sleep(0.001)

    async def store(self):
        """Store positions and a mark, however recently that was done."""
        await self.recorder._positions.store(self.clock())

    def settle_all(self):
        """Settle everything open."""
        while self.open:
            settle(self.open.pop())

    async def record(self, deliveries):
        """Record deliveries as delivered."""
        for delivery in deliveries:
            self.recorder.put(
                AttemptWrite(delivery, Outcome.DELIVERED, 200, None, None, 1, 1.0, Delivered(), 1),
                self.clock(),
            )
        while self.recorder.waiting:
            await self.recorder._flush(500)

    def settle(self, delivery):
        """Settle an open delivery."""
        self.open.remove(delivery)
        settle(delivery)

    async def recover(self):
        """Walk every shard from where it was stored to this desk's first snapshot, and what that left in the log."""
        await self.recover_once()
        await self._take_all()

    async def recover_once(self):
        """Walk every shard from where it is stored now to this desk's first snapshot."""
        for (position, floor, front), shards in walks_of(await stored_shards(self.record_session)).items():
            await self.reader.recover(position, XidMarks(floor, front), shards)


async def stored_shards(session):
    """Return the rows of `shards`."""
    return [shard_of(row) for row in await session.fetch(query("read_shards"))]


@contextlib.asynccontextmanager
async def desk(url, *, settling=True, shards=SHARDS):
    """Open a Desk that has recovered nothing yet; its sessions end with it."""
    sessions = Sessions(settings_of(url).database)
    try:
        read, record = await sessions.read(), await sessions.record()
        await record.execute(query("make_shards"), shards)
        stored = await stored_shards(record)
        server = await identify([read, record])
        now = Snapshot(*await read.fetchval("select pg_current_snapshot()"))
        yield Desk(read, record, log_of(now, stored, Keys()), server, stored, settling=settling)
    finally:
        sessions.terminate()


# Servers ----------------------------------------------------------------------------------------------------


async def migrated(url):
    """Make the schema."""
    await migrate.migrate(url)


async def session_on(url):
    """Open a session of the daemon's kind, on a standby too."""
    return await client.connect(url, name="look", writable=False)


@contextlib.contextmanager
def standby_of(primary):
    """Make a streaming standby of an embedded server, started; it is deleted afterwards."""
    standby = embedded_postgres.EmbeddedServer(
        Path(tempfile.mkdtemp(prefix="pghookd-test-")), options=primary._options
    )
    standby._find_user()
    standby.folder.chmod(0o777)
    try:
        primary.run(
            "pg_basebackup",
            *("-h", primary.sockets, "-p", str(primary.port), "-U", embedded_postgres.SUPERUSER),
            *("-D", standby.data, "-R", "-c", "fast", "-X", "stream"),
        )
        standby.start()
        yield standby
    finally:
        embedded_postgres.remove(standby)


# A process that sleeps and can be killed ------------------------------------------------------------------------


async def _ask_for_the_bell(url, lease_s):
    settings = settings_of(url, database={"lease_s": lease_s, "heartbeat_s": lease_s / 4})
    sessions = Sessions(settings.database)
    bell = await sessions.bell()
    print("asks", flush=True)
    await bell.fetchval(f"select pg_advisory_lock({lock_keys.CLASS}, 0)")
    while True:
        await asyncio.sleep(lease_s / 4)
        await bell.ping(5.0)


if __name__ == "__main__":
    asyncio.run(_ask_for_the_bell(sys.argv[1], float(sys.argv[2])))
