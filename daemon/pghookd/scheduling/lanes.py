"""Chooses the next delivery: a lane per endpoint, slow start, a global limit, turns by site, and when to park.

Bookkeeping is synchronous and does no I/O. It decides everything and returns the deliveries to start, park or wait for.
A lane has two queues: live traffic and retries go first; deliveries back from `parked` or `held` get one turn in four.
A lane with an open breaker holds only its probe. Once the breaker closes, parked deliveries go out at a pace. A paused
lane starts nothing until its pause ends, and a lane with a rate starts nothing before its rate allows it. No clock and
no randomness: callers pass `now` (monotonic seconds) and random numbers.

The width of a lane grows by one for each success. It is halved for each failure, and when answers have become slow.
scheduling/slots limits the slots of a site and of a host. A lane whose next payload is large starts nothing until that
payload is loaded; scheduling/payload_budget limits the bytes of each site.
"""

from __future__ import annotations

import dataclasses
import enum
import heapq
import itertools
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
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
STUCK_QUEUE_MAX: Final = 100  # the same for a lane that does not keep up
QUEUE_MAX: Final = 20_000  # deliveries queued in all lanes
SITE_SHARE: Final = 3  # a site may take a third of the free memory: a quarter of all memory if it is alone
SITE_LEAST: Final = 20  # deliveries that a site may have in memory, however much the others hold
RESERVE: Final = 10  # a tenth of the memory is kept for SITE_LEAST
SITE_PAGE_MAX: Final = 500  # deliveries made at once for one site
REFILL_LEAST: Final = 250  # least deliveries to read deferred events for, unless the site's part is smaller
SHED_MAX: Final = 500  # deliveries taken out of memory at once
IDLE_LANES_MAX: Final = 10_000  # lanes without work that are kept, with their width
TRAFFIC_S: Final = 600.0  # a site has traffic if it started requests in this period, or in the one before
START_WIDTH: Final = 2.0  # requests in flight of a lane without a success yet
STUCK_AFTER_S: Final = 1.0  # a lane whose next delivery has waited this long does not keep up
MEASURE_EVERY_S: Final = 0.5
BUSY_PER_S: Final = 2000.0  # deliveries; at this throughput waiting for room costs less than parking
LIVE_TURNS: Final = 3  # live deliveries started for each late one, while both wait
GROWTHS_A_PROBE: Final = 3  # how many times a pace grows by e within `probe_s`
PACED_AHEAD_S: Final = 2.0  # a lane with a pace holds the late deliveries of this time in memory
PACED_LEAST: Final = 4
HANGS_MAX: Final = 3  # timeouts in a row of a lane without a success: low, since each holds a slot for long
LANE_SHARE: Final = 4  # an endpoint may hold a quarter of all slots, whatever its `concurrency` is
HOST_HANGS_MAX: Final = 50  # timeouts of a host in a row, after which one timeout opens a lane's breaker
PAUSE_PARKS_S: Final = 5.0  # during a longer pause the lane's deliveries are parked
NEVER: Final = float("inf")
SMOOTHING: Final = 0.125  # weight of an answer in a lane's smoothed response time
SLOWER_S: Final = 0.05  # answers are slow if they take over twice the lane's best time plus this
EASE_EVERY_S: Final = 1.0  # a lane is halved for slow answers at most this often
EASE_LEAST: Final = 4  # and to no less than a quarter of its limit, so that a slow receiver is not starved
BEST_GROWS: Final = 1.25  # factor by which the best time then grows, so that an old best is forgotten


class LaneKey(NamedTuple):
    """Key of a lane: deliveries with the same key share one queue and one pace."""

    site_id: str
    endpoint_id: int


class Offer(enum.Enum):
    """The result of offering a delivery to a lane."""

    QUEUED = "queued"
    PARK = "park"  # give it a row in backlog: its lane is full and other lanes could use the memory
    OPEN = "open"  # give it a row in backlog: the endpoint's breaker is open
    PAUSED = "paused"  # give it a row in backlog: the lane is paused for long
    WAIT = "wait"  # leave it in the log until there is room
    BEHIND = "behind"  # give it a row in backlog: its line has earlier deliveries (scheduling/ordering)


PARKED_FOR: Final = {
    Offer.PARK: Reason.LANE_FULL,
    Offer.OPEN: Reason.BREAKER_OPEN,
    Offer.PAUSED: Reason.PAUSED,
    Offer.BEHIND: Reason.ORDERING,
    Offer.WAIT: Reason.LANE_FULL,  # for a delivery that does not come from the log
}


@dataclasses.dataclass(slots=True, eq=False)
class Site(Holder):
    """The lanes of one site. Sites take turns, and so do the lanes within a site.

    Attributes:
        turns: lanes that may start a request; while there are any, the site takes part in the turns of sites.
        queued: deliveries queued in its lanes, and in the lines in front of them.
        queued_bytes: bytes of their payloads.
        loads: lanes whose next payload must be loaded; while there are any, the site takes part in the turns of loads.
        loaded_bytes: cost of its large payloads in memory, bytes.
        load_wants: cost of the next payload of the first lane in `loads`, bytes; 0 if not known.
    """

    turns: deque[Lane] = dataclasses.field(default_factory=deque)
    queued: int = 0
    queued_bytes: int = 0
    loads: deque[Lane] = dataclasses.field(default_factory=deque)
    loaded_bytes: int = 0
    load_wants: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class Host(Holder):
    """The requests of all sites to one host and port.

    Attributes:
        hangs: timeouts in a row.
    """

    hangs: int = 0


@dataclasses.dataclass(slots=True, eq=False)
class Lane(Member):
    """One endpoint's deliveries in memory.

    Attributes:
        key: its site and endpoint.
        site: its site.
        host: the host and port of the endpoint's URL.
        endpoint: the endpoint, as last read.
        limit: maximum of requests in flight, from the endpoint or the settings.
        breaker: the endpoint's breaker.
        width: how many requests may be in flight, as a float that grows and is halved.
        queue: live traffic and retries.
        late: late work: deliveries back from `parked` or `held`.
        unloaded: number of queued deliveries whose payload is large and not in memory.
        allowed: the width in whole requests.
        in_turn: True if it takes part in the turns, or waits for a share of slots or for a payload.
        rests_at: monotonic seconds at which it takes part again, while a pause, rate or pace holds it; NEVER if none.
        led: live deliveries started since the last late one.
        pace: how fast late deliveries start during catch-up; None if only the width limits them.
        probe: the delivery queued or in flight as the probe of an open breaker; None if there is none.
        curbed: True if it has a rate or is paused, which must be checked before each start.
        rate: limits how often requests may start; None if only the width limits them.
        paused_until: monotonic seconds before which nothing starts; 0 if it is not paused.
        asked_to_pause: True if its receiver asked for the pause, so that late work goes out at a pace after it.
        hangs: timeouts in a row while it is not `proved`.
        smooth_s: smoothed response time, seconds.
        best_s: best recent response time, seconds.
        eases_at: monotonic seconds from which slow answers may halve the lane again.
        period: the last period of TRAFFIC_S in which it had traffic.
        cache: the prepared parts of the endpoint's requests; dropped when the endpoint changes.
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
        """Apply the endpoint's rate; an unchanged rate keeps its state."""
        options = self.endpoint.options
        per_s = None if options is None else options.rate
        if per_s is None:
            self.rate = None
        elif self.rate is None or self.rate.per_s != per_s:
            self.rate = Rate(per_s)
        self.curbed = self.rate is not None or self.paused_until > 0

    def opens_at(self) -> float:
        """Return the time before which pause and rate let nothing start, monotonic seconds."""
        return self.paused_until if self.rate is None else max(self.paused_until, self.rate.not_before)

    def is_barred(self, now: float) -> bool:
        """Return True if its deliveries wait for a pause or for its rate."""
        return self.paused_until > now or (self.rate is not None and self.rate.is_used_up(now))

    @property
    def late_per_s(self) -> float | None:
        """Late deliveries that may start per second; None if only the width limits them."""
        known = [each.per_s for each in (self.pace, self.rate) if each is not None]
        return min(known) if known else None

    @property
    def queued(self) -> int:
        """Deliveries in both queues."""
        return len(self.queue) + len(self.late)

    def waits_longer(self, patience_s: float, now: float) -> bool:
        """Return True if the head of a queue has waited for longer; late work with a pace does not count."""
        if self.queue and now - self.queue[0].since > patience_s:
            return True
        return bool(self.late) and self.pace is None and now - self.late[0].since > patience_s


@dataclasses.dataclass(frozen=True, slots=True)
class LaneTerms:
    """The limits of the lanes.

    Attributes:
        concurrency: requests in flight.
        endpoint_concurrency: requests in flight of one endpoint that sets none of its own.
        queue_bytes_max: bytes of payloads in memory.
        policy: when breakers open.
        queue_max: deliveries queued in memory.
        idle_max: lanes without work that are kept.
    """

    concurrency: int
    endpoint_concurrency: int
    queue_bytes_max: int
    policy: breaker.BreakerPolicy = dataclasses.field(default_factory=breaker.BreakerPolicy)
    queue_max: int = QUEUE_MAX
    idle_max: int = IDLE_LANES_MAX


class Lanes:
    """All lanes, and the slots they share.

    Attributes:
        queued: deliveries queued, in all lanes.
        queued_bytes: bytes of their payloads; a payload counts once for each of its deliveries.
        delivered: successes so far.
        patience_s: a lane whose head has waited for longer does not keep up.
        in_memory: deliveries in memory with a row in `backlog`, so that the row is not taken a second time.
        parked: endpoints that may have parked rows, or held rows that may go out.
        by_endpoint: lanes by endpoint_id.
    """

    def __init__(self, terms: LaneTerms) -> None:
        self._slots = Slots(terms.concurrency)
        self._payloads = PayloadBudget(terms.queue_bytes_max)
        self._terms = terms
        self._lanes: dict[LaneKey, Lane] = {}
        self.by_endpoint: dict[int, Lane] = {}
        self._idle: OrderedDict[LaneKey, None] = OrderedDict()
        self._sites: weakref.WeakValueDictionary[str, Site] = weakref.WeakValueDictionary()
        self._hosts: weakref.WeakValueDictionary[str, Host] = weakref.WeakValueDictionary()
        self._loads: deque[Site] = deque()
        self._turns: deque[Site] = deque()
        self._rests: list[tuple[float, int, Lane]] = []  # a heap: time, sequence number, lane
        self._numbers = itertools.count()
        self._reopened: dict[int, Breaker] = {}  # open breakers of endpoints without a lane yet
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

    def apply(self, terms: LaneTerms) -> None:
        """Apply new limits; deliveries already queued or in flight beyond them are not affected."""
        self._terms = terms
        self._slots.resize(terms.concurrency)
        self._payloads.size = terms.queue_bytes_max
        for lane in self._lanes.values():
            lane.limit = self._limit(lane.endpoint)
            lane.resize(lane.width)
            lane.breaker.policy = terms.policy
        for reopened in self._reopened.values():
            reopened.policy = terms.policy

    # Lanes ------------------------------------------------------------------------------------------------------------

    def lane(self, endpoint: Endpoint) -> Lane:
        """Return the endpoint's lane: a new one if it has none, and updated if the endpoint has changed."""
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
        """Apply a changed endpoint: probe at once if its breaker is open, and end a pause if its owner changed it."""
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
        return min(endpoint.concurrency or self._terms.endpoint_concurrency, most)

    def _host(self, endpoint: Endpoint) -> Host:
        name = host_and_port(endpoint.url)
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host()
        return host

    def _breaker(self, endpoint: Endpoint) -> Breaker:
        return self._reopened.pop(endpoint.endpoint_id, None) or Breaker(self._terms.policy)

    def _leave(self, lane: Lane) -> None:
        """Mark a lane without work as idle, so that it can be evicted; an open breaker or a pause must be kept."""
        if not lane.breaker.is_open and not lane.paused_until:
            self._idle[lane.key] = None
            while len(self._idle) > self._terms.idle_max:
                key, _ = self._idle.popitem(last=False)
                del self._lanes[key]
                self.by_endpoint.pop(key.endpoint_id, None)

    def busy(self) -> Iterator[Lane]:
        """Iterate over the lanes with deliveries queued or in flight."""
        return (lane for lane in list(self._lanes.values()) if lane.queue or lane.late or lane.in_flight)

    def traffic(self) -> int:
        """Return how many sites have started requests in the last ten to twenty minutes."""
        return max(len(self._active), len(self._active_before))

    def _note_traffic(self, lane: Lane) -> None:
        lane.period = self._period
        self._active.add(lane.key.site_id)

    # Offers -----------------------------------------------------------------------------------------------------------

    def offer(self, lane: Lane, delivery: Delivery, now: float) -> Offer:
        """Queue a delivery, or return why it was not queued."""
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
        """Queue the delivery as the probe if one is due; if the endpoint has parked rows, only a late one."""
        if lane.probe is not None or now < lane.breaker.probe_at or now < lane.paused_until:
            return Offer.OPEN
        if not delivery.late and lane.key.endpoint_id in self.parked:
            return Offer.OPEN
        lane.probe = delivery
        self._push(lane, delivery)
        return Offer.QUEUED

    @property
    def full(self) -> bool:
        """Return True if memory has no room for another delivery of any lane."""
        return self.queued >= self._terms.queue_max or self.queued_bytes >= self._terms.queue_bytes_max

    @property
    def starving(self) -> bool:
        """Return True if no queued delivery may start."""
        return not self._turns

    def _parking_buys_something(self, lane: Lane, now: float) -> bool:
        """Return True if the lane is stuck and reading on would give other lanes work."""
        return self._is_stuck(lane, now) and self._feeds_others(lane)

    def _feeds_others(self, lane: Lane) -> bool:
        """Return True if reading on helps: a slot is free, or the other lanes will soon run out of work."""
        if self.in_flight < self._slots.size:
            return True
        fed = 2 * self.queued >= self._terms.queue_max or 2 * self.queued_bytes >= self._terms.queue_bytes_max
        return 2 * lane.in_flight < self._slots.size and (self.starving or not fed)

    def room_for(self, site_id: str, endpoints: int) -> int:
        """Return how many more deliveries of a site, which has so many endpoints, fit into memory; 0 or less if none.

        A site may hold a third of the free memory, so that a site alone holds a quarter of all memory. A tenth of the
        memory is reserved: it gives every site SITE_LEAST deliveries, however much the others hold.
        """
        bytes_left = self._terms.queue_bytes_max - self.queued_bytes
        if self.queued >= self._terms.queue_max or bytes_left <= 0:
            return 0
        most = self._most(endpoints)
        site = self._sites.get(site_id)
        if site is not None and site.queued:
            most = most - site.queued if SITE_SHARE * site.queued_bytes < bytes_left else 0
        return min(SITE_PAGE_MAX, most)

    def refill_for(self, site_id: str, endpoints: int) -> int:
        """Return the room of one site; 0 if it is below both REFILL_LEAST and half of the site's part."""
        room = self.room_for(site_id, endpoints)
        return room if room >= min(REFILL_LEAST, self._most(endpoints) / 2) else 0

    def _most(self, endpoints: int) -> int:
        """Return the share of memory of a site with so many endpoints, in deliveries, while others hold theirs."""
        part = (self._terms.queue_max - self._terms.queue_max // RESERVE - self.queued) // SITE_SHARE
        return min(max(SITE_LEAST, part), endpoints * LANE_QUEUE_MAX // 2)

    def measure(self, now: float) -> None:
        """Measure the throughput and set `patience_s` from it; call it a few times a second.

        When the daemon itself is the bottleneck, every lane waits and none is at fault. Draining the queues takes
        queued / rate seconds; patience is twice that. Parking costs as much work as a delivery, so it gains nothing
        while BUSY_PER_S deliveries go out.
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
            # The lane may have been evicted while idle.
            self._lanes[lane.key] = self.by_endpoint[lane.key.endpoint_id] = lane
        (lane.late if delivery.late else lane.queue).append(delivery)
        if delivery.event.payload is None:
            lane.unloaded += 1
        self.count(lane.site, 1, delivery)
        if not lane.in_turn and lane.in_flight < lane.allowed:
            self._line_up(lane)

    def count(self, site: Site, change: int, delivery: Delivery) -> None:
        """Count a delivery that joins (1) or leaves (-1) a queue, or a line in front of it (scheduling/ordering)."""
        payload_bytes = change * len(delivery.event.payload or b"")
        self.queued += change
        self.queued_bytes += payload_bytes
        site.queued += change
        site.queued_bytes += payload_bytes

    def _line_up(self, lane: Lane) -> None:
        """Add a lane, and its site, to the turns."""
        lane.in_turn = True
        turns = lane.site.turns
        if not turns:
            self._turns.append(lane.site)
        turns.append(lane)

    # Turns ------------------------------------------------------------------------------------------------------------

    def next(self, now: float) -> tuple[Lane, Delivery] | None:
        """Take the next delivery to send, sites and lanes in turns; None if there is none or no slot is free."""
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
        """Return True if the payload of a lane's next delivery is loaded and its share has a free slot."""
        if lane.unloaded and self._wants_payload(lane):
            lane.in_turn = True  # until it is loaded
            return False
        slots = self._slots
        if slots.in_flight >= slots.plenty and not slots.admits(lane):
            lane.in_turn = True  # until its share has room
            return False
        return True

    def _queue_of(self, lane: Lane, now: float) -> deque[Delivery] | None:
        """Return the queue of a lane to take from next; None if it is too early, and then let the lane rest."""
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
        """Return the queue to take from next in a lane with late work; None if it is too early."""
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
        """Plan to check a lane again at a time, unless an earlier time is planned."""
        if at < lane.rests_at:
            lane.rests_at = at
            heapq.heappush(self._rests, (at, next(self._numbers), lane))

    @property
    def rests_until(self) -> float | None:
        """Monotonic seconds at which the first resting lane must be checked; None if no lane rests."""
        return self._rests[0][0] if self._rests else None

    def _wake_due_lanes(self, now: float) -> None:
        while self._rests and self._rests[0][0] <= now:
            at, _, lane = heapq.heappop(self._rests)
            if at == lane.rests_at:  # otherwise the lane was checked earlier
                lane.rests_at = NEVER
                self._is_paused(lane, now)  # ends a pause that is over, so that the lane can become idle
                self._go_on(lane)

    def _go_on(self, lane: Lane) -> None:
        if lane.queue or lane.late:
            if not lane.in_turn and lane.in_flight < lane.allowed:
                self._line_up(lane)
        elif not lane.in_flight:
            self._leave(lane)

    def _look_again(self, lane: Lane) -> None:
        """Add a lane that waited for a share or a payload to the turns again."""
        lane.in_turn = False
        self._go_on(lane)

    # Large payloads ---------------------------------------------------------------------------------------------------

    def _wants_payload(self, lane: Lane) -> bool:
        """Return True if a lane's next payload must be loaded first, and queue the lane for that."""
        if self._next_unloaded(lane) is None:
            return False
        if not lane.site.loads:
            self._loads.append(lane.site)
        lane.site.loads.append(lane)
        return True

    def _next_unloaded(self, lane: Lane) -> Delivery | None:
        """Return a delivery at the head of a queue whose large payload is not in memory; None if there is none."""
        for queue in (lane.queue, lane.late):
            if queue and queue[0].event.payload is None and queue[0].loaded is None:
                return queue[0]
        return None

    @property
    def wants_payloads(self) -> bool:
        """Return True if lanes wait for payloads to be loaded."""
        return bool(self._loads)

    def next_load(self) -> tuple[Lane, Delivery, int] | None:
        """Take the next delivery whose payload must be loaded; sites take turns.

        Returns:
            Lane, delivery and the bytes it may take; None if no payload is wanted, or no site that wants one has room.
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
        """Return the cost of a large payload, in the bytes that sites share."""
        return self._payloads.cost(payload_bytes)

    def put_load_back(self, lane: Lane, cost: int) -> None:
        """Put a lane back as the first of its site, until there is room for its next payload's cost, in bytes."""
        site = lane.site
        if not site.loads:
            self._loads.append(site)
        site.loads.appendleft(lane)
        site.load_wants = cost

    def loaded(self, lane: Lane, delivery: Delivery, loaded: Loaded) -> None:
        """Store a loaded payload, unless its delivery has left the lane meanwhile."""
        if self._next_unloaded(lane) is delivery:
            delivery.loaded = loaded
            lane.unloaded -= 1
            self._payloads.used += loaded.cost
            lane.site.loaded_bytes += loaded.cost
        self._look_again(lane)

    def _unload(self, lane: Lane, delivery: Delivery) -> None:
        """Drop a delivery's large payload: it was sent, or will be loaded again."""
        if delivery.loaded is not None:
            self._payloads.used -= delivery.loaded.cost
            lane.site.loaded_bytes -= delivery.loaded.cost
            delivery.loaded = None

    # Answers ----------------------------------------------------------------------------------------------------------

    def _end(self, lane: Lane, delivery: Delivery) -> None:
        """Release the slot and the payload's bytes; lanes woken by that take part in the turns again."""
        if delivery.loaded is not None:
            self._unload(lane, delivery)
        for member in self._slots.end(lane, cast("Flight | None", delivery.flight)):
            self._look_again(cast("Lane", member))
        delivery.flight = None

    def succeeded(self, lane: Lane, delivery: Delivery, now: float, took_s: float = 0.0) -> bool:
        """Record a request answered 2xx, and let the lane grow by one; return True if this closed its breaker."""
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
        """Halve a lane whose answers have become slow; if it is narrow already, accept the slowness as its best."""
        if now < lane.eases_at:
            return
        lane.eases_at = now + max(EASE_EVERY_S, lane.smooth_s / SMOOTHING)
        least = max(START_WIDTH, lane.limit / EASE_LEAST)
        if lane.width > least:
            lane.resize(max(least, lane.width / 2))
        else:
            lane.best_s = min(lane.smooth_s, max(lane.best_s, SLOWER_S) * BEST_GROWS)

    def _weigh(self, lane: Lane, delivery: Delivery, now: float) -> bool:
        """Count a success of an endpoint with recent failures; return True if it closed the breaker."""
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
        """Record a failed request, and halve the lane.

        Args:
            lane: the lane.
            delivery: the delivery that was sent.
            now: monotonic seconds.
            random01: from 0 to 1, for the jitter of the wait for a probe.
            counts: True if the endpoint is at fault, so that the breaker counts it.
            hung: True if the request ended with a timeout.

        Returns:
            The queued deliveries, to be parked, if this opened the breaker; None otherwise.
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
        """Count timeouts; return True if they must open the breaker, whatever the share of failures is."""
        host = lane.host
        host.hangs = host.hangs + 1 if hung else 0
        lane.hangs = lane.hangs + 1 if hung and not lane.proved else 0
        return lane.hangs >= HANGS_MAX or host.hangs > HOST_HANGS_MAX

    def unsent(self, lane: Lane, delivery: Delivery) -> None:
        """Record a delivery that ended without a request, which proves nothing about the endpoint.

        If it was the probe, another delivery may become the probe at once.
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
        """Pause a lane; return the queued deliveries, to be parked, if the pause is longer than PAUSE_PARKS_S.

        Requests in flight go on. A success does not end the pause; a change of the endpoint by its owner does.

        Args:
            lane: the lane.
            wait_s: length of the pause, seconds.
            now: monotonic seconds.
            asked: True if the receiver asked for the pause: then late work goes out at a pace after it.
        """
        lane.asked_to_pause = lane.asked_to_pause or asked
        lane.paused_until = max(lane.paused_until, now + wait_s)
        lane.curb()
        self._rest(lane, lane.paused_until)
        return self._take(lane, 0) if lane.paused_until - now > PAUSE_PARKS_S else []

    def _is_paused(self, lane: Lane, now: float) -> bool:
        """Return True if a lane is paused; end a pause that is over."""
        if lane.paused_until and lane.paused_until <= now:
            self._end_pause(lane)
        return lane.paused_until > 0

    def _end_pause(self, lane: Lane) -> None:
        """End a lane's pause; if the receiver asked for it, the parked rows go out at a pace."""
        asked, lane.asked_to_pause = lane.asked_to_pause, False
        lane.paused_until = 0.0
        lane.curb()
        if asked and lane.key.endpoint_id in self.parked:
            self.catch_up(lane, 0.0)

    # Breakers and late work -------------------------------------------------------------------------------------------

    def reopen(self, endpoint_id: int, probe_at: float) -> None:
        """Open the breaker of an endpoint without a lane, because its parked rows show that it was open."""
        if self._terms.policy.share > 0:
            restored = self._reopened[endpoint_id] = Breaker(self._terms.policy)
            restored.reopen(probe_at)

    def probe_at(self, endpoint_id: int) -> float | None:
        """Return when a paused endpoint, or one with an open breaker, may get a request; None if it may at once."""
        lane = self.by_endpoint.get(endpoint_id)
        found = self._reopened.get(endpoint_id) if lane is None else lane.breaker
        at = found.probe_at if found is not None and found.is_open else None
        if lane is not None and lane.paused_until:
            return max(at or 0.0, lane.paused_until)
        return at

    def catch_up(self, lane: Lane, now: float) -> None:
        """Limit late work to a pace from now on: its endpoint was enabled again, or a pause has ended."""
        if lane.pace is None and not lane.breaker.is_open:
            lane.pace = self._pace(now)

    def _pace(self, now: float) -> Pace:
        return Pace(now, grow_s=self._terms.policy.probe_s / GROWTHS_A_PROBE)

    def caught_up(self, endpoint_id: int) -> None:
        """Record that an endpoint has no parked rows any more."""
        self.parked.discard(endpoint_id)
        lane = self.by_endpoint.get(endpoint_id)
        if lane is not None:
            lane.pace = None
            self._go_on(lane)

    def refill_quota(self, endpoint_id: int, now: float) -> int:
        """Return how many parked deliveries an endpoint may take back; only a few if it does not keep up."""
        lane = self.by_endpoint.get(endpoint_id)
        if self.full or (lane is not None and self._is_paused(lane, now)):
            return 0
        probe_at = self.probe_at(endpoint_id)
        if probe_at is not None:
            return int(now >= probe_at and (lane is None or lane.probe is None))
        if lane is None:
            return 2 * self._terms.endpoint_concurrency
        per_s = lane.late_per_s
        if per_s is not None:
            most = LANE_QUEUE_MAX // 2 if lane.proved else 2 * lane.limit
            wanted = max(PACED_LEAST, min(most, int(per_s * PACED_AHEAD_S)))
            return wanted - len(lane.late) if len(lane.late) <= wanted // 2 else 0
        if lane.proved and lane.queued <= LANE_QUEUE_MAX // 4 and not lane.waits_longer(self.patience_s, now):
            return LANE_QUEUE_MAX // 2
        late = len(lane.late)  # late work only: it has turns of its own, and live traffic may never end
        return 2 * lane.limit - late if late <= lane.limit else 0

    # Out of the queues ------------------------------------------------------------------------------------------------

    def empty(self, lane: Lane) -> list[Delivery]:
        """Remove and return all queued deliveries of a lane whose endpoint was disabled."""
        return self._take(lane, 0)

    def forget(self, lane: Lane) -> list[Delivery]:
        """Remove and return all queued deliveries of a lane whose endpoint was deleted; reset breaker and pause."""
        lane.breaker.close()
        lane.paused_until, lane.asked_to_pause = 0.0, False
        lane.curb()
        return self._take(lane, 0)

    def shed(self, now: float) -> list[Delivery]:
        """Remove and return the surplus of stuck lanes, to be parked, if memory is full while slots are free.

        About SHED_MAX at a time, because outcomes wait behind these rows in the recorder.
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
        """Remove and return the surplus of a site's stuck lanes if other endpoints of the site have nothing queued.

        The site has used up its part of the memory, so those endpoints would get nothing. If all of its endpoints have
        deliveries queued, parking gains nothing: their events may as well stay in the log.
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
        """Return True if the lane itself holds up its deliveries: it may start no more, and answers too slowly."""
        if lane.curbed and lane.is_barred(now):
            return True
        if lane.waits_for is not None:
            return lane.waits_longer(self.patience_s, now)
        return lane.in_flight >= lane.allowed and (not lane.proved or lane.waits_longer(self.patience_s, now))

    def _take(self, lane: Lane, keep: int) -> list[Delivery]:
        """Remove the newest deliveries, late ones first, until `keep` are left; return them oldest first."""
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
    """Return True if the only change is that the previous secret has ended."""
    old, new = before.options, after.options
    if old is None or old.previous_secret is None:
        return False
    ended = dataclasses.replace(old, previous_secret=None, previous_until_s=0.0)
    return dataclasses.replace(before, options=new) == after and new in {None, ended}
