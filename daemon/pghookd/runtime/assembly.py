"""Puts the engine together: everything between the log and the receivers, in the order in which it is built.

The daemon, the component tests and the simulation all use this one assembly. Only here do whole settings become the
values that the rooms take.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

from pghookd.delivery.attempt import DeliveryTerms
from pghookd.delivery.backlog.due import Backlog, BacklogTerms
from pghookd.delivery.deliverer import Deliverer
from pghookd.delivery.poison_guard import PoisonGuard
from pghookd.delivery.recording.positions import PositionStore
from pghookd.delivery.recording.recorder import Recorder, RecorderHooks, RecorderTerms
from pghookd.delivery.replays import Replays
from pghookd.egress.sender import Sender
from pghookd.encryption.keyring import Vault, revealing
from pghookd.event_log.endpoint_changes import EndpointChanges
from pghookd.event_log.fan_out import FanOut
from pghookd.event_log.identity import ServerIdentity, StoredShard
from pghookd.event_log.payload_filter import Filters
from pghookd.event_log.position import EventLog, XidMarks
from pghookd.event_log.reading.endpoints import Endpoints
from pghookd.event_log.reading.pages import Pages
from pghookd.event_log.reading.reader import Reader, Sleeper
from pghookd.event_log.reading.refill import Refill
from pghookd.event_log.recovery import walks_of
from pghookd.event_log.sieve import Sieve
from pghookd.postgres.client import Session
from pghookd.process.context import Context
from pghookd.scheduling.breaker import BreakerPolicy
from pghookd.scheduling.lane import LaneTerms
from pghookd.scheduling.lanes import Lanes
from pghookd.scheduling.ordering import Order
from pghookd.settings.schema import Settings
from pghookd.webhook.prepared import Defaults


class Listeners:
    """Calls its listeners. It exists before them, so that two parts that need each other can be built in turn."""

    def __init__(self) -> None:
        self._listeners: tuple[Callable[[], None], ...] = ()

    def add(self, listener: Callable[[], None]) -> None:
        """Call a function from now on."""
        self._listeners += (listener,)

    def __call__(self) -> None:
        """Call all listeners."""
        for listener in self._listeners:
            listener()


@dataclasses.dataclass(frozen=True, slots=True)
class EngineTerms:
    """The settings of the engine, ready for use."""

    lanes: LaneTerms
    backlog: BacklogTerms
    recorder: RecorderTerms
    delivery: DeliveryTerms

    @classmethod
    def of(cls, settings: Settings) -> EngineTerms:
        """Return the terms from the settings."""
        delivery, recorder, given = settings.delivery, settings.recorder, settings.breaker
        return cls(
            LaneTerms(
                concurrency=delivery.concurrency,
                endpoint_concurrency=delivery.endpoint_concurrency,
                queue_bytes_max=delivery.queue_bytes_max,
                policy=BreakerPolicy(given.attempts, given.share, given.probe_s, given.probe_max_s),
            ),
            BacklogTerms(given.probe_s, settings.retention.held_days, delivery.payload_bytes_max),
            RecorderTerms(
                batch_max=recorder.batch_max,
                batch_wait_s=recorder.batch_wait_ms / 1000,
                heartbeat_s=settings.database.heartbeat_s,
                lease_s=settings.database.lease_s,
            ),
            DeliveryTerms(
                concurrency=delivery.concurrency,
                batch_max=recorder.batch_max,
                payload_bytes_max=delivery.payload_bytes_max,
                defaults=Defaults.of(settings, revealing(Vault.of(settings))),
                successes=settings.log.successes,
            ),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Start:
    """Where an engine starts.

    Attributes:
        read: the session that reads the log.
        record: the session that owns the shards and records outcomes.
        work: the session that loads large payloads.
        server: the server that all of them are on.
        stored: the rows of `shards`.
        log: the log, read up to a current snapshot.
    """

    read: Session
    record: Session
    work: Session
    server: ServerIdentity
    stored: Sequence[StoredShard]
    log: EventLog


@dataclasses.dataclass(frozen=True, slots=True)
class Parts:
    """The classes that an engine is made of; tests replace one by a broken one."""

    lanes: type[Lanes] = Lanes
    order: type[Order] = Order
    backlog: type[Backlog] = Backlog
    replays: type[Replays] = Replays
    recorder: type[Recorder] = Recorder
    deliverer: type[Deliverer] = Deliverer
    sieve: type[Sieve] = Sieve
    fan_out: type[FanOut] = FanOut
    refill: type[Refill] = Refill
    pages: type[Pages] = Pages


PARTS: Final = Parts()


class Engine:
    """The loops between the log and the receivers, and what they share.

    Args:
        start: where it starts.
        sender: sends requests.
        terms: the settings.
        context: logger, clocks and randomness.
        beats: returns the function that the loop of a name calls while it is alive.
        guard: names suspected deliveries before they are sent; None to name none.
        parts: the classes of its parts.

    Attributes:
        lanes: the deliveries in memory, and which may be sent.
        order: the lines of ordered endpoints.
        backlog: the rows of deliveries that wait.
        replays: the replays under way.
        recorder: makes outcomes durable.
        deliverer: sends.
        fan_out: makes deliveries of events.
        reader: reads the log.
        has_room: called when something may be sent that could not be before.
        has_failed: called when a failure is durable.
    """

    def __init__(
        self,
        start: Start,
        sender: Sender,
        terms: EngineTerms,
        context: Context,
        *,
        beats: Callable[[str], Callable[[], None]],
        guard: PoisonGuard | None = None,
        parts: Parts = PARTS,
    ) -> None:
        log, shards, monotonic = start.log, len(start.stored), context.monotonic
        self._log = log
        self._stored = start.stored
        self.has_room, self.has_failed = Listeners(), Listeners()
        self.lanes = parts.lanes(terms.lanes)
        self.order = parts.order(self.lanes)
        filters = Filters(logger=context.logger, monotonic=monotonic)
        self.backlog = parts.backlog(
            self.lanes, self.order, log, filters, context, shards=shards, terms=terms.backlog
        )
        self.replays = parts.replays(
            self.lanes.capacity, made_due=self.backlog.more_due, logger=context.logger, monotonic=monotonic
        )
        self.recorder = parts.recorder(
            start.record,
            log,
            self.lanes,
            self.order,
            PositionStore(start.record, log, start.server, monotonic=monotonic),
            terms.recorder,
            context,
            RecorderHooks(recorded=self.has_room, failed=self.has_failed, beat=beats("record")),
        )
        self.recorder.take_on(*(() if guard is None else (guard,)), self.replays, self.backlog)
        self.deliverer = parts.deliverer(
            sender,
            self.lanes,
            self.recorder,
            start.work,
            terms.delivery,
            context,
            beat=beats("deliver"),
            suspects=guard if guard is not None and guard.is_wary else None,
        )
        self.has_room.add(self.deliverer.kick)
        endpoints = Endpoints(start.read, shards=shards, monotonic=monotonic)
        self.fan_out = parts.fan_out(
            log,
            self.lanes,
            self.order,
            self.recorder,
            parts.sieve(start.read, filters),
            EndpointChanges(endpoints, self.lanes.known, monotonic=monotonic),
            context,
            kick=self.has_room,
        )
        self.reader = self._make_reader(start, endpoints, parts, monotonic, beats("read"))

    def _make_reader(
        self,
        start: Start,
        endpoints: Endpoints,
        parts: Parts,
        monotonic: Callable[[], float],
        beat: Callable[[], None],
    ) -> Reader:
        log, shards = start.log, len(start.stored)
        refill = parts.refill(start.read, self.order, self.fan_out, endpoints, monotonic=monotonic, beat=beat)
        pages = parts.pages(
            start.read, log, self.fan_out, endpoints, refill, shards=shards, monotonic=monotonic, beat=beat
        )
        return Reader(start.read, log, pages, refill, self.fan_out, endpoints, monotonic=monotonic, beat=beat)

    def apply(self, sender: Sender, terms: EngineTerms) -> None:
        """Apply new settings without waiting: requests in flight end as they began."""
        self.lanes.apply(terms.lanes)
        self._log.keys.payload_bytes_max = terms.delivery.payload_bytes_max
        self.backlog.apply(terms.backlog)
        self.recorder.apply(batch_max=terms.recorder.batch_max, batch_wait_s=terms.recorder.batch_wait_s)
        self.deliverer.apply(sender, terms.delivery)

    async def recover(self) -> None:
        """Read each shard from its stored position to the first snapshot of this epoch."""
        for (position, floor, front), shards in walks_of(self._stored).items():
            await self.reader.recover(position, XidMarks(floor, front), shards)
        self.order.recovered = True

    async def read(self, bell: Sleeper) -> None:
        """Recover, then read the log until cancelled."""
        await self.recover()
        await self.reader.run(bell)
