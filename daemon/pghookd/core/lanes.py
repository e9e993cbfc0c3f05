"""Which delivery goes next: a lane per endpoint, slow start, a global bound, turns, and when to park.

Bookkeeping is synchronous and decides everything; it returns what is to be started, parked or waited for, and does
nothing itself. No clock: `now` (monotonic seconds) comes in.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from pghookd.core.model import Delivery, Endpoint

LANE_QUEUE_MAX: Final = 1000  # deliveries queued for one lane
QUEUE_MAX: Final = 20_000  # deliveries queued in all
IDLE_LANES_MAX: Final = 10_000  # lanes without work whose pace is remembered
START_WIDTH: Final = 2.0  # requests in flight of a lane that has not proved itself
STUCK_AFTER_S: Final = 1.0  # a lane whose next delivery has waited this long does not keep up


class LaneKey(NamedTuple):
    """What deliveries share a lane: they are delivered at one pace, and one day perhaps one by one."""

    site_id: str
    endpoint_id: int
    ordering_key: str | None = None


class Offer(enum.Enum):
    """What to do with a delivery that was offered to a lane."""

    QUEUED = "queued"
    PARK = "park"  # give it a row in backlog: its lane is full while slots elsewhere are free
    WAIT = "wait"  # leave it in the log until there is room


@dataclasses.dataclass(slots=True, eq=False)
class Lane:
    """One endpoint's deliveries in memory."""

    key: LaneKey
    endpoint: Endpoint
    limit: int
    queue: deque[Delivery] = dataclasses.field(default_factory=deque)
    flying: int = 0
    width: float = START_WIDTH
    proved: bool = False  # has answered 2xx since the lane was made
    in_turn: bool = False
    allowed: int = 0  # requests that may be in flight now
    cache: object | None = None  # what is prepared for the endpoint; dropped when the endpoint changes

    def __post_init__(self) -> None:
        self.resize(self.width)

    def resize(self, width: float) -> None:
        """Set how many requests it may have in flight, within its limit and never below one."""
        self.width = max(1.0, min(width, self.limit))
        self.allowed = int(self.width)

    def waits_too_long(self, now: float) -> bool:
        """Whether the delivery at the head has been waiting longer than a lane that keeps up would let it."""
        return bool(self.queue) and now - self.queue[0].since > STUCK_AFTER_S


class Lanes:
    """All lanes, and the slots they share.

    Attributes:
        flying: requests in flight, in all lanes.
        queued: deliveries queued, in all lanes.
        queued_bytes: bytes of their payloads, a payload counted once per delivery.
        aboard: deliveries in memory that have a row in `backlog`, by event and endpoint: not due a second time.
        parked: endpoints that may have parked rows.
        wanted: the lane that the reader waits for, if it waits.
        by_endpoint: an endpoint's lane.
    """

    def __init__(self, *, concurrency: int, endpoint_concurrency: int, queue_bytes_max: int) -> None:
        self._concurrency = concurrency
        self._endpoint_concurrency = endpoint_concurrency
        self._queue_bytes_max = queue_bytes_max
        self._lanes: dict[LaneKey, Lane] = {}
        self.by_endpoint: dict[int, Lane] = {}
        self._idle: OrderedDict[LaneKey, None] = OrderedDict()
        self._turns: deque[Lane] = deque()
        self.flying = 0
        self.queued = 0
        self.queued_bytes = 0
        self.aboard: dict[tuple[int, int], Delivery] = {}
        self.parked: set[int] = set()
        self.wanted: Lane | None = None

    def lane(self, endpoint: Endpoint) -> Lane:
        """Return the endpoint's lane, made when it is new, brought up to date when the endpoint has changed."""
        key = LaneKey(endpoint.site_id, endpoint.endpoint_id)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(key, endpoint, self._limit(endpoint))
            self.by_endpoint[endpoint.endpoint_id] = lane
            self._idle[key] = None
            self._forget_idle()
        elif lane.endpoint != endpoint:
            lane.endpoint = endpoint
            lane.limit = self._limit(endpoint)
            lane.resize(lane.width)
            lane.cache = None
        return lane

    def _limit(self, endpoint: Endpoint) -> int:
        return endpoint.concurrency or self._endpoint_concurrency

    def _forget_idle(self) -> None:
        while len(self._idle) > IDLE_LANES_MAX:
            key, _ = self._idle.popitem(last=False)
            del self._lanes[key]
            self.by_endpoint.pop(key.endpoint_id, None)

    def offer(self, lane: Lane, delivery: Delivery, now: float) -> Offer:
        """Queue a delivery, or say why not."""
        if len(lane.queue) >= LANE_QUEUE_MAX:
            return Offer.PARK if self._parking_buys_something(lane, now) else Offer.WAIT
        if self.full:
            return Offer.WAIT
        self._push(lane, delivery)
        return Offer.QUEUED

    @property
    def full(self) -> bool:
        """Whether memory has no room for another delivery, of whatever lane."""
        return self.queued >= QUEUE_MAX or self.queued_bytes >= self._queue_bytes_max

    def has_room(self, lane: Lane) -> bool:
        """Whether a lane that was full has drained enough to be worth filling again."""
        return not self.full and len(lane.queue) <= LANE_QUEUE_MAX // 2

    def has_wanted_room(self) -> bool:
        """Whether the reader waits and need wait no longer."""
        return self.wanted is not None and self.has_room(self.wanted)

    def _parking_buys_something(self, lane: Lane, now: float) -> bool:
        """Only where others could use the free slots: the lane is at its width, or unproved, and does not keep up."""
        if self.flying >= self._concurrency:
            return False
        return not lane.proved or (lane.flying >= lane.allowed and lane.waits_too_long(now))

    def _push(self, lane: Lane, delivery: Delivery) -> None:
        if not lane.queue and not lane.flying:
            self._idle.pop(lane.key, None)
            # It may have been forgotten while idle.
            self._lanes[lane.key] = self.by_endpoint[lane.key.endpoint_id] = lane
        lane.queue.append(delivery)
        self.queued += 1
        self.queued_bytes += len(delivery.event.payload or b"")
        if not lane.in_turn and lane.flying < lane.allowed:
            lane.in_turn = True
            self._turns.append(lane)

    def _pop(self, lane: Lane) -> Delivery:
        delivery = lane.queue.popleft()
        self.queued -= 1
        self.queued_bytes -= len(delivery.event.payload or b"")
        return delivery

    def next(self) -> tuple[Lane, Delivery] | None:
        """Take the next delivery to send, lanes with work taking turns; None when there is none or no slot."""
        if self.flying >= self._concurrency:
            return None
        while self._turns:
            lane = self._turns.popleft()
            lane.in_turn = False
            if not lane.queue or lane.flying >= lane.allowed:
                continue
            delivery = self._pop(lane)
            lane.flying += 1
            self.flying += 1
            if lane.queue and lane.flying < lane.allowed:
                lane.in_turn = True
                self._turns.append(lane)
            return lane, delivery
        return None

    def done(self, lane: Lane, *, delivered: bool) -> None:
        """Take a request back: the lane grows by one with each success and halves with each failure."""
        lane.flying -= 1
        self.flying -= 1
        if delivered:
            lane.proved = True
            if lane.allowed < lane.limit:
                lane.resize(lane.width + 1)
        else:
            lane.resize(lane.width / 2)
        if lane.queue:
            if not lane.in_turn and lane.flying < lane.allowed:
                lane.in_turn = True
                self._turns.append(lane)
        elif not lane.flying:
            self._idle[lane.key] = None
            self._forget_idle()

    def empty(self, lane: Lane) -> list[Delivery]:
        """Take everything out of a lane's queue: its endpoint was disabled or deleted."""
        return self._take(lane, 0)

    def shed(self, now: float) -> list[Delivery]:
        """Take the surplus of lanes that do not keep up, when they fill the memory while slots are free."""
        if not self.full or self.flying >= self._concurrency:
            return []
        stuck = [lane for lane in self.busy() if not lane.proved or lane.waits_too_long(now)]
        return [delivery for lane in stuck for delivery in self._take(lane, 2 * lane.limit)]

    def appetite(self, endpoint_id: int, now: float) -> int:
        """Return how many parked deliveries an endpoint may take back: one that does not keep up only a few."""
        lane = self.by_endpoint.get(endpoint_id)
        if self.full:
            return 0
        if lane is None:
            return 2 * self._endpoint_concurrency
        if lane.proved and not lane.waits_too_long(now):
            return LANE_QUEUE_MAX // 2 if len(lane.queue) <= LANE_QUEUE_MAX // 4 else 0
        return 2 * lane.limit - len(lane.queue) if len(lane.queue) <= lane.limit else 0

    def _take(self, lane: Lane, keep: int) -> list[Delivery]:
        taken: list[Delivery] = []
        while len(lane.queue) > keep:
            delivery = lane.queue.pop()
            self.queued -= 1
            self.queued_bytes -= len(delivery.event.payload or b"")
            taken.append(delivery)
        taken.reverse()
        if not lane.queue and not lane.flying:
            self._idle[lane.key] = None
            self._forget_idle()
        return taken

    def busy(self) -> Iterator[Lane]:
        """Lanes that have something queued or in flight."""
        return (lane for lane in list(self._lanes.values()) if lane.queue or lane.flying)
