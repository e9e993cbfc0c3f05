"""Which delivery goes next: a lane per endpoint, slow start, a global bound, turns by site, and when to park.

Bookkeeping is synchronous and decides everything; it returns what is to be started, parked or waited for, and does
nothing itself. A lane has two queues: live traffic (and retries) goes first, what comes back from `parked` or `held`
has one turn in four beside it. A lane whose breaker is open holds nothing but its probe; after that, what was parked
goes out at a pace. From a lane whose receiver has asked for a pause nothing starts before that is over, and from one
with a rate nothing before its turn. No clock: `now` (monotonic seconds) comes in, and so does what is random.

The width of a lane: one more for each success, half for each failure, and half where answers have become slow. How many
slots a site and a host may hold: scheduling/slots. A lane whose next payload is large starts nothing until that payload
has been loaded, within the bytes that scheduling/payload_budget grants its site.
"""

from __future__ import annotations

import dataclasses
import enum
import heapq
import itertools
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, cast

from pghookd.model.delivery import Delivery, Endpoint, Loaded, Reason
from pghookd.scheduling import breaker
from pghookd.scheduling.breaker import Breaker
from pghookd.scheduling.hosts import host_and_port
from pghookd.scheduling.in_memory import InMemory
from pghookd.scheduling.parked import AT_ONCE, FIRST, Parked
from pghookd.scheduling.payload_budget import PayloadBudget
from pghookd.scheduling.rate import Pace, Rate
from pghookd.scheduling.slots import Flight, Holder, Member, Slots

LANE_QUEUE_MAX: Final = 1000  # deliveries queued for one lane, and as many late ones
STUCK_QUEUE_MAX: Final = 100  # for one that does not keep up
QUEUE_MAX: Final = 20_000  # deliveries queued in all
SITE_SHARE: Final = (
    3  # a site may have a third of the memory that is free, which is a quarter of all for one alone
)
SITE_LEAST: Final = 20  # deliveries that it may have however much of it the others hold
RESERVE: Final = 10  # a tenth of the memory is kept for these
SITE_PAGE_MAX: Final = 500  # deliveries of one site made at once
REFILL_LEAST: Final = (
    250  # and so many at least of what was left in the log, where the site's part is large enough
)
SHED_MAX: Final = 500  # deliveries taken out of memory at once
IDLE_LANES_MAX: Final = 10_000  # lanes without work whose pace is remembered
TRAFFIC_S: Final = 600.0  # an endpoint has traffic if it had some in such a period, or the one before
START_WIDTH: Final = 2.0  # requests in flight of a lane that has not proved itself
STUCK_AFTER_S: Final = 1.0  # a lane whose next delivery has waited this long does not keep up
MEASURE_EVERY_S: Final = 0.5
BUSY_PER_S: Final = 2000.0  # deliveries: where so many go out, waiting for room costs less than parking
LIVE_TURNS: Final = 3  # of live traffic to one of late work, while both wait
GROWTHS_A_PROBE: Final = 3  # a pace grows by e as often in the time of the first wait for a probe
PACED_AHEAD_S: Final = 2.0  # how much late work of a lane with a pace is taken into memory
PACED_LEAST: Final = 4
HANGS_MAX: Final = (
    3  # timeouts of a lane that never answered: each holds a slot for long, so that few must do
)
LANE_SHARE: Final = 4  # of all slots one endpoint may hold that part, whatever its `concurrency` says
HOST_HANGS_MAX: Final = 50  # timeouts of a host in a row: from then on one timeout opens a lane's breaker
PAUSE_PARKS_S: Final = 5.0  # in a pause that is longer nothing stays in memory
NEVER: Final = float("inf")
SMOOTHING: Final = 0.125  # weight of an answer in a lane's smoothed time to answer
SLOWER_S: Final = 0.05  # answers that take twice the lane's best time and this have become slow
EASE_EVERY_S: Final = 1.0  # so often at the most is a lane halved for it
EASE_LEAST: Final = 4  # down to this part of its limit: one that is slow whatever we do is not starved
BEST_GROWS: Final = 1.25  # by so much is its best time forgotten then


class LaneKey(NamedTuple):
    """What deliveries share a lane: they are delivered at one pace."""

    site_id: str
    endpoint_id: int


class Offer(enum.Enum):
    """What to do with a delivery that was offered to a lane."""

    QUEUED = "queued"
    PARK = "park"  # give it a row in backlog: its lane is full while slots elsewhere are free
    OPEN = "open"  # give it a row in backlog: its breaker is open
    PAUSED = "paused"  # give it a row in backlog: its receiver has asked for a long pause
    WAIT = "wait"  # leave it in the log until there is room
    BEHIND = "behind"  # give it a row in backlog: its endpoint is ordered, and others come first (scheduling/ordering)


PARKED_FOR: Final = {
    Offer.PARK: Reason.LANE_FULL,
    Offer.OPEN: Reason.BREAKER_OPEN,
    Offer.PAUSED: Reason.PAUSED,
    Offer.BEHIND: Reason.ORDERING,
    Offer.WAIT: Reason.LANE_FULL,  # where there is no log to leave it in
}


@dataclasses.dataclass(slots=True, eq=False)
class Site(Holder):
    """The lanes of one site: sites take turns, and within one its lanes do.

    Attributes:
        turns: lanes that may start something; while there are any, the site stands in the turns of sites.
        queued: deliveries queued, in all of its lanes, and in lines before them.
        queued_bytes: bytes of their payloads.
        loads: lanes whose next payload is to be loaded; while there are any, the site stands in the turns of loads.
        loaded_bytes: what its large payloads in memory count for.
        load_wants: what the first of `loads` counts for, where that is known since it had no room.
    """

    turns: deque[Lane] = dataclasses.field(default_factory=deque)
    queued: int = 0
    queued_bytes: int = 0
    loads: deque[Lane] = dataclasses.field(default_factory=deque)
    loaded_bytes: int = 0
    load_wants: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class Host(Holder):
    """What lanes of all sites send to one host and port.

    Attributes:
        hangs: timeouts in a row.
    """

    hangs: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class Lane(Member):
    """One endpoint's deliveries in memory.

    Attributes:
        key: whose it is.
        site: the site's lanes.
        host: the host and port of its URL.
        endpoint: as last read.
        limit: requests in flight at the most, as endpoint or settings say.
        breaker: the endpoint's.
        width: how many requests may be in flight, with its fraction.
        queue: live traffic and retries.
        late: what comes back from `parked` or `held`.
        unloaded: deliveries queued whose payload is large and not in memory.
        allowed: its width in whole requests.
        in_turn: stands among those that may start something, or waits for a share of slots or for a payload.
        rests_at: when it is to be looked at again, since something of it waits for a time; NEVER: nothing does.
        led: live deliveries started since the last late one.
        pace: of the late work while it catches up; None: as fast as the width allows.
        probe: queued or in flight while the breaker is open.
        curbed: has a rate or is paused; to be looked at before anything starts.
        rate: how fast requests may start; None: as fast as the width allows.
        paused_until: nothing starts before, monotonic seconds; 0: it is not paused.
        asked_to_pause: its receiver has asked for that, so that it goes on gently.
        hangs: timeouts in a row while it has not proved itself.
        smooth_s: how long answers take, smoothed.
        best_s: the least of late.
        eases_at: monotonic seconds from which slow answers count again.
        period: the last one in which it had traffic.
        cache: what is prepared for the endpoint; dropped when the endpoint changes.
    """

    site: Site
    host: Host
    key: LaneKey
    endpoint: Endpoint
    limit: int
    breaker: Breaker
    queue: deque[Delivery] = dataclasses.field(default_factory=deque)
    late: deque[Delivery] = dataclasses.field(default_factory=deque)
    unloaded: int = 0
    width: float = START_WIDTH
    allowed: int = 0
    in_turn: bool = False
    rests_at: float = NEVER
    led: int = 0
    pace: Pace | None = None
    probe: Delivery | None = None
    curbed: bool = False
    rate: Rate | None = None
    paused_until: float = 0.0
    asked_to_pause: bool = False
    hangs: int = 0
    smooth_s: float = 0.0
    best_s: float = NEVER
    eases_at: float = 0.0
    period: int = -1
    cache: object | None = None

    def __post_init__(self) -> None:
        self.resize(self.width)
        self.curb()

    def resize(self, width: float) -> None:
        """Set how many requests it may have in flight, within its limit and never below one."""
        self.width = max(1.0, min(width, self.limit))
        self.allowed = int(self.width)

    def curb(self) -> None:
        """Take the endpoint's rate; one that it had already goes on where it was."""
        options = self.endpoint.options
        per_s = None if options is None else options.rate
        if per_s is None:
            self.rate = None
        elif self.rate is None or self.rate.per_s != per_s:
            self.rate = Rate(per_s)
        self.curbed = self.rate is not None or self.paused_until > 0

    def opens_at(self) -> float:
        """Return the time before which nothing may start, as far as rate and pause go."""
        return self.paused_until if self.rate is None else max(self.paused_until, self.rate.not_before)

    def is_barred(self, now: float) -> bool:
        """Whether it is a pause, or its rate, that its deliveries wait for."""
        return self.paused_until > now or (self.rate is not None and self.rate.is_used_up(now))

    @property
    def late_per_s(self) -> float | None:
        """How much late work may start in a second; None: as much as the width allows."""
        known = [each.per_s for each in (self.pace, self.rate) if each is not None]
        return min(known) if known else None

    @property
    def queued(self) -> int:
        """Deliveries in both queues."""
        return len(self.queue) + len(self.late)

    def waits_longer(self, patience_s: float, now: float) -> bool:
        """Whether the delivery at the head has been waiting for longer; late work that has a pace may."""
        if self.queue and now - self.queue[0].since > patience_s:
            return True
        return bool(self.late) and self.pace is None and now - self.late[0].since > patience_s


class Lanes:
    """All lanes, and the slots they share.

    Attributes:
        queued: deliveries queued, in all lanes.
        queued_bytes: bytes of their payloads, a payload counted once per delivery.
        delivered: successes so far.
        patience_s: a lane whose head has waited for longer does not keep up.
        in_memory: deliveries in memory that have a row in `backlog`, by event and endpoint: not due a second time.
        parked: endpoints that may have parked rows, or held ones that go out.
        by_endpoint: an endpoint's lane.
    """

    def __init__(
        self,
        *,
        concurrency: int,
        endpoint_concurrency: int,
        queue_bytes_max: int,
        policy: breaker.BreakerPolicy | None = None,
        queue_max: int = QUEUE_MAX,
        idle_max: int = IDLE_LANES_MAX,
    ) -> None:
        self._slots = Slots(concurrency)
        self._payloads = PayloadBudget(queue_bytes_max)
        self._endpoint_concurrency = endpoint_concurrency
        self._queue_bytes_max = queue_bytes_max
        self._policy = policy or breaker.BreakerPolicy()
        self._queue_max = queue_max
        self._idle_max = idle_max
        self._lanes: dict[LaneKey, Lane] = {}
        self.by_endpoint: dict[int, Lane] = {}
        self._idle: OrderedDict[LaneKey, None] = OrderedDict()
        self._sites: weakref.WeakValueDictionary[str, Site] = weakref.WeakValueDictionary()
        self._hosts: weakref.WeakValueDictionary[str, Host] = weakref.WeakValueDictionary()
        self._loads: deque[Site] = deque()
        self._turns: deque[Site] = deque()
        self._rests: list[tuple[float, int, Lane]] = []  # a heap: when, a running number, who
        self._numbers = itertools.count()
        self._reopened: dict[int, Breaker] = {}  # of endpoints that have no lane yet
        self.queued = 0
        self.queued_bytes = 0
        self.delivered = 0
        self.patience_s = STUCK_AFTER_S
        self._busy = False
        self._measured: tuple[float, int] | None = None
        self._period = 0
        self._active: set[str] = set()  # sites with traffic in this period
        self._active_before: set[str] = set()
        self.in_memory = InMemory()
        self.parked = Parked()

    @property
    def in_flight(self) -> int:
        """Requests in flight, in all lanes."""
        return self._slots.in_flight

    def apply(
        self,
        *,
        concurrency: int,
        endpoint_concurrency: int,
        queue_bytes_max: int,
        policy: breaker.BreakerPolicy,
    ) -> None:
        """Take other bounds; what is queued or in flight beyond them ends as it began."""
        self._slots.resize(concurrency)
        self._payloads.size = queue_bytes_max
        self._endpoint_concurrency = endpoint_concurrency
        self._queue_bytes_max = queue_bytes_max
        self._policy = policy
        for lane in self._lanes.values():
            lane.limit = self._limit(lane.endpoint)
            lane.resize(lane.width)
            lane.breaker.policy = policy
        for reopened in self._reopened.values():
            reopened.policy = policy

    # Lanes ------------------------------------------------------------------------------------------------------------

    def lane(self, endpoint: Endpoint) -> Lane:
        """Return the endpoint's lane, made when it is new, brought up to date when the endpoint has changed."""
        lane = self.by_endpoint.get(endpoint.endpoint_id)
        if lane is not None and lane.endpoint is endpoint:
            return lane
        key = LaneKey(endpoint.site_id, endpoint.endpoint_id)
        lane = self._lanes.get(key)
        if lane is None:
            site = self._sites.setdefault(endpoint.site_id, Site())
            limit, breaker_ = self._limit(endpoint), self._breaker(endpoint)
            lane = Lane(site, self._host(endpoint), key, endpoint, limit, breaker_)
            self._lanes[key] = lane
            self.by_endpoint[endpoint.endpoint_id] = lane
            self._leave(lane)
        elif lane.endpoint != endpoint:
            self._change(lane, endpoint)
        return lane

    def _change(self, lane: Lane, endpoint: Endpoint) -> None:
        """Take what has changed; its owner has, most often: then an open breaker may be asked, and a pause ends."""
        by_owner = not _is_end_of_rotation(lane.endpoint, endpoint)
        if endpoint.url != lane.endpoint.url:
            lane.host = self._host(endpoint)
        lane.endpoint = endpoint
        lane.limit = self._limit(endpoint)
        lane.resize(lane.width)
        lane.cache = None
        if lane.breaker.is_open:
            lane.breaker.probe_now()
        if lane.paused_until and by_owner:
            self._end_pause(lane)
        lane.curb()
        self.parked.look(lane.key.endpoint_id, FIRST)
        self._go_on(lane)

    def _limit(self, endpoint: Endpoint) -> int:
        most = max(1, self._slots.size // LANE_SHARE)
        return min(endpoint.concurrency or self._endpoint_concurrency, most)

    def _host(self, endpoint: Endpoint) -> Host:
        return self._hosts.setdefault(host_and_port(endpoint.url), Host())

    def _breaker(self, endpoint: Endpoint) -> Breaker:
        return self._reopened.pop(endpoint.endpoint_id, None) or Breaker(self._policy)

    def _leave(self, lane: Lane) -> None:
        """Take a lane without work for idle, unless its breaker is open or it is paused: that is remembered."""
        if not lane.breaker.is_open and not lane.paused_until:
            self._idle[lane.key] = None
            while len(self._idle) > self._idle_max:
                key, _ = self._idle.popitem(last=False)
                del self._lanes[key]
                self.by_endpoint.pop(key.endpoint_id, None)

    def busy(self) -> Iterator[Lane]:
        """Lanes that have something queued or in flight."""
        return (lane for lane in list(self._lanes.values()) if lane.queue or lane.late or lane.in_flight)

    def traffic(self) -> int:
        """Return how many sites have had work in the last ten to twenty minutes, as far as lanes remember."""
        return max(len(self._active), len(self._active_before))

    def _note_traffic(self, lane: Lane) -> None:
        lane.period = self._period
        self._active.add(lane.key.site_id)

    # Offers -----------------------------------------------------------------------------------------------------------

    def offer(self, lane: Lane, delivery: Delivery, now: float) -> Offer:
        """Queue a delivery, or say why not."""
        if lane.breaker.is_open:
            return self._offer_probe(lane, delivery, now)
        if lane.paused_until - now > PAUSE_PARKS_S:
            return Offer.PAUSED
        waiting = len(lane.late if delivery.late else lane.queue)
        if waiting >= STUCK_QUEUE_MAX:
            if waiting >= LANE_QUEUE_MAX:
                return Offer.PARK if self._parking_buys_something(lane, now) else Offer.WAIT
            if lane.waits_longer(self.patience_s, now) and self._parking_buys_something(lane, now):
                return Offer.PARK
        if self.full:
            return Offer.WAIT
        self._push(lane, delivery)
        return Offer.QUEUED

    def _offer_probe(self, lane: Lane, delivery: Delivery, now: float) -> Offer:
        """Let one through when it is time: the oldest of those that are parked, where there are any."""
        if lane.probe is not None or now < lane.breaker.probe_at or now < lane.paused_until:
            return Offer.OPEN
        if not delivery.late and lane.key.endpoint_id in self.parked:
            return Offer.OPEN
        lane.probe = delivery
        self._push(lane, delivery)
        return Offer.QUEUED

    @property
    def full(self) -> bool:
        """Whether memory has no room for another delivery, of whatever lane."""
        return self.queued >= self._queue_max or self.queued_bytes >= self._queue_bytes_max

    @property
    def starving(self) -> bool:
        """Return True if nothing that is queued may start."""
        return not self._turns

    def _parking_buys_something(self, lane: Lane, now: float) -> bool:
        """Only where the lane does not keep up, and reading on could start something else."""
        return self._is_stuck(lane, now) and self._feeds_others(lane)

    def _feeds_others(self, lane: Lane) -> bool:
        """Whether reading on is of use: a slot is free, or the others that hold them will soon have no more work."""
        if self.in_flight < self._slots.size:
            return True
        fed = 2 * self.queued >= self._queue_max or 2 * self.queued_bytes >= self._queue_bytes_max
        return 2 * lane.in_flight < self._slots.size and (self.starving or not fed)

    def rooms_for(self, sites: Iterable[tuple[str, int]]) -> dict[str, int]:
        """Return how many more deliveries memory takes at once of each of some sites; 0 or less if none.

        A site may hold a third of what is free, whoever else has work: one alone has a quarter of the memory. A tenth
        is nobody's share: from it a site gets the few that it may have however much the others hold.

        Args:
            sites: each with how many endpoints it has.
        """
        if self.full:
            return {site_id: 0 for site_id, _ in sites}
        part, bytes_left = max(SITE_LEAST, self._part()), self._queue_bytes_max - self.queued_bytes
        site_of = self._sites.get
        rooms: dict[str, int] = {}
        for site_id, count in sites:
            most = min(part, count * LANE_QUEUE_MAX // 2)
            site = site_of(site_id)
            if site is not None and site.queued:
                most = most - site.queued if SITE_SHARE * site.queued_bytes < bytes_left else 0
            rooms[site_id] = min(most, SITE_PAGE_MAX)
        return rooms

    def refill_for(self, site_id: str, endpoints: int) -> int:
        """Return the same of one site, where it is worth reading the log for: REFILL_LEAST, or half of its part."""
        room = self.rooms_for([(site_id, endpoints)])[site_id]
        most = min(max(SITE_LEAST, self._part()), endpoints * LANE_QUEUE_MAX // 2)
        return room if room >= min(REFILL_LEAST, most / 2) else 0

    def _part(self) -> int:
        """Return how many deliveries one site may have in memory, by what the others have."""
        return (self._queue_max - self._queue_max // RESERVE - self.queued) // SITE_SHARE

    def measure(self, now: float) -> None:
        """Look how fast deliveries go out; call it a few times a second.

        Where the daemon itself is the bottleneck every lane waits, and none is to blame: what is queued would be out in
        queued / rate seconds, and patience is twice that. Parking costs a delivery's own work, so that it buys nothing
        where BUSY_PER_S go out anyway.
        """
        for member in self._slots.age(now):
            self._look_again(cast("Lane", member))
        period = int(now // TRAFFIC_S)
        if period != self._period:
            self._active_before = self._active if period == self._period + 1 else set()
            self._period, self._active = period, set()
        if self._measured is None:
            self._measured = (now, self.delivered)
            return
        since, before = self._measured
        if now - since >= MEASURE_EVERY_S:
            self._measured = (now, self.delivered)
            per_s = (self.delivered - before) / (now - since)
            self.patience_s = STUCK_AFTER_S
            self._busy = per_s >= BUSY_PER_S
            if self._busy:
                self.patience_s = max(STUCK_AFTER_S, 2 * self.queued / per_s)

    def _push(self, lane: Lane, delivery: Delivery) -> None:
        if not lane.queue and not lane.late and not lane.in_flight:
            self._idle.pop(lane.key, None)
            # It may have been forgotten while idle.
            self._lanes[lane.key] = self.by_endpoint[lane.key.endpoint_id] = lane
        (lane.late if delivery.late else lane.queue).append(delivery)
        if delivery.event.payload is None:
            lane.unloaded += 1
        self.count(lane.site, 1, delivery)
        if not lane.in_turn and lane.in_flight < lane.allowed:
            self._line_up(lane)

    def count(self, site: Site, change: int, delivery: Delivery) -> None:
        """Count a delivery that joins a queue (1) or leaves it (-1), or a line that stands before one (ordering.py)."""
        payload_bytes = change * len(delivery.event.payload or b"")
        self.queued += change
        self.queued_bytes += payload_bytes
        site.queued += change
        site.queued_bytes += payload_bytes

    def _line_up(self, lane: Lane) -> None:
        """Let a lane, and its site, take part in the turns."""
        lane.in_turn = True
        turns = lane.site.turns
        if not turns:
            self._turns.append(lane.site)
        turns.append(lane)

    # Turns ------------------------------------------------------------------------------------------------------------

    def next(self, now: float) -> tuple[Lane, Delivery] | None:
        """Take the next delivery to send, lanes with work taking turns; None when there is none or no slot."""
        slots = self._slots
        if slots.in_flight >= slots.size:
            return None
        if self._rests and self._rests[0][0] <= now:
            self._wake_due_lanes(now)
        while self._turns:
            site = self._turns.popleft()
            lane = site.turns.popleft()
            lane.in_turn = False
            if site.turns:
                self._turns.append(site)
            if lane.in_flight >= lane.allowed or not (lane.queue or lane.late):
                continue
            if (lane.unloaded or slots.in_flight >= slots.plenty) and not self._may_start(lane):
                continue
            queue = self._queue_of(lane, now) if lane.late or lane.curbed else lane.queue
            if queue:
                delivery = queue.popleft()
                self.count(site, -1, delivery)
                delivery.flight = slots.start(lane, now)
                if lane.period != self._period:
                    self._note_traffic(lane)
                if (lane.queue or lane.late) and lane.in_flight < lane.allowed:
                    self._line_up(lane)
                return lane, delivery
        return None

    def _may_start(self, lane: Lane) -> bool:
        """Return True if a lane has the payload of its next delivery, and a slot of its share is free."""
        if lane.unloaded and self._wants_payload(lane):
            lane.in_turn = True  # until it is loaded
            return False
        slots = self._slots
        if slots.in_flight >= slots.plenty and not slots.admits(lane):
            lane.in_turn = True  # until its share has room
            return False
        return True

    def _queue_of(self, lane: Lane, now: float) -> deque[Delivery] | None:
        """Say which queue of a lane is next; None, and let the lane rest, where it is too early."""
        if not lane.curbed:
            return self._turn_of(lane, now)
        at = lane.opens_at()
        if at > now:
            self._rest(lane, at)
            return None
        queue = self._turn_of(lane, now) if lane.late else lane.queue
        if queue and lane.rate is not None:
            lane.rate.started(now)
        return queue

    def _turn_of(self, lane: Lane, now: float) -> deque[Delivery] | None:
        """Say which queue of a lane with late work is next."""
        if lane.queue and lane.led < LIVE_TURNS:
            lane.led += 1
            return lane.queue
        pace = lane.pace
        if pace is None or pace.not_before <= now:
            lane.led = 0
            if pace is not None:
                pace.started(now)
            return lane.late
        if lane.queue:
            return lane.queue
        self._rest(lane, pace.not_before)
        return None

    def _rest(self, lane: Lane, at: float) -> None:
        """Look at a lane again at a time, or earlier if that was planned."""
        if at < lane.rests_at:
            lane.rests_at = at
            heapq.heappush(self._rests, (at, next(self._numbers), lane))

    @property
    def rests_until(self) -> float | None:
        """When the first lane of which something waits for a time is to be looked at; None: there is no such lane."""
        return self._rests[0][0] if self._rests else None

    def _wake_due_lanes(self, now: float) -> None:
        while self._rests and self._rests[0][0] <= now:
            at, _, lane = heapq.heappop(self._rests)
            if at == lane.rests_at:  # otherwise it was looked at earlier
                lane.rests_at = NEVER
                self._is_paused(lane, now)  # so that it counts as idle where it is
                self._go_on(lane)

    def _go_on(self, lane: Lane) -> None:
        if lane.queue or lane.late:
            if not lane.in_turn and lane.in_flight < lane.allowed:
                self._line_up(lane)
        elif not lane.in_flight:
            self._leave(lane)

    def _look_again(self, lane: Lane) -> None:
        """Let a lane that waited for a share or a payload take part in the turns again."""
        lane.in_turn = False
        self._go_on(lane)

    # Large payloads ---------------------------------------------------------------------------------------------------

    def _wants_payload(self, lane: Lane) -> bool:
        """Return True if a lane's next payload must be loaded first; it waits until then."""
        if self._next_unloaded(lane) is None:
            return False
        if not lane.site.loads:
            self._loads.append(lane.site)
        lane.site.loads.append(lane)
        return True

    def _next_unloaded(self, lane: Lane) -> Delivery | None:
        """Return the delivery of a lane that may be next and whose payload is large and not in memory."""
        for queue in (lane.queue, lane.late):
            if queue and queue[0].event.payload is None and queue[0].loaded is None:
                return queue[0]
        return None

    @property
    def wants_payloads(self) -> bool:
        """Whether lanes wait for payloads to be loaded."""
        return bool(self._loads)

    def next_load(self) -> tuple[Lane, Delivery, int] | None:
        """Take the next delivery whose payload is to be loaded, and the bytes that it may have; sites take turns.

        Returns:
            None if nothing is to be loaded, or if the sites that want something have no room for it.
        """
        for _ in range(len(self._loads)):
            site = self._loads.popleft()
            room = self._payloads.room(site.loaded_bytes)
            if room <= 0 or room < site.load_wants:
                self._loads.append(site)
                continue
            site.load_wants = 0
            lane = site.loads.popleft()
            if site.loads:
                self._loads.append(site)
            delivery = self._next_unloaded(lane)
            if delivery is not None:
                return lane, delivery, room
            self._look_again(lane)
        return None

    def cost_of(self, payload_bytes: int) -> int:
        """Return what a large payload counts for in the bytes that sites share."""
        return self._payloads.cost(payload_bytes)

    def put_load_back(self, lane: Lane, cost: int) -> None:
        """Let a lane wait for more room: its next payload counts for so many bytes."""
        site = lane.site
        if not site.loads:
            self._loads.append(site)
        site.loads.appendleft(lane)
        site.load_wants = cost

    def loaded(self, lane: Lane, delivery: Delivery, loaded: Loaded) -> None:
        """Take a payload that was loaded, unless its delivery has left the lane meanwhile."""
        if self._next_unloaded(lane) is delivery:
            delivery.loaded = loaded
            lane.unloaded -= 1
            self._payloads.used += loaded.cost
            lane.site.loaded_bytes += loaded.cost
        self._look_again(lane)

    def _unload(self, lane: Lane, delivery: Delivery) -> None:
        """Forget a delivery's large payload, which is sent or will be loaded again."""
        if delivery.loaded is not None:
            self._payloads.used -= delivery.loaded.cost
            lane.site.loaded_bytes -= delivery.loaded.cost
            delivery.loaded = None

    # Answers ----------------------------------------------------------------------------------------------------------

    def _end(self, lane: Lane, delivery: Delivery) -> None:
        """Give a slot and a payload's bytes back; lanes that waited for a share take part in the turns again."""
        if delivery.loaded is not None:
            self._unload(lane, delivery)
        for member in self._slots.end(lane, cast("Flight | None", delivery.flight)):
            self._look_again(cast("Lane", member))
        delivery.flight = None

    def succeeded(self, lane: Lane, delivery: Delivery, now: float, took_s: float = 0.0) -> bool:
        """Take a request back that was answered 2xx: the lane grows by one; whether its breaker closed by it."""
        self._end(lane, delivery)
        self.delivered += 1
        lane.proved, lane.host.hangs = True, 0
        lane.smooth_s = smooth_s = lane.smooth_s + (took_s - lane.smooth_s) * SMOOTHING
        if took_s < lane.best_s:  # noqa: PLR1730 - min() costs more than all of this
            lane.best_s = took_s
        if smooth_s > SLOWER_S and smooth_s > 2.0 * lane.best_s + SLOWER_S and not self._busy:
            self._ease(lane, now)
        elif lane.allowed < lane.limit:
            lane.resize(lane.width + 1)
        if lane.pace is not None and delivery.late and lane.pace.grow():
            lane.pace = None
        closed = bool(lane.breaker.window) and self._weigh(lane, delivery, now)
        self._go_on(lane)
        return closed

    def _ease(self, lane: Lane, now: float) -> None:
        """Halve a lane whose answers have become slow; where few requests are as slow, believe it is not for us."""
        if now < lane.eases_at:
            return
        lane.eases_at = now + max(EASE_EVERY_S, lane.smooth_s / SMOOTHING)
        least = max(START_WIDTH, lane.limit / EASE_LEAST)
        if lane.width > least:
            lane.resize(max(least, lane.width / 2))
        else:
            lane.best_s = min(lane.smooth_s, max(lane.best_s, SLOWER_S) * BEST_GROWS)

    def _weigh(self, lane: Lane, delivery: Delivery, now: float) -> bool:
        """Count a success where something has failed of late."""
        if not lane.breaker.is_open:
            lane.breaker.succeeded()
            return False
        lane.proved = False
        lane.resize(START_WIDTH)
        if delivery is not lane.probe:  # sent before it opened
            return False
        lane.breaker.close()
        lane.probe, lane.proved = None, True
        if lane.key.endpoint_id in self.parked:
            lane.pace = self._pace(now)
        return True

    def failed(
        self,
        lane: Lane,
        delivery: Delivery,
        now: float,
        random01: float,
        *,
        counts: bool = True,
        hung: bool = False,
    ) -> list[Delivery] | None:
        """Take a request back that failed: the lane is halved.

        Args:
            lane: its lane.
            delivery: what it carried.
            now: monotonic seconds.
            random01: from 0 to 1, for the wait until a probe.
            counts: whether the endpoint is to blame, for the breaker.
            hung: whether it has held its slot for as long as a request may.

        Returns:
            None, or what was queued and is to be parked, if its breaker has just opened.
        """
        self._end(lane, delivery)
        lane.resize(lane.width / 2)
        opened = None
        if lane.breaker.is_open:
            self._take_probe_back(lane, delivery, now, random01, counts=counts)
        elif counts:
            if lane.pace is not None:
                lane.pace.halve(now)
            if lane.breaker.failed(now, random01, too_often=self._hangs_too_often(lane, hung=hung)):
                lane.proved, lane.pace, lane.hangs = False, None, 0
                lane.resize(START_WIDTH)
                opened = self._take(lane, 0)
        self._go_on(lane)
        return opened

    def _hangs_too_often(self, lane: Lane, *, hung: bool) -> bool:
        """Count timeouts; return True if its breaker is to open whatever the share of failures is."""
        host = lane.host
        host.hangs = host.hangs + 1 if hung else 0
        lane.hangs = lane.hangs + 1 if hung and not lane.proved else 0
        return lane.hangs >= HANGS_MAX or host.hangs > HOST_HANGS_MAX

    def unsent(self, lane: Lane, delivery: Delivery) -> None:
        """Take back a delivery that ended without a request: nothing is known of the endpoint that was not before.

        If it was the probe, another delivery may be it at once.
        """
        self._end(lane, delivery)
        if delivery is lane.probe:
            lane.probe = None
            self.parked.look(lane.key.endpoint_id, AT_ONCE)
        self._go_on(lane)

    def _take_probe_back(
        self, lane: Lane, delivery: Delivery, now: float, random01: float, *, counts: bool
    ) -> None:
        if delivery is lane.probe:
            lane.probe = None
            if counts:
                lane.breaker.probe_failed(now, random01)
            else:
                lane.breaker.probe_proved_nothing(now, random01)

    # Pauses -----------------------------------------------------------------------------------------------------------

    def pause(self, lane: Lane, wait_s: float, now: float, *, asked: bool = True) -> list[Delivery]:
        """Start nothing for so many seconds; return what is to be parked, if that is long.

        What is in flight comes back in its own time, and a success does not end the pause: the endpoint's change does.

        Args:
            lane: which.
            wait_s: seconds.
            now: monotonic seconds.
            asked: its receiver has asked for it: afterwards it goes on gently.
        """
        lane.asked_to_pause = lane.asked_to_pause or asked
        lane.paused_until = max(lane.paused_until, now + wait_s)
        lane.curb()
        self._rest(lane, lane.paused_until)
        return self._take(lane, 0) if lane.paused_until - now > PAUSE_PARKS_S else []

    def _is_paused(self, lane: Lane, now: float) -> bool:
        """Whether it is; one that is over is forgotten."""
        if lane.paused_until and lane.paused_until <= now:
            self._end_pause(lane)
        return lane.paused_until > 0

    def _end_pause(self, lane: Lane) -> None:
        """Let it go on, at a pace where much has gathered for a receiver that asked for the pause."""
        asked, lane.asked_to_pause = lane.asked_to_pause, False
        lane.paused_until = 0.0
        lane.curb()
        if asked and lane.key.endpoint_id in self.parked:
            self.catch_up(lane, 0.0)

    # Breakers and late work -------------------------------------------------------------------------------------------

    def reopen(self, endpoint_id: int, probe_at: float) -> None:
        """Open the breaker of an endpoint that has no lane yet, as its parked rows say it was."""
        if self._policy.share > 0:
            restored = self._reopened[endpoint_id] = Breaker(self._policy)
            restored.reopen(probe_at)

    def probe_at(self, endpoint_id: int) -> float | None:
        """Return when an endpoint whose breaker is open, or that is paused, may be asked; None: at once."""
        lane = self.by_endpoint.get(endpoint_id)
        found = self._reopened.get(endpoint_id) if lane is None else lane.breaker
        at = found.probe_at if found is not None and found.is_open else None
        if lane is not None and lane.paused_until:
            return max(at or 0.0, lane.paused_until)
        return at

    def catch_up(self, lane: Lane, now: float) -> None:
        """Let late work go out at a pace from now on: its endpoint was switched on again."""
        if lane.pace is None and not lane.breaker.is_open:
            lane.pace = self._pace(now)

    def _pace(self, now: float) -> Pace:
        return Pace(now, grow_s=self._policy.probe_s / GROWTHS_A_PROBE)

    def caught_up(self, endpoint_id: int) -> None:
        """Nothing of an endpoint is parked any more."""
        self.parked.discard(endpoint_id)
        lane = self.by_endpoint.get(endpoint_id)
        if lane is not None:
            lane.pace = None
            self._go_on(lane)

    def refill_quota(self, endpoint_id: int, now: float) -> int:
        """Return how many parked deliveries an endpoint may take back: one that does not keep up only a few."""
        lane = self.by_endpoint.get(endpoint_id)
        if self.full or (lane is not None and self._is_paused(lane, now)):
            return 0
        probe_at = self.probe_at(endpoint_id)
        if probe_at is not None:
            return int(now >= probe_at and (lane is None or lane.probe is None))
        if lane is None:
            return 2 * self._endpoint_concurrency
        per_s = lane.late_per_s
        if per_s is not None:
            most = LANE_QUEUE_MAX // 2 if lane.proved else 2 * lane.limit
            wanted = max(PACED_LEAST, min(most, int(per_s * PACED_AHEAD_S)))
            return wanted - len(lane.late) if len(lane.late) <= wanted // 2 else 0
        if lane.proved and lane.queued <= LANE_QUEUE_MAX // 4 and not lane.waits_longer(self.patience_s, now):
            return LANE_QUEUE_MAX // 2
        late = len(lane.late)  # live traffic may never end, and late work has its turns beside it
        return 2 * lane.limit - late if late <= lane.limit else 0

    # Out of the queues ------------------------------------------------------------------------------------------------

    def empty(self, lane: Lane) -> list[Delivery]:
        """Take everything out of a lane's queues: its endpoint was disabled."""
        return self._take(lane, 0)

    def forget(self, lane: Lane) -> list[Delivery]:
        """Take everything out of a lane's queues, and remember nothing of it: its endpoint was deleted."""
        lane.breaker.close()
        lane.paused_until, lane.asked_to_pause = 0.0, False
        lane.curb()
        return self._take(lane, 0)

    def shed(self, now: float) -> list[Delivery]:
        """Take surplus of lanes that do not keep up, when they fill the memory while slots are free.

        Little at a time: outcomes wait behind what is parked.
        """
        if not self.full or self.in_flight >= self._slots.size:
            return []
        shed: list[Delivery] = []
        for lane in self.busy():
            if self._is_stuck(lane, now):
                shed += self._take(lane, max(2 * lane.limit, lane.queued - (SHED_MAX - len(shed))))
                if len(shed) >= SHED_MAX:
                    break
        return shed

    def shed_for(self, site_id: str, endpoints: int, now: float) -> list[Delivery]:
        """Take surplus of a site's lanes that do not keep up, where others of its endpoints have nothing queued.

        The site has used up its part of the memory, and these would get nothing more. Where all lanes are stuck it
        would buy nothing: what the log holds is as well off there.
        """
        lanes = [lane for lane in self._lanes.values() if lane.key.site_id == site_id]
        stuck = [lane for lane in lanes if lane.queued > 2 * lane.limit and self._is_stuck(lane, now)]
        busy = sum(1 for lane in lanes if lane.queued)
        if not stuck or self.in_flight >= self._slots.size or busy >= max(endpoints, len(lanes)):
            return []
        shed: list[Delivery] = []
        for lane in stuck:
            shed += self._take(lane, max(2 * lane.limit, lane.queued - (SHED_MAX - len(shed))))
        return shed

    def _is_stuck(self, lane: Lane, now: float) -> bool:
        """Whether it is the lane that its deliveries wait for: it may start no more, and answers too little."""
        if lane.curbed and lane.is_barred(now):
            return True
        if lane.waits_for is not None:
            return lane.waits_longer(self.patience_s, now)
        return lane.in_flight >= lane.allowed and (not lane.proved or lane.waits_longer(self.patience_s, now))

    def _take(self, lane: Lane, keep: int) -> list[Delivery]:
        """Take the newest out of a lane, the late ones first, until so many are left; oldest first."""
        taken: list[Delivery] = []
        while lane.queued > keep:
            delivery = (lane.late or lane.queue).pop()
            self.count(lane.site, -1, delivery)
            if delivery.loaded is not None:
                self._unload(lane, delivery)
            elif delivery.event.payload is None:
                lane.unloaded -= 1
            if delivery is lane.probe:
                lane.probe = None
            taken.append(delivery)
        taken.reverse()
        if lane.waits_for is not None and not lane.queued:
            self._slots.forget(lane)
            lane.in_turn = False
        self._go_on(lane)
        return taken


def _is_end_of_rotation(before: Endpoint, after: Endpoint) -> bool:
    """Whether nothing has changed but that the secret before this one is of no use any more."""
    old, new = before.options, after.options
    if old is None or old.previous_secret is None:
        return False
    ended = dataclasses.replace(old, previous_secret=None, previous_until_s=0.0)
    return dataclasses.replace(before, options=new) == after and new in {None, ended}
